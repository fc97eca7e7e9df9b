"""What ``fit`` and ``partial_fit`` do, from the data to the fitted attributes."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state

from sklearn_moe.calibration import (
    temperature_of_mixture,
    temperature_on_folds,
    warn_of_no_temperature,
)
from sklearn_moe.checks import explained_memory
from sklearn_moe.data import read_training_data
from sklearn_moe.importances import column_importances
from sklearn_moe.mixture import MixtureOfExperts
from sklearn_moe.notices import warn_of_news
from sklearn_moe.parameters import (
    check_enough_samples,
    check_parameters,
    encoder_of,
    has_linear_experts,
    listed_experts,
    net_for,
    number_of_experts,
    search_of,
)
from sklearn_moe.summaries import summarize
from sklearn_moe.training.callbacks import ScikitLearnCallbacks, usual_callbacks
from sklearn_moe.training.session import Session, fitted_attributes
from sklearn_moe.training.stopping import StopEarly, loss_to_watch


def train(
    new: BaseEstimator,
    estimator: BaseEstimator,
    X: Any,
    y: ArrayLike,
    sample_weight: ArrayLike | None,
    validation: tuple[Any, ArrayLike | None, ArrayLike | None],
    classes: NDArray | None,
    groups: ArrayLike | None,
    going_on: bool,
) -> bool:
    """Train a copy of an estimator, and set its fitted attributes.

    Parameters
    ----------
    new : MoEClassifier
        The copy.
    estimator : MoEClassifier
        The estimator that a user has, for scikit-learn's callbacks.
    X, y, sample_weight, groups
        As in ``MoEClassifier.fit``.
    validation : tuple of X_val, y_val and sample_weight_val
        Likewise.
    classes : ndarray or None
        All classes that will ever occur, in a call of ``partial_fit``.
    going_on : bool
        Whether to go on from the weights of the copy.

    Returns
    -------
    bool
        Whether a user interrupted the training.
    """
    incremental = classes is not None
    check_parameters(new)
    n_init, annealing = search_of(new)
    if going_on or incremental:
        n_init, annealing = 1, None
    # Flexible experts overfit, so the training samples cannot tell which restart is best.
    chooses_by_validation = n_init > 1 and not has_linear_experts(new)
    if going_on:
        random_state = deepcopy(new._random_state)
    else:
        seed = check_random_state(new.random_state).randint(np.iinfo(np.int32).max)
        random_state = np.random.RandomState(seed)
    data = read_training_data(
        new,
        X,
        y,
        sample_weight,
        validation,
        encoder=encoder_of(new),
        experts=listed_experts(new),
        classes=classes,
        going_on=going_on,
        needs_validation=bool(new.early_stopping) or chooses_by_validation,
        random_state=random_state,
        groups=groups,
    )
    warn_of_news(new, data.news)
    if not incremental:
        check_enough_samples(new, data)
    # A warm start has seen the samples before, so only a user's validation set can calibrate it.
    calibrates = new.calibrate and not incremental and not (going_on and validation[0] is None)
    if calibrates and data.validation is not None and np.ptp(data.validation[1]) == 0:
        found = (
            "calibrate=True needs validation samples of at least two classes, got only samples of "
            f"class {data.classes.tolist()[data.validation[1][0]]!r}."
        )
        if validation[0] is not None:
            raise ValueError(f"{found} Pass more, or calibrate=False.")
        warn_of_no_temperature(found)
        calibrates = False
    n_experts = number_of_experts(new)
    build_seed, train_seed = random_state.randint(np.iinfo(np.int32).max, size=2).tolist()
    more = np.random.RandomState(build_seed).randint(np.iinfo(np.int32).max, size=n_init - 1)
    with explained_memory(n_experts):
        net = net_for(new, data, build_seed, going_on=going_on, incremental=incremental)
    epochs = 1 if incremental else net.max_epochs
    n_iter_before = new.n_iter_ if going_on else 0
    new.temperature_ = new.temperature_ if going_on else 1.0
    if calibrates and data.validation is None:
        new.temperature_ = temperature_on_folds(new, data, sample_weight, train_seed)
    new.reader_, new.encoder_ = data.reader, data.reader.table
    new.classes_ = data.classes
    new._random_state = random_state
    callbacks = usual_callbacks(new, epochs, incremental=incremental, annealing=annealing)
    if hasattr(new, "_skl_callbacks"):
        task = data.task(sample_weight)
        callbacks.append(ScikitLearnCallbacks(estimator, epochs, dict(vars(new)), **task))
    # The last one, as callbacks after it would miss the epoch that it ends.
    if new.early_stopping and data.validation:
        loss = loss_to_watch(new.early_stopping, data.validation, data.classes)
        callbacks.append(StopEarly(loss, new.n_iter_no_change, new.tol))
    with explained_memory(n_experts):
        session = Session(
            net,
            data.X,
            data.y,
            data.sample_weight,
            data.validation,
            seed=train_seed,
            callbacks=callbacks,
            read=partial(new.reader_.read, estimator=new),
            group=data.group,
            seeds=[build_seed, *more.tolist()],
            chooses_by_validation=chooses_by_validation,
        )
        interrupted = session.run(1 if incremental else None)
    vars(new).update(fitted_attributes(net, data.X, data.sample_weight, n_iter_before))
    vars(new).update(session.results(data.total_weight))
    if calibrates and data.validation is not None:
        X_val, *of_val = data.validation
        log_proba = net.evaluate(X_val, MixtureOfExperts.predict_log_proba, np.float64)
        new.temperature_ = temperature_of_mixture(log_proba, *of_val)
    # A chunk of a stream is not all that the mixture has learned from.
    new.input_summary_ = new._importances = None
    if not incremental:
        weight = data.sample_weight * data.mean_class_weight
        new.input_summary_ = summarize(net, data.X, data.y, weight)
        new._importances = column_importances(net, data.X, data.sample_weight)
    return interrupted
