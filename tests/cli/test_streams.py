"""Streams and signals: a reader that leaves, a full disk behind stdout, Ctrl-C at any moment, nothing to write to."""

import os
import signal
import subprocess
import sys
import time

import pytest

from potstill.cli import main
from potstill.cli.commands import COMMANDS
from tests.cli.test_main import SMALL, call

POTSTILL = [sys.executable, "-m", "potstill"]
needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["methods"]], ids=" ".join)
def test_a_reader_that_leaves_is_no_error(arguments):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*POTSTILL, *arguments], stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@needs_full
@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["run", "--help"], ["methods"]], ids=" ".join)
def test_a_full_output_is_named(arguments):
    with open("/dev/full", "w") as full:
        done = subprocess.run([*POTSTILL, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: the output: cannot be written (No space left on device); send it elsewhere.\n"


@needs_full
def test_a_full_stderr_stops_nothing():
    with open("/dev/full", "w") as full:
        done = subprocess.run([*POTSTILL, "runn"], stdout=subprocess.PIPE, stderr=full, text=True, check=False)
    assert done.returncode == 2


@pytest.mark.parametrize("after", [0.05, 0.2, 0.5, 1.0])
def test_ctrl_c_at_the_start_is_quiet(after, tmp_path):
    """While Python starts, while libraries are read, while the data are."""
    job = subprocess.Popen(
        [*POTSTILL, "run", "--out", str(tmp_path / "run")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    time.sleep(after)
    job.send_signal(signal.SIGINT)
    _, err = job.communicate()
    if "site.py" not in err and "<frozen" not in err:  # before the first line of ours
        assert "Traceback" not in err
        assert job.returncode in (130, -signal.SIGINT)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["explore"], ["nonsense"]], ids=" ".join)
def test_help_and_version_need_no_pytorch(arguments):
    code = f"import sys; from potstill.cli import main; main.main({arguments!r}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_the_commands_summaries_are_those_of_the_commands():
    assert main.summaries() == {name: (kind.__doc__ or "").strip().splitlines()[0] for name, kind in COMMANDS.items()}


def test_too_many_open_files_blames_no_file(capsys, monkeypatch):
    import errno

    from potstill.cli import runners

    def crowded(command):
        raise OSError(errno.EMFILE, "Too many open files", "/usr/share/fonts/x.ttf")

    monkeypatch.setitem(runners.RUNNERS, runners.Run, crowded)
    code, _, err = call(capsys, "run")
    assert (code, "too many open files" in err, "ulimit -n" in err, ".ttf" in err) == (1, True, True, False)


def test_a_failed_start_leaves_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for flags in (["--dataset", "data"], ["--dataset", "nothing.npz"], ["--device", "cuda:9"], ["--ipc", "9999"]):
        assert call(capsys, "run", *flags)[0] == 1
        assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_place_where_nothing_can_be_kept_stops_nothing(tmp_path):
    """Neither our cache, nor the compiler's (made when PyTorch is imported), nor the plots' can be written."""
    nowhere = "/proc/nowhere"
    environment = {
        **os.environ, "POTSTILL_CACHE": nowhere, "TORCHINDUCTOR_CACHE_DIR": nowhere, "MPLCONFIGDIR": nowhere,
        "HOME": nowhere,
    }  # fmt: skip
    command = [*POTSTILL, "run", *SMALL, "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "run" / "report.html").exists()


def test_what_is_kept_is_listed_and_cleared(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "kept"))
    for again in (False, True):
        code, out, _ = call(capsys, "run", *SMALL, "--out", tmp_path / f"run-{again}")
        assert (code, "(2 kept)" in out) == (0, again)
    code, out, _ = call(capsys, "cache")
    assert (code, "networks" in out, "accuracies" in out) == (0, True, True)
    code, out, _ = call(capsys, "cache", "--clear")
    assert (code, "accuracies" in out) == (0, False)
    assert not list((tmp_path / "kept").rglob("*.json"))
