"""
Why a mixture collapses, and what each regularization does
==========================================================

An expert that is a little better at the start gets more samples, learns more from them, and gets
still more: the rich get richer, and some experts are never used. How far it goes depends on the
gate. With ten experts on these digits, and without regularization, a gate with two hidden layers
uses as few as if 2.9 ± 1.1 of them had equal shares, and a linear gate 6.7 ± 0.6 (mean and
standard deviation of five seeds). Regularizations that reward even use stop this; others have
different aims.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sklearn_moe import (
    DecompositionDisplay,
    Entropy,
    MLPExperts,
    MoEClassifier,
    SoftmaxGate,
    TrainingDisplay,
    ZLoss,
    decomposition_entropy,
)

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X / 16, y, stratify=y, random_state=0)

HIDDEN = (64, 64)  # of the gate


def fit(regularization, gate=None):
    return MoEClassifier(
        n_experts=10,
        experts=MLPExperts((128,)),
        gate=gate or SoftmaxGate(HIDDEN),
        regularization=regularization,
        max_iter=30,
        track_decomposition=True,
        random_state=0,
    ).fit(X_train, y_train)


# %%
# The collapse
# ------------
# With ``track_decomposition=True`` the entropies of each epoch are recorded. At the start all
# experts are used alike (:math:`H_u` at its most); then the experts that lead take the others'
# samples, and of five seeds 3.4 ± 1.1 experts are ever chosen on test data. The accuracy does not
# show it: so few are enough for these digits.

collapsed = fit(None)
TrainingDisplay.from_estimator(collapsed)
plt.show()

# %%
# The regularizations
# -------------------
# "importance" and "sample_similarity" keep all ten experts in work with each of five seeds. The
# latter sends similar samples to the same one, which shows in :math:`I(E;Y)`: 2.69 ± 0.12 bits in
# place of 2.28 ± 0.04. "load" counts how often an expert is chosen, for which the gate has to draw
# noise; it stops half-way, at 7.9 ± 0.9 experts. ``Entropy`` makes the gate surer, :math:`H_s` is
# 0.05 ± 0.01 in place of 0.15 ± 0.08, and ``ZLoss`` keeps its logits small. Of the collapse both
# know nothing. The accuracy is between .977 and .983 with all of them, which is no difference:
# that of one seed deviates by .001 to .005.

mixtures = {
    "no regularization": collapsed,
    "no regularization, linear": fit(None, gate="softmax"),
    "importance": fit("importance"),
    "sample_similarity": fit("sample_similarity"),
    "load (noise, two experts)": fit("load", gate=SoftmaxGate(HIDDEN, top_k=2, noise=1.0)),
    "entropy, strength 0.1": fit(Entropy(0.1)),
    "z_loss, strength 0.01": fit(ZLoss(0.01)),
}
print(f"{'':26}accuracy   H_s   H_u  I(E;Y)  experts used  ever chosen")
for name, clf in mixtures.items():
    bits = decomposition_entropy(clf, X_test, y_test)
    print(
        f"{name:26}{clf.score(X_test, y_test):8.3f}{bits.sample_entropy:6.2f}"
        f"{bits.usage_entropy:6.2f}{bits.expert_class_information:8.2f}"
        f"{2**bits.usage_entropy:14.1f}{(bits.table.sum(axis=1) > 0).sum():13d}"
    )

# %%
# Each picture says which expert (row) gets which digits (column).
# The bars say how much each expert is used.

fig, axes = plt.subplots(4, 2, figsize=(13, 15), layout="constrained")
for ax, (name, clf) in zip(axes.flat, mixtures.items(), strict=False):
    DecompositionDisplay.from_estimator(clf, X_test, y_test, ax=ax)
    ax.set_title(f"{name}\n{ax.get_title()}")
axes[-1, -1].set_axis_off()
plt.show()
