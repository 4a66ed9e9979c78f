"""Recipes: small data files that say how a published cell was, or is to be, run here.

    about = "what it is, and what it gave"      preset = "cifar10-ipc10"      dataset = "data/cifar10"
    method = ["datm"]                           [expert] [datm] [evaluation]: changes, by the names of the settings

TOML has no word for nothing: "none" stands for it.
"""

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from potstill import files
from potstill.bounds import changed
from potstill.data.distilled import Distilled
from potstill.errors import PotstillError
from potstill.evaluation.protocol import EvaluationConfig
from potstill.runs.settings import Settings, configure

FOLDERS = (
    Path("recipes"),  # here
    Path(__file__).parents[1] / "recipes",  # in the installed package
    Path(__file__).parents[2] / "recipes",  # beside the package, in a checkout
)
SMALL = 10  # images per class up to which the set is kept with the record
TINY = {
    "iterations": 2, "inner_steps": 2, "expert_epochs": 1, "start_epochs": (0, 2), "opening": (1, 2), "unroll": 4,
    "window": 2, "radius": 1, "pool": 2, "real_batch": 20, "student_epochs": 1,
}  # fmt: skip
"""Fields of methods at next to no expense."""


@dataclass(frozen=True)
class Recipe:
    """A recipe as its file tells it."""

    name: str
    about: str
    preset: str | None
    dataset: str | None
    method: tuple[str, ...]
    changes: Mapping[str, Any]

    def settings(
        self, dataset: str | None = None, ipc: int | None = None, method: tuple[str, ...] | None = None,
        start: str | None = None,
    ) -> Settings:  # fmt: skip
        """The settings of a run by this recipe, on other data, at another size, by other methods or from a set.

        Raises:
            PotstillError: the recipe holds a setting that there is not, or its data are not where it says.
        """
        data = dataset or self.dataset
        if dataset is None and data is not None and data.startswith("data/") and not Path(data).exists():
            raise PotstillError(  # rather than asking Hugging Face for an owner called data
                f"{data}: no such folder; name by --dataset a folder with train.npz and test.npz or Parquet files, or "
                "a Hugging Face dataset such as uoft-cs/cifar10."
            )
        stages = method or self.method
        own = {name: value for name, value in self.changes.items() if name not in set(self.method) - set(stages)}
        begin = {} if start is None else {"start": start}
        return configure(data, ipc, self.preset, {**own, "method": stages, **begin})


def load_recipe(name: str) -> Recipe:
    """A recipe by its name, or by the path of its file.

    Raises:
        PotstillError: there is none (the nearest names are suggested), or it is damaged.
    """
    found = [Path(name)] if name.endswith(".toml") else [folder / f"{name}.toml" for folder in FOLDERS]
    path = next((path for path in found if path.is_file()), None)
    if path is None:
        known = names()
        near = difflib.get_close_matches(name, known, 3)
        hint = f"; did you mean {' or '.join(near)}?" if near else "."
        raise PotstillError(f"recipe {name!r}: there is none{hint} Choose among {', '.join(known) or 'files.toml'}.")
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PotstillError(f"{path}: not valid TOML ({error}); correct it.") from error
    own = {key: told.pop(key, None) for key in ("about", "preset", "dataset")}
    return Recipe(
        path.stem, (own["about"] or "").strip(), own["preset"], own["dataset"], tuple(told.pop("method", ["datm"])),
        _without_none(told),
    )  # fmt: skip


def names() -> list[str]:
    """The recipes that are here, in the package or beside it."""
    return sorted({path.stem for folder in FOLDERS for path in folder.glob("*.toml")})


def _without_none(told: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _without_none(value) if isinstance(value, Mapping) else None if value == "none" else value
        for name, value in told.items()
    }


def tiny(settings: Settings) -> Settings:
    """The same job in a few seconds, to see that it runs; what it gives means nothing."""
    small = changed(settings, {
        "ipc": min(settings.ipc, 2), "transform": "standardise",  # ZCA's eigenvectors alone take a minute on one core
        "network": {"width": 8}, "expert": {"count": 2, "epochs": 3}, "evaluations": 1, "snapshots": 1,
    })  # fmt: skip
    stages = tuple(
        changed(stage, {name: value for name, value in TINY.items() if _is_cut(stage, name)})
        for stage in settings.stages
    )
    evaluation = EvaluationConfig(protocol="paper", epochs=1, full_epochs=1)  # whose choosing is as short
    return replace(small, stages=stages, evaluation=evaluation)


def _is_cut(stage: Any, name: str) -> bool:
    """Whether a stage has a field of :data:`TINY` that asks for anything: 0 and, for student epochs, None do not."""
    value = vars(stage).get(name, 0)
    return value != 0 and (value is not None or name != "student_epochs")


def write_record(
    path: Path, recipe: str, commit: str | None, results: dict[str, Any], distilled: Distilled | None = None
) -> None:  # fmt: skip
    """Write results with the recipe and the commit they came from; a small set, if given, lies beside them, compact."""
    files.write_json(path, {"recipe": recipe, "commit": commit, **results})
    if distilled is not None and results["ipc"] <= SMALL:
        distilled.save(path.with_suffix(".safetensors"), compact=True)
