"""Restarts: train from several random starts, and keep the best mixture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score
from torch import Tensor, nn

from sklearn_moe.groups import joint_of_groups
from sklearn_moe.mixture import MixtureOfExperts, MixtureOutput
from sklearn_moe.training.batches import evenly
from sklearn_moe.training.steps import ClosedForm

if TYPE_CHECKING:
    from sklearn_moe.training.net import MoENet
    from sklearn_moe.training.session import Session

# Restarts whose scores are closer than this to the best count as near it: in nats per sample, and,
# where there are few samples, in nats.
NEAR, NEAR_IN_ALL = 2e-3, 2.0

# From this adjusted Rand index on, two restarts have found the same.
SAME = 0.8

# Agreement of restarts is measured on at most this many samples.
SAMPLES_TO_AGREE = 4096

# Restarts that cannot be stacked make short runs, of this share of the epochs.
SHORT = 0.25


class Restarts(MixtureOfExperts):
    """Mixtures of one kind that are trained at once, as their weights are stacked.

    A step for all of them takes hardly longer than a step for one, as long as they are small. The
    weights of the single mixtures are views of the stacked ones.

    Parameters
    ----------
    mixtures : list of MixtureOfExperts
        The mixtures, each with its own initial weights.
    """

    has_known_gradient = True

    def __init__(self, mixtures: list[MixtureOfExperts]):
        first = mixtures[0]
        super().__init__(
            _stacked([each.experts for each in mixtures]),
            _stacked([each.gate for each in mixtures]),
            mixing=first.mixing,
            encoder=first.encoder,
            table=first.table,
            gate_columns=first.gate_columns,
            expert_columns=first.expert_columns,
        )
        self.mixtures = mixtures
        self.n_restarts = len(mixtures)
        self.losses = torch.zeros(len(mixtures))

    @property
    def best(self) -> MixtureOfExperts:
        """The mixture with the lowest loss in the last epoch."""
        return self.mixtures[int(self.losses.nan_to_num(torch.inf).argmin())]

    def forward(self, x: Tensor, *args: Any) -> MixtureOutput:
        return self.best(x, *args)


def _stacked(parts: Sequence[nn.Module]) -> Any:
    """Return a module with the weights of all parts, of which theirs become views."""
    stacked: Any = deepcopy(parts[0])
    for name, parameter in stacked.named_parameters():
        own = [part.get_parameter(name) for part in parts]
        parameter.data = torch.cat([each.data for each in own])
        for each, view in zip(own, parameter.data.chunk(len(parts)), strict=True):
            each.data = view
    if hasattr(stacked, "n_networks"):
        stacked.n_networks *= len(parts)
    return stacked


class End(NamedTuple):
    """A restart at its end: its mixture, its score, and which experts it chooses for samples."""

    mixture: MixtureOfExperts
    score: float
    choice: NDArray[np.int64]


class Starts:
    """How the restarts of a training ended.

    Parameters
    ----------
    ends : list of End
        The end of each restart.
    n_samples : int
        Number of training samples.

    Attributes
    ----------
    scores : ndarray of shape (n_init,)
        The score of each restart.
    kept : int
        The restart that is kept: at first that with the highest score.
    finished : dict of End by int
        The restarts among which a later score chose, as they were then; empty if none did.
    """

    def __init__(self, ends: list[End], n_samples: int):
        self.ends, self.n_samples = ends, n_samples
        self.scores = np.array([end.score for end in ends])
        self.order = np.nan_to_num(-self.scores, nan=np.inf).argsort(kind="stable").tolist()
        self.kept = self.order[0]
        self.finished: dict[int, End] = {}
        # Cached, as it takes long and is needed several times.
        self._index = cache(lambda one, other: _rand_index(ends[one], ends[other]))

    @property
    def agreement(self) -> float | None:
        """Mean adjusted Rand index of the kept restart and those near its score.

        If a later score chose, each restart counts as the finished one that divides the samples as
        it did, and restarts that are like none of them do not count. It is None if no restart is
        near.
        """
        finished = self.finished or dict(enumerate(self.ends))
        lowest = finished[self.kept].score - max(NEAR, NEAR_IN_ALL / self.n_samples)
        found: list[int] = []
        for i in self.order:
            if i == self.kept:
                continue
            like = max(finished, key=lambda each: self._index(i, each)) if self.finished else i
            if i != like and self._index(i, like) < SAME:
                continue
            if finished[like].score + self.scores[i] - self.scores[like] >= lowest:
                if like == self.kept:  # both as they were before
                    found.append(self._index(i, like))
                else:
                    found.append(_rand_index(finished[like], finished[self.kept]))
        return float(np.mean(found)) if found else None

    def distinct(self, most: int) -> list[int]:
        """Return restarts in the order of their scores that divide the samples differently."""
        found: list[int] = []
        for i in self.order:
            if len(found) == most or np.isnan(self.scores[i]):
                break
            if all(self._index(i, other) < SAME for other in found):
                found.append(i)
        return found


def _rand_index(one, other):
    return adjusted_rand_score(one.choice, other.choice)


def can_be_stacked(net: MoENet) -> bool:
    """Whether a net can train several starts at once."""
    gate = net.module_.gate
    return (
        ClosedForm().takes(net)
        and getattr(net.module_.experts, "shapes", None) is None  # all experts share them
        and gate.top_k is None
        and gate.noise == 0
        and all(
            getattr(each, "has_gradient", False)
            or getattr(each, "of_weights", False)
            or getattr(each, "per_nat_of_experts", 0) > 0
            for each in net.regularizations
        )
    )


def stack(net: MoENet, seeds: Sequence[int]) -> None:
    """Let a net train one mixture for each seed; the present one is that of the first seed."""
    mixtures = [net.module_, *(net.build(seed).to(net.device) for seed in seeds[1:])]
    for mixture in mixtures:
        mixture.gate.begin()
    net.module_ = Restarts(mixtures).eval()
    net.initialize_optimizer()


def keep_best(net: MoENet, score: Callable[[MoENet], float], X: Any) -> Starts:
    """Let a net with restarts go on with the best of them."""
    ends = []
    for mixture in net.module_.mixtures:
        net.module_ = mixture
        ends.append(_end(net, score, X))
    return _take_best(net, ends, X)


def shortlist(
    net: MoENet,
    seeds: Sequence[int],
    session_for: Callable[[MoENet, int], Session],
    score: Callable[[MoENet], float],
    X: Any,
) -> Starts:
    """Train from each start for a part of the epochs, and let the net go on with the best."""
    ends, epochs = [], max(1, round(SHORT * net.max_epochs))
    for i, seed in enumerate(seeds):
        if i > 0:
            net.module_ = net.build(seed).to(net.device)
            net.initialize_optimizer()
        if session_for(net, epochs).run(epochs):
            raise KeyboardInterrupt("The training was interrupted while it tried several starts.")
        ends.append(_end(net, score, X))
    net.initialize_history()
    return _take_best(net, ends, X)


def _end(net, score, X):
    rows = X[evenly(len(X), SAMPLES_TO_AGREE)]
    choice = net.evaluate(rows, lambda module, x: module.gate_proba(x).argmax(dim=1))
    return End(net.module_, score(net), choice)


def _take_best(net, ends, X):
    starts = Starts(ends, len(X))
    net.module_ = deepcopy(ends[starts.kept].mixture).eval()  # with weights of its own
    net.initialize_optimizer()
    return starts


def penalty_on_weights(net: MoENet) -> float:
    """Return what the penalties on the weights take from the score of a net, in nats."""
    module = net.module_
    with torch.no_grad():
        of_experts = module.experts.penalty()
        penalties = [
            each.strength * each.penalty_of(module.gate)
            for each in net.regularizations
            if getattr(each, "of_weights", False)
        ]
    penalties += [] if of_experts is None else [of_experts]
    return sum(float(each.sum()) for each in penalties)


def mean_log_likelihood(
    net: MoENet, X: Any, y: NDArray, sample_weight: NDArray, group: NDArray | None = None
) -> float:
    """Return the weighted mean log-likelihood of samples, in nats."""
    if group is not None:
        joint = log_joint(net, X, y, sample_weight, group)
        return float(np.logaddexp.reduce(joint, axis=1).sum() / sample_weight.sum())
    log_proba = net.evaluate(X, MixtureOfExperts.predict_log_proba, np.float64)
    return float(np.average(log_proba[np.arange(len(y)), y], weights=sample_weight))


def log_joint(
    net: MoENet, X: Any, y: NDArray, sample_weight: NDArray, group: NDArray | None = None
) -> NDArray[np.float64]:
    """Return the log-probability that an expert is chosen and predicts the true class.

    Returns
    -------
    ndarray of shape (n_samples, n_experts) or (n_groups, n_experts)
        For groups, the probabilities of all samples of a group are multiplied.
    """
    tiny = np.finfo(np.float64).tiny
    gate = np.log(np.maximum(net.evaluate(X, MixtureOfExperts.gate_proba, np.float64), tiny))
    logits = net.evaluate(X, MixtureOfExperts.expert_logits, np.float64)
    of_class = logits[np.arange(len(y)), :, y] - np.logaddexp.reduce(logits, axis=2)
    if group is None:
        return gate + of_class
    return joint_of_groups(gate, of_class, group, sample_weight)
