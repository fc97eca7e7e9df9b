"""Cross-validation with measures of the decomposition, and tuning with Optuna."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn import model_selection
from sklearn.base import BaseEstimator, clone
from sklearn.metrics import check_scoring
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, validate_params

from sklearn_moe.decomposition import SCORERS
from sklearn_moe.estimator import MoEClassifier
from sklearn_moe.regularizers import Importance, SampleSimilarity

if TYPE_CHECKING:
    import optuna


def cross_validate(
    estimator: BaseEstimator,
    X: ArrayLike,
    y: ArrayLike,
    *,
    cv=5,
    scoring: str | Callable | Sequence[str] | dict | None = None,
    groups: ArrayLike | None = None,
    params: dict[str, Any] | None = None,
    n_jobs: int | None = None,
    verbose: int = 0,
    return_train_score: bool = False,
    return_estimator: bool = False,
    return_indices: bool = False,
    error_score: float | str = np.nan,
) -> dict[str, Any]:
    """Cross-validate a mixture of experts and measure its decomposition in each fold.

    Parameters
    ----------
    estimator : MoEClassifier or Pipeline
        The mixture, or a pipeline that ends in one.
    X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        Samples.
    y : array-like of shape (n_samples,)
        Class labels.
    cv : int, cross-validation generator or iterable, default=5
        How the folds are made; an int is the number of stratified folds.
    scoring : str, callable, list, dict or None, default=None
        As in :func:`sklearn.model_selection.cross_validate`, with the names in ``SCORERS`` beside
        scikit-learn's; a callable returns a number. None is accuracy.
    groups : array-like of shape (n_samples,), default=None
        Groups for a splitter that keeps them together.
    params : dict, default=None
        Parameters for ``fit``, such as ``{"sample_weight": weights}``.
    n_jobs : int, default=None
        Number of folds that run in parallel.
    verbose : int, default=0
        Verbosity.
    return_train_score, return_estimator, return_indices : bool, default=False
        What to return beside the test scores.
    error_score : "raise" or float, default=nan
        Score of a fit that fails.

    Returns
    -------
    dict of arrays of shape (n_folds,)
        The result of scikit-learn's function with three more rows, in bits and for the test part
        of each fold: ``test_neg_sample_entropy``, ``test_usage_entropy``,
        ``test_expert_class_information``.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_moe import MoEClassifier, cross_validate
    >>> X, y = load_iris(return_X_y=True)
    >>> result = cross_validate(MoEClassifier(n_experts=3, max_iter=50, random_state=0), X, y)
    >>> result["test_score"].shape, result["test_usage_entropy"].shape
    ((5,), (5,))
    """
    scoring = _by_name(scoring)
    if not isinstance(scoring, dict):
        scoring = {"score": check_scoring(estimator, scoring=scoring)}
    return model_selection.cross_validate(
        estimator,
        X,
        y,
        cv=cv,
        scoring={**SCORERS, **scoring},
        groups=groups,
        params=params,
        n_jobs=n_jobs,
        verbose=verbose,
        return_train_score=return_train_score,
        return_estimator=return_estimator,
        return_indices=return_indices,
        error_score=error_score,
    )


def _by_name(scoring):
    """Replace the names of our scorers by the scorers."""
    if isinstance(scoring, str):
        return SCORERS.get(scoring, scoring)
    if isinstance(scoring, dict):
        return {name: _by_name(scorer) for name, scorer in scoring.items()}
    if isinstance(scoring, (list, tuple, set)):
        return {name: _by_name(name) for name in scoring}
    return scoring


def suggest_parameters(trial: optuna.Trial) -> dict[str, Any]:
    """Suggest parameters of a ``MoEClassifier``: the search space of :func:`tune`.

    Number of experts, gate, and regularization with its strength.

    Parameters
    ----------
    trial : optuna.Trial
        The trial.

    Returns
    -------
    dict
        Parameters for ``set_params``.
    """
    regularization = trial.suggest_categorical(
        "regularization", ["none", "importance", "sample_similarity"]
    )
    if regularization == "importance":
        penalty = Importance(trial.suggest_float("importance_strength", 0.02, 2.0, log=True))
    elif regularization == "sample_similarity":
        penalty = SampleSimilarity(
            trial.suggest_float("sample_similarity_strength", 0.03, 1.0, log=True)
        )
    else:
        penalty = None
    return {
        "n_experts": trial.suggest_int("n_experts", 2, 16, log=True),
        "gate": trial.suggest_categorical("gate", ["softmax", "top_k", "hard", "attentive"]),
        "regularization": penalty,
    }


@dataclass(frozen=True)
class TuneResult:
    """What :func:`tune` found.

    Attributes
    ----------
    study_ : optuna.Study
        All trials.
    best_params_ : dict
        Parameters of the best trial, as ``best_estimator_`` got them.
    best_score_ : float
        Mean score of the best trial over the folds.
    best_estimator_ : estimator
        The estimator with these parameters, fitted on all samples.
    """

    study_: optuna.Study
    best_params_: dict[str, Any]
    best_score_: float
    best_estimator_: BaseEstimator


@validate_params(
    {
        "n_trials": [Interval(Integral, 1, None, closed="left")],
        "space": [callable, None],
        "timeout": [Interval(Real, 0, None, closed="neither"), None],
        "random_state": ["random_state"],
    },
    prefer_skip_nested_validation=False,
)
def tune(
    estimator: BaseEstimator,
    X: ArrayLike,
    y: ArrayLike,
    *,
    n_trials: int = 50,
    space: Callable[[optuna.Trial], dict[str, Any]] | None = None,
    cv=5,
    scoring: str | Callable | None = None,
    timeout: float | None = None,
    n_jobs: int | None = None,
    verbose: int = 0,
    random_state: int | np.random.RandomState | None = None,
) -> TuneResult:
    """Search for good hyperparameters with Optuna, in cross-validation.

    Parameters
    ----------
    estimator : MoEClassifier or Pipeline
        The mixture, or a pipeline that contains one.
    X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        Samples.
    y : array-like of shape (n_samples,)
        Class labels.
    n_trials : int, default=50
        Number of trials.
    space : callable, default=None
        ``space(trial)`` returns a dict for ``estimator.set_params``. None searches over the number
        of experts, the gate, and the regularization and its strength
        (:func:`~sklearn_moe.model_selection.suggest_parameters`).
    cv : int, cross-validation generator or iterable, default=5
        How the folds are made; the same for all trials if its random state is fixed.
    scoring : str, callable or None, default=None
        What to maximise: a name that scikit-learn or ``SCORERS`` knows. None is accuracy.
    timeout : float, default=None
        Start no trial after so many seconds.
    n_jobs : int, default=None
        Number of folds that run in parallel.
    verbose : int, default=0
        1 shows a progress bar.
    random_state : int, RandomState instance or None, default=None
        Seed of the search. The seed of the mixtures is the estimator's own.

    Returns
    -------
    TuneResult
        The study, the best parameters and score, and the refitted best estimator.

    Raises
    ------
    ValueError
        If ``space`` is None and the estimator does not contain exactly one ``MoEClassifier``, or
        if every trial fails. Single trials may fail; the search goes on.

    References
    ----------
    T. Akiba et al., Optuna: A Next-generation Hyperparameter Optimization Framework, 2019,
    arXiv 1907.10902.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_moe import MoEClassifier, tune
    >>> X, y = load_iris(return_X_y=True)
    >>> def space(trial):
    ...     return {"n_experts": trial.suggest_int("n_experts", 1, 4)}
    >>> clf = MoEClassifier(max_iter=20, random_state=0)
    >>> result = tune(clf, X, y, n_trials=3, space=space, random_state=0)
    >>> len(result.study_.trials)
    3
    """
    suggest = _default_space(estimator) if space is None else space
    scoring = _by_name(scoring)
    cv = model_selection.check_cv(cv, y, classifier=True)
    params, errors = {}, []

    def objective(trial):
        try:
            params[trial.number] = suggest(trial)
            candidate = clone(estimator).set_params(**params[trial.number])
            scores = model_selection.cross_val_score(
                candidate, X, y, cv=cv, scoring=scoring, n_jobs=n_jobs, error_score="raise"
            )
        except ValueError as error:
            errors.append(error)
            raise
        return scores.mean().item()

    seed = check_random_state(random_state).randint(np.iinfo(np.int32).max)
    import optuna  # half of what importing this package would cost

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(verbosity, optuna.logging.WARNING))
    try:
        study = optuna.create_study(
            direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed)
        )
        study.optimize(
            objective,
            n_trials=n_trials,
            timeout=timeout,
            catch=ValueError,
            show_progress_bar=verbose > 0,
        )
    finally:
        optuna.logging.set_verbosity(verbosity)
    if not study.get_trials(states=[optuna.trial.TrialState.COMPLETE]):
        raise ValueError(
            f"None of {len(study.trials)} trials has a score. Raise timeout if there were few; "
            "the error above, if any, is that of the last one."
        ) from (errors[-1] if errors else None)
    best_params = params[study.best_trial.number]
    best_estimator = clone(estimator).set_params(**best_params).fit(X, y)
    return TuneResult(study, best_params, study.best_value, best_estimator)


def _default_space(estimator):
    """Return ``suggest_parameters`` for the mixture, wherever it is in the estimator."""
    parts = {"": estimator, **estimator.get_params(deep=True)}
    prefixes = [
        f"{name}__" if name else ""
        for name, part in parts.items()
        if isinstance(part, MoEClassifier)
    ]
    if len(prefixes) != 1:
        raise ValueError(
            f"The default search space needs exactly one MoEClassifier; {estimator!r} has "
            f"{len(prefixes)}. Pass space=."
        )

    def suggest(trial):
        params = suggest_parameters(trial)
        return {prefixes[0] + name: value for name, value in params.items()}

    return suggest
