"""A network of timm on a distilled set: python examples/with_timm.py (needs the package timm)"""

import timm
import torch

import potstill
from potstill.data.dataset import load


def resnet(channels, height, width, classes):
    torch.manual_seed(0)
    return timm.create_model("resnet18", in_chans=channels, num_classes=classes, channels=(8, 16, 32, 64))


distilled, test = potstill.load("records/digits-ipc10.safetensors"), load("digits").test
network = potstill.train(distilled, resnet, epochs=40)
accuracy = float((network(distilled.transform(test.images)).argmax(1) == test.labels).float().mean())
print(f"{accuracy:.1%} of the test images are right, after training on {len(distilled)}")
