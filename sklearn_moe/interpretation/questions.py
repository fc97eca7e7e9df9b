"""A small decision tree that asks questions about the columns of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import ceil, isinf, log10
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sklearn_moe.interpretation.conditions import Among, Categories, Condition, Range

# A rounded threshold moves at most this share of the samples to the other side.
MOVED = 0.01

# A question is only asked if the share of samples with the right answer grows by more than this.
GAIN = 0.01

# A leaf has at least this share of the samples, and this many.
LEAST_SHARE, LEAST = 0.01, 5

# A column of numbers with at most this many distinct values is asked for them by name.
FEW = 2


@dataclass(frozen=True)
class Branch:
    """A question, and how the tree goes on after each answer.

    Attributes
    ----------
    condition : Range or Among
        The question is whether it holds.
    yes, no : Branch or object
        The rest of the tree.
    """

    condition: Condition
    yes: Any
    no: Any


def leaves(tree: Any) -> Iterator[Any]:
    """Yield the leaves of a tree, from the first answer "yes" on."""
    if isinstance(tree, Branch):
        yield from leaves(tree.yes)
        yield from leaves(tree.no)
    else:
        yield tree


def with_leaves(
    tree: Any,
    make: Callable[[Any, tuple[Condition, ...]], Any],
    conditions: tuple[Condition, ...] = (),
) -> Any:
    """Return a tree with other leaves, made of a leaf and the conditions that lead to it.

    There is at most one condition for each column.
    """
    if not isinstance(tree, Branch):
        return make(tree, conditions)
    yes = with_leaves(tree.yes, make, _with(conditions, tree.condition))
    no = with_leaves(tree.no, make, _with(conditions, tree.condition.negated()))
    return replace(tree, yes=yes, no=no)


def _with(conditions, condition):
    columns = [each.column for each in conditions]
    if condition.column not in columns:
        return (*conditions, condition)
    place = columns.index(condition.column)
    joined = conditions[place].joined(condition)
    return (*conditions[:place], joined, *conditions[place + 1 :])


def grow_tree(
    columns: dict[str, Categories | NDArray[np.float64]],
    choice: NDArray[np.int64],
    weight: NDArray[np.float64],
    *,
    max_depth: int,
    random_state: np.random.RandomState,
) -> Branch | int:
    """Learn which expert is chosen, by questions about the columns.

    Parameters
    ----------
    columns : dict
        The columns by name.
    choice : ndarray of shape (n_samples,)
        The chosen experts.
    weight : ndarray of shape (n_samples,)
        Weights of the samples, above 0.
    max_depth : int
        Largest number of questions before an answer.
    random_state : RandomState
        Decides between questions that are equally good.

    Returns
    -------
    Branch or int
        The tree, whose leaves are experts.
    """
    from sklearn.tree import DecisionTreeClassifier  # here, as it takes long

    inputs = [each for name, values in columns.items() for each in _inputs(name, values, choice)]
    if not inputs:
        return int(np.bincount(choice, weight).argmax())
    tree = DecisionTreeClassifier(
        max_depth=max_depth,
        min_samples_leaf=LEAST,
        min_weight_fraction_leaf=LEAST_SHARE,
        random_state=random_state,
    ).fit(np.column_stack([each.values for each in inputs]), choice, sample_weight=weight)
    rows = np.arange(len(choice))
    return _Grower(tree.tree_, inputs, columns, choice, weight).grow(0, rows).tree


class _Category(NamedTuple):
    """An input of the tree: whether a category is among some."""

    values: NDArray[np.float64]
    condition: Among

    def ask(self, threshold, missing_left, rows, weight):
        return self.condition, False


class _Number(NamedTuple):
    """An input of the tree: a number, as its rank among the distinct values of the column."""

    values: NDArray[np.float64]
    distinct: NDArray[np.float64]
    name: str
    may_miss: bool

    def ask(self, threshold, missing_left, rows, weight):
        """Return a question, and whether its "yes" is the left side of the tree."""
        if isinf(threshold):
            return Range(self.name, low=np.inf, missing=True, may_miss=True), False
        ranks = self.values[rows]
        weight, ranks = weight[~np.isnan(ranks)], ranks[~np.isnan(ranks)]
        below, above = ranks[ranks <= threshold], ranks[ranks > threshold]
        low = self.distinct[int(below.max() if len(below) else threshold)]
        high = self.distinct[int(above.min() if len(above) else threshold + 1)]
        whole = bool((self.distinct == np.floor(self.distinct)).all())
        bound = rounded(low, high, self.distinct[ranks.astype(int)], weight, whole)
        return Range(self.name, high=bound, missing=missing_left, may_miss=self.may_miss), True


def _inputs(name, values, choice):
    """Yield what the tree reads of a column."""
    if not isinstance(values, Categories):
        distinct, ranks = np.unique(values, return_inverse=True)
        known = distinct[~np.isnan(distinct)]
        if len(known) > FEW:
            ranks = np.where(np.isnan(values), np.nan, ranks)
            yield _Number(ranks, known, name, len(known) < len(distinct))
            return
        values = Categories(ranks, [None if each != each else float(each) for each in distinct])
    codes, levels = values
    counts = np.zeros((len(levels), choice.max() + 1))
    np.add.at(counts, (codes, choice), 1)
    present = frozenset(level for level, row in zip(levels, counts, strict=True) if row.any())
    often = [code for code, row in enumerate(counts) if row.sum() >= LEAST]
    sets = {frozenset([levels[code]]): None for code in often}  # each once, in this order
    for expert in range(counts.shape[1]):
        own = frozenset(levels[code] for code in often if counts[code].argmax() == expert)
        sets[min(own, present - own, key=len)] = None
    for own in list(sets)[: 1 if len(present) == 2 else None]:  # of two, one says it all
        if 0 < len(own) < len(present):
            condition = Among(name, own, present)
            yield _Category(condition.holds(values).astype(float), condition)


def rounded(
    low: float, high: float, values: NDArray, weight: NDArray, whole: bool = False
) -> float:
    """Return a threshold with few digits between two neighbouring values, or nearly so.

    Parameters
    ----------
    low, high : float
        The largest value below, and the smallest above.
    values, weight : ndarray of shape (n_samples,)
        The values that are divided, and their weights. A weight of 0.01 of all may come to the
        other side.
    whole : bool, default=False
        Whether all values are whole numbers.

    Returns
    -------
    float

    Examples
    --------
    >>> import numpy as np
    >>> values = np.linspace(0, 80_000, 1000)
    >>> rounded(39_871.2, 39_951.3, values, np.ones(1000))
    40000.0
    """
    middle = low + (high - low) / 2
    middle = float(np.floor(middle) if whole else middle)
    first = -ceil(log10(max(abs(low), abs(high))))
    for digits in range(first, first + 18):
        bound = round(middle, digits) + 0.0  # never -0.0
        moved = weight[(values > min(low, bound)) & (values <= max(low, bound))].sum()
        if low <= bound < high or moved <= MOVED * weight.sum():
            return bound
    return float(low)


class _Part(NamedTuple):
    """A part of a tree: the weight of samples with the right answer, and the number of leaves."""

    tree: Branch | int
    right: float
    n_leaves: int


@dataclass(frozen=True)
class _Grower:
    """Turns scikit-learn's tree into questions, without those that say too little."""

    nodes: Any
    inputs: list[_Category | _Number]
    columns: dict[str, Categories | NDArray[np.float64]]
    choice: NDArray[np.int64]
    weight: NDArray[np.float64]

    def grow(self, node: int, rows: NDArray[np.int64]) -> _Part:
        totals = np.bincount(self.choice[rows], self.weight[rows])
        leaf = _Part(int(totals.argmax()), float(totals.max()), 1)
        left, right = self.nodes.children_left[node], self.nodes.children_right[node]
        if left < 0:
            return leaf
        condition, yes_is_left = self.inputs[self.nodes.feature[node]].ask(
            self.nodes.threshold[node],
            bool(self.nodes.missing_go_to_left[node]),
            rows,
            self.weight[rows],
        )
        holds = condition.holds(self.columns[condition.column])[rows]
        of_yes, of_no = (left, right) if yes_is_left else (right, left)
        if holds.all() or not holds.any():  # as other thresholds were rounded
            return self.grow(of_yes if holds.all() else of_no, rows)
        yes, no = self.grow(of_yes, rows[holds]), self.grow(of_no, rows[~holds])
        n_leaves, right = yes.n_leaves + no.n_leaves, yes.right + no.right
        if right - leaf.right <= GAIN * self.weight.sum() * (n_leaves - 1):
            return leaf
        return _Part(Branch(condition, yes.tree, no.tree), right, n_leaves)
