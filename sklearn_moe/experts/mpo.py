"""Experts that share most of their weights, as matrix product operators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

import torch
from sklearn.utils._param_validation import Interval
from torch import Tensor, nn
from torch.nn import functional as F

from sklearn_moe.experts.base import Experts, ExpertsModule
from sklearn_moe.experts.mlp import MLPExperts, MLPExpertsModule
from sklearn_moe.layers import (
    ACTIVATIONS,
    StackedLinear,
    apply_stacked,
    check_layer_sizes,
    dropout_mask,
    fill_like_linear,
)
from sklearn_moe.shapes import ShapeFunctions, with_shapes

# Steps of the optimization that finds the tensors for given matrices.
FIT_STEPS = 100

# What is added to the mean square of the inputs in it, relative to it.
RIDGE = 1e-3


class MPOExperts(Experts):
    r"""Fully connected experts that share the largest part of each hidden layer.

    So each expert adds few parameters. The weight matrix of a hidden layer is a matrix product
    operator: a chain of small tensors.

    .. math:: W_e[i_1 \ldots i_n, j_1 \ldots j_n] = T_{e1}[i_1, j_1] \cdots C[i_c, j_c] \cdots
              T_{en}[i_n, j_n]

    All experts share the central tensor :math:`C`, which is the largest. The other tensors and the
    biases are different for each expert. All experts start from the same matrix, with a little
    noise on the tensors that they do not share. Batches drawn at random leave :math:`C` unchanged.
    Otherwise it would learn faster than the other tensors, which get their gradient from fewer
    samples.

    Parameters
    ----------
    hidden_layer_sizes : sequence of int, default=(256,)
        Sizes of each expert's hidden layers, at least one.
    n_tensors : int, default=3
        Number of tensors of a layer, at least 2. The central one, :math:`c = \lfloor n / 2
        \rfloor + 1`, has the largest factors of the layer's sizes. With an even number there is
        one tensor fewer to its right, and the central tensor has two factors of each size. With 2,
        the only tensor that differs between experts comes before the central one.
    bond : int or None, default=None
        Largest rank between two neighbouring tensors; a smaller rank means fewer parameters. None
        keeps all ranks: the tensors can then represent any matrix, and only the sharing saves
        parameters.
    mask_probability : float, default=0.5
        Probability that a batch does not change the central tensors.
    noise : float, default=0.1
        Standard deviation of the noise on the tensors that the experts do not share, relative to
        the root mean square of each tensor.
    activation : {"relu", "gelu", "tanh"}, default="relu"
        Activation of the hidden layers.
    dropout : float, default=0.0
        Probability, at least 0 and below 1, with which a hidden unit is dropped in training.

    Notes
    -----
    As in the reference, the weights are decomposed into tensors, and the central tensor is shared.
    The reference decomposes the layers of a language model. Here the first layer is decomposed,
    too, because for a table it has most of the weights; the last layer is dense. Sizes without
    balanced factors are padded. To compute the outputs, the tensors are multiplied to full
    matrices first, so this saves parameters, not time.

    See Also
    --------
    compress_experts : Gives trained ``MLPExperts`` this form.

    References
    ----------
    Z.-F. Gao, P. Liu, W. X. Zhao, Z.-Y. Lu, J.-R. Wen, Parameter-Efficient Mixture-of-Experts
    Architecture for Pre-trained Language Models, 2022, arXiv 2203.01104.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_moe import MoEClassifier, MPOExperts
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = MoEClassifier(experts=MPOExperts((64, 64), bond=8), random_state=0).fit(X, y)
    >>> clf.score(X, y) > 0.9
    True
    """

    reads_shapes = True

    _parameter_constraints: dict = {
        **MLPExperts._parameter_constraints,
        "n_tensors": [Interval(Integral, 2, None, closed="left")],
        "bond": [Interval(Integral, 1, None, closed="left"), None],
        "mask_probability": [Interval(Real, 0, 1, closed="both")],
        "noise": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] = (256,),
        *,
        n_tensors: int = 3,
        bond: int | None = None,
        mask_probability: float = 0.5,
        noise: float = 0.1,
        activation: str = "relu",
        dropout: float = 0.0,
    ):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.n_tensors = n_tensors
        self.bond = bond
        self.mask_probability = mask_probability
        self.noise = noise
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
        if not hidden_sizes:
            raise ValueError("MPOExperts needs at least one hidden layer, got none.")
        layers = [
            MPOLinear(
                n_experts,
                *sizes,
                generator,
                n_tensors=self.n_tensors,
                bond=self.bond,
                noise=self.noise,
            )
            for sizes in pairwise((math.prod(input_shape), *hidden_sizes))
        ]
        return MPOExpertsModule(
            layers,
            StackedLinear(n_experts, hidden_sizes[-1], n_classes, generator),
            mask_probability=self.mask_probability,
            activation=self.activation,
            dropout=self.dropout,
        )


class MPOExpertsModule(ExpertsModule):
    """The torch module of :class:`MPOExperts`."""

    runs_at_once = True

    def __init__(
        self,
        layers: list[MPOLinear],
        head: StackedLinear,
        *,
        mask_probability: float,
        activation: str,
        dropout: float,
    ):
        super().__init__()
        self.layers: Any = nn.ModuleList(layers)
        self.head = head
        self.mask_probability = mask_probability
        self.activation = activation
        self.dropout = dropout
        self.n_networks, n_classes, self.hidden_size = head.weight.shape
        self.multiply_adds = sum(math.prod(layer.size) for layer in layers)
        self.multiply_adds += self.hidden_size * n_classes
        self.widest = max(*(layer.size[0] for layer in layers), n_classes)
        self.shapes: ShapeFunctions | None = None

    @property
    def costs(self) -> tuple[int, ...]:
        return (self.multiply_adds,) * self.n_networks

    def keep(self, experts: list[int]) -> None:
        for layer in (*self.layers, self.head):
            layer.keep(experts)
        self.n_networks = len(experts)

    def forward(
        self, x: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        is_masked = self.training and self._draw(generator)
        x = with_shapes(self.shapes, x.flatten(1))
        for layer in self.layers:
            hidden = apply_stacked(layer.weight(is_masked=is_masked), layer.bias, x)
            x = ACTIVATIONS[self.activation].function(hidden)
            if self.training and self.dropout > 0:
                x = x * dropout_mask(x, self.dropout, generator)
        return self.head(x).permute(2, 0, 1), hidden.permute(2, 0, 1)

    def _draw(self, generator):
        if self.mask_probability in (0, 1):
            return self.mask_probability == 1
        device = self.head.weight.device
        return torch.rand((), generator=generator, device=device).item() < self.mask_probability

    def run_some(self, x: list[Tensor], experts: list[int]) -> list[Tensor]:
        out = [with_shapes(self.shapes, own.flatten(1)) for own in x]
        for layer in self.layers:
            weights = layer.weight(experts)
            out = [
                ACTIVATIONS[self.activation].function(F.linear(own, weight, layer.bias[expert]))
                for own, weight, expert in zip(out, weights, experts, strict=True)
            ]
        return self.head.run_some(out, experts)


def compress_mlp(
    experts: ExpertsModule,
    *,
    n_tensors: int,
    bond: int | None,
    inputs: tuple[Tensor, Tensor] | None = None,
    align: bool = True,
) -> tuple[MPOExperts, MPOExpertsModule, list[float]]:
    """Return trained experts as matrix product operators.

    Parameters
    ----------
    experts : ExpertsModule
        The module of ``MLPExperts`` with at least one hidden layer.
    n_tensors, bond
        As in :class:`MPOExperts`.
    inputs : tuple of two Tensors, default=None
        Samples (n_samples, ...) as the experts read them, and gate probabilities (n_samples,
        n_experts).
    align : bool, default=True
        Whether to match the hidden units of the experts first.

    Returns
    -------
    experts : MPOExperts
    module : MPOExpertsModule
    errors : list of float
        For each layer, the norm of the error relative to that of the weights, or with samples to
        that of the weights' products with the inputs.
    """
    if type(experts) is not MLPExpertsModule or len(experts.layers) == 1:
        kind = type(experts).__name__.removesuffix("Module")
        raise ValueError(
            "compress_experts needs MLPExperts with at least one hidden layer, got experts of the "
            f"kind {kind!r}" + (" without any." if kind == "MLPExperts" else ".")
        )
    mlp = deepcopy(experts).cpu().double().eval()
    if align:
        mlp.align()
    *layers, head = mlp.layers
    mpo = MPOExperts(
        tuple(layer.bias.shape[1] for layer in layers),
        n_tensors=n_tensors,
        bond=bond,
        activation=mlp.activation,
        dropout=mlp.dropout,
    )
    n_in, n_classes = layers[0].weight.shape[2], head.bias.shape[1]
    module: Any = mpo.build((n_in,), mlp.n_networks, n_classes, torch.Generator())
    roots = [torch.eye(layer.weight.shape[2], dtype=torch.float64) for layer in layers]
    with torch.no_grad():
        if inputs is not None:
            x, gate_proba = (each.double() for each in inputs)
            roots = [_root(each.x, gate_proba) for each in mlp.run(x.flatten(1))[:-1]]
        module.head.load_state_dict(head.state_dict())
        module.shapes = deepcopy(experts.shapes)
        for own, layer in zip(module.layers, layers, strict=True):
            own.bias.copy_(layer.bias)
    pairs = zip(module.layers, layers, roots, strict=True)
    return mpo, module, [own.fit(layer.weight.detach(), root) for own, layer, root in pairs]


def _root(x, gate_proba):
    """Return a root of the mean products of an expert's inputs, (E, n_in, n_in)."""
    x = x.mT if x.dim() == 2 else x
    weighted = x * (gate_proba / len(gate_proba)).mT.sqrt().unsqueeze(1)
    products = weighted @ weighted.mT
    diagonal = products.diagonal(dim1=1, dim2=2)
    diagonal += RIDGE * diagonal.mean().clamp_min(torch.finfo(x.dtype).eps)
    return torch.linalg.cholesky(products)


