"""What a set takes along when it is pushed: its files, and a card in Markdown that says what they are.

On the hub a set is a dataset repository:

README.md                                the card: picture, accuracies beside their controls, recipe, how to train
distilled.safetensors                    the set, exactly
data/train-00000-of-00001.parquet        its pictures with soft labels, for ``datasets.load_dataset``
images.png                               the picture
results.json                             the record, where the run was evaluated

No path of the machine it was made on is taken along.
"""

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from potstill import files
from potstill.data.distilled import FILE, Distilled, grid, load, png
from potstill.data.export import WORTH_SAYING, parquet
from potstill.errors import PotstillError
from potstill.evaluation.protocol import described
from potstill.methods import METHODS
from potstill.report.figures import NAMES
from potstill.report.run_page import flatten, row_of
from potstill.runs.record import upgrade
from potstill.runs.settings import from_dict

PARQUET, PICTURE, RESULTS = "data/train-00000-of-00001.parquet", "images.png", "results.json"
MOST = 10  # images of each class in the picture
LICENCE = re.compile(r"^[a-z0-9][a-z0-9.+-]*$")
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def contents(path: Path, name: str, licence: str | None, dataset: str | None = None) -> dict[str, bytes]:
    """The files of a push, by their paths in the repository.

    Args:
        path: a distilled.safetensors, or the folder of a run.
        name: of the repository, "user/name".
        licence: of the source, an identifier of the hub.
        dataset: the data it was distilled from; only a compact file needs it.

    Raises:
        PotstillError: no licence, or none of the hub's identifiers; or the set cannot be read.
    """
    _check_licence(licence)
    distilled = without_paths(load(path, dataset))
    folder = path if path.is_dir() else path.parent
    results = _results(folder / RESULTS)
    with tempfile.TemporaryDirectory() as made:
        distilled.save(Path(made) / FILE)
        whole = (Path(made) / FILE).read_bytes()
    found = {
        "README.md": card(distilled, results, name, str(licence)).encode(),
        FILE: whole,
        PARQUET: parquet(distilled.content()),
        PICTURE: png(grid(distilled.pixels, distilled.labels, MOST)),
    }
    return found | ({RESULTS: files.as_json(results, indent=2).encode()} if results else {})


def _check_licence(licence: str | None) -> None:
    if licence is None:
        raise PotstillError(
            "licence: a distilled set is made of images that are others', who say how they may be passed on; name the "
            "licence of the source, e.g. --licence cc-by-4.0, mit, other or unknown."
        )
    if not LICENCE.match(licence):
        raise PotstillError(
            f"licence {licence!r}: not an identifier of the hub, which are lower-case words such as cc-by-4.0, mit, "
            "apache-2.0, other, unknown; give one of them."
        )


def _results(path: Path) -> dict[str, Any]:
    """The record of an evaluated run, without paths of this machine; empty where there is none."""
    if not path.is_file():
        return {}
    results = upgrade(files.read_json(path))
    return {**results, "config": _named(results["config"])}


def without_paths(distilled: Distilled) -> Distilled:
    """The set, whose provenance names its dataset and beginning without their folders."""
    provenance = distilled.provenance
    if "config" in provenance:
        provenance = {**provenance, "config": _named(provenance["config"])}
    return replace(distilled, provenance=provenance)


