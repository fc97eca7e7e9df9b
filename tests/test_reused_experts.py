"""Experts that are there already: those of fitted mixtures."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from sklearn_moe import (
    FittedExpert,
    MLPExperts,
    MoEClassifier,
    decomposition_report,
    distill,
    gate_rules,
    prune_experts,
)

X, y = load_digits(return_X_y=True)
X, y = X[:800], y[:800]
FIRST = y < 5

SMALL = {"max_iter": 5, "random_state": 0}


@pytest.fixture(scope="module")
def old():
    return MoEClassifier(3, experts=MLPExperts((16,)), **SMALL).fit(X[FIRST], y[FIRST])


@pytest.fixture(scope="module")
def listed():
    experts = [("bayes", GaussianNB()), ("net", MLPExperts((8,)))]
    return MoEClassifier(experts=experts, **SMALL).fit(X, y)


@pytest.fixture(scope="module")
def reused(old):
    return MoEClassifier(experts=experts_of(old), **SMALL).fit(X, y)


def experts_of(old):
    return [("one", FittedExpert(old, 2)), ("other", FittedExpert(old, 0)), ("new", "mlp")]


# Experts of a fitted mixture


def test_an_expert_answers_as_in_its_mixture(old, listed, reused):
    one = FittedExpert(old, 2)
    expected = old.expert_proba(X)[:, 2]
    np.testing.assert_array_equal(one.predict_proba(X), expected)
    np.testing.assert_array_equal(one.fit(X, y).predict(X), old.classes_[expected.argmax(axis=1)])
    assert one.score(X[FIRST], y[FIRST]) > 0.8
    np.testing.assert_allclose(reused.expert_proba(X)[:, 0, :5], expected, atol=1e-5)
    assert reused.expert_proba(X)[:, 0, 5:].max() < 1e-6
    by_name = FittedExpert(listed, "net").predict_proba(X)
    np.testing.assert_array_equal(by_name, listed.expert_proba(X)[:, 1])


def test_pipelines_and_searches(old):
    clf = make_pipeline(MinMaxScaler(), clone(old)).fit(X[FIRST], y[FIRST])
    expected = clf[-1].expert_proba(clf[:-1].transform(X))[:, 1]
    np.testing.assert_array_equal(FittedExpert(clf, 1).predict_proba(X), expected)
    search = GridSearchCV(clf, {"moeclassifier__max_iter": [1]}, cv=2).fit(X[FIRST], y[FIRST])
    assert FittedExpert(search, 1).predict_proba(X).shape == (len(X), 5)


def test_the_mixture_stays_as_it_is(old, reused):
    before = pickle.dumps(old.net_)
    again = clone(reused).fit(X, y)
    np.testing.assert_array_equal(again.predict_proba(X), reused.predict_proba(X))
    assert pickle.dumps(old.net_) == before
    loaded = pickle.loads(pickle.dumps(reused))
    np.testing.assert_array_equal(loaded.predict_proba(X), reused.predict_proba(X))
    one, other = (expert.mixture for _, expert in loaded.experts[:2])
    assert one is other  # the file has it once


def test_searches_choose_the_expert(reused):
    assert "experts__one__mixture__random_state" not in reused.get_params()
    grid = {"experts__one__expert": [0, 1], "max_iter": [1]}
    search = GridSearchCV(reused, grid, cv=2).fit(X, y)
    assert search.best_params_["experts__one__expert"] in (0, 1)
    assert reused.experts[0][1].expert == 2


def test_reports_and_rules_name_them(reused):
    assert reused.expert_names_ == ["one", "other", "new"]
    assert list(reused.named_experts_) == ["one", "other"]
    assert "other" in str(decomposition_report(reused, X, y))
    assert gate_rules(reused, X, random_state=0).expert_names == reused.expert_names_
    assert reused.score(X, y) > 0.8


def test_pruning_and_distillation(old, reused):
    pruned = prune_experts(reused, method="heavy_hitters", n_experts=2, X=X)
    assert "one" in pruned.expert_names_ or "other" in pruned.expert_names_
    assert clone(pruned).fit(X, y).expert_names_ == pruned.expert_names_
    attentive = clone(reused).set_params(gate="attentive").fit(X, y)
    student = distill(attentive, X, y, max_iter=5)
    assert student.named_experts_.one.mixture is not None
    np.testing.assert_array_equal(student.expert_proba(X), attentive.expert_proba(X))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda old: FittedExpert(old, 3), ValueError, "from 0 to 2, as the mixture has 3"),
        (lambda old: FittedExpert(old, -1), ValueError, "'expert' parameter of FittedExpert"),
        (lambda old: FittedExpert(old, "net"), ValueError, "a position from 0 to 2"),
        (lambda old: FittedExpert(clone(old), 0), NotFittedError, "not fitted"),
        (lambda old: FittedExpert(LogisticRegression(), 0), (TypeError, ValueError), "gate_proba"),
        (lambda old: FittedExpert(None, 0), ValueError, "'mixture' parameter of FittedExpert"),
    ],
)
def test_wrong_experts(make, error, message, old):
    expert = make(old)
    for use in (
        lambda: expert.predict_proba(X),
        lambda: MoEClassifier(experts=[("old", expert), ("new", "mlp")]).fit(X, y),
    ):
        with pytest.raises(error, match=message):
            use()
    with pytest.raises(ValueError, match="The expert 'old'"):
        MoEClassifier(experts=[("old", expert)]).fit(X, y)


def test_wrong_names_and_classes(old, listed):
    with pytest.raises(ValueError, match=r"must be one of the names \['bayes', 'net'\]"):
        FittedExpert(listed, "nobody").predict(X)
    with pytest.raises(ValueError, match=r"'old' was fitted on the classes \[0, 1\], which y"):
        MoEClassifier(experts=[("old", FittedExpert(old, 0))]).fit(X[y > 1], y[y > 1])
