"""What can be asked on the command line: each command a dataclass, its fields the flags, its words the help.

A command that distils holds whole ``settings``; their flags, and those of each stage, are made in ``arguments.py``.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args

import tyro

from potstill.bounds import Count, Fraction, Positive, Rate, Whole
from potstill.data.augment import DSA, Operation
from potstill.data.export import Format
from potstill.data.foreign import Space
from potstill.evaluation.protocol import EvaluationConfig
from potstill.networks.architectures import Architecture, NetworkConfig, Norm
from potstill.runs.settings import Settings
from potstill.studies.ablations import Part

Preset = Annotated[
    str | None,
    tyro.conf.arg(
        help="Settings of a published cell, e.g. cifar10-ipc10 (`potstill methods datm` lists them), which other flags "
        "change; none: measure what can be measured, also where the data have tuned settings."
    ),
]


@dataclass(frozen=True)
class Run:
    """The main job: data → experts → distil → evaluate → report.

    Interrupted or killed, the same command continues where it stopped. Only the settings of the methods that --method
    names are shown; `potstill methods` lists all methods. Without --preset the settings follow from the dataset and
    --ipc; a preset fills them as published. Try it as it is: it distils the embedded digits.
    """

    settings: Settings = field(default_factory=Settings)
    preset: Preset = None
    out: Path | None = None
    """Folder of the run; None: runs/DATASET-ipcN."""
    experts: Path | None = None
    """Folder of experts shared between runs; None: inside the run's folder."""
    recipe: str | None = None
    """A recipe to run, by its name or its file: the settings of a cell as it was run here, which other flags change."""
    record: Path | None = None
    """Write the results, with the recipe and the commit, to this file as well; a small set lies beside it."""
    minutes: Rate | None = None
    """Stop after so many minutes; the same command continues."""
    tiny: bool = False
    """The same job in a few seconds, to see that it runs; what it gives means nothing."""
    tensorboard: bool = False
    """Write event files as well, where the package tensorboard is installed."""


@dataclass(frozen=True)
class Experts:
    """Train the experts that the methods need on the real data. Resumable."""

    settings: Settings = field(default_factory=Settings)
    preset: Preset = None
    out: Path | None = None
    """Folder of the experts; None: experts/DATASET."""


@dataclass(frozen=True)
class Distill:
    """Distil by the experts of a folder, and keep the set that is best on validation images. Resumable."""

    experts: Path
    """Folder of experts, made by `potstill experts`."""
    settings: Settings = field(default_factory=Settings)
    preset: Preset = None
    out: Path | None = None
    """Folder of the run; None: runs/DATASET-ipcN."""
    tensorboard: bool = False
    """Write event files as well, where the package tensorboard is installed."""


@dataclass(frozen=True)
class Evaluate:
    """Train fresh networks on a distilled set, and test them beside three controls.

    A set whose step size was chosen on validation images keeps it.
    """

    path: tyro.conf.Positional[Path]
    """A distilled.safetensors, or the folder of a run."""
    dataset: str | None = None
    """The data it was distilled from, if it lies elsewhere now; None: where it lay then."""
    experts: Path | None = None
    """Folder of the experts, for the control with soft labels; None: beside the set, if they are there."""
    network: Architecture | None = None
    """Network to train; None: the one the set was made with."""
    width: Count | None = None
    """Its width, where it has one."""
    depth: Count | None = None
    """Its depth, where it has one."""
    norm: Norm | None = None
    """Its normalisation."""
    evaluation: Annotated[EvaluationConfig, tyro.conf.arg(name="")] = field(default_factory=EvaluationConfig)
    device: str = "auto"
    """Where to train."""
    record: Path | None = None
    """Write the figures, with the commit, to this file as well."""


@dataclass(frozen=True)
class Train:
    """Train one network on a distilled set and save it, for PyTorch, as safetensors, or as ONNX for other tools.

    The step size and the recipe are those of `potstill evaluate`, which says how good such networks are.
    """

    path: tyro.conf.Positional[Path]
    """A distilled.safetensors, the folder of a run, or hf://user/name."""
    out: Path
    """net.safetensors or net.pt: weights, transform, classes; net.onnx: pixels from 0 to 1 in, a number a class out
    (needs the packages onnx and onnxscript)."""
    network: Architecture | None = None
    """Network to train; None: the one the set was made with."""
    width: Count | None = None
    """Its width, where it has one."""
    depth: Count | None = None
    """Its depth, where it has one."""
    norm: Norm | None = None
    """Its normalisation."""
    epochs: Count | None = None
    """Epochs over the set; None: 1001, as published."""
    step_size: Positive | None = None
    """Step size of SGD; None: the set's own for the network it was made with, else 0.01."""
    seed: int = 0
    """Seed of its initialisation and of the draws in training."""
    device: str = "auto"
    """Where to train."""
    dataset: str | None = None
    """The data it was distilled from; only a compact file needs it."""


