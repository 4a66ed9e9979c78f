"""Carrying tasks out: one after another, in processes of this machine, or on a Ray cluster.

The order follows from what each task needs.  Results go into the store, never through the driver: so a driver that is
killed loses nothing, a worker that is killed loses what it did since its last checkpoint, and two drivers on one store
do nothing twice: what one of them does, the other puts off, and takes something else meanwhile.
"""

import concurrent.futures
import functools
import heapq
import logging
import multiprocessing
import multiprocessing.connection
import os
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Protocol

import torch

from potstill.adjoint import engine
from potstill.errors import PotstillError
from potstill.evaluation.evaluator import Event
from potstill.process import find_compiler_cache
from potstill.runs.api import run_to_completion
from potstill.studies.task import HELD, Task, forget, note_failure, perform

RAY_DEATHS = ("WorkerCrashedError", "NodeDiedError", "OutOfMemoryError", "LocalRayletDiedError")
RETRIES = 3  # of a task whose worker was killed
KNOCK_SECONDS = 10.0
POLL_SECONDS = 1.0  # between two events while nothing ends, and before a task is tried again that another process held
WAITING = "waiting for another process, which does what is left"
logger = logging.getLogger(__name__)
Failures = dict[str, str]
"""Why, by the task's key."""


class Executor(Protocol):
    """Where tasks are carried out; :mod:`concurrent.futures` and Ray both fit."""

    threads: int
    """Of each worker."""
    neighbours: int
    """Workers that share a machine, where it has the most."""

    def submit(self, task: Task, folder: Path) -> "Future[str | None]":
        """Begin a task; its result is why it failed, or None."""

    def capacity(self) -> int:
        """How many tasks can run at once now."""

    def restart(self) -> bool:
        """Make it usable again after a worker was killed; whether all that runs is lost with it."""

    def close(self) -> None:
        """Let go of the workers."""


def threads_of(executor: Executor | None) -> int:
    """How many threads a task has."""
    return torch.get_num_threads() if executor is None else executor.threads


def neighbours_of(executor: Executor | None) -> int:
    """How many tasks share a machine."""
    return 1 if executor is None else executor.neighbours


def execute(
    tasks: Sequence[Task], folder: Path, executor: Executor | None = None, stage: str = "comparing"
) -> Generator[Event, None, Failures]:  # fmt: skip
    """Do all tasks that are not done, each after those it needs; what fails is returned, and stops nothing else.

    Args:
        tasks: all of a comparison, in the order in which they should be tried.
        folder: of the store, where it is left why a task failed.
        executor: where; None: here, one after another.
        stage: what its events call this.

    Yields:
        {"stage", "done", "total", "doing", "left"}: tasks that are done, of all; what is being done; and seconds that
        are left, once a task has ended.
    """
    unique = {task.key: task for task in tasks}
    if executor is None:
        failures = yield from _serially([*unique.values()], folder, stage)
    else:
        forget()
        failures = yield from _at_once([*unique.values()], folder, executor, stage)
    failures = {key: why for key, why in failures.items() if not unique[key].done(folder)}  # by another driver since
    for key, why in failures.items():
        note_failure(folder, unique[key], why)
    return failures


def _serially(tasks: Sequence[Task], folder: Path, stage: str) -> Generator[Event, None, Failures]:
    schedule, pace = _Schedule(tasks, folder), _Pace()
    while schedule.ready:
        event = {"stage": stage, "done": 100 * schedule.ended, "total": 100 * schedule.total}
        task = schedule.take()
        yield {**event, "doing": WAITING if task is None else task.label, "left": pace.left(schedule.waiting, 1)}
        if task is None:
            time.sleep(POLL_SECONDS)
            continue
        pace.begin(task)
        inside = perform(task, folder)
        while True:
            try:
                found = next(inside)
            except StopIteration as end:
                pace.end(task, counts=end.value is None)
                schedule.end(task, end.value)
                break
            done = event["done"] + round(100 * found["done"] / max(found["total"], 1))
            left = pace.left(schedule.waiting, 1)
            yield {**_telling(found), **event, "done": done, "doing": task.label, "left": left}
    yield {"stage": stage, "done": 100 * schedule.total, "total": 100 * schedule.total}
    return schedule.failures


