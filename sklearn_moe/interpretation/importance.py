"""Which columns an expert needs for its samples, and what sets these samples apart."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, validate_params
from sklearn.utils.validation import check_consistent_length

from sklearn_moe.decomposition import check_labels, cut, signed, titled
from sklearn_moe.interpretation.columns import Columns, read_columns
from sklearn_moe.interpretation.words import in_words
from sklearn_moe.measures import mean_differences, mean_of_known
from sklearn_moe.mixture import MixtureOfExperts
from sklearn_moe.report import MOST_EXPERTS

if TYPE_CHECKING:
    import pandas as pd

# The printed table has this many columns of each expert.
MOST_COLUMNS = 5


@dataclass(frozen=True, eq=False, repr=False)
class ExpertImportance:
    """Which columns each expert needs, and what sets its samples apart; it prints a table.

    The samples of an expert are those for which the gate chooses it. An expert without samples has
    nan everywhere. So has the importance of all columns for an expert with one sample.

    Attributes
    ----------
    n_samples : ndarray of shape (n_experts,)
        Number of samples of each expert.
    log_likelihood : ndarray of shape (n_experts,)
        Mean log2-probability that each expert gives the classes of its samples, in bits.
    importance : ndarray of shape (n_experts, n_features)
        How many bits of it are lost if the column is permuted among the expert's samples; mean
        over the repetitions.
    importance_std : ndarray of shape (n_experts, n_features)
        Standard deviation over the repetitions.
    difference : ndarray of shape (n_experts, n_features)
        Mean of the column over the expert's samples, less its mean over all others, in standard
        deviations of all samples. For a column of categories this is said of one of them, the
        category with the largest difference. It is 0 if there is nothing to compare.
    category : ndarray of object of shape (n_experts, n_features)
        This category; None for a column of numbers.
    own, others : ndarray of shape (n_experts, n_features)
        Median of the column over the expert's samples and over all others; for a category, its
        share of these samples, 0 to 1.
    feature_names : ndarray of shape (n_features,)
        Names of the columns.
    expert_names : list of str or None
        Names of the experts, if ``experts`` was a list.
    """

    n_samples: NDArray[np.int64]
    log_likelihood: NDArray[np.float64]
    importance: NDArray[np.float64]
    importance_std: NDArray[np.float64]
    difference: NDArray[np.float64]
    category: NDArray
    own: NDArray[np.float64]
    others: NDArray[np.float64]
    feature_names: NDArray
    expert_names: list[str] | None = None

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each expert and column as a pandas DataFrame.

        Returns
        -------
        pandas.DataFrame
            With the columns ``expert``, ``feature``, ``importance``, ``importance_std``,
            ``difference``, ``category``, ``own`` and ``others``, and ``name`` if the experts have
            names.
        """
        import pandas as pd

        n_experts, n_features = self.importance.shape
        names = {}
        if self.expert_names is not None:
            names["name"] = np.repeat(self.expert_names, n_features)
        measures = "importance", "importance_std", "difference", "category", "own", "others"
        return pd.DataFrame(
            {
                "expert": np.repeat(np.arange(n_experts), n_features),
                "feature": np.tile(self.feature_names, n_experts),
                **{name: getattr(self, name).ravel() for name in measures},
                **names,
            }
        )

    def __repr__(self) -> str:
        names = cut(self.feature_names, 24)
        order = np.argsort(-self.n_samples, kind="stable")
        has_others = np.count_nonzero(self.n_samples) > 1
        lines = [
            "needs: bits of log-likelihood that the expert loses on its samples if the column is "
            "permuted",
            "apart: how its samples differ from all others, in standard deviations",
        ]
        for expert in order[:MOST_EXPERTS]:
            number = self.n_samples[expert]
            title = titled(expert, self.expert_names and self.expert_names[expert])
            lines.append("")
            if number == 0:
                lines.append(f"{title}: never chosen")
                continue
            lines.append(
                f"{title}: {number / self.n_samples.sum():.1%} of the samples ({number}), "
                f"log-likelihood {signed(self.log_likelihood[expert], 2):.2f} bits"
            )
            importance = np.nan_to_num(self.importance[expert])
            needs = np.argsort(-importance, kind="stable")[:MOST_COLUMNS]
            apart = np.argsort(-np.abs(self.difference[expert]), kind="stable")[:MOST_COLUMNS]
            lines.append(f"  {'needs':39}  apart" if has_others else "  needs")
            for one, other in zip(needs, apart, strict=True):
                left = f"{names[one]:24} {signed(importance[one], 3):6.3f} "
                left += f"± {self.importance_std[expert, one]:.3f}"
                right = self._apart(expert, other, names) if has_others else ""
                lines.append(f"  {left:39}  {right}".rstrip())
        if len(order) > MOST_EXPERTS:
            lines += ["", f"{len(order) - MOST_EXPERTS} more experts"]
        return "\n".join(lines)

    def _apart(self, expert, column, names):
        """Say how the expert's samples differ from all others."""
        own, others = self.own[expert, column], self.others[expert, column]
        category = self.category[expert, column]
        if category is None and own == others:
            what = f"{names[column]}: another mean, the same median {in_words(own)}"
        elif category is None:
            what = f"{names[column]}: median {in_words(own)}, others {in_words(others)}"
        else:
            what = f"{names[column]} = {cut([category], 16)[0]}: {own:.0%}, others {others:.0%}"
        return f"{signed(self.difference[expert, column], 2):+.2f}  {what}"


