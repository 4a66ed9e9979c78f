"""What is timed: for each method its authors' script with its arguments, and our settings of the same shape.

Arguments are the published ones, but for sizes that keep an iteration short and for what an iteration does not depend
on.  In them {work} stands for the folder of a comparison.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from potstill.methods import METHODS
from potstill.runs.settings import Settings, configure

WIDTH, CLASSES, EPOCHS = 128, 10, 5  # published; of CIFAR-10; snapshots of the expert that both sides follow
NEVER = 1_000_000
DSA = "color_crop_cutout_flip_scale_rotate"


@dataclass(frozen=True)
class Case:
    """A method in one shape."""

    method: str
    shape: str
    repository: str
    script: str
    arguments: tuple[str, ...]
    ipc: int
    own: Mapping[str, Any]  # settings of ours
    each: int = 1  # steps of the images that are an iteration
    width_in: str = ""  # their module that says how wide networks are; none: it is the published width
    replaced: Mapping[str, Any] = field(default_factory=dict)  # functions of theirs that give constants
    own_module: bool = False  # a network answers .module by itself
    config: str = ""  # their configuration, where they read a file
    given: Mapping[str, Any] = field(default_factory=dict)  # what their configuration lacks
    augment: tuple[str, ...] | None = None  # ours, where it is not all of DSA
    changed: str = ""  # to run it here, beside what holds for all

    def width(self, asked: int) -> int:
        """Of the network, where so much is asked for."""
        return asked if self.width_in else WIDTH

    def constants(self, asked: int) -> dict[str, Any]:
        """Functions of theirs that give constants, at a width."""
        if self.width(asked) == WIDTH:
            return dict(self.replaced)
        size = (asked, 3, "relu", "instancenorm", "avgpooling")
        return {**self.replaced, f"{self.width_in}.get_default_convnet_setting": size}

    def settings(self, asked: int) -> Settings:
        """Ours: of the published cell where there is one, in float32; compiled where a published run would be."""
        published = ("cifar10", self.ipc) in METHODS[self.method].published
        changes: dict[str, Any] = {
            "method": self.method, self.method: dict(self.own), "network": {"width": self.width(asked), "depth": 3},
            "precision": "float32", "transform": "standardise", "expert": {"count": 1, "epochs": EPOCHS},
        }  # fmt: skip
        if self.augment is not None:
            changes["augment"] = self.augment
        return configure("cifar10", self.ipc, f"cifar10-ipc{self.ipc}" if published else None, changes)


_COMMON = ("--dataset", "CIFAR10", "--data_path", "{work}", "--num_eval", "0", "--Iteration", str(NEVER))
_MATCHED = (
    *_COMMON, "--buffer_path", "{work}/buffers", "--eval_it", str(NEVER), "--lr_img", "100", "--lr_lr", "1e-5",
    "--lr_teacher", "0.01", "--expert_epochs", "2", "--max_start_epoch", "3",
)  # fmt: skip
_OWN_MATCHED = {
    "lr_images": 100.0, "lr_step_size": 1e-5, "step_size": 0.01, "expert_epochs": 2, "start_epochs": (0, 3),
    "opening": None, "lr_logits": 0.0,
}  # fmt: skip
_OWN_SOFT = {**_OWN_MATCHED, "lr_logits": 2.0, "initial": "random", "threshold": None}
_BPTT = (
    "--dataset", "cifar10", "--root", "{work}", "--num_per_class", "1", "--batch_per_class", "1", "--train_y",
    "--num_train_eval", "0", "--batch_size", "500", "--epochs", str(NEVER), "--test_freq", str(NEVER), "--arch",
    "convnet", "--inner_optim", "Adam", "--inner_lr", "0.001", "--lr", "0.001", "--syn_strategy", "flip_rotate",
    "--real_strategy", "flip_rotate",
)  # fmt: skip
_OWN_BPTT = {
    "iterations": 10_000, "real_batch": 500, "lr_images": 1e-3, "lr_labels": 1e-3, "lr_step_size": 0.0,
}  # fmt: skip
_MODULE = "a network answers .module by itself: their code takes DataParallel for granted, which needs CUDA"


def _soft_matching(steps: int, more: str = "") -> str:
    """The configuration of DATM and PAD, one image a class."""
    return f"""
