"""Early stopping, and what it watches."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import check_scoring
from skorch import NeuralNet
from skorch.callbacks import Callback

from sklearn_moe.calibration import log_loss_at, temperature_of_mixture
from sklearn_moe.mixture import MixtureOfExperts
from sklearn_moe.predicting import GivenProba
from sklearn_moe.training.callbacks import OneCycle

REFINED = "refined_log_loss"

# X, y as indices of the classes, and weights.
Validation = tuple[Any, NDArray, NDArray]


def loss_to_watch(
    early_stopping: bool | str | Callable, validation: Validation, classes: NDArray
) -> Callable[[NeuralNet], float]:
    """Return the function of a net whose value early stopping wants to be low.

    Parameters
    ----------
    early_stopping : True, str or callable
        As in ``MoEClassifier``.
    validation : tuple of X, y and sample_weight
        The validation set, as the net reads it.
    classes : ndarray of shape (n_classes,)
        The class labels.
    """
    if early_stopping is True:
        return _recorded_loss
    if early_stopping == REFINED:
        return partial(_refined_log_loss, validation=validation)
    given = GivenProba(classes)
    scorer = check_scoring(given, early_stopping)
    return partial(_negative_score, scorer, given, validation=validation, name=early_stopping)


def _recorded_loss(net):
    return net.history[-1, "valid_loss"]


def _refined_log_loss(net, validation):
    X, y, weight = validation
    log_proba = net.evaluate(X, MixtureOfExperts.predict_log_proba, np.float64)
    temperature = temperature_of_mixture(log_proba, y, weight)
    return float(log_loss_at(np.log(temperature), log_proba, y, weight))


def _negative_score(scorer, given, net, validation, name):
    X, y, weight = validation
    given.proba = net.evaluate(X, MixtureOfExperts.predict_proba, np.float64)
    given.proba /= given.proba.sum(axis=1, keepdims=True)
    options = {} if np.ptp(weight) == 0 else {"sample_weight": weight}
    try:
        score = scorer(given, X, given.classes_[y], **options)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"early_stopping={name!r} can't score the validation set: {error}"
        ) from error
    if not np.isfinite(score):
        raise ValueError(
            f"early_stopping={name!r} gives the score {score} on the validation set. Pass X_val "
            "and y_val for which the score is defined, or early_stopping=True."
        )
    return -float(score)


class StopEarly(Callback):
    """End a training whose validation loss stops falling, and restore the best weights.

    Parameters
    ----------
    loss : callable
        ``loss(net)`` returns the validation loss of a net as it is.
    patience : int
        The training ends after this many epochs without a fall of the loss.
    tol : float
        A fall by more than this counts.

    Notes
    -----
    A high learning rate makes the loss go up and down, and the loss falls when the rate falls. So
    with ``OneCycle``, waiting begins at the peak of the rate, and the rate falls to zero before
    the training ends.
    """

    can_be_captured = True

    def __init__(self, loss: Callable[[NeuralNet], float], patience: int, tol: float):
        self.loss = loss
        self.patience = patience
        self.tol = tol

    def on_train_begin(self, net, **kwargs):
        schedules = [each for each in net.listeners if isinstance(each, OneCycle)]
        self.schedule = schedules[0] if schedules else None
        self.lowest = self.to_beat = math.inf
        self.waited = 0
        self.epochs_left = None
        self.best_weights = None

    def on_epoch_end(self, net, **kwargs):
        loss = self.loss(net)
        net.history.record("stopping_loss", loss)
        if loss < self.lowest:
            self.lowest = loss
            self.best_weights = deepcopy(net.module_.state_dict())
        if self.schedule is None or self.schedule.progress > self.schedule.warm_up:
            self.waited += 1
        if loss < self.to_beat - self.tol:
            self.to_beat = loss
            self.waited = 0
        if self.epochs_left is not None:
            self.epochs_left -= 1
        elif self.waited >= self.patience:
            self.epochs_left = 0 if self.schedule is None else self.schedule.come_down()
        if self.epochs_left == 0:
            raise KeyboardInterrupt  # skorch's signal to stop

    def after_epochs(self, net):
        """Restore the best weights, before other callbacks get ``on_train_end``."""
        # An epoch in which another callback ended the training is missing here; it may be best.
        last = net.history[-1] if net.history else {}
        is_missing = "valid_loss" in last and "stopping_loss" not in last
        is_best = is_missing and self.loss(net) < self.lowest
        if self.best_weights is not None and not is_best:
            net.module_.load_state_dict(self.best_weights)
