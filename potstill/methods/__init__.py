"""The methods, each a value in one literal dict, by the name they have on the command line."""

from potstill.methods.bptt import RAT_BPTT
from potstill.methods.distribution import DM
from potstill.methods.method import Method
from potstill.methods.selection import HERDING, RANDOM
from potstill.methods.trajectory_family import DATM, FTD, MTT, TESLA

METHODS: dict[str, Method] = {
    "datm": DATM,
    "mtt": MTT,
    "tesla": TESLA,
    "ftd": FTD,
    "dm": DM,
    "rat-bptt": RAT_BPTT,
    "random": RANDOM,
    "herding": HERDING,
}
