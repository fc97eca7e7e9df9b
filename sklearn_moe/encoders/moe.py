"""Encoders whose layers are mixtures of experts."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

import torch
from sklearn.utils._param_validation import HasMethods, Interval
from torch import nn

from sklearn_moe.checks import resolve
from sklearn_moe.encoders.base import Encoder
from sklearn_moe.encoders.conv import ConvEncoder
from sklearn_moe.layers import linear

_POSITIVE = [Interval(Integral, 1, None, closed="left")]


class MoELayers(Encoder):
    r"""Hidden layers of experts: residual blocks before gate and experts.

    Each block is a mixture whose experts return vectors, with a gate of its own. It adds to the
    vector :math:`v` of a sample

    .. math:: v_{l+1} = v_l + \sum_e p^l_e(v_l)\, f^l_e(\mathrm{norm}(v_l)).

    With gating residuals, a gate also reads the scores of the gate below it. For a linear gate,
    :math:`G_l = W_l\, \mathrm{norm}(v_l) + W^g_l\, G_{l-1}`. The mixture that follows, with its
    own ``n_experts``, makes the prediction. All regularizations except ``Competence`` and
    ``SparseGate`` are summed over the blocks.

    Parameters
    ----------
    n_layers : int, default=2
        Number of blocks.
    n_experts : int, default=8
        Number of experts of each block.
    hidden_size : int, default=64
        Number of units between the blocks.
    gate : str or object, default="top_k"
        The gate of each block, as in ``MoEClassifier``; not one that learns without gradients,
        such as "kmeans".
    experts : str, object or callable, default="mlp"
        The experts of each block, as in ``MoEClassifier``; not a list. "zero_computation" has
        zero, copy and constant experts that return zeros, their input, and a blend of it with a
        learned vector. "orthogonal" makes the experts' hidden vectors orthogonal.
    gating_residual : bool, default=True
        Whether a gate reads the scores of the gate below.
    orthogonal : bool, default=False
        Whether the outputs of the experts that answer for a sample are made orthogonal, by Gram
        and Schmidt: the surest expert keeps its output, and each next one what is new in its own,

        .. math:: u_i = f_i - \sum_{j < i} \frac{f_i \cdot u_j}{u_j \cdot u_j}\, u_j.

        Only these experts have to run, in contrast to ``experts="orthogonal"``.

    Notes
    -----
    Probabilities of the experts that a gate takes sum to 1, while those of MoE++ do not. The
    gates read normalised vectors. In training all experts of a block run; predictions run only
    those that the gate takes, where that is faster.

    References
    ----------
    D. Eigen, M. Ranzato, I. Sutskever, Learning Factored Representations in a Deep Mixture of
    Experts, 2013, arXiv 1312.4314.

    P. Jin, B. Zhu, L. Yuan, S. Yan, MoE++: Accelerating Mixture-of-Experts Methods with
    Zero-Computation Experts, 2024, arXiv 2410.07348 (gating residuals).

    J. Feng, Z. Pu, T. Hu, D. Li, X. Ai, H. Wang, OMoE: Diversifying Mixture of Low-Rank Adaptation
    by Orthogonal Finetuning, 2025, arXiv 2501.10062 (orthogonal outputs).

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_moe import MoEClassifier, MoELayers, decomposition_entropy
    >>> X, y = load_iris(return_X_y=True)
    >>> encoder = MoELayers(n_layers=2, n_experts=4, hidden_size=16)
    >>> clf = MoEClassifier(n_experts=3, encoder=encoder, random_state=0).fit(X, y)
    >>> [layer.usage.shape for layer in decomposition_entropy(clf, X, y).layers]
    [(4,), (4,)]
    """

    _parameter_constraints: dict = {
        "n_layers": _POSITIVE,
        "n_experts": _POSITIVE,
        "hidden_size": _POSITIVE,
        "gate": [str, HasMethods("build")],
        "experts": [str, HasMethods("build"), callable],
        "gating_residual": ["boolean"],
        "orthogonal": ["boolean"],
    }

    has_mixtures = True

    def __init__(
        self,
        n_layers: int = 2,
        *,
        n_experts: int = 8,
        hidden_size: int = 64,
        gate: str | object = "top_k",
        experts: Any = "mlp",
        gating_residual: bool = True,
        orthogonal: bool = False,
    ):
        self.n_layers = n_layers
        self.n_experts = n_experts
        self.hidden_size = hidden_size
        self.gate = gate
        self.experts = experts
        self.gating_residual = gating_residual
        self.orthogonal = orthogonal

    def build(self, input_shape: tuple[int, ...], generator: torch.Generator) -> nn.Module:
        """Return the torch module of this encoder."""
        from sklearn_moe.experts import as_experts, build_experts
        from sklearn_moe.hidden import HiddenMixture, MoELayersModule

        self._validate_params()
        given = as_experts(self.experts, "encoder__experts")
        if getattr(given, "is_list", False):
            raise ValueError(
                f"The experts of MoELayers must be of one kind, not a list, got {self.experts!r}."
            )
        shape = (self.hidden_size,)
        mixtures = []
        for layer in range(self.n_layers):
            experts = build_experts(
                given, shape, self.n_experts, self.hidden_size, generator, hidden=True
            )
            gate = _build_gate(self, layer, self.hidden_size, experts.hidden_size, generator)
            mixtures.append(HiddenMixture(experts, gate, shape, self.orthogonal))
        first = nn.Sequential(
            nn.Flatten(), linear(math.prod(input_shape), self.hidden_size, generator)
        )
        between = [*[nn.Identity()] * (self.n_layers - 1), nn.LayerNorm(self.hidden_size)]
        return MoELayersModule(first, mixtures, between, self.gating_residual)


class ConvMoELayers(Encoder):
    r"""Hidden layers of convolutional experts: residual blocks for images.

    As in :class:`MoELayers`, but :math:`v` is an image. Each expert has two convolutions with a
    "relu" between them. A gate reads the mean of each channel, and chooses experts for the whole
    image. A convolution comes before the first block, and a max-pooling by 2 before each block.

    Parameters
    ----------
    n_layers : int, default=2
        Number of blocks.
    n_experts : int, default=4
        Number of experts of each block.
    channels : int, default=16
        Number of channels between the blocks.
    expert_channels : int, default=16
        Number of channels between the two convolutions of an expert.
    kernel_size : int, default=3
        Height and width of all kernels, odd.
    gate : str or object, default="top_k"
        The gate of each block, as in :class:`MoELayers`.
    gating_residual : bool, default=True
        Whether a gate reads the scores of the gate below.

    References
    ----------
    D. Eigen, M. Ranzato, I. Sutskever, Learning Factored Representations in a Deep Mixture of
    Experts, 2013, arXiv 1312.4314.

    Examples
    --------
    >>> from sklearn_moe import ConvMoELayers, MoEClassifier
    >>> clf = MoEClassifier(n_experts=4, encoder=ConvMoELayers(n_layers=1))
    """

    _parameter_constraints: dict = {
        "n_layers": _POSITIVE,
        "n_experts": _POSITIVE,
        "channels": _POSITIVE,
        "expert_channels": _POSITIVE,
        "kernel_size": _POSITIVE,
        "gate": [str, HasMethods("build")],
        "gating_residual": ["boolean"],
    }

    needs_images = True
    has_mixtures = True

    def __init__(
        self,
        n_layers: int = 2,
        *,
        n_experts: int = 4,
        channels: int = 16,
        expert_channels: int = 16,
        kernel_size: int = 3,
        gate: str | object = "top_k",
        gating_residual: bool = True,
    ):
        self.n_layers = n_layers
        self.n_experts = n_experts
        self.channels = channels
        self.expert_channels = expert_channels
        self.kernel_size = kernel_size
        self.gate = gate
        self.gating_residual = gating_residual

    def build(self, input_shape: tuple[int, ...], generator: torch.Generator) -> nn.Module:
        """Return the torch module of this encoder."""
        from sklearn_moe.hidden import HiddenConvExpertsModule, HiddenMixture, MoELayersModule

        self._validate_params()
        stem: Any = ConvEncoder((self.channels,), kernel_size=self.kernel_size).build(
            input_shape, generator
        )
        size = stem.sizes[-1]
        mixtures, between = [], []
        for layer in range(self.n_layers):
            shape = (self.channels, *size)
            experts = HiddenConvExpertsModule(
                self.n_experts, shape, self.expert_channels, self.kernel_size, generator
            )
            gate = _build_gate(self, layer, self.channels, self.expert_channels, generator)
            mixtures.append(HiddenMixture(experts, gate, shape))
            is_last = layer == self.n_layers - 1
            between.append(nn.Flatten() if is_last else nn.MaxPool2d(2))
            size = tuple(length // 2 for length in size)
            if 0 in size and not is_last:
                raise ValueError(
                    f"Images of shape {tuple(input_shape)} are too small for n_layers="
                    f"{self.n_layers}, as each block halves them. Pass fewer."
                )
        first = nn.Sequential(stem, nn.Unflatten(1, (self.channels, *stem.sizes[-1])))
        return MoELayersModule(first, mixtures, between, self.gating_residual)


def _build_gate(encoder, layer, n_inputs, hidden_size, generator):
    """Build the gate of a block, which also reads the scores of the gate below it."""
    from sklearn_moe.gates import GATES, build_gate

    if encoder.gating_residual and layer > 0:
        n_inputs += encoder.n_experts
    given = resolve("encoder__gate", encoder.gate, GATES)
    gate = build_gate(given, (n_inputs,), encoder.n_experts, hidden_size, generator)
    if gate.refits:
        raise ValueError(
            f"The gate of {type(encoder).__name__} must learn by gradients, got "
            f"gate={encoder.gate!r}."
        )
    return gate
