"""
Experts that skip computation
=============================

With ``experts="zero_computation"`` half of the experts are cheap: their logits are zero, linear,
or the same for all samples (Jin et al. 2024, arXiv 2410.07348). The ``tau`` of the regularization
controls how many samples go to cheap experts.

On the digits the cost of a prediction falls from two thirds to less than half of the cost of two
ordinary experts. A quarter of the samples use no ordinary expert, and the accuracy falls by about
half a percent. This needs a strong regularization: with a strength of 0.3 in place of 3, ``tau``
hardly matters.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sklearn_moe import (
    MoEClassifier,
    ZeroComputationBalance,
    ZeroComputationExperts,
    decomposition_entropy,
)

X, y = load_digits(return_X_y=True)

# %%
# The cost of a prediction is that of the two experts that answer for a sample, in multiply-adds. A
# sample skips computation if neither of them is an ordinary expert.

taus = [1.0, 0.5, 0.1, 0.03]
rows = []
for tau in taus:
    of_seeds = []
    for seed in range(3):
        X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=seed)
        clf = MoEClassifier(
            gate="top_k",
            experts=ZeroComputationExperts((64,)),
            regularization=ZeroComputationBalance(3.0, tau=tau),
            random_state=seed,
        ).fit(X_train, y_train)
        found = decomposition_entropy(clf, X_test, y_test)
        cost = found.cost / (2 * clf.expert_costs_.max())
        of_seeds.append((clf.score(X_test, y_test), cost, found.skipping_share))
    rows.append(np.mean(of_seeds, axis=0))
    print("tau {:.2f}: accuracy {:.3f}, cost {:.2f}, skipping {:.2f}".format(tau, *rows[-1]))

# %%
# Computation and accuracy
# ------------------------

accuracy, cost, skipping = np.transpose(rows)
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
left.plot(taus, cost, "o-", label="multiply-adds, as a share of two ordinary experts")
left.plot(taus, skipping, "s-", label="share of the samples that skip computation")
left.legend(loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
right.plot(taus, accuracy, "o-", label="accuracy on new samples")
right.legend(loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
for ax, low in ((left, 0), (right, 0.9)):
    ax.set(xscale="log", xticks=taus, xticklabels=taus, ylim=(low, 1.01))
    ax.set_xlabel("tau: penalty for cheap experts, relative to ordinary ones")
    ax.minorticks_off()
plt.show()
