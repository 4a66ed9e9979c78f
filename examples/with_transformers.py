"""A distilled set in Hugging Face's Trainer: python examples/with_transformers.py (needs transformers, accelerate)"""

import transformers
from torch import nn

import potstill
from potstill.data.dataset import load


class Network(nn.Sequential):
    def forward(self, images, targets=None):
        logits = super().forward(images)
        return {"logits": logits} | ({} if targets is None else {"loss": nn.functional.cross_entropy(logits, targets)})


distilled, test = potstill.load("records/digits-ipc10.safetensors"), load("digits").test
model = Network(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 10))
rows = [{"images": image, "targets": target} for image, target in zip(*distilled.tensors(), strict=True)]
how = {"per_device_train_batch_size": 25, "use_cpu": True, "report_to": "none", "save_strategy": "no"}
how = transformers.TrainingArguments("runs/trainer", num_train_epochs=100, learning_rate=0.003, **how)
transformers.Trainer(model, how, train_dataset=rows).train()
accuracy = float((model(distilled.transform(test.images))["logits"].argmax(1) == test.labels).float().mean())
print(f"{accuracy:.1%} of the test images are right, after training on {len(distilled)}")
