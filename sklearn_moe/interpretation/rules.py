"""Which samples each expert owns, in words."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import ceil
from numbers import Integral, Real
from textwrap import wrap
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils._optional_dependencies import check_pandas_support
from sklearn.utils._param_validation import Interval, validate_params
from sklearn.utils.validation import check_is_fitted, check_random_state

from sklearn_moe.checks import check_weight, scaled, split, weighty
from sklearn_moe.containers import as_eager, as_frame, categorical_columns
from sklearn_moe.decomposition import final_model, titled
from sklearn_moe.interpretation.conditions import (
    Categories,
    Condition,
    as_table,
    as_words,
    column_names,
    exclude,
    literal,
    read_columns,
)
from sklearn_moe.interpretation.questions import Branch, grow_tree, leaves, with_leaves

if TYPE_CHECKING:
    import pandas as pd

# Rules that say the expert of fewer new samples than this say too little about the experts, and a
# rule whose samples go to its expert less often does not name it.
USABLE = 0.8

# The characters of a printed line of a rule.
WIDTH = 70

WHOLE_WORDS: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}


@dataclass(frozen=True)
class Rule:
    """A rule: samples that meet all conditions go to the expert.

    Attributes
    ----------
    conditions : tuple of Range and Among
        The conditions, at most one for each column; ``text`` has them in words.
    expert : int
        The expert.
    coverage : float
        Share of the new samples that meet the conditions.
    purity : float
        Share of these samples for which the gate chooses this expert; nan if there are none.
    name : str or None
        The name of the expert, if ``experts`` was a list.
    """

    conditions: tuple[Condition, ...]
    expert: int
    coverage: float
    purity: float
    name: str | None = None

    @property
    def text(self) -> str:
        """The conditions in words, such as "age > 60 and region is north"."""
        return as_words(self.conditions)

    def __str__(self) -> str:
        return f"{self.text} -> {self.title}"

    @property
    def title(self) -> str:
        """The expert in words: "expert 2", or "expert 2 (forest)" if it has a name."""
        return titled(self.expert, self.name)

    def sql(self) -> str:
        """Return the expert as a value of SQL: its name, or its number."""
        return literal(self.expert if self.name is None else self.name)


@dataclass(frozen=True, eq=False, repr=False)
class GateRules:
    """In words, which samples each expert owns; printing it shows a table.

    Attributes
    ----------
    tree : Branch or Rule
        The rules as a tree: a branch has a ``condition`` and goes on with ``yes`` or ``no``, which
        are branches or rules.
    fidelity : float
        Share of the new samples for which the rules and the gate choose the same expert.
    shares : ndarray of shape (n_experts,)
        Share of the new samples for which the gate chooses each expert. Its maximum is the
        fidelity of a rule that gives one expert all samples.
    n_new : int
        Number of new samples, on which fidelity, coverage and purity are measured.
    max_depth : int
        Largest number of questions of a rule.
    columns : dict of bool by str
        For each column of ``X``, whether it holds categories.
    expert_names : list of str or None
        Names of the experts, if ``experts`` was a list.
    """

    tree: Branch | Rule
    fidelity: float
    shares: NDArray[np.float64]
    n_new: int
    max_depth: int
    columns: dict[str, bool]
    expert_names: list[str] | None = None

    @cached_property
    def rules(self) -> list[Rule]:
        """The rules, expert by expert, those for most samples first."""
        return sorted(leaves(self.tree), key=lambda rule: (rule.expert, -rule.coverage))

    @property
    def names(self) -> list[str]:
        """A short name of each expert: its main rule, such as "age > 60".

        If the conditions that all rules of an expert share leave no room for others, they name
        it, and "mainly" stands before the rule of an expert that has others, too. An expert is
        just "expert 3" if it has no rule, if the purity of its main rule is below
        0.8, or if the fidelity is. One with a name of its own has the rule in brackets, such as
        "forest (age > 60)", or none.
        """
        if self.expert_names is None:
            return [words or f"expert {each}" for each, words in enumerate(self.main_rules)]
        return [
            f"{name} ({words})" if words else name
            for name, words in zip(self.expert_names, self.main_rules, strict=True)
        ]

    @property
    def main_rules(self) -> list[str | None]:
        """The main rule of each expert, as in :attr:`names`; None if it does not name it."""
        return [
            self._in_words([rule for rule in self.rules if rule.expert == expert])
            for expert in range(len(self.shares))
        ]

    def _in_words(self, own):
        """Return the main one of an expert's rules, or what they share if others lack it."""
        if not (self.is_usable and own and own[0].purity >= USABLE):
            return None
        main, *more = own
        if not more:
            return as_words(main.conditions, short=True)
        shared = tuple(each for each in main.conditions if all(each in r.conditions for r in more))
        others = [rule for rule in self.rules if rule.expert != main.expert]
        if shared and all(exclude(shared, rule.conditions) for rule in others):
            return as_words(shared, short=True)
        return f"mainly {as_words(main.conditions, short=True)}"

    @property
    def is_usable(self) -> bool:
        """Whether the fidelity is at least 0.8."""
        return self.fidelity >= USABLE

    @property
    def sentence(self) -> str:
        """In short, how often the rules are right."""
        if not isinstance(self.tree, Branch) and self.fidelity == 1:
            title = self.tree.title.removeprefix("e")
            return f"E{title} owns all samples, so there is nothing to tell."
        verdict = "" if self.is_usable else ", which is too low to describe the experts by them"
        return (
            f"The rules choose the expert of the gate for {self.fidelity:.0%} of {self.n_new:,} "
            f"new samples{verdict}. Always {self._title(self.shares.argmax())} would be right for "
            f"{self.shares.max():.0%}."
        )

    def _title(self, expert):
        return titled(expert, None if self.expert_names is None else self.expert_names[expert])

    def __repr__(self) -> str:
        width = max([len("expert"), *(len(rule.name) for rule in self.rules if rule.name)])
        lines = [*wrap(self.sentence, WIDTH + 26), ""]
        lines.append(f"{'expert':{width}}  coverage  purity  rule")
        for rule in self.rules:
            purity = "-" if np.isnan(rule.purity) else f"{rule.purity:.0%}"
            first, *others = wrap(rule.text, WIDTH, **WHOLE_WORDS)
            name = rule.name or rule.expert
            lines.append(f"{name:>{width}} {rule.coverage:9.1%} {purity:>7}  {first}")
            lines += [" " * (20 + width) + other for other in others]
        without = sorted(set(range(len(self.shares))) - {rule.expert for rule in self.rules})
        if without and self.shares[without].sum() > 0:
            titles = ", ".join(map(self._title, without))
            lines.append(
                f"No rule for {titles}, chosen for {self.shares[without].sum():.1%} of samples."
            )
        if not self.is_usable:
            lines += [
                "",
                f"Below {USABLE:.0%}, do not use the rules, but try",
                f"  - deeper rules, max_depth={self.max_depth + 2};",
                "  - a gate that reads few columns: MoEClassifier(gate_features=...), or a sparse "
                "gate,",
                "    regularization='sparse_gate', which experts='linear' has by default;",
                "  - fewer experts.",
            ]
        return "\n".join(lines)

    def to_frame(self) -> pd.DataFrame:
        """Return the rules as a data frame.

        Returns
        -------
        pandas.DataFrame
            One row for each rule, with the columns "rule", "expert", "coverage" and "purity", and
            "name" if the experts have names.
        """
        pandas = check_pandas_support("GateRules.to_frame")
        columns = ["rule", "expert", "coverage", "purity"]
        columns += ["name"] * (self.expert_names is not None)
        wanted = ["text" if each == "rule" else each for each in columns]
        rows = [[getattr(rule, each) for each in wanted] for rule in self.rules]
        return pandas.DataFrame(rows, columns=columns)

    def to_sql(self) -> str:
        """Return the rules as an expression of SQL, which gives the expert: its name or number.

        Returns
        -------
        str
            ``CASE WHEN ... THEN ... ELSE ... END`` with quoted names of columns. It chooses the
            same expert as :meth:`predict`; NULL is a missing value.
        """
        *rules, last = leaves(self.tree)
        lines = [
            f"  WHEN {' AND '.join(each.sql() for each in rule.conditions)} THEN {rule.sql()}"
            for rule in rules
        ]
        if not lines:
            return last.sql()
        return "\n".join(["CASE", *lines, f"  ELSE {last.sql()}", "END"])

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """Return the expert that the rules choose for each sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples, as :func:`gate_rules` had them. A data frame needs only the columns that the
            rules read.

        Returns
        -------
        ndarray of shape (n_samples,)
            Numbers of experts.

        Raises
        ------
        ValueError
            If ``X`` does not have the columns.
        """
        X = as_table(X)
        used = {each.column for rule in self.rules for each in rule.conditions}
        columns = {name: holds for name, holds in self.columns.items() if name in used}
        read = read_columns(X, columns, list(self.columns))
        choice = np.empty(len(X), dtype=np.int64)
        for rule in self.rules:
            choice[_meets(rule.conditions, read, len(X))] = rule.expert
        return choice


