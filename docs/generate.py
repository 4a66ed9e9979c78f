"""The pages that the code itself tells: methods, commands, settings and records.  A hook of MkDocs (``mkdocs.yml``).

Nothing is written into the source tree: the pages exist while the site is built, so that none can be out of date.
"""

import dataclasses
import functools
import importlib
import inspect
import itertools
import re
import runpy
from ast import AnnAssign, ClassDef, Constant, Expr, Name, parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from potstill import bounds
from potstill.cli.commands import COMMANDS, Evaluate
from potstill.evaluation.protocol import EvaluationConfig
from potstill.methods import METHODS, methods, published
from potstill.methods.method import Method
from potstill.networks.architectures import NetworkConfig
from potstill.runs.settings import Shared
from potstill.training.experts import ExpertConfig

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[1]
SECTIONS = re.compile(r"^(Args|Returns|Raises|Yields|Example|Examples):$", re.M)
ROLE = re.compile(r":\w+:`~?([^`<]+?)(?:\s*<[^>]*>)?`")
FAMILIES = {
    "trajectory": "A student's path over the set should end where the experts' path over the real data did.",
    "gradient": "Networks should get the same gradient from the set as from the real images.",
    "distribution": "Features of the set should be distributed like those of the real images.",
    "kernel": "A regression on the set, solved in closed form, should explain the real images.",
    "backpropagation": "The loss of real images is differentiated through training on the set.",
    "selection": "Real images are chosen: what distilling has to beat.",
}
"""The families in their order, and what is common to each."""
PARTS = {
    "datm": ("start_epochs", "soft_labels", "measure"),
    "mct": ("lines",),
    "pad": ("mask",),
    "kip": ("ntk",),
    "frepo": ("pool", "ridge"),
    "rcig": ("convex",),
    "rat-bptt": ("pool",),
    "forgetting": ("scores",),
    "el2n": ("scores",),
    "grand": ("scores",),
    "ccs": ("scores",),
    "d2": ("scores",),
    "window": ("scores",),
}
"""Further modules in which an idea of a method stands."""
TITLES = {
    "start_epochs": "Start epochs",
    "soft_labels": "Soft labels",
    "measure": "What is found by measuring",
    "lines": "Straight paths",
    "mask": "Which weights are matched",
    "ntk": "The kernel",
    "pool": "The pool of networks",
    "ridge": "Ridge regression",
    "scores": "Scores",
    "convex": "The inner problem",
}


# --- hooks of MkDocs -----------------------------------------------------------------------------------------------


