"""The layers that experts and gates share.

Every weight is drawn from a local generator, so that neither building nor training a mixture
touches torch's global random state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from numbers import Integral

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
}


def check_layer_sizes(name: str, sizes: Sequence[int] | int) -> tuple[int, ...]:
    """Return hidden layer sizes as a tuple of integers of at least 1."""
    as_tuple = (sizes,) if isinstance(sizes, Integral) else tuple(sizes)
    if not all(isinstance(size, Integral) and size >= 1 for size in as_tuple):
        raise ValueError(f"{name} must hold integers of at least 1, got {sizes!r}.")
    return as_tuple


def linear(n_in: int, n_out: int, generator: torch.Generator, *, bias: bool = True) -> nn.Linear:
    """Return a ``nn.Linear`` with torch's default initialisation from a local generator."""
    layer = nn.utils.skip_init(nn.Linear, n_in, n_out, bias=bias)
    for parameter in layer.parameters():
        _fill_like_linear(parameter, n_in, generator)
    return layer


def mlp(sizes: Sequence[int], generator: torch.Generator) -> nn.Sequential:
    """Return linear layers of the given sizes with ReLU between them and none at the end."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.ReLU(), linear(n_in, n_out, generator)]
    return nn.Sequential(*layers[1:])


class StackedLinear(nn.Module):
    """The linear layers of all experts in one weight.

    Parameters
    ----------
    n_experts, n_in, n_out : int
        Number of experts, input size and output size of each expert's layer.
    generator : torch.Generator
        Source of the initial weights; each expert is initialised as ``nn.Linear`` would be.
    """

    def __init__(self, n_experts: int, n_in: int, n_out: int, generator: torch.Generator):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_experts, n_out, n_in))
        self.bias = nn.Parameter(torch.empty(n_experts, n_out))
        for parameter in self.parameters():
            _fill_like_linear(parameter, n_in, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Map an input shared by all experts (N, D), or one per expert (E, N, D), to (E, N, O)."""
        if x.dim() == 2:
            # One wide product reads the shared input once for all experts.
            wide = F.linear(x, self.weight.flatten(0, 1), self.bias.flatten())
            return wide.unflatten(1, self.bias.shape).transpose(0, 1)
        return torch.baddbmm(self.bias.unsqueeze(1), x, self.weight.mT)

    def run_one(self, x: Tensor, expert: int) -> Tensor:
        """Map the input (N, D) of one expert to (N, O)."""
        return F.linear(x, self.weight[expert], self.bias[expert])


def dropout(x: Tensor, probability: float, generator: torch.Generator | None) -> Tensor:
    """Zero each entry with the given probability and rescale the others."""
    keep = torch.empty_like(x).bernoulli_(1 - probability, generator=generator)
    return x * keep.div_(1 - probability)


def _fill_like_linear(parameter: Tensor, n_in: int, generator: torch.Generator) -> None:
    bound = 1 / math.sqrt(n_in)
    with torch.no_grad():
        parameter.uniform_(-bound, bound, generator=generator)
