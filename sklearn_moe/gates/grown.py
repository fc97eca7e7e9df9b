"""A gate that knows from which of several trainings a sample may come."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_moe.gates.base import OF_COLUMNS, GateModule, GateOutput

# The logarithm of the probability that a change of the gate can at least start from.
LOG_FLOOR = math.log(0.01)

# Minus this is the log-probability of an expert that a stage does not know.
LARGE = 1e30


class GrownGateModule(GateModule):
    r"""The gate of a mixture that has grown: one gate for each stage of its growth.

    Each stage :math:`t` changes what the gate :math:`p_{<t}` was before it:

    .. math:: q_t(x) = \mathrm{softmax}(\log(p_{<t}(x) + 0.01) + g_t(x)), \qquad
              p_{\le t}(x) = p(\mathrm{former} \mid x)\, p_{<t}(x) + p(t \mid x)\, q_t(x)

    with :math:`p_{<t} = 1 / E` for new experts. The change :math:`g_t` has learned from the
    samples of the stage, and counts for samples that are like them:

    .. math:: p(t \mid x) \propto \sum_{k \in t} e^{w_k} \, \mathcal{N}(x; \mu_k, \Sigma_k)^\beta

    Each class :math:`k` of a stage is a normal distribution with few main directions, of which
    only means, directions and variances are kept.

    Parameters
    ----------
    gates : list of GateModule
        The first gate, and the changes of the later stages.
    members : list of list of int
        For each stage, the experts that its gate knows.
    stages : list of int
        For each normal distribution, its stage.
    n_inputs, n_directions : int
        How many numbers the gate reads, and how many main directions a distribution has.
    top_k : int or None
        How many experts answer for a sample.

    Attributes
    ----------
    only_last : bool
        Whether all samples count as samples of the last stage, as in its training.
    """

    needs_hidden = False

    gates: Any  # ModuleList of GateModule
    stages: Tensor
    means: Tensor
    directions: Tensor
    variances: Tensor
    log_weights: Tensor
    remaining: Tensor
    sharpness: Tensor

    def __init__(
        self,
        gates: list[GateModule],
        members: list[list[int]],
        stages: list[int],
        n_inputs: int,
        n_directions: int,
        top_k: int | None,
    ):
        super().__init__(temperature=1.0, top_k=top_k)
        self.gates = nn.ModuleList(gates)
        self.members = members
        self.only_last = False
        for gate in gates:
            gate.take(None)
            gate.noise = 0.0
        for name in OF_COLUMNS:
            setattr(self, name, getattr(gates[0], name))
        self.register_buffer("stages", torch.tensor(stages))
        self.register_buffer("means", torch.zeros(len(stages), n_inputs))
        self.register_buffer("directions", torch.zeros(len(stages), n_directions, n_inputs))
        self.register_buffer("variances", torch.zeros(len(stages), n_directions))
        self.register_buffer("log_weights", torch.zeros(len(stages)))
        self.register_buffer("remaining", torch.ones(()))
        self.register_buffer("sharpness", torch.ones(()))

    @property
    def cost(self) -> int:
        return sum(gate.cost for gate in self.gates) + self.means.numel() + self.directions.numel()

    def log_density(self, x: Tensor) -> Tensor:
        """Return log-densities (n_samples, n_distributions), up to a constant."""
        return log_density(x, self.means, self.directions, self.variances, self.remaining)

    def stage_log_proba(self, x: Tensor) -> Tensor:
        """Return the log-probabilities of the stages for inputs, (n_samples, n_stages)."""
        scores = self.sharpness * self.log_density(x.flatten(1)) + self.log_weights
        of_stages = [
            scores.masked_fill(self.stages != stage, -torch.inf).logsumexp(dim=1)
            for stage in range(len(self.gates))
        ]
        return torch.stack(of_stages, dim=1).log_softmax(dim=1)

    def forward(
        self, x: Tensor, hidden: Tensor | None, generator: torch.Generator | None = None
    ) -> GateOutput:
        of_stages, mixed = self.mix_stages(x, generator)
        return self.route(of_stages[-1] if self.only_last else mixed, generator)

    def mix_stages(
        self, x: Tensor, generator: torch.Generator | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Return log-probabilities (n_samples, n_experts) of each stage, and of all together."""
        n_experts = 1 + max(max(members) for members in self.members)
        nobody = x.new_full((x.shape[0], n_experts), -LARGE)

        def among_all(log_proba, members):
            return nobody.index_copy(1, torch.tensor(members, device=x.device), log_proba)

        scores, known = self.stage_log_proba(x), set(self.members[0])
        mixed = among_all(self.gates[0](x, None, generator).log_proba, self.members[0])
        of_stages = [mixed]
        for stage, members in enumerate(self.members[1:], start=1):
            start = mixed[:, members].logaddexp(mixed.new_tensor(LOG_FLOOR))
            is_new = torch.tensor([each not in known for each in members], device=x.device)
            start = start.masked_fill(is_new, -math.log(len(members)))
            change = self.gates[stage](x, None, generator).logits
            of_stages.append(among_all((start + change).log_softmax(dim=1), members))
            former = scores[:, :stage].logsumexp(dim=1, keepdim=True)
            shares = torch.cat([former, scores[:, [stage]]], dim=1).log_softmax(dim=1)
            mixed = (mixed + shares[:, :1]).logaddexp(of_stages[-1] + shares[:, 1:])
            known |= set(members)
        return of_stages, mixed

    def score(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        return self(x, hidden).logits

    def keep(self, experts: list[int]) -> None:
        gates: list[GateModule] = []
        members, renumbered = [], {}
        for stage, (gate, own) in enumerate(zip(self.gates, self.members, strict=True)):
            kept = [expert for expert in experts if expert in own]
            if kept:
                gate.keep([own.index(expert) for expert in kept])
                renumbered[stage] = len(gates)
                gates.append(gate)
                members.append([experts.index(expert) for expert in kept])
        self.gates, self.members = nn.ModuleList(gates), members
        stages = self.stages.tolist()
        rows = [row for row, stage in enumerate(stages) if stage in renumbered]
        for name in ("means", "directions", "variances", "log_weights"):
            setattr(self, name, getattr(self, name)[rows])
        self.stages = self.stages.new_tensor([renumbered[stages[row]] for row in rows])


def log_density(
    x: Tensor, means: Tensor, directions: Tensor, variances: Tensor, remaining: Tensor | float
) -> Tensor:
    """Return log-densities (n_samples, n_distributions) of samples, up to a constant."""
    centre = means.mean(dim=0)  # differences of large numbers would be inexact
    x, means = x - centre, means - centre
    squares = x.square().sum(dim=1, keepdim=True) - 2 * x @ means.mT + means.square().sum(dim=1)
    along = (x @ directions.flatten(0, 1).mT).unflatten(1, variances.shape)
    along = (along - (directions @ means.unsqueeze(2)).squeeze(2)).square()
    total = variances + remaining
    distances = (along / total).sum(dim=2) + (squares - along.sum(dim=2)) / remaining
    return -0.5 * (distances + (total / remaining).log().sum(dim=1))


def grow_gate(
    gate: GateModule,
    change: GateModule,
    *,
    n_experts: int,
    n_new: int,
    stages: list[int],
    n_inputs: int,
    n_directions: int,
) -> GrownGateModule:
    """Return a gate with one more stage.

    Parameters
    ----------
    gate : GateModule
        The present gate.
    change : GateModule
        A new gate for all experts, which changes it.
    n_experts, n_new : int
        Number of present and of new experts.
    stages, n_inputs, n_directions
        As in :class:`GrownGateModule`.
    """
    if isinstance(gate, GrownGateModule):
        gates, members = list(gate.gates), gate.members
    else:
        gates, members = [gate], [list(range(n_experts))]
    members = [*members, list(range(n_experts + n_new))]
    top_k = gate.top_k
    return GrownGateModule([*gates, change], members, stages, n_inputs, n_directions, top_k)
