"""Stability of a decomposition: does the mixture find the same parts when it is fitted again?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from joblib import delayed
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import adjusted_rand_score
from sklearn.utils import _safe_indexing, check_random_state
from sklearn.utils._param_validation import Interval, StrOptions, validate_params
from sklearn.utils.validation import _check_method_params, check_is_fitted, indexable

from sklearn_moe.decomposition import check_labels, final_model, signed, with_last
from sklearn_moe.grouping import match_experts
from sklearn_moe.groups import draw_again, posterior, read_groups
from sklearn_moe.measures import (
    expert_class_information,
    mean_of_known,
    sample_entropy,
    specialization,
    usage_entropy,
)
from sklearn_moe.parallel import run_all
from sklearn_moe.report import MOST_EXPERTS

# From this agreement on, two fits, or two experts, count as the same.
SAME = 0.8

# Below this adjusted Rand index, nothing comes back that is worth an interpretation.
UNRELATED = 0.4

# The part of the refits that an interval of the usage covers. It is only given if at least as many
# find the expert again: a matching that is usually right makes intervals that are silently wrong.
COVERED = 0.9

HOW = {"seeds": "refits with new seeds", "bootstrap": "bootstrap refits"}


@dataclass(frozen=True, eq=False, repr=False)
class DecompositionStability:
    """How far a decomposition comes back when the mixture is fitted again; it prints a table.

    The experts of each refit have the numbers of the experts of the reference with which they
    are matched.

    Attributes
    ----------
    estimator : MoEClassifier or Pipeline
        The reference: the fitted mixture, or the pipeline that ends in it.
    resample : {"seeds", "bootstrap"}
        How the refits differ from the reference.
    choice : ndarray of shape (1 + n_refits, n_samples)
        The chosen expert of each sample: first by the reference, then by each refit, matched.
    usage : ndarray of shape (1 + n_refits, n_experts)
        Mean gate probability of each expert: first of the reference, then of each refit, matched.
    measures : dict of ndarray of shape (1 + n_refits,)
        ``sample_entropy``, ``usage_entropy``, ``expert_class_information`` and ``specialization``
        in bits, ``accuracy``, and ``log_loss`` in nats: first of the reference.
    adjusted_rand_index : ndarray of shape (1 + n_refits, 1 + n_refits)
        Agreement of the chosen experts of each two fits, the reference first: 1 for the same
        parts, about 0 for unrelated ones. It needs no matching.
    expert_names : list of str or None
        Names of the experts, if ``experts`` was a list. They match by name then.
    """

    estimator: BaseEstimator
    resample: str
    choice: NDArray[np.integer]
    usage: NDArray[np.float64]
    measures: dict[str, NDArray[np.float64]]
    adjusted_rand_index: NDArray[np.float64]
    expert_names: list[str] | None = None

    @property
    def n_refits(self) -> int:
        """Number of refits."""
        return len(self.choice) - 1

    @property
    def agreement(self) -> NDArray[np.float64]:
        """Share of the samples with the same matched expert, of shape (n_refits,)."""
        return self._same.mean(axis=1)

    @property
    def always(self) -> NDArray[np.bool_]:
        """Whether all refits choose the same matched expert, of shape (n_samples,)."""
        return self._same.all(axis=0)

    @property
    def pairwise_adjusted_rand_index(self) -> float:
        """Mean adjusted Rand index of each two refits; nan for a single refit."""
        return mean_of_known(self._pairs)

    @cached_property
    def expert_stays(self) -> NDArray[np.float64]:
        """Share of each expert's samples that stay with it, of shape (n_refits, n_experts).

        It is nan for an expert that the reference never chooses.
        """
        return np.array([self._of_own(same) for same in self._same])

    @cached_property
    def expert_always(self) -> NDArray[np.float64]:
        """Share of each expert's samples that stay in all refits, of shape (n_experts,)."""
        return self._of_own(self.always)

    @cached_property
    def expert_agreement(self) -> NDArray[np.float64]:
        """Agreement of each expert with its match, of shape (n_refits, n_experts).

        Twice the number of samples that both have, by the sum of their numbers of samples (the
        Dice coefficient). It is also low for a match that has got the samples of other experts.
        """
        n_experts = self.usage.shape[1]
        common = np.array([self._counts(self.choice[0][same]) for same in self._same])
        sizes = np.array([self._counts(choice) for choice in self.choice])
        total = sizes[0] + sizes[1:]
        agreement = np.full((self.n_refits, n_experts), np.nan)
        return np.divide(2 * common, total, out=agreement, where=total > 0)

    @cached_property
    def usage_interval(self) -> NDArray[np.float64]:
        """Interval of each expert's usage, of shape (n_experts, 2).

        The 5 % and the 95 % quantile of the refits. It is nan if fewer than 0.9 of the refits find
        an expert without a name again, that is, have an :attr:`expert_agreement` of at least 0.8.
        """
        tail = (1 - COVERED) / 2
        interval = np.quantile(self.usage[1:], [tail, 1 - tail], axis=0).T
        if self.expert_names is None:
            interval[(self.expert_agreement >= SAME).mean(axis=0) < COVERED] = np.nan
        return interval

    @property
    def verdict(self) -> str:
        """ "comes back", "comes back in part", "does not come back" or "divides nothing"."""
        if len(np.unique(self.choice[0])) == 1:
            return "divides nothing"
        index = self.adjusted_rand_index[0, 1:].mean()
        if index < UNRELATED:
            return "does not come back"
        return "comes back" if min(index, self.agreement.mean()) >= SAME else "comes back in part"

    def __repr__(self) -> str:
        n_experts = self.usage.shape[1]
        lines = [
            self.sentence,
            "",
            *self._table_of_agreement(),
            "",
            *self._table_of_measures(),
            "",
            *self._table_of_experts(),
        ]
        if n_experts > MOST_EXPERTS:
            lines.append(f"{n_experts - MOST_EXPERTS} more experts")
        if np.isnan(self.usage_interval).any():
            lines += [
                "",
                f"There is no interval where fewer than {COVERED:.0%} of the refits find the "
                "expert again (agreement",
                f"of at least {SAME:.0%}), because its match may be another expert.",
            ]
        return "\n".join(lines)

    @property
    def sentence(self) -> str:
        """The verdict in one sentence, as :func:`decomposition_report` prints it."""
        how = HOW[self.resample]
        refits = f"{self.n_refits} {how if self.n_refits > 1 else how.replace('refits', 'refit')}"
        if self.verdict == "divides nothing":
            return f"One expert has all samples, and {refits} can find no parts again."
        index = signed(self.adjusted_rand_index[0, 1:].mean(), 2)
        return (
            f"The decomposition {self.verdict}: {self.agreement.mean():.0%} of samples stay in "
            f"{refits} (ARI {index:.2f})."
        )

    def _table_of_agreement(self):
        yield f"{'agreement':34}{'mean':>10}{'lowest':>10}{'highest':>10}"
        rows = {
            "samples that stay": self.agreement,
            "adjusted Rand index (ARI)": self.adjusted_rand_index[0, 1:],
        }
        if self.n_refits > 1:
            rows["ARI of two refits"] = self._pairs
        for name, values in rows.items():
            numbers = (signed(each, 3) for each in (values.mean(), values.min(), values.max()))
            yield f"{name:34}" + "".join(f"{each:10.3f}" for each in numbers)

    def _table_of_measures(self):
        yield f"{'':34}{'reference':>10}{'mean':>10}{'std':>10}"
        for name, values in self.measures.items():
            deviation = np.std(values[1:], ddof=1) if self.n_refits > 1 else np.nan
            first, mean = signed(values[0], 3), signed(values[1:].mean(), 3)
            yield f"{_NAMES[name]:34}{first:10.3f}{mean:10.3f}{deviation:10.3f}"

    def _table_of_experts(self):
        names, agreement = self.expert_names or range(self.usage.shape[1]), self.expert_agreement
        width = max(6, *(len(str(name)) for name in names))
        head = "usage  in the refits (90% interval)    stay  always  found again"
        yield f"{'expert':{width}}   {head}"
        for expert in np.argsort(-self.usage[0], kind="stable")[:MOST_EXPERTS]:
            own = self.usage[:, expert]
            low, high = self.usage_interval[expert]
            in_refits = f"{own[1:].mean():.1%} ({low:.1%} to {high:.1%})"
            if math.isnan(low):
                in_refits = "no interval"
            stay = _percent(mean_of_known(self.expert_stays[:, expert]))
            found = np.count_nonzero(agreement[:, expert] >= SAME)
            yield (
                f"{names[expert]:>{width}} {own[0]:7.1%}  {in_refits:28}{stay:>8}"
                f"{_percent(self.expert_always[expert]):>8}  {found} of {self.n_refits}"
            )

    @property
    def _pairs(self):
        return self.adjusted_rand_index[1:, 1:][np.triu_indices(self.n_refits, 1)]

    @cached_property
    def _same(self):
        return self.choice[1:] == self.choice[0]

    def _counts(self, choice):
        return np.bincount(choice, minlength=self.usage.shape[1])

    def _of_own(self, rows):
        """Return the share of rows among the samples of each expert of the reference."""
        own, kept = self._counts(self.choice[0]), self._counts(self.choice[0][rows])
        return np.divide(kept, own, out=np.full(len(own), np.nan), where=own > 0)


