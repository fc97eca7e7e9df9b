"""
Fewer experts after the training
================================

``prune_experts`` makes a fitted mixture smaller. *Similarity* merges experts that predict the same
for their own samples (after Zhang et al. 2024, arXiv 2407.09590), *router norm* keeps those whose
weights in the gate grew most (Chowdhury et al. 2024, arXiv 2405.16646), *heavy hitters* those with
the most samples (Muzio et al. 2024, arXiv 2404.05089). A method should beat experts drawn at
random.

Where four clusters have sixteen experts of equal usage, only similarity sees which of them do the
same: with four experts left it loses three points, the others ten to twelve, as chance does. With
fewer experts than clusters it is worse than chance. On the digits equally used experts do not
double one another, and down to four experts no method is clearly better than chance. A
fine-tuning, in which one expert comes to answer for a sample, brings even two experts there to
within half a point of what sixteen had. The default for tables trains its experts as an ensemble;
of those any two do. All this holds in the mean of five seeds, two of which are drawn here.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sklearn_moe import MLPExperts, MoEClassifier, distill, prune_experts

# %%
# In each of four clusters another line divides two classes.


def make_clusters(n_samples, random_state):
    rng = np.random.default_rng(random_state)
    cluster = rng.integers(4, size=n_samples)
    X = rng.normal(size=(n_samples, 8))
    X[:, :2] += 6 * np.column_stack([cluster % 2, cluster // 2])
    normals = np.random.default_rng(0).normal(size=(4, 6))
    return X, (np.einsum("nd,nd->n", X[:, 2:], normals[cluster]) > 0).astype(int)


X, y = make_clusters(4000, 0)
digits = load_digits(return_X_y=True)
tasks = {
    "four clusters, importance": (X, y, 0.5, 16, "importance"),
    "digits, importance": (*digits, 0.25, 64, "importance"),
    "digits, the default": (*digits, 0.25, 64, "auto"),
}

# %%
# Each method leaves 2 to 16 experts. Fine-tuned, one expert answers for a sample.

methods = {
    "similarity": {"method": "similarity"},
    "router norm": {"method": "router_norm"},
    "heavy hitters": {"method": "heavy_hitters"},
    "heavy hitters, fine-tuned": {"method": "heavy_hitters", "fine_tune": True, "max_iter": 10},
    "random": {"method": "random"},
}
kept = [2, 4, 8, 16]
accuracy = {}
for task, (X, y, test_size, n_units, regularization) in tasks.items():
    of_seeds = []
    for seed in range(2):
        X_train, X_test, y_train, y_test = train_test_split(
            X, y, stratify=y, test_size=test_size, random_state=seed
        )
        clf = MoEClassifier(
            16,
            experts=MLPExperts((n_units,)),
            regularization=regularization,
            random_state=seed,
        ).fit(X_train, y_train)
        of_seeds.append(np.zeros((len(methods), len(kept))))
        for i, params in enumerate(methods.values()):
            for j, n_experts in enumerate(kept):
                pruned = prune_experts(
                    clf, n_experts=n_experts, X=X_train, y=y_train, random_state=seed, **params
                )
                of_seeds[-1][i, j] = pruned.score(X_test, y_test)
    accuracy[task] = np.mean(of_seeds, axis=0)

# %%
# Accuracy against the number of experts
# --------------------------------------

fig, axes = plt.subplots(1, 3, figsize=(14, 4.5), sharey=True, layout="constrained")
for ax, (task, values) in zip(axes, accuracy.items(), strict=True):
    for name, line, style in zip(methods, values, ("o-", "s-", "^-", "^--", "x:"), strict=True):
        ax.plot(kept, line, style, color="gray" if name == "random" else None, label=name)
    ax.set(xticks=kept, xlabel="experts that are left", title=task)
axes[0].set(ylabel="accuracy", ylim=(0.6, 1))
axes[0].legend(loc="lower right")

# %%
# Distil first
# ------------
#
# An attentive gate scores an expert by its hidden vector, and so cannot pass on the samples of
# those that are gone. The gate of its student can. Here it has chosen four or five of the experts
# anyway, so that nothing is lost without the others.

X, y, test_size, n_units, _ = tasks["four clusters, importance"]
X_train, X_test, y_train, y_test = train_test_split(
    X, y, stratify=y, test_size=test_size, random_state=0
)
teacher = MoEClassifier(
    16,
    experts=MLPExperts((n_units,)),
    gate="attentive",
    regularization="sample_similarity",
    random_state=0,
).fit(X_train, y_train)
student = distill(teacher, X_train, y_train)
for name, clf in {"teacher": teacher, "student": student}.items():
    pruned = prune_experts(clf, method="similarity", n_experts=4, X=X_train, y=y_train)
    before, after = clf.score(X_test, y_test), pruned.score(X_test, y_test)
    print(f"accuracy of the {name}: {before:.3f} with 16 experts, {after:.3f} with 4")
print(f"\n{pruned.report_}")
plt.show()
