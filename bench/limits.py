"""What the machine can do at most: the speed of its convolutions and of its memory.

A step that spends its time in convolutions at this speed cannot be made faster but by fewer multiplications.
"""

from typing import Any

import torch
import torch.nn.functional as F

from potstill.machine import timed

REPEATS = 7
LAYERS = ((3, 128, 32), (128, 128, 16), (128, 128, 8))  # channels in, out, and pixels a side, of the published network


def limits(device: torch.device, batch: int = 32) -> dict[str, float]:
    """Multiplications and additions a second in the network's convolutions by precision, and bytes copied a second."""
    found = {
        f"convolutions in {str(dtype).removeprefix('torch.')} (flop/s)": convolutions(device, dtype, batch)
        for dtype in (torch.float32, torch.bfloat16)
    }
    return {**found, "memory (bytes/s, read and written)": memory(device)}


def convolutions(device: torch.device, dtype: torch.dtype, batch: int) -> float:
    """Forward, in the data and in the weights, channels last, as fast as the library has them."""
    seconds, flops = 0.0, 0.0
    for channels, width, side in LAYERS:
        x = torch.randn(batch, channels, side, side, device=device, dtype=dtype)
        w = torch.randn(width, channels, 3, 3, device=device, dtype=dtype)
        x, w = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, w))
        y = F.conv2d(x, w, padding=1)

        def backward(mask: list[bool], x: Any = x, w: Any = w, y: Any = y) -> Any:
            return torch.ops.aten.convolution_backward(y, x, w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask)

        seconds += timed(lambda x=x, w=w: F.conv2d(x, w, padding=1), device, REPEATS)
        seconds += timed(lambda: backward([True, False, False]), device, REPEATS)
        seconds += timed(lambda: backward([False, True, False]), device, REPEATS)
        flops += 3 * 2.0 * batch * side * side * w.numel()
    return flops / seconds


def memory(device: torch.device, size: int = 1 << 28) -> float:
    """Bytes read and written a second while copying a block far larger than the caches."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / timed(lambda: target.copy_(source), device, REPEATS)
