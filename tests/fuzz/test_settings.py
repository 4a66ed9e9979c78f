"""Every setting with any value: taken as one of its own type, or refused in one sentence, before any work."""

import contextlib
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.cli.arguments import parse
from potstill.cli.commands import COMMANDS
from potstill.errors import PotstillError
from potstill.methods import METHODS
from potstill.runs.settings import as_dict, check, configure, from_dict
from tests.fuzz.cases import cases

ODD = ["auto", "datm", "learned", "zca", 0, -1, 1.5, float("nan"), float("inf"), b"x", object]
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**40), 2**40), st.floats(), st.text(max_size=5),
              st.sampled_from(ODD)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.tuples(inner, inner),
                            st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=4,
)  # fmt: skip


def paths(plain, prefix=()):
    """The dotted names of all settings."""
    for name, value in plain.items():
        yield from paths(value, (*prefix, name)) if isinstance(value, dict) else [(*prefix, name)]


SETTINGS = {
    method: [
        path[1:] if path[0] == "stages" else path for path in paths(as_dict(configure(changes={"method": method})))
    ]
    for method in METHODS
}


def nested(path, value):
    for name in reversed(path):
        value = {name: value}
    return value


@cases(0.2)
@given(data=st.data(), method=st.sampled_from(sorted(METHODS)))
def test_in_python(outcome, data, method):
    path = data.draw(st.sampled_from(SETTINGS[method]))
    value = data.draw(values)
    changes = nested(path, value)
    with outcome():
        found = configure("digits", 1, changes={"method": method, **changes})
        check(found)
        plain = as_dict(found)
        assert "NaN" not in json.dumps(plain)
        assert "Infinity" not in json.dumps(plain)
        assert from_dict(json.loads(json.dumps(plain))) == found, "what is stored is what was asked for"


FLAGS = ["--ipc", "--seed", "--method", "--datm.iterations", "--datm.lr-images", "--evaluation.epochs", "--out",
         "--tiny", "--expert.count", "--preset", "--recipe", "--nonsense", "-x", "--help"]  # fmt: skip
words = st.one_of(
    st.sampled_from(FLAGS), st.sampled_from(["1", "-1", "nan", "datm", "dm", "cifar10-ipc1", "auto", "", "None"]),
    st.text(max_size=6),
)  # fmt: skip


@cases(0.02)
@given(name=st.sampled_from(sorted(COMMANDS)), arguments=st.lists(words, max_size=4))
def test_on_the_command_line(outcome, name, arguments):
    silent = io.StringIO()
    with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent), outcome():
        try:
            parse(name, arguments)
        except SystemExit as end:
            raise PotstillError("wrong usage, or help was asked for") from end


def test_a_value_of_another_type_is_named():
    with pytest.raises(PotstillError, match="ipc"):
        check(configure("digits", "many"))
