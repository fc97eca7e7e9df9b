"""What "auto" stands for in the training of ``MoEClassifier``: the recipes, as plain data.

The one for tables was chosen on eight tables, with at most 4,000 training rows and two to six
splits, one thing after the other. Mean error in percent and log loss, each line with what those
above it have, but for the lines in brackets:

================================================== ===== ======
8 experts of 64 units, scaled features             19.42 0.5409
4 experts of 256 units, weight decay 1             18.71 0.4922
piecewise-linear columns, 8 experts of 128 units   17.91 0.4788
competence 1                                       17.61 0.4582
learning rate 6e-3                                 17.50 0.4514
learning rate 1e-2                                 17.45 0.4491
learning rate 2e-2                                 17.22 0.4459
(4e-2)                                             17.47 0.4398
(2e-2 with competence 0.5 and 60 epochs)           17.24 0.4440
(1e-2 without piecewise-linear columns)            18.40 0.4756
(6e-3 with competence 3)                           17.87 0.4555
weight decay 2 for two classes, 0.5 for more       16.71 0.4392
================================================== ===== ======

Importance costs nothing there, and no split has a usage entropy below 0.99 of its most; without it
the least was 0.17. ``benchmarks/tabular.py`` measures the result beside its peers.
"""

from __future__ import annotations

from typing import Any

from sklearn_moe.regularizers import Competence, Importance

RECIPES: dict[str, dict[str, Any]] = {
    "table": {
        "learning_rate": {"one_cycle": 0.02, "constant": 3e-3},
        "weight_decay": {"binary": 2.0, "multiclass": 0.7},
        "regularization": [Importance(0.2), Competence(1.0)],
    },
    # Images, and networks of a user's own.
    "other": {
        "learning_rate": {"one_cycle": 3e-3, "constant": 1e-3},
        "weight_decay": {"binary": 0.0, "multiclass": 0.0},
        "regularization": [],
    },
}
"""Of tables and of all else: learning rate by its schedule, weight decay by the number of classes,
and regularization."""
