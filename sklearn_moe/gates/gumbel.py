"""A gate that draws the expert of a sample in training."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sklearn_moe.gates.base import Gate, GateModule
from sklearn_moe.gates.softmax import SoftmaxGateModule
from sklearn_moe.layers import MLP


class GumbelGate(Gate):
    r"""A gate that draws, in training, who answers for a sample.

    Gumbel noise on the logits of a softmax makes the largest one a draw from it. In training,

    .. math:: p_n = \mathrm{softmax}\left(\frac{g(x_n) + \gamma_n}{T}\right),
              \qquad \gamma_{ne} \sim \mathrm{Gumbel}(0, 1),

    so that with a low temperature :math:`T` nearly all of a sample goes to the expert that was
    drawn. A gate pays for being unsure, as experts then learn samples that they get by chance. In
    prediction there is no noise, and :math:`p_n = \mathrm{softmax}(g(x_n))` is the probability
    with which each expert is drawn.

    Parameters
    ----------
    hidden_layer_sizes : sequence of int, default=()
        Sizes of the gate's hidden ReLU layers; without hidden layers the gate is linear.
    temperature : float, default=0.5
        The temperature :math:`T` of the draw in training.
    top_k : int or None, default=None
        How many experts answer for a sample; None means all. With 1, one expert answers in
        prediction.
    encoder : {"conv"}, object, callable or None, default=None
        An encoder that only the gate uses, before its layers: "conv" or a ``ConvEncoder`` for
        images, or a function as in ``MoEClassifier(encoder=...)``.

    References
    ----------
    E. Jang, S. Gu, B. Poole, Categorical Reparameterization with Gumbel-Softmax, 2016, arXiv
    1611.01144.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_moe import GumbelGate, MoEClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = MoEClassifier(n_experts=3, gate=GumbelGate(), max_iter=20, random_state=0).fit(X, y)
    >>> clf.score(X, y) > 0.9
    True
    """

    needs_hidden = False
    has_input_weight = True

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] = (),
        *,
        temperature: float = 0.5,
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
        return GumbelGateModule(*layers, self.temperature, top_k=self.top_k)


class GumbelGateModule(SoftmaxGateModule):
    """The torch module of a :class:`GumbelGate`.

    Parameters
    ----------
    of_draw : float
        The temperature of the draw in training.
    """

    has_known_gradient = False
    can_be_captured = False

    def __init__(self, encoder: nn.Module, network: MLP, of_draw: float, *, top_k: int | None):
        super().__init__(encoder, network, temperature=1.0, top_k=top_k)
        self.of_draw = of_draw

    def perturb(self, logits: Tensor, generator: torch.Generator | None) -> tuple[Tensor, None]:
        # The negative logarithm of an exponential number has a Gumbel distribution.
        drawn = torch.empty_like(logits).exponential_(generator=generator)
        return (logits - drawn.clamp_min(1e-30).log()) / self.of_draw, None
