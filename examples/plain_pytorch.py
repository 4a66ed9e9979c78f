"""A distilled set in a plain PyTorch loop: python examples/plain_pytorch.py"""

import torch
from torch import nn

import potstill
from potstill.data.dataset import load

distilled, test = potstill.load("records/digits-ipc10.safetensors"), load("digits").test
torch.manual_seed(0)
network = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 10))
optimiser = torch.optim.Adam(network.parameters(), lr=0.003)
for _epoch in range(100):
    for images, soft_labels in distilled.loader(batch_size=25):
        loss = nn.functional.cross_entropy(network(images), soft_labels)
        optimiser.zero_grad(), loss.backward(), optimiser.step()
accuracy = float((network(distilled.transform(test.images)).argmax(1) == test.labels).float().mean())
print(f"{accuracy:.1%} of the test images are right, after training on {len(distilled)}")
