"""A distilled set in Keras on PyTorch: python examples/with_keras.py (needs the package keras)"""

import os

os.environ["KERAS_BACKEND"] = "torch"
import keras

import potstill
from potstill.data.dataset import load

distilled, test = potstill.load("records/digits-ipc10.safetensors"), load("digits").test
images, soft_labels = distilled.tensors()
keras.utils.set_random_seed(0)
layers = [keras.layers.Conv2D(32, 3, activation="relu"), keras.layers.Flatten(), keras.layers.Dense(10)]
network = keras.Sequential([keras.Input((8, 8, 1)), *layers])
network.compile(keras.optimizers.Adam(0.003), keras.losses.CategoricalCrossentropy(from_logits=True))
network.fit(images.permute(0, 2, 3, 1).numpy(), soft_labels.numpy(), batch_size=25, epochs=40, verbose=0)
scores = network.predict(distilled.transform(test.images).permute(0, 2, 3, 1).numpy(), verbose=0)
accuracy = float((scores.argmax(1) == test.labels.numpy()).mean())
print(f"{accuracy:.1%} of the test images are right, after training on {len(distilled)}")
