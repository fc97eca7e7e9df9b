"""Mixtures of experts within a network: hidden layers in place of a prediction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sklearn_moe.experts import ExpertsModule
from sklearn_moe.gates import GateModule
from sklearn_moe.layers import fill_like_linear, keep_rows, orthogonalize
from sklearn_moe.mixture import MixtureOfExperts, MixtureOutput


class HiddenMixture(MixtureOfExperts):
    r"""A mixture whose experts return vectors :math:`f_e`, and which returns their mean.

    It reads :math:`v` and, if there is one, the scores :math:`G` of the gate below:

    .. math:: \sum_e p_e(v, G)\, f_e(\mathrm{norm}(v))

    Parameters
    ----------
    experts : ExpertsModule
        Experts from ``shape`` to as many outputs.
    gate : GateModule
        The gate. It reads the normalised vector, or the mean of each channel, and the scores.
    shape : tuple of int
        Shape of :math:`v`: the number of units, or channels, height and width.
    orthogonal : bool, default=False
        Whether the outputs of the experts that answer are made orthogonal, the surest one first.

    Attributes
    ----------
    places : list of int
        The numbers of the experts before any were pruned.
    """

    has_known_gradient = False
    can_be_captured = False

    def __init__(
        self,
        experts: ExpertsModule,
        gate: GateModule,
        shape: tuple[int, ...],
        orthogonal: bool = False,
    ):
        super().__init__(experts, gate, encoder=_Norm(shape))
        self.shape = shape
        self.orthogonal = orthogonal
        self.n_units = math.prod(shape)
        self.places = list(range(len(experts.costs)))
        self.n_places = len(self.places)

    def for_gate(self, x: Tensor) -> Tensor:
        if len(self.shape) == 1:
            return x
        means = x[:, : self.n_units].unflatten(1, self.shape).mean(dim=(2, 3))
        return torch.cat([means, x[:, self.n_units :]], dim=1)

    def for_experts(self, x: Tensor) -> Tensor:
        return x[:, : self.n_units].unflatten(1, self.shape)

    def answer(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output for a batch in prediction, and the scores for the layer above."""
        gate, *parts = self._predict(x)
        return self._mix(*parts), self.scores(gate.logits)

    def scores(self, gate_logits: Tensor) -> Tensor:
        """Return scores for the layer above, with zeros for experts that were pruned."""
        if len(self.places) == self.n_places:
            return gate_logits
        places = torch.tensor(self.places, device=gate_logits.device)
        return gate_logits.new_zeros(gate_logits.shape[0], self.n_places).index_copy(
            1, places, gate_logits
        )

    def keep(self, experts: list[int]) -> None:
        """Keep only these experts, in this order."""
        self.experts.keep(experts)
        self.gate.keep(experts)
        self.places = [self.places[expert] for expert in experts]

    def merge(
        self,
        groups: list[list[int]],
        shares: list[list[float]] | None = None,
        x: Tensor | None = None,
    ) -> None:
        """Replace each group by its first expert or, with samples ``x``, by its mean."""
        if len(groups) == len(self.places):  # none is joined, and the gate keeps its weights
            return
        firsts = [group[0] for group in groups]
        if x is None or shares is None:
            self.experts.keep(firsts)
        else:
            self.experts.merge(groups, shares, self.for_experts(x))
        self.gate = self.gate.merge(groups)
        self.places = [self.places[expert] for expert in firsts]

    def _mix(self, gate_log_proba, expert_logits):
        if self.orthogonal:
            n_experts = gate_log_proba.shape[1]
            order = gate_log_proba.argsort(dim=1, descending=True, stable=True)
            order = order[:, : self.gate.top_k or n_experts]
            gate_log_proba = gate_log_proba.gather(1, order)
            places = order.unsqueeze(2).expand(-1, -1, expert_logits.shape[2])
            expert_logits = orthogonalize(expert_logits.gather(1, places), normalize=False)
        return torch.einsum("ne,neh->nh", gate_log_proba.exp(), expert_logits)


class _Norm(nn.GroupNorm):
    """Normalise the first numbers of a batch, which are vectors or images, for each sample."""

    def __init__(self, shape):
        super().__init__(1, shape[0])
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        n_units = math.prod(self.shape)
        own = super().forward(x[:, :n_units].unflatten(1, self.shape)).flatten(1)
        return own if x.shape[1] == n_units else torch.cat([own, x[:, n_units:]], dim=1)


