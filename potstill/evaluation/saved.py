"""A trained network as a file, with all that predicting takes.

.safetensors    tensors network.NAME and transform.NAME; the header tells the architecture, the shape of the images and
                the classes; :func:`load` gives the network back
.pt             the same in plain containers, for ``torch.load(path, weights_only=True)``: {"network": {NAME: tensor},
                "transform": {NAME: tensor}, "header": {...}}
.onnx           the transform and the network in one: "pixels" (batch, C, H, W) float32 from 0 to 1 → "outputs" (batch,
                K), whose largest is the class; "classes" in its metadata
"""

import contextlib
import dataclasses
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from potstill import files
from potstill.data.distilled import Distilled
from potstill.data.transform import Transform
from potstill.errors import PotstillError
from potstill.networks import architectures
from potstill.networks.architectures import NetworkConfig
from potstill.process import own_state

KIND = "network"
ENDINGS = (".safetensors", ".pt", ".onnx")
NETWORK = "network."
FOR_ONNX = ("onnx", "onnxscript")


def check(path: Path) -> None:
    """Refuse a file that could not be written, before hours of training.

    Raises:
        PotstillError: an ending that is none of the three, or .onnx where its packages are missing.
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise PotstillError(f"{path}: a network is saved as {', '.join(ENDINGS)}; let its name end so.")
    missing = [name for name in FOR_ONNX if importlib.util.find_spec(name) is None]
    if ending == ".onnx" and missing:
        raise PotstillError(
            f"{path}: ONNX needs the packages {' and '.join(FOR_ONNX)}, and {missing[0]} is missing; `pip install "
            f"{' '.join(FOR_ONNX)}`, or save it as .safetensors."
        )


@own_state()
def save(network: nn.Module, config: NetworkConfig, distilled: Distilled, path: Path) -> None:
    """Write a network that was trained on a set, in the format that the ending says.

    Args:
        network: as :func:`potstill.train` gives it.
        config: its architecture.
        distilled: the set, which has the transform and the classes.
        path: the file.

    Raises:
        PotstillError: see :func:`check`.
    """
    check(path)
    network = network.cpu().eval()
    tensors = {f"{NETWORK}{name}": tensor.detach() for name, tensor in network.state_dict().items()}
    header = {
        "network": dataclasses.asdict(config), "shape": list(distilled.images.shape[1:]),
        "classes": list(distilled.classes), "transform": distilled.transform.kind,
    }  # fmt: skip
    match path.suffix.lower():
        case ".safetensors":
            files.write_tensors(path, KIND, {**tensors, **distilled.transform.packed()}, header)
        case ".pt":
            files.write_bytes(path, _plain(network, distilled.transform, header))
        case ".onnx":
            files.write_bytes(path, _onnx(network, distilled))


def load(path: str | Path) -> tuple[nn.Sequential, Transform, tuple[str, ...]]:
    """A network saved as .safetensors, ready to predict, with the transform of its images and its classes.

    Raises:
        PotstillError: it is missing or damaged, or no such file.

    Example:
        >>> network, transform, classes = load("net.safetensors")
        >>> predicted = network(transform(uint8_images)).argmax(1)
    """
    tensors, header = files.read_tensors(Path(path), KIND)
    c, h, w = header["shape"]
    network = architectures.build(NetworkConfig(**header["network"]), (c, h, w), len(header["classes"]))
    network.load_state_dict({
        name.removeprefix(NETWORK): tensor for name, tensor in tensors.items() if name.startswith(NETWORK)
    })  # fmt: skip
    transform = Transform.from_tensors(header["transform"], tensors, (c, h, w))
    return network.eval(), transform, tuple(header["classes"])


def _plain(network: nn.Module, transform: Transform, header: Mapping[str, Any]) -> bytes:
    own = {name.removeprefix("transform."): tensor for name, tensor in transform.whole().tensors().items()}
    buffer = io.BytesIO()
    torch.save({"network": dict(network.state_dict()), "transform": own, "header": dict(header)}, buffer)
    return buffer.getvalue()


class _OfPixels(nn.Module):
    """The transform, then the network."""

    def __init__(self, network: nn.Module, transform: Transform) -> None:
        super().__init__()
        self.network, self.transform = network, transform

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network(self.transform.apply(pixels))


def _onnx(network: nn.Module, distilled: Distilled) -> bytes:
    example = torch.zeros(2, *distilled.images.shape[1:])
    whole = _OfPixels(network, distilled.transform)
    whole(example)  # makes ZCA's matrices, which are constants of the graph
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            whole, (example,), dynamo=True, input_names=["pixels"], output_names=["outputs"],
            dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False,
        )  # fmt: skip
    assert program is not None
    program.model.metadata_props["classes"] = json.dumps(list(distilled.classes))
    return program.model_proto.SerializeToString()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's words on packages that nothing here needs."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
