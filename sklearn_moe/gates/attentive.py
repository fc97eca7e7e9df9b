"""A gate that reads the experts' hidden vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import torch
from sklearn.utils._param_validation import Interval
from torch import Tensor, nn

from sklearn_moe.gates.base import Gate, GateModule, first_weight
from sklearn_moe.layers import MLP, linear


class AttentiveGate(Gate):
    r"""A gate that attends to the experts' hidden vectors.

    The sample gives a query, and each expert's hidden vector gives a key. The expert whose key
    matches the query best gets the sample:

    .. math:: l_{ne} = \frac{\langle W_q\, g(x_n),\; W_k\, h_{ne} \rangle}{\sqrt{K}\; T},
              \qquad p_n = \mathrm{softmax}(l_n)

    with the gate's network :math:`g`, the experts' hidden vectors :math:`h_{ne}`, and projections
    :math:`W_q` and :math:`W_k` that are the same for all experts. The gate's gradient also flows
    into the experts. All experts must run before the gate can choose.

    Parameters
    ----------
    hidden_layer_sizes : sequence of int, default=(64,)
        Sizes of the layers of :math:`g`, with ReLU between them and none after the last. Without
        layers, :math:`g(x) = x`.
    key_size : int, default=32
        Length :math:`K` of queries and keys.
    temperature : float, default=1.0
        The logits are divided by :math:`T`; below 1 the gate is surer, above 1 less sure.
    top_k : int or None, default=None
        How many experts answer for a sample; None means all. With 1 the gate trains on the full
        softmax and one expert answers in prediction.
    encoder : {"conv"}, object, callable or None, default=None
        An encoder that only the gate uses, before its layers: "conv" or a ``ConvEncoder`` for
        images, or a function as in ``MoEClassifier(encoder=...)``.

    References
    ----------
    Y. Krishnamurthy, C. Watkins, T. Gaertner, Improving Expert Specialization in Mixture of
    Experts, 2023, arXiv 2302.14703.

    Examples
    --------
    >>> from sklearn_moe import AttentiveGate, MoEClassifier
    >>> MoEClassifier(n_experts=5, gate=AttentiveGate(key_size=16)).get_params()["gate__key_size"]
    16
    """

    _parameter_constraints: dict = {
        **Gate._parameter_constraints,
        "key_size": [Interval(Integral, 1, None, closed="left")],
    }

    has_input_weight = True

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] = (64,),
        *,
        key_size: int = 32,
        temperature: float = 1.0,
        top_k: int | None = None,
        encoder: str | object | Callable[[tuple[int, ...]], nn.Module] | None = None,
    ):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.key_size = key_size
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
        return AttentiveGateModule(
            encoder=encoder,
            trunk=MLP(sizes, generator),
            query=linear(sizes[-1], self.key_size, generator, bias=False),
            key=linear(hidden_size, self.key_size, generator, bias=False),
            temperature=self.temperature,
            top_k=self.top_k,
        )


class AttentiveGateModule(GateModule):
    """The torch module of an :class:`AttentiveGate`."""

    can_be_captured = True

    def __init__(
        self, encoder: nn.Module, trunk: MLP, query: nn.Linear, key: nn.Linear, **routing: Any
    ):
        super().__init__(**routing)
        self.encoder = encoder
        self.trunk = trunk
        self.query = query
        self.key = key

    @property
    def input_weight(self) -> Tensor | None:
        return first_weight(self.encoder, self.trunk, self.query)

    def keep(self, experts: list[int]) -> None:
        """Do nothing: the gate has no weights that belong to one expert."""

    def teach(self, student: Any) -> None:
        student.encoder.load_state_dict(self.encoder.state_dict())
        # The student has one more layer, which scores the experts.
        for layer, trained in zip(student.network.layers, self.trunk.layers, strict=False):
            layer.load_state_dict(trained.state_dict())

    def score(self, x: Tensor, hidden: Any) -> Tensor:
        query = self.query(self.trunk(self.encoder(x).flatten(1)))
        # <q, Wk h> = <q Wk, h>: the small product comes first and no key is ever built.
        asked = (query @ self.key.weight) / math.sqrt(len(self.key.weight))
        return torch.einsum("nh,neh->ne", asked, hidden)
