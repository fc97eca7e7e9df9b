"""What all gates have in common."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from torch import Tensor, nn

from sklearn_moe.convolution import multiply_adds
from sklearn_moe.documentation import Documented
from sklearn_moe.encoders import ENCODERS, as_encoder, build_encoder, output_shape
from sklearn_moe.layers import MLP, check_layer_sizes


class Routing(NamedTuple):
    """The noise that a gate drew for a batch; ``Load`` reads it.

    Attributes
    ----------
    noisy_logits : Tensor of shape (n_samples, n_experts)
        The logits with noise, before masking.
    noise_scale : float
        Standard deviation of the noise.
    top_k : int or None
        How many experts answer for a sample.
    """

    noisy_logits: Tensor
    noise_scale: float
    top_k: int | None


class GateOutput(NamedTuple):
    """The output of a gate for a batch.

    Attributes
    ----------
    logits : Tensor of shape (n_samples, n_experts)
        Scores of the experts, before noise and masking.
    log_proba : Tensor of shape (n_samples, n_experts)
        Logarithm of the gate probabilities, after noise and masking; -inf for experts that do not
        answer.
    routing : Routing or None
        None unless the gate is noisy and in training.
    """

    logits: Tensor
    log_proba: Tensor
    routing: Routing | None


class GateFormula(NamedTuple):
    r"""The scores of a gate as a formula of what it reads, :math:`(A x + b) / \lVert L x \rVert`.

    Attributes
    ----------
    weight : Tensor of shape (n_experts, n_inputs)
        The matrix :math:`A`.
    bias : Tensor of shape (n_experts,)
        The vector :math:`b`.
    length : Tensor of shape (n_numbers, n_inputs) or None
        The matrix :math:`L`; None if nothing divides the scores.
    """

    weight: Tensor
    bias: Tensor
    length: Tensor | None = None


# What a gate knows about the columns that its inputs come from.
OF_COLUMNS = ("sources", "column_groups", "group_sizes")


class GateModule(nn.Module):
    """The torch module of a gate: it turns scores of the experts into gate probabilities.

    A subclass implements ``score`` and ``keep``. The base class divides the scores by the
    temperature, adds noise in training, keeps the top k and applies the softmax.

    With ``top_k=1`` the softmax over the one logit that is kept would always be 1, and the gate
    would get no gradient. Such a gate therefore trains on the full softmax, and keeps one expert
    in prediction only.

    Parameters
    ----------
    temperature : float
        The scores are divided by it.
    top_k : int or None
        How many experts answer for a sample; None means all.
    noise : float, default=0.0
        Standard deviation of the noise in training, in units of ``1 / n_experts``.

    Attributes
    ----------
    needs_hidden : bool, default=True
        Whether ``score`` reads the experts' hidden vectors. If False, the gate chooses before any
        expert runs, and its ``hidden`` is None in prediction. If True, :func:`distill` can train
        another gate that does not need them.
    refits : bool, default=False
        Whether the gate learns without gradients. Then ``refit`` is called before each epoch. It
        gets at most as many samples as the gate's attribute ``max_samples``.
    is_linear : bool, default=False
        Whether ``score`` is linear in the sample, with ``input_weight`` as its coefficients.
    sources : Tensor of shape (n_inputs,) or None
        For each number that the gate reads, the column of the table that it comes from. None for
        images and after a backbone.
    column_groups : Tensor of shape (n_inputs,) or None
        The same, counted over the columns that the gate reads.
    group_sizes : Tensor of shape (n_columns,) or None
        Number of inputs that come from each of these columns.
    stages : Tensor or None
        The stages of a gate that :func:`grow` has changed; None for all others.
    """

    needs_hidden = True
    refits = False
    is_linear = False

    sources: Tensor | None
    column_groups: Any  # Tensor or None
    group_sizes: Any  # Tensor or None
    stages: Any  # Tensor or None

    def __init__(self, *, temperature: float, top_k: int | None, noise: float = 0.0):
        super().__init__()
        self.temperature = temperature
        self.top_k = top_k
        self.noise = noise
        for name in (*OF_COLUMNS, "stages"):
            self.register_buffer(name, None, persistent=False)

    def group_columns(self, sources: ArrayLike) -> None:
        """Take down which column of a table each input comes from."""
        groups = np.unique(sources, return_inverse=True)[1]
        self.sources = torch.as_tensor(sources)
        self.column_groups = torch.from_numpy(groups)
        self.group_sizes = torch.from_numpy(np.bincount(groups).astype(np.float32))

    @property
    def input_weight(self) -> Tensor | None:
        """The weights (n_restarts, n_outputs, n_inputs) of the layer that reads the sample.

        None if no layer reads it directly.
        """
        return None

    @property
    def expert_weights(self) -> Tensor | None:
        """The weights (n_experts, n_numbers) with which the last layer scores each expert.

        None if the gate has no such weights.
        """
        return None

    @property
    def used_inputs(self) -> Tensor:
        """Which inputs (n_inputs,) have a weight that is not zero."""
        weight: Any = self.input_weight
        return weight.detach()[0].any(dim=0)

    def column_squares(self) -> Tensor:
        """Return the sum of the squared weights of each column, (n_restarts, n_columns)."""
        weight: Any = self.input_weight
        squares = weight.square().sum(dim=1)
        totals = squares.new_zeros(len(squares), len(self.group_sizes))
        return totals.index_add_(1, self.column_groups, squares)

    def forward(
        self, x: Tensor, hidden: Tensor | None, generator: torch.Generator | None = None
    ) -> GateOutput:
        return self.route(self.score(x, hidden) / self.temperature, generator)

    @property
    def cost(self) -> int:
        """Approximate number of multiply-adds of the gate for one sample."""
        return multiply_adds(self)

    @property
    def n_answers(self) -> float | None:
        """About how many experts answer for a sample in prediction; None if all do."""
        return self.top_k

    def formula(self) -> GateFormula | None:
        """Return the formula of the scores divided by the temperature, or None if it is long."""
        return None

    def score(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        """Return one score for each sample and expert, (n_samples, n_experts)."""
        raise NotImplementedError(f"{type(self).__name__} needs a method score(x, hidden).")

    def keep(self, experts: list[int]) -> None:
        """Keep only the weights of these experts, in this order."""
        raise NotImplementedError(f"{type(self).__name__} needs a method keep(experts).")

    def merge(self, groups: list[list[int]]) -> GateModule:
        """Return a gate that gives each group the sum of its members' probabilities.

        A gate that reads hidden vectors cannot do so, because each group has only one left. It
        keeps the first expert of each group.
        """
        if not self.needs_hidden:
            return MergedGateModule(self, groups).train(self.training)
        self.keep([group[0] for group in groups])
        return self

    def take(self, top_k: int | None) -> None:
        """Let ``top_k`` experts answer for a sample from now on."""
        self.top_k = top_k

    def teach(self, student: GateModule) -> None:
        """Copy weights to the student: the module of the ``SoftmaxGate`` that distillation trains.

        The base class copies nothing.
        """

    def begin(self) -> None:
        """Called before a fit: store the weights at its start, for ``norm_change``."""

    def remember(self) -> None:
        """Called before each training: store what the gate has learned so far, for ``refit``."""

    def forget(self) -> None:
        """Called after each training: drop what only ``refit`` needed."""

    def refit(self, x: Tensor, losses: Tensor, sample_weight: Tensor, seed: int) -> None:
        """Learn from samples (N, ...) and the losses (N, E) of all experts on them."""
        raise NotImplementedError(f"{type(self).__name__} needs refit(), or refits = False.")

    def norm_change(self) -> Tensor | None:
        """Return how much the norm of each expert's weights in the gate grew since the fit began.

        None if the gate has no weights for each expert, or learns without gradients.
        """

    def perturb(
        self, logits: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Routing | None]:
        """Return logits with noise, in training, and what ``Load`` has to know about it."""
        if self.noise == 0:
            return logits, None
        noise_scale = self.noise / logits.shape[1]
        noise = torch.empty_like(logits).normal_(0, noise_scale, generator=generator)
        noisy = logits + noise
        return noisy, Routing(noisy, noise_scale, self.top_k)

    def select(self, logits: Tensor) -> Tensor:
        """Return -inf in place of the logits of experts that do not answer."""
        return mask_all_but_top_k(logits, self.top_k)  # type: ignore[arg-type]

    def normalize(self, logits: Tensor) -> Tensor:
        """Return log-probabilities for the logits of the experts that may answer."""
        # The softmax is vectorised if the samples are the last axis, as they are in the experts.
        return logits.mT.log_softmax(dim=0).mT

    def route(self, logits: Tensor, generator: torch.Generator | None = None) -> GateOutput:
        """Return the output of the gate for these logits, after noise and masking."""
        routed, routing = self.perturb(logits, generator) if self.training else (logits, None)
        if self.top_k is not None and not (self.training and self.top_k == 1):
            routed = self.select(routed)
        return GateOutput(logits, self.normalize(routed), routing)


class MergedGateModule(GateModule):
    r"""A gate for experts that were merged in groups.

    A group has the sum of the probabilities of its members, :math:`p_g = \sum_{e \in g} p_e`.

    Parameters
    ----------
    gate : GateModule
        The gate of the experts before they were merged. It does not read their hidden vectors.
    groups : list of list of int
        The members of each group. Each expert of the gate is in exactly one group.
    """

    needs_hidden = False

    def __init__(self, gate: GateModule, groups: list[list[int]]):
        super().__init__(temperature=1.0, top_k=gate.top_k)
        self.gate = gate
        self.groups = groups
        for name in OF_COLUMNS:
            setattr(self, name, getattr(gate, name))

    @property
    def input_weight(self) -> Tensor | None:
        return self.gate.input_weight

    def forward(
        self, x: Tensor, hidden: Tensor | None, generator: torch.Generator | None = None
    ) -> GateOutput:
        logits, log_proba, routing = self.gate(x, None, generator)
        if routing is not None:
            noisy_logits = self._sum(routing.noisy_logits)
            routing = routing._replace(noisy_logits=noisy_logits, top_k=self.top_k)
        return GateOutput(self._sum(logits), self.route(self._sum(log_proba)).log_proba, routing)

    def take(self, top_k: int | None) -> None:
        super().take(top_k)
        self.gate.take(None)

    def _sum(self, log_values):
        """Return the logarithm of the sum of each group."""
        # The logsumexp has no gradient if all values are -inf.
        lowest = torch.finfo(log_values.dtype).min
        sums = [
            log_values[:, group].clamp_min(lowest).logsumexp(dim=1, keepdim=True)
            for group in self.groups
        ]
        sums = torch.cat(sums, dim=1)
        return sums.masked_fill(sums <= lowest / 2, -torch.inf)

    def keep(self, experts: list[int]) -> None:
        kept = [self.groups[expert] for expert in experts]
        members = sorted(expert for group in kept for expert in group)
        self.gate.keep(members)
        self.groups = [[members.index(expert) for expert in group] for group in kept]


def first_weight(encoder: nn.Module, trunk: MLP, last: nn.Linear) -> Tensor | None:
    """Return the weights (1, n_outputs, n_inputs) of the first of a gate's layers.

    None if an encoder reads the sample before them.
    """
    if type(encoder) is not nn.Identity:
        return None
    return trunk.layers[0].weight if trunk.layers else last.weight.unsqueeze(0)


def mask_all_but_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Replace all but the ``top_k`` largest logits of a row by -inf; ties keep the lower index."""
    if top_k == 1:
        best = logits.argmax(dim=1, keepdim=True)
        kept = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, best, True)
        return logits.masked_fill(~kept, -torch.inf)
    threshold = logits.topk(top_k, dim=1).values[:, -1:]  # much faster than sorting
    above, level = logits > threshold, logits == threshold
    places = top_k - above.sum(dim=1, keepdim=True)
    kept = above | (level & (level.cumsum(dim=1) <= places))
    return logits.masked_fill(~kept, -torch.inf)


