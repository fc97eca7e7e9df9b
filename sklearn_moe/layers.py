"""The layers that experts and gates share.

Every weight is drawn from a local generator, so that neither building nor training a mixture
touches torch's global random state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from numbers import Integral
from threading import RLock
from typing import Any, NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook


class Activation(NamedTuple):
    """An activation and its gradient."""

    function: Callable[[Tensor], Tensor]
    # (gradient of the output, input, output) -> gradient of the input
    gradient: Callable[[Tensor, Tensor, Tensor], Tensor]


_aten = torch.ops.aten

ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(F.relu, lambda upstream, x, out: _aten.threshold_backward(upstream, x, 0)),
    "gelu": Activation(F.gelu, lambda upstream, x, out: _aten.gelu_backward(upstream, x)),
    "tanh": Activation(torch.tanh, lambda upstream, x, out: _aten.tanh_backward(upstream, out)),
}


def check_layer_sizes(name: str, sizes: Any) -> tuple[int, ...]:
    """Return hidden layer sizes as a tuple of integers of at least 1."""
    as_tuple = (sizes,) if isinstance(sizes, Integral) else tuple(sizes)
    # Python counts booleans as integers.
    if any(
        isinstance(size, bool) or not isinstance(size, Integral) or size < 1 for size in as_tuple
    ):
        raise ValueError(f"{name} must hold integers of at least 1, got {sizes!r}.")
    return as_tuple


def linear(n_in: int, n_out: int, generator: torch.Generator, *, bias: bool = True) -> nn.Linear:
    """Return a ``nn.Linear`` with torch's default initialisation from a local generator."""
    layer = nn.utils.skip_init(nn.Linear, n_in, n_out, bias=bias)
    for parameter in layer.parameters():
        fill_like_linear(parameter, n_in, generator)
    return layer


