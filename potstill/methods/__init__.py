"""The methods, each a value in one literal dict, by the name they have on the command line.

Called, ``potstill.methods()``, this package gives them as a table.
"""

import sys
from types import ModuleType

from potstill.methods.at_bptt import AT_BPTT
from potstill.methods.at_bptt_plus import AT_BPTT_PLUS
from potstill.methods.bptt import RAT_BPTT
from potstill.methods.cafe import CAFE
from potstill.methods.catalogue import Catalogue, catalogue
from potstill.methods.coverage import HERDING, K_CENTER, K_MEDOIDS, MODERATE
from potstill.methods.distribution import DM
from potstill.methods.frepo import FREPO
from potstill.methods.glister import GLISTER
from potstill.methods.gradient import DC, DSA
from potstill.methods.idm import IDM
from potstill.methods.kip import KIP
from potstill.methods.method import Method
from potstill.methods.ncfm import NCFM
from potstill.methods.pruning import CCS, D2_PRUNING, EL2N, FORGETTING, GRAND, WINDOW
from potstill.methods.rcig import RCIG
from potstill.methods.selection import RANDOM
from potstill.methods.trajectory_family import DATM, FTD, MCT, MTT, PAD, SELMATCH, TESLA

METHODS: dict[str, Method] = {
    "datm": DATM,
    "mtt": MTT,
    "tesla": TESLA,
    "ftd": FTD,
    "pad": PAD,
    "mct": MCT,
    "selmatch": SELMATCH,
    "dc": DC,
    "dsa": DSA,
    "dm": DM,
    "cafe": CAFE,
    "idm": IDM,
    "ncfm": NCFM,
    "kip": KIP,
    "frepo": FREPO,
    "rcig": RCIG,
    "rat-bptt": RAT_BPTT,
    "at-bptt": AT_BPTT,
    "at-bptt-plus": AT_BPTT_PLUS,
    "random": RANDOM,
    "herding": HERDING,
    "k-center": K_CENTER,
    "k-means": K_MEDOIDS,
    "moderate": MODERATE,
    "forgetting": FORGETTING,
    "el2n": EL2N,
    "grand": GRAND,
    "glister": GLISTER,
    "ccs": CCS,
    "d2": D2_PRUNING,
    "window": WINDOW,
}


def methods() -> Catalogue:
    """All methods with their family, what they need, the labels they give, and the paper; a row a method.

    Example:
        >>> table = potstill.methods()
        >>> [row["name"] for row in table if row["family"] == "kernel"]
        ['kip', 'frepo', 'rcig']
    """
    return catalogue(METHODS)


class _Callable(ModuleType):
    """This package, which ``potstill.methods`` is, as the function of the same name."""

    def __call__(self) -> Catalogue:
        return methods()


sys.modules[__name__].__class__ = _Callable
