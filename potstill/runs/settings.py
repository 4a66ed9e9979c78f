"""What a run does, as frozen values: what all methods share, and the settings of each stage.

Defaults come from the cell that was asked for: a published one by its name ("cifar10-ipc10"), the one tuned for data
that come with us, or none.  A field of a stage that is then still None is found by measuring, once, before its first
iteration.
"""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from potstill import bounds, files
from potstill.bounds import APART, Count, Part, Rate, Whole, changed, changes_between, nested
from potstill.data.augment import DSA, Named
from potstill.data.transform import Choice
from potstill.errors import PotstillError
from potstill.evaluation.protocol import EvaluationConfig
from potstill.methods import METHODS
from potstill.methods.method import Method
from potstill.networks import architectures
from potstill.networks.architectures import NetworkConfig, is_own
from potstill.training.experts import ExpertConfig

MUTABLE_FIELDS = (
    "device", "compile", "evaluation", "checkpoint_seconds", "expert.keep_all",
)  # fmt: skip
"""What may change between two sessions of one run: it bears on how the set is computed and evaluated, not on what it
is."""
NO_PRESET = "none"


@dataclass(frozen=True)
class Shared:
    """What all methods share, from data to report."""

    dataset: str = "digits"
    """"digits" (embedded), a folder (of class folders, of images with a table of labels, of Parquet, .npz, IDX, CIFAR
    or .tar files), an .npz or .csv file, or the name of a Hugging Face dataset."""
    ipc: Count = 1
    """Synthetic images per class."""
    method: tuple[str, ...] = ("datm",)
    """How to distil; `potstill methods` lists all. Several are stages: each begins at the set of the one before."""
    start: str | None = None
    """A distilled set to begin with (its file, or the folder of its run), which the first method then refines. None:
    the method's own beginning."""
    seed: int = 0
    """Seed of every draw in the run."""
    device: str = "auto"
    """"cpu", "cuda", "cuda:1", "mps", or "auto" for the fastest one present."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of convolutions and activations (weights and sums stay float32); auto: bfloat16 where the device has
    units for it and the network is large enough to gain, else float32."""
    compile: Literal["auto", "yes", "no"] = "auto"
    """Compile the inner step; auto: where the job is long enough to repay the minute it takes."""
    micro_batch: Count | None = None
    """Images differentiated at once; None: chosen for the device.  Changes memory and speed, not the result."""
    transform: Choice = "auto"
    """Whitening of the pixels, fitted on the training images and stored with the set; zca: as MTT and DATM; zca-image:
    the per-image form of KIP, RaT-BPTT and AT-BPTT, each image brought to mean 0 and norm 1 before; standardise: each
    channel to mean 0 and deviation 1; auto: zca up to 4096 values an image, standardise beyond."""
    augment: tuple[Named, ...] = DSA
    """Operations of differentiable siamese augmentation; one of them is drawn for each batch."""
    resize: Count | None = None
    """Resize the shorter side to this many pixels and crop the centre, for images of mixed sizes."""
    label_column: str | None = None
    """Label column of a table with several; None: the one class-label column, or "label"."""
    image_column: str | None = None
    """Image column of a table with several; None: the only one."""
    classes: tuple[str, ...] = ()
    """Names of the classes to read; by default all."""
    skip_unreadable: bool = False
    """Leave images out that cannot be decoded, and say which; by default the first one stops the run."""
    validation: Part = 0.1
    """Fraction of the training images kept aside to choose checkpoints."""
    evaluations: Whole = 5
    """How often, evenly spaced, the set is evaluated on validation images; the best one is kept. 0: never, and the
    last one is kept; for sets of many images this saves more time than distilling takes."""
    keep: Literal["best", "last"] = "best"
    """The set that becomes the result: the best one on validation images, the initial one included, or the last one."""
    snapshots: Whole = 10
    """How often, evenly spaced, some images are kept to show how they change; 0 keeps none."""
    checkpoint_seconds: Rate = 60.0
    """Seconds between checkpoints."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    expert: ExpertConfig = field(default_factory=ExpertConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


@dataclass(frozen=True)
class Settings(Shared):
    """A whole run: what all methods share, and the settings of each stage, in the order of ``method``.

    Example:
        >>> settings = potstill.configure("digits", ipc=10)
        >>> settings.ipc, settings.network.width, settings.method
        (10, 32, ('datm',))
    """

    stages: tuple[Any, ...] = field(default=(), metadata=APART)

    @property
    def methods(self) -> list[Method]:
        """The method of each stage."""
        return [METHODS[name] for name in self.method]

    @property
    def iterations(self) -> int:
        """Outer iterations of all stages."""
        return sum(method.iterations(stage) for method, stage in zip(self.methods, self.stages, strict=True))


DATA: dict[str, Mapping[str, Any]] = {
    "digits": {  # on a laptop: a small ConvNet on 8×8 grey pixels
        "transform": "standardise",
        "augment": ("crop", "scale", "rotate"),  # a mirrored digit is another sign, and grey has no colour
        "validation": 0.2,
        "network": {"width": 32, "depth": 2},
        "expert": {"count": 10, "epochs": 30, "batch_size": 64, "step_size": 0.02},
    },
}
"""What suits data that come with us, whatever the method."""
ELSEWHERE: Mapping[str, Any] = {"expert": {"count": 10, "epochs": 20}}
"""A budget for one machine, on any other data."""


# --- defaults ------------------------------------------------------------------------------------------------------


def defaults(
    dataset: str | None = None, ipc: int | None = None, method: tuple[str, ...] = ("datm",),
    preset: str | None = None, start: str | None = None,
) -> Settings:  # fmt: skip
    """The settings of a run for which nothing else was given.

    Args:
        dataset: as the flag; None: the digits, or what the preset says.
        ipc: images per class; None: 1, or what the preset says.
        method: the stages.
        preset: a published or tuned cell, e.g. "cifar10-ipc10"; "none" takes no cell at all, so that what can be
            measured is; None: the nearest tuned cell of the dataset, if it has any.
        start: a set to begin with, which the first stage refines like a later one.

    Raises:
        PotstillError: an unknown method or preset, or a preset that needs a dataset.
    """
    check_methods(method)
    cells = _cells(method, dataset, ipc, preset)
    named = preset not in (None, NO_PRESET)
    data = _dataset_of(preset) if named and dataset is None else dataset or "digits"
    if named and data not in DATA and dataset is None:
        raise PotstillError(f"preset {preset!r}: holds settings, not images; say where they are by --dataset.")
    size = ipc if ipc is not None else _ipc_of(preset) if named else 1
    settings = Settings(dataset=data, ipc=size, method=method, start=start)
    shared = dict(DATA.get(_dataset_of(preset) if named else data, {} if named else ELSEWHERE))
    stages = []
    for number, (name, cell) in enumerate(zip(method, cells, strict=True)):
        own = {f.name for f in dataclasses.fields(METHODS[name].settings)}
        refining = METHODS[name].refining if number or start else {}
        values = {**refining, **{key: value for key, value in cell.items() if key in own}}
        stages.append(METHODS[name].settings(**values))
        shared |= {key: value for key, value in cell.items() if key not in own}
    return replace(changed(settings, shared), stages=tuple(stages))


def check_methods(method: tuple[str, ...]) -> None:
    """Refuse stages that are unknown, or twice the same.

    Raises:
        PotstillError: the nearest names are suggested.
    """
    for name in method:
        if name not in METHODS:
            near = difflib.get_close_matches(name, METHODS, 2)
            hint = f"did you mean {' or '.join(near)}? All: " if near else "choose among "
            raise PotstillError(f"method {name!r}: unknown; {hint}{', '.join(METHODS)}.")
    if len(set(method)) < len(method) or not method:
        raise PotstillError(f"method {' '.join(method)!r}: name one method or several different ones.")


def _cells(
    method: tuple[str, ...], dataset: str | None, ipc: int | None, preset: str | None
) -> list[Mapping[str, Any]]:  # fmt: skip
    """The values of each stage's cell; empty where there is none."""
    if preset == NO_PRESET:
        return [{} for _ in method]
    if preset is None:
        first, *later = method
        return [_nearest(METHODS[first], dataset or "digits", ipc or 1), *({} for _ in later)]
    known = {name_of(cell): cell for name in method for cell in _all_cells(METHODS[name])}
    if preset not in known:
        near = difflib.get_close_matches(preset, known, 3)
        hint = f" did you mean {' or '.join(near)}?" if near else ""
        told = f"choose among {', '.join(known)}" if known else "it has none; leave --preset out"
        raise PotstillError(f"preset {preset!r}: no cell of {' '.join(method)};{hint} {told}.")
    return [_all_cells(METHODS[name]).get(known[preset], {}) for name in method]


