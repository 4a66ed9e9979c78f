"""Carrying tasks out: in their order, at once, after workers were killed, by several drivers."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from potstill.errors import InUse, PotstillError
from potstill.runs.api import run_to_completion
from potstill.studies import execute, task
from potstill.studies.execute import Processes
from tests.studies.test_task import figure_of, followed, set_of

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Note:
    """A task that leaves a line of what it did, or fails, or dies as often as it is told to."""

    key: str
    needs: tuple[str, ...] = ()
    fails: bool = False
    deaths: int = 0
    label: str = field(default="a note")
    kind: str = field(default="note")

    def done(self, folder: Path) -> bool:
        return (folder / self.key).exists()

    def perform(self, folder: Path):
        yield {"stage": "noting", "done": 0, "total": 1}
        assert all((folder / need).exists() for need in self.needs)
        died = folder / f"{self.key}.deaths"
        before = len(died.read_text()) if died.exists() else 0
        if before < self.deaths:
            died.write_text("x" * (before + 1))
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fails:
            raise PotstillError("cannot be done; do something else.")
        (folder / self.key).write_text(str(os.getpid()))


@dataclass(frozen=True)
class Killed:
    """A real task whose worker is killed at some event, when it is tried for the first time."""

    inside: task.Task
    at: int

    @property
    def key(self):
        return self.inside.key

    @property
    def needs(self):
        return self.inside.needs

    @property
    def label(self):
        return self.inside.label

    @property
    def kind(self):
        return self.inside.kind

    def done(self, folder):
        return self.inside.done(folder)

    def perform(self, folder):
        mark = folder / f"killed-{self.key}"
        for number, event in enumerate(self.inside.perform(folder)):
            if number == self.at and not mark.exists():
                mark.write_text("once")
                os.kill(os.getpid(), signal.SIGKILL)
            yield event


def done(tasks, folder, executor=None):
    events = []
    with closing(executor) if executor else nullcontext():
        return run_to_completion(execute.execute(tasks, folder, executor), events.append), events


CHAIN = [
    Note("a"),
    Note("b", ("a",)),
    Note("c", ("a", "b")),
    Note("d", fails=True),
    Note("e", ("d",)),
    Note("f", ("e",)),
]


@pytest.mark.parametrize("workers", [None, 2])
def test_each_task_follows_what_it_needs_and_failures_stop_nothing_else(tmp_path, workers):
    failures, events = done(CHAIN, tmp_path, Processes(workers) if workers else None)
    assert set(failures) == {"d", "e", "f"}
    assert set(failures.values()) == {"cannot be done; do something else."}
    assert all((tmp_path / name).exists() for name in "abc")
    assert events[-1]["done"] == events[-1]["total"]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_needed_and_not_among_the_tasks_is_taken_as_it_is(tmp_path, workers):
    (tmp_path / "made-before").write_text("by somebody else")
    failures, _ = done([Note("a", needs=("made-before",))], tmp_path, Processes(2) if workers == 2 else None)
    assert not failures
    assert (tmp_path / "a").exists()


def test_a_task_that_two_rows_need_is_done_once(tmp_path):
    _, events = done([Note("a"), Note("b", ("a",)), Note("a")], tmp_path)
    assert events[-1]["total"] == 200


def test_workers_that_do_nothing_end_in_order(tmp_path):
    """Killed, they leave semaphores of libraries behind, of which Python warns."""
    workers = Processes(2)
    with closing(workers):
        failures = run_to_completion(execute.execute([Note("a"), Note("b")], tmp_path, workers))
        processes = list(workers._pool._processes.values())
    assert not failures
    assert {process.exitcode for process in processes} == {0}


def test_a_task_whose_worker_was_killed_is_tried_again(tmp_path):
    failures, _ = done([Note("a", deaths=1), Note("b", ("a",)), Note("c")], tmp_path, Processes(2))
    assert failures == {}
    assert all((tmp_path / name).exists() for name in "abc")


def test_a_task_that_takes_every_worker_along_is_given_up(tmp_path):
    failures, _ = done([Note("a", deaths=99), Note("b", ("a",))], tmp_path, Processes(1))
    assert "its worker was killed 4 times; there may be too little memory" in failures["a"]
    assert set(failures) == {"a", "b"}


@dataclass(frozen=True)
class Slow(Note):
    """A note that takes its time."""

    def perform(self, folder: Path):
        time.sleep(2.0)
        yield from super().perform(folder)


def test_what_ran_beside_a_killer_is_done_all_the_same(tmp_path):
    failures, _ = done([Note("a", deaths=99), Slow("b"), Note("c", ("b",))], tmp_path, Processes(2))
    assert set(failures) == {"a"}
    assert (tmp_path / "c").exists()


@dataclass(frozen=True)
class Taken(Note):
    """A note that another process holds until something else is there."""

    until: str = ""

    def perform(self, folder: Path):
        if not (folder / self.until).exists():
            raise InUse(f"{self.key}: in use.")
        yield from super().perform(folder)


@pytest.mark.parametrize("workers", [None, 2])
def test_what_another_process_holds_is_put_off_until_something_else_is_done(tmp_path, workers, monkeypatch):
    monkeypatch.setattr(execute, "POLL_SECONDS", 0.05)
    tasks = [Taken("a", until="c"), Note("b", ("a",)), Note("c")]
    failures, events = done(tasks, tmp_path, Processes(workers) if workers else None)
    assert failures == {}
    assert all((tmp_path / name).exists() for name in "abc")
    assert events[-1]["done"] == events[-1]["total"]


def test_the_time_left_is_by_kinds_of_tasks(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(execute.time, "monotonic", lambda: now[0])
    pace, waiting = execute._Pace(), {"expert": 1, "figure": 10, "set": 2}
    assert pace.left(waiting, 1) is None, "nothing has ended yet"
    for kind, seconds in (("expert", 60.0), ("figure", 2.0), ("figure", 4.0), ("failed", 1000.0)):
        pace.begin(Note(kind, kind=kind))
        now[0] += seconds
        pace.end(Note(kind, kind=kind), counts=kind != "failed")
    mean = (60 + 2 + 4) / 3  # of a set nothing is known yet
    assert pace.left(waiting, 1) == pytest.approx(60 + 10 * 3 + 2 * mean)
    pace.begin(Note("another", kind="expert"))
    now[0] += 20.0
    assert pace.left(waiting, 2) == pytest.approx((60 - 20 + 10 * 3 + 2 * mean) / 2)
    now[0] += 1000.0
    assert pace.left({"expert": 1}, 2) == 0, "one that takes longer than others is about to end"


@pytest.mark.parametrize("workers", [None, 2])
def test_what_is_left_is_told_once_a_task_has_ended(tmp_path, workers, monkeypatch):
    monkeypatch.setattr(execute, "POLL_SECONDS", 0.05)
    tasks = [Note("a"), Slow("b", ("a",)), Slow("c", ("b",)), Note("d", fails=True), Note("e", ("d",))]
    _, events = done(tasks, tmp_path, Processes(workers) if workers else None)
    left = [event["left"] for event in events[:-1]]
    assert left[0] is None
    assert left[-1] is not None
    assert all(seconds is None or seconds >= 0 for seconds in left)
    assert "left" not in events[-1], "all is done"


def test_rows_are_done_in_their_order(tmp_path):
    tasks = [Note("a", label="a"), Note("b", ("a",), label="b"), Note("c", label="c"), Note("d", ("b",), label="d")]
    _, events = done(tasks, tmp_path)
    assert list(dict.fromkeys(event["doing"] for event in events if "doing" in event)) == ["a", "b", "c", "d"]


def test_a_driver_waits_where_all_is_held_and_takes_over_when_the_holder_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(execute, "POLL_SECONDS", 0.05)
    made = set_of()
    own, doing = task.set_folder(tmp_path, made.key), []
    own.mkdir(parents=True)
    code = "from filelock import FileLock; import sys; lock = FileLock(sys.argv[1]); lock.acquire(); print(flush=True)"
    command = [sys.executable, "-c", f"{code}; sys.stdin.read()", own / ".lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"\n"

        def watch(event):
            doing.append(event.get("doing"))
            if doing[-1] == execute.WAITING:
                holder.kill()
                holder.wait()

        assert run_to_completion(execute.execute([made, figure_of(made)], tmp_path), watch) == {}
    assert execute.WAITING in doing
    assert figure_of(made).done(tmp_path)


def test_a_failure_is_forgotten_where_another_driver_has_done_it_since(tmp_path):
    @dataclass(frozen=True)
    class Overtaken(Note):
        def perform(self, folder):
            yield {"stage": "noting", "done": 0, "total": 1}
            (folder / self.key).write_text("by another driver, after this one failed")
            raise PotstillError("no memory; free some.")

    assert done([Overtaken("a")], tmp_path)[0] == {}
    assert task.why_failed(tmp_path, "a") is None


def real_tasks():
    """Two experts, a set, and a figure: what depends on what."""
    made = followed(checkpoint_seconds=0.0)
    return [*made.experts, made, figure_of(made)]


def results_of(tasks, folder):
    """What the tasks left, without the seconds they took."""
    *_, made, figure = tasks
    images = task.load(task.set_folder(folder, made.key)).images
    return images, task.files.read_json(task.figure_path(folder, figure.key))["accuracy"]


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serial")
    tasks = real_tasks()
    assert done(tasks, folder)[0] == {}
    return results_of(tasks, folder)


def test_processes_give_what_one_gives_bit_for_bit_though_each_is_killed_once(tmp_path, serial, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))  # nothing is taken from the serial one
    tasks = real_tasks()
    killed = [Killed(one, at) for one, at in zip(tasks, (1, 2, 1, 0), strict=True)]
    failures, _ = done(killed, tmp_path, Processes(2))
    assert failures == {}
    assert len(list(tmp_path.glob("killed-*"))) == 4
    images, accuracy = results_of(tasks, tmp_path)
    assert images.equal(serial[0])
    assert accuracy == serial[1]


def test_two_drivers_on_one_store_train_each_expert_once(tmp_path, serial):
    tasks, failures = real_tasks(), []
    trained = []

    def drive():
        found, events = done(tasks, tmp_path)
        failures.append(found)
        trained.extend(event["epoch"] for event in events if "epoch" in event)

    drivers = [threading.Thread(target=drive) for _ in range(2)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    assert failures == [{}, {}]
    assert len(trained) == 2 * 4, "two experts of four epochs"
    assert results_of(tasks, tmp_path)[0].equal(serial[0])


def test_a_driver_that_is_killed_loses_nothing(tmp_path, serial):
    code = (
        "import os, signal, sys; from pathlib import Path; from tests.studies.test_execute import *\n"
        "def watch(event):\n"
        "    if event.get('epoch') == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"run_to_completion(execute.execute(real_tasks(), Path({str(tmp_path)!r})), watch)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == -signal.SIGKILL
    tasks = real_tasks()
    assert done(tasks, tmp_path)[0] == {}
    assert results_of(tasks, tmp_path)[0].equal(serial[0])


# --- Ray -----------------------------------------------------------------------------------------------------------


def test_a_worker_of_ray_is_prepared_once(tmp_path, monkeypatch):
    prepared = []
    monkeypatch.setattr(execute.engine, "keep_freed_memory", lambda: prepared.append("memory"))
    monkeypatch.setattr(execute, "find_compiler_cache", lambda: prepared.append("compiler"))
    execute._prepare_process.cache_clear()
    threads = torch.get_num_threads()
    assert [execute._ray_task(Note(name), tmp_path, threads) for name in "ab"] == [None, None]
    assert prepared == ["memory", "compiler"]


def test_a_cluster_that_is_not_there_is_told():
    pytest.importorskip("ray", reason="needs the package ray")
    with pytest.raises(PotstillError, match="no cluster answers there"):
        execute.Ray("127.0.0.1:1")


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one thread each, on this machine, whose workers find these tests."""
    ray = pytest.importorskip("ray", reason="needs the package ray")
    from ray.cluster_utils import Cluster

    told = {"PYTHONPATH": os.pathsep.join(sys.path), "RAY_worker_niceness": "0"}  # or other tests starve them
    os.environ |= told
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    started.add_node(num_cpus=1)
    yield started
    ray.shutdown()
    started.shutdown()
    for name in told:
        del os.environ[name]


def test_a_cluster_of_two_nodes_gives_what_one_process_gives_though_each_is_killed_once(
    cluster, tmp_path, serial, monkeypatch
):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    tasks = real_tasks()
    killed = [Killed(one, at) for one, at in zip(tasks, (1, 2, 1, 0), strict=True)]
    failures, _ = done(killed, tmp_path, execute.Ray(cluster.address))
    assert failures == {}
    assert len(list(tmp_path.glob("killed-*"))) == 4
    images, accuracy = results_of(tasks, tmp_path)
    assert images.equal(serial[0])
    assert accuracy == serial[1]


def test_failures_on_a_cluster_stop_nothing_else(cluster, tmp_path):
    failures, _ = done(CHAIN, tmp_path, execute.Ray(cluster.address))
    assert set(failures) == {"d", "e", "f"}


def test_without_the_package_the_remedy_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PotstillError, match=r"pip install 'potstill\[ray\]'"):
        execute.Ray()
