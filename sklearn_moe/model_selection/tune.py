"""Tuning in one function."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils._metadata_requests import _routing_enabled

if TYPE_CHECKING:
    import optuna

from sklearn_moe.model_selection.search import MoESearchCV


def tune(
    estimator: BaseEstimator,
    X: ArrayLike,
    y: ArrayLike,
    space: dict | Callable[[optuna.Trial], dict[str, Any]] | None = None,
    *,
    sample_weight: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    n_trials: int = 50,
    timeout: float | None = None,
    scoring: str | Callable | Sequence[str] | dict | None = None,
    cv: Any = 5,
    pruner: str | object | None = "median",
    storage: str | os.PathLike | object | None = None,
    study_name: str | None = None,
    refit: bool | str | Callable = True,
    callbacks: Sequence[Callable] | None = None,
    n_jobs: int | None = None,
    return_train_score: bool = False,
    random_state: int | np.random.RandomState | None = None,
    verbose: int = 1,
) -> MoESearchCV:
    """Search for good hyperparameters with Optuna and cross-validation.

    Parameters
    ----------
    estimator : MoEClassifier or Pipeline
        The mixture, or a pipeline that contains one.
    X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        Samples.
    y : array-like of shape (n_samples,)
        Class labels.
    space : dict, callable or None, default=None
        The search space, as in :class:`MoESearchCV`.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples in all fits; in a pipeline, in the fits of its last step. Without a
        pipeline, scores of scikit-learn that take weights use them, too, as in its own searches.
    groups : array-like of shape (n_samples,), default=None
        Groups for a splitter that keeps them together.
    n_trials, timeout, scoring, cv, pruner, storage, study_name
        As in :class:`MoESearchCV`, with the same defaults.
    refit, callbacks, n_jobs, return_train_score, random_state
        As in :class:`MoESearchCV`, with the same defaults.
    verbose : int, default=1
        1 shows a progress bar of the trials, 0 shows nothing.

    Returns
    -------
    MoESearchCV
        The fitted search, with ``best_estimator_``, ``best_params_``, ``study_``,
        ``pareto_front_`` and ``trials_dataframe()``. With ``refit="ensemble"``,
        ``best_estimator_`` is a :class:`MixtureEnsemble`.

    Raises
    ------
    ValueError, ConnectionError, KeyboardInterrupt
        As in :class:`MoESearchCV`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_moe import MoEClassifier, tune
    >>> X, y = load_iris(return_X_y=True)
    >>> def space(trial):
    ...     return {"n_experts": trial.suggest_int("n_experts", 1, 4)}
    >>> clf = MoEClassifier(max_iter=5, random_state=0)
    >>> search = tune(clf, X, y, space, n_trials=3, cv=3, random_state=0, verbose=0)
    >>> len(search.study_.trials)
    3
    """
    search = MoESearchCV(
        estimator,
        space,
        n_trials=n_trials,
        timeout=timeout,
        scoring=scoring,
        cv=cv,
        pruner=pruner,
        storage=storage,
        study_name=study_name,
        refit=refit,
        callbacks=callbacks,
        n_jobs=n_jobs,
        return_train_score=return_train_score,
        random_state=random_state,
        verbose=verbose,
    )
    params = {} if groups is None else {"groups": groups}
    return search.fit(X, y, **params, **fit_params(estimator, sample_weight=sample_weight))


def fit_params(estimator: BaseEstimator, **params: ArrayLike | None) -> dict[str, Any]:
    """Return parameters of a mixture's ``fit`` as those of a pipeline's, without None."""
    is_pipeline = isinstance(estimator, Pipeline) and not _routing_enabled()
    step = f"{estimator.steps[-1][0]}__" if is_pipeline else ""
    return {f"{step}{name}": value for name, value in params.items() if value is not None}
