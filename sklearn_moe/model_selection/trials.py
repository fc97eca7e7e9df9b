"""One trial of a search: the folds, one after the other, and when to stop early."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, clone
from sklearn.pipeline import Pipeline
from sklearn.utils.metaestimators import _safe_split
from sklearn.utils.validation import _check_method_params
from skorch.callbacks import Callback

from sklearn_moe.fitted import is_mixture
from sklearn_moe.model_selection.ensemble import FoldModels, Library
from sklearn_moe.model_selection.selection import LOG_LIKELIHOOD, last_step, likelihood
from sklearn_moe.model_selection.spaces import Space
from sklearn_moe.model_selection.studies import (
    begins,
    connection_error,
    has_error,
    n_finished,
    quiet_optuna,
    wait_for_beginning,
)

if TYPE_CHECKING:
    import optuna

# A search ends after this many trials if all of them failed.
MANY_FAILURES = 10

# Number of steps that a trial reports for a fold, whatever the number of epochs.
STEPS = 100

# In the place of the number of a trial, for strong experts, which are no trial of the study.
STRONG = -1


class MedianPruner:
    """Stop a trial that is worse than the median of the complete trials at the same step.

    Optuna's median pruner compares the best of all steps so far. That makes no sense here, because
    the values after an epoch and after a fold are of different kinds.
    """

    n_startup_trials, n_warmup_steps = 5, STEPS // 5

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        """Return whether to stop the trial after its last report."""
        step = trial.last_step
        if step is None or step < self.n_warmup_steps:
            return False
        others = [
            other.intermediate_values[step]
            for other in study.get_trials(deepcopy=False)
            if other.state.name == "COMPLETE" and step in other.intermediate_values
        ]
        if len(others) < self.n_startup_trials:
            return False
        return bool(trial.intermediate_values[step] < np.median(others))


def pruner_for(pruner: str | object | None, n_folds: int) -> Any:
    """Return the pruner that a name stands for, for searches with this number of folds."""
    from optuna import pruners

    if pruner == "median":
        return MedianPruner()
    if pruner == "hyperband":
        return pruners.HyperbandPruner(min_resource=STEPS // 5, max_resource=n_folds * (STEPS + 1))
    return pruner or pruners.NopPruner()


class TrialFailed(Exception):
    """A fit or a score raised an error. The search goes on without this trial."""


@dataclass
class Evaluation:
    """The objective of a study: cross-validated scores of the parameters that a trial suggests.

    Attributes
    ----------
    estimator : estimator
        The estimator that gets the suggested parameters.
    suggest : Space
        Returns parameters for a trial, and has the first suggestion.
    folds : list of tuple of ndarray
        Indices of training and test samples.
    scorer : callable
        Returns one score, or several in a dict.
    fit_params, score_params : dict
        Routed parameters.
    compared_by : str or None
        Which score compares the trials: "score", the only one, or "log_likelihood", which the
        trials get in addition to it. None: the scorer returns several scores.
    with_train_scores, prunes : bool
        Whether to score the training samples, too, and whether to ask the study's pruner.
    keeps_models : bool
        Whether to keep the models of the folds, for an ensemble.
    """

    estimator: BaseEstimator
    suggest: Space
    folds: list[tuple[np.ndarray, np.ndarray]]
    scorer: Callable
    fit_params: dict[str, Any]
    score_params: dict[str, Any]
    compared_by: str | None
    with_train_scores: bool
    prunes: bool
    keeps_models: bool

    def __call__(
        self, trial: optuna.Trial, X: Any, y: ArrayLike, kept: list[FoldModels]
    ) -> float | tuple[float, ...]:
        """Return the mean score (or scores) over the folds; the trial stores all other results.

        The models of a complete trial become the only element of ``kept``.
        """
        is_first = self.suggest.first is not None and begins(trial)
        return self._evaluate(trial, self.suggest(trial), X, y, kept, stays=is_first)

    def add_strong_experts(self, library: Library, X: Any, y: ArrayLike, deadline: float) -> None:
        """Add models with strong experts to a library, if the space has them and there is time."""
        from optuna.trial import FixedTrial

        if self.suggest.strong is None or not library.trials or time.time() >= deadline:
            return
        trial: Any = FixedTrial({}, number=STRONG)
        kept: list[FoldModels] = []
        try:
            self._evaluate(trial, self.suggest.strong, X, y, kept, stays=True)
        except TrialFailed as error:
            warnings.warn(
                f"The ensemble has no mixture with experts='strong', as it failed: {error}",
                stacklevel=3,
            )
        else:
            library.add(*kept)

    def _evaluate(self, trial, parameters, X, y, kept, *, stays):
        # An unknown name raises at once.
        estimator = clone(self.estimator).set_params(**clone(parameters, safe=False))
        results, models, progress = [], [], _Progress(trial, may_end=not stays)
        for train, test in self.folds:
            candidate = clone(estimator)
            progress.begin_fold()
            try:
                results.append(self._fold(candidate, X, y, train, test, progress))
            except _not_of_the_fit():
                raise
            except Exception as error:
                trial.set_user_attr("error", f"{type(error).__name__}: {error}")
                raise TrialFailed(str(error)) from error
            finally:
                trial.set_user_attr("n_epochs", progress.n_epochs)
            trial.set_user_attr("folds", results)
            if self.keeps_models:
                X_test, y_test = _safe_split(candidate, X, y, test, train)
                models.append((candidate, likelihood(candidate, X_test, y_test)))
            if self.prunes:
                progress.after_fold(
                    np.mean([result["test_scores"][self.compared_by] for result in results])
                )
        scores = [result["test_scores"] for result in results]
        means = {name: float(np.mean([each[name] for each in scores])) for name in scores[0]}
        if self.compared_by is None:
            return tuple(means.values())
        if self.keeps_models:
            score = means[self.compared_by]
            kept[:] = [
                FoldModels(trial.number, stays, score, estimator, *zip(*models, strict=True))
            ]
        return means[self.compared_by]

    def _fold(self, candidate, X, y, train, test, progress):
        X_train, y_train = _safe_split(candidate, X, y, train)
        X_test, y_test = _safe_split(candidate, X, y, test, train)
        model = last_step(candidate)
        if is_mixture(model):
            left_out = (X_test, y_test) if self.prunes else None
            reporter = ReportEpochs(candidate, np.unique(y_train), left_out, progress)
            net_params = model.net_params
            callbacks = [*((net_params or {}).get("callbacks") or []), reporter]
            model.set_params(net_params={**(net_params or {}), "callbacks": callbacks})
        start = time.perf_counter()
        candidate.fit(X_train, y_train, **_check_method_params(X, self.fit_params, train))
        fitted = time.perf_counter()
        if is_mixture(model):
            reporter.leave(model, net_params)
        scores = {"test_scores": self._score(candidate, X_test, y_test, X, test)}
        scored = time.perf_counter()
        if self.with_train_scores:
            scores["train_scores"] = self._score(candidate, X_train, y_train, X, train)
        return {
            **scores,
            "fit_time": fitted - start,
            "score_time": scored - fitted,
            "n_test_samples": len(test),
        }

    def _score(self, candidate, X_part, y_part, X, rows):
        params = _check_method_params(X, self.score_params, rows)
        scores = self.scorer(candidate, X_part, y_part, **params)
        if isinstance(scores, dict) == (self.compared_by is not None):
            raise TypeError("A scorer must return one number. Pass several scorers as a dict.")
        values = scores if self.compared_by is None else {"score": scores}
        if self.compared_by == LOG_LIKELIHOOD:
            log_likelihood = np.log(likelihood(candidate, X_part, y_part))
            weight = params.get("sample_weight")
            values[LOG_LIKELIHOOD] = np.average(log_likelihood, weights=weight)
        values = {name: float(value) for name, value in values.items()}
        if not np.isfinite(list(values.values())).all():
            raise ValueError(f"A score is not a finite number: {values}.")
        return values


def _not_of_the_fit():
    from optuna import TrialPruned
    from optuna.exceptions import StorageInternalError

    return TrialPruned, StorageInternalError


class _Progress:
    """The values that a trial reports, averaged over the folds so far, and whether it may end."""

    def __init__(self, trial, may_end):
        self.trial, self.may_end = trial, may_end
        self.n_epochs = 0
        self.curves = []  # of each fold, by step

    def begin_fold(self):
        """Begin the next fold."""
        self.curves.append({})

    def after_epoch(self, epoch, n_epochs, value):
        """Report a value after an epoch of the last fold."""
        step = -(-STEPS * epoch // n_epochs)
        if step in self.curves[-1]:
            return
        self.curves[-1][step] = value
        mean = np.mean([curve[step] for curve in self.curves if step in curve])
        self._report(mean, (len(self.curves) - 1) * (STEPS + 1) + step)

    def after_fold(self, mean_score):
        """Report the mean score of the folds so far."""
        self._report(mean_score, len(self.curves) * (STEPS + 1))

    def _report(self, value, step):
        from optuna import TrialPruned

        self.trial.report(float(value), step)
        if self.may_end and self.trial.should_prune():
            raise TrialPruned(f"pruned at step {step}")


class ReportEpochs(Callback):
    """Count the epochs and report the log-likelihood of the samples that are left out."""

    def __init__(self, candidate, classes, left_out, progress):
        self.candidate, self.classes = candidate, classes
        self.left_out, self.progress = left_out, progress

    @staticmethod
    def leave(model, net_params):
        """Give a fitted mixture the net's parameters that a user passed, without this callback."""
        model.net_params = net_params
        net = model.net_
        net.callbacks = [each for each in net.callbacks if not isinstance(each, ReportEpochs)]
        net.callbacks_ = [pair for pair in net.callbacks_ if not isinstance(pair[1], ReportEpochs)]

    def on_train_begin(self, net, **kwargs):
        self.n_epochs = 0
        if self.left_out is None:
            return
        X, y = self.left_out
        if isinstance(self.candidate, Pipeline) and len(self.candidate) > 1:
            X = self.candidate[:-1].transform(X)
        known = np.isin(y, self.classes)
        if not known.any():
            self.left_out = None
            return
        self.X = net.session_.read(X)[known]
        self.y = np.searchsorted(self.classes, np.asarray(y)[known])

    def on_epoch_end(self, net, **kwargs):
        self.n_epochs += 1
        self.progress.n_epochs += 1
        if self.left_out is None:
            return
        log_proba = net.evaluate(self.X, lambda module, x: module(x).log_proba)
        value = log_proba[np.arange(len(self.y)), self.y].mean()
        self.progress.after_epoch(self.n_epochs, net.max_epochs, value)


def one_trial(study, storage, evaluation, n_trials, deadline, callbacks, X, y):
    """Run one trial, if one is missing and there is time; return what it keeps, or None."""
    from optuna.exceptions import StorageInternalError

    kept = []
    try:
        with quiet_optuna():
            if evaluation.suggest.first is not None:
                wait_for_beginning(study, n_trials, deadline)
            finished = n_finished(study)
            if time.time() >= deadline or finished >= n_trials:
                return None
            if finished >= MANY_FAILURES and all(has_error(trial) for trial in study.get_trials()):
                return None
            study.optimize(
                lambda trial: evaluation(trial, X, y, kept),
                n_trials=1,
                catch=TrialFailed,
                callbacks=callbacks,
            )
    except Exception as error:
        cause = error
        while cause and not isinstance(cause, StorageInternalError):
            cause = cause.__cause__ or cause.__context__  # Optuna may fail once more
        if cause is None:
            raise
        raise connection_error(storage, study.study_name, cause) from None
    return kept[0] if kept else None
