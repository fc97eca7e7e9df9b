"""Calibration: the temperature of probabilities, found on samples that had no part in the fit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.base import BaseEstimator
from sklearn.utils import _safe_indexing

from sklearn_moe.folds import indexable_samples, make_folds

if TYPE_CHECKING:
    from sklearn_moe.data import TrainingData

# Bounds of the temperature of a mixture.
TEMPERATURES = 0.2, 20.0


def temperature_on_folds(
    estimator: BaseEstimator, data: TrainingData, sample_weight: ArrayLike | None, seed: int
) -> float:
    """Return the temperature from mixtures that are fitted on halves of the samples.

    Each predicts the half that had no part in its fit. Mixtures of all samples are less overfitted
    than those of half as many: what is learned of single samples falls in inverse proportion to
    their number. So of a temperature above 1 the root is taken, which halves its logarithm. One
    below 0.5 becomes 0.5: halves of few samples have too few steps to be as sure as they should.
    The temperature is 1 if one half lacks a class.
    """
    X, rows = indexable_samples(data.given), np.arange(len(data.y))
    params = {
        **estimator.get_params(deep=False),
        "net_params": deepcopy(estimator.net_params),
        "calibrate": False,
        "warm_start": False,
        "verbose": 0,
        "random_state": seed,
    }
    weight = None
    if sample_weight is not None:  # an array, or one number for all
        weight = np.broadcast_to(np.asarray(sample_weight), X.shape[:1])
    log_proba = np.empty((len(rows), len(data.classes)))
    for train, test in make_folds(2, data.y, data.y, rows, data.group, seed):
        lacking = np.setdiff1d(np.arange(len(data.classes)), data.y[train])
        if len(lacking):
            warn_of_no_temperature(
                "calibrate=True fits a mixture on each half of the samples, and one half has none "
                f"of class {data.classes.tolist()[lacking[0]]!r}."
            )
            return 1.0
        own, others = data.rows[train], data.rows[test]
        own_weight = None if weight is None else weight[own]
        group = None if data.group is None else data.group[train]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the fit on all samples warns, too
            fitted = type(estimator)(**params).fit(
                _safe_indexing(X, own), data.classes[data.y[train]], own_weight, groups=group
            )
        log_proba[test] = fitted.predict_log_proba(_safe_indexing(X, others))
    temperature = temperature_of_mixture(log_proba, data.y, data.sample_weight)
    return max(min(temperature, temperature**0.5), 0.5)


def warn_of_no_temperature(reason: str) -> None:
    """Warn that there is no temperature, for a reason."""
    warnings.warn(
        f"{reason} The temperature stays 1. Pass X_val and y_val to find it.", stacklevel=2
    )


def temperature_of_mixture(
    log_proba: NDArray[np.float64], y: NDArray[np.int64], sample_weight: NDArray
) -> float:
    """Return the most probable temperature, if its logarithm is standard normal beforehand.

    Few samples that are all predicted well would otherwise give the lowest temperature. The
    parameters are those of :func:`log_loss_at`.
    """

    def loss(log_temperature):
        prior = log_temperature**2 / (2 * len(y))
        return log_loss_at(log_temperature, log_proba, y, sample_weight) + prior

    return best_factor(loss, TEMPERATURES, y)


def log_loss_at(
    log_temperature: float, log_proba: NDArray, y: NDArray[np.int64], sample_weight: NDArray
) -> float:
    """Return the log loss of probabilities after a temperature.

    Parameters
    ----------
    log_temperature : float
        Its logarithm.
    log_proba : ndarray of shape (n_samples, n_classes)
        Log-probabilities, which the temperature divides.
    y : ndarray of shape (n_samples,)
        Indices of the classes.
    sample_weight : ndarray of shape (n_samples,)
        Weights of the samples.
    """
    scaled = log_softmax(log_proba / np.exp(log_temperature), axis=1)
    return -np.average(scaled[np.arange(len(y)), y], weights=sample_weight)


def best_factor(
    loss: Callable[[float], float], bounds: tuple[float, float], y: NDArray[np.int64]
) -> float:
    """Return the factor whose logarithm has the lowest loss, and 1 if there is one class."""
    if np.ptp(y) == 0:
        return 1.0
    best = minimize_scalar(loss, bounds=np.log(bounds), method="bounded", options={"xatol": 1e-3})
    return float(np.exp(best.x)) if best.fun < loss(0.0) else 1.0
