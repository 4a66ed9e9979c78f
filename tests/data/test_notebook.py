"""A set shows itself in a notebook."""

import base64
import io
import re
import sys
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from potstill.data.pictures import grid


def pictures(shown):
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', shown)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in found]


def test_images_by_class_with_what_their_labels_say(distilled):
    told = {
        "iteration": 7, "dataset": {"name": "pets"}, "config": {"stages": {"datm": {}, "rat-bptt": {}}},
        "chosen_with_accuracy": 0.512, "chosen_on": "validation",
    }  # fmt: skip
    given = replace(distilled, classes=("cat & co", "dog", "eel"), provenance=told)
    shown = given._repr_html_()
    assert repr(given) in shown
    assert "from pets, by datm then rat-bptt, iteration 7, 51.2% on validation images" in shown
    assert "<td>cat &amp; co</td>" in shown
    assert "cat & co" not in shown
    found = pictures(shown)
    assert len(found) == 3
    own = given.labels == 1
    expected = grid(given.pixels[own], torch.zeros(int(own.sum()), dtype=torch.long))
    assert np.array_equal(found[1], expected.permute(1, 2, 0).numpy().squeeze())
    share = given.soft_labels[own].mean(0)
    assert f"{given.classes[int(share.argmax())]} {share.max():.0%}".replace("&", "&amp;") in shown


def test_many_classes_and_images_are_cut_and_said(distilled):
    many = replace(distilled, images=distilled.images.repeat(4, 1, 1, 1), labels=torch.zeros(24, dtype=torch.long),
                   kind="hard", targets=None, classes=tuple(map(str, range(50))))  # fmt: skip
    shown = many._repr_html_()
    assert "and 14 more" in shown
    assert "<td>none</td>" in shown
    assert "and 30 more classes" in shown
    assert "0 100%" in shown


def test_where_pillow_is_missing_the_text_is_shown(distilled, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert distilled._repr_html_() is None
