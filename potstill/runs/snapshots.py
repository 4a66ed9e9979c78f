"""What the images become: some of them kept now and then while they are distilled, and how far they moved.

Early parts of the trajectories write shapes and colours that all of a class share; late parts touch single features,
edges and textures, and leave the images looking real (DATM, section 4.4).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from potstill import files
from potstill.data.distilled import Distilled, grid

KIND = "snapshot"
MOST = 10  # images of a class that are kept
CLASSES = 10  # classes of which any are kept
FEW = 3  # images of a class up to which they are shown below each other
FRAME_SECONDS = 0.4


@dataclass(frozen=True)
class Snapshot:
    """Some images and labels of one iteration."""

    iteration: int
    pixels: Tensor  # (m, C, H, W) uint8 in true colours
    soft: Tensor  # (m, K) probabilities
    labels: Tensor  # (m,)

    @property
    def picture(self) -> Tensor:
        """One uint8 image (C, H', W'): a row a class, or, where a class has few images, a column a class."""
        slots = torch.cat([torch.arange(int(count)) for count in torch.bincount(self.labels) if count])
        return grid(self.pixels, slots if int(slots.max()) < FEW else self.labels, max(MOST, CLASSES))


def keep(folder: Path, distilled: Distilled, iteration: int) -> None:
    """Write the first images of the first classes, in true colours, under folder/snapshots."""
    labels = distilled.labels
    rows = torch.cat([(labels == label).nonzero().flatten()[:MOST] for label in range(CLASSES)])
    pixels = distilled.transform.pixels(distilled.images[rows].float().cpu())
    tensors = {"pixels": pixels, "soft": distilled.soft_labels[rows].cpu(), "labels": labels[rows].cpu()}
    files.write_tensors(folder / "snapshots" / f"{iteration:06d}.safetensors", KIND, tensors, {"iteration": iteration})


def read(folder: Path) -> list[Snapshot]:
    """The snapshots of a run in the order of its iterations; none where it kept none."""
    found = []
    for path in sorted((folder / "snapshots").glob("*.safetensors")):
        tensors, header = files.read_tensors(path, KIND)
        found.append(Snapshot(header["iteration"], tensors["pixels"], tensors["soft"], tensors["labels"]))
    return found


def moved(snapshots: list[Snapshot]) -> dict[str, list[float]]:
    """How far images and labels are from where they began, by snapshot.

    Returns:
        "iteration"; "images", the root mean square over pixels, in units of the pixel range; "labels", the mean total
        variation, the part of a label's probability that went to other classes.
    """
    first = snapshots[0]
    apart = [(s.pixels.float() - first.pixels.float()).square().mean().sqrt() / 255 for s in snapshots]
    shifted = [(s.soft - first.soft).abs().sum(1).mean() / 2 for s in snapshots]
    return {
        "iteration": [float(s.iteration) for s in snapshots],
        "images": [float(distance) for distance in apart],
        "labels": [float(distance) for distance in shifted],
    }


def animation(snapshots: list[Snapshot]) -> bytes:
    """An animated GIF of the snapshots, which rests on the last."""
    import io

    from PIL import Image

    frames = []
    for snapshot in snapshots:
        array = snapshot.picture.permute(1, 2, 0).numpy()
        frames.append(Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).convert("P"))
    duration = [round(1000 * FRAME_SECONDS)] * len(frames)
    duration[-1] *= 5
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=duration, loop=0)
    return buffer.getvalue()
