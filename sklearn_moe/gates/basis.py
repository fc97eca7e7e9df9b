"""A gate that compares a sample with a basis for each expert."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import torch
from sklearn.utils._param_validation import Interval
from torch import Tensor, nn

from sklearn_moe.gates.base import Gate, GateModule
from sklearn_moe.layers import MLP, orthogonalize


class BasisGate(Gate):
    r"""A gate that sends a sample to the expert whose directions describe it best.

    Each expert has an orthonormal basis :math:`V_e` of a few directions. Its score is the cosine
    of the angle between the sample, seen from a learned centre :math:`c`, and the space that the
    basis spans:

    .. math:: l_{ne} = \frac{1}{T}\, \frac{\lVert V_e^T (g(x_n) - c) \rVert}
                                           {\lVert g(x_n) - c \rVert} + b_e,
              \qquad p_n = \mathrm{softmax}(l_n)

    So an expert has samples that vary alike. The gate is nearly as sure as an
    :class:`AttentiveGate`, and chooses before any expert runs.

    Parameters
    ----------
    hidden_layer_sizes : sequence of int, default=()
        Sizes of the layers of :math:`g`, with ReLU between them and none after the last. Without
        layers, :math:`g(x) = x`.
    size : int, default=8
        Number of directions of each basis; all that there are, if there are fewer. More of them
        can be better, as long as they are far fewer than the features: a basis of all directions
        describes all samples.
    temperature : float, default=0.05
        Initial value of :math:`T`, which is learned.
    top_k : int or None, default=None
        How many experts answer for a sample; None means all. With 1 the gate trains on the full
        softmax and one expert answers in prediction.
    encoder : {"conv"}, object, callable or None, default=None
        An encoder that only the gate uses, before its layers: "conv" or a ``ConvEncoder`` for
        images, or a function as in ``MoEClassifier(encoder=...)``.

    Notes
    -----
    In ERMoE the basis is also that of the expert's own weights. Here the experts are free, because
    bases of their own first layers were hardly better (see the guide's page "All methods side by
    side").

    References
    ----------
    A. Cheng et al., ERMoE: Eigen-Reparameterized Mixture-of-Experts for Stable Routing and
    Interpretable Specialization, 2025, arXiv 2511.10971.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_moe import BasisGate, MoEClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = MoEClassifier(n_experts=3, gate=BasisGate(size=2), max_iter=20, random_state=0)
    >>> clf.fit(X, y).score(X, y) > 0.9
    True
    """

    needs_hidden = False

    _parameter_constraints: dict = {
        **Gate._parameter_constraints,
        "size": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] = (),
        *,
        size: int = 8,
        temperature: float = 0.05,
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
        shape = n_experts, min(self.size, sizes[-1]), sizes[-1]
        return BasisGateModule(
            encoder=encoder,
            trunk=MLP(sizes, generator),
            directions=torch.empty(shape).normal_(0, sizes[-1] ** -0.5, generator=generator),
            temperature=self.temperature,
            top_k=self.top_k,
        )


class BasisGateModule(GateModule):
    """The torch module of a :class:`BasisGate`.

    Parameters
    ----------
    directions : Tensor of shape (n_experts, size, n_inputs)
        Directions that span what the bases span. They become orthonormal in each step.
    """

    needs_hidden = False

    def __init__(self, encoder: nn.Module, trunk: MLP, directions: Tensor, **routing: Any):
        super().__init__(**routing)
        self.encoder = encoder
        self.trunk = trunk
        self.directions = nn.Parameter(directions)
        self.centre = nn.Parameter(directions.new_zeros(directions.shape[2]))
        self.bias = nn.Parameter(directions.new_zeros(len(directions)))
        # The learned change of the temperature. Weight decay pulls it back to the initial value.
        self.log_change = nn.Parameter(torch.zeros(()))

    @property
    def cost(self) -> int:
        return super().cost + self.directions.numel()

    def keep(self, experts: list[int]) -> None:
        for name in ("directions", "bias"):
            setattr(self, name, nn.Parameter(getattr(self, name).data[experts]))

    def bases(self) -> Tensor:
        """Return the bases (n_experts, size, n_inputs)."""
        if self.training:  # this is many times faster, but ONNX does not know it
            return torch.linalg.qr(self.directions.mT).Q.mT
        return orthogonalize(self.directions)

    def score(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        x = self.trunk(self.encoder(x).flatten(1)) - self.centre
        # Squares of large numbers would be infinite, and only the direction counts.
        x = x / x.detach().abs().amax(dim=1, keepdim=True).clamp_min(1e-30)
        basis = self.bases()
        along = torch.einsum("nd,esd->nes", x, basis).square().sum(dim=2)
        # The root has no gradient at zero, where all scores are the same.
        squares = along / x.square().sum(dim=1, keepdim=True).clamp_min(1e-30)
        cosine = squares.clamp_min(1e-12).sqrt()
        return cosine * torch.exp(-self.log_change) + self.bias * self.temperature
