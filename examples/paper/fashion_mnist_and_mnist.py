"""FashionMNIST and MNIST as one task of 20 classes, with 6 experts: does the gate find the split?

    python examples/paper/fashion_mnist_and_mnist.py                 # the paper's settings
    python examples/paper/fashion_mnist_and_mnist.py --data FOLDER   # reads the two .npz files
    python examples/paper/fashion_mnist_and_mnist.py --samples 3000 --epochs 5 --seeds 0

Two tasks in one data set have a decomposition that one knows beforehand: half of the experts for
the clothes, the other half for the digits. Beside the results, which are appended to results.csv,
each run prints the share of the test images whose expert also has the majority of their data set.
"""

import experiment
import numpy as np
from fashion_mnist import make_models as models_of_fashion_mnist

from sklearn_moe import FlipCrop


def read(folder):
    parts = [experiment.load(name, folder) for name in ("fashion_mnist", "mnist")]
    X_train, y_train, X_test, y_test = (
        np.concatenate([fashion, mnist + 10 * is_label])
        for fashion, mnist, is_label in zip(*parts, (0, 1, 0, 1), strict=True)
    )
    order = np.random.RandomState(0).permutation(len(X_train))
    mean, std = X_train.mean() / 255, X_train.std() / 255
    X_train, X_test = (experiment.standardize(X, mean, std) for X in (X_train, X_test))
    return X_train[order], y_train[order], X_test, y_test


def make_models(settings):
    models = models_of_fashion_mnist(settings)
    for name, model in models.items():
        if name != "single network":
            model.set_params(n_experts=6)
        if settings == "ours":  # a flip would make other digits
            model.set_params(augmentation=FlipCrop(flip=False, crop=1))
    return models


def split(clf, X, y):
    """Return the share of images that are with the majority of their data set in their expert."""
    is_digit, chosen = y >= 10, clf.apply(X)
    counts = np.array(
        [[np.sum(chosen[is_digit == part] == e) for e in range(6)] for part in (0, 1)]
    )
    return counts.max(axis=0).sum() / len(y)


if __name__ == "__main__":
    experiment.main(__doc__, "fashion_mnist_and_mnist", read, make_models, extra=split)
