"""
Experts that share most of their parameters
===========================================

The layers of ``experts="mpo"`` are matrix product operators: chains of tensors. All experts share
the largest tensor of each chain (Gao et al. 2022, arXiv 2203.01104). This example compares their
accuracy on the digits and their number of parameters with dense experts of several widths. They
need a third of the parameters of dense experts of the same width. But dense experts with fewer
units and as few parameters are as good here: the digits do not need the capacity of the large
shared tensor.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sklearn_moe import MLPExperts, MoEClassifier, MPOExperts

X, y = load_digits(return_X_y=True)

# %%
# There are eight experts with two hidden layers each. A bond is the largest rank between two
# tensors of a layer. Without a bond, only the sharing saves parameters.

kinds = {
    "dense": {width: MLPExperts((width, width)) for width in (8, 16, 64)},
    "matrix product operators": {bond: MPOExperts((64, 64), bond=bond) for bond in (2, 8, None)},
}
results = {}
for kind, variants in kinds.items():
    for size, experts in variants.items():
        accuracies = []
        for seed in range(3):
            X_train, X_test, y_train, y_test = train_test_split(
                X, y, stratify=y, random_state=seed
            )
            clf = MoEClassifier(
                experts=experts, regularization="importance", random_state=seed
            ).fit(X_train, y_train)
            accuracies.append(clf.score(X_test, y_test))
        n_parameters = sum(weight.numel() for weight in clf.module_.experts.parameters())
        results[kind, size] = n_parameters / 1000, np.mean(accuracies)
        print(f"{kind}, {size}: {n_parameters:6d} parameters, accuracy {np.mean(accuracies):.3f}")

# %%
# Accuracy against parameters
# ---------------------------

fig, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
for kind, marker, name in (("dense", "o", "units"), ("matrix product operators", "s", "bond")):
    sizes = list(kinds[kind])
    ax.plot(*np.transpose([results[kind, size] for size in sizes]), marker=marker, label=kind)
    for size in sizes:
        ax.annotate(
            "all ranks" if size is None else f"{name} {size}",
            results[kind, size],
            xytext=(-5, 4) if kind == "dense" else (6, -10),
            textcoords="offset points",
            ha="right" if kind == "dense" else "left",
            fontsize=8,
        )
ax.set(
    xlabel="parameters of the eight experts, thousands",
    ylabel="accuracy, mean of three splits",
    title="Digits: dense experts, and experts that share a central tensor",
)
ax.margins(0.15, 0.1)
ax.legend(loc="lower right")
plt.show()
