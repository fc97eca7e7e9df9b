"""Folds of the training samples, as a user passed them."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.utils import _safe_indexing, indexable

from sklearn_moe.containers import as_objects


def indexable_samples(X):
    """Return samples whose rows can be selected: sparse rows, a frame or an array."""
    has_rows = hasattr(X, "shape") and not isinstance(X, memoryview)
    return indexable(X if has_rows else np.asarray(as_objects(X)))[0]


def make_folds(cv, X, y, rows, group, random_state):
    """Return training and test samples of each fold."""
    labels, groups = y[rows], None if group is None else group[rows]
    if isinstance(cv, (int, np.integer)):
        most = np.bincount(labels).max() if group is None else len(np.unique(groups))
        if most < 2:
            raise ValueError(
                "The experts, or calibrate=True, need two samples of a class, or two groups, to "
                f"be fitted on folds; got n_samples={len(rows)}. Pass more, or fitted experts "
                "with cv='prefit' and calibrate=False."
            )
        kind = StratifiedKFold if group is None else StratifiedGroupKFold
        cv = kind(min(cv, most), shuffle=True, random_state=random_state)
    with warnings.catch_warnings():
        # The fits of folds do well without a class of few samples.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        folds = [
            (rows[train], rows[test])
            for train, test in cv.split(_safe_indexing(X, rows), labels, groups)
        ]
    tested = np.concatenate([test for _, test in folds])
    if not np.array_equal(np.sort(tested), np.sort(rows)):
        raise ValueError(f"cv={cv!r} must test each sample once, as StratifiedKFold does.")
    return folds
