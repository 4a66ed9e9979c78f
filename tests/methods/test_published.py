"""The table of published accuracies."""

import pytest

from potstill.methods import METHODS, published
from potstill.methods.published import SOURCES


def test_every_accuracy_is_a_fraction_with_a_source():
    for method in published.methods():
        cells = published.cells(method)
        assert cells, method
        for found in cells.values():
            assert 0 < found.accuracy < 1
            assert found.source in SOURCES.values()


def test_a_cell_is_found_by_method_dataset_and_size():
    assert published.accuracy("datm", "cifar10", 10).accuracy == pytest.approx(0.668)
    assert published.accuracy("full", "cifar100", 0).accuracy == pytest.approx(0.562)
    assert published.accuracy("datm", "digits", 1) is None
    assert published.accuracy("nothing", "cifar10", 1) is None


def test_cells_that_were_published_with_settings_are_known_by_their_accuracy():
    for name, method in METHODS.items():
        known = published.cells(name)
        assert not known or set(method.published) <= set(known)


def test_more_images_are_worth_more():
    for method in published.methods():
        for dataset in ("cifar10", "cifar100", "tiny-imagenet"):
            row = [found.accuracy for (name, _), found in sorted(published.cells(method).items()) if name == dataset]
            assert row == sorted(row), (method, dataset)
