"""
Tuning with Optuna
==================

``tune`` searches with Optuna and cross-validation. By default it searches experts, gate and
training around what predicts tables well. To search another space, write a function. Trials that
fall behind are stopped early.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_moe import (
    DecompositionDisplay,
    Importance,
    MLPExperts,
    MoEClassifier,
    ParetoFrontDisplay,
    tune,
)

X, y = load_breast_cancer(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)
clf = make_pipeline(StandardScaler(), MoEClassifier(max_iter=30, random_state=0))

# %%
# The space is a function that asks the trial for values and returns parameters of the pipeline.


def space(trial):
    hidden = trial.suggest_int("hidden", 8, 64, log=True)
    return {
        "moeclassifier__n_experts": trial.suggest_int("n_experts", 2, 8),
        "moeclassifier__experts": MLPExperts(
            (hidden,), dropout=trial.suggest_float("dropout", 0, 0.5)
        ),
        "moeclassifier__gate": trial.suggest_categorical("gate", ["softmax", "attentive"]),
        "moeclassifier__regularization": Importance(
            trial.suggest_float("strength", 0.01, 1, log=True)
        ),
    }


result = tune(
    clf, X_train, y_train, space=space, scoring="neg_log_loss", n_trials=10, cv=3, random_state=0
)
print(f"best log loss {-result.best_score_:.3f} with {result.study_.best_params}")
print(f"test accuracy {result.best_estimator_.score(X_test, y_test):.3f}")

# %%
# The left panel shows how the search went, and the right panel how the best mixture divides the
# classes.

fig, axes = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
losses = -result.cv_results_["mean_test_score"]
trials = result.cv_results_["trial"]
axes[0].plot(trials, losses, "o", label="complete trial")
axes[0].plot(trials, np.minimum.accumulate(losses), drawstyle="steps-post", label="best so far")
axes[0].set(xlabel="trial of the search", ylabel="log loss in nats (lower is better)")
axes[0].xaxis.get_major_locator().set_params(integer=True)
axes[0].legend()
DecompositionDisplay.from_estimator(
    result.best_estimator_, X_test, y_test, display_labels=["malignant", "benign"], ax=axes[1]
)

# %%
# With several scores there is no single best trial, but a Pareto front. Here the scores are the
# likelihood and how sure the gate is. ``pareto_front_`` lists the front, and the first score
# decides which trial is refitted.

front = tune(
    clf,
    X_train,
    y_train,
    space=space,
    scoring=["neg_log_loss", "neg_sample_entropy"],
    n_trials=10,
    cv=3,
    random_state=0,
)
for row in front.pareto_front_:
    print(
        f"trial {row['trial']}: log loss {-row['neg_log_loss']:.3f}, "
        f"H_s {-row['neg_sample_entropy']:.2f} bits"
    )
ParetoFrontDisplay.from_estimator(front)
plt.show()
