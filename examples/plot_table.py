"""
A table without preparation
===========================

These are the diabetes data with the columns as a doctor would have them: numbers, some of them
missing, and categories. The mixture scales the numbers, fills in missing values and encodes the
categories itself.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

from sklearn_moe import (
    ExpertSamplesDisplay,
    MLPExperts,
    MoEClassifier,
    cross_validate,
    decomposition_report,
)

X, progression = load_diabetes(return_X_y=True, as_frame=True, scaled=False)
names = {"bp": "blood pressure", "s1": "cholesterol", "s2": "LDL", "s3": "HDL"}
names |= {"s4": "cholesterol / HDL", "s5": "log triglycerides", "s6": "blood sugar"}
X = X.rename(columns=names)
X["sex"] = X["sex"].map({1.0: "one", 2.0: "other"})  # the data do not say which is which
X["weight"] = pd.cut(
    X.pop("bmi"), [0, 18.5, 25, 30, np.inf], labels=["under", "normal", "over", "obese"]
)
X.loc[::20, "blood pressure"] = np.nan
y = np.where(progression > progression.median(), "progresses", "stable")
print(X.head(3).to_string())

# %%
# Columns of text and of categorical type are treated as categories. Categories that were not in
# the training data are ignored.

clf = MoEClassifier(
    n_experts=3,
    experts=MLPExperts((16,), dropout=0.2),
    gate="attentive",
    regularization="sample_similarity",
    max_iter=20,
    random_state=0,
)
scores = cross_validate(clf, X, y)
print(f"accuracy {scores['test_score'].mean():.2f} in 5-fold cross-validation")

# %%
# Who are the experts' patients?
# ------------------------------
# For each expert, the picture shows the features in which its patients differ most from all
# others, with both means. The mean of a category is its share: 0.7 means 70% of the patients.

X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)
clf.fit(X_train, y_train)
print(decomposition_report(clf, X_test, y_test))
ExpertSamplesDisplay.from_estimator(clf, X_test)
plt.show()
