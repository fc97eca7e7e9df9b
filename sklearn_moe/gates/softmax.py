"""The ordinary gate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
from sklearn.utils._param_validation import Interval
from torch import Tensor, nn

from sklearn_moe.convolution import multiply_adds
from sklearn_moe.gates.base import Gate, GateFormula, GateModule
from sklearn_moe.layers import MLP


class SoftmaxGate(Gate):
    r"""The ordinary gate: a small network scores the experts from the sample.

    .. math:: p_n = \mathrm{softmax}(\mathrm{top}_k(g(x_n) / T + \sigma \epsilon)),
              \qquad \epsilon \sim \mathcal{N}(0, 1), \quad \sigma = \mathrm{noise} / E

    Parameters
    ----------
    hidden_layer_sizes : sequence of int, default=()
        Sizes of the gate's hidden ReLU layers; without hidden layers the gate is linear.
    temperature : float, default=1.0
        The logits are divided by :math:`T`; below 1 the gate is surer, above 1 less sure.
    top_k : int or None, default=None
        How many experts answer for a sample; None means all. With 1, one expert answers in
        prediction, but the gate trains on the full softmax: a single probability would always be 1
        and have no gradient.
    noise : float, default=0.0
        Noise on the logits in training, in units of ``1 / n_experts``; no noise in prediction.
    encoder : {"conv"}, object, callable or None, default=None
        An encoder that only the gate uses, before its layers: "conv" or a ``ConvEncoder`` for
        images, or a function as in ``MoEClassifier(encoder=...)``.

    References
    ----------
    R. A. Jacobs, M. I. Jordan, S. J. Nowlan, G. E. Hinton, Adaptive Mixtures of Local Experts,
    Neural Computation 3, 1991.

    N. Shazeer et al., Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts
    Layer, 2017, arXiv 1701.06538.

    C. Riquelme et al., Scaling Vision with Sparse Mixture of Experts, 2021, arXiv 2106.05974
    (the noise of fixed size ``1 / n_experts``).

    Examples
    --------
    >>> from sklearn_moe import MoEClassifier, SoftmaxGate
    >>> clf = MoEClassifier(gate=SoftmaxGate(hidden_layer_sizes=(32,), top_k=2))
    >>> clf.set_params(gate__top_k=1).gate
    SoftmaxGate(hidden_layer_sizes=(32,), top_k=1)
    """

    _parameter_constraints: dict = {
        **Gate._parameter_constraints,
        "noise": [Interval(Real, 0, None, closed="left")],
    }

    needs_hidden = False
    has_input_weight = True

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] = (),
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        noise: float = 0.0,
        encoder: str | object | Callable[[tuple[int, ...]], nn.Module] | None = None,
    ):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.temperature = temperature
        self.top_k = top_k
        self.noise = noise
        self.encoder = encoder

    def build(
        self,
        input_shape: tuple[int, ...],
        n_experts: int,
        hidden_size: int,
        generator: torch.Generator,
    ) -> GateModule:
        """Return the torch module of this gate."""
        return SoftmaxGateModule(
            *self._layers(input_shape, n_experts, generator),
            temperature=self.temperature,
            top_k=self.top_k,
            noise=self.noise,
        )


class SoftmaxGateModule(GateModule):
    """The torch module of a :class:`SoftmaxGate`."""

    has_known_gradient = True
    can_be_captured = True
    needs_hidden = False
    start_norms: Tensor

    def __init__(self, encoder: nn.Module, network: MLP, **routing: Any):
        super().__init__(**routing)
        self.encoder = encoder
        self.network = network
        self.register_buffer("start_norms", self._norms())

    @property
    def cost(self) -> int:
        return self.network.multiply_adds + multiply_adds(self.encoder)

    @property
    def input_weight(self) -> Tensor | None:
        return self.network.layers[0].weight if type(self.encoder) is nn.Identity else None

    @property
    def expert_weights(self) -> Tensor | None:
        return self.network.layers[-1].weight[0]

    @property
    def is_linear(self) -> bool:  # type: ignore[override]
        return type(self.encoder) is nn.Identity and len(self.network.layers) == 1

    def formula(self) -> GateFormula | None:
        if not self.is_linear:
            return None
        (layer,) = self.network.layers
        return GateFormula(layer.weight[0] / self.temperature, layer.bias[0] / self.temperature)

    def _norms(self):
        return self.network.layers[-1].weight.detach()[0].norm(dim=1)

    def begin(self) -> None:
        self.start_norms.copy_(self._norms())

    def norm_change(self) -> Tensor:
        return self._norms() - self.start_norms

    def keep(self, experts: list[int]) -> None:
        last = self.network.layers[-1]
        last.weight = nn.Parameter(last.weight.data[:, experts])
        last.bias = nn.Parameter(last.bias.data[:, experts])
        self.start_norms = self.start_norms[experts]

    def score(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        return self.network(self.encoder(x).flatten(1))
