"""A test of one number of experts against a larger one."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from numbers import Integral

import numpy as np
from joblib import delayed
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import _is_fitted, indexable

from sklearn_moe.containers import as_eager
from sklearn_moe.decomposition import check_labels, final_model
from sklearn_moe.groups import MANY_DRAWS, log_likelihood_of_groups, read_groups
from sklearn_moe.model_selection.n_experts import LIKELIHOOD, check_mixture
from sklearn_moe.model_selection.tune import fit_params
from sklearn_moe.parallel import run_all
from sklearn_moe.parameters import has_linear_experts


@dataclass(frozen=True, eq=False, repr=False)
class LikelihoodRatioTest:
    """The result of :func:`likelihood_ratio_test`; it prints a summary.

    Attributes
    ----------
    statistic : float
        Twice the difference of the log-likelihoods, in nats.
    p_value : float
        How often a sample of the smaller mixture has a statistic at least as large.
    bootstrap_statistics : ndarray of shape (n_bootstrap,)
        The statistics of the simulated samples.
    n_experts : tuple of int
        The numbers of experts of the two mixtures.
    n_redrawn : int
        How many simulated samples were drawn again, as they lacked a class.
    """

    statistic: float
    p_value: float
    bootstrap_statistics: NDArray[np.float64]
    n_experts: tuple[int, int]
    n_redrawn: int = 0

    def __repr__(self) -> str:
        smaller, larger = self.n_experts
        simulated = self.bootstrap_statistics
        lines = [
            f"Likelihood-ratio test of {smaller} against {larger} experts",
            f"{'statistic':30}{self.statistic:10.2f}",
            f"{f'in {len(simulated)} simulated samples':30}{np.median(simulated):10.2f} (median), "
            f"{simulated.max():.2f} (largest)",
            f"{'p-value':30}{self.p_value:10.3f}",
        ]
        if self.n_redrawn:
            lines.append(f"{'drawn again, without a class':30}{self.n_redrawn:10}")
        return "\n".join(lines)


def likelihood_ratio_test(
    smaller: BaseEstimator,
    larger: BaseEstimator,
    X: ArrayLike,
    y: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    n_bootstrap: int = 99,
    n_jobs: int | None = None,
    random_state: int | np.random.RandomState | None = None,
    verbose: int = 0,
) -> LikelihoodRatioTest:
    r"""Test whether the data need more experts than a mixture has, by a parametric bootstrap.

    The statistic compares the log-likelihoods of the two mixtures,

    .. math:: t = 2 (\log L_\mathrm{larger} - \log L_\mathrm{smaller}).

    It has no chi-squared distribution, because the smaller mixture is the larger one with an
    expert that is never used. Instead, labels are simulated from the smaller mixture at the given
    ``X``, both mixtures are fitted to them, and the statistics :math:`t_b` of :math:`B` such
    samples are compared with :math:`t`:

    .. math:: p = \frac{1 + \#\{b : t_b \ge t\}}{1 + B}

    A small p-value says that the smaller mixture would hardly ever make labels for which the
    larger one is so much better.

    Parameters
    ----------
    smaller, larger : MoEClassifier or Pipeline
        Two mixtures with linear experts, or pipelines that end in one, that differ in their
        ``n_experts`` only. One that is not fitted is cloned and fitted; one that is must have been
        fitted to the same samples, without weights.
    X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        Samples.
    y : array-like of shape (n_samples,)
        Class labels.
    groups : array-like of shape (n_samples,), default=None
        Groups for every ``fit``: all samples of a group get one expert, in the fits and in the
        simulated samples. A mixture that is fitted must have been fitted with the same groups.
    n_bootstrap : int, default=99
        Number of simulated samples. Each is fitted twice. The smallest possible p-value is
        1 / (1 + ``n_bootstrap``).
    n_jobs : int, default=None
        Number of simulated samples that are fitted at the same time, on the active backend of
        joblib.
    random_state : int, RandomState instance or None, default=None
        Seed of the simulated labels. Fits have the seeds of the mixtures.
    verbose : int, default=0
        1 shows a progress bar of the simulated samples.

    Returns
    -------
    LikelihoodRatioTest
        The statistic, the p-value and the simulated statistics.

    Raises
    ------
    ValueError
        If the second mixture does not have more experts, a mixture has no ``log_likelihood_``,
        was fitted to other samples or groups or with weights, a class is so rare that simulated
        samples lack it again and again, or a parameter or the data are not valid.
    TypeError
        If an estimator does not end in a mixture.

    See Also
    --------
    choose_n_experts : Compares many numbers of experts by criteria.

    Notes
    -----
    Simulated samples that lack a class are drawn again. Their fits are those of the mixtures, with
    penalties and restarts. So a statistic may be slightly negative, and a fit that misses the
    optimum adds noise; more restarts (``n_init``) lower it. Warnings of these fits are not shown.

    References
    ----------
    G. J. McLachlan, On Bootstrapping the Likelihood Ratio Test Statistic for the Number of
    Components in a Normal Mixture, Applied Statistics 36, 1987.

    B. Grün, F. Leisch, FlexMix Version 2: Finite Mixtures with Concomitant Variables and Varying
    and Constant Parameters, Journal of Statistical Software 28, 2008 (``LR_test``).

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sklearn_moe import MoEClassifier, likelihood_ratio_test
    >>> X, y = make_classification(n_features=4, random_state=0)
    >>> one, two = (MoEClassifier(n, experts="linear", max_iter=5, n_init=1, random_state=0)
    ...             for n in (1, 2))
    >>> test = likelihood_ratio_test(one.fit(X, y), two, X, y, n_bootstrap=3, random_state=0)
    >>> test.bootstrap_statistics.shape, test.p_value >= 1 / 4
    ((3,), True)
    """
    if not isinstance(n_bootstrap, Integral) or isinstance(n_bootstrap, bool) or n_bootstrap < 1:
        raise ValueError(f"n_bootstrap must be an integer of at least 1, got {n_bootstrap!r}.")
    estimators = {"smaller": smaller, "larger": larger}
    for name, estimator in estimators.items():
        check_mixture(name, estimator)
        if not has_linear_experts(final_model(estimator)[0]):
            raise _no_likelihood(name)
    n_experts = tuple(int(final_model(each)[0].n_experts) for each in estimators.values())
    if n_experts[1] <= n_experts[0]:
        raise ValueError(
            f"larger must have more experts than smaller, got {n_experts[1]} and {n_experts[0]}."
        )
    X, y = indexable(as_eager(X), check_labels(as_eager(y)))
    group = None if groups is None else read_groups(groups, X)[0]
    fitted = {name: _fitted(name, each, X, y, group) for name, each in estimators.items()}
    simulation = Simulation(fitted["smaller"], X, check_random_state(random_state), group)
    tasks = (
        delayed(_statistic)(clone(smaller), clone(larger), X, simulation.draw(), group)
        for _ in range(n_bootstrap)
    )
    total = n_bootstrap if verbose else None
    simulated = np.array([*run_all(tasks, n_jobs, total=total, name="likelihood_ratio_test")])
    statistic = _ratio(*fitted.values())
    p_value = float((1 + np.sum(simulated >= statistic)) / (1 + n_bootstrap))
    return LikelihoodRatioTest(statistic, p_value, simulated, n_experts, simulation.n_redrawn)


class Simulation:
    """Labels that are drawn from a fitted mixture at given samples; a group gets one expert."""

    def __init__(self, estimator, X, random_state, group=None):
        self.classes = estimator.classes_
        self.group = group
        self.random_state = random_state
        self.n_redrawn = 0
        if group is None:
            self.proba = estimator.predict_proba(X)
        else:
            model, samples = final_model(estimator, X)
            self.gate_proba = model.gate_proba(samples)[np.unique(group, return_index=True)[1]]
            self.expert_proba = model.expert_proba(samples)

    def draw(self) -> NDArray:
        """Return labels of all classes."""
        for _ in range(MANY_DRAWS):
            drawn = self._draw(self._proba())
            present = np.unique(drawn)
            if len(present) == len(self.classes):
                return self.classes[drawn]
            self.n_redrawn += 1
        missing = np.delete(self.classes, present).tolist()
        raise ValueError(
            f"{MANY_DRAWS} samples of the smaller mixture, one after the other, lacked a class, "
            f"the last one {missing}. Such classes are too rare for the test: leave them out."
        )

    def _proba(self):
        """Return the probabilities of the classes, with groups those of their drawn experts."""
        if self.group is None:
            return self.proba
        expert = self._draw(self.gate_proba)[self.group]
        return self.expert_proba[np.arange(len(expert)), expert]

    def _draw(self, proba):
        # Without the last column, rounding cannot leave a row without a choice.
        steps = np.asarray(proba, dtype=np.float64).cumsum(axis=1)[:, :-1]
        return (self.random_state.random_sample((len(steps), 1)) > steps).sum(axis=1)


def _fitted(name, estimator, X, y, group):
    """Return an estimator that is fitted to these samples, and check its likelihood."""
    if not _is_fitted(estimator):
        estimator = clone(estimator).fit(X, y, **fit_params(estimator, groups=group))
    log_likelihood = final_model(estimator)[0].log_likelihood_
    if log_likelihood is None:
        raise _no_likelihood(name)
    if not np.array_equal(estimator.classes_, np.unique(y)):
        raise ValueError(
            f"{name} was fitted to the classes {estimator.classes_.tolist()}, but y has "
            f"{np.unique(y).tolist()}. Fit it to the same samples."
        )
    # Without groups, each sample is one.
    units = np.arange(len(y)) if group is None else group
    here = log_likelihood_of_groups(estimator, X, y, units)
    if not np.isclose(here, log_likelihood, rtol=1e-4, atol=1e-2):
        raise ValueError(
            f"{name} has a log-likelihood of {log_likelihood:.2f}, but that of these samples is "
            f"{here:.2f}. It must be fitted to these samples and groups, without sample_weight "
            "and class_weight."
        )
    return estimator


def _statistic(smaller, larger, X, y, group):
    """Fit both mixtures, and return twice the difference of their log-likelihoods."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _ratio(
            *(each.fit(X, y, **fit_params(each, groups=group)) for each in (smaller, larger))
        )


def _ratio(smaller, larger):
    log_likelihoods = [final_model(each)[0].log_likelihood_ for each in (smaller, larger)]
    return 2 * (log_likelihoods[1] - log_likelihoods[0])


def _no_likelihood(name):
    return ValueError(f"{name} has no log_likelihood_, which needs {LIKELIHOOD}.")
