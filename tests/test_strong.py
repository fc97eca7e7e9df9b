"""``experts="strong"``: the best that the package offers for tables."""

import pickle

import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
import skops.io
from scipy import sparse
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import PredefinedSplit
from sklearn.utils import get_tags

from sklearn_moe import (
    TRUSTED_TYPES,
    EstimatorExperts,
    MoEClassifier,
    StrongExperts,
    decomposition_report,
    prune_experts,
)
from sklearn_moe.experts.strong import TableColumns

NAMES = ["boosting", "forest", "mixture", "regression"]


pytestmark = pytest.mark.usefixtures("small_strong_experts")


def mixture(**params):
    return MoEClassifier(experts=StrongExperts(cv=2), max_iter=3, random_state=0, **params)


@pytest.fixture(scope="module")
def fitted(mixed_table):
    X, y = mixed_table
    return mixture().fit(X[:400], y[:400])


def test_mixes_the_four(fitted, mixed_table):
    X, y = mixed_table
    assert fitted.expert_names_ == list(fitted.named_experts_) == NAMES
    mixed = np.einsum("ne,nec->nc", fitted.gate_proba(X), fitted.expert_proba(X))
    np.testing.assert_allclose(fitted.predict_proba(X), mixed, atol=1e-6)
    losses = [
        log_loss(y[400:], proba)
        for proba in fitted.expert_proba(X[400:]).transpose(1, 0, 2).astype(float)
    ]
    assert log_loss(y[400:], fitted.predict_proba(X[400:])) < min(losses) + 0.02
    assert "boosting" in str(decomposition_report(fitted, X, y))


def test_what_pruning_leaves_can_be_fitted_again(fitted, mixed_table):
    X, y = mixed_table
    pruned = prune_experts(fitted, method="random", n_experts=2, random_state=0)
    assert clone(pruned).fit(X[:200], y[:200]).expert_names_ == pruned.expert_names_


def test_the_name_stands_for_it():
    clf = MoEClassifier(experts="strong", max_iter=1, random_state=0)
    assert clf.fit(np.eye(20)[:, :4], np.arange(20) % 2).expert_names_ == NAMES


def test_all_containers_give_the_same(fitted, mixed_table):
    X, y = mixed_table
    expected = fitted.predict_proba(X[400:])
    frame = pl.from_pandas(X)
    clf = mixture().fit(frame[:400], y[:400])
    np.testing.assert_allclose(clf.predict_proba(frame[400:]), expected, atol=1e-5)
    is_text = [name in ("town", "colour") for name in X]
    rows = X.astype({"new": float}).astype(object).to_numpy().tolist()
    clf = mixture(categorical_features=is_text).fit(rows[:400], y[:400])
    np.testing.assert_allclose(clf.predict_proba(rows[400:]), expected, atol=1e-3)


def test_numbers_may_be_categories():
    """Boosting learns the parity of a category from few samples, and of a number it cannot."""
    rng = np.random.RandomState(0)
    X = np.column_stack([rng.randn(400), rng.randint(0, 40, 400)])
    y = (X[:, 1] % 2).astype(int)
    clf = mixture(categorical_features=[1]).fit(X, y)
    is_right = clf.expert_proba(X).argmax(axis=2) == y[:, np.newaxis]
    assert is_right.mean(axis=0)[[0, 3]].min() > 0.8
    assert mixture().fit(X, y).named_experts_.regression.score(X, y) < 0.7


@pytest.mark.parametrize(
    "spoil",
    [
        lambda X: sparse.csr_array(X * (X > 1)),
        lambda X: np.where(np.arange(4) == 3, np.nan, X),
        lambda X: np.where(X == X[0, 0], 1e300, X),
        lambda X: pd.DataFrame(X, columns=list("abcd")).convert_dtypes().mask(X > 2),
    ],
    ids=["sparse", "a column without values", "huge", "nullable"],
)
def test_odd_tables(spoil):
    rng = np.random.RandomState(0)
    X = rng.randn(80, 4)
    proba = mixture().fit(spoil(X), (X[:, 0] > 0).astype(int)).predict_proba(spoil(X))
    assert np.isfinite(proba).all()


def test_without_encoder():
    X = np.random.RandomState(0).randn(80, 3)
    clf = mixture(encoder=None, gate="attentive").fit(X, X[:, 0] > 0)
    assert clf.score(X, X[:, 0] > 0) > 0.9


def test_unknown_and_many_categories():
    """Boosting takes at most 255 categories; the rarest share one."""
    rng = np.random.RandomState(0)
    X = pd.DataFrame({"id": [f"n{i}" for i in range(300)], "x": rng.randn(300)})
    clf = mixture().fit(X, X.x > 0)
    unknown = X.assign(id="new")
    assert clf.score(unknown, X.x > 0) > 0.9
    columns = TableColumns(np.array([True, False])).fit(X)
    assert columns.transform(unknown)[:, 1].tolist() == [99] * 300


@pytest.mark.parametrize("routing", [False, True])
def test_sample_weights_reach_all(routing):
    rng = np.random.RandomState(0)
    X, y = rng.randn(100, 3), np.arange(100) % 2
    weight = np.where(y == 1, 20.0, 1.0)
    with sklearn.config_context(enable_metadata_routing=routing):
        clf = mixture().fit(X, y, sample_weight=weight)
    assert clf.expert_proba(X)[:, :, 1].mean(axis=0).min() > 0.75


def test_clone_pickle_seed_and_skops(fitted, mixed_table):
    X, y = mixed_table
    expected = fitted.predict_proba(X)
    assert np.array_equal(clone(fitted).fit(X[:400], y[:400]).predict_proba(X), expected)
    assert np.array_equal(pickle.loads(pickle.dumps(fitted)).predict_proba(X), expected)
    file = skops.io.dumps(fitted)
    others = set(skops.io.get_untrusted_types(data=file)) - set(TRUSTED_TYPES)
    assert not any(each.startswith("sklearn_moe") for each in others)
    again = skops.io.loads(file, trusted=[*TRUSTED_TYPES, *others])
    assert np.array_equal(again.predict_proba(X), expected)


@pytest.mark.parametrize("cv", ["prefit", 1])
def test_bad_folds(cv):
    with pytest.raises(ValueError, match="'cv' parameter of StrongExperts"):
        MoEClassifier(experts=StrongExperts(cv=cv)).fit(np.eye(4), [0, 0, 1, 1])


def test_it_is_no_single_expert():
    with pytest.raises(ValueError, match="The expert 'best' is itself a list of experts"):
        MoEClassifier(experts=[("best", "strong")]).fit(np.eye(4), [0, 0, 1, 1])


def test_tags_are_those_of_a_table():
    assert get_tags(mixture()).input_tags == get_tags(MoEClassifier()).input_tags


def test_a_fold_of_one_class_that_boosting_takes():
    X, y = np.random.RandomState(0).rand(40, 2), np.arange(40) % 2
    trees = [("trees", HistGradientBoostingClassifier(max_iter=2))]
    clf = MoEClassifier(experts=EstimatorExperts(trees, cv=PredefinedSplit(y)), max_iter=2)
    assert np.allclose(clf.fit(X, y).predict_proba(X).sum(axis=1), 1)
