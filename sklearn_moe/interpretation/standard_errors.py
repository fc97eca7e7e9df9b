"""Standard errors of coefficients: from the curvature of the likelihood, or by bootstrap."""

from __future__ import annotations

import warnings
from copy import copy
from typing import Any

import numpy as np
from joblib import delayed
from numpy.typing import NDArray
from scipy.stats import norm, rankdata
from sklearn.utils import _safe_indexing

from sklearn_moe.checks import normalize
from sklearn_moe.grouping import match_experts
from sklearn_moe.groups import MANY_DRAWS
from sklearn_moe.interpretation.inference import Maximum
from sklearn_moe.interpretation.linear_fit import LinearFit
from sklearn_moe.mixture import MixtureOfExperts
from sklearn_moe.parallel import run_all
from sklearn_moe.training.polish import can_be_polished, polish_again

# A coefficient is not known if more than this share of its variance comes from directions in which
# the likelihood has hardly any curvature, or if this is so in more than that share of the refits.
MOST_UNKNOWN, MOST_REFITS = 0.1, 0.05

# The spread of fewer refits says little.
FEWEST = 20


class Information:
    """Coefficients at a maximum of the likelihood, with errors from the observed information.

    Parameters
    ----------
    contrasts : ndarray of shape (n_coefficients, n_parameters)
        Contrasts of the parameters; nan for a coefficient that the samples do not determine.
    maximum : Maximum
        The maximum.

    Attributes
    ----------
    values : ndarray of shape (n_coefficients,)
        The coefficients.
    is_known : ndarray of bool of shape (n_coefficients,)
        Whether the likelihood determines the coefficient.
    errors : ndarray of shape (n_coefficients,)
        Standard errors.
    """

    method, where = "information", ""

    def __init__(self, contrasts: NDArray, maximum: Maximum):
        self._contrasts, self._maximum = contrasts, maximum
        self.values = contrasts @ maximum.parameters
        variance = np.sum(contrasts @ maximum.covariance * contrasts, axis=1)
        unknown = np.sum((contrasts @ maximum.unknown) ** 2, axis=1)
        self.is_known = unknown <= MOST_UNKNOWN * variance
        self.errors = np.sqrt(variance)

    def covariance(self, places: list[int]) -> NDArray[np.float64]:
        """Return the covariance of some coefficients, all of which are known."""
        contrasts = self._contrasts[places]
        return contrasts @ self._maximum.covariance @ contrasts.T


class Bootstrap:
    """The same coefficients, with errors from the spread of their values in refits.

    A standard error is half the width of the range that holds the middle 68 % of the refits, which
    is one standard deviation of a normal distribution: that of the refits has long tails. So the
    correlations are those of ranks.

    Parameters
    ----------
    information : Information
        The coefficients of the mixture.
    refits : ndarray of shape (n_bootstrap, n_coefficients)
        Those of the matched experts of each refit; nan where its samples do not determine them.
    agreement : float
        Mean share of the samples that keep their expert.
    """

    method, where = "bootstrap", ", there or in the bootstrap samples"

    def __init__(self, information: Information, refits: NDArray, agreement: float):
        self._refits, self.agreement = refits, agreement
        self.values = information.values
        separated = np.isnan(refits).mean(axis=0)
        self.is_known = information.is_known & (separated <= MOST_REFITS)
        known = np.where(self.is_known, refits, 0.0)
        low, high = np.nanquantile(known, norm.cdf([-1, 1]), axis=0)
        self.errors = np.where(self.is_known, (high - low) / 2, np.nan)

    def covariance(self, places: list[int]) -> NDArray[np.float64]:
        """Return the covariance of some coefficients, all of which are known."""
        refits = self._refits[:, places]
        ranks = rankdata(refits[~np.isnan(refits).any(axis=1)], axis=0)
        errors = self.errors[places]
        return np.corrcoef(ranks, rowvar=False) * np.outer(errors, errors)


def bootstrap(
    fit: LinearFit, X: Any, maximum: Maximum, seeds: NDArray, n_jobs: int | None
) -> Bootstrap:
    """Fit a mixture to samples that are drawn again, each time from its present parameters on.

    Parameters
    ----------
    fit : LinearFit
        The mixture on its training samples.
    X : array-like of shape (n_samples, n_features)
        These samples.
    maximum : Maximum
        The maximum of its likelihood.
    seeds : ndarray of int of shape (n_bootstrap,)
        The seed of each draw.
    n_jobs : int or None
        Number of refits that run in parallel.
    """
    tasks = (delayed(_refit)(fit, X, maximum, seed) for seed in seeds.tolist())
    found = run_all(tasks, n_jobs, total=None, name="expert_summary")
    refits, agreement = zip(*found, strict=True)
    information = Information(fit.contrasts, maximum)
    return Bootstrap(information, np.array(refits), float(np.mean(agreement)))


def _refit(fit, X, maximum, seed):
    """Return the coefficients of a refit, and the share of the samples that keep their expert."""
    counts = _draw(fit, np.random.RandomState(seed))
    log_gate = None if fit.has_linear_gate else _refit_gate(fit, X, counts)
    likelihood = fit.likelihood.resampled(counts, log_gate)
    refit = likelihood.maximise(maximum.parameters)
    order = match_experts(maximum.responsibilities, refit.responsibilities)
    same = refit.responsibilities[:, order].argmax(axis=1)
    same = np.mean(same == maximum.responsibilities.argmax(axis=1))
    renumber = [likelihood.renumbered(each, order) for each in np.eye(likelihood.n_parameters)]
    found = Information(fit.contrasts @ np.array(renumber).T, refit)
    return np.where(found.is_known, found.values, np.nan), same


def _draw(fit, random_state):
    """Return how often each sample or group is drawn, with all classes in the drawn ones."""
    y, *_ = fit.data
    weight = fit.likelihood.unit_weight
    for _ in range(MANY_DRAWS):
        drawn = random_state.choice(
            len(weight), size=max(1, round(weight.sum())), p=weight / weight.sum()
        )
        counts = np.bincount(drawn, minlength=len(weight))
        missing = np.setdiff1d(np.arange(len(fit.classes)), y[counts[fit.likelihood.unit] > 0])
        if len(missing) == 0:
            return counts
    raise ValueError(
        f"{MANY_DRAWS} bootstrap samples, one after the other, lacked a class, the last one "
        f"{fit.classes[missing].tolist()}. It is too rare, or sample_weight does not count "
        "samples: leave it out, or take standard_errors='information'."
    )


def _refit_gate(fit, X, counts):
    """Fit a copy of the mixture to drawn samples, and return the logarithm of its gate."""
    (y, weight, _), model, likelihood = fit.data, fit.model, fit.likelihood
    times = counts[likelihood.unit]
    rows = np.repeat(np.arange(len(y)), times)
    group, weight = None, np.ones(len(rows))
    if fit.group is not None:
        # The copies of a group count as different groups.
        copies = np.arange(len(rows)) - np.repeat(np.cumsum(times) - times, times)
        group = np.unique(likelihood.unit[rows] + copies * len(counts), return_inverse=True)[1]
        weight = fit.data[1][rows]
    samples = model.reader_.read(X, model)
    if can_be_polished(model.net_):
        net = model.net_.snapshot()
        polish_again(net, samples[rows], y[rows], normalize(weight), group)
    else:
        model = copy(model).set_params(warm_start=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(_safe_indexing(X, rows), fit.classes[y[rows]], weight, groups=group)
        net = model.net_
    gate_proba = net.evaluate(samples, MixtureOfExperts.gate_proba, np.float64)
    return np.log(np.maximum(gate_proba, np.finfo(float).tiny))
