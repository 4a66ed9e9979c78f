"""What a run does, as frozen values, and the published cells as presets.

Every flag of the command line is a field here; every number of the published recipe (``PRESETS``) is one too.
This module imports nothing of ours.
"""

import dataclasses
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

Architecture = Literal["convnet", "resnet18", "vgg11", "alexnet", "lenet", "mlp"]
Norm = Literal["instance", "batch", "none"]
Operation = Literal["colour", "crop", "cutout", "flip", "scale", "rotate"]
ProtocolName = Literal["quick", "standard", "paper"]
DSA: tuple[Operation, ...] = get_args(Operation)
Measured = Literal["inner_steps", "expert_epochs", "step_size", "lr_images", "lr_logits", "lr_step_size", "cooldown"]
"""Settings of distilling that can be found by measuring."""
MEASURED: tuple[Measured, ...] = get_args(Measured)


@dataclass(frozen=True)
class NetworkConfig:
    """The network that experts and students share."""

    name: Architecture = "convnet"
    """Architecture; the experts and the evaluation use it unless told otherwise."""
    width: int = 128
    """Channels of a ConvNet block, or hidden units of the MLP; the other networks have their published widths."""
    depth: int | None = None
    """Blocks of the ConvNet, each halving the image; omitted: 3 for 32 pixels, 4 for 64, 5 for 128, 2 for fewer."""
    norm: Norm = "instance"
    """Normalisation; "batch" keeps running statistics, which are stored with the trajectories."""
    pooling: Literal["avg", "max", "none"] = "avg"
    """Pooling after each ConvNet block."""


@dataclass(frozen=True)
class ExpertConfig:
    """Training on the real data: the trajectories to be matched."""

    count: int = 10
    """Number of experts."""
    epochs: int = 30
    """Epochs each expert trains; the last one labels the images that start the synthetic set."""
    batch_size: int = 256
    """Real images a step."""
    step_size: float = 0.01
    """Step size of the experts' SGD."""
    rho: float = 0.0
    """Radius of the flat recipe (FTD's adaptive GSAM; published: 0.01); 0 trains by plain SGD."""
    alpha: float = 0.3
    """Weight of GSAM's orthogonal part; unused when rho is 0."""
    storage: Literal["float32", "float16"] = "float32"
    """Precision of the snapshots on disk."""
    keep_all: bool = False
    """Store every snapshot instead of only those the window can use."""


@dataclass(frozen=True)
class WindowConfig:
    """The difficulty: which start epochs may be drawn, U{start, ..., upper(k) - 1} at iteration k."""

    start: int = 0
    """First start epoch (T minus)."""
    stop: int = 4
    """One past the last start epoch once the window is fully open (T plus)."""
    initial: int | None = None
    """One past the last start epoch at iteration 0 (T); omitted: fully open from the start."""
    expand: int = 1000
    """Iterations over which the window opens from initial to stop."""
    mode: Literal["given", "auto"] = "given"
    """given: the numbers above; auto (also written --window auto): found by measuring, before distilling, which part of
    the trajectories a set of this size can follow; finds the inner steps and rates that were left at their defaults
    as well."""


@dataclass(frozen=True)
class DistilConfig:
    """The outer loop: what is learned, how fast, for how long."""

    iterations: int = 1000
    """Outer iterations, each one segment of one expert."""
    inner_steps: int = 40
    """Steps the student takes (N)."""
    expert_epochs: int = 2
    """Epochs of the expert that those steps should cover (M)."""
    batch_size: int = 100
    """Synthetic images an inner step; all of them where the set is smaller."""
    step_size: float = 0.01
    """Initial value of the learned inner step size."""
    rates: Literal["given", "auto"] = "given"
    """given: the three rates below; auto: those left at their defaults are set before distilling so that a first step
    moves images, logits and step size by a small part of their size, whatever the data (so does --window auto)."""
    lr_images: float = 100.0
    """Outer learning rate of the images."""
    lr_logits: float = 5.0
    """Outer learning rate of the label logits."""
    lr_step_size: float = 1e-5
    """Outer learning rate of the inner step size; 0 keeps it fixed."""
    cooldown: float = 0.0
    """Last part of the iterations, a fraction, over which the outer rates fall to nothing; 0 keeps them, as published.
    Helps where iterations are few and rates high: at a constant rate the images end in its noise."""
    given: tuple[Measured, ...] = ()
    """Of the settings that are found by measuring where something is auto: those to keep although they equal their
    default. Flags that you give are entered here by themselves."""
    mirror: bool = False
    """Match each expert as often in the mirror, which makes two of one at no expense; where flip is an augmentation."""
    polish: int = 0
    """Of the iterations, the last so many that match no expert, but lower the loss of real images under students that
    train on the set (RaT-BPTT, Feng et al., ICLR 2024), with rates that begin and cool anew; 0: none, as published."""
    polish_rates: float = 0.25
    """Polishing: its outer rates, as a part of those before."""
    horizon: int = 400
    """Polishing: steps such a student takes at most before a fresh one begins; each iteration differentiates the next
    inner steps of one of them."""
    threshold: float = 1.0
    """Matching losses above this are not stepped on; polishing, losses above this part of what guessing gives."""
    start: Literal["correct", "random"] = "correct"
    """Begin from real images that the first expert classifies correctly, or from any."""
    labels: Literal["learned", "soft", "hard"] = "learned"
    """learned: soft labels of the experts, then learned; soft: the same, kept fixed; hard: one class each, fixed."""
    label_experts: int | None = None
    """Experts whose logits start the labels: the mean of those that are right; omitted: all experts."""
    adjoint: Literal["exact", "direct", "frozen"] = "exact"
    """Gradient of the unroll: exact in constant memory, the whole graph, or TESLA's approximation."""
    micro_batch: int | None = None
    """Images differentiated at once; omitted: chosen for the device.  Changes memory and speed, not the result."""
    evaluations: int = 5
    """How often, evenly spaced, the set is judged on validation data; the best one is kept."""
    keep: Literal["best", "last"] = "best"
    """The set that becomes the result: the best one on validation data, the start included, or the last one."""
    snapshots: int = 10
    """How often, evenly spaced, some images are kept to show how they change; 0 keeps none."""
    checkpoint_seconds: float = 60.0
    """Seconds between checkpoints."""


