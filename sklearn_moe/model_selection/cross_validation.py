"""Cross-validation with measures of the decomposition, and comparisons on the same folds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from sklearn import model_selection
from sklearn.base import BaseEstimator
from sklearn.metrics import check_scoring, get_scorer_names

from sklearn_moe.containers import as_eager
from sklearn_moe.decomposition import SCORERS


class CrossValidation(dict):
    """The result of :func:`cross_validate`: a dict of arrays that prints means and deviations."""

    def __repr__(self) -> str:
        rows = {
            name: values
            for name, values in self.items()
            if isinstance(values, np.ndarray) and values.dtype.kind == "f"
        }
        n_folds = len(next(iter(rows.values())))
        lines = [f"{f'{n_folds} folds':34}{'mean':>10}{'std':>10}"]
        for name, values in rows.items():
            deviation = np.std(values, ddof=1) if n_folds > 1 else np.nan
            lines.append(f"{name:34}{np.mean(values):10.4f}{deviation:10.4f}")
        return "\n".join(lines)


def cross_validate(
    estimator: BaseEstimator,
    X: ArrayLike,
    y: ArrayLike,
    *,
    cv: Any = 5,
    scoring: str | Callable | Sequence[str] | dict | None = None,
    groups: ArrayLike | None = None,
    params: dict[str, Any] | None = None,
    n_jobs: int | None = None,
    verbose: int = 0,
    return_train_score: bool = False,
    return_estimator: bool = False,
    return_indices: bool = False,
    error_score: float | str = np.nan,
) -> CrossValidation:
    """Cross-validate a mixture of experts and measure its decomposition in each fold.

    Parameters
    ----------
    estimator : MoEClassifier or Pipeline
        The mixture, or a pipeline that ends in one.
    X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        Samples.
    y : array-like of shape (n_samples,)
        Class labels.
    cv : int, cross-validation generator or iterable, default=5
        How the folds are made; an int is the number of stratified folds.
    scoring : str, callable, list, dict or None, default=None
        As in :func:`sklearn.model_selection.cross_validate`. The names in ``SCORERS`` are known,
        too, and a callable returns a number. None means accuracy.
    groups : array-like of shape (n_samples,), default=None
        Groups for a splitter that keeps them together. With scikit-learn's metadata routing they
        go into ``params``.
    params : dict, default=None
        Parameters for ``fit``, such as ``{"sample_weight": weights}``; with metadata routing, also
        for the splitter and the scorers.
    n_jobs : int, default=None
        Number of folds that run in parallel, on the active backend of joblib.
    verbose : int, default=0
        Verbosity.
    return_train_score, return_estimator, return_indices : bool, default=False
        What to return in addition to the test scores.
    error_score : "raise" or float, default=nan
        Score of a fit that fails.

    Returns
    -------
    CrossValidation
        A dict of arrays of shape (n_folds,): the result of scikit-learn's function with five more
        scores for the test part of each fold. ``test_neg_sample_entropy``, ``test_usage_entropy``,
        ``test_expert_class_information`` and ``test_specialization`` are in bits; the fifth is
        ``test_chosen_expert_accuracy``. It prints a table of means and standard deviations.

    See Also
    --------
    compare : Compares several estimators on the same folds.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_moe import MoEClassifier, cross_validate
    >>> X, y = load_iris(return_X_y=True)
    >>> result = cross_validate(MoEClassifier(n_experts=3, max_iter=10, random_state=0), X, y)
    >>> result["test_score"].shape, result["test_usage_entropy"].shape
    ((5,), (5,))
    """
    X, y = as_eager(X), as_eager(y)
    scoring = scorers_by_name(scoring)
    if not isinstance(scoring, dict):
        scoring = {"score": check_scoring(estimator, scoring=scoring)}
    result = model_selection.cross_validate(
        estimator,
        X,
        y,
        cv=cv,
        scoring={**SCORERS, **scoring},
        groups=groups,
        params=params,
        n_jobs=n_jobs,
        verbose=verbose,
        return_train_score=return_train_score,
        return_estimator=return_estimator,
        return_indices=return_indices,
        error_score=error_score,
    )
    return CrossValidation(result)


def scorers_by_name(scoring):
    """Replace the names of our scorers by the scorers; several become a dict."""
    if isinstance(scoring, str):
        if scoring not in (known := {*SCORERS, *get_scorer_names()}):
            raise ValueError(f"There is no scorer {scoring!r}. The names are {sorted(known)}.")
        return SCORERS.get(scoring, scoring)
    if isinstance(scoring, dict):
        return {name: scorers_by_name(scorer) for name, scorer in scoring.items()}
    if isinstance(scoring, (list, tuple, set)):
        return {name: scorers_by_name(name) for name in scoring}
    return scoring


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """The scores of several estimators on the same folds; it prints a table.

    Attributes
    ----------
    scores : dict of ndarray of shape (n_folds,)
        The score of each estimator in each fold, by its name.
    differences : list of dict
        For each pair: ``first``, ``second``, ``difference`` (mean of first minus second),
        ``standard_error`` and ``p_value``. ``pandas.DataFrame`` turns it into a table.
    """

    scores: dict[str, np.ndarray]
    differences: list[dict[str, Any]]

    def __repr__(self) -> str:
        width = max(10, *(2 + len(name) for name in self.scores))
        n_folds = len(next(iter(self.scores.values())))
        lines = [f"{f'{n_folds} folds':{width}}{'mean':>10}{'std':>10}"]
        for name, values in self.scores.items():
            lines.append(f"{name:{width}}{values.mean():10.4f}{values.std(ddof=1):10.4f}")
        lines += ["", f"{'':{2 * width}}{'difference':>12}{'std. error':>12}{'p':>10}"]
        for row in self.differences:
            lines.append(
                f"{row['first']:{width}}{row['second']:{width}}{row['difference']:12.4f}"
                f"{row['standard_error']:12.4f}{row['p_value']:10.3f}"
            )
        return "\n".join(lines)


def compare(
    estimators: Mapping[str, BaseEstimator],
    X: ArrayLike,
    y: ArrayLike,
    *,
    cv: Any = 10,
    scoring: str | Callable | None = None,
    groups: ArrayLike | None = None,
    params: dict[str, Any] | None = None,
    n_jobs: int | None = None,
) -> Comparison:
    r"""Compare estimators on the same folds, with a test of their differences.

    The training parts of the folds overlap. So the differences :math:`d_k` of the :math:`K` folds
    are not independent, and an ordinary t-test finds too many of them significant. The corrected
    resampled t-test raises their variance by the ratio of the sizes of the test part and the
    training part:

    .. math:: t = \frac{\bar d}
              {\sqrt{\left(\frac{1}{K} + \frac{n_\mathrm{test}}{n_\mathrm{train}}\right) s_d^2}}

    with :math:`K - 1` degrees of freedom.

    Parameters
    ----------
    estimators : dict of estimators
        The estimators to compare, by name: mixtures, pipelines, or any other classifiers.
    X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        Samples.
    y : array-like of shape (n_samples,)
        Class labels.
    cv : int, cross-validation generator or iterable, default=10
        How the folds are made. There must be at least two, and all estimators get the same folds.
    scoring : str, callable or None, default=None
        A name that scikit-learn or ``SCORERS`` knows, or a scorer. None means accuracy.
    groups : array-like of shape (n_samples,), default=None
        Groups for a splitter that keeps them together.
    params : dict, default=None
        Parameters for every ``fit``, such as ``{"sample_weight": weights}``.
    n_jobs : int, default=None
        Number of folds that run in parallel.

    Returns
    -------
    Comparison
        Scores, and the difference of each pair with its standard error and two-sided p-value. The
        p-values are not corrected for the number of pairs.

    Raises
    ------
    ValueError
        If there are fewer than two estimators or folds.

    References
    ----------
    C. Nadeau, Y. Bengio, Inference for the Generalization Error, Machine Learning 52, 2003.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn_moe import MoEClassifier, compare
    >>> X, y = load_iris(return_X_y=True)
    >>> moe = MoEClassifier(n_experts=3, max_iter=10, random_state=0)
    >>> linear = LogisticRegression(max_iter=1000)
    >>> comparison = compare({"mixture": moe, "linear": linear}, X, y)
    >>> comparison.differences[0]["p_value"] > 0.05
    True
    """
    if len(estimators) < 2:
        raise ValueError(f"compare needs at least two estimators, got {list(estimators)}.")
    X, y = as_eager(X), as_eager(y)
    cv = model_selection.check_cv(cv, y, classifier=True)
    folds = list(cv.split(X, y, groups))
    if len(folds) < 2:
        raise ValueError(f"compare needs at least two folds, got {len(folds)}.")
    scores = {
        name: model_selection.cross_val_score(
            estimator,
            X,
            y,
            cv=folds,
            scoring=scorers_by_name(scoring),
            params=params,
            n_jobs=n_jobs,
            error_score="raise",
        )
        for name, estimator in estimators.items()
    }
    ratio = np.mean([len(test) / len(train) for train, test in folds])
    differences = [
        {"first": first, "second": second, **paired_test(scores[first] - scores[second], ratio)}
        for first, second in combinations(scores, 2)
    ]
    return Comparison(scores, differences)


def paired_test(differences, ratio):
    """Return the corrected resampled t-test of the differences in each fold."""
    n_folds, mean = len(differences), differences.mean()
    error = np.sqrt((1 / n_folds + ratio) * differences.var(ddof=1))
    if error > 0:
        p_value = 2 * stats.t.sf(abs(mean) / error, n_folds - 1)
    else:  # the same difference in each fold
        p_value = float(mean == 0)
    return {
        "difference": float(mean),
        "standard_error": float(error),
        "p_value": float(p_value),
    }
