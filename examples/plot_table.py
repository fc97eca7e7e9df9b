"""
A table with categories in a pipeline
=====================================

The diabetes data with the columns as a doctor would have them: numbers, and categories that were
made from some of them. Scaling and encoding stand in the pipeline before the mixture; the pictures
take the table as it came.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from sklearn_moe import (
    ExpertSamplesDisplay,
    MLPExperts,
    MoEClassifier,
    cross_validate,
    decomposition_report,
)

X, progression = load_diabetes(return_X_y=True, as_frame=True, scaled=False)
X = X.rename(columns={"bp": "blood pressure", "s5": "log triglycerides", "s6": "blood sugar"})
X["sex"] = X["sex"].map({1.0: "one", 2.0: "other"})  # the data do not say which is which
X["weight"] = pd.cut(
    X.pop("bmi"), [0, 18.5, 25, 30, np.inf], labels=["under", "normal", "over", "obese"]
)
y = np.where(progression > progression.median(), "progresses", "stable")
print(X.head(3).to_string())

# %%
# The pipeline. Categories that the training data did not have are ignored.

columns = make_column_transformer(
    (
        OneHotEncoder(handle_unknown="ignore"),
        make_column_selector(dtype_include=["object", "string", "category"]),
    ),
    remainder=StandardScaler(),
)
moe = MoEClassifier(
    n_experts=3,
    experts=MLPExperts((16,), dropout=0.2),
    gate="attentive",
    regularization="sample_similarity",
    max_iter=20,
    random_state=0,
)
clf = make_pipeline(columns, moe)
scores = cross_validate(clf, X, y)
print(f"accuracy {scores['test_score'].mean():.2f} in 5-fold cross-validation")

# %%
# Who are the experts' patients?
# ------------------------------
# For each expert, the features in which its patients differ most from all others.

X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)
clf.fit(X_train, y_train)
print(decomposition_report(clf, X_test, y_test))
ExpertSamplesDisplay.from_estimator(clf, X_test)
plt.show()
