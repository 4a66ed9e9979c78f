"""How many cases are tried, and what they gave; `make fuzz` tries many, and writes a record."""

import collections
import contextlib
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from potstill import files
from potstill.errors import PotstillError
from potstill.machine import commit, environment
from tests.fuzz import cases

FOUND: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
BEGAN = time.monotonic()


@contextlib.contextmanager
def _outcome(name):
    """Counts whether a case was taken or refused; anything but our own error goes on up."""
    said = None
    try:
        yield
    except PotstillError as error:
        said = str(error)
    assert said is None or (len(said) > 20 and "\n" not in said), "one sentence"
    FOUND[name]["taken" if said is None else "refused"] += 1


@pytest.fixture
def outcome(request):
    """outcome(): a context in which only PotstillError may be raised."""
    return lambda: _outcome(request.node.name)


def pytest_sessionfinish(session):
    path = os.environ.get("POTSTILL_FUZZ_RECORD")
    if path and FOUND:
        import torch

        record = {
            "cases": sum(sum(counts.values()) for counts in FOUND.values()),
            "tests": {name: dict(counts) for name, counts in sorted(FOUND.items())},
            "failed": session.testsfailed, "seconds": time.monotonic() - BEGAN, "commit": commit(),
            "environment": environment(torch.device("cpu")),
        }  # fmt: skip
        files.write_json(Path(path), record)


settings.register_profile("potstill", deadline=None, database=None, suppress_health_check=list(HealthCheck))
settings.load_profile("potstill")
assert cases  # imported for its settings
