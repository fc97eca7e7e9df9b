"""
Mixing probabilities or logits
==============================

``mixing="probability"`` averages the probabilities that the experts predict, so each expert has to
be right for its samples. ``mixing="logit"`` averages their logits before the softmax. The experts
may then correct one another, and no expert has to be right alone.
"""

import matplotlib.pyplot as plt
import numpy as np

from sklearn_moe import (
    ExpertRegionsDisplay,
    MLPExperts,
    MoEClassifier,
    SoftmaxGate,
    decomposition_entropy,
)

# %%
# Two spirals, one per class.

rng = np.random.RandomState(0)
y = rng.randint(2, size=1000)
angle = rng.uniform(0.3, 3 * np.pi, size=1000)
X = (angle * [np.cos(angle + np.pi * y), np.sin(angle + np.pi * y)]).T / 5
X += rng.normal(scale=0.05, size=X.shape)

mixtures = {
    mixing: MoEClassifier(
        n_experts=6,
        experts=MLPExperts((16,)),
        gate=SoftmaxGate((32,)),
        regularization="importance",
        mixing=mixing,
        max_iter=150,
        random_state=1,
    ).fit(X, y)
    for mixing in ("probability", "logit")
}

# %%
# Both predict nearly all samples correctly, and so does the chosen expert alone. Its accuracy is
# .995 ± .002 with probabilities and .997 ± .003 with logits (mean and standard deviation of five
# seeds). The difference is how many experts share a sample: :math:`H_s` is 1.40 ± 0.18 bits with
# probabilities and 2.44 ± 0.05 bits with logits. With 2.58 bits, all six experts would share each
# sample equally.

for mixing, clf in mixtures.items():
    measured = decomposition_entropy(clf, X, y)
    print(
        f"{mixing:12} accuracy {clf.score(X, y):.3f}, of the chosen expert alone "
        f"{measured.chosen_expert_accuracy:.3f}, H_s {measured.sample_entropy:.2f} bits"
    )

# %%
# Each region has the colour and the number of the expert that the gate chooses there. The colour
# is paler where the gate is less sure, which is nearly everywhere with logits. The points are
# samples.

fig, axes = plt.subplots(1, 2, figsize=(14, 5.5), layout="constrained")
for ax, (mixing, clf) in zip(axes, mixtures.items(), strict=True):
    ExpertRegionsDisplay.from_estimator(clf, X, y, grid_resolution=150, ax=ax)
    ax.set_title(f"mixing={mixing!r}")
plt.show()
