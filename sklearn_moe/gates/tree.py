"""A gate that is a tree of soft decisions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sklearn_moe.gates.base import Gate, GateModule, first_weight
from sklearn_moe.layers import MLP, linear


class TreeGate(Gate):
    r"""A gate that is a tree of soft decisions, with an expert at each leaf.

    The decision :math:`i` sends a sample to the right with probability

    .. math:: s_i(x) = \mathrm{sigmoid}\left(\frac{w_i^T g(x) + b_i}{T}\right),

    and to the left otherwise. The probability of an expert is the product of the decisions on the
    way to its leaf, :math:`R_e` to the right and :math:`L_e` to the left:

    .. math:: p_e(x) = \prod_{i \in R_e} s_i(x) \prod_{i \in L_e} (1 - s_i(x))

    All leaves are as deep as the number of experts allows. In contrast to other gates, experts
    that are near in the tree share decisions. So the first decision divides the samples roughly,
    and the later ones finely.

    Parameters
    ----------
    hidden_layer_sizes : sequence of int, default=()
        Sizes of the layers of :math:`g`, with ReLU between them and none after the last. Without
        layers, :math:`g(x) = x`.
    temperature : float, default=1.0
        The temperature :math:`T`: below 1 decisions are surer, above 1 less sure.
    top_k : int or None, default=None
        How many experts answer for a sample; None means all. With 1 the gate trains on all leaves
        and one expert answers in prediction.
    encoder : {"conv"}, object, callable or None, default=None
        An encoder that only the gate uses, before its layers: "conv" or a ``ConvEncoder`` for
        images, or a function as in ``MoEClassifier(encoder=...)``.

    Notes
    -----
    COMET has a smooth step in place of the sigmoid, which makes probabilities exactly zero, and
    one tree for each of the ``top_k`` experts. A zero has no gradient, and no logarithm.

    References
    ----------
    M. I. Jordan, R. A. Jacobs, Hierarchical Mixtures of Experts and the EM Algorithm, Neural
    Computation 6, 1994.

    S. Ibrahim et al., COMET: Learning Cardinality Constrained Mixture of Experts with Trees and
    Local Search, 2023, arXiv 2306.02824.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_moe import MoEClassifier, TreeGate
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = MoEClassifier(n_experts=3, gate=TreeGate(), max_iter=20, random_state=0).fit(X, y)
    >>> clf.score(X, y) > 0.9
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
        encoder, sizes = self._start(input_shape, n_experts, generator)
        return TreeGateModule(
            encoder=encoder,
            trunk=MLP(sizes, generator),
            decisions=linear(sizes[-1], max(1, n_experts - 1), generator),
            n_experts=n_experts,
            sharpness=1 / self.temperature,
            top_k=self.top_k,
        )


class TreeGateModule(GateModule):
    """The torch module of a :class:`TreeGate`.

    Parameters
    ----------
    decisions : nn.Linear
        One output for each decision.
    n_experts : int
        Number of leaves.
    sharpness : float
        What the outputs are multiplied by.
    """

    needs_hidden = False
    ways: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        trunk: MLP,
        decisions: nn.Linear,
        n_experts: int,
        sharpness: float,
        **routing: Any,
    ):
        super().__init__(temperature=1.0, **routing)
        self.encoder = encoder
        self.trunk = trunk
        self.decisions = decisions
        self.sharpness = sharpness
        ways = torch.zeros(n_experts, decisions.out_features)
        _divide(ways, 0, n_experts, 0)
        # For each expert and decision: 1 right, -1 left, 0 if it is not on the way.
        self.register_buffer("ways", ways, persistent=False)

    @property
    def input_weight(self) -> Tensor | None:
        return first_weight(self.encoder, self.trunk, self.decisions)

    def keep(self, experts: list[int]) -> None:
        # A decision that is left with one side sends all samples of a leaf the same way. It still
        # counts, so that experts keep the proportions of their probabilities.
        self.ways = self.ways[experts]

    def score(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        to_right = self.decisions(self.trunk(self.encoder(x).flatten(1))) * self.sharpness
        right, left = F.logsigmoid(to_right), F.logsigmoid(-to_right)
        return right @ self.ways.clamp_min(0).mT + left @ (-self.ways).clamp_min(0).mT


def _divide(ways, first, last, decision):
    """Fill the ways to the experts from first to last, and return the next free decision.

    The decisions of a subtree follow its root.
    """
    if last - first == 1:
        return decision
    middle = (first + last + 1) // 2
    ways[first:middle, decision], ways[middle:last, decision] = -1, 1
    free = _divide(ways, first, middle, decision + 1)
    return _divide(ways, middle, last, free)
