"""
Experts that must differ
========================

Experts that are alike at the start may stay alike. ``experts="orthogonal"`` makes their hidden
vectors orthogonal for each sample (Feng et al. 2025, arXiv 2501.10062). The penalty
``regularization="orthogonality"`` has the same aim. This example measures the similarity of the
vectors and the accuracy on the digits. Ordinary experts are not very similar, with a similarity of
0.16. The penalty makes them less similar at the same accuracy. The constraint costs one or two
percent of accuracy.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sklearn_moe import MLPExperts, MoEClassifier, OrthogonalExperts, SoftOrthogonality

X, y = load_digits(return_X_y=True)

# %%
# All mixtures have experts of 32 units, and ``"importance"``. The similarity is the mean of the
# absolute cosine of two experts' hidden vectors, over samples and pairs of experts.

models = {
    "nothing (ordinary)": (MLPExperts((32,)), ["importance"]),
    "a penalty": (MLPExperts((32,)), ["importance", SoftOrthogonality(0.1)]),
    "orthogonal vectors": (OrthogonalExperts((32,)), ["importance"]),
}


def similarity(clf, X):
    with torch.no_grad():
        hidden = clf.module_(torch.as_tensor(X)).hidden
    units = torch.nn.functional.normalize(hidden, dim=2)
    first, second = np.triu_indices(clf.n_experts, 1)
    return (units @ units.mT)[:, first, second].abs().mean().item()


numbers = [2, 4]
results = {}
for name, (experts, regularization) in models.items():
    for n_experts in numbers:
        of_seeds = []
        for seed in range(3):
            X_train, X_test, y_train, y_test = train_test_split(
                X, y, stratify=y, random_state=seed
            )
            clf = MoEClassifier(
                n_experts, experts=experts, regularization=regularization, random_state=seed
            ).fit(X_train, y_train)
            of_seeds.append((similarity(clf, X_test), clf.score(X_test, y_test)))
        results[name, n_experts] = np.mean(of_seeds, axis=0)
        print(
            "{}, {} experts: similarity {:.3f}, accuracy {:.3f}".format(
                name, n_experts, *results[name, n_experts]
            )
        )

# %%
# Similarity and accuracy
# -----------------------

fig, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
what = ("similarity of two experts (0: orthogonal, 1: equal)", "accuracy on new samples")
for i, ax in enumerate(axes):
    for name in models:
        ax.plot(numbers, [results[name, n][i] for n in numbers], "o-", label=name)
    ax.set(xlabel="number of experts", xticks=numbers, ylabel=what[i])
axes[0].set(ylim=(-0.02, None))
axes[1].set(ylim=(0.9, 1))
axes[0].legend(title="what makes experts differ")
plt.show()
