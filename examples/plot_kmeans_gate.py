"""
A gate that finds families of samples
=====================================

With ``gate="kmeans"`` each expert owns a cluster of the samples (Nzoyem et al. 2025, arXiv
2502.05335). The example has two data sets. In the first there are four families of samples, and in
each of them the class is a different exclusive or. The second is the digits, which are of one
kind.

With four of five seeds the gate finds the families. With the fifth, the adjusted Rand index is
.67: k-means clusters the output of the encoder, and in this another division is as compact. If
there are families, the gate predicts as well as an ordinary gate, .902 ± .017 against .903 ± .019
(mean and standard deviation of the seeds). If there are none, it predicts worse, .962 ± .010
against .976 ± .005. One network with as many units as all experts has .923 ± .013 and .980 ± .002.
The advantages of the k-means gate are the division, and that only one expert runs for a sample.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import train_test_split

from sklearn_moe import MLPExperts, MoEClassifier

# %%
# Four families
# -------------


def make_families(n_samples, random_state):
    rng = np.random.default_rng(random_state)
    family = rng.integers(4, size=n_samples)
    inner = rng.uniform(-1, 1, size=(n_samples, 2))
    cos, sin = np.cos(family * np.pi / 8), np.sin(family * np.pi / 8)
    first, second = cos * inner[:, 0] + sin * inner[:, 1], cos * inner[:, 1] - sin * inner[:, 0]
    return inner + 4 * np.stack([family % 2, family // 2], 1), (first * second > 0), family


X, y, family = make_families(2000, 0)
X_train, X_test, y_train, y_test, _, family = train_test_split(X, y, family, random_state=0)

# %%
# One network, an ordinary gate and k-means
# -----------------------------------------


def fit_all(X_train, y_train, X_test, y_test):
    models = {
        "one network": MoEClassifier(1, experts=MLPExperts((64,)), random_state=0),
        "softmax gate": MoEClassifier(4, experts=MLPExperts((16,)), random_state=0),
        "k-means gate": MoEClassifier(4, experts=MLPExperts((16,)), gate="kmeans", random_state=0),
    }
    for name, clf in models.items():
        clf.set_params(regularization=None).fit(X_train, y_train)
        print(f"{name}: accuracy {clf.score(X_test, y_test):.3f}")
    return models


print("digits")
X_digits, y_digits = load_digits(return_X_y=True)
parts = train_test_split(X_digits, y_digits, stratify=y_digits, random_state=0)
models = fit_all(parts[0], parts[2], parts[1], parts[3])
print("four families")
models = fit_all(X_train, y_train, X_test, y_test)
clf = models["k-means gate"]
print(f"adjusted Rand index {adjusted_rand_score(family, clf.apply(X_test)):.3f}")

# %%
# Classes, and the experts that the gates choose
# ----------------------------------------------

fig, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
colors = [y_test, models["softmax gate"].apply(X_test), clf.apply(X_test)]
for ax, color, title in zip(
    axes,
    colors,
    ("true class", "expert that the softmax gate chooses", "expert that the k-means gate chooses"),
    strict=True,
):
    points = ax.scatter(*X_test.T, c=color, s=8, cmap="tab10", vmin=0, vmax=9)
    ax.set(title=title, xlabel="feature 0", ylabel="feature 1")
    ax.legend(
        *points.legend_elements(fmt="{x:.0f}"),
        ncols=4,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.14),
        frameon=False,
    )
plt.show()
