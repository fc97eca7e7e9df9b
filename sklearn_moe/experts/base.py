"""What all experts have in common."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ExpertsModule(nn.Module):
    """The torch module of all experts of a mixture.

    Attributes
    ----------
    hidden_size : int
        Length of the hidden vectors, which an attentive gate reads.
    costs : sequence of int
        Multiply-adds that each expert takes for a sample.
    independent : bool, default=True
        Whether an expert's logits are its own, so that it can run without the others.
    can_merge : bool, default=False
        Whether several experts have a mean.
    """

    hidden_size: int
    independent = True
    can_merge = False

    @property
    def costs(self) -> Sequence[int]:
        raise NotImplementedError(
            f"{type(self).__name__} needs a property costs: the multiply-adds that each of its "
            "experts takes for a sample."
        )

    def forward(
        self, x: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return logits (N, E, C) and hidden vectors (N, E, H) of all experts for a batch.

        The generator serves dropout in training.
        """
        raise NotImplementedError

    def run_some(self, x: list[Tensor], experts: list[int]) -> list[Tensor]:
        """Return the logits of some experts, each for a batch of its own, in prediction."""
        raise NotImplementedError

    def keep(self, experts: list[int]) -> None:
        """Drop all experts but these, whose order becomes theirs."""
        raise NotImplementedError

    def merge(self, groups: list[list[int]], shares: list[list[float]], x: Tensor) -> None:
        """Replace groups of experts by their means.

        ``shares`` weigh the members of each group and sum to 1; ``x`` are samples on which units
        that do the same are found. Raises a ValueError unless ``can_merge``.
        """
        raise ValueError(
            f"Experts of the kind {type(self).__name__.removesuffix('Module')!r} cannot be merged "
            "to one. Pass reduce='keep'."
        )

    def check_gate(self, gate: nn.Module) -> None:
        """Raise a ValueError if these experts make no sense under such a gate."""

    def limit(self, gate_log_proba: Tensor) -> Tensor:
        """Return the gate's log-probabilities in training, with the experts' limits."""
        return gate_log_proba
