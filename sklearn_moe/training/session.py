"""One training: its data, its objective, its callbacks, and the attributes that it leaves."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from skorch.callbacks import Callback
from skorch.dataset import Dataset
from torch import Tensor

from sklearn_moe.layers import seeded_globally
from sklearn_moe.mixture import MixtureOfExperts
from sklearn_moe.regularizers import check_penalty
from sklearn_moe.training.batches import TensorBatches, as_tensor, is_memory_map
from sklearn_moe.training.defaults import usual_defaults
from sklearn_moe.training.prediction import threads_for

if TYPE_CHECKING:
    from sklearn_moe.training.net import MoENet


def likelihood(net: MoENet, x: Tensor, sample_weight: Tensor, y: Tensor):
    """The objective of an ordinary training: negative log-likelihood plus regularizations.

    Returns
    -------
    loss : Tensor of shape ()
        What is minimised.
    log_proba : Tensor of shape (n_samples, n_classes)
        The prediction.
    gate_proba : Tensor of shape (n_samples, n_experts)
        The gate's probabilities.
    """
    augmentation = [] if net.augmentation is None else [net.augmentation]
    mixture = net.module_(x, net.session_.generator, *augmentation)
    loss = (net.criterion_(mixture.log_proba, y) * sample_weight).mean()
    for regularization in net.regularizations:
        penalty = regularization(mixture, mixture.x, y, sample_weight)
        loss = loss + check_penalty(regularization, penalty)
    return loss, mixture.log_proba, mixture.gate_proba


class Session:
    """One training of a net. While it lasts, it is ``net.session_``.

    Parameters
    ----------
    net : MoENet
        The net to train.
    X : ndarray of shape (n_samples, ...)
        Samples, as the net reads them.
    y : ndarray of shape (n_samples, ...)
        The targets of the objective; for the likelihood, the class of each sample.
    sample_weight : ndarray of shape (n_samples,)
        Weights with a mean of 1, float32.
    validation : tuple of X, y and sample_weight, default=None
        A validation set.
    seed : int
        Seed of batches, dropout and gate noise.
    callbacks : list of skorch.callbacks.Callback
        Callbacks of this training, which are called after the net's own.
    objective : callable, default=likelihood
        ``objective(net, x, sample_weight, y)``; see :func:`likelihood` for what it returns.
    read : callable, default=None
        Reads other samples in the same way, for callbacks.
    """

    def __init__(
        self,
        net: MoENet,
        X: np.ndarray,
        y: np.ndarray,
        sample_weight: np.ndarray,
        validation: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
        *,
        seed: int,
        callbacks: list[Callback],
        objective: Callable = likelihood,
        read: Callable | None = None,
    ):
        self.net = net
        self.seed = seed
        self.dataset = _dataset(net, X, y, sample_weight)
        self.validation = None if validation is None else _dataset(net, *validation)
        self.n_samples = len(X)
        self.generator = torch.Generator(net.device).manual_seed(seed)
        self.for_batches: dict[str, Any] = {"generator": torch.Generator().manual_seed(seed + 1)}
        if net.iterator_train is TensorBatches:
            self.for_batches["in_windows"] = is_memory_map(X)
        self.callbacks = [callback.initialize() for callback in callbacks]
        self.objective = objective
        self.is_likelihood = objective is likelihood
        self.read = read
        self.graphed_steps = None
        self.interrupted = False

    def run(self, epochs: int | None = None) -> bool:
        """Train, and return whether a user interrupted it.

        Parameters
        ----------
        epochs : int, default=None
            Number of epochs; None means a fit of ``max_epochs``.
        """
        net, device = self.net, torch.device(self.net.device)
        if epochs is None:
            net.module_.gate.begin()
        uses_global_state = any(
            getattr(part, "uses_global_random_state", False) for part in net.module_.modules()
        )
        n_rows = self.n_samples if net.batch_size == -1 else min(net.batch_size, self.n_samples)
        net.session_ = self
        try:
            with (
                usual_defaults(device),
                threads_for(net, n_rows),
                seeded_globally(self.seed, device) if uses_global_state else nullcontext(),
            ):
                net.partial_fit(self.dataset, epochs=epochs)
        finally:
            net.session_ = None
            net.optimizer_.zero_grad()  # gives the memory back
            net.forget_batches()
        return self.interrupted

    def after_epochs(self) -> None:
        """Let callbacks act before any callback gets ``on_train_end``."""
        for callback in self.callbacks:
            if hasattr(callback, "after_epochs"):
                callback.after_epochs(self.net)


def _dataset(net, X, y, sample_weight):
    device = net.device if _fits(X, net.device) else "cpu"
    inputs = {"x": as_tensor(X, device), "sample_weight": as_tensor(sample_weight, device)}
    return Dataset(inputs, as_tensor(y, device))


def _fits(X, device):
    """Whether the device has room for the samples, and as much again for the training."""
    if not isinstance(X, np.ndarray):  # sparse rows: their batches become dense on the CPU
        return False
    device = torch.device(device)
    return device.type == "cpu" or 2 * X.nbytes < torch.cuda.mem_get_info(device)[0]


_TRACKED = ("sample_entropy", "usage_entropy", "expert_class_information")


def fitted_attributes(
    net: MoENet, X: np.ndarray, sample_weight: np.ndarray, n_iter_before: int = 0
) -> dict[str, Any]:
    """Return the fitted attributes of an estimator, for a net trained on these samples."""
    gate_proba = net.evaluate(X, MixtureOfExperts.gate_proba)
    rows = [row for row in net.history if "train_loss" in row]
    validated = [row for row in rows if "valid_loss" in row]
    tracked = [row for row in rows if "usage_entropy" in row]
    new = [row for row in rows[n_iter_before:] if "valid_loss" in row]
    best = min(new, key=lambda row: row["valid_loss"], default=None)
    return {
        "net_": net,
        "report_": None,
        "expert_usage_": np.average(gate_proba, axis=0, weights=sample_weight.astype(np.float64)),
        "n_iter_": len(rows),
        "loss_curve_": [float(row["train_loss"]) for row in rows],
        "validation_loss_curve_": [float(row["valid_loss"]) for row in validated] or None,
        "validation_scores_": [float(row["valid_accuracy"]) for row in validated] or None,
        "best_validation_score_": None if best is None else float(best["valid_accuracy"]),
        "decomposition_curves_": (
            {name: [row[name] for row in tracked] for name in _TRACKED} if tracked else None
        ),
    }