def _percent(value):
    return "-" if math.isnan(value) else f"{value:.0%}"


_NAMES = {
    "sample_entropy": "H_s     sample entropy",
    "usage_entropy": "H_u     usage entropy",
    "expert_class_information": "I(E;Y)  expert-class information",
    "specialization": "S       specialization",
    "accuracy": "accuracy",
    "log_loss": "log loss",
}


@validate_params(
    {
        "n_refits": [Interval(Integral, 1, None, closed="left")],
        "resample": [StrOptions({"seeds", "bootstrap"})],
        "params": [dict, None],
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    },
    prefer_skip_nested_validation=False,
)
def decomposition_stability(
    estimator: BaseEstimator,
    X: ArrayLike,
    y: ArrayLike,
    *,
    n_refits: int = 10,
    resample: str = "seeds",
    params: dict[str, Any] | None = None,
    n_jobs: int | None = None,
    random_state: int | np.random.RandomState | None = None,
    verbose: int = 0,
) -> DecompositionStability:
    r"""Fit a mixture again and again, and measure how far its decomposition comes back.

    What an expert owns is only worth an interpretation if another fit finds it, too. The numbers
    of the experts mean nothing. So the experts :math:`f` of each refit are matched with the
    experts :math:`e` of the reference, by the permutation :math:`\pi` with the largest sum of mean
    products of their responsibilities on the same samples:

    .. math:: \max_\pi \sum_e \frac{1}{N} \sum_n r_{ne}\, r'_{n \pi(e)},
              \qquad r_{ne} \propto p_{ne}\, o_{ne}(y_n)

    with the gate's probabilities :math:`p_{ne}` and the probabilities :math:`o_{ne}(y_n)` that the
    experts give the class. Experts from a list match by their names. Then the chosen experts of
    the samples are compared.

    The verdict is

    - *comes back* if, in the mean over the refits, at least 0.8 of the samples keep their expert
      and the adjusted Rand index with the reference is at least 0.8;
    - *does not come back* if this index is below 0.4;
    - *comes back in part* otherwise;
    - *divides nothing* if one expert has all samples in the reference.

    Parameters
    ----------
    estimator : MoEClassifier, Pipeline, search or NExpertsChoice
        A ``MoEClassifier``, a pipeline that ends in one, a search for one, or the result of
        :func:`choose_n_experts`. If it is fitted, it is the reference, and not changed; otherwise
        a clone is fitted first. Of a search, the best estimator is fitted again, without another
        search.
    X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        The training samples. All fits are also measured on them.
    y : array-like of shape (n_samples,)
        Their labels.
    n_refits : int, default=10
        Number of refits.
    resample : {"seeds", "bootstrap"}, default="seeds"
        How a refit differs from the reference: "seeds" fits the same samples with another
        ``random_state``, which shows what depends on chance in the training. "bootstrap" also
        draws the samples anew, with replacement within each class, so that no class is lost. This
        shows what depends on the samples as well.
    params : dict, default=None
        Parameters for every ``fit``, such as ``{"sample_weight": weights}``; those with one value
        per sample are drawn with the samples. With ``{"groups": groups}``, "bootstrap" draws whole
        groups, again if a class is lost, and the copies of a group count as different groups. The
        responsibilities are then those of groups. Usage and measures remain those of samples.
    n_jobs : int, default=None
        Number of refits that run in parallel, on the active backend of joblib.
    random_state : int, RandomState instance or None, default=None
        Seed of the seeds and the bootstrap samples.
    verbose : int, default=0
        1 shows a progress bar.

    Returns
    -------
    DecompositionStability
        Agreement of the refits with the reference, usage of the experts and measures with their
        spread, and which samples always stay. It prints a table.

    Raises
    ------
    ValueError
        If a parameter is not valid, ``y`` does not have the classes of the fitted estimator, or
        drawn groups lack a class again and again.
    TypeError
        If the estimator has no mixture.

    See Also
    --------
    DecompositionStabilityDisplay : The same as a picture.
    decomposition_report : Has a line about it, if it gets the result.

    Notes
    -----
    A pruned mixture, or a student of :func:`distill`, is fitted again as an ordinary mixture with
    the same parameters. With ``mixing="logit"``, the responsibilities are no probabilities, and
    only serve to match.

    The usage is the mean gate probability. With "seeds", its interval says how much it depends on
    the seed. With "bootstrap", it is a bootstrap confidence interval, with the numbers of samples
    of the classes held fixed.

    References
    ----------
    C. Hennig, Cluster-wise assessment of cluster stability, Computational Statistics and Data
    Analysis 52, 2007.

    L. Hubert, P. Arabie, Comparing partitions, Journal of Classification 2, 1985 (adjusted Rand
    index).

    M. Stephens, Dealing with label switching in mixture models, Journal of the Royal Statistical
    Society B 62, 2000.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_moe import MoEClassifier, decomposition_stability
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = MoEClassifier(3, gate="kmeans", max_iter=5, random_state=0).fit(X, y)
    >>> stability = decomposition_stability(clf, X, y, n_refits=2, random_state=0)
    >>> stability.adjusted_rand_index.shape, stability.always.shape
    ((3, 3), (150,))
    >>> print(stability)  # doctest: +ELLIPSIS
    The decomposition comes back...
    """
    X, y = indexable(X, y)
    y = check_labels(y)
    params = {} if params is None else params
    reference = _fitted(estimator, X, y, params)
    model, _ = final_model(reference)
    if not np.array_equal(classes := np.unique(y), model.classes_):
        raise ValueError(
            f"y has the classes {classes.tolist()}, but the estimator was fitted with "
            f"{model.classes_.tolist()}. Pass the training samples and their labels."
        )
    reference = with_last(reference, model)  # without searches
    group = next(
        (read_groups(value, X)[0] for name, value in params.items() if _is_groups(name)), None
    )
    first = _measure(reference, X, y, group)
    template = clone(reference)
    draws = check_random_state(random_state).randint(np.iinfo(np.int32).max, size=n_refits)
    tasks = (
        delayed(_refit)(template, X, y, params, group, resample, seed, first.responsibilities)
        for seed in draws.tolist()
    )
    total = n_refits if verbose else None
    refits = run_all(tasks, n_jobs, total=total, name="decomposition_stability", unit="refit")
    fits = [first, *refits]
    index = np.eye(len(fits))
    for one, other in combinations(range(len(fits)), 2):
        value = adjusted_rand_score(fits[one].choice, fits[other].choice)
        index[one, other] = index[other, one] = value
    return DecompositionStability(
        estimator=reference,
        resample=resample,
        choice=np.array([fit.choice for fit in fits]),
        usage=np.array([fit.usage for fit in fits]),
        measures={name: np.array([fit.measures[name] for fit in fits]) for name in first.measures},
        adjusted_rand_index=index,
        expert_names=getattr(model, "expert_names_", None),
    )


