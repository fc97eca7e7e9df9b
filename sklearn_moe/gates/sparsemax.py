"""A gate that asks more experts for some samples than for others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real

import torch
from sklearn.utils._param_validation import Interval
from torch import Tensor, nn

from sklearn_moe.gates.base import Gate, GateModule
from sklearn_moe.gates.softmax import SoftmaxGateModule
from sklearn_moe.layers import MLP

# The higher, the faster the temperature follows the number of experts that answer.
RATE = 0.05


class SparsemaxGate(Gate):
    r"""A gate that asks a few experts for a sample: one if it is sure, more if it is not.

    A ReLU of the scores, seen from a threshold :math:`\tau_n`, leaves few experts. The threshold
    is such that the probabilities sum to 1:

    .. math:: p_{ne} = \mathrm{ReLU}\left(\frac{g(x_n)_e}{T} - \tau_n\right),
              \qquad \sum_e p_{ne} = 1

    After each batch in training, the temperature :math:`T` falls if more than ``n_active`` experts
    have answered for a sample on average, and rises if fewer have; the weights of samples do not
    count there. The probabilities change gradually with the scores, in contrast to those of a gate
    with ``top_k``.

    Parameters
    ----------
    hidden_layer_sizes : sequence of int, default=()
        Sizes of the gate's hidden ReLU layers; without hidden layers the gate is linear.
    n_active : float, default=2.0
        How many experts answer for a sample on average, at least 1; all if there are not more.
    top_k : int or None, default=None
        The most experts that answer for any sample; None means no limit. With 1, one expert
        answers in prediction, but the gate trains without the limit.
    encoder : {"conv"}, object, callable or None, default=None
        An encoder that only the gate uses, before its layers: "conv" or a ``ConvEncoder`` for
        images, or a function as in ``MoEClassifier(encoder=...)``.

    Notes
    -----
    ReMoE has a ReLU whose outputs do not sum to 1, and reaches its number of experts by a penalty
    on them with a variable strength. Here they have to be probabilities. Dividing them by their
    sum leaves samples without any expert, and had a higher log loss than the threshold.

    References
    ----------
    A. F. T. Martins, R. F. Astudillo, From Softmax to Sparsemax: A Sparse Model of Attention and
    Multi-Label Classification, 2016, arXiv 1602.02068.

    Z. Wang, J. Chen, J. Zhu, ReMoE: Fully Differentiable Mixture-of-Experts with ReLU Routing,
    2024, arXiv 2412.14711 (the ReLU, and the steering of the number of experts).

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_moe import MoEClassifier, SparsemaxGate
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = MoEClassifier(4, gate=SparsemaxGate(n_active=1.5), random_state=0).fit(X, y)
    >>> clf.score(X, y) > 0.9
    True
    """

    needs_hidden = False
    has_input_weight = True

    _parameter_constraints: dict = {
        **Gate._parameter_constraints,
        "n_active": [Interval(Real, 1, None, closed="left")],
    }

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] = (),
        *,
        n_active: float = 2.0,
        top_k: int | None = None,
        encoder: str | object | Callable[[tuple[int, ...]], nn.Module] | None = None,
    ):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.n_active = n_active
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
        return SparsemaxGateModule(*layers, self.n_active, top_k=self.top_k)


class SparsemaxGateModule(SoftmaxGateModule):
    """The torch module of a :class:`SparsemaxGate`."""

    has_known_gradient = False
    can_be_captured = False
    temperature: Tensor  # type: ignore[assignment]

    def __init__(self, encoder: nn.Module, network: MLP, n_active: float, *, top_k: int | None):
        super().__init__(encoder, network, temperature=1.0, top_k=top_k)
        self.n_active = n_active
        del self.temperature  # the number becomes a buffer, as training changes it
        self.register_buffer("temperature", torch.ones(()))

    @property
    def n_answers(self) -> float:
        return min(self.n_active, self.top_k or len(self.start_norms))

    def formula(self) -> None:
        return None  # formulas are for the softmax

    def normalize(self, logits: Tensor) -> Tensor:
        proba = sparsemax(logits)
        answers = proba > 0
        if self.training:
            wanted = min(self.n_active, logits.shape[1])
            mean = answers.sum(dim=1, dtype=self.temperature.dtype).mean()
            self.temperature = self.temperature * (wanted / mean) ** RATE
        # The logarithm of zero would have no gradient.
        log_proba = proba.clamp_min(torch.finfo(proba.dtype).tiny).log()
        return log_proba.masked_fill(~answers, -torch.inf)


def sparsemax(scores: Tensor) -> Tensor:
    """Return the point of the probability simplex that is nearest to each row, (N, E)."""
    # The threshold leaves the first j scores of a row for some j, and the largest one is right.
    scores = scores - scores.detach().amax(dim=1, keepdim=True)  # small numbers are exact
    first = scores.sort(dim=1, descending=True).values.cumsum(dim=1)
    places = torch.arange(1, scores.shape[1] + 1, device=scores.device, dtype=scores.dtype)
    threshold = ((first - 1) / places).max(dim=1, keepdim=True).values
    return (scores - threshold).relu()
