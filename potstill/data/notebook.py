"""How a set shows itself in a notebook: its images by class, what their labels say, and how it came to be."""

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from potstill.data.pictures import grid, png

CLASSES, IMAGES, LABELS = 20, 10, 3  # shown at most: classes, images of each, classes that their labels name
LEAST = 0.005  # of a label that is named


def as_html(
    title: str, provenance: Mapping[str, Any], classes: Sequence[str], pixels: Tensor, labels: Tensor,
    soft_labels: Tensor,
) -> str:  # fmt: skip
    """A set as HTML that needs nothing from elsewhere.

    Args:
        title: the set in a line.
        provenance: how it came to be.
        classes: K names.
        pixels: (n, C, H, W) uint8.
        labels: (n,), the class of each image.
        soft_labels: (n, K) probabilities.
    """
    rows = []
    for label, name in enumerate(classes[:CLASSES]):
        own = labels == label
        rows.append(f"<tr><td>{html.escape(name)}</td>{_shown(pixels[own], soft_labels[own], classes)}</tr>")
    more = f"<p>and {len(classes) - CLASSES} more classes</p>" if len(classes) > CLASSES else ""
    return (
        f"<div><p><b>{html.escape(title)}</b><br>{html.escape(_origin(provenance))}</p>"
        f"<table><tr><th>class</th><th>images</th><th>labels</th></tr>{''.join(rows)}</table>{more}</div>"
    )


def _origin(provenance: Mapping[str, Any]) -> str:
    """Data, methods, and the accuracy by which the set was chosen, as far as its provenance says."""
    found = [f"from {provenance['dataset']['name']}"] if "dataset" in provenance else []
    found += [f"by {' then '.join(stages)}"] if (stages := provenance.get("config", {}).get("stages")) else []
    found += [f"iteration {provenance['iteration']}"] if provenance.get("iteration") else []
    if "chosen_with_accuracy" in provenance:
        found.append(f"{provenance['chosen_with_accuracy']:.1%} on {provenance.get('chosen_on', 'validation')} images")
    return ", ".join(found)


def _shown(pixels: Tensor, soft_labels: Tensor, classes: Sequence[str]) -> str:
    """The first images of a class side by side, and the mean of all its labels."""
    if len(pixels) == 0:
        return "<td>none</td><td></td>"
    some = pixels[:IMAGES].cpu()
    picture = base64.b64encode(png(grid(some, torch.zeros(len(some), dtype=torch.long), IMAGES))).decode()
    more = f" and {len(pixels) - IMAGES} more" if len(pixels) > IMAGES else ""
    values, places = soft_labels.mean(0).topk(min(LABELS, len(classes)))
    most = zip(values.tolist(), places.tolist(), strict=True)
    told = ", ".join(f"{classes[place]} {share:.0%}" for share, place in most if share >= LEAST)
    return f'<td><img alt="" src="data:image/png;base64,{picture}">{more}</td><td>{html.escape(told)}</td>'
