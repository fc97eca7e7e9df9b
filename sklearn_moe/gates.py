r"""Gates: they decide how much each expert says about a sample.

A gate object holds hyperparameters only; ``build`` turns it into a torch module that maps the
batch, and for some gates the experts' hidden vectors, to a :class:`GateOutput`. ``GATES`` names
the usual choices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import NamedTuple

import torch
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from torch import Tensor, nn

from sklearn_moe.encoders import ENCODERS, build_encoder, output_shape
from sklearn_moe.layers import MLP, check_layer_sizes, linear


class Routing(NamedTuple):
    """What a noisy gate drew in this batch; ``Load`` reads it.

    Attributes
    ----------
    noisy_logits : Tensor of shape (n_samples, n_experts)
        The logits with noise, before masking.
    noise_scale : float
        Standard deviation of the noise.
    top_k : int or None
        How many experts answer for a sample.
    """

    noisy_logits: Tensor
    noise_scale: float
    top_k: int | None


class GateOutput(NamedTuple):
    """What a gate says about a batch.

    Attributes
    ----------
    logits : Tensor of shape (n_samples, n_experts)
        Scores of the experts, before noise and masking.
    log_proba : Tensor of shape (n_samples, n_experts)
        Logarithm of the gate probabilities, after both; -inf for experts that do not answer.
    routing : Routing or None
        None unless the gate is noisy and in training.
    """

    logits: Tensor
    log_proba: Tensor
    routing: Routing | None


class GateModule(nn.Module):
    """From scores to gate probabilities: temperature, noise, top-k and softmax.

    With ``top_k=1`` the softmax over the one kept logit would be the constant 1 and the gate would
    get no gradient. Such a gate therefore trains on the full softmax and keeps one expert in
    prediction only. A subclass implements ``score(x, hidden)``, which returns one score for each
    sample and expert, and says with ``needs_hidden = False`` that it does not read ``hidden``:
    such a gate chooses before any expert runs, and gets None in its place in prediction.

    Parameters
    ----------
    temperature : float
        The scores are divided by it.
    top_k : int or None
        How many experts answer for a sample; None means all.
    noise : float, default=0.0
        Standard deviation of the noise in training, in units of ``1 / n_experts``.
    """

    needs_hidden = True

    def __init__(self, *, temperature: float, top_k: int | None, noise: float = 0.0):
        super().__init__()
        self.temperature = temperature
        self.top_k = top_k
        self.noise = noise

    def forward(
        self, x: Tensor, hidden: Tensor | None, generator: torch.Generator | None = None
    ) -> GateOutput:
        return self.route(self.score(x, hidden) / self.temperature, generator)

    def route(self, logits: Tensor, generator: torch.Generator | None = None) -> GateOutput:
        """Return what the gate says with such logits, after noise and masking."""
        routed, routing = logits, None
        if self.training and self.noise > 0:
            noise_scale = self.noise / logits.shape[1]
            noise = torch.empty_like(logits).normal_(0, noise_scale, generator=generator)
            routed = logits + noise
            routing = Routing(routed, noise_scale, self.top_k)
        if self.top_k is not None and not (self.training and self.top_k == 1):
            routed = mask_all_but_top_k(routed, self.top_k)
        # With the samples last, as the experts have them, the softmax is vectorised.
        return GateOutput(logits, routed.mT.log_softmax(dim=0).mT, routing)


def mask_all_but_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Replace all but the ``top_k`` largest logits of a row by -inf; ties keep the lower index."""
    if top_k == 1:
        best = logits.argmax(dim=1, keepdim=True)
        kept = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, best, True)
        return logits.masked_fill(~kept, -torch.inf)
    threshold = logits.topk(top_k, dim=1).values[:, -1:]  # much faster than to sort all
    above, level = logits > threshold, logits == threshold
    places = top_k - above.sum(dim=1, keepdim=True)
    kept = above | (level & (level.cumsum(dim=1) <= places))
    return logits.masked_fill(~kept, -torch.inf)


class Gate(BaseEstimator):
    """Base class of the gates, with the checks of what they have in common.

    A gate has the parameters ``hidden_layer_sizes``, ``temperature``, ``top_k`` and ``encoder``, a
    ``build(input_shape, n_experts, hidden_size, generator)`` that returns a :class:`GateModule`.
    """

    _parameter_constraints: dict = {
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "top_k": [Interval(Integral, 1, None, closed="left"), None],
        "encoder": [StrOptions(set(ENCODERS)), HasMethods("build"), callable, None],
    }

    def _check(self, n_experts: int) -> tuple[int, ...]:
        """Check the parameters and return the sizes of the gate's hidden layers."""
        self._validate_params()
        if self.top_k is not None and self.top_k > n_experts:
            raise ValueError(
                f"The gate's top_k={self.top_k} must not be larger than n_experts={n_experts}. "
                f"Lower top_k, for example gate={type(self).__name__}(top_k={n_experts}), or "
                "raise n_experts."
            )
        return check_layer_sizes("The gate's hidden_layer_sizes", self.hidden_layer_sizes)


