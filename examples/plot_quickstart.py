"""
Quick start: a mixture of experts and how it divides the work
=============================================================

Fits a mixture of experts on two data sets that ship with scikit-learn, beside one network with as
many hidden units, prints how the experts divide the classes, and saves a picture of it.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_moe import MLPExperts, MoEClassifier, decomposition_entropy

# %%
# Accuracy beside one network
# ---------------------------
# The mixtures have 8 experts of 64 hidden units, the single network has 512 of them.

models = {
    "single network": MoEClassifier(n_experts=1, experts=MLPExperts((512,)), random_state=0),
    "mixture": MoEClassifier(random_state=0),
    "attentive mixture": MoEClassifier(
        gate="attentive", regularization="sample_similarity", random_state=0
    ),
}
results = {}
for name, load in {"digits": load_digits, "breast_cancer": load_breast_cancer}.items():
    X, y = load(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)
    print(f"{name}: {len(X_train)} training samples, {len(X_test)} test samples")
    for kind, model in models.items():
        clf = make_pipeline(StandardScaler(), model).fit(X_train, y_train)
        print(f"    accuracy of the {kind:18}{clf.score(X_test, y_test):.3f}")
        if name == "digits" and kind != "single network":
            results[kind] = decomposition_entropy(clf, X_test, y_test)

# %%
# The decomposition
# -----------------
# The attentive gate with sample similarity gives each expert classes of its own: its sample
# entropy is lower, and the choice of the expert says more about the class.

for kind, decomposition in results.items():
    print(f"\ndigits, {kind}\n{decomposition}")

most = max(decomposition.table.max() for decomposition in results.values())
fig, axes = plt.subplots(1, 2, figsize=(10, 5), layout="constrained", sharey=True)
for ax, kind in zip(axes, ("mixture", "attentive mixture"), strict=True):
    decomposition = results[kind]
    image = ax.imshow(decomposition.table, cmap="Blues", vmax=most)
    for expert, digit in np.ndindex(decomposition.table.shape):
        count = decomposition.table[expert, digit]
        color = "white" if count > most / 2 else "black"
        ax.text(digit, expert, count, ha="center", va="center", color=color, fontsize=8)
    ax.set(
        title=(
            f"{kind}\n$H_s$ = {decomposition.sample_entropy:.2f}, "
            f"$H_u$ = {decomposition.usage_entropy:.2f}, "
            f"$I(E;Y)$ = {decomposition.expert_class_information:.2f} bits"
        ),
        xlabel="digit",
        xticks=range(10),
        yticks=range(8),
    )
axes[0].set_ylabel("chosen expert")
fig.colorbar(image, ax=axes, label="test samples", shrink=0.7)
path = Path(sys.argv[1] if len(sys.argv) > 1 else "quickstart.png")
fig.savefig(path, dpi=100)
print(f"\nThe picture is in {path}")