@dataclass(frozen=True)
class Report:
    """Write report.html of a run anew: one page with figures, tables and pictures, to open in any browser."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""


@dataclass(frozen=True)
class Show:
    """Say what a distilled set holds, and draw its images in true colours."""

    path: tyro.conf.Positional[Path]
    """A distilled.safetensors, or the folder of a run."""
    out: Path = Path("images.png")
    """The picture to write."""
    most: Count = 10
    """Images of each class to draw."""
    dataset: str | None = None
    """The data it was distilled from; only a compact file needs it."""


@dataclass(frozen=True)
class Export:
    """Write a distilled set for other tools; the ending of --out decides the format."""

    path: tyro.conf.Positional[Path]
    """A distilled.safetensors, or the folder of a run."""
    out: Path
    """x.npz (exact: whitened images, soft labels, transform), x.parquet, x.tar (WebDataset) or x.png (true colours,
    clipped to 8 bits), or a new folder of class folders (the same)."""
    to: Format | None = None
    """The format; None: what the ending of --out says. pt: a folder of images.pt, labels.pt (logits, or classes of hard
    labels) and lr.pt, which DATM's evaluation and DD-Ranking read."""
    rescale: bool = False
    """Pictures hold the whole range of values, in other colours, instead of being clipped; the scale stands beside
    them: a value of 0 is the first, 255 the second number."""
    dataset: str | None = None
    """The data it was distilled from; only a compact file needs it."""


@dataclass(frozen=True)
class Push:
    """Put a distilled set on the Hugging Face Hub, with a card made from its record.

    The repository holds the set, its pictures with soft labels for `datasets.load_dataset`, and the card: picture,
    accuracies beside their controls, recipe, how to train. Read it by potstill.load("hf://user/name"), or by any
    command that takes a set. Log in by `hf auth login` first.
    """

    path: tyro.conf.Positional[Path]
    """A distilled.safetensors, or the folder of a run, whose record the card is made from."""
    name: tyro.conf.Positional[str]
    """The dataset repository, user/name; made if it is missing."""
    licence: str | None = None
    """Licence of the source, as the hub names it (cc-by-4.0, mit, other, unknown): the images derive from it."""
    private: bool = False
    """Make the repository private."""
    dry: Path | None = None
    """Write what would be pushed into this folder instead, to look at it first."""
    dataset: str | None = None
    """The data it was distilled from; only a compact file needs it."""


@dataclass(frozen=True)
class Import:
    """Read sets and experts that other code published: .pt of MTT, TESLA and DATM, .npz of FRePo and RCIG.

    Images and labels (and a step size) become a distilled.safetensors, which every command takes; replay buffers become
    a folder of experts, for `potstill distill --experts`. No pickle is executed: only tensors are read.
    """

    files: tyro.conf.Positional[tuple[Path, ...]]
    """The files of one set, e.g. images_best.pt labels_best.pt lr_best.pt, or replay_buffer_0.pt and more."""
    dataset: str
    """The data it was distilled from, or the experts were trained on: as --dataset of `potstill run`."""
    out: Path
    """Folder of the set or of the experts."""
    space: Space | None = None
    """What the images were brought to. zca: whitened as MTT and DATM do with --zca; standardise: by each channel's mean
    and deviation; frepo: as FRePo does; pixels: 0 to 1. None: zca of .pt, frepo of .npz."""
    mean: tuple[float, ...] = ()
    """Mean of each channel, where the authors standardised by other numbers than the training images'."""
    std: tuple[Positive, ...] = ()
    """Deviation of each channel, likewise."""
    method: str | None = None
    """The method that made the set, by which records name it; None: mtt of hard labels, frepo of .npz, else datm."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    augment: tuple[Operation, ...] = DSA
    """Operations of differentiable siamese augmentation that networks are trained with."""
    expert_step_size: Positive = 0.01
    """Step size that imported experts were trained with, which a search for start epochs begins at."""
    resize: Count | None = None
    """Resize the data's shorter side to this many pixels and crop the centre."""
    label_column: str | None = None
    """Label column of a table with several."""
    image_column: str | None = None
    """Image column of a table with several."""


@dataclass(frozen=True)
class Methods:
    """List the methods: family, what they need, and the published cells of one of them."""

    name: tyro.conf.Positional[str | None] = None
    """A method, to see its settings' cells and its paper; None: all methods."""


