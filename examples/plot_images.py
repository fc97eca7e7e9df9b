"""
Images with convolutional experts
=================================

A function that makes one network is all that a mixture needs for experts of any kind. Here they
are small convolutional networks on the digits as images of 8 by 8 pixels.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from sklearn_moe import DecompositionDisplay, ExpertSamplesDisplay, MoEClassifier

images, y = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8) / 16
X_train, X_test, y_train, y_test = train_test_split(images, y, stratify=y, random_state=0)


def conv_expert(input_shape, n_outputs):
    height, width = input_shape
    return nn.Sequential(
        nn.Unflatten(1, (1, height)),  # torch wants a channel axis
        nn.Conv2d(1, 8, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * (height // 2) * (width // 2), n_outputs),
    )


clf = MoEClassifier(
    n_experts=5,
    experts=conv_expert,
    gate="attentive",
    regularization="sample_similarity",
    max_iter=30,
    random_state=0,
).fit(X_train, y_train)
print(f"accuracy {clf.score(X_test, y_test):.3f}")

# %%
# The digits of each expert
# -------------------------
# The digits that the gate is surest to give to each expert. Without reading the labels, one sees
# what it is there for.

ExpertSamplesDisplay.from_estimator(clf, X_test, n_images=12)
DecompositionDisplay.from_estimator(clf, X_test, y_test)
plt.show()
