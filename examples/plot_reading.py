"""
Pictures that say what experts do
=================================

Is a handwritten digit even? First, two logistic regressions answer, from nine columns with the ink
in parts of the image. Then five small convolutional networks see the images, and name the digit.
These are the pictures of the guide's page :doc:`../reading`, which says how to read them.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sklearn_moe import (
    AttentiveGate,
    CoefficientDisplay,
    ConvEncoder,
    ConvExperts,
    DecompositionDisplay,
    ExpertEffectDisplay,
    ExpertSamplesDisplay,
    MoEClassifier,
    gate_rules,
)

images, digit = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8) / 16
rows = {"upper": slice(3), "middle": slice(3, 5), "lower": slice(5, 8)}
columns = {"left": slice(3), "centre": slice(3, 5), "right": slice(5, 8)}
X = pd.DataFrame(
    {
        f"{row} {column}": 100 * images[:, rows[row], columns[column]].mean(axis=(1, 2))
        for row in rows
        for column in columns
    }
).round()
y = np.where(digit % 2 == 0, "yes", "no")  # is it even?
X_train, X_test, y_train, y_test, digit_train, digit_test, images_train, images_test = (
    train_test_split(X, y, digit, images, stratify=digit, random_state=1)
)

# %%
# What the experts say
# --------------------
# The gate reads one column, and its rules are the names of the experts. Ink at the middle right
# speaks for an odd digit in one expert, and for an even one in the other.

clf = MoEClassifier(
    2, experts="linear", gate_features=["middle left"], n_init=4, random_state=0
).fit(X_train, y_train)
rules = gate_rules(clf, X_train, X_test=X_test, random_state=0)
pictures = {
    "coefficients": CoefficientDisplay.from_estimator(clf, X_train, y_train, expert_names=rules)
}

# %%
# How an expert's prediction changes with a column
# ------------------------------------------------

shown = ["upper left", "middle right", "lower left"]
pictures["effects"] = ExpertEffectDisplay.from_estimator(clf, X_train, shown)

# %%
# Which rows are these?
# ---------------------
# As the rows are images, we can look at them.

ExpertSamplesDisplay.from_predictions(
    clf.gate_proba(X_test), images_test, digit_test, n_images=12, expert_names=rules
)

# %%
# Experts that see images
# -----------------------
# How many images of each digit an expert gets, and some of them.

seeing = MoEClassifier(
    5,
    experts=ConvExperts(channels=(8,), hidden_layer_sizes=(32,)),
    gate=AttentiveGate((32,), encoder=ConvEncoder(channels=(8,))),
    regularization="sample_similarity",
    max_iter=30,
    random_state=0,
).fit(images_train, digit_train)
pictures["classes"] = DecompositionDisplay.from_estimator(seeing, images_test, digit_test)
pictures["images"] = ExpertSamplesDisplay.from_estimator(
    seeing, images_test, digit_test, n_images=12
)
if len(sys.argv) > 1:
    for name, picture in pictures.items():
        file = Path(sys.argv[1]) / f"reading_{name}.png"
        picture.figure_.savefig(file, dpi=80, bbox_inches="tight")
else:
    plt.show()