class Gate(Documented, BaseEstimator):
    """Base class of all gates, with checks of the parameters that they share.

    A subclass has the method ``build(input_shape, n_experts, hidden_size, generator)``, which
    returns a :class:`GateModule`. If it has the parameters ``hidden_layer_sizes``, ``temperature``
    or ``encoder``, :func:`distill` uses their values for the new gate, too.

    Attributes
    ----------
    needs_hidden : bool, default=True
        Whether the gate reads the experts' hidden vectors, as in :class:`GateModule`. If True,
        ``MoEClassifier(learning_rate="auto")`` takes a lower learning rate.
    has_input_weight : bool, default=False
        Whether the module has an ``input_weight`` if the gate has no encoder. If True,
        ``regularization="auto"`` makes it sparse for linear experts.
    """

    needs_hidden = True
    has_input_weight = False

    _parameter_constraints: dict = {
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "top_k": [Interval(Integral, 1, None, closed="left"), None],
        "encoder": [StrOptions(set(ENCODERS)), HasMethods("build"), callable, None],
    }

    def build(
        self,
        input_shape: tuple[int, ...],
        n_experts: int,
        hidden_size: int,
        generator: torch.Generator,
    ) -> GateModule:
        """Return the torch module of this gate.

        Parameters
        ----------
        input_shape : tuple of int
            Shape of one sample.
        n_experts : int
            Number of experts.
        hidden_size : int
            Length of the experts' hidden vectors.
        generator : torch.Generator
            Source of all initial weights.

        Returns
        -------
        GateModule
        """
        raise NotImplementedError(
            f"{type(self).__name__} needs a method build(input_shape, n_experts, hidden_size, "
            "generator)."
        )

    def _start(
        self, input_shape: tuple[int, ...], n_experts: int, generator: torch.Generator
    ) -> tuple[nn.Module, tuple[int, ...]]:
        """Check the parameters; return the gate's encoder, and the sizes of input and layers."""
        self._check_top_k(n_experts)
        given = as_encoder(self.encoder)
        if given is not None and given.needs_tables:
            raise ValueError(
                f"The gate's encoder={self.encoder!r} is for tables, which are encoded once, for "
                "gate and experts. Set MoEClassifier(encoder='table') and leave the gate's "
                "encoder=None."
            )
        if given is not None and given.has_mixtures:
            raise ValueError(
                f"The gate's encoder={self.encoder!r} has gates and experts of its own. Set it as "
                "MoEClassifier(encoder=...), for gate and experts."
            )
        hidden_sizes = check_layer_sizes("The gate's hidden_layer_sizes", self.hidden_layer_sizes)
        encoder = build_encoder(self.encoder, input_shape, generator)
        return encoder, (math.prod(output_shape(encoder, input_shape)), *hidden_sizes)

    def _layers(
        self, input_shape: tuple[int, ...], n_experts: int, generator: torch.Generator
    ) -> tuple[nn.Module, MLP]:
        """Check the parameters; return the gate's encoder and the layers that score experts."""
        encoder, sizes = self._start(input_shape, n_experts, generator)
        return encoder, MLP((*sizes, n_experts), generator)

    def _check_top_k(self, n_experts: int) -> None:
        """Check the parameters, and that there are as many experts as shall answer."""
        self._validate_params()
        if self.top_k is not None and self.top_k > n_experts:
            raise ValueError(
                f"The gate's top_k={self.top_k} must not be larger than n_experts={n_experts}. "
                f"Lower top_k, for example gate={type(self).__name__}(top_k={n_experts}), or "
                "raise n_experts."
            )


def build_gate(
    gate: BaseEstimator,
    input_shape: tuple[int, ...],
    n_experts: int,
    hidden_size: int,
    generator: torch.Generator,
) -> GateModule:
    """Build the module of a gate, and check its scores for two samples of zeros."""
    module = gate.build(input_shape, n_experts, hidden_size, generator)
    if not isinstance(module, GateModule):
        raise TypeError(
            f"build of the gate {gate!r} must return a sklearn_moe.gates.GateModule, got "
            f"{module!r}. Derive its module from that class."
        )
    hidden = torch.zeros(2, n_experts, hidden_size) if module.needs_hidden else None
    was_training = module.training
    with torch.no_grad():
        scores = module.eval().score(torch.zeros(2, *input_shape), hidden)
    module.train(was_training)
    shape = tuple(scores.shape) if isinstance(scores, Tensor) else scores
    if shape != (2, n_experts):
        raise ValueError(
            f"score of the gate {gate!r} must return one score for each sample and expert, "
            f"(n_samples, {n_experts}); a batch of shape {(2, *input_shape)} gave {shape!r}."
        )
    return module
