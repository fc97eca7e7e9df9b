"""A list of experts that predict tables well: one word for the best that we can offer."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import get_config
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.pipeline import make_pipeline
from sklearn.utils._param_validation import HasMethods, Interval

from sklearn_moe.experts.estimators import EstimatorExperts
from sklearn_moe.tables import TableTransformer, read_any


class StrongExperts(EstimatorExperts):
    """Four strong and different classifiers: boosting, a forest, our mixture and a regression.

    The experts are named "boosting", "forest", "mixture" and "regression". They are
    ``HistGradientBoostingClassifier(l2_regularization=1)``, ``RandomForestClassifier()``,
    ``MoEClassifier()`` and ``LogisticRegression()``. They take all tables that ``MoEClassifier``
    takes, with text, categories and missing values; sparse matrices become dense.

    A fit costs ``cv + 1`` fits of each of the four, and most of it goes to the mixture and, with
    many classes, to boosting. With the default this is five to ten times the time of
    ``MoEClassifier()``. Predictions run all four.

    Parameters
    ----------
    cv : int or cross-validation generator, default=5
        How to split the training samples, as in :class:`EstimatorExperts`.
    n_jobs : int or None, default=None
        Number of processes for the fits; None is one, -1 is all processors.

    See Also
    --------
    EstimatorExperts : The same with classifiers of your own.

    Examples
    --------
    >>> from sklearn_moe import MoEClassifier, StrongExperts
    >>> clf = MoEClassifier(experts="strong")
    >>> faster = MoEClassifier(experts=StrongExperts(cv=3, n_jobs=-1))
    """

    _parameter_constraints: dict = {
        "cv": [
            Interval(Integral, 2, None, closed="left"),
            HasMethods(["split", "get_n_splits"]),
        ],
        "n_jobs": EstimatorExperts._parameter_constraints["n_jobs"],
    }
    calibrate = True
    needs_tables = True

    def __init__(self, *, cv: Any = 5, n_jobs: int | None = None):
        self.cv = cv
        self.n_jobs = n_jobs

    get_params, set_params = BaseEstimator.get_params, BaseEstimator.set_params

    @property
    def estimators(self) -> list[tuple[str, Any]]:  # type: ignore[override]
        """The experts, for a table without categories."""
        return _experts_for(np.zeros(0, dtype=bool))

    def for_table(self, is_categorical: NDArray[np.bool_]) -> EstimatorExperts:
        """Return the list of experts for a table."""
        return EstimatorExperts(_experts_for(is_categorical), cv=self.cv, n_jobs=self.n_jobs)


def _experts_for(is_categorical):
    """Return names and classifiers for a table with these columns of categories."""
    # Here, as an import of sklearn_moe would otherwise take a tenth longer.
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression

    from sklearn_moe.estimator import MoEClassifier

    boosting = HistGradientBoostingClassifier(
        l2_regularization=1, categorical_features=np.sort(is_categorical)
    )
    forest, regression = RandomForestClassifier(), LogisticRegression(max_iter=1000)
    mixture = MoEClassifier(categorical_features=is_categorical)
    if get_config()["enable_metadata_routing"]:
        for classifier in (boosting, forest, regression, mixture):
            classifier.set_fit_request(sample_weight=True)
    codes, encoded = TableColumns(is_categorical), TableColumns(is_categorical, encode=True)
    return [
        ("boosting", make_pipeline(codes, boosting)),
        ("forest", make_pipeline(codes, forest)),
        ("mixture", mixture),
        ("regression", make_pipeline(encoded, regression)),
    ]


class TableColumns(TransformerMixin, BaseEstimator):
    """Read a table from any container into an array of numbers.

    Parameters
    ----------
    is_categorical : ndarray of shape (n_features,)
        Which columns hold categories.
    encode : bool, default=False
        Whether to scale numbers, fill missing ones and give each category a column. Otherwise
        numbers stay as they are, and the numbers of the categories follow them. A column that
        holds nothing in training is zero.
    """

    def __init__(self, is_categorical: NDArray[np.bool_], *, encode: bool = False):
        self.is_categorical = is_categorical
        self.encode = encode

    def fit(self, X: ArrayLike, y: None = None) -> TableColumns:
        """Learn the categories, and the scales of numbers."""
        table = read_any(X, self.is_categorical)
        self.table_ = TableTransformer(n_knots=None)
        self.table_.fit(table, is_categorical=self.is_categorical)
        arranged: Any = self.table_.arrange(table)
        self.is_known_ = ~np.isnan(arranged).all(axis=0)
        return self

    def transform(self, X: ArrayLike) -> NDArray:
        """Return the columns as numbers."""
        if self.encode:
            return self.table_.transform(X)
        limits = np.finfo(np.float32)  # forests read single precision
        return np.where(self.is_known_, self.table_.read(X).clip(limits.min, limits.max), 0)
