"""Experts that a user's function makes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sklearn_moe.checks import call_maker
from sklearn_moe.experts.base import Experts, ExpertsModule, run_two_samples, shapes_of
from sklearn_moe.layers import seeded_globally


class CustomExperts(Experts):
    """Experts that your function makes; ``MoEClassifier(experts=function)`` wraps it in this.

    Parameters
    ----------
    factory : callable
        ``factory(input_shape, n_outputs)`` returns a new ``nn.Module`` each time. It may also be a
        module class that takes these two arguments. The module's ``forward`` takes a batch of
        shape ``(n_samples, *input_shape)``. It returns the logits (n_samples, n_outputs), or the
        pair (logits, hidden). An attentive gate reads the hidden vectors (n_samples, hidden_size);
        without them it reads the logits.

    Notes
    -----
    Such modules draw their initial weights and their dropout from torch's global random state. It
    is seeded from ``random_state`` and restored afterwards, under a lock: mixtures of custom
    experts that are fitted in several threads wait for one another.

    Examples
    --------
    >>> from sklearn_moe import MoEClassifier
    >>> from torch import nn
    >>> def linear_expert(input_shape, n_outputs):
    ...     return nn.Linear(input_shape[0], n_outputs)
    >>> clf = MoEClassifier(experts=linear_expert)
    """

    _parameter_constraints: dict = {"factory": [callable]}

    def __init__(self, factory: Callable[[tuple[int, ...], int], nn.Module]):
        self.factory = factory

    def build(
        self,
        input_shape: tuple[int, ...],
        n_experts: int,
        n_classes: int,
        generator: torch.Generator,
    ) -> ExpertsModule:
        """Return the torch module of these experts."""
        self._validate_params()
        if isinstance(self.factory, nn.Module):
            raise TypeError(
                "experts must be a function (input_shape, n_outputs) -> torch.nn.Module that "
                f"makes one expert, not a module: {self.factory!r}. A module that is trained "
                "already can be one of the experts in a list: experts=[('net', module), ...]."
            )
        experts: list[nn.Module] = []
        hidden_sizes = set()
        for seed in torch.randint(2**62, (n_experts,), generator=generator).tolist():
            with seeded_globally(seed):
                expert = call_maker(
                    "experts", self.factory, input_shape=input_shape, n_outputs=n_classes
                )
                if not isinstance(expert, nn.Module) or expert in experts:
                    raise TypeError(
                        "experts(input_shape, n_outputs) must return a new torch.nn.Module in "
                        f"each call, got {expert!r}."
                    )
                hidden_sizes.add(_probe(expert, input_shape, n_classes))
            experts.append(expert)
        if len(hidden_sizes) > 1:
            raise ValueError(f"All experts must have one hidden size, got {sorted(hidden_sizes)}.")
        return CustomExpertsModule(experts, hidden_sizes.pop())


def _probe(expert, input_shape, n_classes):
    """Run two samples through an expert, check the output and return the hidden size."""
    shapes = shapes_of(run_two_samples(expert.eval(), input_shape))
    if len(shapes) > 2 or shapes[0] != (2, n_classes):
        raise ValueError(
            f"An expert must return logits of shape (n_samples, {n_classes}), or the pair "
            f"(logits, hidden); a batch of shape {(2, *input_shape)} gave {shapes!r}."
        )
    hidden = shapes[-1]
    if not isinstance(hidden, tuple) or len(hidden) != 2 or hidden[0] != 2:
        raise ValueError(
            "An expert's hidden must have the shape (n_samples, hidden_size); a batch of shape "
            f"{(2, *input_shape)} gave {hidden!r}."
        )
    return hidden[1]


class CustomExpertsModule(ExpertsModule):
    """The torch module of :class:`CustomExperts`."""

    uses_global_random_state = True

    def __init__(self, experts, hidden_size):
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.hidden_size = hidden_size

    @property
    def costs(self) -> tuple[int, ...]:
        # The true cost is unknown. A linear layer takes one multiply-add for each weight.
        return tuple(sum(map(torch.numel, expert.parameters())) for expert in self.experts)

    def train(self, mode: bool = True) -> CustomExpertsModule:
        """Set all to training or evaluation mode, but leave frozen parts in evaluation mode."""
        super().train(mode)
        for part in self.experts.modules():
            learns = [parameter.requires_grad for parameter in part.parameters()]
            if learns and not any(learns):
                part.eval()
        return self

    def keep(self, experts: list[int]) -> None:
        self.experts = nn.ModuleList(self.experts[expert] for expert in experts)

    def forward(
        self, x: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        # Each expert gets a copy, because its first layer may change the batch in place.
        outputs = [expert(x.clone()) for expert in self.experts]
        pairs = [each if isinstance(each, tuple) else (each, each) for each in outputs]
        logits, hidden = zip(*pairs, strict=True)
        return torch.stack(logits, dim=1), torch.stack(hidden, dim=1)

    def run_some(self, x: list[Tensor], experts: list[int]) -> list[Tensor]:
        outputs = [self.experts[expert](own) for own, expert in zip(x, experts, strict=True)]
        return [output[0] if isinstance(output, tuple) else output for output in outputs]