class _Fit(NamedTuple):
    choice: NDArray[np.integer]
    usage: NDArray[np.float64]
    measures: dict[str, float]
    responsibilities: NDArray[np.float64] | None


def _fitted(estimator, X, y, params):
    estimator = getattr(estimator, "best_estimator_", estimator)
    try:
        check_is_fitted(estimator)
    except NotFittedError:
        return clone(estimator).fit(X, y, **params)
    return estimator


def _is_groups(name):
    return name.rpartition("__")[2] == "groups"


def _refit(template, X, y, params, group, how, seed, responsibilities):
    """Fit a clone of the template, and measure it with the numbers of its experts matched."""
    refit = clone(template)
    names = refit.get_params()
    seeds = [name for name in names if name.rpartition("__")[2] == "random_state"]
    refit.set_params(**dict.fromkeys(seeds, seed))
    if how == "bootstrap":
        rows, copies = draw_again(y, group, seed)
        drawn = _check_method_params(X, params, rows)
        drawn |= {name: copies for name in drawn if _is_groups(name)}
        refit.fit(_safe_indexing(X, rows), y[rows], **drawn)
    else:
        refit.fit(X, y, **params)
    fit = _measure(refit, X, y, group)
    if getattr(final_model(refit)[0], "expert_names_", None) is not None:
        return fit._replace(responsibilities=None)
    order = match_experts(responsibilities, fit.responsibilities)
    return fit._replace(
        choice=np.argsort(order).astype(np.int32)[fit.choice],
        usage=fit.usage[order],
        responsibilities=None,
    )


def _measure(estimator, X, y, group):
    model, samples = final_model(estimator, X)
    gate_proba = np.asarray(model.gate_proba(samples), dtype=np.float64)
    log_likelihood = np.asarray(model.expert_log_likelihood(samples, y), dtype=np.float64)
    log_proba = model.predict_log_proba(samples)
    with np.errstate(divide="ignore"):  # masked experts have no responsibility
        responsibilities = posterior(np.log(gate_proba), log_likelihood, group)
    label = np.searchsorted(model.classes_, y)
    measures = {
        "sample_entropy": sample_entropy(gate_proba),
        "usage_entropy": usage_entropy(gate_proba),
        "expert_class_information": expert_class_information(gate_proba, y),
        "specialization": specialization(gate_proba, log_likelihood),
        "accuracy": float(np.mean(log_proba.argmax(axis=1) == label)),
        "log_loss": -float(log_proba[np.arange(len(y)), label].mean()),
    }
    choice = gate_proba.argmax(axis=1).astype(np.int32)
    return _Fit(choice, gate_proba.mean(axis=0), measures, responsibilities)
