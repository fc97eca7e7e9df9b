"""The fitted scikit-learn classifiers among a mixture's experts."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import log_softmax
from sklearn import get_config
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils import _safe_indexing, get_tags
from sklearn.utils.metadata_routing import get_routing_for_object
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import check_is_fitted, has_fit_parameter

from sklearn_moe.calibration import best_factor, log_loss_at
from sklearn_moe.checks import scaled
from sklearn_moe.containers import SparseRows
from sklearn_moe.experts import EstimatorExperts, FittedExpert
from sklearn_moe.experts.base import LOWEST
from sklearn_moe.folds import indexable_samples, make_folds

# Bounds of a temperature, and of the factor of all temperatures.
TEMPERATURES = 0.2, 5.0
FACTORS = 0.5, 1.0

# Steps of EM to the weights of a mean of classifiers.
STEPS = 50


@dataclass(eq=False)
class Committee:
    """Classifiers that answer beside the experts of the net.

    Their log-probabilities follow the columns of a sample, in the array that the net reads.

    Attributes
    ----------
    names : list of str
        Names of the classifiers.
    estimators : list
        The fitted classifiers.
    temperatures : list of float
        Their log-probabilities are divided by these.
    classes : ndarray of shape (n_classes,)
        The classes of the mixture.
    """

    names: list[str]
    estimators: list[BaseEstimator]
    temperatures: list[float]
    classes: NDArray

    @property
    def n_columns(self) -> int:
        return len(self.estimators) * len(self.classes)

    def log_proba(self, X: Any, asked: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        """Return log-probabilities (n_samples, n_estimators, n_classes) of samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples, as a user passed them.
        asked : ndarray of shape (n_samples, n_estimators), default=None
            Which classifiers must answer for a sample; None means all. The others get zeros.
        """
        X = indexable_samples(X)
        out = np.zeros((X.shape[0], len(self.estimators), len(self.classes)), dtype=np.float32)
        for place, estimator in enumerate(self.estimators):
            rows, own = slice(None), X
            if asked is not None and not asked[:, place].all():
                rows = np.flatnonzero(asked[:, place])
                if len(rows) == 0:
                    continue
                own = _safe_indexing(X, rows)
            with _named(self.names[place], "in predict_proba", estimator):
                log_proba = _log_proba(estimator, own, self.classes)
            out[rows, place] = log_softmax(log_proba / self.temperatures[place], axis=1)
        return out

    def keep(self, names: list[str]) -> Committee | None:
        """Return a committee of the classifiers among these names, in this order, or None."""
        kept = [self.names.index(name) for name in names if name in self.names]
        parts: dict[str, Any] = {
            name: [getattr(self, name)[place] for place in kept]
            for name in ("names", "estimators", "temperatures")
        }
        return replace(self, **parts) if kept else None


def join(samples: NDArray | SparseRows, log_proba: NDArray) -> NDArray | SparseRows:
    """Return samples, as the net reads them, with log-probabilities as their last columns.

    Images become flat, and their bytes numbers from 0 to 1.
    """
    log_proba = log_proba.reshape(len(log_proba), -1)
    if isinstance(samples, SparseRows):
        return SparseRows(sparse.hstack([samples.matrix, log_proba.astype(samples.dtype)]))
    if samples.dtype == np.uint8:
        samples = samples / np.float32(255)
    samples = samples.reshape(len(samples), -1)
    return np.hstack([samples, log_proba.astype(samples.dtype)])


def fit_committee(
    experts: EstimatorExperts,
    X: Any,
    y: NDArray[np.int64],
    classes: NDArray,
    *,
    rows: NDArray[np.int64],
    sample_weight: NDArray,
    group: NDArray | None,
    random_state: np.random.RandomState,
) -> tuple[Committee, NDArray[np.float32]]:
    """Fit the classifiers of a list on all samples, and on folds.

    Parameters
    ----------
    experts : EstimatorExperts
        The list, which was checked.
    X : array-like of shape (n_samples, n_features)
        Samples, as a user passed them.
    y : ndarray of shape (n_samples,)
        Index of the class of each sample.
    classes : ndarray of shape (n_classes,)
        The class labels.
    rows : ndarray of int
        The samples that count.
    sample_weight : ndarray of shape (n_samples,)
        Their weights.
    group : ndarray of shape (n_samples,) or None
        Groups that folds must not split.
    random_state : RandomState
        Splits the folds, and seeds classifiers that have no seed.

    Returns
    -------
    committee : Committee
        The classifiers, fitted on all samples.
    log_proba : ndarray of shape (n_samples, n_estimators, n_classes)
        The log-probabilities of classifiers that were fitted without the sample. Zeros for samples
        that do not count.
    """
    X = indexable_samples(X)
    labels = classes[y]
    names = [name for name, _ in experts.outside]
    is_fitted = [
        experts.cv == "prefit" or isinstance(estimator, (FrozenEstimator, FittedExpert))
        for _, estimator in experts.outside
    ]
    folds = [] if all(is_fitted) else make_folds(experts.cv, X, y, rows, group, random_state)
    tasks = []
    for (name, estimator), fitted in zip(experts.outside, is_fitted, strict=True):
        if fitted:
            _check_fitted(name, estimator, classes)
            continue
        params = _weights_for(name, estimator, sample_weight, rows)
        estimator = _seeded(clone(estimator), random_state)
        tasks += [(name, estimator, params, train, test) for train, test in folds]
        tasks.append((name, estimator, params, rows, None))
    results = Parallel(n_jobs=experts.n_jobs)(
        delayed(_fit_one)(*task, X, labels, classes) for task in tasks
    )
    results = iter(results)
    estimators, temperatures = [], []
    out = np.zeros((X.shape[0], len(names), len(classes)), dtype=np.float32)
    weight = scaled(sample_weight[rows])  # so that the sum of huge weights is finite
    for place, (name, fitted) in enumerate(zip(names, is_fitted, strict=True)):
        estimator, temperature = experts.outside[place][1], 1.0
        if fitted:
            with _named(name, "in predict_proba", estimator):
                out[rows, place] = _log_proba(estimator, _safe_indexing(X, rows), classes)
        else:
            for _, test in folds:
                out[test, place] = next(results)
            estimator = next(results)
            if experts.calibrate:
                temperature = _temperature(out[rows, place], y[rows], weight)
        out[rows, place] = log_softmax(out[rows, place] / temperature, axis=1)
        estimators.append(estimator)
        temperatures.append(temperature)
    if experts.calibrate and not any(is_fitted):
        factor = _factor(out[rows], y[rows], weight)
        temperatures = [temperature * factor for temperature in temperatures]
        out[rows] = log_softmax(out[rows] / factor, axis=2)
    return Committee(names, estimators, temperatures, classes), out


def _fit_one(name, estimator, params, train, test, X, labels, classes):
    """Fit a classifier; return it, or its log-probabilities for the test samples of a fold."""
    params = {key: value[train] for key, value in params.items()}
    where = "in the fit on all samples" if test is None else "in a fit on a part of the samples"
    with _named(name, where, estimator), warnings.catch_warnings():
        if test is not None:  # the fit on all samples warns, too
            warnings.simplefilter("ignore")
        samples = _for(estimator, _safe_indexing(X, train))
        fitted = clone(estimator).fit(samples, labels[train], **params)
        return fitted if test is None else _log_proba(fitted, _safe_indexing(X, test), classes)


@contextmanager
def _named(name, where, estimator):
    """Say of any error within which expert it is from."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"The expert {name!r} failed {where}. {estimator!r} raises {type(error).__name__}: "
            f"{error}"
        ) from error