@dataclass(frozen=True)
class Stages:
    """Match early, middle and late parts of the trajectories at several sizes: what networks gain over random images.

    Leaves a page with the figure, the table and the images side by side. Resumable.
    """

    settings: Settings = field(default_factory=Settings)
    ipcs: tuple[Count, ...] = (1, 10, 30)
    """Images per class to try."""
    starts: tuple[Whole, ...] | None = None
    """First start epoch of each range; None: an early, a middle and the last one."""
    width: Count = 3
    """Start epochs in a range."""
    out: Path | None = None
    """Folder of the exploration; None: runs/DATASET-stages."""


@dataclass(frozen=True)
class Ablations:
    """Leave out or change one part of the method at a time: what each is worth, in one table with intervals.

    Labels fixed or learned, growing window, start, number of experts, exact or frozen gradients. Resumable.
    """

    settings: Settings = field(default_factory=Settings)
    preset: Preset = None
    parts: tuple[Part, ...] = get_args(Part)
    """What to change, one at a time."""
    out: Path | None = None
    """Folder of the exploration; None: runs/DATASET-ipcN-ablations."""


@dataclass(frozen=True)
class Windows:
    """Compare the start epochs that measuring finds with some chosen by hand, evenly from early to late. Resumable."""

    settings: Settings = field(default_factory=Settings)
    preset: Preset = None
    count: Count = 5
    """Ranges of start epochs chosen by hand."""
    out: Path | None = None
    """Folder of the exploration; None: runs/DATASET-ipcN-windows."""


@dataclass(frozen=True)
class Lossless:
    """Find the smallest set that trains as well as the full data: doubling, then bisection, over resumable runs."""

    settings: Settings = field(default_factory=Settings)
    most: Count | None = None
    """Images per class at which to give up; None: half of the smallest class."""
    margin: Fraction = 0.01
    """How much accuracy may be lost, as a fraction of 1: the 95 % interval of the loss must end below it."""
    out: Path | None = None
    """Folder of the search; None: runs/DATASET-lossless."""


@dataclass(frozen=True)
class Compare:
    """Methods × images per class × networks on one dataset: one honest table, and the page with its figures.

    Every expert, set and network is a task with a record of its own, so whatever is done is never done again:
    interrupted or killed, the same command continues, and a longer list adds rows. Networks are trained afresh for
    every set, and the intervals are over sets. Random images with hard and with soft labels always stand beside them.
    What fails stops nothing else; if a row failed, the exit code is 1 after all others are done and the page written.
    """

    methods: tuple[str, ...] = ("herding", "dm", "datm")
    """What to compare: names of `potstill methods`, stages joined by +, changes after a colon: datm+rat-bptt,
    dm:iterations=500, herding:labels=soft."""
    ipcs: tuple[Count, ...] = (1, 10)
    """Images per class."""
    networks: tuple[str, ...] = ()
    """Networks that are trained on the sets, changes after a colon: convnet resnet18 convnet:norm=batch; none: the one
    that distils."""
    set_seeds: Count = 3
    """Sets of each method, each from a seed of its own; the experts are shared."""
    minutes: Positive | None = None
    """Give every method the same minutes of distilling: its iterations follow from a few that are timed first, by as
    many workers at once; None: as many iterations as its settings say."""
    published: bool = False
    """Take each method's settings as published for this cell, its network and whitening too, where there are any."""
    published_as: str | None = None
    """The dataset's name in published tables, e.g. cifar10; None: what the path suggests."""
    out: Path | None = None
    """Folder of the comparison; None: runs/DATASET-compare."""
    store: Path | None = None
    """Folder of experts, sets and figures, which comparisons can share; None: in --out."""
    show: bool = False
    """Only draw what is there, while others work; the exit code is 0 though rows failed."""
    workers: Count = 1
    """Processes on this machine, which share its threads and GPUs."""
    ray: str | None = None
    """Carry the tasks out on Ray: local, auto, or the address of a cluster that sees the same folders."""
    settings: Settings = field(default_factory=Settings)


@dataclass(frozen=True)
class Forecast:
    """Time, memory and disk of a run before it starts, from a few timed steps."""

    settings: Settings = field(default_factory=Settings)
    preset: Preset = None


@dataclass(frozen=True)
class Cache:
    """Say what is kept from earlier work (decoded images, whitening, accuracies of networks), or delete it."""

    clear: bool = False
    """Delete it; whatever is asked for next is made again."""


@dataclass(frozen=True)
class Doctor:
    """Say what is fast on this machine, and what is missing: GPU, compiler, memory, disk, hub, optional packages."""


COMMANDS: dict[str, type[Any]] = {
    "run": Run, "methods": Methods, "experts": Experts, "distill": Distill, "evaluate": Evaluate, "train": Train,
    "report": Report, "show": Show, "export": Export, "import": Import, "push": Push, "forecast": Forecast,
    "explore stages": Stages, "explore ablations": Ablations, "explore windows": Windows, "lossless": Lossless,
    "compare": Compare, "cache": Cache, "doctor": Doctor,
}  # fmt: skip