dataset: CIFAR10
device: [0]
ipc: 1
syn_steps: {steps}
expert_epochs: 2
lr_img: 100
lr_teacher: 0.01
lr_lr: 0.00001
lr_y: 2.0
buffer_path: {{work}}/buffers
data_path: {{work}}
Iteration: {NEVER}
batch_syn: 10
num_eval: 0
eval_it: {NEVER}
skip_first_eva: True
pix_init: real
min_start_epoch: 0
current_max_start_epoch: 2
max_start_epoch: 3
expansion_end_epoch: 1000
threshold: 1000000.0
zca: False
{more}"""


_NCFM = f"""
distibution_train: {{backend: gloo, init_method: 'env://', workers: 0}}
dataset: {{dataset: cifar10, nclass: 10, size: 32, data_dir: data, load_memory: true, batch_real: 256, nch: 3}}
network: {{net_type: convnet, norm_type: instance, depth: 3, width: 1.0}}
train:
  {{evaluation_epochs: 1, batch_size: 128, lr: 0.01, adamw_lr: 0.001, eval_optimizer: adamw, momentum: 0.9,
   weight_decay: 5e-4, seed: 0, model_num: 1}}
augmentation:
  {{mixup: cut, beta: 1.0, mix_p: 0.5, rrc: True, dsa: true, dsa_strategy: {DSA}, aug_type: color_crop_cutout}}
optimization: {{optimizer: adamw, lr_scale_adam: 0.1, lr_img: 0.01, mom_img: 0.5, lr_sampling_net: 1e-3}}
save_path: {{save_dir: results, pretrain_dir: pretrained}}
condense:
  {{num_premodel: 1, niter: {NEVER}, iter_calib: 1, calib_weight: 1, sampling_net: False, num_freqs: 1024,
   dis_metrics: NCFM, factor: 2, alpha_for_loss: 0.5, beta_for_loss: 0.5, decode_type: single}}
