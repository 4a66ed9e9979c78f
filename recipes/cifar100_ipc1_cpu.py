"""CIFAR-100 at one image per class with the published network, on two CPU cores.

    python recipes/cifar100_ipc1_cpu.py --data data/cifar100      # a folder with train.npz and test.npz, or Parquet

What the paper spends 100 experts of 100 epochs and 10,000 iterations on, in less than an hour and a half. Few short
experts, whose epochs of batches of 128 at twice the published step size go as far as three and a half of the published
ones, are followed for nearly half of the iterations: half of the inner steps, each on half of the images, with a step
size that is larger at first, and five times the published rate of the images. Then the set is polished: the loss of
real images falls through the training of students (`--distil.polish`), which brought more than further matching at
CIFAR-10. The logits' rate is three times the published one, for an image is one of a hundred here, and its labels'
gradient that much smaller. Networks train with a step size chosen on validation images. The full-set control is cut to
one network of three epochs.

"""

from dataclasses import replace

from common import cook

from potstill.config import PRESETS, EvaluationConfig, ExpertConfig, WindowConfig

base = PRESETS["cifar100-ipc1"]
CONFIG = replace(
    base,
    dataset="data/cifar100",
    expert=ExpertConfig(count=6, epochs=3, batch_size=128, step_size=0.02),
    window=WindowConfig(0, stop=3, initial=2, expand=150),
    distil=replace(
        base.distil,
        iterations=900,
        inner_steps=20,
        batch_size=50,
        expert_epochs=1,
        step_size=0.03,
        lr_images=5000,
        lr_logits=30,
        cooldown=0.8,
        polish=500,
        polish_rates=0.4,
        horizon=400,
        evaluations=1,
        keep="last",
    ),
    evaluation=EvaluationConfig(step_size="chosen", full_epochs=3, full_seeds=1),
)

if __name__ == "__main__":
    cook("cifar100-ipc1-cpu", CONFIG, __doc__ or "")
