"""CIFAR-100 at ten images per class (DATM, table 1).

    python recipes/cifar100_ipc10.py --data data/cifar100      # a folder with train.npz and test.npz, or Parquet

Aim: 47.2 % (published), in an hour of one GPU.
Spent: 20 experts of 51 epochs instead of 100 of 100; 3,000 iterations instead of 10,000, with rates that fall over
the last half.

Needs a CUDA GPU to be done in that time, and has not been run on one yet: this is the plan, and records/ will hold
what it gave.  On a machine whose commands are cut at ten minutes, add --minutes 9.5 and give it again until it ends.
"""

from common import cell, cook

CONFIG = cell("cifar100-ipc10", experts=20, epochs=51, iterations=3000, cooldown=0.5)

if __name__ == "__main__":
    cook("cifar100-ipc10", CONFIG, __doc__ or "")