class MoELayersModule(nn.Module):
    r"""The torch module of ``MoELayers``: residual blocks, each with a mixture of experts.

    .. math:: v_{l+1} = v_l + \mathrm{mixture}_l(v_l, G_{l-1})

    Parameters
    ----------
    first : nn.Module
        Maps a batch to the input of the first block.
    mixtures : sequence of HiddenMixture
        The mixture of each block.
    between : sequence of nn.Module
        What follows each block; the last of them ends the encoder.
    gating_residual : bool
        Whether the gate of a block also reads the scores of the gate below.
    """

    def __init__(
        self,
        first: nn.Module,
        mixtures: Sequence[HiddenMixture],
        between: Sequence[nn.Module],
        gating_residual: bool,
    ):
        super().__init__()
        self.first = first
        self.mixtures = nn.ModuleList(mixtures)
        self.between = nn.ModuleList(between)
        self.gating_residual = gating_residual

    def forward(
        self,
        x: Tensor,
        generator: torch.Generator | None = None,
        outputs: list[MixtureOutput] | None = None,
    ) -> Tensor:
        """Map a batch to features, and append the outputs of the mixtures to a list."""
        x = self.first(x)
        scores: list[Tensor] = []
        for part, after in zip(self.mixtures, self.between, strict=True):
            mixture: Any = part
            read = torch.cat([x.flatten(1), *scores], dim=1)
            if outputs is None:
                mixed, below = mixture.answer(read)
            else:
                outputs.append(mixture(read, generator))
                mixed, below = outputs[-1].log_proba, mixture.scores(outputs[-1].gate_logits)
            scores = [below] if self.gating_residual else []
            x = after(x + mixed.view_as(x))
        return x

    def keep(self, experts: list[list[int]]) -> None:
        """Keep only these experts of each mixture, in this order."""
        for mixture, kept in zip(self.mixtures, experts, strict=True):
            mixture.keep(kept)  # type: ignore[operator]

    def merge(
        self,
        groups: list[list[list[int]]],
        shares: list[list[list[float]]] | None = None,
        x: list[Tensor] | None = None,
    ) -> MoELayersModule:
        """Replace the groups of each mixture by one expert each, as in ``HiddenMixture``."""
        for number, part in enumerate(self.mixtures):
            mixture: Any = part
            own = (None, None) if shares is None or x is None else (shares[number], x[number])
            mixture.merge(groups[number], *own)
        return self


class HiddenConvExpertsModule(ExpertsModule):
    """Experts of two convolutions, from images to images of the same shape.

    Parameters
    ----------
    n_experts : int
        Number of experts.
    shape : tuple of int
        Channels, height and width of an image.
    channels : int
        Channels between the convolutions.
    kernel_size : int
        Height and width of the kernels, odd.
    generator : torch.Generator
        Source of the initial weights.
    """

    def __init__(
        self,
        n_experts: int,
        shape: tuple[int, ...],
        channels: int,
        kernel_size: int,
        generator: torch.Generator,
    ):
        super().__init__()
        self.inner = _Convolution(n_experts, shape[0], channels, kernel_size, generator)
        self.outer = _Convolution(n_experts, channels, shape[0], kernel_size, generator)
        self.hidden_size = channels
        self.size = math.prod(shape[1:])
        self.widest = max(channels, shape[0]) * self.size

    @property
    def costs(self) -> list[int]:
        weights = self.inner.weight[0].numel() + self.outer.weight[0].numel()
        return [weights * self.size] * len(self.inner.weight)

    def forward(
        self, x: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        n_experts = len(self.inner.weight)
        inner = F.relu(self.inner(x))
        out = self.outer(inner, groups=n_experts).unflatten(1, (n_experts, -1)).flatten(2)
        return out, inner.mean(dim=(2, 3)).unflatten(1, (n_experts, -1))

    def run_some(self, x: list[Tensor], experts: list[int]) -> list[Tensor]:
        return [
            self.outer(F.relu(self.inner(own, expert=expert)), expert=expert).flatten(1)
            for own, expert in zip(x, experts, strict=True)
        ]

    def keep(self, experts: list[int]) -> None:
        for each in (self.inner, self.outer):
            keep_rows(each, experts)


class _Convolution(nn.Module):
    """The convolutions of all experts, which keep the size of an image."""

    def __init__(self, n_experts, n_in, n_out, kernel_size, generator):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_experts, n_out, n_in, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.empty(n_experts, n_out))
        for parameter in self.parameters():
            fill_like_linear(parameter, n_in * kernel_size**2, generator)

    def forward(self, x: Tensor, *, groups: int = 1, expert: int | None = None) -> Tensor:
        weight, bias = self.weight, self.bias
        weight, bias = (
            (weight.flatten(0, 1), bias.flatten())
            if expert is None
            else (weight[expert], bias[expert])
        )
        return F.conv2d(x, weight, bias, padding=self.weight.shape[-1] // 2, groups=groups)
