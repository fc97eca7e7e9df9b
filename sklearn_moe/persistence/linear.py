"""The numbers of a mixture of linear experts, for forms that need no runtime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from sklearn_moe.persistence.graphs import category_columns, column_names
from sklearn_moe.table_layer import FARTHEST

if TYPE_CHECKING:
    from sklearn_moe.estimator import MoEClassifier


@dataclass(frozen=True, eq=False)
class NumberColumn:
    """How a column of numbers is encoded, as ``TableLayer`` does.

    Attributes
    ----------
    name, position : str or int, int
        Name of the column, and position among all.
    factor, mean, scale : float
        A value is multiplied by the factor, then standardised.
    knots, gaps : list of float
        Where each hat function has its top, and how far the next one is; no hat function follows
        the last one.
    marks_missing : bool
        Whether a column of zeros and ones marks missing values.
    """

    name: str | int
    position: int
    factor: float
    mean: float
    scale: float
    knots: list[float]
    gaps: list[float]
    marks_missing: bool


@dataclass(frozen=True, eq=False)
class CategoryColumn:
    """How a column of categories is encoded.

    Attributes
    ----------
    name, position : str or int, int
        Name of the column, and position among all.
    categories : list of str, float or None
        The categories that have an encoded column.
    has_other : bool
        Whether one more encoded column is for all other values.
    """

    name: str | int
    position: int
    categories: list[str | float | None]
    has_other: bool


@dataclass(frozen=True, eq=False)
class LinearMixture:
    """A mixture of linear experts as numbers.

    The encoded columns are the numbers, the marks of missing ones, the hat functions and the
    categories.

    Attributes
    ----------
    classes : list
        Labels of the classes.
    numbers, categories : list of NumberColumn, list of CategoryColumn
        The columns of the table.
    squash : bool
        Whether outliers are squashed into (-3, 3).
    farthest : float
        Otherwise standardised numbers beyond this count as this.
    gate_weight, gate_bias : ndarray of shape (n_experts, n_encoded), (n_experts,)
        Coefficients of the scores.
    gate_length : ndarray of shape (n_numbers, n_encoded) or None
        The scores are divided by the length of this times the encoded columns.
    top_k : int
        How many experts answer.
    expert_weight, expert_bias : ndarray of shape (n_experts, n_classes, n_encoded) and \
            (n_experts, n_classes)
        Coefficients of the experts' logits.
    mixes_logits : bool
        Whether logits are mixed, not probabilities.
    temperature : float
        Temperature of the probabilities of the classes.
    """

    classes: list[Any]
    numbers: list[NumberColumn]
    categories: list[CategoryColumn]
    squash: bool
    farthest: float
    gate_weight: NDArray[np.float64]
    gate_bias: NDArray[np.float64]
    gate_length: NDArray[np.float64] | None
    top_k: int
    expert_weight: NDArray[np.float64]
    expert_bias: NDArray[np.float64]
    mixes_logits: bool
    temperature: float


def linear_mixture(clf: MoEClassifier, format: str) -> LinearMixture:
    """Return the numbers of a mixture.

    Raises
    ------
    ValueError
        If its experts are not linear, or its gate or encoder has no short formula.
    """
    module = clf.module_.best
    formula, needed = module.gate.formula(), None
    if not module.experts.is_linear:
        needed = f"linear experts, experts='linear', got {_kind(module.experts)}"
    elif len(clf.net_.input_shape) > 1 or type(module.encoder) is not nn.Identity:
        needed = "a table that is read without a backbone"
    elif formula is None:
        needed = (
            "a gate with a short formula (a SoftmaxGate, GumbelGate or CosineGate without hidden "
            f"layers, a ConstantGate or a KMeansGate), got {_kind(module.gate)}"
        )
    if needed or formula is None:
        raise ValueError(f"format={format!r} needs {needed}. Pass format='onnx' or 'torch'.")
    table = clf.encoder_
    numbers, categories = _columns(clf)
    n_encoded = len(table.sources_) if table is not None else clf.n_features_in_

    def among_all(weight, columns):
        """Put zeros where a part does not read an encoded column."""
        full = np.zeros((*weight.shape[:-1], n_encoded))
        full[..., slice(None) if columns is None else columns.cpu().numpy()] = _array(weight)
        return full

    n_experts = len(module.experts.costs)
    length = formula.length
    return LinearMixture(
        classes=clf.classes_.tolist(),
        numbers=numbers,
        categories=categories,
        squash=table is not None and table.squash,
        farthest=np.finfo(np.float32).max.item() if table is None else FARTHEST,
        gate_weight=among_all(formula.weight, module.gate_columns),
        gate_bias=_array(formula.bias),
        gate_length=None if length is None else _shorter(among_all(length, module.gate_columns)),
        top_k=module.gate.top_k or n_experts,
        expert_weight=among_all(module.experts.weight, module.expert_columns),
        expert_bias=_array(module.experts.bias),
        mixes_logits=module.mixing == "logit",
        temperature=clf.temperature_,
    )


def _kind(module):
    return type(module).__name__.removesuffix("Module")


def _shorter(matrix):
    """Return a matrix that gives vectors of the same length, with as few rows as columns."""
    return np.linalg.qr(matrix, mode="r")


def _array(tensor):
    return tensor.detach().double().cpu().numpy()


def _columns(clf):
    """Return the columns of numbers, and those of categories."""
    table, names = clf.encoder_, column_names(clf)
    if table is None:
        raw = {"factor": 1.0, "mean": 0.0, "scale": 1.0, "knots": [], "gaps": []}
        numbers = [
            NumberColumn(name, position, **raw, marks_missing=False)
            for position, name in enumerate(names)
        ]
        return numbers, []
    numbers = [
        NumberColumn(
            name=names[position],
            position=position,
            factor=np.ldexp(1.0, -table.exponent_[i]).item(),
            mean=table.mean_[i].item(),
            scale=table.scale_[i].item(),
            knots=table.knots_[i].tolist(),
            gaps=np.diff(table.knots_[i]).tolist(),
            marks_missing=bool(table.has_missing_[i]),
        )
        for i, position in enumerate(np.flatnonzero(~table.is_categorical_).tolist())
    ]
    categories = [
        CategoryColumn(each["name"], position, each["categories"], each["unknown"] >= 0)
        for position, each in zip(
            np.flatnonzero(table.is_categorical_).tolist(), category_columns(clf), strict=True
        )
    ]
    return numbers, categories
