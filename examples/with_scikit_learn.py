"""A distilled set, flattened, in scikit-learn: python examples/with_scikit_learn.py"""

from sklearn.svm import SVC

import potstill
from potstill.data.dataset import load

distilled, test = potstill.load("records/digits-ipc10.safetensors"), load("digits").test
images, classes = distilled.images.flatten(1).numpy(), distilled.soft_labels.argmax(1).numpy()  # takes hard labels
model = SVC(C=10).fit(images, classes)
accuracy = float(model.score(distilled.transform(test.images).flatten(1).numpy(), test.labels.numpy()))
print(f"{accuracy:.1%} of the test images are right, after training on {len(distilled)}")
