"""Experts that were added to a fitted mixture, beside the experts that it had."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sklearn_moe.experts.base import LOWEST, ExpertsModule
from sklearn_moe.experts.estimators import ListedExpertsModule


class GrownExpertsModule(ListedExpertsModule):
    """Experts that were trained one group after the other, as :func:`grow` adds them.

    A group may not know the classes that came later. They get a probability of 1e-7, so that the
    likelihood stays finite.

    Parameters
    ----------
    parts : list of ExpertsModule
        The groups, oldest first.
    members : list of (int, int) tuples
        For each expert its group, and its place there.
    places : list of list of int
        For each group, the positions of its classes among all.
    n_classes : int
        Number of all classes.
    """

    def __init__(
        self,
        parts: list[ExpertsModule],
        members: list[Any],
        places: list[list[int]],
        n_classes: int,
    ):
        super().__init__(parts, members, None, 0, n_classes)
        self.places = places

    def forward(
        self, x: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        answers = [
            self._on_all_classes(part(x, generator)[0], number)
            for number, part in enumerate(self.parts)
        ]
        logits = torch.stack([answers[part][:, place] for part, place in self.members], dim=1)
        return logits, logits.softmax(dim=2)

    def _on_all_classes(self, logits, part):
        """Return the logits of a group with those of the classes that it does not know."""
        if len(self.places[part]) == self.n_classes:
            return logits
        lowest = logits.logsumexp(dim=-1, keepdim=True) + LOWEST
        places = torch.tensor(self.places[part], device=logits.device)
        return lowest.expand(*logits.shape[:-1], self.n_classes).index_copy(-1, places, logits)

    def run_some(self, x: list[Tensor], experts: list[int]) -> list[Tensor]:
        parts = [self.members[expert][0] for expert in experts]
        logits = super().run_some(x, experts)
        return [self._on_all_classes(*each) for each in zip(logits, parts, strict=True)]

    def keep(self, experts: list[int]) -> None:
        parts = sorted({self.members[expert][0] for expert in experts})
        super().keep(experts)
        self.places = [self.places[part] for part in parts]


def grow_experts(
    experts: ExpertsModule, new: ExpertsModule, former: list[int], n_classes: int
) -> GrownExpertsModule:
    """Return experts with new ones beside them, for a mixture that may have more classes.

    ``former`` holds the positions of their present classes among all ``n_classes``.
    """
    if isinstance(experts, GrownExpertsModule):
        parts, members = list(experts.parts), list(experts.members)
        places = [[former[place] for place in own] for own in experts.places]
    else:
        parts, places = [experts], [former]
        members = [(0, place) for place in range(len(experts.costs))]
    members += [(len(parts), place) for place in range(len(new.costs))]
    parts.append(new)
    places.append(list(range(n_classes)))
    return GrownExpertsModule(parts, members, places, n_classes)
