"""CIFAR-10 at five hundred images per class (DATM, table 1).

    python recipes/cifar10_ipc500.py --data data/cifar10      # a folder with train.npz and test.npz, or Parquet

Aim: 83.5 % (published), in pieces.
Spent: 20 experts of 61 epochs instead of 100 of 100; 2,000 iterations instead of 10,000.

Needs a CUDA GPU to be done in that time, and has not been run on one yet: this is the plan, and records/ will hold
what it gave.  On a machine whose commands are cut at ten minutes, add --minutes 9.5 and give it again until it ends.
"""

from common import cell, cook

CONFIG = cell("cifar10-ipc500", experts=20, epochs=61, iterations=2000)

if __name__ == "__main__":
    cook("cifar10-ipc500", CONFIG, __doc__ or "")