class MPOLinear(nn.Module):
    """The linear layers of all experts, as matrix product operators with one central tensor.

    Parameters
    ----------
    n_experts, n_in, n_out : int
        Number of experts, input size and output size of each expert's layer.
    generator : torch.Generator
        Source of the initial weights.
    n_tensors, bond, noise
        As in :class:`MPOExperts`.
    """

    def __init__(
        self,
        n_experts: int,
        n_in: int,
        n_out: int,
        generator: torch.Generator,
        *,
        n_tensors: int,
        bond: int | None,
        noise: float,
    ):
        super().__init__()
        self.size = n_out, n_in
        self.bond = bond
        self.centre = n_tensors // 2
        self.rows = balanced_factors(n_out, n_tensors)
        self.columns = balanced_factors(n_in, n_tensors, mirrored=True)
        matrix = torch.zeros(math.prod(self.rows), math.prod(self.columns))
        fill_like_linear(matrix[:n_out, :n_in], n_in, generator)
        self.auxiliary = nn.ParameterList()
        for k, tensor in enumerate(decompose(matrix, self.rows, self.columns, bond)):
            if k == self.centre:
                self.central = nn.Parameter(tensor)
                continue
            own = tensor.expand(n_experts, *tensor.shape).clone()
            drawn = torch.empty_like(own).normal_(generator=generator)
            scale = tensor.square().mean().sqrt()
            self.auxiliary.append(nn.Parameter(own + noise * scale * drawn))
        self.bias = nn.Parameter(torch.empty(n_experts, n_out))
        fill_like_linear(self.bias, n_in, generator)

    def weight(
        self, experts: Sequence[int] | slice = slice(None), *, is_masked: bool = False
    ) -> Tensor:
        """Return the experts' matrices (E, n_out, n_in); if masked, C gets no gradient."""
        tensors = [tensor[experts] for tensor in self.auxiliary]
        # No gradient at all: with a gradient of zero, an optimizer's momentum would still move it.
        tensors.insert(self.centre, self.central.detach() if is_masked else self.central)
        n_out, n_in = self.size
        return contract(tensors)[:, :n_out, :n_in]

    def fit(self, weight: Tensor, root: Tensor) -> float:
        """Come as near as possible to matrices; return the relative error.

        Parameters
        ----------
        weight : Tensor of shape (n_experts, n_out, n_in)
            The matrices, in double precision.
        root : Tensor of shape (n_experts, n_in, n_in) or (n_in, n_in)
            The norm of the difference from ``weight``, times this matrix, is minimised.
        """
        mean = weight.new_zeros(math.prod(self.rows), math.prod(self.columns))
        mean[: self.size[0], : self.size[1]] = weight.mean(dim=0)
        tensors = decompose(mean, self.rows, self.columns, self.bond)
        self.central = nn.Parameter(tensors.pop(self.centre).contiguous())
        self.auxiliary = nn.ParameterList(
            nn.Parameter(tensor.repeat(len(weight), 1, 1, 1, 1)) for tensor in tensors
        )
        total = (weight @ root).square().sum().clamp_min(torch.finfo(weight.dtype).tiny)
        optimizer = torch.optim.LBFGS(
            [self.central, *self.auxiliary],
            max_iter=FIT_STEPS,
            tolerance_grad=1e-10,
            tolerance_change=1e-12,
            line_search_fn="strong_wolfe",
        )

        def loss():
            optimizer.zero_grad()
            error = ((self.weight() - weight) @ root).square().sum() / total
            error.backward()
            return error

        optimizer.step(loss)
        with torch.no_grad():
            error = ((self.weight() - weight) @ root).square().sum() / total
        self.float()
        return error.sqrt().item()

    def keep(self, experts: list[int]) -> None:
        """Keep only these experts, in this order."""
        self.auxiliary = nn.ParameterList(
            nn.Parameter(tensor.data[experts]) for tensor in self.auxiliary
        )
        self.bias = nn.Parameter(self.bias.data[experts])


