"""Completion in the shell: a script, made once, that knows every command, every flag and every method's settings.

The script holds all that it needs and imports nothing of ours, so that the shell waits for no PyTorch.
"""

import ast
import contextlib
import io
import operator
import re
import textwrap
from dataclasses import make_dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Annotated, Any

import tyro

from potstill import files
from potstill.cli.arguments import with_stages
from potstill.cli.commands import COMMANDS
from potstill.errors import PotstillError
from potstill.methods import METHODS
from potstill.runs import recipes
from potstill.runs.settings import Settings

SHELLS = ("bash", "zsh", "fish")
DESCRIPTION = 100  # letters
SPEC = "COMPLETION_SPEC = "  # what the line with all commands and flags begins with


def write(flag: str, shell: str = "", path: str = "") -> None:
    """Print the script, or write it to a file.

    Args:
        flag: --tyro-print-completion or --tyro-write-completion, as with other programs of tyro's.
        shell: which one it is for.
        path: the file to write.

    Raises:
        PotstillError: no such shell, or no file.
    """
    writes = "write" in flag
    if shell not in SHELLS:
        raise PotstillError(f"{flag} {shell}: not a shell that can be completed in; choose among {', '.join(SHELLS)}.")
    if writes and not path:
        raise PotstillError(f"{flag} {shell}: name the file to write behind it.")
    if writes:
        files.write_bytes(Path(path), script(shell).encode())
    else:
        print(script(shell))


def script(shell: str) -> str:
    """The script as tyro makes it, with the names that its types do not tell."""
    made = io.StringIO()
    with contextlib.redirect_stdout(made), contextlib.suppress(SystemExit):
        tyro.cli(everything(), args=["--tyro-print-completion", shell], prog="potstill")
    lines = made.getvalue().splitlines()
    return "\n".join(_finished(line, shell) if line.startswith(SPEC) else line for line in lines)


def _finished(line: str, shell: str) -> str:
    """The line of all commands and flags, with short descriptions and with names to choose from."""
    if shell == "fish":  # where it stands between double quotes
        line = re.sub(r"\\(.)", r"\1", line)
    told = ast.literal_eval(line.removeprefix(SPEC))
    names = {
        "--method": list(METHODS), "--methods": list(METHODS), "--recipe": recipes.names(),
        "--preset": [f"{dataset}-ipc{ipc}" for dataset, ipc in METHODS["datm"].published],
    }  # fmt: skip
    commands = [told]
    while commands:
        command = commands.pop()
        commands += command.get("subcommands", {}).values()
        for option in command["options"]:
            option["description"] = _short(option["description"])
            if choices := next((names[flag] for flag in option["flags"] if flag in names), None):
                option |= {"type": "choice", "choices": choices}
    finished = f"{SPEC}{told!r}"
    return re.sub(r'([\\"$])', r"\\\1", finished) if shell == "fish" else finished


def _short(description: str) -> str:
    """One line, without the default, which hangs on the dataset; a shell takes every other line for a flag."""
    text = " ".join(description.partition("(default:")[0].split())
    return textwrap.shorten(text, DESCRIPTION, placeholder=" ...")


def everything() -> Any:
    """All commands as one form: the flags of every command, and below the commands of runs those of every method."""
    settings = tuple(method.settings() for method in METHODS.values())
    all_stages = replace(Settings(), method=tuple(METHODS), stages=settings)
    groups: dict[str, list[Any]] = {}
    for name, kind in COMMANDS.items():
        form = with_stages(kind, all_stages) if "settings" in kind.__dataclass_fields__ else kind
        group, _, leaf = name.rpartition(" ")
        groups.setdefault(group, []).append(_named(leaf, form))
    alone = groups.pop("")
    commands = [*alone, *(_named(group, _any_of(members)) for group, members in groups.items())]
    on = Annotated[bool, tyro.conf.FlagCreatePairsOff]
    return make_dataclass(
        "Everything",
        [("command", Annotated[_any_of(commands), tyro.conf.arg(name="")]), ("quiet", on, False), ("json", on, False)],
    )


def _named(name: str, form: Any) -> Any:
    return Annotated[form, tyro.conf.subcommand(name, prefix_name=False)]


def _any_of(forms: list[Any]) -> Any:
    return reduce(operator.or_, forms)
