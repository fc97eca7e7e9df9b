"""
Distil the attentive gate, and predict with one expert
======================================================

An attentive gate is sure of its choice, but all experts have to run before it can choose. Its
student has the same experts, but its gate learns to choose from the sample alone. So only one
expert runs for each sample.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_moe import (
    DecompositionDisplay,
    MLPExperts,
    MoEClassifier,
    distill,
    distillation_report,
)

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)

# %%
# The teacher has ten experts of 128 hidden units, and an attentive gate.

moe = MoEClassifier(
    n_experts=10,
    experts=MLPExperts((128,)),
    gate="attentive",
    regularization="sample_similarity",
    random_state=0,
)
teacher = make_pipeline(StandardScaler(), moe).fit(X_train, y_train)

# %%
# The student is a pipeline, too, with the same scaler. With ``target="labels"`` its gate learns
# which expert is right. With ``target="teacher"`` it imitates the teacher's gate, and needs no
# labels.

students = {
    "from the labels": distill(teacher, X_train, y_train),
    "from the teacher's gate": distill(teacher, X_train, target="teacher"),
}
for name, student in students.items():
    print(f"Distilled {name}\n\n{distillation_report(teacher, student, X_test, y_test)}\n")

# %%
# The experts keep their classes, and the student asks only one expert for each sample
# (:math:`H_s = 0`).

fig, axes = plt.subplots(1, 2, figsize=(13, 4.5), layout="constrained")
for ax, (name, clf) in zip(
    axes, {"teacher": teacher, "student": students["from the labels"]}.items(), strict=True
):
    DecompositionDisplay.from_estimator(clf, X_test, y_test, ax=ax)
    ax.set_title(f"{name}\n{ax.get_title()}", fontsize=9)
plt.show()
