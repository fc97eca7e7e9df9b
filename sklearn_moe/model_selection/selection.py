"""How the trials of a search are compared, and when the best of them beats the estimator."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline

from sklearn_moe.decomposition import SCORERS
from sklearn_moe.fitted import is_mixture
from sklearn_moe.model_selection.cross_validation import paired_test

# The score by which trials are compared if accuracy is asked for.
LOG_LIKELIHOOD = "log_likelihood"

# A probability of zero counts as this, as in scikit-learn's log loss.
LOWEST = np.finfo(np.float64).eps


def last_step(estimator: BaseEstimator) -> BaseEstimator:
    """Return the last step of a pipeline, or the estimator itself."""
    return estimator[-1] if isinstance(estimator, Pipeline) else estimator


def compared_by(estimator: BaseEstimator, scoring: Any) -> str | None:
    """Return the name of the score that compares the trials of a search.

    Parameters
    ----------
    estimator : estimator
        The estimator to tune.
    scoring : str, callable, dict or None
        What the user asked for, with several scores as a dict.

    Returns
    -------
    str or None
        "log_likelihood" for the accuracy of a mixture, "score" for any other score, and None for
        several scores.
    """
    if isinstance(scoring, dict):
        return None
    is_coarse = scoring is None or (isinstance(scoring, str) and scoring == "accuracy")
    return LOG_LIKELIHOOD if is_coarse and is_mixture(last_step(estimator)) else "score"


def asks_decomposition(scoring: Any) -> bool:
    """Whether one of the scores measures the decomposition."""
    scores = scoring.values() if isinstance(scoring, dict) else [scoring]
    return any(score is measure for score in scores for measure in SCORERS.values())


def likelihood(estimator: BaseEstimator, X: Any, y: ArrayLike) -> NDArray[np.float64]:
    """Return the probability that a classifier gives the label of each sample, above 0."""
    classes, y = np.asarray(estimator.classes_), np.asarray(y)
    place = np.searchsorted(classes, y).clip(max=len(classes) - 1)
    proba = estimator.predict_proba(X)[np.arange(len(y)), place]
    return np.where(classes[place] == y, proba, 0).clip(LOWEST).astype(np.float64)


def best_candidate(
    results: dict[str, NDArray], name: str, default: int | None, ratio: float
) -> int:
    """Return the place of the best candidate, or of the default if it is not clearly better.

    :class:`MoESearchCV` says what "clearly" means.

    Parameters
    ----------
    results : dict of ndarray
        ``cv_results_`` of a search, with the mean of the score, ``mean_test_score``.
    name : str
        The score that compares the candidates.
    default : int or None
        Place of the default among the candidates. None: the best one is taken.
    ratio : float
        Mean ratio of the sizes of the test part and the training part.

    Returns
    -------
    int
    """
    mean = results[f"mean_test_{name}"]
    if default is not None:  # what compares them may rise while the score falls
        score = results["mean_test_score"]
        mean = np.where(score < score[default], -np.inf, mean)
    best = int(mean.argmax())
    n_folds = sum(f"split{fold}_test_{name}" in results for fold in range(len(results)))
    if default is None or n_folds == 1:
        return best
    scores = np.array([results[f"split{fold}_test_{name}"] for fold in range(n_folds)])
    test = paired_test(scores[:, best] - scores[:, default], ratio)
    return best if test["difference"] > test["standard_error"] else default


def values_of(X):
    """Return arrays with the values of X, which are the same for equal samples."""
    if not sparse.issparse(X):
        return np.asarray(X)
    X = sparse.csr_array(X, copy=True)  # as a sparse object remembers what was done with it
    X.sum_duplicates()
    return X.data, X.indices, X.indptr, X.shape
