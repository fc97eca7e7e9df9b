"""A gate that balances the work without a loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
from sklearn.utils._param_validation import Interval
from torch import Tensor, nn

from sklearn_moe.gates.base import Gate, GateModule, mask_all_but_top_k
from sklearn_moe.gates.softmax import SoftmaxGateModule
from sklearn_moe.layers import MLP


class BalancedGate(Gate):
    r"""A gate that gives all experts the same number of samples, without a loss for it.

    The experts that answer for a sample are those with the largest :math:`g(x_n)_e + b_e`, but
    their shares are :math:`\mathrm{softmax}(g(x_n))` among them, without the bias :math:`b`. After
    each batch in training, the bias of an expert that got fewer samples than the mean rises, and
    that of one that got more falls:

    .. math:: b_e \leftarrow b_e + u\, \mathrm{sign}(\bar c - c_e)

    Penalties such as ``Importance`` do the same with a gradient, which may work against that of
    the likelihood.

    Parameters
    ----------
    hidden_layer_sizes : sequence of int, default=()
        Sizes of the gate's hidden ReLU layers; without hidden layers the gate is linear.
    top_k : int, default=2
        How many experts answer for a sample, at least 2.
    rate : float, default=0.01
        The step :math:`u` of a bias.
    temperature : float, default=1.0
        The logits are divided by it; below 1 the gate is surer, above 1 less sure.
    encoder : {"conv"}, object, callable or None, default=None
        An encoder that only the gate uses, before its layers: "conv" or a ``ConvEncoder`` for
        images, or a function as in ``MoEClassifier(encoder=...)``.

    References
    ----------
    L. Wang et al., Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts, 2024, arXiv
    2408.15664.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_moe import BalancedGate, MoEClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = MoEClassifier(n_experts=4, gate=BalancedGate(), max_iter=20, random_state=0)
    >>> clf.fit(X, y).score(X, y) > 0.9
    True
    """

    needs_hidden = False
    has_input_weight = True

    _parameter_constraints: dict = {
        **Gate._parameter_constraints,
        "rate": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] = (),
        *,
        top_k: int = 2,
        rate: float = 0.01,
        temperature: float = 1.0,
        encoder: str | object | Callable[[tuple[int, ...]], nn.Module] | None = None,
    ):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.top_k = top_k
        self.rate = rate
        self.temperature = temperature
        self.encoder = encoder

    def build(
        self,
        input_shape: tuple[int, ...],
        n_experts: int,
        hidden_size: int,
        generator: torch.Generator,
    ) -> GateModule:
        """Return the torch module of this gate."""
        if n_experts < 2:
            raise ValueError(f"BalancedGate needs n_experts of at least 2, got {n_experts}.")
        layers = self._layers(input_shape, n_experts, generator)
        if self.top_k is None or self.top_k < 2:
            raise ValueError(
                f"BalancedGate needs top_k of at least 2, got {self.top_k}: with one expert it "
                "would train on the full softmax, and choose nobody."
            )
        return BalancedGateModule(
            *layers, self.rate, temperature=self.temperature, top_k=self.top_k
        )


class BalancedGateModule(SoftmaxGateModule):
    """The torch module of a :class:`BalancedGate`."""

    has_known_gradient = False
    can_be_captured = False
    bias: Tensor

    def __init__(self, encoder: nn.Module, network: MLP, rate: float, **routing: Any):
        super().__init__(encoder, network, **routing)
        self.rate = rate
        self.register_buffer("bias", torch.zeros(len(self.start_norms)))

    def formula(self) -> None:
        return None  # which experts answer depends on the bias, too

    def keep(self, experts: list[int]) -> None:
        super().keep(experts)
        self.bias = self.bias[experts]

    def select(self, logits: Tensor) -> Tensor:
        chosen = mask_all_but_top_k(logits.detach() + self.bias, self.top_k or len(self.bias))
        answers = chosen.isfinite()
        if self.training:
            counts = answers.sum(dim=0, dtype=self.bias.dtype)
            self.bias += self.rate * torch.sign(counts.mean() - counts)
        return logits.masked_fill(~answers, -torch.inf)
