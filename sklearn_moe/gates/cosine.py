"""A gate that compares directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import torch
from sklearn.utils._param_validation import Interval
from torch import Tensor, nn
from torch.nn import functional as F

from sklearn_moe.gates.base import Gate, GateFormula, GateModule, first_weight
from sklearn_moe.layers import MLP, keep_rows, linear


class CosineGate(Gate):
    r"""A gate that sends a sample to the expert with the most similar direction.

    .. math:: l_{ne} = \frac{1}{T} \cos(W g(x_n),\; v_e), \qquad p_n = \mathrm{softmax}(l_n)

    with the gate's network :math:`g`, a projection :math:`W` and a learned direction :math:`v_e`
    for each expert. Only the directions count, so no expert can win by large weights. The
    temperature :math:`T` is learned, too.

    Parameters
    ----------
    hidden_layer_sizes : sequence of int, default=()
        Sizes of the layers of :math:`g`, with ReLU between them and none after the last. Without
        layers, :math:`g(x) = x`.
    size : int, default=32
        Number of dimensions in which directions are compared.
    temperature : float, default=0.3
        Initial value of :math:`T`. No logit is larger than :math:`1 / T`.
    top_k : int or None, default=None
        How many experts answer for a sample; None means all. With 1 the gate trains on the full
        softmax and one expert answers in prediction.
    encoder : {"conv"}, object, callable or None, default=None
        An encoder that only the gate uses, before its layers: "conv" or a ``ConvEncoder`` for
        images, or a function as in ``MoEClassifier(encoder=...)``.

    References
    ----------
    Z. Chi et al., On the Representation Collapse of Sparse Mixture of Experts, 2022, arXiv
    2204.09179.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_moe import CosineGate, MoEClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = MoEClassifier(n_experts=3, gate=CosineGate(size=8), random_state=0).fit(X, y)
    >>> clf.score(X, y) > 0.9
    True
    """

    _parameter_constraints: dict = {
        **Gate._parameter_constraints,
        "size": [Interval(Integral, 1, None, closed="left")],
    }

    needs_hidden = False

    has_input_weight = True

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] = (),
        *,
        size: int = 32,
        temperature: float = 0.3,
        top_k: int | None = None,
        encoder: str | object | Callable[[tuple[int, ...]], nn.Module] | None = None,
    ):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.size = size
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
        encoder, sizes = self._start(input_shape, n_experts, generator)
        return CosineGateModule(
            encoder=encoder,
            trunk=MLP(sizes, generator),
            projection=linear(sizes[-1], self.size, generator, bias=False),
            directions=linear(self.size, n_experts, generator, bias=False),
            temperature=self.temperature,
            top_k=self.top_k,
        )


class CosineGateModule(GateModule):
    """The torch module of a :class:`CosineGate`."""

    needs_hidden = False

    def __init__(
        self,
        encoder: nn.Module,
        trunk: MLP,
        projection: nn.Linear,
        directions: nn.Linear,
        **routing: Any,
    ):
        super().__init__(**routing)
        self.encoder = encoder
        self.trunk = trunk
        self.projection = projection
        self.directions = directions
        # The learned change of the temperature. Weight decay pulls it back to the initial value.
        self.log_change = nn.Parameter(torch.zeros(()))

    @property
    def input_weight(self) -> Tensor | None:
        return first_weight(self.encoder, self.trunk, self.projection)

    @property
    def expert_weights(self) -> Tensor:
        return F.normalize(self.directions.weight, dim=1)

    def keep(self, experts: list[int]) -> None:
        keep_rows(self.directions, experts)

    def formula(self) -> GateFormula | None:
        if self.trunk.layers or type(self.encoder) is not nn.Identity:
            return None
        length = self.projection.weight
        weight = self.expert_weights @ length
        weight = weight * torch.exp(-self.log_change) / self.temperature
        return GateFormula(weight, weight.new_zeros(len(weight)), length)

    def score(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        own = self.projection(self.trunk(self.encoder(x).flatten(1)))
        cosine = F.normalize(own, dim=1) @ self.expert_weights.mT
        return cosine * torch.exp(-self.log_change)