class SoftmaxGate(Gate):
    r"""The ordinary gate: a small network scores the experts from the sample.

    .. math:: p_n = \mathrm{softmax}(\mathrm{top}_k(g(x_n) / T + \sigma \epsilon)),
              \qquad \epsilon \sim \mathcal{N}(0, 1), \quad \sigma = \mathrm{noise} / E

    Parameters
    ----------
    hidden_layer_sizes : sequence of int, default=()
        Sizes of the gate's own hidden ReLU layers; without any the gate is linear.
    temperature : float, default=1.0
        The logits are divided by :math:`T`; below 1 the gate is surer, above 1 less sure.
    top_k : int or None, default=None
        How many experts answer for a sample; None means all. With 1 the gate trains on the full
        softmax, as one kept probability is always 1 and has no gradient, and one expert answers in
        prediction.
    noise : float, default=0.0
        Noise on the logits in training, in units of ``1 / n_experts``; none in prediction.
    encoder : {"conv"}, object, callable or None, default=None
        What the gate has before its layers, for itself: convolutions, for images, by name or as a
        ``ConvEncoder``, or a function as in ``MoEClassifier(encoder=...)``.

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
        hidden_sizes = self._check(n_experts)
        encoder = build_encoder(self.encoder, input_shape, generator)
        n_features = math.prod(output_shape(encoder, input_shape))
        return SoftmaxGateModule(
            MLP((n_features, *hidden_sizes, n_experts), generator),
            encoder=encoder,
            temperature=self.temperature,
            top_k=self.top_k,
            noise=self.noise,
        )


class SoftmaxGateModule(GateModule):
    """The torch module of a :class:`SoftmaxGate`."""

    needs_hidden = False

    def __init__(self, network: MLP, *, encoder: nn.Module, **routing):
        super().__init__(**routing)
        self.encoder = encoder
        self.network = network

    def score(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        return self.network(self.encoder(x).flatten(1))


class AttentiveGate(Gate):
    r"""A gate that attends to what the experts make of the sample.

    The sample asks a query, each expert's hidden vector answers with a key, and the expert whose
    key fits best gets the sample:

    .. math:: l_{ne} = \frac{\langle W_q\, g(x_n),\; W_k\, h_{ne} \rangle}{\sqrt{K}\; T},
              \qquad p_n = \mathrm{softmax}(l_n)

    with the gate's network :math:`g`, the experts' hidden vectors :math:`h_{ne}` and one pair of
    projections for all experts. The gate's gradient also flows into the experts. All experts must
    run before the gate can choose.

    Parameters
    ----------
    hidden_layer_sizes : sequence of int, default=(64,)
        Sizes of the layers of :math:`g`, with ReLU between them and none after the last; without
        any, :math:`g(x) = x`.
    key_size : int, default=32
        Length :math:`K` of queries and keys.
    temperature : float, default=1.0
        The logits are divided by :math:`T`; below 1 the gate is surer, above 1 less sure.
    top_k : int or None, default=None
        How many experts answer for a sample; None means all. With 1 the gate trains on the full
        softmax and one expert answers in prediction.
    encoder : {"conv"}, object, callable or None, default=None
        What the gate has before its layers, for itself: convolutions, for images, by name or as a
        ``ConvEncoder``, or a function as in ``MoEClassifier(encoder=...)``.

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
        hidden_sizes = self._check(n_experts)
        encoder = build_encoder(self.encoder, input_shape, generator)
        sizes = (math.prod(output_shape(encoder, input_shape)), *hidden_sizes)
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

    def __init__(
        self, encoder: nn.Module, trunk: MLP, query: nn.Linear, key: nn.Linear, **routing
    ):
        super().__init__(**routing)
        self.encoder = encoder
        self.trunk = trunk
        self.query = query
        self.key = key

    def score(self, x: Tensor, hidden: Tensor) -> Tensor:
        query = self.query(self.trunk(self.encoder(x).flatten(1)))
        # <q, Wk h> = <q Wk, h>: the small product comes first and no key is ever built.
        asked = (query @ self.key.weight) / math.sqrt(len(self.key.weight))
        return torch.einsum("nh,neh->ne", asked, hidden)


GATES: dict[str, Gate] = {
    "softmax": SoftmaxGate(),
    "top_k": SoftmaxGate(top_k=2),
    "noisy_top_k": SoftmaxGate(top_k=2, noise=1.0),
    "hard": SoftmaxGate(top_k=1),
    "attentive": AttentiveGate(),
}
"""The gates that ``MoEClassifier(gate=...)`` knows by name."""