def apply_stacked(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """Map an input shared by all experts (N, D), or one per expert (E, D, N), to (E, O, N)."""
    if x.dim() == 2:
        # One wide product reads the shared input once for all experts.
        return torch.addmm(bias.view(-1, 1), weight.flatten(0, 1), x.mT).unflatten(0, bias.shape)
    return torch.baddbmm(bias.unsqueeze(2), weight, x)


class StackedLinear(nn.Module):
    """The linear layers of all experts in one weight.

    Its outputs have the samples on their last axis. Operations over units, classes or experts are
    then vectorised over the samples, and no product has to be rearranged for the next one.

    Parameters
    ----------
    n_experts, n_in, n_out : int
        Number of experts, input size and output size of each expert's layer.
    generator : torch.Generator
        Source of the initial weights; each expert is initialised as ``nn.Linear`` would be.
    """

    has_known_gradient = True
    can_be_captured = True

    def __init__(self, n_experts: int, n_in: int, n_out: int, generator: torch.Generator):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_experts, n_out, n_in))
        self.bias = nn.Parameter(torch.empty(n_experts, n_out))
        for parameter in self.parameters():
            fill_like_linear(parameter, n_in, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Map an input shared by all experts (N, D), or one per expert (E, D, N), to (E, O, N)."""
        return apply_stacked(self.weight, self.bias, x)

    def backward(self, x: Tensor, upstream: Tensor) -> None:
        """Set the gradients of the parameters from that of the output (E, O, N)."""
        if x.dim() == 2:
            self.weight.grad = (upstream.flatten(0, 1) @ x).view_as(self.weight)
        else:
            self.weight.grad = torch.bmm(upstream, x.mT)
        self.bias.grad = upstream.sum(dim=2)

    def keep(self, experts: list[int]) -> None:
        """Keep only these experts, in this order."""
        keep_rows(self, experts)

    def run_some(self, x: list[Tensor], experts: list[int]) -> list[Tensor]:
        """Run some of the experts, each on a separate input: map (N, D) to (N, O)."""
        weights, biases = self.weight.unbind(), self.bias.unbind()
        return [
            F.linear(own, weights[expert], biases[expert])
            for own, expert in zip(x, experts, strict=True)
        ]


class StackedMLP(nn.Module):
    """Several networks of the same shape: linear layers with an activation between them.

    It can compute its gradient itself, for trainings without autograd.

    Parameters
    ----------
    n_networks : int
        Number of networks.
    sizes : sequence of int
        Sizes of the input and of each layer; no activation follows the last.
    generator : torch.Generator
        Source of the initial weights.
    activation : {"relu", "gelu", "tanh"}, default="relu"
        Activation between the layers.
    dropout : float, default=0.0
        Probability with which a hidden unit is dropped in training.
    """

    layers: Any  # ModuleList of StackedLinear

    def __init__(
        self,
        n_networks: int,
        sizes: Sequence[int],
        generator: torch.Generator,
        *,
        activation: str = "relu",
        dropout: float = 0.0,
    ):
        super().__init__()
        self.layers = nn.ModuleList(
            StackedLinear(n_networks, n_in, n_out, generator) for n_in, n_out in pairwise(sizes)
        )
        self.activation = activation
        self.dropout = dropout
        self.n_networks = n_networks
        # For each network: size of its last hidden layer, its work for a sample, widest layer.
        self.hidden_size = sizes[-2] if len(sizes) > 2 else sizes[-1]
        self.multiply_adds = sum(n_in * n_out for n_in, n_out in pairwise(sizes))
        self.widest: Any = max(sizes[1:], default=0)

    @property
    def costs(self) -> tuple[int, ...]:
        """Multiply-adds that each network takes for a sample."""
        return (self.multiply_adds,) * self.n_networks

    def keep(self, networks: list[int]) -> None:
        """Keep only these networks, in this order."""
        for layer in self.layers:
            layer.keep(networks)
        self.n_networks = len(networks)

    @torch.no_grad()
    def merge(self, groups: list[list[int]], shares: list[list[float]], x: Tensor) -> None:
        """Replace groups of networks by their means, weighted with shares that sum to 1.

        Independent networks have their hidden units in different orders. So the units of each
        network are first matched with those of the first network in its group, by their
        correlations on the batch x.
        """
        hidden = [layer.output for layer in self.run(x)[:-1]]
        for group, weights in zip(groups, shares, strict=True):
            first, *others = group
            for layer in self.layers:
                layer.weight[first] *= weights[0]
                layer.bias[first] *= weights[0]
            for other, share in zip(others, weights[1:], strict=True):
                matched = self.matched(first, other, hidden)
                for layer, (weight, bias) in zip(self.layers, matched, strict=True):
                    layer.weight[first] += share * weight
                    layer.bias[first] += share * bias
        self.keep([group[0] for group in groups])

    def matched(
        self, first: int, other: int, hidden: list[Tensor] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield weight and bias of each layer of a network, its units in the order of the first's.

        Units are matched by their correlations in ``hidden``, the outputs (E, H, N) of each hidden
        layer on a batch. Without it, the distance of the weights and biases that lead to the units
        is minimised; for the last hidden layer, those that lead away from them count, too.
        """
        order = None  # the order of the units that a layer reads
        for i, layer in enumerate(self.layers):
            weight, bias = layer.weight[other], layer.bias[other]
            if order is not None:
                weight = weight[:, order]
            if i < len(self.layers) - 1:
                if hidden is None:
                    order = best_assignment(self._products(i, first, other, weight, bias))
                else:
                    order = matching_units(hidden[i][first], hidden[i][other])
                weight, bias = weight[order], bias[order]
            yield weight, bias

    def _products(self, i, first, other, weight, bias):
        """Return the products of the weights of two networks' units, (H, H), in a hidden layer."""
        layer = self.layers[i]
        products = layer.weight[first] @ weight.mT + torch.outer(layer.bias[first], bias)
        if i < len(self.layers) - 2:
            return products
        last = self.layers[-1].weight
        return products + last[first].mT @ last[other]

    @torch.no_grad()
    def distances(self) -> Tensor:
        """Return the squared distances (E, E) of the networks' weights, with units ``matched``."""
        distance = torch.zeros(self.n_networks, self.n_networks, dtype=torch.float64)
        for one in range(self.n_networks):
            for other in range(one):
                distance[one, other] = sum(
                    (layer.weight[one] - weight).square().sum()
                    + (layer.bias[one] - bias).square().sum()
                    for layer, (weight, bias) in zip(
                        self.layers, self.matched(one, other), strict=True
                    )
                )
        return distance + distance.mT

    @torch.no_grad()
    def align(self) -> None:
        """Bring the units of all networks into the order of the first, as ``matched`` does."""
        for other in range(1, self.n_networks):
            matched = list(self.matched(0, other))
            for layer, (weight, bias) in zip(self.layers, matched, strict=True):
                layer.weight[other], layer.bias[other] = weight, bias

    def run(self, x: Tensor, generator: torch.Generator | None = None) -> list[LayerTrail]:
        """Run a batch (N, D), or one per network (E, D, N); return inputs and output per layer."""
        trail: list[LayerTrail] = []
        for layer in self.layers:
            keep = None
            if trail:
                active = x = ACTIVATIONS[self.activation].function(trail[-1].output)
                if self.training and self.dropout > 0:
                    keep = dropout_mask(x, self.dropout, generator)
                    x = x * keep
            else:
                active = x
            trail.append(LayerTrail(active, keep, x, layer(x)))
        return trail

    def logits_and_hidden(
        self, x: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Map a batch (N, D), or one per network (E, D, N), to outputs and hidden (N, E, ...)."""
        outputs = [layer.output for layer in self.run(x, generator)]
        logits, hidden = outputs[-1], outputs[-2:][0]
        return logits.permute(2, 0, 1), hidden.permute(2, 0, 1)

    def run_some(self, x: list[Tensor], networks: list[int]) -> list[Tensor]:
        """Run some of the networks, each on a separate batch: map (N, D) to (N, O)."""
        first, *others = self.layers
        out = first.run_some(x, networks)
        for layer in others:
            active = [ACTIVATIONS[self.activation].function(own) for own in out]
            out = layer.run_some(active, networks)
        return out

    def backward(self, trail: list[LayerTrail], upstream: Tensor) -> Tensor:
        """Set the gradients of all parameters from that of the last output (E, O, N).

        Return the gradient of the output of the first layer.
        """
        for i in reversed(range(len(trail))):
            layer, (active, keep, x, _) = self.layers[i], trail[i]
            layer.backward(x, upstream)
            if i > 0:
                upstream = torch.bmm(layer.weight.mT, upstream)
                if keep is not None:
                    upstream = upstream * keep
                gradient = ACTIVATIONS[self.activation].gradient
                upstream = gradient(upstream, trail[i - 1].output, active)
        return upstream


class LayerTrail(NamedTuple):
    """The input and output of one layer of a :class:`StackedMLP`, for its gradient."""

    active: Tensor  # output of the activation before the layer
    keep: Tensor | None  # dropout mask on it
    x: Tensor  # input of the layer, after dropout
    output: Tensor


class MLP(StackedMLP):
    """A single network from (N, D) to (N, O); without layers it returns its input."""

    has_known_gradient = True
    can_be_captured = True

    def __init__(self, sizes: Sequence[int], generator: torch.Generator):
        super().__init__(1, sizes, generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)[-1].output.squeeze(0).mT if self.layers else x


def matching_units(units: Tensor, others: Tensor) -> list[int]:
    """Match units (H, N) one to one with others by correlation; return the order of the others."""
    standard = [
        F.normalize(values - values.mean(dim=1, keepdim=True), dim=1) for values in (units, others)
    ]
    return best_assignment(standard[0] @ standard[1].mT)


def best_assignment(similarity: Tensor) -> list[int]:
    """Return another column for each row, so that the sum of the similarities is largest."""
    return linear_sum_assignment(similarity.cpu().numpy(), maximize=True)[1].tolist()


def dropout_mask(x: Tensor, probability: float, generator: torch.Generator | None) -> Tensor:
    """Return factors that zero each entry with the given probability and rescale the others."""
    return torch.empty_like(x).bernoulli_(1 - probability, generator=generator) / (1 - probability)


def fill_like_linear(parameter: Tensor, n_in: int, generator: torch.Generator) -> None:
    """Fill a weight or bias as torch does by default, for units that read ``n_in`` numbers."""
    bound = 1 / math.sqrt(n_in)
    with torch.no_grad():
        parameter.uniform_(-bound, bound, generator=generator)


def keep_rows(module: nn.Module, rows: list[int]) -> None:
    """Keep only these rows, which are experts, of a module's parameters and buffers."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        setattr(module, name, nn.Parameter(parameter.data[rows], parameter.requires_grad))
    for name, buffer in list(module.named_buffers(recurse=False)):
        setattr(module, name, buffer[rows])


# The classes of torch and for which promises they can be trusted (see ``all_declare``).
_BY_TORCH = {
    "has_known_gradient": {nn.ModuleList, nn.Identity, nn.NLLLoss},
    "can_be_captured": {nn.ModuleList, nn.Identity, nn.Linear},
}

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def all_declare(module: nn.Module, promise: str) -> bool:
    """Whether the classes of a module and of all its parts make a promise, and nothing breaks it.

    A class makes a promise with an attribute: ``has_known_gradient = True`` (a closed form in
    ``training/closed_form.py`` knows it) or ``can_be_captured = True`` (its steps do not wait for
    the device). Subclasses do not inherit a promise, as they may behave differently. Hooks,
    parametrizations (which change the class) and parameters that several parts share break it.
    """
    parameters = [each for _, each in module.named_parameters(remove_duplicate=False)]
    return (
        not _has_any_global_hook()
        and all(
            (vars(type(part)).get(promise, False) or type(part) in _BY_TORCH[promise])
            and "forward" not in vars(part)
            and not any(getattr(part, name) for name in _HOOKS)
            for part in module.modules()
        )
        and len(set(parameters)) == len(parameters)
        and all(
            type(each) is nn.Parameter
            and not each._backward_hooks
            and not each._post_accumulate_grad_hooks
            for each in parameters
        )
    )


_GLOBAL_RANDOM_STATE = RLock()


@contextmanager
def seeded_globally(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed torch's global random state for modules that use no generator, and restore it."""
    cuda = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with _GLOBAL_RANDOM_STATE, torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for used in cuda:
            with torch.cuda.device(used):
                torch.cuda.manual_seed(seed)
        yield


def orthogonalize(vectors: Tensor, *, normalize: bool = True, tolerance: float = 1e-5) -> Tensor:
    """Make the vectors (N, E, H) of each of N samples orthogonal, one after the other.

    A vector becomes zero if no more than the fraction ``tolerance`` of its length is new.
    """
    units: list[Tensor] = []
    out: list[Tensor] = []
    for vector in vectors.unbind(1):
        rest = vector
        for _ in range(2):  # one pass leaves rounding errors as large as the part that it removes
            for unit in units:
                rest = rest - (rest * unit).sum(dim=1, keepdim=True) * unit
        length = vector.detach().norm(dim=1, keepdim=True)
        is_new = rest.detach().norm(dim=1, keepdim=True) > tolerance * length
        rest = torch.where(is_new, rest, torch.zeros_like(rest))
        # The direction of a zero vector has no gradient; a constant vector has a gradient of zero.
        units.append(F.normalize(torch.where(is_new, rest, torch.ones_like(rest)), dim=1) * is_new)
        out.append(units[-1] if normalize else rest)
    return torch.stack(out, dim=1)
