"""Calibration: the temperature of probabilities, found on samples that had no part in the fit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

# Bounds of the temperature of a mixture.
TEMPERATURES = 0.2, 20.0


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