@validate_params(
    {
        "n_repeats": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    },
    prefer_skip_nested_validation=True,
)
def expert_importance(
    estimator: BaseEstimator,
    X: ArrayLike,
    y: ArrayLike,
    *,
    n_repeats: int = 5,
    random_state: int | np.random.RandomState | None = None,
) -> ExpertImportance:
    r"""Measure which columns each expert needs for its samples, and what sets these apart.

    For any kind of experts on tables. The importance of a column :math:`j` for an expert :math:`e`
    is what its own samples lose in mean log-likelihood by this expert alone, in bits, if the
    column is permuted among them (:math:`x^{\pi j}`):

    .. math:: I_{ej} = \frac{1}{N_e} \sum_{n: e_n = e}
              \log_2 o_e(y_n \mid x_n) - \log_2 o_e(y_n \mid x_n^{\pi j})

    As it says nothing about how the gate chooses, there is also what sets the expert's samples
    apart: for each column, how its distribution differs from that of all other samples.

    Parameters
    ----------
    estimator : MoEClassifier, Pipeline or search
        A fitted ``MoEClassifier`` for tables, a pipeline that ends in one, or a search with such a
        ``best_estimator_``. In a pipeline, the columns are those that the mixture in its last step
        gets.
    X : array-like of shape (n_samples, n_features)
        Samples, preferably those of a test set.
    y : array-like of shape (n_samples,)
        Labels. Samples with labels that the mixture does not know have no part in the importance.
    n_repeats : int, default=5
        How often each column is permuted.
    random_state : int, RandomState instance or None, default=None
        Seed of the permutations.

    Returns
    -------
    ExpertImportance

    Raises
    ------
    ValueError
        If the mixture reads images, ``X`` does not have the columns of the fit, or no label is
        known.

    See Also
    --------
    ExpertEffectDisplay : How the experts' predictions change with a column.
    explain : Which columns made the decision for a single sample.

    Notes
    -----
    A column can be important for no expert because another column says the same, or because it
    hardly varies among the expert's samples: then it may be what the gate divides by. Importance
    around 0, and below, is chance.

    References
    ----------
    L. Breiman, Random Forests, Machine Learning 45, 2001.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_moe import MoEClassifier, expert_importance
    >>> X, y = load_iris(return_X_y=True, as_frame=True)
    >>> clf = MoEClassifier(3, random_state=0).fit(X, y)
    >>> importance = expert_importance(clf, X, y, random_state=0)
    >>> importance.importance.shape
    (3, 4)
    >>> print(importance)  # doctest: +ELLIPSIS
    needs: bits of log-likelihood that the expert loses ...
    """
    from sklearn.inspection import permutation_importance  # here, as it takes long

    table = read_columns(estimator, X, "expert_importance")
    model, samples = table.model, table.samples
    y = check_labels(y, model.classes_)
    check_consistent_length(samples, y)
    random_state = check_random_state(random_state)
    chosen = table.evaluate(MixtureOfExperts.gate_proba).argmax(axis=1)
    is_known = np.isin(y, model.classes_)
    label = np.searchsorted(model.classes_, np.where(is_known, y, model.classes_[0]))

    n_experts, n_features = len(model.expert_costs_), len(table.names)
    log_likelihood = np.full(n_experts, np.nan)
    importance, importance_std = np.full((2, n_experts, n_features), np.nan)
    for expert in range(n_experts):

        def score(model, samples, label, expert=expert):
            log_proba = table.expert_log_proba(samples, expert)
            return log_proba[np.arange(len(label)), label].mean() / np.log(2)

        rows = np.flatnonzero((chosen == expert) & is_known)
        if len(rows):
            log_likelihood[expert] = score(model, samples[rows], label[rows])
        if len(rows) > 1:
            result = permutation_importance(
                model,
                samples[rows],
                label[rows],
                scoring=score,
                n_repeats=n_repeats,
                random_state=random_state,
            )
            importance[expert] = result.importances_mean[table.places]
            importance_std[expert] = result.importances_std[table.places]
    return ExpertImportance(
        n_samples=np.bincount(chosen, minlength=n_experts),
        log_likelihood=log_likelihood,
        importance=importance,
        importance_std=importance_std,
        feature_names=table.names,
        expert_names=model.expert_names_,
        **_what_sets_apart(table, chosen, n_experts),
    )


def _what_sets_apart(table: Columns, chosen: NDArray, n_experts: int) -> Any:
    """Return for each expert how each column differs between its samples and all others."""
    shape = n_experts, len(table.names)
    difference, own, others = np.full((3, *shape), np.nan)
    category = np.full(shape, None, dtype=object)
    experts = np.unique(chosen)
    for column, place in enumerate(table.places):
        values, names = table.samples[:, [place]].astype(np.float64), table.categories(column)
        if names is not None:  # unknown categories, at -1, are none of these
            values = (values == np.arange(len(names))).astype(np.float64)
        differences, _ = mean_differences(values, chosen, n_experts)
        for expert in experts:
            most = int(np.abs(differences[expert]).argmax())
            difference[expert, column] = differences[expert, most]
            is_own = chosen == expert
            parts = values[is_own, most], values[~is_own, most]
            if names is None:
                own[expert, column], others[expert, column] = (
                    np.median(part[~np.isnan(part)]) if (part == part).any() else np.nan
                    for part in parts
                )
            else:
                category[expert, column] = names[most]
                own[expert, column], others[expert, column] = map(mean_of_known, parts)
    return {"difference": difference, "category": category, "own": own, "others": others}