def on_config(config: "MkDocsConfig") -> "MkDocsConfig":
    """The method pages in the navigation, by family, where it says ``Methods``."""
    by_family = [
        {family.capitalize(): [{name: f"methods/{name}.md"} for name, one in METHODS.items() if one.family == family]}
        for family in FAMILIES
    ]
    for entry in config.nav or []:
        if "Methods" in entry:
            entry["Methods"] = ["methods/index.md", *by_family]
    return config


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """The pages, the records with their pictures, and the script for Slurm."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    evidence = [path for path in sorted((ROOT / "records").iterdir()) if path.suffix in (".json", ".png")]
    for path in (*evidence, ROOT / "recipes" / "slurm.sh"):
        files.append(File.generated(config, f"{path.parent.name}/{path.name}", abs_src_path=str(path)))
    return files


def pages() -> dict[str, str]:
    """Every generated page by its path."""
    return {
        "methods/index.md": methods_page(),
        **{f"methods/{name}.md": method_page(method) for name, method in METHODS.items()},
        "records/index.md": runpy.run_path(str(ROOT / "recipes" / "table.py"))["page"](),
        "reference/commands.md": commands_page(),
        "reference/settings.md": settings_page(),
    }


# --- methods -------------------------------------------------------------------------------------------------------


def methods_page() -> str:
    """All methods, a table a family."""
    rows = {row["name"]: row for row in methods()}
    lines = [
        "# Methods\n",
        f"{len(METHODS)} methods stand behind the same command and are evaluated alike. Each has a page here, made "
        "from its source: what it does, its settings, and what its authors published. In the terminal: "
        "`potstill methods`; in Python: `potstill.methods()`.\n",
        "```sh",
        "potstill run --method dm --ipc 10       # by its name",
        "potstill run --method datm rat-bptt     # stages: the second refines the first's set",
        "```\n",
    ]
    for family, about in FAMILIES.items():
        lines.append(f"\n## {family.capitalize()}\n\n{about}\n")
        cells = [
            (f"[`{name}`]({name}.md)", one.title, rows[name]["needs"], rows[name]["labels"], venue(one.citation))
            for name, one in METHODS.items() if one.family == family
        ]  # fmt: skip
        lines.append(table(("method", "", "needs", "labels", "from"), cells))
    return "\n".join(lines)


def method_page(method: Method) -> str:
    """One method: what it does, how to run it, its settings, and what is published of it."""
    settings = method.settings()
    sections = [
        f"# {method.title}\n\n`--method {method.name}` · {method.family} · {method.citation}.\n",
        facts(method, settings),
        f"## Run it\n\n{example(method)}",
        f"## How it works\n\n{told(method)}",
        settings_section(method, settings),
        accuracies(method),
        cells_section("As its authors ran it", method.published, method),
        cells_section("Tuned here", method.tuned, method),
    ]
    return "\n\n".join(section for section in sections if section)


def facts(method: Method, settings: Any) -> str:
    """What it needs and what it learns."""
    kind = method.kind(settings)
    learned = ["labels" if name == kind else name.replace("_", " ") for name in method.learns(settings)]
    labels = {"hard": "one class each", "logits": "soft, as logits", "values": "numbers to regress to",
              "raw": "weights of the classes"}[kind]  # fmt: skip
    lines = [
        f"**Needs experts:** {'yes' if method.needs(settings) else 'no'}",
        f"**Learns:** {', '.join(learned) or 'nothing; it chooses real images'}",
        f"**Labels of the set:** {labels}",
        f"**Reads of a network:** its {method.reads}",
        f"**Takes networks with batch norm:** {'yes' if method.batch_norm else 'no'}",
    ]
    if method.pictures(settings) > 1:
        lines.append(f"**Pictures in a slot:** {method.pictures(settings)} × {method.pictures(settings)}")
    if method.measured:
        lines.append(f"**Found by measuring:** {', '.join(f'`{name}`' for name in method.measured)}")
    return "\n".join(f"- {line}" for line in lines)


def example(method: Method) -> str:
    """Commands to copy: on the embedded digits, and a published cell."""
    lines = [f"potstill run --method {method.name} --ipc 10"]
    if method.published:
        dataset, ipc = next((cell for cell in method.published if cell[1] == 10), next(iter(method.published)))
        lines.append(f"potstill run --method {method.name} --preset {dataset}-ipc{ipc} --dataset data/{dataset}")
    lines.append(f"potstill run --method {method.name} --help")
    call = "distilled = potstill.distill" if method.loss else "rows, chosen = potstill.select"
    python = f'{call}((images, labels), ipc=10, method="{method.name}")'
    return "```sh\n" + "\n".join(lines) + f"\n```\n\n```python\n{python}\n```"


def told(method: Method) -> str:
    """The docstrings: of the module, of what the set begins with, of an iteration, and of further parts."""
    home = method.settings.__module__
    begin, loss = underlying(method.begin), method.loss and underlying(method.loss)
    texts = [prose(importlib.import_module(home).__doc__)]
    if (own := prose(method.settings.__doc__)) != f"{method.title}.":
        texts.insert(0, own)
    texts.append(f"**{'It begins with' if loss else 'It chooses'}.** {prose(begin.__doc__)}")
    if loss:
        texts.append(f"**The loss of an iteration.** {prose(loss.__doc__)}")
    for part in PARTS.get(method.name, ()):
        text = prose(importlib.import_module(f"potstill.methods.{part}").__doc__)
        texts.append(f"### {TITLES[part]}\n\n{text}")
    return "\n\n".join(texts)


def settings_section(method: Method, settings: Any) -> str:
    """The method's own flags."""
    rows = []
    for name, hint, text in fields_of(method.settings):
        value = getattr(settings, name)
        default = "measured" if value is None and name in method.measured else given(value)
        rows.append((f"`--{method.name}.{name.replace('_', '-')}`", default, described(hint, text)))
    if not rows:
        return "## Settings\n\nNone of its own."
    others = "those of every run stand [here](../reference/settings.md)"
    return f"## Settings\n\nIts own, with their defaults; {others}.\n\n{table(('flag', 'default', ''), rows)}"