"""
CASES: dict[str, Case] = {
    "dc": Case(
        "dc", "1 image a class, 128 real ones of each class", "DatasetCondensation", "main.py",
        ("--method", "DC", *_COMMON, "--ipc", "1", "--batch_real", "128"), 1, {"real_batch": 128}, width_in="utils",
    ),
    "dc-trained": Case(
        "dc", "10 images a class, 32 real ones of each class, 5 epochs of the network in between",
        "DatasetCondensation", "main.py", ("--method", "DC", *_COMMON, "--ipc", "10", "--batch_real", "32"), 10,
        {"real_batch": 32, "network_steps": 10, "inner_epochs": 5}, width_in="utils",
        replaced={"utils.get_loops": (10, 5)}, changed="utils.get_loops gives 10 and 5 (published: 10 and 50)",
    ),
    "dsa": Case(
        "dsa", "10 images a class, 64 real ones of each class, fresh networks", "DatasetCondensation", "main.py",
        ("--method", "DSA", *_COMMON, "--ipc", "10", "--batch_real", "64", "--init", "real", "--dsa_strategy", DSA),
        10, {"real_batch": 64, "network_steps": 1, "inner_epochs": 1}, width_in="utils",
        replaced={"utils.get_loops": (1, 1)},
        changed="utils.get_loops gives 1 and 1 (published: 10 and 50); at 1 image a class its code stops in torch 2.13",
    ),
    "dm": Case(
        "dm", "10 images a class, 256 real ones of each class", "DatasetCondensation", "main_DM.py",
        (*_COMMON, "--ipc", "10", "--batch_real", "256"), 10, {"real_batch": 256}, width_in="utils",
    ),
    "mtt": Case(
        "mtt", "1 image a class, 10 inner steps", "mtt-distillation", "distill.py",
        (*_MATCHED, "--ipc", "1", "--syn_steps", "10"), 1, {**_OWN_MATCHED, "inner_steps": 10}, width_in="utils",
    ),
    "mtt-ten": Case(
        "mtt", "10 images a class, 2 inner steps of 100", "mtt-distillation", "distill.py",
        (*_MATCHED, "--ipc", "10", "--syn_steps", "2", "--batch_syn", "100"), 10, {**_OWN_MATCHED, "inner_steps": 2},
        width_in="utils",
    ),
    "tesla": Case(
        "tesla", "1 image a class, 10 inner steps", "tesla", "distill.py",
        (*_MATCHED, "--ipc", "1", "--syn_steps", "10"), 1, {**_OWN_MATCHED, "inner_steps": 10}, width_in="utils",
    ),
    "ftd": Case(
        "ftd", "1 image a class, 10 inner steps", "FTD-distillation", "distill/distill_FTD.py",
        (*_MATCHED, "--ipc", "1", "--syn_steps", "10", "--num_eval", "1", "--epoch_eval_train", "1"), 1,
        {**_OWN_MATCHED, "inner_steps": 10}, width_in="utils.utils_baseline",
        changed="evaluates one network for an epoch before the first iteration: without any its code stops",
    ),
    "datm": Case(
        "datm", "1 image a class, 10 inner steps", "DATM", "distill/DATM.py", ("--cfg", "{work}/config.yaml"), 1,
        {**_OWN_SOFT, "inner_steps": 10}, width_in="utils.utils_baseline", config=_soft_matching(10),
        changed="starts at any real images; no threshold, which untrained experts would not pass",
    ),
    "pad": Case(
        "pad", "1 image a class, 10 inner steps, half of the weights", "PAD", "distill/PAD.py",
        ("--cfg", "{work}/config.yaml"), 1, {**_OWN_SOFT, "inner_steps": 10, "mask_ratio": 0.5},
        width_in="utils.utils_baseline", config=_soft_matching(10, "loss_ratio: 0.5\n"),
        given={"loss_threshold_low": 0.5},
        changed="as datm; loss_threshold_low, which it reads and is nowhere set, is given",
    ),
    "ncfm": Case(
        "ncfm", "10 images a class of 2 × 2 pictures, 256 real ones of each class, 1024 frequencies", "NCFM",
        "condense/condense_script.py",
        ("--config_path", "{work}/config.yaml", "--gpu", "0", "--ipc", "10"), 10,
        {"real_batch": 256, "frequencies": 1024}, each=20, config=_NCFM,
        changed="gloo for nccl; its two threads that fetch images may run on during our turns",
    ),
    "idm": Case(
        "idm", "10 images a class of 2 × 2 pictures, 64 real ones of each class", "IDM", "IDM_cifar10.py",
        (*_COMMON, "--model", "ConvNet", "--ipc", "10", "--dsa_strategy", DSA, "--init", "real", "--lr_img", "0.2",
         "--net_train_real", "--eval_interval", str(NEVER), "--outer_loop", "1", "--mismatch_lambda", "0",
         "--net_decay", "--embed_last", "1000", "--syn_ce", "--ce_weight", "0.5", "--train_net_num", "1", "--aug",
         "--batch_real", "64"), 10, {"real_batch": 64}, each=10, width_in="dc_utils",
    ),
    "cafe": Case(
        "cafe", "10 images a class, 64 real ones of each class, 10 epochs of the network in between", "CAFE",
        "distill.py", (*_COMMON, "--ipc", "10", "--batch_real", "64", "--method", "DSA", "--dsa_strategy", DSA,
                       "--lambda_1", "0", "--lambda_2", "-1"), 10,
        {"real_batch": 64, "settled": 0.0, "moved": 1.0}, width_in="utils",
        changed="λ₁ = 0 and λ₂ = −1 (ours 1): one network goes on, trained for the ten epochs that are its code's "
        "least and our most",
    ),
    "rat-bptt": Case(
        "rat-bptt", "1 image a class, window of 10 steps after 10, 500 real images", "Simple_Dataset_Distillation",
        "main.py",
        (*_BPTT, "--ddtype", "curriculum", "--cctype", "0", "--window", "10", "--totwindow", "20"), 1,
        {**_OWN_BPTT, "unroll": 20, "window": 10, "place": "end"}, own_module=True, augment=("flip", "rotate"),
        changed=_MODULE,
    ),
    "at-bptt": Case(
        "at-bptt", "1 image a class, window of 8 of 16 steps, no curvature, 500 real images", "at-bptt-plus",
        "main.py",
        (*_BPTT, "--ddtype", "at_bptt_pp", "--window", "8", "--totwindow", "16", "--window_radius", "0",
         "--disable_cr_lrha"), 1, {**_OWN_BPTT, "unroll": 16, "window": 8, "radius": 0}, own_module=True,
        augment=("flip", "rotate"), changed=_MODULE,
    ),
}  # fmt: skip
