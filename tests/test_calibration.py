"""Calibrated probabilities: one temperature, found on samples that had no part in the fit."""

import pickle

import numpy as np
import pandas as pd
import pytest
from scipy.special import log_softmax
from sklearn.base import clone
from sklearn.metrics import log_loss
from sklearn.model_selection import cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_moe import (
    MoEClassifier,
    decomposition_entropy,
    distill,
    grow,
    prune_experts,
)


def make(**params):
    """A mixture that is soon trained, and far too sure."""
    sure = {"gate": "hard", "regularization": None, "weight_decay": 0.0, "max_iter": 12}
    return MoEClassifier(3, **{**sure, "random_state": 0, **params})


@pytest.fixture(scope="module")
def noisy(table):
    """Samples of which a third have a random label, in three parts."""
    X, y = table
    rng = np.random.RandomState(0)
    y = np.where(rng.uniform(size=len(y)) < 0.3, rng.randint(3, size=len(y)), y)
    return (X[:300], y[:300]), (X[300:400], y[300:400]), (X[400:], y[400:])


@pytest.fixture(scope="module")
def uncalibrated(noisy):
    return make().fit(*noisy[0])


@pytest.fixture(scope="module")
def calibrated(noisy):
    """One that is calibrated on folds, and one on a validation set."""
    (X, y), (X_val, y_val), _ = noisy
    return (
        make(calibrate=True).fit(X, y),
        make(calibrate=True).fit(X, y, X_val=X_val, y_val=y_val),
    )


def test_the_log_loss_falls_and_nothing_else_changes(noisy, uncalibrated, calibrated):
    X, y = noisy[2]
    assert uncalibrated.temperature_ == 1
    before = log_loss(y, uncalibrated.predict_proba(X))
    for clf in calibrated:
        assert clf.temperature_ > 1.5
        assert log_loss(y, clf.predict_proba(X)) < 0.8 * before
        for method in ("predict", "apply", "gate_proba", "expert_proba"):
            assert np.array_equal(getattr(clf, method)(X), getattr(uncalibrated, method)(X))
        assert clf.loss_curve_ == uncalibrated.loss_curve_
        one, other = (decomposition_entropy(each, X, y) for each in (clf, uncalibrated))
        assert repr(one) == repr(other)


def test_probabilities_are_those_of_the_mixture_after_the_temperature(noisy, calibrated):
    X, clf = noisy[2][0], calibrated[0]
    mixed = np.einsum("ne,nec->nc", clf.gate_proba(X), clf.expert_proba(X))
    expected = mixed ** (1 / clf.temperature_)
    expected /= expected.sum(axis=1, keepdims=True)
    proba = clf.predict_proba(X)
    np.testing.assert_allclose(proba, expected, atol=1e-5)
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-15)
    np.testing.assert_allclose(np.exp(clf.predict_log_proba(X)), proba, atol=1e-6)
    assert np.array_equal(clf.predict(X), clf.classes_[proba.argmax(axis=1)])


def test_the_temperature_has_the_lowest_loss_of_the_validation_set(noisy, calibrated):
    (X, y), (clf, _) = noisy[1], calibrated[::-1]
    log_proba = clf.predict_log_proba(X) * clf.temperature_

    def loss(temperature):
        of_label = log_softmax(log_proba / temperature, axis=1)[np.arange(len(y)), y]
        return -of_label.sum() + np.log(temperature) ** 2 / 2  # with the prior

    best = loss(clf.temperature_)
    assert all(best <= loss(clf.temperature_ * factor) for factor in (0.2, 0.9, 1.1, 5))


def test_the_validation_set_counts_with_its_weights(noisy, calibrated):
    (X, y), (X_val, y_val), _ = noisy
    weight = np.arange(len(y_val)) % 2
    half = weight == 1
    clf = make(calibrate=True)
    weighted = clf.fit(X, y, X_val=X_val, y_val=y_val, sample_weight_val=weight).temperature_
    alone = clf.fit(X, y, X_val=X_val[half], y_val=y_val[half]).temperature_
    assert weighted == pytest.approx(alone, rel=1e-3)
    assert weighted != pytest.approx(calibrated[1].temperature_, rel=1e-3)


def test_a_fit_with_a_validation_set_needs_no_folds(noisy, monkeypatch):
    def fit_folds(*args):
        raise AssertionError("fitted on folds")

    monkeypatch.setattr("sklearn_moe.fitting.temperature_on_folds", fit_folds)
    clf = make(calibrate=True, early_stopping=True).fit(*noisy[0])
    assert clf.temperature_ != 1
    with pytest.raises(AssertionError, match="fitted on folds"):
        make(calibrate=True).fit(*noisy[0])


def test_few_samples_that_are_predicted_well_say_little(iris):
    X, y = iris
    few = slice(0, 150, 25)  # two of each class
    clf = make(calibrate=True, max_iter=20).fit(X, y, X_val=X[few], y_val=y[few])
    assert clf.predict_proba(X[few])[np.arange(6), y[few]].min() > 0.9
    assert 0.7 < clf.temperature_ < 1


