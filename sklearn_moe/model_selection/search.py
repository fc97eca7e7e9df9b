"""Tuning with Optuna as a scikit-learn search."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from numbers import Integral, Real
from operator import methodcaller
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
from joblib import Parallel, delayed, effective_n_jobs
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.metrics import check_scoring
from sklearn.model_selection import check_cv
from sklearn.model_selection._search import BaseSearchCV
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import _check_method_params, check_is_fitted, indexable

from sklearn_moe.containers import as_eager
from sklearn_moe.model_selection.cross_validation import scorers_by_name
from sklearn_moe.model_selection.ensemble import Library, makes_ensemble
from sklearn_moe.model_selection.selection import (
    asks_decomposition,
    best_candidate,
    compared_by,
    values_of,
)
from sklearn_moe.model_selection.spaces import Space
from sklearn_moe.model_selection.studies import (
    KeepsStudy,
    has_error,
    in_memory,
    load_optuna,
    n_finished,
    open_study,
    quiet_optuna,
)
from sklearn_moe.model_selection.trials import Evaluation, one_trial, pruner_for

if TYPE_CHECKING:
    import optuna


class MoESearchCV(KeepsStudy, BaseSearchCV):
    r"""A scikit-learn search whose candidates are suggested by Optuna.

    In contrast to ``RandomizedSearchCV``, trials learn from earlier trials, and those that fall
    behind are stopped in the middle of a fit. A search with a name continues after it was killed,
    and many processes and machines can share it.

    Parameters
    ----------
    estimator : estimator
        A ``MoEClassifier``, a pipeline that ends in one, or, if you pass a ``space``, any other
        classifier.
    space : dict, callable or None, default=None
        Distributions of ``optuna.distributions`` by the name of the parameter, or a function that
        gets a trial and returns a dict for ``set_params``. None means the default space: number,
        width and dropout of the experts, gate, competence, learning rate and weight decay. If a
        score is one of ``SCORERS``, it also has gates and regularizations that divide the work
        (:func:`~sklearn_moe.model_selection.suggest_parameters`). Its first trial is the estimator
        as it is. Another one is taken only if it is better by more than one standard error (see
        Notes).
    n_trials : int, default=50
        The search ends when the study has this many trials. The trials of earlier searches and of
        other processes count, too.
    timeout : float, default=None
        Seconds after which no new trial starts.
    scoring : str, callable, list, dict or None, default=None
        What to maximise: names that scikit-learn or ``SCORERS`` knows, or scorers. None means
        accuracy. The trials of a mixture are not compared by the accuracy itself, which is too
        coarse, but by the log-likelihood of the left-out samples; ``cv_results_`` has both.
        Several scores give a Pareto front: the trials that no other beats in every score.
    cv : int, cross-validation generator or iterable, default=5
        How the folds are made. All trials get the same folds.
    pruner : {"median", "hyperband"}, optuna pruner or None, default="median"
        How to find trials that fall behind, so that they can be stopped. Trials are compared by
        the log-likelihood of the left-out samples after each epoch, and by the score after each
        fold, both averaged over the folds so far. "median" stops a trial that is worse than the
        median of the others at the same point. "hyperband" divides the epochs among many short
        trials and a few long ones. None completes all trials. With several scores, no trial is
        stopped.
    storage : str, path, optuna storage or None, default=None
        Where the study is stored: the address of a database, such as
        ``"postgresql://host/name"``; the path of an SQLite file, which ends in ``.db``,
        ``.sqlite`` or ``.sqlite3``; or the path of a journal file, which may be on a network file
        system. None means in memory or, with ``study_name``, in the SQLite file
        ``<study_name>.db``. Passwords in an address are never shown, and a fitted search leaves
        them out of its pickle.
    study_name : str, default=None
        Name of the study. If the storage has a study of this name, the search continues it.
    refit : bool, str or callable, default=True
        Whether to fit the best candidate on all samples. With several scores, the name of the
        score that says which candidate is best; True means the first. A callable gets
        ``cv_results_`` and returns an index. "ensemble", with one score, gives a
        :class:`MixtureEnsemble` of the models that the folds of the best trials have left, and of
        refits of these trials (see Notes).
    callbacks : list of callable, default=None
        Called as ``callback(study, trial)`` after each trial, in the process that ran it;
        ``study.stop()`` has no effect there.
    n_jobs : int, default=None
        Number of trials that run at the same time, on the active backend of joblib.
    return_train_score : bool, default=False
        Whether ``cv_results_`` also has the scores of the training samples.
    random_state : int, RandomState instance or None, default=None
        Seed of the search; with ``n_jobs=1`` the same seed gives the same trials. The seed of the
        mixtures is the ``random_state`` of the estimator.
    verbose : int, default=0
        1 shows a progress bar.

    Attributes
    ----------
    study_ : optuna.Study
        All trials. ``optuna.visualization`` draws it. It is also set after an error or an
        interruption. An interruption leaves the results of the trials that were complete, but no
        ``best_estimator_``. In contrast to a pickle of the search, a pickle of this study holds
        the password of its storage.
    cv_results_ : dict of ndarray
        Results of the complete trials, as in ``RandomizedSearchCV``. ``trial`` has their numbers
        in the study, and ``mean_test_log_likelihood`` what compares them, in nats, if
        ``scoring`` is the accuracy of a mixture.
    best_estimator_ : estimator
        The best candidate, fitted on all samples, or the ensemble; only with ``refit``.
    best_params_, best_score_, best_index_ : dict, float, int
        The best candidate, its mean score, and its place in ``cv_results_``. If no trial of the
        default space is clearly better, they are those of the estimator as it is.
    pareto_front_ : list of dict
        Complete trials that no other beats in every score: their ``trial``, ``params`` and mean
        scores. The trial with the best first score comes first. With one score, only the best
        trial.
    scorer_ : callable or dict
        The scorers.
    n_splits_ : int
        Number of folds.
    refit_time_ : float
        Seconds of the refit.

    Raises
    ------
    ValueError
        If a parameter is not valid, the space names a parameter that does not exist, all trials
        fail, or the study has trials with other folds or scores.
    ConnectionError
        If the storage can't be opened, read or written.
    KeyboardInterrupt
        If the search is interrupted.

    See Also
    --------
    tune : The same as a function.

    Notes
    -----
    In the default space, the best trial must beat the first one, which is the estimator as it is.
    Its score must not be lower. The mean of the differences :math:`d_k` in the :math:`K` folds, of
    the score or the log-likelihood that compares the trials, must be larger than its standard
    error, which allows for the training samples that folds share (see :func:`compare`):

    .. math:: \bar d > \sqrt{\left(\frac{1}{K} + \frac{n_\mathrm{test}}{n_\mathrm{train}}\right)
              s_d^2}

    Otherwise the estimator is refitted as it is. More folds, such as those of
    ``RepeatedStratifiedKFold``, find smaller gains. With one fold or several scores, the best
    trial is taken, and a ``refit`` that is a function decides alone.

    With ``refit="ensemble"``, trials are chosen, again and again and with replacement, so that the
    mean of their probabilities has the lowest log loss on the left-out samples (Caruana et al.
    2004). The 15 best trials and the first one take part, and their fold models stay in memory.
    Trials that were stopped, or are of earlier searches or other processes, leave none. If the
    default space searches the experts of a table, ``experts="strong"`` takes part, too: no trial,
    but fitted after the last one; :func:`save` refuses it. All that are chosen are fitted again on
    all samples; this fit has half of the weight, and the folds the other half.

    Single trials may fail; the study keeps their errors in ``user_attrs["error"]``. If a process
    is killed, its trial counts as dead after 30 seconds without a heartbeat, and another trial
    replaces it. Exactly one trial of a study completes the estimator as it is, also if its process
    is killed; no pruner stops it. Several processes on one study may exceed ``n_trials`` by one
    trial each.

    References
    ----------
    T. Akiba et al., Optuna: A Next-generation Hyperparameter Optimization Framework, 2019,
    arXiv 1907.10902.

    R. Caruana et al., Ensemble Selection from Libraries of Models, ICML 2004.

    L. Li et al., Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization, 2018,
    arXiv 1603.06560.

    Examples
    --------
    >>> from optuna.distributions import IntDistribution
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_moe import MoEClassifier, MoESearchCV
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = MoEClassifier(max_iter=10, random_state=0)
    >>> search = MoESearchCV(clf, {"n_experts": IntDistribution(1, 4)}, n_trials=2, random_state=0)
    >>> search.fit(X, y).best_estimator_.score(X, y) > 0.9
    True
    """

    _parameter_constraints: dict = {
        "estimator": [HasMethods(["fit"])],
        "space": [dict, callable, None],
        "n_trials": [Interval(Integral, 1, None, closed="left")],
        "timeout": [Interval(Real, 0, None, closed="neither"), None],
        "scoring": [str, callable, list, tuple, dict, None],
        "cv": ["cv_object"],
        "pruner": [StrOptions({"median", "hyperband"}), HasMethods("prune"), None],
        "storage": [str, os.PathLike, HasMethods("create_new_study"), None],
        "study_name": [str, None],
        "refit": ["boolean", str, callable],
        "callbacks": [list, tuple, None],
        "n_jobs": [Integral, None],
        "return_train_score": ["boolean"],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        estimator: BaseEstimator,
        space: dict | Callable[[optuna.Trial], dict[str, Any]] | None = None,
        *,
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
        verbose: int = 0,
    ):
        self.estimator = estimator
        self.space = space
        self.n_trials = n_trials
        self.timeout = timeout
        self.scoring = scoring
        self.cv = cv
        self.pruner = pruner
        self.storage = storage
        self.study_name = study_name
        self.refit = refit
        self.callbacks = callbacks
        self.n_jobs = n_jobs
        self.return_train_score = return_train_score
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: ArrayLike, y: ArrayLike | None = None, **params: Any) -> MoESearchCV:
        """Search, and fit the best candidate on all samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Samples.
        y : array-like of shape (n_samples,)
            Class labels.
        **params : dict
            ``groups`` for the splitter, and parameters for the estimator's ``fit``, such as
            ``sample_weight``; with scikit-learn's metadata routing, whatever is requested.

        Returns
        -------
        self : MoESearchCV
        """
        self._validate_params()
        if self.study_name == "":
            raise ValueError("study_name must not be empty.")
        load_optuna()
        scorer, refit_metric = self._get_scorers()
        X, y = indexable(as_eager(X), as_eager(y))
        params = _check_method_params(X, params=params)
        routed = self._get_routed_params_for_fit(params)
        cv = check_cv(self.cv, y, classifier=is_classifier(self.estimator))
        folds = list(cv.split(X, y, **routed.splitter.split))
        scorers, scoring = getattr(scorer, "_scorers", scorer), scorers_by_name(self.scoring)
        evaluation = Evaluation(
            self.estimator,
            Space(self.space, self.estimator, X, y, wide=asks_decomposition(scoring)),
            folds,
            scorer,
            routed.estimator.fit,
            routed.scorer.score,
            compared_by=compared_by(self.estimator, scoring),
            with_train_scores=self.return_train_score,
            prunes=self.pruner is not None and not isinstance(scorers, dict),
            keeps_models=makes_ensemble(self),
        )
        shape = {
            "n_folds": len(folds),
            "scores": list(scorers) if isinstance(scorers, dict) else [_name(self.scoring)],
            "train_scores": self.return_train_score,
            "compared_by": evaluation.compared_by,
            # Scores of other folds must not be mixed with these, for example in a nested search.
            "data": joblib.hash([folds, values_of(X), np.asarray(y)]),
        }
        library = Library()
        deadline = math.inf if self.timeout is None else time.time() + self.timeout
        try:
            self._search(evaluation, X, y, shape, library, deadline)
        except KeyboardInterrupt:
            with suppress(ValueError):  # no trial was complete
                self._collect(evaluation, refit_metric)
            raise
        self._collect(evaluation, refit_metric)
        if self.refit:
            start, labels = time.perf_counter(), {} if y is None else {"y": y}
            refit = methodcaller("fit", X, **labels, **routed.estimator.fit)
            if evaluation.keeps_models:
                evaluation.add_strong_experts(library, X, y, deadline)
                weight = _check_method_params(X, routed.scorer.score).get("sample_weight")
                best = library.ensemble(self, folds, weight, refit)
            else:
                parameters = clone(self.best_params_, safe=False)
                best = refit(clone(self.estimator).set_params(**parameters))
            self.best_estimator_ = best
            self.refit_time_ = time.perf_counter() - start
            if hasattr(best, "feature_names_in_"):
                self.feature_names_in_ = best.feature_names_in_
        return self

    def _get_scorers(self):
        """Return a scorer of one score or of a dict of them, and the name that decides."""
        scoring = scorers_by_name(self.scoring)
        if scoring == {}:
            raise ValueError("scoring must have at least one score, got none.")
        if not isinstance(scoring, dict):
            return check_scoring(self.estimator, scoring=scoring), "score"
        if isinstance(self.refit, str) and self.refit not in scoring:
            raise ValueError(
                f"refit={self.refit!r} must be one of the scores {list(scoring)}."
                + " An ensemble needs a single score." * (self.refit == "ensemble")
            )
        metric = self.refit if isinstance(self.refit, str) else next(iter(scoring))
        return check_scoring(self.estimator, scoring=scoring, raise_exc=True), metric

    def _check_scorers_accept_sample_weight(self):
        # Our scorers are functions without sample_weight. scikit-learn's method fails for them.
        scorer, _ = self._get_scorers()
        scorers = getattr(scorer, "_scorers", {"score": scorer}).values()
        return all(
            hasattr(each, "_accept_sample_weight") and each._accept_sample_weight()
            for each in scorers
        )

    def score(self, X: ArrayLike, y: ArrayLike | None = None, **params: Any) -> float:
        """Return the score of the best estimator; of several scores, the one that decides.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Samples.
        y : array-like of shape (n_samples,)
            Class labels.
        **params : dict
            Parameters for the scorer, with scikit-learn's metadata routing.

        Returns
        -------
        float
        """
        if getattr(self, "multimetric_", False) and self.refit:
            check_is_fitted(self)
            _, metric = self._get_scorers()
            return self.scorer_[metric](self.best_estimator_, X, y, **params)
        return super().score(X, y, **params)

    def _search(self, evaluation, X, y, shape, library, deadline):
        """Fill the study with trials, and the library with their models."""
        import optuna

        from sklearn_moe.model_selection.samplers import TrialSampler

        n_jobs = effective_n_jobs(self.n_jobs)
        with quiet_optuna(), TemporaryDirectory() as folder:
            where = self._where()
            is_temporary = where is None and n_jobs > 1  # other processes cannot see it
            if n_jobs > 1 and isinstance(where, optuna.storages.InMemoryStorage):
                raise ValueError(
                    "Trials in parallel do not see an InMemoryStorage. Pass storage=None, a path "
                    "or an address, or n_jobs=1."
                )
            study = open_study(
                Path(folder) / "journal.log" if is_temporary else where,
                self.study_name,
                pruner_for(self.pruner, len(evaluation.folds)),
                shape,
            )
            study.sampler = TrialSampler(
                int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max)),
                evaluation.suggest.first,
                joint=evaluation.compared_by is not None,
            )
            for name in [name for name in vars(self) if name.endswith("_")]:
                delattr(self, name)  # of an earlier search
            self.study_ = study
            self.n_splits_ = len(evaluation.folds)
            self.scorer_ = getattr(evaluation.scorer, "_scorers", evaluation.scorer)
            self.multimetric_ = evaluation.compared_by is None
            one = partial(
                one_trial,
                study,
                self.storage,
                evaluation,
                self.n_trials,
                deadline,
                self.callbacks,
            )
            n_missing = max(self.n_trials - n_finished(study), 0)
            trials = Parallel(n_jobs=n_jobs, return_as="generator_unordered", pre_dispatch=n_jobs)(
                delayed(one)(X, y) for _ in range(n_missing)
            )
            shown = trials
            try:
                if self.verbose:
                    from tqdm.auto import tqdm

                    shown = tqdm(trials, total=n_missing, unit="trial", desc="MoESearchCV")
                for kept in shown:
                    if kept is not None:
                        library.add(kept)
            finally:
                trials.close()  # ends the workers of an interrupted search
                if is_temporary:
                    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
                        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
                    self.study_ = in_memory(study)

    def _collect(self, evaluation, refit_metric):
        """Set the attributes that hold the results of the search."""
        trials = [trial for trial in self.study_.get_trials() if trial.state.name == "COMPLETE"]
        if not trials:
            errors = [t.user_attrs["error"] for t in self.study_.get_trials() if has_error(t)]
            raise ValueError(
                f"None of {len(self.study_.trials)} trials has a score. "
                + (
                    f"The last error: {errors[-1]}"
                    if errors
                    else "Raise timeout if there were few."
                )
            )
        try:
            params = [evaluation.suggest(trial) for trial in trials]
        except ValueError as error:
            raise ValueError(
                f"The study {self.study_name!r} has trials of another space: {error} Take another "
                "study_name."
            ) from error
        results = [result for trial in trials for result in trial.user_attrs["folds"]]
        numbers = [trial.number for trial in trials]
        self.cv_results_ = self._format_results(
            params, self.n_splits_, results, {"trial": numbers}
        )
        default = [place for place, trial in enumerate(trials) if trial.user_attrs.get("begins")]
        if evaluation.compared_by is None or callable(self.refit):
            best = self._select_best_index(self.refit, refit_metric, self.cv_results_)
        else:
            best = best_candidate(
                self.cv_results_,
                evaluation.compared_by,
                default[0] if default else None,
                np.mean([len(test) / len(train) for train, test in evaluation.folds]),
            )
        self.best_index_ = best
        self.best_score_ = self.cv_results_[f"mean_test_{refit_metric}"][best]
        self.best_params_ = params[best]
        names = list(self.scorer_) if self.multimetric_ else ["score"]
        front = [best]
        if self.multimetric_:
            front = [numbers.index(trial.number) for trial in self.study_.best_trials]
        self.pareto_front_ = [
            {
                "trial": numbers[place],
                "params": params[place],
                **{name: float(self.cv_results_[f"mean_test_{name}"][place]) for name in names},
            }
            for place in front
        ]
        self.pareto_front_.sort(key=lambda row: -row[names[0]])


def _name(scoring):
    """Return a name of a score that is the same in every process."""
    return getattr(scoring, "__qualname__", None) or str(scoring or "score")
