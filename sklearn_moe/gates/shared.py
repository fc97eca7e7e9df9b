"""A gate with an expert that answers for all samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sklearn_moe.gates.base import Gate, GateModule, mask_all_but_top_k
from sklearn_moe.gates.softmax import SoftmaxGateModule
from sklearn_moe.layers import MLP


class SharedExpertGate(Gate):
    r"""A gate whose first expert answers for all samples, with the same share.

    What all samples have in common is then learned once, by the shared expert, and the others need
    not repeat it. The share :math:`s` is learned, too, and begins with one half:

    .. math:: p_{n1} = s, \qquad
              p_{ne} = (1 - s)\, \mathrm{softmax}(\mathrm{top}_{k-1}(g(x_n) / T))_e
              \quad (e > 1)

    Parameters
    ----------
    hidden_layer_sizes : sequence of int, default=()
        Sizes of the gate's hidden ReLU layers; without hidden layers the gate is linear.
    temperature : float, default=1.0
        The logits are divided by :math:`T`; below 1 the gate is surer, above 1 less sure.
    top_k : int or None, default=None
        How many experts answer for a sample, the shared one among them: at least 2. None means
        all.
    encoder : {"conv"}, object, callable or None, default=None
        An encoder that only the gate uses, before its layers: "conv" or a ``ConvEncoder`` for
        images, or a function as in ``MoEClassifier(encoder=...)``.

    References
    ----------
    D. Dai et al., DeepSeekMoE: Towards Ultimate Expert Specialization in Mixture-of-Experts
    Language Models, 2024, arXiv 2401.06066.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_moe import MoEClassifier, SharedExpertGate
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = MoEClassifier(n_experts=4, gate=SharedExpertGate(), max_iter=20, random_state=0)
    >>> share = clf.fit(X, y).gate_proba(X)[:, 0]
    >>> bool(share.std() < 1e-6)
    True
    """

    needs_hidden = False
    has_input_weight = True

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] = (),
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        encoder: str | object | Callable[[tuple[int, ...]], nn.Module] | None = None,
    ):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.temperature = temperature
        self.top_k = top_k
        self.encoder = encoder

    def build(
        self,
        input_shape: tuple[int, ...],
        n_experts: int,
        hidden_size: int,
        generator: torch.Generator,
    ) -> GateModule:
        """Return the torch module of this gate."""
        layers = self._layers(input_shape, n_experts, generator)
        if self.top_k == 1 and n_experts > 1:
            raise ValueError(
                "SharedExpertGate needs top_k of at least 2, or None: the shared expert answers "
                "for all samples, and another one with it."
            )
        return SharedExpertGateModule(*layers, self.temperature, top_k=self.top_k)


class SharedExpertGateModule(SoftmaxGateModule):
    """The torch module of a :class:`SharedExpertGate`.

    The layers score all experts, but the score of the shared one does not count. If pruning drops
    the shared expert, the others share the samples among them.

    Parameters
    ----------
    of_others : float
        The temperature of the softmax over the other experts.
    """

    has_known_gradient = False
    is_linear = False

    def __init__(self, encoder: nn.Module, network: MLP, of_others: float, *, top_k: int | None):
        super().__init__(encoder, network, temperature=1.0, top_k=top_k)
        self.of_others = of_others
        self.share_logit = nn.Parameter(torch.zeros(()))
        self.shared: int | None = 0  # the place of the shared expert, if there is one

    @property
    def expert_weights(self) -> None:
        return None  # those of the shared expert do not count

    def formula(self) -> None:
        return None

    def keep(self, experts: list[int]) -> None:
        super().keep(experts)
        self.shared = experts.index(self.shared) if self.shared in experts else None

    def score(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        return self._with_shared(super().score(x, hidden) / self.of_others)

    def _is_shared(self, scores):
        return torch.arange(scores.shape[1], device=scores.device) == self.shared

    def _with_shared(self, scores):
        """Return log-probabilities of all experts for the scores of those that are not shared."""
        if self.shared is None or scores.shape[1] == 1:
            return scores.log_softmax(dim=1)
        is_shared = self._is_shared(scores)
        others = scores.masked_fill(is_shared, -torch.inf).log_softmax(dim=1)
        shared = F.logsigmoid(self.share_logit)
        return torch.where(is_shared, shared, F.logsigmoid(-self.share_logit) + others)

    def select(self, logits: Tensor) -> Tensor:
        if self.top_k is None or logits.shape[1] == 1:
            return logits
        if self.shared is None:
            return super().select(logits)
        others = logits.masked_fill(self._is_shared(logits), -torch.inf)
        return self._with_shared(mask_all_but_top_k(others, self.top_k - 1))
