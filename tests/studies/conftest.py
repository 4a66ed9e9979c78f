"""Small settings for studies, and what runs them."""

from tests.conftest import tiny


def given(**changes):
    datm = {"iterations": 2, "inner_steps": 2, "lr_images": 3000.0, **changes.pop("datm", {})}
    return tiny(snapshots=1, datm=datm, **changes)