def _telling(event: Event) -> Event:
    """What is worth showing of a task's own event."""
    return {name: event[name] for name in ("epoch", "loss", "validation") if name in event}


class _Pace:
    """How long is left, by what tasks of each kind took; those of which none has ended yet count as the mean of all."""

    def __init__(self) -> None:
        self._ended: Counter[str] = Counter()  # tasks by kind, and below the seconds that they took together
        self._seconds: dict[str, float] = {}
        self._begun: dict[str, tuple[str, float]] = {}  # kind and moment by key, of those that run

    def begin(self, task: Task) -> None:
        """A task begins."""
        self._begun[task.key] = (task.kind, time.monotonic())

    def end(self, task: Task, counts: bool) -> None:
        """A task is over; how long it took counts if it was done."""
        kind, began = self._begun.pop(task.key)
        if counts:
            self._ended[kind] += 1
            self._seconds[kind] = self._seconds.get(kind, 0.0) + time.monotonic() - began

    def left(self, waiting: Mapping[str, int], at_once: int) -> float | None:
        """Seconds until all are done, of so many of each kind that are not, of which some run; None: not known yet."""
        if not self._ended:
            return None
        mean = {kind: self._seconds[kind] / count for kind, count in self._ended.items()}
        other, now = sum(self._seconds.values()) / self._ended.total(), time.monotonic()
        whole = sum(count * mean.get(kind, other) for kind, count in waiting.items())
        spent = sum(min(now - began, mean.get(kind, other)) for kind, began in self._begun.values())
        return (whole - spent) / max(at_once, 1)


class _Schedule:
    """Which task is next, as others end; each step costs no more than the tasks it concerns."""

    def __init__(self, tasks: Sequence[Task], folder: Path) -> None:
        """All tasks; those that are done already are over, and what is needed but not among them is there."""
        self.failures: Failures = {}
        self.over = {task.key for task in tasks if task.done(folder)}
        self.total = len(tasks)
        self._tasks = tasks
        self._number = {task.key: number for number, task in enumerate(tasks)}
        left = [task for task in tasks if task.key not in self.over]
        self.waiting = Counter(task.kind for task in left)  # those that run among them
        waited_for = {task.key for task in left}
        self._unmet = {task.key: len(waited_for.intersection(task.needs)) for task in left}
        self._following: dict[str, list[Task]] = {}
        for task in left:
            for key in waited_for.intersection(task.needs):
                self._following.setdefault(key, []).append(task)
        self.ready: list[tuple[float, int]] = []  # a heap: not before this moment, number of the task
        for task in left:
            if not self._unmet[task.key]:
                self._add(task)

    @property
    def ended(self) -> int:
        """Tasks that are done or have failed."""
        return len(self.over) + len(self.failures)

    def _add(self, task: Task, moment: float = 0.0) -> None:
        heapq.heappush(self.ready, (moment, self._number[task.key]))

    def take(self) -> Task | None:
        """The first that can begin, those last that another process held; None where it is too early to ask again."""
        if not self.ready or self.ready[0][0] > time.monotonic():
            return None
        return self._tasks[heapq.heappop(self.ready)[1]]

    def end(self, task: Task, why: str | None) -> None:
        """What comes of a task's end, by what :func:`perform` returned."""
        if why is None:
            self._finish(task)
        elif why == HELD:
            self._add(task, time.monotonic() + POLL_SECONDS)
        else:
            self.fail(task, why)

    def _finish(self, task: Task) -> None:
        """What waited for a task may begin."""
        self.over.add(task.key)
        self.waiting[task.kind] -= 1
        for one in self._following.get(task.key, []):
            self._unmet[one.key] -= 1
            if not self._unmet[one.key] and one.key not in self.failures:
                self._add(one)

    def fail(self, task: Task, why: str) -> None:
        """What needs a task that failed fails with it."""
        failed = [task]
        while failed:
            one = failed.pop()
            if one.key not in self.failures:
                self.failures[one.key] = why
                self.waiting[one.kind] -= 1
                failed += self._following.get(one.key, [])


