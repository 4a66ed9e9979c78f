"""A distilled set in Hugging Face's Trainer: python examples/with_transformers.py (needs transformers, accelerate)"""

import transformers

import potstill
from potstill.data.dataset import load

distilled, test = potstill.load("records/digits-ipc10.safetensors"), load("digits").test
shape = {"image_size": 8, "patch_size": 2, "num_channels": 1, "hidden_size": 64, "intermediate_size": 128}
config = transformers.ViTConfig(**shape, num_hidden_layers=2, num_attention_heads=4, num_labels=10,
                                problem_type="multi_label_classification")  # fmt: skip
model = transformers.ViTForImageClassification(config)  # whose loss takes soft labels so
rows = [{"pixel_values": image, "labels": target} for image, target in zip(*distilled.tensors(), strict=True)]
how = transformers.TrainingArguments(
    "runs/with-transformers", num_train_epochs=100, learning_rate=0.002, per_device_train_batch_size=25, use_cpu=True,
    report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
)  # fmt: skip
transformers.Trainer(model, how, train_dataset=rows).train()
accuracy = float((model.eval()(distilled.transform(test.images)).logits.argmax(1) == test.labels).float().mean())
print(f"{accuracy:.1%} of the test images are right, after training on {len(distilled)}")
