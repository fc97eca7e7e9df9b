"""
Grid search over gate and regularization
========================================

Gate and regularization are hyperparameters, so scikit-learn's grid search can compare them. It
measures accuracy and decomposition at the same time.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, train_test_split

from sklearn_moe import SCORERS, DecompositionDisplay, MoEClassifier

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X / 16, y, stratify=y, random_state=0)

# %%
# ``SCORERS`` has :math:`-H_s`, :math:`H_u`, :math:`I(E;Y)` and others for scikit-learn's searches.
# With an object in place of a name, such as ``SoftmaxGate()``, the grid could also have its
# parameters (``gate__top_k``).

search = GridSearchCV(
    MoEClassifier(n_experts=5, max_iter=30, random_state=0),
    {
        "gate": ["softmax", "top_k", "attentive"],
        "regularization": [None, "importance", "sample_similarity"],
    },
    scoring={"accuracy": "accuracy", **SCORERS},
    refit="accuracy",
    cv=3,
).fit(X_train, y_train)

# %%
# In the most accurate mixtures, the choice of the expert need not say most about the class. So
# look at both.

results = search.cv_results_
fig, ax = plt.subplots(figsize=(9, 5), layout="constrained")
colors = {"softmax": "#0072B2", "top_k": "#009E73", "attentive": "#D55E00"}
markers = {None: "o", "importance": "s", "sample_similarity": "^"}
for params, accuracy, information in zip(
    results["params"],
    results["mean_test_accuracy"],
    results["mean_test_expert_class_information"],
    strict=True,
):
    gate, regularization = params["gate"], params["regularization"]
    label = gate if regularization is None else f"{gate}, {regularization}"
    ax.scatter(
        information, accuracy, s=60, c=colors[gate], marker=markers[regularization], label=label
    )
    print(f"{label:30} accuracy {accuracy:.3f}   I(E;Y) {information:.2f} bits")
ax.set(
    xlabel="how much the chosen expert tells about the class, $I(E;Y)$ in bits",
    ylabel="accuracy in cross-validation",
)
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, title="gate, regularization")
plt.show()

# %%
# The search is a classifier like any other, and the pictures accept it in place of a mixture.

print(f"best: {search.best_params_}, test accuracy {search.score(X_test, y_test):.3f}")
DecompositionDisplay.from_estimator(search, X_test, y_test)
plt.show()