def _meets(conditions, columns, n_samples):
    meets = np.ones(n_samples, dtype=bool)
    for condition in conditions:
        meets &= condition.holds(columns[condition.column])
    return meets


@validate_params(
    {
        "max_depth": [Interval(Integral, 1, None, closed="left")],
        "test_size": [Interval(Real, 0, 1, closed="neither")],
        "random_state": ["random_state"],
    },
    prefer_skip_nested_validation=True,
)
def gate_rules(
    estimator: BaseEstimator,
    X: ArrayLike,
    *,
    max_depth: int = 3,
    sample_weight: ArrayLike | None = None,
    test_size: float = 0.25,
    X_test: ArrayLike | None = None,
    sample_weight_test: ArrayLike | None = None,
    random_state: int | np.random.RandomState | None = None,
) -> GateRules:
    """Say in words which samples each expert owns, as far as a few rules can.

    A small decision tree learns which expert the gate chooses, by questions about the columns of
    the table as they were passed: numbers in their own units, categories, and what is missing. Its
    rules read like "income > 40,000 and region is north -> expert 2". How far they hold is
    measured on samples that the tree has not seen:

    - the *fidelity* is the share of the samples for which the rules choose the expert of the gate;
    - the *coverage* of a rule is the share of the samples that meet its conditions;
    - its *purity* is the share of these for which the gate chooses the expert of the rule.

    Thresholds have as few digits as move at most 1 % of the samples to the other side. A
    question that raises the fidelity on the training samples by less than 1 % is left out.

    Parameters
    ----------
    estimator : MoEClassifier, Pipeline or search
        A fitted ``MoEClassifier``, a pipeline that ends in one, or a search with such a
        ``best_estimator_``. The rules of a pipeline are about the columns of ``X``, before its
        first step.
    X : array-like of shape (n_samples, n_features)
        A table, such as the training samples. Labels are not needed, so there may be more.
    max_depth : int, default=3
        Largest number of questions that lead to a rule.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples, at least 0; a weight of zero removes the sample.
    test_size : float, default=0.25
        Part of the samples of ``X`` that is set aside to measure the rules, if there is no
        ``X_test``.
    X_test : array-like of shape (n_test, n_features), default=None
        Samples to measure the rules on.
    sample_weight_test : array-like of shape (n_test,), default=None
        Weights of the samples in ``X_test``.
    random_state : int, RandomState instance or None, default=None
        Chooses the part that is set aside, and decides between questions that are equally good.

    Returns
    -------
    GateRules
        The rules, how far they hold, and a short name of each expert; it prints a table. It also
        predicts, and gives the rules as a data frame and as SQL.

    Raises
    ------
    ValueError
        If ``X`` does not have the columns of the fit, holds images or too few samples, or if a
        parameter is not valid.

    See Also
    --------
    GateRulesDisplay : The same as a picture.
    ExpertSamplesDisplay : For images.
    ExpertRegionsDisplay : Which expert owns which region of two columns.

    Notes
    -----
    The rules only read columns that the gate reads, where this is known: if the estimator is no
    pipeline, and the gate reads the samples and not the hidden vectors of the experts. They
    describe the gate, and not the data: whether another fit finds the same experts,
    :func:`decomposition_stability` says.

    A category that the tree has not seen answers each question "is ... ?" with no.

    References
    ----------
    M. Craven, J. Shavlik, Extracting Tree-Structured Representations of Trained Networks, Advances
    in Neural Information Processing Systems 8, 1995 (fidelity).

    L. Breiman, J. H. Friedman, R. A. Olshen, C. J. Stone, Classification and Regression Trees,
    1984.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> from sklearn_moe import MoEClassifier, gate_rules
    >>> rng = np.random.default_rng(0)
    >>> X = pd.DataFrame({"age": rng.integers(20, 80, 600), "dose": rng.normal(size=600)})
    >>> y = np.where(X["age"] > 50, X["dose"] > 0, X["dose"] < 0)
    >>> clf = MoEClassifier(2, experts="linear", gate_features=["age"],
    ...                     expert_features=["dose"], random_state=0).fit(X, y)
    >>> rules = gate_rules(clf, X, random_state=0)
    >>> sorted(rules.names)
    ['age <= 50', 'age > 50']
    """
    X = as_eager(X)
    model, samples = final_model(estimator, X)
    check_is_fitted(model)
    if model.input_shape is not None or len(model.net_.own_shape) > 1:
        raise ValueError(
            "gate_rules reads the columns of a table, and the mixture reads images. See the "
            "experts' images with ExpertSamplesDisplay.from_estimator(estimator, X)."
        )
    if X_test is None and sample_weight_test is not None:
        raise ValueError("sample_weight_test is for X_test, which is None.")
    random_state = check_random_state(random_state)
    choice = model.apply(samples)  # also checks the columns
    weight = scaled(check_weight(sample_weight, choice, "sample_weight"))
    table = as_table(X)
    columns = _columns(table, model, is_raw=samples is X)
    used = {name: columns[name] for name in _of_gate(table, model, columns, is_raw=samples is X)}
    known = _Samples(read_columns(table, used, list(columns)), choice, weight)
    rows = weighty(weight)
    if X_test is not None:
        X_test = as_eager(X_test)
        choice = model.apply(final_model(estimator, X_test)[1])
        weight = scaled(check_weight(sample_weight_test, choice, "sample_weight_test"))
        read = read_columns(as_table(X_test), used, list(columns))
        new = _Samples(read, choice, weight).take(weighty(weight))
    elif len(rows) - ceil(test_size * len(rows)) < 2:
        raise ValueError(
            f"X has {len(rows)} samples with a positive weight, which are too few to set "
            f"test_size={test_size} of them aside. Pass more samples, or X_test."
        )
    else:
        rows, others = split(rows, choice[rows], fraction=test_size, random_state=random_state)
        new = known.take(others)
    tree = grow_tree(*known.take(rows), max_depth=max_depth, random_state=random_state)
    names = model.expert_names_
    tree, shares = _measured(tree, new, len(model.expert_costs_), names)
    wrong = [rule.coverage * (1 - rule.purity) for rule in leaves(tree)]
    return GateRules(
        tree=tree,
        fidelity=float(1 - np.nansum(wrong)),
        shares=shares,
        n_new=len(new.choice),
        max_depth=max_depth,
        columns=columns,
        expert_names=names,
    )


