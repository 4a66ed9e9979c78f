"""The grammar of methods in one word: what parts a stage from the next, and a change from the next."""

import pytest

from potstill.runs.written import stages_of


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("dm", [("dm", [])]),
        ("dm:", [("dm", [])]),
        ("dm:iterations=1,,", [("dm", ["iterations=1"])]),
        ("datm+rat-bptt", [("datm", []), ("rat-bptt", [])]),
        ("datm:lr_images=1e+2+dm:rows=[1,(2,3)],flip=True", [
            ("datm", ["lr_images=1e+2"]), ("dm", ["rows=[1,(2,3)]", "flip=True"]),
        ]),
    ],
)  # fmt: skip
def test_stages_and_changes(text, stages):
    assert stages_of(text) == stages
