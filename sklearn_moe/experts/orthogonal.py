"""Experts whose hidden vectors are made orthogonal."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sklearn_moe.experts.base import Experts, ExpertsModule
from sklearn_moe.experts.mlp import MLPExperts
from sklearn_moe.layers import (
    ACTIVATIONS,
    StackedMLP,
    check_layer_sizes,
    dropout_mask,
    keep_rows,
    linear,
    orthogonalize,
)


class OrthogonalExperts(Experts):
    r"""Experts that must differ: for each sample their hidden vectors are orthogonal.

    The Gram-Schmidt process removes from each expert's hidden vector :math:`v_e` its components
    along the vectors of the experts before it. One linear layer, which all experts share, then
    computes the logits:

    .. math:: w_e = v_e - \sum_{f < e} \langle v_e, b_f \rangle b_f, \qquad
              b_e = \frac{w_e}{\lVert w_e \rVert}, \qquad z_e = A \,\sigma(s_e b_e) + a

    with the activation :math:`\sigma` and a learned scale :math:`s_e` of each expert. The
    direction of the first vector does not change, so the order of the experts matters. All experts
    run for each sample.

    Parameters
    ----------
    hidden_layer_sizes : sequence of int, default=(256,)
        Sizes of each expert's hidden layers. At least one is needed, and the last must have at
        least ``n_experts`` units.
    normalize : bool, default=True
        Whether to bring the vectors to length 1 before they are scaled. If False, :math:`w_e`
        takes the place of :math:`b_e` in the logits.
    activation : {"relu", "gelu", "tanh"}, default="relu"
        Activation of the hidden layers.
    dropout : float, default=0.0
        Probability, at least 0 and below 1, with which a hidden unit is dropped in training.

    Notes
    -----
    The idea is from the first reference, where low-rank experts inside a language model are made
    orthogonal. The normalised form is from the second. A vector that is linearly dependent on
    those before it becomes zero. A gate with ``top_k=1`` raises an error: orthogonal vectors are
    of no use if only one expert answers.

    References
    ----------
    J. Feng, Z. Pu, T. Hu, D. Li, X. Ai, H. Wang, OMoE: Diversifying Mixture of Low-Rank Adaptation
    by Orthogonal Finetuning, 2025, arXiv 2501.10062.

    A. Hendawy, J. Peters, C. D'Eramo, Multi-Task Reinforcement Learning with Mixture of Orthogonal
    Experts, 2024, arXiv 2311.11385.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_moe import MoEClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = MoEClassifier(n_experts=3, experts="orthogonal", random_state=0).fit(X, y)
    >>> clf.score(X, y) > 0.9
    True
    """

    _parameter_constraints: dict = {
        **MLPExperts._parameter_constraints,
        "normalize": ["boolean"],
    }

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] = (256,),
        *,
        normalize: bool = True,
        activation: str = "relu",
        dropout: float = 0.0,
    ):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.normalize = normalize
        self.activation = activation
        self.dropout = dropout

    def build(
        self,
        input_shape: tuple[int, ...],
        n_experts: int,
        n_classes: int,
        generator: torch.Generator,
    ) -> ExpertsModule:
        """Return the torch module of these experts."""
        self._validate_params()
        hidden_sizes = check_layer_sizes(
            "The experts' hidden_layer_sizes", self.hidden_layer_sizes
        )
        if not hidden_sizes or hidden_sizes[-1] < n_experts:
            raise ValueError(
                f"OrthogonalExperts needs a last hidden layer of at least n_experts={n_experts} "
                f"units, as no more vectors can be orthogonal, got hidden_layer_sizes="
                f"{self.hidden_layer_sizes!r}."
            )
        body = StackedMLP(
            n_experts,
            (math.prod(input_shape), *hidden_sizes),
            generator,
            activation=self.activation,
            dropout=self.dropout,
        )
        head = linear(hidden_sizes[-1], n_classes, generator)
        return OrthogonalExpertsModule(body, head, normalize=self.normalize)


class OrthogonalExpertsModule(ExpertsModule):
    """The torch module of :class:`OrthogonalExperts`."""

    independent = False

    def __init__(self, body: StackedMLP, head: nn.Linear, *, normalize: bool):
        super().__init__()
        self.body = body
        self.head = head
        self.normalize = normalize
        self.hidden_size = head.weight.shape[1]
        self.scale = _Scale(body.n_networks, math.sqrt(self.hidden_size) if normalize else 1.0)
        self.widest = max(body.widest, head.weight.shape[0])

    @property
    def costs(self) -> tuple[int, ...]:
        return tuple(cost + self.head.weight.numel() for cost in self.body.costs)

    def keep(self, experts: list[int]) -> None:
        """Keep only these experts; an expert changes if one before it is dropped."""
        self.body.keep(experts)
        keep_rows(self.scale, experts)

    def check_gate(self, gate: nn.Module) -> None:
        if gate.top_k == 1 and self.body.n_networks > 1:
            raise ValueError(
                "Orthogonal experts are of no use if only one of them answers, so a gate with "
                "top_k=1 makes no sense for them. Raise top_k, or take experts='mlp'."
            )

    def forward(
        self, x: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        given = self.body.run(x.flatten(1), generator)[-1].output.permute(2, 0, 1)
        hidden = orthogonalize(given, normalize=self.normalize) * self.scale.weight
        active = ACTIVATIONS[self.body.activation].function(hidden)
        if self.training and self.body.dropout > 0:
            active = active * dropout_mask(active, self.body.dropout, generator)
        return self.head(active), hidden


class _Scale(nn.Module):
    """A factor for each expert."""

    def __init__(self, n_experts, value):
        super().__init__()
        self.weight = nn.Parameter(torch.full((n_experts, 1), value))