def _all_cells(method: Method) -> dict[tuple[str, int], Mapping[str, Any]]:
    return {**method.tuned, **method.published}


def _nearest(method: Method, dataset: str, ipc: int) -> Mapping[str, Any]:
    """The tuned cell of a dataset whose images per class is nearest in ratio; empty where there is none."""
    sizes = [size for name, size in method.tuned if name == dataset]
    ipc = max(ipc, 1)
    return method.tuned[dataset, min(sizes, key=lambda size: max(ipc / size, size / ipc))] if sizes else {}


def name_of(cell: tuple[str, int]) -> str:
    """A cell as a preset's name."""
    return f"{cell[0]}-ipc{cell[1]}"


def _dataset_of(preset: str | None) -> str:
    return (preset or "").rpartition("-ipc")[0]


def _ipc_of(preset: str | None) -> int:
    return int((preset or "").rpartition("-ipc")[2])


def configure(
    dataset: str | Path | None = None, ipc: int | None = None, preset: str | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Settings:  # fmt: skip
    """The defaults, with changes: fields of :class:`Shared`, and of each stage under its name, nested ones as mappings.

    Example:
        >>> settings = potstill.configure("digits", 1, changes={"datm": {"iterations": 50}, "seed": 3})
        >>> settings.stages[0].iterations
        50
    """
    changes, told = dict(changes or {}), bounds.hints_of(Shared)
    method = changes.pop("method", ("datm",))
    method = bounds.fit((method,) if isinstance(method, str) else method, told["method"], "method")
    source = bounds.fit(dataset, str | None, "dataset")
    ipc = bounds.fit(ipc, told["ipc"] | None, "ipc")
    preset = bounds.fit(preset, str | None, "preset")
    settings = defaults(source, ipc, method, preset, bounds.fit(changes.get("start"), told["start"], "start"))
    own = {name.replace("-", "_"): number for number, name in enumerate(method)}
    stages = list(settings.stages)
    for name in [name for name in changes if name.replace("-", "_") in own]:
        number = own[name.replace("-", "_")]
        stages[number] = nested(stages[number], changes.pop(name), name)
    for name in changes:
        if name.replace("_", "-") in METHODS:
            raise PotstillError(f"{name}: is not among the stages {' '.join(method)}; add it to method.")
    return replace(changed(settings, changes), stages=tuple(stages))


def at_size(given: Settings, ipc: int, preset: str | None = None) -> Settings:
    """The same request at another size: the defaults there, with what was changed from the defaults here.

    Raises:
        PotstillError: it begins at a set on disk, which has the size of this one.
    """
    if given.start is not None and ipc != given.ipc:
        raise PotstillError(
            f"--start {given.start}: begins sets of its own size alone, not of {given.ipc} and of {ipc} images per "
            "class; give its size by --ipc and no other, or leave it out."
        )
    here = defaults(given.dataset, given.ipc, given.method, preset, given.start)
    there = defaults(given.dataset, ipc, given.method, preset, given.start)
    stages = [
        changed(new, changes_between(mine, was))
        for mine, was, new in zip(given.stages, here.stages, there.stages, strict=True)
    ]
    shared = {name: value for name, value in changes_between(given, here).items() if name != "ipc"}
    return replace(changed(there, shared), stages=tuple(stages), ipc=ipc)


# --- as plain values -----------------------------------------------------------------------------------------------


def as_dict(settings: Settings) -> dict[str, Any]:
    """Settings as plain values for JSON; the stages under their methods' names."""
    plain = files.plain(dataclasses.asdict(settings))
    return {**plain, "stages": dict(zip(settings.method, plain["stages"], strict=True))}


def from_dict(plain: Mapping[str, Any]) -> Settings:
    """Settings from what :func:`as_dict` gave, of this version or an older one.

    Raises:
        PotstillError: they are damaged.
    """
    if not isinstance(plain.get("stages", plain.get("distil")), Mapping):
        raise PotstillError("stages: these settings do not say how to distil; restore their file from a copy.")
    plain = dict(upgrade(plain))
    check_methods(tuple(plain["stages"]))
    stages = {name: _without_infinity(values) for name, values in plain.pop("stages").items()}
    method = tuple(stages)
    settings = changed(Settings(method=method), {**plain, "method": method})
    own = (nested(METHODS[name].settings(), values, name) for name, values in stages.items())
    return replace(settings, stages=tuple(own))


def upgrade(plain: Mapping[str, Any]) -> Mapping[str, Any]:
    """The plain settings of a run of 0.1.0, whose one method had the sections "window" and "distil", as of today."""
    if "stages" in plain:
        return plain
    old = {name: value for name, value in plain.items() if name not in ("window", "distil", "method")}
    distil, window = dict(plain["distil"]), plain["window"]
    shared = {name: distil.pop(name) for name in _SHARED_BEFORE if name in distil}
    polish = {name: distil.pop(name, None) for name in ("polish", "polish_rates", "horizon")}
    for name in ("rates", "given"):
        distil.pop(name, None)
    distil["initial"], distil["flip"] = distil.pop("start", "correct"), distil.pop("mirror", False)
    if window.get("mode", "given") == "given":
        distil["start_epochs"] = [window["start"], window["stop"]]
        if window.get("initial") is not None:
            distil["opening"] = [window["initial"], window["expand"]]
    stages = {"datm": distil}
    if polish["polish"]:
        distil["iterations"] -= polish["polish"]
        rates = {f"lr_{name}": polish["polish_rates"] * distil[f"lr_{old}"] for name, old in _POLISHED.items()}
        stages["rat-bptt"] = {
            **METHODS["rat-bptt"].refining, **rates, "iterations": polish["polish"], "unroll": polish["horizon"],
            "window": distil["inner_steps"], "batch_size": distil["batch_size"], "cooldown": distil["cooldown"],
        }  # fmt: skip
    return {**old, **shared, "method": list(stages), "stages": stages}


def _without_infinity(values: Any) -> Any:
    """The settings of a stage stored when "no threshold" was an infinite one, which JSON has no word for."""
    if not isinstance(values, Mapping):
        return values
    return {name: None if value == math.inf else value for name, value in values.items()}


_SHARED_BEFORE = ("evaluations", "keep", "snapshots", "checkpoint_seconds", "micro_batch")
_POLISHED = {"images": "images", "labels": "logits", "step_size": "step_size"}


def settled(settings: Settings, measured: Mapping[str, Mapping[str, Any]]) -> Settings:
    """The settings with what the stages have measured, by method (see :class:`potstill.runs.state.Log`)."""
    found = (measured.get(name, {}).get("settings", {}) for name in settings.method)
    stages = (changed(stage, values) for stage, values in zip(settings.stages, found, strict=True))
    return replace(settings, stages=tuple(stages))


def conflicts(before: Settings, now: Settings) -> list[str]:
    """In what two settings differ that must not change between two sessions of one run; a line each."""
    then, today = fixed_fields(before), fixed_fields(now)
    return files.differences(then, today)


def fixed_fields(settings: Settings) -> dict[str, Any]:
    """What one run may not change, as plain values."""
    fixed = {**as_dict(settings), "network": architectures.identity(settings.network)}
    for name in MUTABLE_FIELDS:
        *parents, leaf = name.split(".")
        inside = fixed
        for parent in parents:
            inside = inside[parent]
        inside.pop(leaf, None)
    evaluation = settings.evaluation
    if evaluation.selection == "test":  # whose figure is made while distilling
        fixed["evaluation"] = {"epochs": evaluation.epochs, "seeds": evaluation.seeds}
    return {**fixed, "evaluation.selection": evaluation.selection}


# --- checks --------------------------------------------------------------------------------------------------------


def check(settings: Settings) -> None:
    """Refuse values that no stage could use, before any work is done.

    Raises:
        PotstillError: with the value, the reason and the remedy.
    """
    bounds.check(settings)
    if settings.evaluations == 0 and settings.evaluation.selection == "test":
        raise PotstillError(
            "evaluations 0: the protocol paper reports the best of periodic evaluations, and there would be none; give "
            "1 or more."
        )
    for name, stage in zip(settings.method, settings.stages, strict=True):
        bounds.check(stage, f"{name}.")
    check_methods(settings.method)
    for method, stage in zip(settings.methods, settings.stages, strict=True):
        method.check(stage, method.name, settings.augment)
    for method in settings.methods:
        if settings.network.norm == "batch" and not method.batch_norm:
            remedy = "give it another norm" if is_own(settings.network) else "take --network.norm instance"
            raise PotstillError(
                f"network.norm batch: {method.name} compares images class by class, whose statistics are not those of "
                f"a batch; {remedy}."
            )
    pictures = [m.pictures(stage) for m, stage in zip(settings.methods, settings.stages, strict=True)]
    for number, method in enumerate(settings.methods[1:], 1):
        check_pictures(method.name, pictures[number - 1], pictures[number], settings.method[number - 1])
    for stage_of, method in zip(settings.stages, settings.methods, strict=True):
        expert = getattr(stage_of, "expert", 0)
        if expert >= settings.expert.count:
            raise PotstillError(
                f"{method.name}.expert {expert}: there are {settings.expert.count}, counted from 0; lower it, or raise "
                "--expert.count."
            )
    for number, method in enumerate(settings.methods):
        if method.loss is None and (number or settings.start):
            raise PotstillError(
                f"method {method.name}: selects real images, so it can only be the first stage, without --start."
            )
    if settings.evaluation.selection == "test" and settings.evaluation.step_size == "chosen":
        raise PotstillError("evaluation.step_size chosen: the protocol paper trains with the learned one; choose one.")


def check_pictures(method: str, there: int, wanted: int, before: str) -> None:
    """Refuse a set whose slots hold other numbers of pictures than a method works on.

    Raises:
        PotstillError: with both numbers.
    """
    if there != wanted:
        raise PotstillError(
            f"{method}: works on slots of {wanted}×{wanted} pictures, and those of {before} hold {there}×{there}; set "
            f"--{method}.pictures {there}, where it has that setting, or choose another method."
        )