@dataclass(frozen=True)
class EvaluationConfig:
    """How the distilled set and its controls are judged."""

    protocol: ProtocolName = "standard"
    """quick: 300 epochs, 2 networks; standard: 1000 epochs, 5 networks, chosen on validation data;
    paper: best of periodic test evaluations of one network, only to compare with published tables."""
    seeds: int | None = None
    """Fresh networks per figure; omitted: the protocol's."""
    epochs: int | None = None
    """Epochs on a synthetic set; omitted: the protocol's."""
    step_size: Literal["learned", "chosen"] = "learned"
    """Step size of networks trained on the set. learned: the student's own, as published; chosen: on validation images,
    between that one and smaller ones, for a student walks a few epochs of plain SGD and a network a thousand with
    momentum. The set carries it."""
    full_epochs: int | None = None
    """Epochs of the full-set control; omitted: the protocol's."""
    full_seeds: int | None = None
    """Networks of the full-set control; omitted: as many as for the others; 0 leaves this control out."""


@dataclass(frozen=True)
class Config:
    """A whole run, from data to report."""

    dataset: str = "digits"
    """"digits" (embedded), a folder of class folders, a folder of Parquet or .npz files, an .npz file, or the name
    of a Hugging Face dataset."""
    ipc: int = 1
    """Synthetic images per class."""
    method: Literal["datm"] = "datm"
    """Distillation method: datm is difficulty-aligned trajectory matching (Guo et al., ICLR 2024)."""
    seed: int = 0
    """Seed of every draw in the run."""
    device: str = "auto"
    """"cpu", "cuda", "cuda:1", "mps", or "auto" for the fastest one present."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of convolutions and activations (weights and sums stay float32); auto: bfloat16 where the device has
    units for it and the network is large enough to gain, else float32."""
    compile: Literal["auto", "yes", "no"] = "auto"
    """Compile the inner step; auto: where the job is long enough to repay the minute it takes."""
    transform: Literal["auto", "zca", "standardise"] = "auto"
    """Whitening of the pixels, fitted on the training images and stored with the set; auto: ZCA up to 4096 values an
    image, per-channel standardising beyond."""
    augment: tuple[Operation, ...] = DSA
    """Operations of differentiable siamese augmentation; one of them is drawn for each batch."""
    resize: int | None = None
    """Resize the shorter side to this many pixels and crop the centre, for images of mixed sizes."""
    label_column: str | None = None
    """Label column of a Parquet or Hugging Face dataset; omitted: the one class-label column, or "label"."""
    validation: float = 0.1
    """Part of the training images kept aside to choose checkpoints."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    expert: ExpertConfig = field(default_factory=ExpertConfig)
    window: WindowConfig = field(default_factory=WindowConfig)
    distil: DistilConfig = field(default_factory=DistilConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


def _cell(
    ipc: int, steps: int, span: int, lr_images: float, lr_logits: float, lr_step_size: float, batch: int,
    window: tuple[int, int | None, int], expand: int = 1000, *, depth: int = 3, threshold: float = 1.0,
    real_start: bool = False, spread: tuple[float, float] = (10_000, 10),
) -> Config:  # fmt: skip
    """One row of the published table (authors' configs; the paper's table of hyper-parameters)."""
    start, initial, stop = window
    return Config(
        ipc=ipc,
        transform="zca",
        network=NetworkConfig(depth=depth),
        expert=ExpertConfig(count=100, epochs=100, rho=0.01),
        window=WindowConfig(start, stop, initial, expand),
        distil=DistilConfig(
            iterations=int(spread[0]), inner_steps=steps, expert_epochs=span, batch_size=batch, lr_images=lr_images,
            lr_logits=lr_logits, lr_step_size=lr_step_size, threshold=threshold, evaluations=int(spread[1]),
            start="random" if real_start else "correct", label_experts=1 if real_start else None,
        ),
    )  # fmt: skip


def _digits(ipc: int, window: WindowConfig, **distil: Any) -> Config:
    """The embedded dataset on a laptop: a small ConvNet on 8×8 grey pixels, ten experts of thirty epochs."""
    return Config(
        ipc=ipc,
        transform="standardise",
        augment=("crop", "scale", "rotate"),  # a mirrored digit is another sign, and grey has no colour
        validation=0.2,
        network=NetworkConfig(width=32, depth=2),
        expert=ExpertConfig(count=10, epochs=30, batch_size=64, step_size=0.02),
        window=window,
        distil=DistilConfig(inner_steps=20, **distil),
    )


PRESETS: dict[str, Config] = {
    "digits-ipc1": _digits(1, WindowConfig(0, 3), iterations=120, batch_size=10),
    "digits-ipc10": _digits(10, WindowConfig(26, 29), iterations=100, batch_size=100),
    "digits-ipc50": _digits(50, WindowConfig(26, 29), iterations=100, batch_size=100),
    "cifar10-ipc1": _cell(1, 80, 2, 100, 5, 1e-7, 10, (0, None, 4), threshold=1.1),
    "cifar10-ipc10": _cell(10, 80, 2, 100, 2, 1e-5, 100, (0, 10, 20)),
    "cifar10-ipc50": _cell(50, 80, 2, 1000, 2, 1e-5, 500, (0, 20, 40), 2000),
    "cifar10-ipc500": _cell(500, 40, 2, 50, 10, 1e-5, 1000, (40, None, 60)),
    "cifar10-ipc1000": _cell(1000, 100, 2, 50, 10, 1e-5, 1000, (40, None, 60)),
    "cifar100-ipc1": _cell(1, 40, 3, 1000, 10, 1e-5, 1000, (0, 10, 20)),
    "cifar100-ipc10": _cell(10, 80, 2, 1000, 10, 1e-5, 1000, (0, 30, 50), 2000),
    "cifar100-ipc50": _cell(50, 80, 2, 1000, 10, 1e-5, 1000, (20, None, 70), real_start=True),
    "cifar100-ipc100": _cell(100, 80, 2, 50, 10, 1e-5, 1000, (30, None, 70)),
    "tiny-imagenet-ipc1": _cell(1, 40, 2, 10000, 10, 1e-4, 1000, (0, 15, 20), 2000, depth=4),
    "tiny-imagenet-ipc10": _cell(10, 40, 2, 100, 10, 1e-4, 500, (10, None, 50), depth=4),
    "tiny-imagenet-ipc50": _cell(50, 20, 2, 100, 10, 1e-4, 1000, (40, None, 70), depth=4),
}


def nearest(names: list[str], ipc: int) -> str:
    """Of the presets named, the one whose images per class is nearest in ratio."""
    return min(names, key=lambda name: max(ipc / PRESETS[name].ipc, PRESETS[name].ipc / ipc))


def default(dataset: str = "digits", ipc: int = 1) -> Config:
    """The configuration of a run for which neither a preset nor a flag was given.

    ``digits`` takes its own preset of the nearest size.  For any other data the difficulty, the inner steps and the
    rates are found by measuring, at a budget for one machine: ten experts of twenty epochs, a thousand iterations.
    """
    presets = [name for name in PRESETS if name.startswith("digits-")]
    if dataset == "digits":
        return replace(PRESETS[nearest(presets, max(ipc, 1))], ipc=ipc)
    return Config(
        dataset=dataset, ipc=ipc, expert=ExpertConfig(count=10, epochs=20), window=WindowConfig(mode="auto"),
        distil=DistilConfig(rates="auto"),
    )  # fmt: skip


def rebase(given: Any, base: Any, onto: Any) -> Any:
    """``onto`` with whatever ``given`` has changed from ``base``; nested ones field by field, windows whole."""
    changes = {}
    for item in dataclasses.fields(given):
        mine, was, other = (getattr(value, item.name) for value in (given, base, onto))
        if dataclasses.is_dataclass(mine) and not isinstance(mine, WindowConfig):  # whose numbers belong together
            changes[item.name] = rebase(mine, was, other)
        else:
            changes[item.name] = other if mine == was else mine
    return replace(onto, **changes)


def as_dict(config: Any) -> dict[str, Any]:
    """A configuration as nested plain values, for JSON."""
    return dataclasses.asdict(config)