def _at_once(
    tasks: Sequence[Task], folder: Path, executor: Executor, stage: str
) -> Generator[Event, None, Failures]:  # fmt: skip
    """As many tasks at once as the executor takes, those whose needs are met first.

    Where a worker was killed and took others along, those that ran are tried again one by one, to learn which did it.
    """
    schedule, pace, deaths = _Schedule(tasks, folder), _Pace(), dict[str, int]()
    suspects: deque[Task] = deque()
    running: dict[Future[str | None], Task] = {}
    while schedule.ready or suspects or running:
        take, most = (suspects.popleft, 1) if suspects else (schedule.take, executor.capacity())
        while len(running) < most and (task := take()) is not None:
            running[_begun(executor, task, folder)] = task
            pace.begin(task)
        names = "; ".join(task.label for task in running.values())
        doing = f"{len(running)} at once: {names}" if running else WAITING
        left = pace.left(schedule.waiting, most)
        yield {"stage": stage, "done": schedule.ended, "total": schedule.total, "doing": doing, "left": left}
        if not running:
            time.sleep(POLL_SECONDS)
        ended, _ = concurrent.futures.wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
        pairs = [(future, running.pop(future)) for future in ended]
        killed = [task for future, task in pairs if not _collect(future, task, schedule)]
        for _, task in pairs:
            pace.end(task, counts=task.key in schedule.over)
        if killed:
            lost = [running.pop(future) for future in list(running)] if executor.restart() else []
            for task in lost:
                pace.end(task, counts=False)
            certain = len(killed) + len(lost) == 1  # nobody else can have done it
            suspects.extend(task for task in killed + lost if not _given_up(task, certain, deaths, schedule))
    yield {"stage": stage, "done": len(tasks), "total": len(tasks)}
    return schedule.failures


def _begun(executor: Executor, task: Task, folder: Path) -> "Future[str | None]":
    """A task's future; one that tells of a death where the executor has just lost a worker."""
    try:
        return executor.submit(task, folder)
    except BrokenProcessPool as error:
        future: Future[str | None] = Future()
        future.set_exception(error)
        return future


def _collect(future: "Future[str | None]", task: Task, schedule: _Schedule) -> bool:
    """Note how a task ended; False where its worker was killed."""
    try:
        why = future.result()
    except Exception as error:
        if _is_death(error):
            return False
        lines = str(error).splitlines() or [type(error).__name__]
        why = lines[-1]  # it could not even begin: what it needs is not installed there
    schedule.end(task, why)
    return True


def _is_death(error: Exception) -> bool:
    """Whether an error tells of a worker that is gone, rather than of the task."""
    return isinstance(error, BrokenProcessPool) or type(error).__name__ in RAY_DEATHS


def _given_up(task: Task, certain: bool, deaths: dict[str, int], schedule: _Schedule) -> bool:
    """Whether a task has taken its worker along too often: for want of memory, most likely."""
    deaths[task.key] = deaths.get(task.key, 0) + certain
    if deaths[task.key] <= RETRIES:
        return False
    schedule.fail(task, f"{task.label}: its worker was killed {RETRIES + 1} times; there may be too little memory")
    return True


# --- on this machine -----------------------------------------------------------------------------------------------


