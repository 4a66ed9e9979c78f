"""A distilled set in Lightning: python examples/with_lightning.py (needs the package lightning)"""

import lightning
import torch

import potstill
from potstill.data.dataset import load


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))

    def training_step(self, batch, _):
        return torch.nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


distilled, test = potstill.load("records/digits-ipc10.safetensors"), load("digits").test
model, how = Classifier(), {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
lightning.Trainer(max_epochs=50, **how).fit(model, distilled.loader(batch_size=25))
accuracy = float((model.network(distilled.transform(test.images)).argmax(1) == test.labels).float().mean())
print(f"{accuracy:.1%} of the test images are right, after training on {len(distilled)}")
