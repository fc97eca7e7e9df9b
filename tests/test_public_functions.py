"""Every public function on a table of single precision, with the default path on."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from sklearn.dummy import DummyClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_moe import (
    SCORERS,
    DecompositionDisplay,
    ExpertEffectDisplay,
    ExpertRegionsDisplay,
    ExpertSamplesDisplay,
    GateDisplay,
    GateRulesDisplay,
    MoEClassifier,
    TrainingDisplay,
    compare,
    compress_experts,
    cross_validate,
    decomposition_entropy,
    decomposition_report,
    decomposition_stability,
    distill,
    distillation_report,
    expert_class_information,
    expert_importance,
    explain,
    gate_rules,
    grow,
    prune_experts,
    responsibilities,
    sample_entropy,
    specialization,
    tune,
    usage_entropy,
)

matplotlib.use("Agg")

MOE = MoEClassifier(3, gate="attentive", max_iter=3, random_state=0)


@pytest.fixture(scope="module", params=["array", "frame", "pipeline"])
def fitted(request, table):
    X, y = table[0].astype(np.float32), table[1]
    if request.param == "frame":
        X = pd.DataFrame(X, columns=list("abcdef"))
    clf = make_pipeline(StandardScaler(), MOE) if request.param == "pipeline" else MOE
    return clf.fit(X, y), X, y


def test_measures(fitted):
    clf, X, y = fitted
    model = clf[-1] if hasattr(clf, "steps") else clf
    seen = clf[:-1].transform(X) if hasattr(clf, "steps") else X
    gate_proba = model.gate_proba(seen)
    assert gate_proba.dtype == np.float32
    log_likelihood = model.expert_log_likelihood(seen, y)
    assert log_likelihood.dtype == np.float32
    decomposition = decomposition_entropy(clf, X, y)
    for measure, value in [
        (sample_entropy(gate_proba), decomposition.sample_entropy),
        (usage_entropy(gate_proba), decomposition.usage_entropy),
        (expert_class_information(gate_proba, y), decomposition.expert_class_information),
        (specialization(gate_proba, log_likelihood), decomposition.specialization),
    ]:
        assert measure == pytest.approx(value, abs=1e-6)
    assert "H_u" in decomposition_report(clf, X, y)
    for scorer in SCORERS.values():
        assert np.isfinite(scorer(clf, X, y))


def test_stability(fitted):
    clf, X, y = fitted
    stability = decomposition_stability(clf, X, y, n_refits=1, resample="bootstrap")
    assert stability.choice.shape == (2, 600) and stability.sentence in repr(stability)
    assert stability.sentence in decomposition_report(clf, X, y, stability=stability)


def test_interpretation(fitted):
    clf, X, y = fitted
    rules = gate_rules(clf, X, random_state=0)
    assert rules.sentence.split()[0] in repr(rules)
    np.testing.assert_allclose(responsibilities(clf, X, y).sum(axis=1), 1)


def test_displays(fitted):
    clf, X, y = fitted
    for display in (
        DecompositionDisplay.from_estimator(clf, X, y),
        GateDisplay.from_estimator(clf, X),
        GateRulesDisplay.from_estimator(clf, X),
        ExpertSamplesDisplay.from_estimator(clf, X),
        ExpertRegionsDisplay.from_estimator(clf, X, features=[0, 1], grid_resolution=5),
        ExpertEffectDisplay.from_estimator(clf, X, 0, target=1, grid_resolution=3),
        TrainingDisplay.from_estimator(clf),
    ):
        matplotlib.pyplot.close(display.figure_)


def test_explanations(fitted):
    clf, X, y = fitted
    explanation = explain(clf, X[:2], background=X, n_permutations=2, random_state=0)
    proba = softmax(explanation.logit, axis=1)
    model = clf[-1] if hasattr(clf, "steps") else clf
    seen = clf[:-1].transform(X) if hasattr(clf, "steps") else X
    np.testing.assert_allclose(proba, model.expert_proba(seen[:2], chosen_only=True), atol=1e-5)
    assert expert_importance(clf, X, y, n_repeats=1).importance.shape == (3, 6)


def test_smaller_and_faster_mixtures(fitted):
    clf, X, y = fitted
    student = distill(clf, X, y, max_iter=1)
    assert distillation_report(clf, student, X, y).agreement > 0
    pruned = prune_experts(
        student, method="similarity", n_experts=2, X=X, y=y, fine_tune=True, max_iter=1
    )
    assert pruned.predict_proba(X).shape == (600, 3)
    compressed = compress_experts(clf, X, y, bond=4, fine_tune=True, max_iter=1)
    assert compressed.predict_proba(X).dtype == np.float32
    assert grow(student, X, y, n_new=2, max_iter=1).predict_proba(X).shape == (600, 3)


def test_cross_validation_and_tuning(fitted):
    clf, X, y = fitted
    assert np.isfinite(cross_validate(clf, X, y, cv=2)["test_score"]).all()
    assert "MoEClassifier" in repr(
        compare({"MoEClassifier": clf, "prior": DummyClassifier()}, X, y, cv=2)
    )
    search = tune(clf, X, y, n_trials=1, cv=2, random_state=0)
    assert search.predict_proba(X).dtype == np.float32