def _log_proba(estimator, X, classes):
    """Return log-probabilities of the mixture's classes, of which a classifier may lack some."""
    proba = np.zeros((X.shape[0], len(classes)))
    given = estimator.predict_proba(_for(estimator, X))
    if len(estimator.classes_) == 1:  # boosting then returns two columns
        given = 1.0
    proba[:, np.searchsorted(classes, estimator.classes_)] = given
    if not np.isfinite(proba).all():
        raise ValueError("predict_proba returns probabilities that are not finite.")
    with np.errstate(divide="ignore"):
        return np.log(proba).clip(LOWEST)


def _for(estimator, X):
    """Return samples as a classifier takes them: images as rows, unless it takes images."""
    if len(X.shape) == 2 or get_tags(estimator).input_tags.three_d_array:
        return X
    return X.reshape(len(X), -1)


def _temperature(log_proba, y, sample_weight):
    """Return the temperature with the lowest log loss."""
    loss = partial(log_loss_at, log_proba=log_proba, y=y, sample_weight=sample_weight)
    return best_factor(loss, TEMPERATURES, y)


def _factor(log_proba, y, sample_weight):
    """Return the factor of all temperatures with the lowest log loss of the best weighted mean.

    A mean of calibrated classifiers that differ is less sure than it could be.
    """

    def loss(log_factor):
        cooled = log_softmax(log_proba.astype(np.float64) / np.exp(log_factor), axis=2)
        proba = np.exp(cooled[np.arange(len(y)), :, y])
        weight = np.full(proba.shape[1], 1 / proba.shape[1])
        for _ in range(STEPS):
            share = proba * weight / (proba @ weight)[:, np.newaxis]
            weight = np.average(share, axis=0, weights=sample_weight)
        return -np.average(np.log(proba @ weight), weights=sample_weight)

    return 1.0 if log_proba.shape[1] == 1 else best_factor(loss, FACTORS, y)


def _seeded(estimator, random_state):
    """Give seeds to the parts of a classifier that have none."""
    seeds = {
        name: int(random_state.randint(np.iinfo(np.int32).max))
        for name, value in sorted(estimator.get_params().items(), key=lambda item: item[0])
        if (name == "random_state" or name.endswith("__random_state")) and value is None
    }
    return estimator.set_params(**seeds)


def _weights_for(name, estimator, sample_weight, rows):
    """Return the arguments of ``fit`` that hold the weights of the samples."""
    if np.ptp(sample_weight[rows]) == 0:
        return {}
    key = "sample_weight"
    if get_config()["enable_metadata_routing"]:
        takes = get_routing_for_object(estimator).consumes("fit", [key])
    else:
        last = estimator
        while isinstance(last, Pipeline):
            step, last = last.steps[-1]
            key = f"{step}__{key}"
        takes = has_fit_parameter(last, "sample_weight")
    if takes:
        return {key: sample_weight}
    raise ValueError(
        f"There are sample weights or class weights, but the expert {name!r} does not take them: "
        f"{estimator!r}. Leave it out."
    )


def _check_fitted(name, estimator, classes):
    """Raise an error unless a classifier is fitted on some of the classes."""
    try:
        check_is_fitted(estimator)
    except NotFittedError as error:
        raise NotFittedError(
            f"The expert {name!r} is not fitted: {estimator!r}. Fit it first, or set cv to a "
            "number of folds. Note that clone, which searches call, forgets a fit unless it is "
            "wrapped in a FrozenEstimator."
        ) from error
    with _named(name, "to tell its classes", estimator):
        unknown = sorted(set(estimator.classes_.tolist()) - set(classes.tolist()))
    if unknown:
        raise ValueError(
            f"The expert {name!r} was fitted on the classes {unknown}, which y lacks: it has only "
            f"{classes.tolist()}."
        )
