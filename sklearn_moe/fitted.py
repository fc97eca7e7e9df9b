"""The methods of a fitted mixture: predict, and show how gate and experts contribute."""

from __future__ import annotations

from copy import copy
from functools import partial
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp
from sklearn.base import BaseEstimator
from sklearn.utils import Bunch
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d

from sklearn_moe.checks import check_device, check_shape
from sklearn_moe.documentation import Documented
from sklearn_moe.mixture import MixtureOfExperts
from sklearn_moe.plain import Plain
from sklearn_moe.tensors import takes_tensors

if TYPE_CHECKING:
    from sklearn_moe.reader import Reader
    from sklearn_moe.training.net import MoENet

# Log-probabilities that are computed at once if only those of the labels are kept: 64 MB.
LOG_PROBA_AT_ONCE = 2**24


# For which samples each expert must answer, by the gate's probabilities.


def _answering(gate_proba):
    return gate_proba > 0


def _nobody(gate_proba):
    return np.zeros(gate_proba.shape, dtype=bool)


def _chosen(gate_proba):
    return np.eye(gate_proba.shape[1], dtype=bool)[gate_proba.argmax(axis=1)]


class FittedMixture(Plain, Documented):
    """The methods and attributes of a classifier with a ``reader_`` and a ``net_``."""

    classes_: NDArray
    n_features_in_: int
    net_: MoENet
    reader_: Reader
    _importances: NDArray[np.float64] | None

    @takes_tensors
    def predict(self, X: ArrayLike) -> NDArray:
        """Predict the most probable class of each sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples,)
            Class labels.
        """
        fitted = self._snapshot()  # another thread may fit meanwhile
        proba = fitted.predict_proba(X)
        return fitted.classes_[proba.argmax(axis=1)]

    @takes_tensors
    def predict_proba(self, X: ArrayLike) -> NDArray[np.floating]:
        """Predict the probability of each class.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Probabilities in the order of ``classes_``; rows sum to 1. They are float64, or float32
            if ``X`` is float32 or float16.
        """
        check_is_fitted(self)
        fitted = self._snapshot()  # another thread may fit meanwhile
        function = partial(MixtureOfExperts.predict_proba, temperature=fitted.temperature_)
        return fitted._evaluate_proba(X, function, asks=_answering)

    @takes_tensors
    def predict_log_proba(self, X: ArrayLike) -> NDArray[np.floating]:
        """Predict the logarithm of the probability of each class.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Log-probabilities. They are exact even if the probability is rounded to 0.
        """
        check_is_fitted(self)
        fitted = self._snapshot()  # another thread may fit meanwhile

        def function(module, x):
            return (module.predict_log_proba(x) / fitted.temperature_).log_softmax(dim=1)

        log_proba = fitted._evaluate(X, function, asks=_answering)
        if log_proba.dtype == np.float64:
            log_proba -= logsumexp(log_proba, axis=1, keepdims=True)
        return log_proba

    @takes_tensors
    def gate_proba(self, X: ArrayLike, *, layer: int | None = None) -> NDArray[np.floating]:
        """Return how much each expert contributes to the prediction for each sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Samples.
        layer : int, default=None
            The number of a hidden layer of experts, from 0, if the encoder is ``MoELayers``; the
            experts are then those of this layer. None: the experts that predict.

        Returns
        -------
        ndarray of shape (n_samples, n_experts)
            Gate probabilities after top-k masking; rows sum to 1. A gate with ``top_k=1`` gives
            one expert the whole sample here, although it trains on the full softmax.

        Raises
        ------
        ValueError
            If there is no such layer.
        """
        if layer is None:
            return self._evaluate_proba(X, MixtureOfExperts.gate_proba, asks=_nobody)
        check_is_fitted(self)
        n_layers = len(self.module_.layers)
        is_number = isinstance(layer, Integral) and not isinstance(layer, bool)
        if not is_number or layer not in range(n_layers):
            raise ValueError(
                f"layer={layer!r} must be a number from 0 to {n_layers - 1}, of a hidden layer of "
                "experts."
                if n_layers
                else f"layer={layer!r}, but there are no hidden layers of experts. Pass "
                "layer=None, or fit with encoder='moe'."
            )
        return self._evaluate_proba(X, lambda module, x: module(x).layers[layer].gate_proba)

    @takes_tensors
    def expert_proba(self, X: ArrayLike, *, chosen_only: bool = False) -> NDArray[np.floating]:
        """Predict the probability of each class by each expert on its own.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Samples.
        chosen_only : bool, default=False
            Whether to return only the probabilities of the expert that the gate chooses for a
            sample (see :meth:`apply`).

        Returns
        -------
        ndarray of shape (n_samples, n_experts, n_classes) or (n_samples, n_classes)
            Each expert's probabilities, or those of the chosen expert.
        """
        if chosen_only:
            return self._evaluate_proba(
                X,
                lambda module, x: module.chosen_expert_logits(x).softmax(dim=1),
                asks=_chosen,
            )
        return self._evaluate_proba(X, lambda module, x: module.expert_logits(x).softmax(dim=2))

    @takes_tensors
    def expert_log_likelihood(self, X: ArrayLike, y: ArrayLike) -> NDArray[np.floating]:
        """Return the logarithm of the probability that each expert gives the true class.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Samples.
        y : array-like of shape (n_samples,)
            Labels.

        Returns
        -------
        ndarray of shape (n_samples, n_experts)
            Natural logarithms, exact even if the probability would be rounded to 0. Rows of labels
            that are not in ``classes_`` are nan.
        """
        check_is_fitted(self)
        fitted = self._snapshot()  # another thread may fit meanwhile
        samples, precision = fitted._read(X)
        y = column_or_1d(y)
        check_consistent_length(samples, y)
        positions = {label: index for index, label in enumerate(fitted.classes_.tolist())}
        position = np.array([positions.get(label, -1) for label in y.tolist()])
        n_experts = len(fitted.expert_costs_)
        out = np.empty((len(y), n_experts), precision)
        at_once = max(1, LOG_PROBA_AT_ONCE // (n_experts * len(fitted.classes_)))
        for rows in np.split(np.arange(len(y)), range(at_once, len(y), at_once)):
            log_proba = fitted.net_.evaluate(
                samples if len(rows) == len(y) else samples[rows],
                lambda module, x: module.expert_logits(x).log_softmax(dim=2),
            )
            of_label = position[rows, np.newaxis, np.newaxis]
            out[rows] = np.take_along_axis(log_proba, of_label, axis=2)[:, :, 0]
        out[position < 0] = np.nan
        return out

    @takes_tensors
    def apply(self, X: ArrayLike) -> NDArray[np.int64]:
        """Return the expert that the gate chooses for each sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples,)
            Index of the most probable expert.
        """
        return self._evaluate(
            X, lambda module, x: module.gate_proba(x).argmax(dim=1), np.int64, asks=_nobody
        )

    def _evaluate_proba(self, X, function, asks=None):
        """Return probabilities as :meth:`_evaluate` does; they sum to 1 in float64, too."""
        proba = self._evaluate(X, function, asks=asks)
        if proba.dtype == np.float64:
            proba /= proba.sum(axis=-1, keepdims=True)
        return proba

    def _evaluate(self, X, function, dtype=None, asks=None):
        """Apply a function of the mixture to X; return float64, unless X is less precise."""
        check_is_fitted(self)
        fitted = self._snapshot()  # another thread may fit meanwhile
        samples, precision = fitted._read(X, asks)
        return fitted.net_.evaluate(samples, function, dtype or precision)

    def _read(self, X, asks=None):
        """Return samples of the right shape, and the type of predictions.

        Of the classifiers among the experts only those answer that ``asks`` returns, if the gate
        can choose without them.
        """
        choose = None
        if asks is not None and not self.module_.gate.needs_hidden:

            def choose(samples):
                gate_proba = self.net_.evaluate(samples, MixtureOfExperts.gate_proba)
                return self.module_.experts.asked(asks(gate_proba))

        samples, precision = self.reader_.read_with_precision(X, self, choose)
        check_shape("X", samples, self.net_.input_shape)
        return samples, precision

    def _snapshot(self):
        """Return a shallow copy, which other threads cannot change."""
        return copy(self)

    def to(self, device: str) -> FittedMixture:
        """Move the fitted mixture to a device.

        Parameters
        ----------
        device : str
            A torch device such as "cpu", "cuda" or "mps" (for images), or "auto".

        Returns
        -------
        self : MoEClassifier
        """
        check_is_fitted(self)
        self.net_.to(check_device(device, len(self.net_.own_shape)))
        return self

    @property
    def device_(self) -> str:
        """Device of the fitted mixture."""
        return str(self.net_.device)

    @property
    def module_(self) -> MixtureOfExperts:
        """The fitted torch module."""
        return self.net_.module_

    @property
    def expert_names_(self) -> list[str] | None:
        """Names of the experts, if ``experts`` is a list."""
        names = self.module_.experts.names
        return None if names is None else list(names)

    @property
    def named_experts_(self) -> Bunch:
        """The fitted classifiers among the experts, by name."""
        committee = self.reader_.committee
        if committee is None:
            return Bunch()
        return Bunch(**dict(zip(committee.names, committee.estimators, strict=True)))

    @property
    def expert_costs_(self) -> NDArray[np.int64]:
        """Multiply-adds that each expert takes for a sample; 0 for classifiers, as not known."""
        return np.array(self.module_.experts.costs)

    @property
    def gate_columns_(self) -> list | None:
        """Names or positions of the columns of a table that the gate uses."""
        gate = self.module_.gate
        if gate.sources is None:
            return None
        sources = gate.sources if gate.input_weight is None else gate.sources[gate.used_inputs]
        names = getattr(self, "feature_names_in_", np.arange(self.n_features_in_))
        return names[sources.unique().cpu().numpy()].tolist()

    @property
    def feature_importances_(self) -> NDArray[np.float64]:
        """Importance of each column of a table for the predictions."""
        check_is_fitted(self)
        if self._importances is not None:
            return self._importances.copy()
        advice = "Call sklearn.inspection.permutation_importance, which needs only test samples."
        if len(self.net_.input_shape) != 1:
            why = "of a mixture that reads images, which have no columns"
            advice = "ExpertSamplesDisplay shows which images belong to which expert."
        elif self.named_experts_:
            why = "of a mixture with classifiers of scikit-learn, which need not have any"
        else:
            why = "after partial_fit, nor after prune_experts or compress_experts without X"
        raise AttributeError(f"There are no feature_importances_ {why}. {advice}")

    @property
    def n_parameters_(self) -> int:
        """Number of parameters of gate, experts and encoder."""
        return sum(parameter.numel() for parameter in self.module_.parameters())


def is_mixture(estimator: BaseEstimator) -> bool:
    """Whether an estimator is a mixture of experts, fitted or not."""
    return isinstance(estimator, FittedMixture)