def balanced_factors(size: int, n_factors: int, *, mirrored: bool = False) -> tuple[int, ...]:
    """Return factors of similar size of a size, or of the next larger size that has such factors.

    The largest factor is in the middle. The products of the factors on its left and on its right
    are similar, because the tensors of a side grow with the square of its product. The larger
    product is on the left, or on the right if mirrored. For an even number of factors, the middle
    one is the product of two factors out of ``n_factors + 1``. Otherwise one side would have one
    factor more than the other, and be as large as the whole.
    """
    n_odd = n_factors | 1
    while (factors := _most_balanced(size, n_odd, math.ceil(2 * size ** (1 / n_odd)))) is None:
        size += 1
    centre, *others = factors
    sides = others[::4] + others[3::4], others[1::4] + others[2::4]
    right, left = sorted(map(sorted, sides), key=math.prod, reverse=mirrored)
    if n_factors < n_odd:
        centre *= right.pop()
    return (*left, centre, *reversed(right))


def _most_balanced(size, n_factors, limit):
    """Return falling factors of a size, the first as small as possible; None if above limit."""
    if n_factors == 1:
        return [size] if size <= limit else None
    for largest in range(1, limit + 1):
        if largest**n_factors >= size and size % largest == 0:
            others = _most_balanced(size // largest, n_factors - 1, largest)
            if others is not None:
                return [largest, *others]
    return None


def decompose(
    matrix: Tensor, rows: Sequence[int], columns: Sequence[int], bond: int | None = None
) -> list[Tensor]:
    """Return the tensors (rank, row, column, next rank) of a matrix, by a sweep of SVDs."""
    n = len(rows)
    order = [axis for k in range(n) for axis in (k, n + k)]
    rest = matrix.reshape(*rows, *columns).permute(order)
    tensors, rank = [], 1
    for row, column in list(zip(rows, columns, strict=True))[:-1]:
        unfolded = rest.reshape(rank * row * column, -1)
        u = _left_singular_vectors(unfolded)[:, :bond]
        tensors.append(u.reshape(rank, row, column, -1))
        rest, rank = u.mT @ unfolded, u.shape[1]
    return [*tensors, rest.reshape(rank, rows[-1], columns[-1], 1)]


def _left_singular_vectors(matrix):
    """Return the left singular vectors of a matrix, that of the largest value first."""
    if len(matrix) > matrix.shape[1]:
        return torch.linalg.svd(matrix, full_matrices=False).U
    # For a wide matrix, this takes a quarter of the time of an SVD.
    wide = matrix.double()
    return torch.linalg.eigh(wide @ wide.mT).eigenvectors.flip(1).to(matrix.dtype)


def contract(tensors: Sequence[Tensor]) -> Tensor:
    """Multiply tensors to matrices (E, rows, columns); some tensors have a first axis E."""
    n_experts = max(len(tensor) for tensor in tensors if tensor.dim() == 5)
    out = torch.ones(n_experts, 1, 1, 1, dtype=tensors[0].dtype, device=tensors[0].device)
    for tensor in tensors:
        axes = "erijs" if tensor.dim() == 5 else "rijs"
        out = torch.einsum(f"eIJr,{axes}->eIiJjs", out, tensor)
        out = out.flatten(1, 2).flatten(2, 3)
    return out.squeeze(3)
