"""The Python door of comparisons: methods × images per class × networks in one call."""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from potstill import bounds, files
from potstill.bounds import Count, Positive
from potstill.data.dataset import Dataset
from potstill.process import own_state
from potstill.report import comparison_page
from potstill.runs import given
from potstill.runs.api import folder_of, run_to_completion
from potstill.runs.progress import Watcher, shown
from potstill.studies import execute
from potstill.studies.compare import Asked, with_controls
from potstill.studies.compare import compare as steps_of


@own_state()
def compare(
    data: Any = None, methods: Sequence[str] = ("herding", "dm", "datm"), ipcs: Sequence[int] = (1, 10), *,
    test: Any = None, out: str | Path | None = None, networks: Sequence[str] = (), set_seeds: int = 3,
    minutes: float | None = None, published: bool = False, published_as: str | None = None,
    store: str | Path | None = None, workers: int = 1, ray: str | None = None, progress: bool | Watcher = True,
    **changes: Any,
) -> dict[str, Any]:  # fmt: skip
    """Compare methods on one dataset, as ``potstill compare`` does; called again with the same ``out`` it continues.

    Args:
        data: as in :func:`potstill.distill`; data in memory are written to ``out``, where every process can read them.
        methods: as "dm", "datm+rat-bptt" or "dm:iterations=500"; random images with hard and soft labels always stand
            beside them.
        ipcs: images per class.
        test: the test part of data in memory; by default a fifth of each class is kept aside.
        out: folder of the comparison and its page; by default a temporary one.
        networks: names of the networks that are trained on the sets, changes after a colon ("convnet:norm=batch"); by
            default the one that distils.
        set_seeds: sets of each method, over which the intervals are.
        minutes: of distilling, the same for every method; by default each method's own iterations.
        published: take each method's published settings where there are any.
        published_as: the dataset's name in published tables.
        store: folder of experts, sets and figures that comparisons share; by default in ``out``.
        workers: processes on this machine.
        ray: "local", "auto" or the address of a Ray cluster that sees the same folders.
        progress: as in :func:`potstill.distill`.
        changes: settings of all rows, as in :func:`potstill.distill`.

    Returns:
        The record, as compare.json holds it: "rows", each with "name", "ipc", "accuracy" (by network, over sets),
        "gain" over random images with its kind of labels, "best", "seconds"; and "full", by network.

    Raises:
        PotstillError: with the value, the reason and the remedy.

    Example:
        >>> record = potstill.compare((images, labels), ["dm:iterations=2"], [1], set_seeds=2, network={"width": 8},
        ...     expert={"count": 1, "epochs": 2}, evaluation={"seeds": 2, "epochs": 3, "full_epochs": 1}, evaluations=1)
        >>> [(row["name"], row["ipc"]) for row in record["rows"]]
        [('random', 1), ('random:labels=soft', 1), ('dm:iterations=2', 1)]
    """
    with folder_of(out) as folder, shown(progress) as begin:
        settings, held = given.asked(
            data, test, None, None, changes.pop("network", None), {**changes, "method": "random"}
        )
        if held is not None:
            settings = replace(settings, dataset=str(_written(held, folder)))
        asked = Asked(
            settings, with_controls(bounds.fit(methods, tuple[str, ...], "methods")),
            bounds.fit(ipcs, tuple[Count, ...], "ipcs"), bounds.fit(networks, tuple[str, ...], "networks"),
            bounds.fit(set_seeds, Count, "set_seeds"), bounds.fit(minutes, Positive | None, "minutes"), published,
            published_as,
        )  # fmt: skip
        where = bounds.fit(store, Path | None, "store")
        executor = execute.executor_for(bounds.fit(workers, Count, "workers"), ray, settings.device)
        record = run_to_completion(steps_of(asked, folder, where, executor), begin())
        comparison_page.write(record, folder, where)
        return record


def _written(data: Dataset, folder: Path) -> Path:
    """Data in memory as a file that names each part, called by its contents; written once."""
    path = folder / f"data-{data.fingerprint}.npz"
    if not path.exists():
        parts = {"train": data.train, "val": data.val, "test": data.test}
        arrays: dict[str, Any] = {f"{name}_images": s.images.movedim(1, -1).numpy() for name, s in parts.items()}
        arrays |= {f"{name}_labels": split.labels.numpy() for name, split in parts.items()}
        packed = io.BytesIO()
        np.savez(packed, **arrays, classes=np.array(data.classes))
        files.write_bytes(path, packed.getvalue())
    return path
