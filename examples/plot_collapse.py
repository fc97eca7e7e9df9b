"""
Why an ordinary mixture collapses, and what each regularization does
====================================================================

An expert that is a little better at the start gets more samples, learns more from them, and gets
still more: the rich get richer, and some experts are never used. Regularizations that reward even
use stop this; others have different aims.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sklearn_moe import (
    DecompositionDisplay,
    Entropy,
    MoEClassifier,
    TrainingDisplay,
    ZLoss,
    decomposition_entropy,
)

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X / 16, y, stratify=y, random_state=0)


def fit(regularization, gate="softmax"):
    return MoEClassifier(
        n_experts=5,
        gate=gate,
        regularization=regularization,
        max_iter=60,
        track_decomposition=True,
        random_state=0,
    ).fit(X_train, y_train)


# %%
# The collapse
# ------------
# With ``track_decomposition=True`` the entropies of each epoch are recorded. At the start all
# experts are used alike (:math:`H_u` at its most); then the experts that lead take the others'
# samples. The accuracy does not show it: two experts are enough for these digits.

ordinary = fit(None)
TrainingDisplay.from_estimator(ordinary)
plt.show()

# %%
# The regularizations
# -------------------
# "importance" and "sample_similarity" keep all five experts in work, and the latter sends similar
# samples to the same one. "load" counts how often an expert is chosen, for which the gate has to
# draw noise. ``Entropy`` makes the gate a little surer; ``ZLoss`` keeps its logits small, which
# makes it less sure. Of the collapse both know nothing.

mixtures = {
    "no regularization": ordinary,
    "importance": fit("importance"),
    "sample_similarity": fit("sample_similarity"),
    "load (noisy_top_k gate)": fit("load", gate="noisy_top_k"),
    "entropy, strength 0.1": fit(Entropy(0.1)),
    "z_loss, strength 0.01": fit(ZLoss(0.01)),
}
print(f"{'':26}accuracy   H_s   H_u  I(E;Y)")
for name, clf in mixtures.items():
    bits = decomposition_entropy(clf, X_test, y_test)
    print(
        f"{name:26}{clf.score(X_test, y_test):8.3f}{bits.sample_entropy:6.2f}"
        f"{bits.usage_entropy:6.2f}{bits.expert_class_information:8.2f}"
    )

# %%
# Each picture says which expert (row) gets which digits (column).
# The bars say how much each expert is used.

fig, axes = plt.subplots(3, 2, figsize=(13, 10), layout="constrained")
for ax, (name, clf) in zip(axes.flat, mixtures.items(), strict=True):
    DecompositionDisplay.from_estimator(clf, X_test, y_test, ax=ax)
    ax.set_title(f"{name}\n{ax.get_title()}")
plt.show()
