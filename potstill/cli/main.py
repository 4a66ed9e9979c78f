"""The command line from its first moment: what needs no PyTorch is answered at once, and every ending is clear."""

import ast
import contextlib
import difflib
import errno
import importlib.util
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from potstill.cli.terminal import err, fail, out, silence, telling
from potstill.errors import PotstillError, ToldElsewhere
from potstill.version import VERSION

CONTINUES = "Interrupted; what was done is kept. The same command continues where it stopped."
EVERYWHERE = {
    "--quiet": "no progress and no remarks; results and errors stay",
    "--json": "the results as JSON on stdout, all else on stderr",
}
COMPLETION = ("--tyro-print-completion", "--tyro-write-completion")
CROWDED = (errno.EMFILE, errno.ENFILE)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code.

    0 done, 1 a clear error (or rows of a comparison failed), 2 wrong usage, 130 interrupted, 141 whoever read the
    output has gone.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        arguments, flags = split_flags(arguments)
        with telling("--quiet" in flags, "--json" in flags):
            code = _answer(arguments)
        sys.stdout.flush()
        return code
    except SystemExit as end:  # tyro's: 0 after --help, none after completion, 2 for wrong usage
        return 0 if end.code is None else end.code if isinstance(end.code, int) else 2
    except ToldElsewhere:
        return 1
    except PotstillError as error:
        return fail(str(error))
    except BrokenPipeError:
        silence()
        return 141
    except OSError as error:
        return _fail_by_system(error)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        sizes = "lower --micro-batch, or the method's batch size or inner steps"
        return fail(f"out of memory; {'lower --width, or use --device cpu' if 'evaluate' in arguments else sizes}.")
    except KeyboardInterrupt:
        err.print(f"\n{CONTINUES}")
        return 130


def leave(code: int) -> NoReturn:
    """End this process.

    As one of several it ends on the spot: threads of gloo may outlive their group, and now and then one of them aborts
    an orderly end, after all is done.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        sys.exit(code)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def split_flags(arguments: list[str]) -> tuple[list[str], set[str]]:
    """What is left of the arguments without the flags that every command has, and those flags.

    They stand before the command or behind it.  `evaluate --json x.json` of 0.1.0 is `evaluate --record x.json` now.
    """
    left, flags = [], set()
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        if "evaluate" in arguments and argument == "--json" and following.endswith(".json"):
            left.append("--record")
        elif argument in EVERYWHERE:
            flags.add(argument)
        else:
            left.append(argument)
    return left, flags


def _answer(arguments: list[str]) -> int:
    """Help, the version, or a command's work."""
    if not arguments or arguments[0] in ("-h", "--help"):
        return _help()
    if arguments[0] == "--version":
        out.print(f"potstill {VERSION}")
        return 0
    if arguments[0].replace("_", "-") in COMPLETION:
        return _completion(arguments)
    words = 2 if arguments[0] == "explore" else 1
    name, rest = " ".join(arguments[:words]), arguments[words:]
    if name in ("explore", "explore -h", "explore --help"):
        return _help("explore")
    commands = summaries()
    if name not in commands:
        near = difflib.get_close_matches(name, commands, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        fail(f"{name!r}: no such command.{hint} Choose among {', '.join(commands)}.")
        return 2
    _work(name, rest)
    return 0


def _work(name: str, arguments: list[str]) -> None:
    """Do what a command says.  Interrupted while libraries are read, which does not suit them, it ends on the spot."""
    signal.signal(signal.SIGINT, _leave)
    signal.signal(signal.SIGTERM, _leave)
    from potstill.cli import runners

    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _interrupt)
    runners.run(name, arguments)


def _completion(arguments: list[str]) -> int:
    """Print or write the script by which a shell completes commands and flags."""
    from potstill.cli import completion

    completion.write(*arguments)
    return 0


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"\nInterrupted before anything was done.\n")
    os._exit(130)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


# --- endings -------------------------------------------------------------------------------------------------------


def _fail_by_system(error: OSError) -> int:
    """A sentence for what the system refused."""
    reason = error.strerror or str(error)
    if error.errno in CROWDED:
        return fail(f"too many open files ({reason}); close other programs, or raise the limit (ulimit -n).")
    if error.filename is None:  # every file that we write by ourselves says its name
        silence()
        return fail(f"the output: cannot be written ({reason}); send it elsewhere.")
    return fail(f"{error.filename}: {reason}; choose another path or fix its rights.")


def _is_out_of_memory(error: BaseException) -> bool:
    """Python's, PyTorch's (whose kind is not known before it is imported), or an allocator's without a kind."""
    return (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)
    )


# --- help ----------------------------------------------------------------------------------------------------------


def summaries() -> dict[str, str]:
    """Every command with the first line of its help, read from the source: importing it would import PyTorch."""
    spec = importlib.util.find_spec("potstill.cli.commands")
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    told = {node.name: ast.get_docstring(node) or "" for node in tree.body if isinstance(node, ast.ClassDef)}
    table: Any = next(
        node.value for node in tree.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "COMMANDS"
    )  # fmt: skip
    return {key.value: told[kind.id].splitlines()[0] for key, kind in zip(table.keys, table.values, strict=True)}


def _help(group: str = "") -> int:
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2))
    for name, summary in summaries().items():
        if name.startswith(group):
            table.add_row(f"[bold]{name}[/]", summary)
    if group:
        out.print(table)
        return 0
    out.print("[bold]potstill[/] distils a training set: a small synthetic one to train on instead of the original.\n")
    out.print("usage: potstill COMMAND [OPTIONS]      potstill COMMAND --help explains every option\n")
    out.print(table)
    out.print("\nWith every command:")
    every = Table(box=None, show_header=False, padding=(0, 2))
    for flag, summary in EVERYWHERE.items():
        every.add_row(f"[bold]{flag}[/]", summary)
    out.print(every)
    out.print("\nStart with:  potstill run                                            the embedded digits, two minutes")
    out.print("             potstill run --dataset path/to/folder --ipc 10          your own data")
    out.print("             potstill explore stages                                 which part of the path to match")
    out.print("             potstill forecast --preset cifar10-ipc10 --dataset ...  what it would cost")
    out.print("             potstill doctor                                         what is fast here")
    out.print(
        "\nCompletion in the shell (bash, zsh, fish):  potstill --tyro-write-completion bash FILE, then source FILE"
    )
    return 0
