"""Files are whole or absent, and say what they are."""

import errno
import os

import pytest
import torch

from potstill import files
from potstill.data.distilled import load
from potstill.errors import PotstillError


def test_round_trip(tmp_path):
    tensors = {"a": torch.randn(3, 2), "b": torch.arange(4)}
    files.save(tmp_path / "x.safetensors", "thing", tensors, {"n": [1, 2]})
    found, header = files.load(tmp_path / "x.safetensors", "thing")
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert (header["n"], header["version"]) == ([1, 2], files.VERSION)


def test_truncated_foreign_or_of_another_kind(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    with pytest.raises(PotstillError, match="there is no such file"):
        load(path)
    files.save(path, "thing", {"a": torch.zeros(100)}, {})
    with pytest.raises(PotstillError, match="holds a potstill thing; expected a distilled set"):
        load(path)
    whole = path.read_bytes()
    for part in (whole[:4], whole[: len(whole) // 2], b"", b"PK\x03\x04" + whole):
        path.write_bytes(part)
        with pytest.raises(PotstillError, match="not a readable safetensors file"):
            load(path)
    save_file({"a": torch.zeros(3)}, path)
    with pytest.raises(PotstillError, match="not one of potstill's"):
        load(path)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_a_full_disk_leaves_the_old_file_and_no_half_one(tmp_path, monkeypatch, code):
    path = tmp_path / "x.json"
    files.write_json(path, {"old": 1})

    def full(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PotstillError, match="no room for .* nothing was half-written. Free some space"):
        files.write_json(path, {"new": 2})
    assert files.read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_other_errors_of_the_system_are_not_dressed_up(tmp_path, monkeypatch):
    def broken(_):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="broken"):
        files.write_json(tmp_path / "x.json", 1)


def test_damaged_json_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(PotstillError, match=r"config.json: not valid JSON"):
        files.read_json(tmp_path / "config.json")


def test_fingerprints_tell_values_apart():
    x = torch.arange(6)
    values = [x, x.view(2, 3), x.float(), x + 1, [1], {"a": 1}, {"a": 2}]
    assert len({files.fingerprint(value) for value in values}) == len(values)
    assert files.fingerprint({"a": 1, "b": 2}) == files.fingerprint({"b": 2, "a": 1})


def test_differences_name_nested_fields():
    found = files.differences({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "d": 3, "e": 5})
    assert found == ["a.c: 2, not 4", "e: None, not 5"]


def test_nothing_reads_a_pickle():
    from pathlib import Path

    import potstill

    for path in Path(potstill.__file__).parent.rglob("*.py"):
        text = path.read_text()
        assert "torch.load" not in text, path
        assert "import pickle" not in text, path
        assert "allow_pickle=True" not in text, path