def accuracies(method: Method) -> str:
    """What the literature reports of it."""
    known = published.cells(method.name)
    if not known:
        return ""
    sizes = sorted({ipc for _, ipc in known})
    data = list(dict.fromkeys(dataset for dataset, _ in known))
    rows = [
        (dataset, *(f"{100 * known[dataset, ipc].accuracy:.1f}" if (dataset, ipc) in known else "–" for ipc in sizes))
        for dataset in data
    ]
    source = " and ".join(dict.fromkeys(one.source for one in known.values()))
    about = (
        f"Test accuracy in per cent by images per class, from {source}. Citations, not measurements of ours: those are "
        "in the [records](../records/index.md)."
    )
    return f"## Published accuracies\n\n{about}\n\n{table(('images per class', *map(str, sizes)), rows)}"


def cells_section(title: str, cells: Mapping[tuple[str, int], Mapping[str, Any]], method: Method) -> str:
    """The settings of cells: what all share in a line, what differs in a table."""
    if not cells:
        return ""
    flat = {f"{dataset}-ipc{ipc}": dict(flattened(cell)) for (dataset, ipc), cell in cells.items()}
    names = list(dict.fromkeys(name for cell in flat.values() for name in cell))
    same = [name for name in names if len({shown(cell.get(name)) for cell in flat.values()}) == 1]
    own = [name for name in names if name not in same]
    first = next(iter(flat.values()))
    alike = f"In all cells: {', '.join(f'`{name}` {shown(first[name])}' for name in same)}.\n\n" if same else ""
    if title.startswith("Tuned"):
        about = "Taken for the embedded digits; the size nearest to yours counts.\n\n"
    else:
        about = "Each cell is a preset, which `--preset` fills in and other flags change.\n\n"
    rows = [(f"`{name}`", *(shown(cell.get(key)) for key in own)) for name, cell in flat.items()]
    return f"## {title}\n\n{about}{alike}{table(('cell', *(f'`{name}`' for name in own)), rows)}"


