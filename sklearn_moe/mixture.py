"""The mixture of experts as a torch module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from sklearn_moe.gates import GateModule, GateOutput, Routing
from sklearn_moe.images import augment

if TYPE_CHECKING:
    from sklearn_moe.experts import ExpertsModule

# The time to select the samples of one expert and start it, in multiply-adds.
WORTH_AN_EXPERT = {"cpu": 5e5, "cuda": 1e9, "mps": 1e9}


class MixtureOutput(NamedTuple):
    """The output of a mixture for a batch, and the results on the way to it.

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
        The noise that a gate drew; None in prediction and for gates without noise.
    x : Tensor of shape (n_samples, ...)
        The input of gate and experts: the batch, encoded if there is an encoder.
    experts : ExpertsModule
        The module of the experts, which has their ``costs``.
    top_k : int or None
        How many experts the gate takes for a sample; None means all.
    gate : GateModule
        The module of the gate.
    layers : tuple of MixtureOutput
        The outputs of the mixtures within the encoder (see ``MoELayers``), from below.
    """

    log_proba: Tensor
    gate_logits: Tensor
    gate_proba: Tensor
    expert_logits: Tensor
    hidden: Tensor
    routing: Routing | None
    x: Tensor | None = None
    experts: ExpertsModule | None = None
    top_k: int | None = None
    gate: GateModule | None = None
    layers: tuple[MixtureOutput, ...] = ()


class MixtureOfExperts(nn.Module):
    r"""Experts, and a gate that mixes them into one prediction.

    With ``mixing="probability"`` the experts' class probabilities :math:`o_{ne}` are averaged, in
    log space, so that the loss is the exact likelihood of the mixture:

    .. math:: \log \hat y_{nc} = \log \sum_e p_{ne}\, o_{nec}

    With ``mixing="logit"`` their logits :math:`z_{ne}` are averaged:
    :math:`\hat y_n = \mathrm{softmax}(\sum_e p_{ne} z_{ne})`.

    Parameters
    ----------
    experts : ExpertsModule
        Maps ``(x, generator)`` to expert logits and hidden vectors.
    gate : GateModule
        Maps ``(x, hidden, generator)`` to a ``GateOutput``.
    mixing : {"probability", "logit"}, default="probability"
        Whether probabilities or logits are averaged.
    encoder : nn.Module, default=None
        Maps a batch to the input of gate and experts; None leaves the batch unchanged. If it has
        ``mixtures``, it is called as ``encoder(x, generator, outputs)`` where their outputs are
        wanted, and appends them to the list.
    table : TableLayer, default=None
        Encodes a batch of a table, before the encoder.
    gate_columns, expert_columns : sequence of int, default=None
        Which columns of the encoded batch the gate and the experts read; None means all.
    gate_shape : tuple of int, default=None
        Shape of a sample that the gate reads, if encoded images come flat, with log-probabilities
        of experts that answer outside behind them.

    Attributes
    ----------
    n_restarts : int
        Number of mixtures whose weights are stacked in this module (see ``Restarts``).
    best : MixtureOfExperts
        The best of them, which makes the predictions.
    """

    n_restarts = 1

    has_known_gradient = True
    can_be_captured = True

    gate_columns: Tensor | None
    expert_columns: Tensor | None

    def __init__(
        self,
        experts: ExpertsModule,
        gate: GateModule,
        *,
        mixing: str = "probability",
        encoder: nn.Module | None = None,
        table: nn.Module | None = None,
        gate_columns: Sequence[int] | Tensor | None = None,
        expert_columns: Sequence[int] | Tensor | None = None,
        gate_shape: tuple[int, ...] | None = None,
    ):
        super().__init__()
        experts.check_gate(gate)
        self.table = nn.Identity() if table is None else table
        self.encoder = nn.Identity() if encoder is None else encoder
        self.experts = experts
        self.gate = gate
        self.mixing = mixing
        self.gate_shape = gate_shape
        for name, columns in (("gate_columns", gate_columns), ("expert_columns", expert_columns)):
            # Not persistent, as the net has them among its parameters.
            columns = None if columns is None else torch.as_tensor(columns)
            self.register_buffer(name, columns, persistent=False)

    @property
    def best(self) -> MixtureOfExperts:
        return self

    @property
    def layers(self) -> Sequence[MixtureOfExperts]:
        """The mixtures within the encoder, from below."""
        return getattr(self.encoder, "mixtures", ())

    def for_gate(self, x: Tensor) -> Tensor:
        """Return the columns, or the images, of an encoded batch that the gate reads."""
        x = x if self.gate_columns is None else x.index_select(1, self.gate_columns)
        return x if self.gate_shape is None else x.unflatten(1, self.gate_shape)

    def for_experts(self, x: Tensor) -> Tensor:
        """Return the columns of an encoded batch that the experts read."""
        return x if self.expert_columns is None else x.index_select(1, self.expert_columns)

    def run_experts(
        self, x: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the logits and the hidden vectors of all experts for an encoded batch."""
        return self.experts(self.for_experts(x), generator)

    def forward(
        self,
        x: Tensor,
        generator: torch.Generator | None = None,
        augmentation: Callable[[Tensor, torch.Generator | None], Tensor] | None = None,
    ) -> MixtureOutput:
        """Run a batch; the generator serves augmentation, dropout and gate noise in training."""
        layers: list[MixtureOutput] = []
        x = self.encode(x, generator, augmentation, layers)
        expert_logits, hidden = self.run_experts(x, generator)
        gate_logits, gate_log_proba, routing = self._choose(x, hidden, generator)
        return MixtureOutput(
            log_proba=self._mix(gate_log_proba, expert_logits),
            gate_logits=gate_logits,
            gate_proba=gate_log_proba.softmax(dim=1),  # exp could round to more than 1
            expert_logits=expert_logits,
            hidden=hidden,
            routing=routing,
            x=x,
            experts=self.experts,
            top_k=self.gate.top_k,
            gate=self.gate,
            layers=tuple(layers),
        )

    def encode(
        self,
        x: Tensor,
        generator: torch.Generator | None = None,
        augmentation: Callable[[Tensor, torch.Generator | None], Tensor] | None = None,
        layers: list[MixtureOutput] | None = None,
    ) -> Tensor:
        """Return the input of gate and experts for a batch; bytes are scaled to [0, 1].

        The outputs of mixtures within the encoder are appended to ``layers``.
        """
        given = None
        if n_given := self.experts.n_given:
            x, given = x[:, :-n_given], x[:, -n_given:]
        x = self.table(x)
        if augmentation is not None:
            x = augment(augmentation, x, generator)
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        wants_layers = layers is not None and self.layers
        x = self.encoder(x, generator, layers) if wants_layers else self.encoder(x)
        return x if given is None else torch.cat([x.flatten(1), given.to(x.dtype)], dim=1)

    def route(self, x: Tensor) -> GateOutput:
        """Return the gate's output for a batch; experts run only if the gate reads them."""
        return self._route(self.encode(x))

    def _route(self, x):
        return self._choose(x, self.run_experts(x)[1] if self.gate.needs_hidden else None)

    def _choose(self, x, hidden, generator=None):
        """Return the gate's output, with probability only for experts that take part."""
        gate = self.gate(self.for_gate(x), hidden, generator)
        return gate._replace(log_proba=self.experts.limit(gate.log_proba))

    def gate_proba(self, x: Tensor) -> Tensor:
        """Return the gate's probabilities (n_samples, n_experts) for a batch."""
        return self.route(x).log_proba.softmax(dim=1)

    def expert_logits(self, x: Tensor) -> Tensor:
        """Return the experts' logits (n_samples, n_experts, n_classes) for a batch."""
        return self.run_experts(self.encode(x))[0]

    def chosen_expert_logits(self, x: Tensor) -> Tensor:
        """Return the logits (n_samples, n_classes) of the most probable expert of each sample."""
        x = self.encode(x)
        chosen = self._route(x).log_proba.softmax(dim=1).argmax(dim=1, keepdim=True)
        if self.experts.independent:
            return self._run_chosen(x, chosen).squeeze(1)
        return self.run_experts(x)[0][torch.arange(len(x), device=x.device), chosen.squeeze(1)]

    @property
    def is_conditional(self) -> bool:
        """Whether only the experts that the gate chooses for a sample have to run."""
        is_choosing = self.gate.n_answers is not None and not self.gate.needs_hidden
        return is_choosing and self.experts.independent

    def predict_log_proba(self, x: Tensor) -> Tensor:
        """Return the log-probabilities of the classes for a batch, (n_samples, n_classes)."""
        return self._mix(*self._predict(x)[1:])

    def predict_proba(self, x: Tensor, temperature: float = 1.0) -> Tensor:
        """Return the probabilities of the classes for a batch, (n_samples, n_classes).

        The temperature divides the log-probabilities.
        """
        # exp could round to more than 1.
        return (self.predict_log_proba(x) / temperature).mT.softmax(dim=0).mT.contiguous()

    def soft_log_proba(self, x: Tensor) -> Tensor:
        """Return the log-probabilities of a batch after ``table``, of the mixture of all experts.

        A gate that takes a few experts mixes all of them here, so that the result changes smoothly
        with the batch.
        """
        x = self.encoder(x)
        expert_logits, hidden = self.run_experts(x)
        logits = self.gate(self.for_gate(x), hidden if self.gate.needs_hidden else None).logits
        return self._mix(self.experts.limit(logits.log_softmax(dim=1)), expert_logits)

    def _predict(self, x):
        """Return the gate's output, and log-probabilities and logits of all or chosen experts."""
        x = self.encode(x)
        if self.is_conditional and self._is_worth_choosing(x):
            gate = self._choose(x, None)
            gate_log_proba = gate.log_proba
            if self.gate.top_k == 1:  # max is faster than topk
                gate_log_proba, chosen = gate_log_proba.max(dim=1, keepdim=True)
            else:
                k = self.gate.top_k or gate_log_proba.shape[1]
                gate_log_proba, chosen = gate_log_proba.topk(k, dim=1)
            # A sparse or merged gate, or experts that take no part, may leave fewer than k.
            answers = None if self.gate.top_k == 1 else gate_log_proba > -torch.inf
            return gate, gate_log_proba, self._run_chosen(x, chosen, answers)
        expert_logits, hidden = self.run_experts(x)
        gate = self._choose(x, hidden)
        return gate, gate.log_proba, expert_logits

    def _run_chosen(self, x: Tensor, chosen: Tensor, answers: Tensor | None = None) -> Tensor:
        """Return the logits (n_samples, k, n_classes) of the k experts chosen for each sample.

        Experts with False in ``answers`` do not run; their logits are zero.
        """
        x = self.for_experts(x)
        # Pairs of a sample and an expert, sorted by expert.
        pairs = chosen.flatten().argsort()
        if answers is not None:
            pairs = pairs[answers.flatten()[pairs]]
        counts = chosen.flatten()[pairs].bincount().tolist()
        used = [expert for expert, count in enumerate(counts) if count > 0]
        own = x[pairs // chosen.shape[1]].split([counts[expert] for expert in used])
        logits = torch.cat(self.experts.run_some(own, used))
        out = logits.new_zeros(chosen.numel(), logits.shape[1])
        return out.index_copy_(0, pairs, logits).unflatten(0, chosen.shape)

    def _is_worth_choosing(self, x):
        """Whether running a few experts in turn is faster than running all of them at once."""
        if not self.experts.runs_at_once:  # they run in turn anyway
            return True
        costs = self.experts.costs
        n_experts, n_answers = len(costs), self.gate.n_answers
        saved = len(x) * (n_experts - n_answers) * sum(costs) / n_experts
        n_used = min(n_experts, len(x) * n_answers)
        return saved > WORTH_AN_EXPERT[x.device.type] * n_used

    def _mix(self, gate_log_proba, expert_logits):
        if self.mixing == "probability":
            # The samples are last, as in the experts' outputs, so that all steps are vectorised.
            log_proba = expert_logits.permute(1, 2, 0).log_softmax(dim=1)
            return (gate_log_proba.mT.unsqueeze(1) + log_proba).logsumexp(dim=0).mT
        gate_proba = gate_log_proba.softmax(dim=1)
        return torch.einsum("ne,nec->nc", gate_proba, expert_logits).log_softmax(dim=1)
