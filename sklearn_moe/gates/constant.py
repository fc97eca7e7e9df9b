"""A gate that does not look at the sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sklearn_moe.gates.base import Gate, GateFormula, GateModule


class ConstantGate(Gate):
    r"""A gate with the same weights for all samples, which are learned.

    .. math:: p_n = \mathrm{softmax}(b)

    With it the mixture is a weighted mean of its experts, as in stacking. It is the baseline for
    gates that look at the sample: if they predict no better, the data do not say which expert is
    right where.

    Parameters
    ----------
    top_k : int or None, default=None
        How many experts answer; None means all.

    References
    ----------
    D. H. Wolpert, Stacked Generalization, Neural Networks 5, 1992.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_moe import MoEClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = MoEClassifier(3, gate="constant", max_iter=5, random_state=0).fit(X, y)
    >>> shares = clf.gate_proba(X)
    >>> bool((shares == shares[0]).all())
    True
    """

    needs_hidden = False

    def __init__(self, *, top_k: int | None = None):
        self.top_k = top_k

    def build(
        self,
        input_shape: tuple[int, ...],
        n_experts: int,
        hidden_size: int,
        generator: torch.Generator,
    ) -> ConstantGateModule:
        """Return the torch module of this gate."""
        self._check_top_k(n_experts)
        return ConstantGateModule(n_experts, temperature=1.0, top_k=self.top_k)


class ConstantGateModule(GateModule):
    """The torch module of a :class:`ConstantGate`."""

    needs_hidden = False

    def __init__(self, n_experts: int, **routing: Any):
        super().__init__(**routing)
        self.bias = nn.Parameter(torch.zeros(n_experts))

    def score(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        return self.bias.expand(x.shape[0], -1)

    def formula(self) -> GateFormula:
        # One column stands for all.
        return GateFormula(self.bias.new_zeros(len(self.bias), 1), self.bias)

    def keep(self, experts: list[int]) -> None:
        self.bias = nn.Parameter(self.bias.data[experts])
