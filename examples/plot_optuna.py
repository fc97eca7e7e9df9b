"""
Tuning with Optuna
==================

``tune`` searches with Optuna in cross-validation. Its default space has the number of experts, the
gate, and the regularization with its strength; a function of your own describes another one.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_moe import DecompositionDisplay, Importance, MLPExperts, MoEClassifier, tune

X, y = load_breast_cancer(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)
clf = make_pipeline(StandardScaler(), MoEClassifier(max_iter=30, random_state=0))

# %%
# The space: a function that asks the trial for values and returns parameters of the pipeline.


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
# How the search went, and what the best mixture does.

fig, axes = plt.subplots(1, 2, figsize=(12, 3.5), layout="constrained")
losses = [-trial.value for trial in result.study_.trials]
best = [min(losses[: number + 1]) for number in range(len(losses))]
axes[0].plot(losses, "o", label="trial")
axes[0].plot(best, drawstyle="steps-post", label="best so far")
axes[0].set(xlabel="trial", ylabel="log loss")
axes[0].legend()
DecompositionDisplay.from_estimator(
    result.best_estimator_, X_test, y_test, display_labels=["malignant", "benign"], ax=axes[1]
)
plt.show()
