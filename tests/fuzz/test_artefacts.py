"""Every file that a run leaves, damaged: what was written, or one sentence; never another result."""

import functools
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from potstill.data import distilled
from potstill.report import run_page
from potstill.runs import record, run, stage, state
from potstill.runs.api import run_to_completion
from potstill.training import trajectories
from tests.conftest import tiny
from tests.fuzz.cases import cases, damaged

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    job = run.open_run(tiny(), folder)
    run_to_completion(run.train_experts(job))
    run_to_completion(record.evaluate(job, run_to_completion(stage.distil(job))))
    return folder


def same(found, expected):
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def damage(folder, name, data):
    """The run with one of its files damaged; None where the damage changed nothing."""
    path, whole = folder / name, (folder / name).read_bytes()
    content = data.draw(damaged(whole))
    path.write_bytes(content)
    return functools.partial(path.write_bytes, whole)


def check(finished, name, data, outcome, read, equal):
    """What is read from the damaged file is what the whole one holds, or it is refused."""
    expected = read()
    mend = damage(finished, name, data)
    try:
        with outcome():
            assert equal(read(), expected), "another result"
    finally:
        mend()


@cases(0.06)
@given(data=st.data())
def test_sets(finished, outcome, data):
    check(
        finished,
        distilled.FILE,
        data,
        outcome,
        lambda: distilled.load(finished),
        lambda a, b: same((a.images, a.targets, a.labels), (b.images, b.targets, b.labels)) and a.recipe == b.recipe,
    )


@cases(0.06)
@given(data=st.data())
def test_experts(finished, outcome, data):
    store = trajectories.open_store(finished / "experts")

    def read():
        opened = trajectories.open_store(finished / "experts")
        return [*opened.segment(0, 0, 1), *opened.last(0), torch.tensor(len(opened))]

    assert len(store) == 2
    check(finished, "experts/expert-00.safetensors", data, outcome, read, same)


@cases(0.06)
@given(data=st.data())
def test_checkpoints(finished, outcome, data):
    check(
        finished,
        stage.CHECKPOINT,
        data,
        outcome,
        lambda: state.load_state(finished / stage.CHECKPOINT, CPU),
        lambda a, b: same(a[0].variables.values(), b[0].variables.values()) and a[1] == b[1],
    )


@cases(0.03)
@given(data=st.data(), name=st.sampled_from(["config.json", "experts/manifest.json", "metrics.jsonl"]))
def test_texts(finished, outcome, data, name):
    """They carry no checksum: what matters is that damage is a sentence."""
    mend = damage(finished, name, data)
    before = (finished / "config.json").read_bytes()
    try:
        with outcome():
            job = run.open_run(tiny(), finished)
            assert len(trajectories.open_store(job.experts_folder)) == 2
            record.truncate_metrics(finished / record.METRICS, 6)
    finally:
        if name != "config.json":
            (finished / "config.json").write_bytes(before)
        mend()


@cases(0.002, 6)
@given(data=st.data(), name=st.sampled_from(
    ["results.json", "metrics.jsonl", "start.safetensors", "distilled.safetensors", "snapshots"]))  # fmt: skip
def test_pages(finished, outcome, data, name):
    chosen = sorted((finished / name).iterdir())[0].relative_to(finished) if name == "snapshots" else name
    mend = damage(finished, chosen, data)
    try:
        with outcome():
            run_page.write(finished)
    finally:
        mend()


@cases(0.01, 5)
@given(name=st.sampled_from(["config.json", "results.json", "checkpoint.safetensors", "experts/manifest.json"]))
def test_missing_files(finished, outcome, tmp_path_factory, name):
    folder = tmp_path_factory.mktemp("missing") / "run"
    shutil.copytree(finished, folder)
    (folder / name).unlink()
    with outcome():
        job = run.open_run(tiny(), folder)
        run_to_completion(record.evaluate(job, run_to_completion(stage.distil(job))))
        run_page.write(folder)
    shutil.rmtree(folder)
