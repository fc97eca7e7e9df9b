"""One training: its data, its objective, its callbacks, and the attributes that it leaves."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from skorch.callbacks import Callback
from skorch.dataset import Dataset
from torch import Tensor

from sklearn_moe.containers import SparseRows
from sklearn_moe.layers import seeded_globally
from sklearn_moe.mixture import MixtureOfExperts
from sklearn_moe.regularizers import check_penalty
from sklearn_moe.training.batches import TensorBatches, as_tensor, is_memory_map
from sklearn_moe.training.defaults import usual_defaults
from sklearn_moe.training.polish import CRITERIA, finish, information_criteria
from sklearn_moe.training.prediction import threads_for
from sklearn_moe.training.restarts import (
    Starts,
    can_be_stacked,
    keep_best,
    mean_log_likelihood,
    penalty_on_weights,
    shortlist,
    stack,
)

if TYPE_CHECKING:
    from sklearn_moe.training.net import MoENet


def likelihood(
    net: MoENet, x: Tensor, sample_weight: Tensor, y: Tensor, group: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
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
    b = net.session_.inverse_temperature
    if b == 1 and group is None:
        losses = net.criterion_(mixture.log_proba, y)
    else:
        tiny = torch.finfo(mixture.gate_proba.dtype).tiny
        log_proba = mixture.expert_logits.log_softmax(dim=2)
        log_of_class = log_proba[torch.arange(len(y), device=y.device), :, y]
        log_gate = mixture.gate_proba.clamp_min(tiny).log()
        if group is None:
            losses = -(b * (log_gate + log_of_class)).logsumexp(dim=1) / b
        else:  # shared evenly among the samples of a group
            group, counts = group.unique(return_inverse=True, return_counts=True)[1:]
            counts = counts[group]
            parts = log_gate / counts.unsqueeze(1) + log_of_class * sample_weight.unsqueeze(1)
            joint = torch.zeros_like(parts).index_add_(0, group, parts)[group]
            losses = -(b * joint).logsumexp(dim=1) / (b * counts * sample_weight)
    loss = (losses * sample_weight).mean()
    for part in (net.module_, *net.module_.layers):
        of_experts = part.experts.penalty()
        if of_experts is not None:
            loss = loss + of_experts.sum()
    for regularization in net.regularizations:
        sums_over_layers = getattr(regularization, "sums_over_layers", False)
        for part in (mixture, *(mixture.layers if sums_over_layers else ())):
            penalty = regularization(part, part.x, y, sample_weight)
            loss = loss + check_penalty(regularization, penalty)
    return loss, mixture.log_proba, mixture.gate_proba


class Session:
    """One training of a net. While it lasts, it is ``net.session_``.

    Parameters
    ----------
    net : MoENet
        The net to train.
    X : ndarray or SparseRows of shape (n_samples, ...)
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
    seeds : list of int, default=()
        Seeds of the initial weights of all restarts; the first is that of the present weights.
    group : ndarray of shape (n_samples,), default=None
        Numbers of the groups of which all samples get one expert.
    chooses_by_validation : bool, default=False
        Whether the validation set decides between the restarts.

    Attributes
    ----------
    starts : Starts or None
        How the restarts ended.
    """

    def __init__(
        self,
        net: MoENet,
        X: np.ndarray | SparseRows,
        y: np.ndarray,
        sample_weight: np.ndarray,
        validation: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
        *,
        seed: int,
        callbacks: list[Callback],
        objective: Callable = likelihood,
        read: Callable | None = None,
        seeds: Sequence[int] = (),
        group: np.ndarray | None = None,
        chooses_by_validation: bool = False,
    ):
        self.net = net
        self.data = X, y, sample_weight, group
        self.held_out = validation
        self.seeds = seeds
        self.chooses_by_validation = chooses_by_validation
        self.starts: Starts | None = None
        self.seed = seed
        self.dataset = _dataset(net, *self.data)
        self.validation = None if validation is None else _dataset(net, *validation)
        self.n_samples = len(X)
        self.generator = torch.Generator(net.device).manual_seed(seed)
        self.for_batches: dict[str, Any] = {"generator": torch.Generator().manual_seed(seed + 1)}
        if net.iterator_train is TensorBatches:
            self.for_batches["in_windows"] = is_memory_map(X)
        self.callbacks = [callback.initialize() for callback in callbacks]
        self.objective = objective
        self.is_likelihood = objective is likelihood
        self.inverse_temperature = 1.0  # of annealing
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
            for part in (net.module_, *net.module_.layers):
                part.gate.begin()
        uses_global_state = any(
            getattr(part, "uses_global_random_state", False) for part in net.module_.modules()
        )
        n_rows = self.n_samples if net.batch_size == -1 else min(net.batch_size, self.n_samples)
        net.session_ = self
        has_restarts = len(self.seeds) > 1
        try:
            is_stacked = has_restarts and can_be_stacked(net)
            if has_restarts and not is_stacked:
                self.starts = shortlist(net, self.seeds, self._short, self._score, self.data[0])
                net.session_ = self
            elif is_stacked:
                stack(net, self.seeds)
            with (
                usual_defaults(device),
                threads_for(net, n_rows),
                seeded_globally(self.seed, device) if uses_global_state else nullcontext(),
                _noticing_signals(self),
            ):
                net.partial_fit(self.dataset, epochs=epochs)
            if is_stacked:
                self.starts = keep_best(net, self._score, self.data[0])
            if self.is_likelihood and epochs is None and not self.interrupted:
                finish(net, *self.data, starts=self.starts if is_stacked else None)
        finally:
            net.session_ = None
            net.optimizer_.zero_grad()  # gives the memory back
            net.forget_batches()
        return self.interrupted

    def _short(self, net, epochs):
        """Return a session that trains a net from one of several starts."""
        callbacks = [
            each.for_epochs(epochs) for each in self.callbacks if hasattr(each, "for_epochs")
        ]
        X, y, sample_weight, group = self.data
        return Session(net, X, y, sample_weight, seed=self.seed, callbacks=callbacks, group=group)

    def _score(self, net):
        """Return the score of a net, which decides between restarts; higher is better."""
        if self.chooses_by_validation:
            return mean_log_likelihood(net, *self.held_out)
        return mean_log_likelihood(net, *self.data) - penalty_on_weights(net)

    def results(self, n_samples: float) -> dict[str, Any]:
        """Return the fitted attributes that restarts and linear experts have.

        ``n_samples`` is how many samples the training set is, as the sum of a user's weights.
        """
        results = information_criteria(self.net, n_samples, *self.data)
        if self.starts is not None:
            results["init_scores_"] = self.starts.scores
            results["init_agreement_"] = self.starts.agreement
        return results

    def after_epochs(self) -> None:
        """Let callbacks act before any callback gets ``on_train_end``."""
        for callback in self.callbacks:
            if hasattr(callback, "after_epochs"):
                callback.after_epochs(self.net)


@contextmanager
def _noticing_signals(session: Session) -> Iterator[None]:
    """Note it in a session if a signal of the user raises ``KeyboardInterrupt``.

    Callbacks raise this exception, too, to end a training after an epoch. That is no interruption.
    """
    former = signal.getsignal(signal.SIGINT)
    if not callable(former) or threading.current_thread() is not threading.main_thread():
        yield  # signals are ignored, or go to another thread
        return

    def handle(number, frame):
        try:
            former(number, frame)
        except KeyboardInterrupt:
            session.interrupted = True
            raise

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)


def _dataset(net, X, y, sample_weight, group=None):
    device = net.device if _fits(X, net.device) else "cpu"
    inputs = {"x": as_tensor(X, device), "sample_weight": as_tensor(sample_weight, device)}
    if group is not None:
        inputs["group"] = as_tensor(group, device)
    return Dataset(inputs, as_tensor(y, device))


def _fits(X, device):
    """Whether the device has room for the samples, and as much again for the training."""
    if not isinstance(X, np.ndarray):  # sparse rows: their batches become dense on the CPU
        return False
    device = torch.device(device)
    return device.type != "cuda" or 2 * X.nbytes < torch.cuda.mem_get_info(device)[0]


_TRACKED = ("sample_entropy", "usage_entropy", "expert_class_information")


# Only some fits have these.
NO_SEARCH = dict.fromkeys(("init_scores_", "init_agreement_", *CRITERIA))


def fitted_attributes(
    net: MoENet, X: np.ndarray | SparseRows, sample_weight: np.ndarray, n_iter_before: int = 0
) -> dict[str, Any]:
    """Return the fitted attributes of an estimator, for a net trained on these samples."""
    gate_proba = net.evaluate(X, MixtureOfExperts.gate_proba)
    rows = [row for row in net.history if "train_loss" in row]
    validated = [row for row in rows if "valid_loss" in row]
    tracked = [row for row in rows if "usage_entropy" in row]
    new = [row for row in rows[n_iter_before:] if "valid_loss" in row]
    best = min(new, key=lambda row: row.get("stopping_loss", row["valid_loss"]), default=None)
    return {
        "net_": net,
        "report_": None,
        **NO_SEARCH,
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
