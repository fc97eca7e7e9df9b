"""
Quick start: a mixture of experts and how it divides the work
=============================================================

This example fits a mixture of experts on two data sets that ship with scikit-learn, and compares
it with a single network with as many hidden units. Then it reports and draws how the experts
divide the digits.
"""

import sys

import matplotlib.pyplot as plt
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import train_test_split

from sklearn_moe import (
    DecompositionDisplay,
    MLPExperts,
    MoEClassifier,
    decomposition_report,
)

# %%
# Accuracy compared with one network
# ----------------------------------
# The mixtures have 8 experts of 256 hidden units; the single network has 2048 hidden units.

models = {
    "single network": MoEClassifier(n_experts=1, experts=MLPExperts((2048,)), random_state=0),
    "mixture": MoEClassifier(random_state=0),
    "attentive mixture": MoEClassifier(
        gate="attentive", regularization="sample_similarity", random_state=0
    ),
}
fitted = {}
for name, load in {"breast_cancer": load_breast_cancer, "digits": load_digits}.items():
    X, y = load(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)
    print(f"{name}: {len(X_train)} training samples, {len(X_test)} test samples")
    for kind, model in models.items():
        fitted[kind] = clone(model).fit(X_train, y_train)
        print(f"    accuracy of the {kind:18}{fitted[kind].score(X_test, y_test):.3f}")

# %%
# The decomposition
# -----------------
# With the attentive gate and sample similarity each sample has one expert (a low :math:`H_s`), all
# experts are used (a high :math:`H_u`), and the choice of the expert says something about the
# class (:math:`I(E;Y)`). In the picture, these are shares of the most that is possible.

print(
    f"\nThe attentive mixture on the digits\n\n"
    f"{decomposition_report(fitted['attentive mixture'], X_test, y_test)}"
)

fig, axes = plt.subplots(1, 2, figsize=(13, 4.5), layout="constrained")
for ax, kind in zip(axes, ("mixture", "attentive mixture"), strict=True):
    DecompositionDisplay.from_estimator(fitted[kind], X_test, y_test, ax=ax)
    ax.set_title(f"{kind}\n{ax.get_title()}", fontsize=9)
if len(sys.argv) > 1:
    fig.savefig(sys.argv[1], dpi=100)
    print(f"\nThe picture is in {sys.argv[1]}")
else:
    plt.show()
