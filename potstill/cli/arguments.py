"""Command lines → settings, in two passes: what decides the defaults first, then every flag of the methods that were
chosen.
"""

import argparse
from collections.abc import Sequence
from dataclasses import field, fields, make_dataclass
from typing import Annotated, Any

import tyro

from potstill import bounds
from potstill.cli.commands import COMMANDS, Compare
from potstill.errors import PotstillError
from potstill.evaluation.protocol import EvaluationConfig
from potstill.methods import METHODS
from potstill.networks.architectures import NetworkConfig
from potstill.runs import settings
from potstill.runs.recipes import load_recipe
from potstill.runs.settings import Settings, Shared

HELP = {"-h", "--help"}
WITHOUT_METHOD = ("method", "ipc", "start")  # flags of runs that a comparison asks for in its own way
SECTIONS_BEFORE = ("--distil.", "--window.", "--window")  # of 0.1.0


def parse(name: str, arguments: list[str]) -> Any:
    """The command's dataclass; ``settings`` of a command that distils is a whole :class:`Settings`.

    Raises:
        PotstillError: a flag of a method that is not among the stages, or of an older version.
    """
    kind = COMMANDS[name]
    if "settings" not in kind.__dataclass_fields__:
        return _checked(tyro.cli(kind, args=arguments, prog=f"potstill {name}"))
    given = first_pass(arguments, kind)
    if given.preset and HELP & set(arguments) and given.dataset is None:
        given.dataset = "digits"  # only asking
    if kind is Compare:
        given.method, given.ipc, given.start, given.preset = ("random",), None, None, None
    if given.recipe is None:
        given.method = given.method or Shared().method
        defaults = settings.defaults(given.dataset, given.ipc, given.method, given.preset, given.start)
    else:
        defaults = _by_recipe(given, bool(HELP & set(arguments)))
        given.method = defaults.method
    refuse_foreign(arguments, () if kind is Compare else given.method)
    staged = with_stages(kind, defaults)
    required = {"experts": tyro.MISSING} if name == "distill" else {}
    arguments = [none_for_auto(flag, value) for flag, value in zip(["", *arguments], arguments, strict=False)]
    command = tyro.cli(staged, args=arguments, prog=f"potstill {name}", default=staged(**required))
    stages = tuple(getattr(command, attribute(method)) for method in given.method)
    whole = Settings(**vars(command.settings), stages=stages)
    own = {item.name: getattr(command, item.name) for item in fields(kind)}
    return _checked(kind(**{**own, "settings": whole}))


def _checked(command: Any) -> Any:
    """The command, its values held to their bounds; those of its settings are held to theirs where a run begins."""
    for name, hint in bounds.hints_of(type(command)).items():
        value = getattr(command, name)
        if isinstance(value, EvaluationConfig):  # whose flags have no prefix
            bounds.check(value)
        elif isinstance(value, NetworkConfig):
            bounds.check(value, f"{name}.")
        elif name != "settings":
            bounds.fit(value, hint, name)
    return command


def _by_recipe(given: argparse.Namespace, only_asking: bool) -> Settings:
    """The settings of a recipe, with the dataset, the size, the methods and the start of the command line."""
    if given.preset:
        raise PotstillError("--recipe: says itself where its settings come from; leave --preset out.")
    recipe = load_recipe(given.recipe)
    dataset = given.dataset or ("digits" if only_asking else None)
    return recipe.settings(dataset, given.ipc, given.method or None, given.start)


def first_pass(arguments: list[str], kind: type[Any]) -> argparse.Namespace:
    """The flags that decide the defaults of the others, and which others there are."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=None)
    parser.add_argument("--method", nargs="+", default=[])
    parser.add_argument("--dataset")
    parser.add_argument("--ipc", type=_size)
    parser.add_argument("--preset")
    parser.add_argument("--start")
    parser.add_argument("--recipe")
    try:
        given, _ = parser.parse_known_args(arguments)
    except SystemExit:  # a flag without its value: tyro says it better
        given = argparse.Namespace(method=[], dataset=None, ipc=None, preset=None, start=None, recipe=None)
    given.method = tuple(given.method)
    if given.ipc is None and kind.__name__ == "Stages":  # whose experts go far enough for late parts
        given.ipc = 10
    return given


def _size(text: str) -> int | None:
    return int(text) if text.lstrip("-").isdigit() else None  # tyro says what is wrong with it


def attribute(method: str) -> str:
    """A method's name as the field that holds its settings."""
    return method.replace("-", "_")


def with_stages(kind: type[Any], defaults: Settings) -> type[Any]:
    """The command with the flags of :class:`Shared`, and a field for each stage, whose flags are --METHOD.FIELD."""
    form: Any = _hiding(Shared, WITHOUT_METHOD) if kind is Compare else Shared
    shared = form(**{item.name: getattr(defaults, item.name) for item in fields(Shared)})
    flat: Any = Annotated[form, tyro.conf.arg(name="")]
    own: list[Any] = [("settings", flat, field(default=shared))]
    constants: dict[str, Any] = {"__doc__": kind.__doc__}
    for name, stage in zip(defaults.method, defaults.stages, strict=True):
        if fields(stage) and kind is not Compare:  # which takes them with the method's name
            own.append((attribute(name), type(stage), field(default=stage)))
        else:
            constants[attribute(name)] = stage  # nothing to set
    return make_dataclass(kind.__name__, own, bases=(kind,), frozen=True, namespace=constants)


def _hiding(kind: type[Any], names: Sequence[str]) -> type[Any]:
    """A dataclass of which some fields are no flags."""
    hidden = [item for item in fields(kind) if item.name in names]
    own = [(item.name, Annotated[item.type, tyro.conf.Suppress], field(default=item.default)) for item in hidden]
    return make_dataclass(kind.__name__, own, bases=(kind,), frozen=True)


def refuse_foreign(arguments: list[str], method: tuple[str, ...]) -> None:
    """Refuse flags of methods that are not among the stages, of all of them in a comparison (), and those of 0.1.0.

    Raises:
        PotstillError: with the flag, the reason and the remedy.
    """
    for argument in arguments:
        flag = argument.partition("=")[0].replace("_", "-")
        owner = flag.removeprefix("--").partition(".")[0]
        if flag.startswith("--") and "." in flag and owner in METHODS and owner not in method:
            if not method:
                raise PotstillError(
                    f"{flag}: is a setting of {owner}; in a comparison it stands behind the method's name: "
                    f"--methods {owner}:{flag.partition('.')[2]}=VALUE."
                )
            raise PotstillError(
                f"{flag}: is a setting of {owner}, which is not among --method {' '.join(method)}; add it to --method, "
                "or leave the flag out."
            )
        if flag.startswith(SECTIONS_BEFORE):
            raise PotstillError(
                f"{flag}: settings of distilling stand under their method's name since 0.2, e.g. --datm.iterations; "
                "`potstill run --help` shows all."
            )


def none_for_auto(flag: str, value: str) -> str:
    """``auto`` for what is measured, as people write it, is None."""
    owner = flag.removeprefix("--").partition(".")[0]
    return "None" if value == "auto" and owner in METHODS and "." in flag else value