class Processes:
    """Worker processes of this machine, which share its threads and its GPUs evenly."""

    def __init__(self, workers: int) -> None:
        """Begin them; they import PyTorch afresh, as threads and devices of a forked process cannot be relied on."""
        self.workers = self.neighbours = workers
        self.threads = max(1, torch.get_num_threads() // workers)
        self._running: set[Future[str | None]] = set()
        self._pool = self._started()

    def _started(self) -> concurrent.futures.ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        numbers = context.Queue()
        for number in range(self.workers):
            numbers.put(number)
        return concurrent.futures.ProcessPoolExecutor(self.workers, context, _prepare_worker, (self.threads, numbers))

    def submit(self, task: Task, folder: Path) -> "Future[str | None]":
        """Begin a task in the next free process."""
        future = self._pool.submit(run_task, task, folder)
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        return future

    def capacity(self) -> int:
        """One task a process."""
        return self.workers

    def restart(self) -> bool:
        """New processes in place of all: a pool that lost one takes no more work."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = self._started()
        return True

    def close(self) -> None:
        """End the processes; what they do now is left at its last checkpoint.

        Where none does anything they end in order: killed ones would leave semaphores of libraries behind.
        """
        if any(not future.done() for future in self._running.copy()):
            for process in list((getattr(self._pool, "_processes", None) or {}).values()):
                process.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)


def executor_for(workers: int, ray: str | None, device: str) -> Executor | None:
    """Where tasks are carried out, as it is asked for: None for here, one after another."""
    if ray is not None:
        return Ray(ray, gpus=0.0 if device == "cpu" else gpu_share(workers))
    return Processes(workers) if workers > 1 else None


def gpu_share(at_once: int) -> float:
    """Fraction of a GPU for each of so many tasks at once; 0 where this machine has none."""
    return min(1.0, torch.cuda.device_count() / at_once)


def _prepare_worker(threads: int, numbers: Any) -> None:
    """Give a worker its share of the machine: threads, and one of the GPUs."""
    number = numbers.get()
    threading.Thread(target=_end_with_driver, daemon=True).start()
    _prepare_process()
    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())


@functools.cache
def _prepare_process() -> None:
    """Once in a process that computes: what makes it fast."""
    engine.keep_freed_memory()
    find_compiler_cache()


def _end_with_driver() -> None:
    """End this process when the driver has ended, however: what it does is left at its last checkpoint."""
    driver = multiprocessing.parent_process()
    assert driver is not None
    multiprocessing.connection.wait([driver.sentinel])
    os._exit(1)


def run_task(task: Task, folder: Path) -> str | None:
    """A task to its end, in the process that calls; why it failed, or None."""
    why: str | None = run_to_completion(perform(task, folder))
    return why


# --- on a Ray cluster ----------------------------------------------------------------------------------------------


class Ray:
    """The workers of a Ray cluster; "local" starts one on this machine, for as long as it is needed."""

    def __init__(self, address: str = "local", cpus: int = 1, gpus: float = 0.0) -> None:
        """Connect.

        Args:
            address: "local", "auto" for the cluster that this machine belongs to, HOST:PORT, or ray://HOST:PORT.
            cpus: threads of a task.
            gpus: fraction of a GPU that a task takes.

        Raises:
            PotstillError: Ray is not installed, or there is no cluster at the address.
        """
        self._ray = _import_ray()
        self._started = not self._ray.is_initialized()
        if self._started:
            try:
                _knock(address)
                self._ray.init(address=address, log_to_driver=False, logging_level="error", include_dashboard=False)
            except (OSError, ValueError) as error:
                raise PotstillError(
                    f"--ray {address}: no cluster answers there ({error}); start one by `ray start --head`, or take "
                    "--ray local."
                ) from error
        self.threads = max(1, cpus)
        self._needs = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": 0}  # tasks of killed workers are sent anew
        most = max((node["Resources"].get("CPU", 0) for node in self._ray.nodes() if node["Alive"]), default=1)
        self.neighbours = max(1, int(most // self.threads))
        self._remote: Any = self._ray.remote(_ray_task).options(**self._needs)

    def submit(self, task: Task, folder: Path) -> "Future[str | None]":
        """Begin a task on any node that sees the folder; Ray tries it elsewhere if its worker dies."""
        future: Future[str | None] = self._remote.remote(task, folder.resolve(), self._needs["num_cpus"]).future()
        return future

    def capacity(self) -> int:
        """As many tasks as the cluster's threads and GPUs take, and some that wait there."""
        found = self._ray.cluster_resources()
        at_once = int(found.get("CPU", 1) // self._needs["num_cpus"])
        if self._needs["num_gpus"]:
            at_once = min(at_once, int(found.get("GPU", 0) / self._needs["num_gpus"]))
        return 2 * max(at_once, 1)

    def restart(self) -> bool:
        """A cluster outlives its workers, and the tasks of others go on."""
        return False

    def close(self) -> None:
        """Leave the cluster; end it if it was started here."""
        if self._started:
            self._ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError where nobody listens at HOST:PORT, which Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS).close()


def _ray_task(task: Task, folder: Path, cpus: int) -> str | None:
    _prepare_process()
    torch.set_num_threads(max(1, cpus))
    return run_task(task, folder)


def _import_ray() -> Any:
    try:
        os.environ.setdefault("RAY_DISABLE_IMPORT_WARNING", "1")
        import ray
    except ImportError as error:
        raise PotstillError("--ray: the package ray is missing; pip install 'potstill[ray]'.") from error
    return ray