class _Samples(NamedTuple):
    """Columns by name, the chosen experts, and weights."""

    columns: dict[str, Categories | NDArray[np.float64]]
    choice: NDArray[np.int64]
    weight: NDArray[np.float64]

    def take(self, rows):
        columns = {
            name: Categories(values.codes[rows], values.levels)
            if isinstance(values, Categories)
            else values[rows]
            for name, values in self.columns.items()
        }
        return _Samples(columns, self.choice[rows], self.weight[rows])


def _measured(tree, new, n_experts, names):
    """Return a tree of rules measured on new samples, and the share of each expert in them."""
    share = new.weight / new.weight.sum()
    chosen = np.eye(n_experts)[new.choice] * share[:, np.newaxis]

    def rule_of(expert, conditions):
        found = chosen[_meets(conditions, new.columns, len(chosen))].sum(axis=0)
        purity = found[expert] / found.sum() if found.any() else np.nan
        name = None if names is None else names[expert]
        return Rule(conditions, expert, float(found.sum()), float(purity), name)

    return with_leaves(tree, rule_of), chosen.sum(axis=0)


def _columns(table, model, *, is_raw):
    """Return for the name of each column whether it holds categories."""
    names = column_names(table)
    if not is_raw:
        holds = categorical_columns(table, "from_dtype")
    elif model.reader_.table is None:
        holds = np.zeros(len(names), dtype=bool)
    else:
        holds = model.reader_.is_categorical
    return dict(zip(names, holds.tolist(), strict=True))


def _of_gate(table, model, names, *, is_raw):
    """Return the names of the columns that the gate reads, or may read."""
    names, frame = list(names), as_frame(table)
    if is_raw:
        columns = model.gate_columns_
        if columns is None or model.module_.gate.needs_hidden:
            return names
        return [name if isinstance(name, str) else names[name] for name in columns]
    if frame is None:
        return names
    # A pipeline may leave out times, or make numbers of them.
    kinds = frame.schema.values()
    return [name for name, kind in zip(names, kinds, strict=True) if not kind.is_temporal()]
