"""The mixture of experts as a torch module."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sklearn_moe.gates import GateOutput, Routing


class MixtureOutput(NamedTuple):
    """All that a mixture says about a batch.

    Attributes
    ----------
    log_proba : Tensor of shape (n_samples, n_classes)
        Log-probabilities of the classes under the mixture.
    gate_logits : Tensor of shape (n_samples, n_experts)
        The gate's scores, before noise and masking.
    gate_proba : Tensor of shape (n_samples, n_experts)
        The gate's probabilities after masking; rows sum to 1.
    expert_logits : Tensor of shape (n_samples, n_experts, n_classes)
        The experts' class logits.
    hidden : Tensor of shape (n_samples, n_experts, hidden_size)
        The experts' last hidden vectors.
    routing : Routing or None
        What a noisy gate drew; None in prediction and for gates without noise.
    """

    log_proba: Tensor
    gate_logits: Tensor
    gate_proba: Tensor
    expert_logits: Tensor
    hidden: Tensor
    routing: Routing | None


class MixtureOfExperts(nn.Module):
    r"""Experts, and a gate that mixes them into one prediction.

    With ``mixing="probability"`` the experts' class probabilities :math:`o_{ne}` are averaged, in
    log space, so that the loss is the exact likelihood of the mixture:

    .. math:: \log \hat y_{nc} = \log \sum_e p_{ne}\, o_{nec}

    With ``mixing="logit"`` their logits :math:`z_{ne}` are averaged:
    :math:`\hat y_n = \mathrm{softmax}(\sum_e p_{ne} z_{ne})`.

    Parameters
    ----------
    experts : nn.Module
        Maps ``(x, generator)`` to expert logits and hidden vectors, and in ``run_one(x, expert)``
        a batch to the logits of one expert.
    gate : GateModule
        Maps ``(x, hidden, generator)`` to a ``GateOutput``.
    mixing : {"probability", "logit"}, default="probability"
        What is averaged.
    """

    def __init__(self, experts: nn.Module, gate: nn.Module, *, mixing: str = "probability"):
        super().__init__()
        self.experts = experts
        self.gate = gate
        self.mixing = mixing

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> MixtureOutput:
        """Run a batch; the generator serves dropout and gate noise in training."""
        expert_logits, hidden = self.experts(x, generator)
        gate_logits, gate_log_proba, routing = self.gate(x, hidden, generator)
        return MixtureOutput(
            log_proba=self._mix(gate_log_proba, expert_logits),
            gate_logits=gate_logits,
            gate_proba=gate_log_proba.softmax(dim=1),  # unlike exp, never above 1
            expert_logits=expert_logits,
            hidden=hidden,
            routing=routing,
        )

    def route(self, x: Tensor) -> GateOutput:
        """Return what the gate says of a batch; experts run only for a gate that reads them."""
        return self.gate(x, self.experts(x)[1] if self.gate.needs_hidden else None)

    def gate_proba(self, x: Tensor) -> Tensor:
        """Return the gate's probabilities (n_samples, n_experts) for a batch."""
        return self.route(x).log_proba.softmax(dim=1)

    @property
    def is_conditional(self) -> bool:
        """Whether a sample passes through the experts that the gate chooses for it alone."""
        return self.gate.top_k is not None and not self.gate.needs_hidden

    def predict(self, x: Tensor) -> Tensor:
        """Return the log-probabilities of the classes for a batch, (n_samples, n_classes)."""
        if not self.is_conditional:
            return self(x).log_proba
        gate_log_proba, chosen = self.gate(x, None).log_proba.topk(self.gate.top_k, dim=1)
        return self._mix(gate_log_proba, self.run_chosen(x, chosen))

    def run_chosen(self, x: Tensor, chosen: Tensor) -> Tensor:
        """Return the logits (n_samples, k, n_classes) of the k experts chosen for each sample."""
        # Pairs of a sample and an expert, one expert's after the other's.
        pairs = chosen.flatten().argsort().split(chosen.flatten().bincount().tolist())
        logits = [
            self.experts.run_one(x[own // chosen.shape[1]], expert)
            for expert, own in enumerate(pairs)
            if len(own) > 0
        ]
        return torch.cat(logits)[torch.cat(pairs).argsort()].unflatten(0, chosen.shape)

    def _mix(self, gate_log_proba, expert_logits):
        if self.mixing == "probability":
            log_joint = gate_log_proba.unsqueeze(2) + expert_logits.log_softmax(dim=2)
            return log_joint.logsumexp(dim=1)
        gate_proba = gate_log_proba.softmax(dim=1)
        return torch.einsum("ne,nec->nc", gate_proba, expert_logits).log_softmax(dim=1)