def _named(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings whose paths are only names."""
    named = dict(config)
    for field in ("dataset", "start"):
        value = config.get(field)
        if isinstance(value, str) and (
            Path(value).exists() or Path(value).is_absolute() or value.startswith((".", "~"))
        ):
            named[field] = Path(value).name
    return named


# --- the card ------------------------------------------------------------------------------------------------------


def card(distilled: Distilled, results: Mapping[str, Any], name: str, licence: str) -> str:
    """The text of README.md: metadata of the hub, then a page to read.

    Args:
        distilled: the set.
        results: results.json of its run; empty where it was not evaluated.
        name: of the repository.
        licence: of the source.
    """
    parts = [
        _metadata(distilled, name, licence), _opening(distilled), _accuracies(results), _training(distilled, name),
        _making(distilled), _source(distilled, licence),
    ]  # fmt: skip
    return "\n".join(line for part in parts for line in part) + "\n"


def _metadata(distilled: Distilled, name: str, licence: str) -> Iterator[str]:
    """What the hub reads: YAML, of which JSON's strings are a part."""
    rows = len(distilled) * distilled.pictures**2
    size = next((text for most, text in SIZES if rows < most), "n>1M")
    config = distilled.provenance.get("config")
    methods = () if config is None else from_dict(config).method
    yield from ("---", f"license: {licence}", f"pretty_name: {json.dumps(name.split('/')[1])}")
    yield from ("task_categories:", "- image-classification", "size_categories:", f"- {size}", "tags:")
    yield from (f"- {json.dumps(tag)}" for tag in ("dataset-distillation", "potstill", *methods))
    yield from (
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        f"    path: {PARQUET}",
        "---",
        "",
    )


def _opening(distilled: Distilled) -> Iterator[str]:
    source, (_, c, h, w) = _plain(_dataset(distilled)), distilled.images.shape
    count = len(distilled) / len(distilled.classes)
    yield from (f"# {source}, distilled to {count:g} image{'' if count == 1 else 's'} per class", "")
    yield f"A synthetic training set of {len(distilled)} {'grey' if c == 1 else 'colour'} images of {w}×{h} pixels,"
    yield f"made by potstill to train networks on instead of {source}: in seconds, and with the accuracies below."
    yield from ("", f"![The images, a row a class]({PICTURE})", "")


def _accuracies(results: Mapping[str, Any]) -> Iterator[str]:
    """The table of accuracies beside their controls."""
    yield from ("## What networks learn from it", "")
    if not results:
        yield from ("It was not evaluated where it was made; `potstill evaluate` does.", "")
        return
    yield from ("| trained on | images | test accuracy | 95 % interval | networks |", "|---|---|---|---|---|")
    for key in NAMES:
        if key in results["accuracy"]:
            row = row_of(key, results)
            yield f"| {row['name']} | {row['images']} | {row['mean']} | {row['interval']} | {row['seeds']} |"
    protocol = results["protocol"]
    yield from ("", f"Fresh networks ({results['network']}) by the protocol {described(protocol)}: the set was")
    yield f"{_chosen(results['chosen']['on'])}."
    yield "Random images and the full set are controls, trained by the same recipe."
    yield ""


def _training(distilled: Distilled, name: str) -> Iterator[str]:
    yield from ("## Train on it", "", "```python", "import potstill", "")
    yield f'distilled = potstill.load("hf://{name}")'
    yield from (
        "network = potstill.train(distilled)",
        "predicted = network(distilled.transform(uint8_images)).argmax(1)",
    )
    yield from ("```", "")
    yield f"`distilled.tensors()` and `distilled.loader()` serve a loop of your own; labels are {_labels(distilled)}."
    step_size = distilled.step_size
    yield f"The step size is {'yours to choose' if step_size is None else f'{step_size:.4g}'}. The file carries its"
    yield f"transform ({distilled.transform.kind}), which test images must go through."
    yield from ("", "Without potstill, as pictures of 8 bits with soft labels:", "", "```python")
    yield from (
        "import datasets",
        "",
        f'rows = datasets.load_dataset("{name}", split="train")  # image, label, soft_label',
    )
    yield from ("```", "")
    clipped = distilled.content().clipped
    if clipped > WORTH_SAYING:
        yield f"Of these pictures {clipped:.0%} of the values are clipped to the range of 8 bits, so networks learn"
        yield from ("less from them than from the file.", "")


def _making(distilled: Distilled) -> Iterator[str]:
    """The recipe: methods, network, and every setting."""
    yield from ("## How it was made", "")
    config = distilled.provenance.get("config")
    if config is None:
        yield from ("Its file does not say.", "")
        return
    settings = from_dict(config)
    for method, stage in zip(settings.methods, settings.stages, strict=True):
        yield f"- {METHODS[method.name].title} ({method.citation}), {method.iterations(stage)} iterations"
    if imported := distilled.provenance.get("imported"):
        yield f"- imported from other code: {', '.join(imported['files'])}"
    network = distilled.recipe["network"]
    yield f"- network: {', '.join(f'{key} {value}' for key, value in network.items())}"
    yield f"- augmentation: {', '.join(distilled.recipe['augment']) or 'none'}"
    told = distilled.provenance
    if "iteration" in told and not imported:
        yield f"- the set of iteration {told['iteration']}, {_chosen(told.get('chosen_on'))}"
    yield from ("", "<details><summary>Every setting</summary>", "", "```")
    yield from (f"{key}: {value}" for key, value in sorted(flatten(config).items()))
    yield from ("```", "", "</details>", "")


def _source(distilled: Distilled, licence: str) -> Iterator[str]:
    yield from ("## Source and licence", "")
    fingerprint = distilled.provenance.get("dataset", {}).get("fingerprint", "unknown")
    yield f"Distilled from {_plain(_dataset(distilled))} (fingerprint {fingerprint}). The images derive from it, under"
    yield f"its licence: {licence}. They may show what single images of it show: distilling protects nobody's privacy."
    yield from ("", f"Classes: {', '.join(_plain(one) for one in distilled.classes)}.")


def _dataset(distilled: Distilled) -> str:
    return str(distilled.provenance.get("dataset", {}).get("name", "unknown data"))


def _chosen(split: str | None) -> str:
    return f"chosen on {split} images" if split else "not chosen by any evaluation"


def _labels(distilled: Distilled) -> str:
    return {
        "logits": "soft (learned logits)", "values": "values to regress to", "raw": "weights of the classes",
        "hard": "hard",
    }[distilled.kind]  # fmt: skip


def _plain(text: str) -> str:
    """A name that Markdown leaves as it is."""
    return re.sub(r"([\\`*_{}\[\]<>#|!$])", r"\\\1", re.sub(r"\s+", " ", text))