def flattened(cell: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Names and values of a cell; those of the run's sections with a dot, as flags have it."""
    for name, value in cell.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def venue(citation: str) -> str:
    """Authors and venue of a citation."""
    authors, _, rest = citation.partition(', "')
    where = rest.rpartition('", ')[2]
    return f"{authors}, {where}" if rest else citation


# --- commands and settings -----------------------------------------------------------------------------------------


def commands_page() -> str:
    """Every command with its own flags."""
    lines = [
        "# Commands\n\n`--help` after a command says the same in the terminal, with the defaults that hold for your "
        "data. Commands that distil take the [settings of a run](settings.md) as well, and those of their "
        "[methods](../methods/index.md).\n\nExit codes: 0 done, 1 a clear error (or rows "
        "of a comparison failed), 2 wrong usage, 130 interrupted (the same command continues).",
    ]
    for name, kind in COMMANDS.items():
        rows = [
            (flag(field, hint), default_of(kind, field), described(hint, text))
            for field, hint, text in fields_of(kind) if not holds_settings(hint)
        ]  # fmt: skip
        more = ""
        if kind is Evaluate:
            more = "\n\nAnd the settings of the [evaluation](settings.md#evaluation), without their prefix."
        elif any(holds_settings(hint) for _, hint, _ in fields_of(kind)):
            more = "\n\nAnd the [settings](settings.md) of a run."
        lines.append(f"## potstill {name}\n\n{prose(kind.__doc__)}\n\n{table(('', 'default', ''), rows)}{more}")
    return "\n\n".join(lines)


def settings_page() -> str:
    """What all methods share."""
    lines = [
        "# Settings of a run\n\nWhat all methods share. On the command line they are flags; in Python they are "
        'arguments of `potstill.distill`, those with a dot as mappings: `expert={"count": 3}`. The defaults here hold '
        "where nothing else is known: for the embedded digits some are smaller, and a preset brings its own.",
    ]
    for title, prefix, kind in (
        ("Data and distilling", "", Shared),
        ("Network", "network.", NetworkConfig),
        ("Experts", "expert.", ExpertConfig),
        ("Evaluation", "evaluation.", EvaluationConfig),
    ):
        rows = [
            (f"`--{prefix}{name.replace('_', '-')}`", default_of(kind, name), described(hint, text))
            for name, hint, text in fields_of(kind) if not holds_settings(hint)
        ]  # fmt: skip
        lines.append(f"## {title}\n\n{table(('flag', 'default', ''), rows)}")
    return "\n\n".join(lines)


def holds_settings(hint: Any) -> bool:
    """Whether a field's type is a dataclass, whose fields are flags of their own."""
    return dataclasses.is_dataclass(get_args(hint)[0] if get_origin(hint) is Annotated else hint)


def flag(name: str, hint: Any) -> str:
    """How a field is given: as a flag, or by its place."""
    positional = any("Positional" in repr(one) for one in getattr(hint, "__metadata__", ()))
    return f"`{name.upper()}`" if positional else f"`--{name.replace('_', '-')}`"


def default_of(kind: type[Any], name: str) -> str:
    """A field's default as text; what has none must be given."""
    item = next(item for item in dataclasses.fields(kind) if item.name == name)
    return "required" if item.default is dataclasses.MISSING else given(item.default)


@functools.cache
def fields_of(kind: type[Any]) -> tuple[tuple[str, Any, str], ...]:
    """The fields of a dataclass with their types and the texts beneath them, those of classes it extends included."""
    texts: dict[str, str] = {}
    for one in reversed(kind.__mro__[:-1]):
        body = next(node for node in parse(inspect.getsource(one)).body if isinstance(node, ClassDef)).body
        for node, below in itertools.pairwise(body):
            if isinstance(node, AnnAssign) and isinstance(node.target, Name) and isinstance(below, Expr):
                assert isinstance(below.value, Constant)
                texts[node.target.id] = inspect.cleandoc(str(below.value.value))
    return tuple((name, hint, texts.get(name) or help_of(hint)) for name, hint in bounds.hints_of(kind).items())


def help_of(hint: Any) -> str:
    """The text that a type brings along, where several fields share one."""
    return next((one.help for one in getattr(hint, "__metadata__", ()) if getattr(one, "help", None)), "")


def described(hint: Any, text: str) -> str:
    """A field's text, and its choices where it does not name them."""
    missing = [choice for choice in choices_of(hint) if choice not in text]
    return prose(text) + (f" One of {', '.join(f'`{one}`' for one in choices_of(hint))}." if missing else "")


def choices_of(hint: Any) -> tuple[str, ...]:
    """The texts that a type allows, where it lists them."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    inner = [one for one in get_args(hint) if get_origin(one) is Literal]
    return get_args(inner[0]) if len(inner) == 1 else ()


# --- text ----------------------------------------------------------------------------------------------------------


def underlying(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function that a partial one calls."""
    return underlying(function.func) if isinstance(function, functools.partial) else function


def prose(text: str | None) -> str:
    """A docstring as Markdown, without its sections on arguments and errors."""
    text = SECTIONS.split(inspect.cleandoc(text or ""))[0].strip()
    text = ROLE.sub(lambda found: f"`{found[1].rpartition('.')[2]}`", text)
    return text.replace("``", "`")


def shown(value: Any) -> str:
    """A setting's value as one reads it."""
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    if isinstance(value, tuple | list):
        return " ".join(shown(one) for one in value) or "–"
    return f"{value:g}" if isinstance(value, float) else str(value)


def given(value: Any) -> str:
    """A default as one gives it: nothing is None, as the texts beside it say."""
    return "None" if value is None else shown(value)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in line) + " |" for line in lines
    )
