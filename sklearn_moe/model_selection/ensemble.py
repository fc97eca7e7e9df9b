"""Ensembles of the trials of a search: of their fold models, and refits of the best of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted

from sklearn_moe.decomposition import SCORERS
from sklearn_moe.documentation import Documented
from sklearn_moe.plain import Plain
from sklearn_moe.predicting import MostProbable

# How many trials may keep the models of their folds, beside those that stay.
MOST_TRIALS = 15

# Steps of the greedy selection, so that weights are multiples of at least a 50th.
STEPS = 50


class MixtureEnsemble(Plain, Documented, MostProbable, BaseEstimator):
    r"""A weighted mean of classifiers, such as ``tune(refit="ensemble")`` makes.

    .. math:: p(y \mid x) = \sum_m w_m\, p_m(y \mid x)

    A search chooses trials and their weights by the log loss of left-out samples. The members are
    the models of the folds of these trials, and a refit of each trial on all samples, which counts
    as much as its folds together. Each member is a mixture of its own, whose
    decomposition can be measured: pass ``ensemble.members_[0]`` to ``decomposition_report``.

    Parameters
    ----------
    estimators : list of classifiers
        The classifiers. ``fit`` fits a copy of each on all samples.
    weights : array-like of shape (n_estimators,), default=None
        Their weights, at least 0, which are divided by their sum; None means equal weights.

    Attributes
    ----------
    members_ : list of classifiers
        The fitted classifiers. After a search, these are the models of the folds of each chosen
        trial, followed by its refit.
    weights_ : ndarray of shape (n_members,)
        Their weights, which sum to 1. A refit has half of the weight of its trial, and the models
        of the folds share the other half.
    trials_ : ndarray of shape (n_members,)
        The number of each member's trial in the study, and -1 for members with
        ``experts="strong"``, which are no trial; only after a search.
    classes_ : ndarray of shape (n_classes,)
        The class labels. A member that has not seen a class gives it a probability of 0.
    n_features_in_, feature_names_in_ : int, ndarray
        Those of the members.

    Raises
    ------
    ValueError
        If there is no classifier, or if the weights are not valid.

    See Also
    --------
    MoESearchCV : Makes an ensemble with ``refit="ensemble"``.

    References
    ----------
    R. Caruana et al., Ensemble Selection from Libraries of Models, ICML 2004.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_moe import MixtureEnsemble, MoEClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> mixtures = [MoEClassifier(n_experts=2, max_iter=20, random_state=seed) for seed in (0, 1)]
    >>> ensemble = MixtureEnsemble(mixtures, weights=[3, 1]).fit(X, y)
    >>> ensemble.weights_
    array([0.75, 0.25])
    >>> ensemble.predict_proba(X).shape
    (150, 3)
    """

    _parameter_constraints: dict = {"estimators": [list, tuple], "weights": ["array-like", None]}

    def __init__(self, estimators: list[BaseEstimator], weights: ArrayLike | None = None):
        self.estimators = estimators
        self.weights = weights

    def fit(self, X: ArrayLike, y: ArrayLike, **params: Any) -> MixtureEnsemble:
        """Fit a copy of each classifier on all samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Samples.
        y : array-like of shape (n_samples,)
            Class labels.
        **params : dict
            Parameters for the ``fit`` of each classifier, such as ``sample_weight``.

        Returns
        -------
        self : MixtureEnsemble
        """
        self._validate_params()
        weights = self._checked_weights()
        members = [clone(each).fit(X, y, **params) for each in self.estimators]
        return self._take_over(members, weights)

    def predict_proba(self, X: ArrayLike) -> NDArray[np.floating]:
        """Return the weighted mean of the members' probabilities.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
        """
        check_is_fitted(self)
        total: Any = 0.0
        for weight, member in zip(self.weights_, self.members_, strict=True):
            proba = member.predict_proba(X)
            own = np.zeros((len(proba), len(self.classes_)), proba.dtype)
            own[:, np.searchsorted(self.classes_, member.classes_)] = proba
            total = total + weight * own
        return total / total.sum(axis=1, keepdims=True)

    def predict_log_proba(self, X: ArrayLike) -> NDArray[np.floating]:
        """Return the logarithms of the probabilities.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
        """
        with np.errstate(divide="ignore"):
            return np.log(self.predict_proba(X))

    def _checked_weights(self):
        n_estimators = len(self.estimators)
        if n_estimators == 0:
            raise ValueError("estimators must have at least one classifier, got none.")
        for each in self.estimators:
            if not hasattr(each, "predict_proba"):
                raise ValueError(
                    f"estimators must hold classifiers with predict_proba, got {each!r}."
                )
        weights = np.ones(n_estimators) if self.weights is None else np.asarray(self.weights)
        if (
            weights.shape != (n_estimators,)
            or weights.dtype.kind not in "biuf"
            or not (np.all(weights >= 0) and 0 < weights.sum(dtype=float) < np.inf)
        ):
            raise ValueError(
                f"weights must be {n_estimators} finite numbers of at least 0, not all 0, got "
                f"{self.weights!r}."
            )
        return weights

    def _take_over(self, members, weights):
        """Take over fitted classifiers."""
        self.members_ = members
        self.weights_ = weights / np.sum(weights)
        self.classes_ = np.unique(np.concatenate([each.classes_ for each in members]))
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(members[0], name):
                setattr(self, name, getattr(members[0], name))
        return self

    def __sklearn_is_fitted__(self):
        return hasattr(self, "members_")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        if isinstance(self.estimators, (list, tuple)) and hasattr(
            next(iter(self.estimators), None), "__sklearn_tags__"
        ):
            tags.input_tags = get_tags(self.estimators[0]).input_tags
        return tags


@dataclass(frozen=True, eq=False)
class FoldModels:
    """What a search keeps of a complete trial for an ensemble.

    Attributes
    ----------
    trial : int
        Number of the trial in the study; -1 for strong experts, which are no trial of it.
    stays : bool
        Whether it is kept whatever its score is, as the estimator as it is and strong experts are.
    score : float
        The mean score that compares it with others.
    estimator : classifier
        The estimator with the parameters of the trial, not fitted.
    models : tuple of classifiers
        The model of each fold.
    likelihoods : tuple of ndarray
        The probability that each of them gives the labels of the samples that it has not seen.
    """

    trial: int
    stays: bool
    score: float
    estimator: BaseEstimator
    models: tuple[BaseEstimator, ...]
    likelihoods: tuple[NDArray[np.float64], ...]


class Library:
    """The models of the folds of the best trials, and of those that stay."""

    def __init__(self):
        self.trials: list[FoldModels] = []

    def add(self, trial: FoldModels) -> None:
        """Add a trial, and forget the worst if there are too many."""
        self.trials = sorted([*self.trials, trial], key=lambda each: (-each.score, each.trial))
        others = [each for each in self.trials if not each.stays]
        if len(others) > MOST_TRIALS:
            self.trials.remove(others[-1])

    def ensemble(
        self,
        search: BaseEstimator,
        folds: list[tuple[NDArray, NDArray]],
        sample_weight: ArrayLike | None,
        refit: Callable[[BaseEstimator], BaseEstimator],
    ) -> MixtureEnsemble:
        """Return a weighted mean of the models of the trials that predict best together.

        Models of folds alone, which have seen fewer samples than one fit on all, lose on some
        tables what the mean gains.

        Parameters
        ----------
        search : MoESearchCV
            The search that has made the trials, with its results.
        folds : list of tuple of ndarray
            Indices of training and test samples.
        sample_weight : array-like of shape (n_samples,) or None
            Weights of the samples.
        refit : callable
            Fits an estimator on all samples, and returns it.
        """
        if not self.trials:
            raise ValueError(
                "refit='ensemble' needs a complete trial of this search, but all "
                f"{len(search.cv_results_['params'])} complete trials of the study "
                f"{search.study_name!r} are from earlier searches or other processes, which leave "
                "no models. Raise n_trials, or take another study_name."
            )
        if sample_weight is not None:
            sample_weight = np.asarray(sample_weight)[np.concatenate([test for _, test in folds])]
        weights = select([np.concatenate(each.likelihoods) for each in self.trials], sample_weight)
        chosen = [each for each, weight in zip(self.trials, weights, strict=True) if weight > 0]
        weights = weights[weights > 0]
        ensemble = MixtureEnsemble([each.estimator for each in chosen], weights)
        models = [
            model for each in chosen for model in (*each.models, refit(clone(each.estimator)))
        ]
        shares = np.r_[np.full(len(folds), 0.5 / len(folds)), 0.5]  # within a trial
        ensemble._take_over(models, np.outer(weights, shares).ravel())
        ensemble.trials_ = np.repeat([each.trial for each in chosen], len(shares))
        return ensemble


def makes_ensemble(search: BaseEstimator) -> bool:
    """Whether a search ends with an ensemble; raise an error if its estimator has no place in one.

    With several scores, "ensemble" is the name of one of them.
    """
    if isinstance(search.scoring, (list, tuple, dict)) or not isinstance(search.refit, str):
        return False
    if search.refit in ("score", search.scoring):
        return False
    if search.refit != "ensemble":
        raise ValueError(
            f"refit={search.refit!r} must be True, False, 'ensemble' or a function, as there is "
            "one score."
        )
    if not (is_classifier(search.estimator) and hasattr(search.estimator, "predict_proba")):
        raise ValueError(
            f"refit='ensemble' needs a classifier with predict_proba, got {search.estimator!r}. "
            "Take refit=True."
        )
    if isinstance(search.scoring, str) and search.scoring in SCORERS:
        raise ValueError(
            f"refit='ensemble' needs a score of predictions, but scoring={search.scoring!r} "
            "measures the decomposition of one mixture. Take refit=True."
        )
    return True


def select(
    likelihood: list[NDArray[np.float64]], sample_weight: NDArray | None = None
) -> NDArray[np.float64]:
    """Return the weights of models whose weighted mean has a low log loss.

    In each step, the model is added, perhaps once more, with which the mean of all that were added
    has the lowest log loss. Of all steps, the one with the lowest log loss is returned.

    Parameters
    ----------
    likelihood : list of ndarray of shape (n_samples,)
        The probability that each model gives the label of each sample, above 0.
    sample_weight : ndarray of shape (n_samples,), default=None
        Weights of the samples.

    Returns
    -------
    ndarray of shape (n_models,)
        The weights, which sum to 1.
    """
    likelihood = np.asarray(likelihood)
    total, chosen, losses = 0.0, [], []
    for step in range(1, STEPS + 1):
        mean = (total + likelihood) / step
        loss = -np.average(np.log(mean), axis=1, weights=sample_weight)
        chosen.append(loss.argmin())
        losses.append(loss.min())
        total = total + likelihood[chosen[-1]]
    n_steps = int(np.argmin(losses)) + 1
    return np.bincount(chosen[:n_steps], minlength=len(likelihood)) / n_steps