def test_weights_of_zero_count_as_removed(noisy):
    X, y = noisy[0]
    weight = np.repeat([1.0, 0.0], [250, 50])
    clf = make(calibrate=True, max_iter=4)
    kept = clone(clf).fit(X[:250], y[:250]).temperature_
    assert clf.fit(X, y, sample_weight=weight).temperature_ == pytest.approx(kept, rel=1e-3)


def test_every_container_and_label(noisy):
    X, y = noisy[0]
    frame = pd.DataFrame(X).rename(columns=str).assign(kind=np.where(X[:, 1] > 0, "a", "b"))
    clf = make(calibrate=True, max_iter=4, random_state=np.random.RandomState(0))
    fitted = clf.fit(frame, np.array(["no", "perhaps", "yes"])[y])
    again = clone(clf).set_params(random_state=np.random.RandomState(0))
    again = again.fit(frame.to_numpy().tolist(), np.array(["no", "perhaps", "yes"])[y])
    assert fitted.temperature_ == pytest.approx(again.temperature_, rel=1e-6)
    assert fitted.temperature_ != 1


# Classes that are not there


def test_a_class_may_be_missing_in_the_validation_set(noisy):
    (X, y), (X_val, y_val), _ = noisy
    known = y_val != 2
    clf = make(calibrate=True, max_iter=4).fit(X, y, X_val=X_val[known], y_val=y_val[known])
    assert clf.temperature_ != 1


def test_a_single_class(noisy):
    (X, y), (X_val, y_val), _ = noisy
    own = y_val == 1
    with pytest.raises(ValueError, match=r"calibrate=True needs .* two classes, .* of class 1\."):
        make(calibrate=True).fit(X, y, X_val=X_val[own], y_val=y_val[own])


@pytest.mark.parametrize("params", [{}, {"class_weight": {1: 2.0}}, {"early_stopping": True}])
def test_too_few_samples_of_a_class(noisy, params):
    X, y = noisy[0]
    rows = np.concatenate([np.flatnonzero(y == 0)[:20], np.flatnonzero(y == 1)[:1]])
    clf = make(calibrate=True, max_iter=2, **params)
    with pytest.warns(UserWarning, match="The temperature stays 1"):
        assert clf.fit(X[rows], y[rows]).temperature_ == 1


def test_wrong_parameters(iris):
    X, y = iris[0][49:51], iris[1][49:51]
    with pytest.raises(ValueError, match=r"calibrate=True, need two samples of a class.*=2\."):
        make(calibrate=True).fit(X, y)
    with pytest.raises(
        ValueError, match=r"'calibrate' parameter .* must be an instance of 'bool'"
    ):
        make(calibrate="isotonic").fit(*iris)


def test_folds_keep_groups_together(noisy, monkeypatch):
    def spy(clf, X, y, sample_weight=None, *, groups=None, **params):
        seen.append(np.unique(groups).tolist())
        return fit(clf, X, y, sample_weight, groups=groups, **params)

    seen, fit = [], MoEClassifier.fit
    X, y = noisy[0]
    group = np.arange(len(y)) // 3
    X = np.c_[X, group % 7]
    clf = make(gate="softmax", calibrate=True, max_iter=2)
    monkeypatch.setattr(MoEClassifier, "fit", spy)
    clf.fit(X, y, groups=group)
    assert clf.temperature_ != 1
    assert sorted(seen[1] + seen[2]) == seen[0]


# What becomes of the temperature


def test_later_trainings_keep_the_temperature(noisy, calibrated):
    (X, y), (X_val, y_val), _ = noisy
    clf = pickle.loads(pickle.dumps(calibrated[0]))
    temperature = clf.temperature_
    assert clf.partial_fit(X, y).temperature_ == temperature
    clf.set_params(warm_start=True, max_iter=2)
    assert clf.fit(X, y).temperature_ == temperature
    assert clf.fit(X, y, X_val=X_val, y_val=y_val).temperature_ != temperature
    assert clf.set_params(warm_start=False, calibrate=False).fit(X, y).temperature_ == 1
    assert make(calibrate=True).partial_fit(X, y, classes=[0, 1, 2]).temperature_ == 1


def test_mixtures_made_from_this_one_keep_the_temperature(noisy, calibrated):
    X, y = noisy[0]
    clf = calibrated[0]
    pruned = prune_experts(clf, method="heavy_hitters", n_experts=2, X=X)
    grown = grow(clf, X[:40], np.full(40, 7), max_iter=1)
    teacher = make(gate="attentive", calibrate=True, max_iter=3).fit(X, y)
    student = distill(teacher, X, y, max_iter=1)
    for one, other in ((pruned, clf), (grown, clf), (student, teacher)):
        assert one.temperature_ == other.temperature_ != 1


def test_pipelines_and_cross_validation(noisy):
    X, y = noisy[0]
    losses = {}
    for calibrate in (False, True):
        pipeline = make_pipeline(StandardScaler(), make(calibrate=calibrate))
        result = cross_validate(
            pipeline, X, y, cv=2, scoring=("accuracy", "neg_log_loss"), return_estimator=True
        )
        losses[calibrate] = -result["test_neg_log_loss"].mean()
    assert result["estimator"][0][-1].temperature_ > 1
    assert losses[True] < losses[False]
