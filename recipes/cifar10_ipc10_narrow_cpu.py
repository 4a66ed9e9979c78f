"""CIFAR-10 at ten images per class with a narrow network (width 32), on two CPU cores.

    python recipes/cifar10_ipc10_narrow_cpu.py --data data/cifar10

Should come out clearly above as many random images, with hard or soft labels.
"""

from dataclasses import replace

from common import cook

from potstill.config import PRESETS, EvaluationConfig, ExpertConfig, NetworkConfig, WindowConfig

base = PRESETS["cifar10-ipc10"]
CONFIG = replace(
    base,
    dataset="data/cifar10",
    network=NetworkConfig(width=32, depth=3),
    expert=ExpertConfig(count=4, epochs=10, batch_size=128, step_size=0.02),
    window=WindowConfig(0, 8),
    distil=replace(base.distil, iterations=250, inner_steps=20, step_size=0.03, evaluations=5),
    evaluation=EvaluationConfig(epochs=301, full_epochs=10, full_seeds=2),
)

if __name__ == "__main__":
    cook("cifar10-ipc10-narrow-cpu", CONFIG, __doc__ or "")
