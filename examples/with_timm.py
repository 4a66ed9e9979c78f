"""A network of timm on a distilled set: python examples/with_timm.py (needs the package timm)"""

import timm
import torch

import potstill
from potstill.data.dataset import load


def resnet(channels, height, width, classes):
    network = timm.create_model("resnet18", in_chans=channels, num_classes=classes, channels=(16, 32, 64, 64))
    network.conv1 = torch.nn.Conv2d(
        channels, 64, 3, padding=1, bias=False
    )  # small images: no strides before the blocks
    network.maxpool = torch.nn.Identity()
    return network


distilled, test = potstill.load("records/digits-ipc10.safetensors"), load("digits").test
network = potstill.train(distilled, resnet, epochs=600)
accuracy = float((network(distilled.transform(test.images)).argmax(1) == test.labels).float().mean())
print(f"{accuracy:.1%} of the test images are right, after training on {len(distilled)}")
