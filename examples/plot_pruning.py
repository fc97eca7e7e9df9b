"""
Fewer experts after the training
================================

``prune_experts`` makes a fitted mixture smaller. *Similarity* merges experts that predict the same
for their own samples (after Zhang et al. 2024, arXiv 2407.09590). *Router norm* keeps the experts
whose weights in the gate grew most (Chowdhury et al. 2024, arXiv 2405.16646). *Heavy hitters*
keeps those with the most samples (Muzio et al. 2024, arXiv 2404.05089). A method should be better
than a random choice of experts.

In the first task, sixteen experts are used equally for four clusters. Only similarity sees which
of them do the same: with four experts left it loses three percentage points of accuracy. The
others lose ten to twelve, as a random choice does. With fewer experts than clusters, similarity is
worse than a random choice. On the digits, equally used experts do not do the same, and down to
four experts no method is clearly better than a random choice. Fine-tuning, after which one expert
answers for a sample, brings even two experts there to within half a percentage point of what
sixteen had. The default for tables trains its experts as an ensemble, and any two of them are
enough. All this is the mean of five seeds; the picture shows the mean of two.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sklearn_moe import MLPExperts, MoEClassifier, distill, prune_experts

# %%
# In each of four clusters, a different line divides two classes.


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
# Each method leaves 2 to 16 experts. After the fine-tuning, one expert answers for a sample.

methods = {
    "similarity": {"method": "similarity"},
    "router norm": {"method": "router_norm"},
    "heavy hitters": {"method": "heavy_hitters"},
    "heavy hitters, then fine-tuned": {
        "method": "heavy_hitters",
        "fine_tune": True,
        "max_iter": 10,
    },
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
fig.suptitle("Accuracy on new samples after 16 experts are pruned to fewer, by five methods")
for ax, (task, values) in zip(axes, accuracy.items(), strict=True):
    for place, (name, heights) in enumerate(zip(methods, values, strict=True)):
        at = np.arange(len(kept)) + 0.16 * (place - 2)  # side by side, not one over the other
        color = "gray" if name == "random" else None
        ax.plot(at, heights, "osD^x"[place], color=color, label=name)
    for edge in np.arange(len(kept) - 1) + 0.5:
        ax.axvline(edge, color="0.9", zorder=0)
    ax.set(xticks=range(len(kept)), xticklabels=kept, xlabel="experts that are left", title=task)
axes[0].set(ylabel="accuracy", ylim=(0.6, 1))
axes[0].legend(loc="lower right", title="how the experts are chosen")

# %%
# Distil first
# ------------
#
# An attentive gate scores an expert by its hidden vector, so it cannot pass on the samples of
# experts that are dropped. The gate of its student can. Here it only chooses four or five of the
# experts anyway, so dropping the others loses nothing.

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
