"""``feature_importances_``: which columns the predictions depend on."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from kinds import OF_TABLES
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.feature_selection import RFE, SelectFromModel
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sklearn_moe import (
    GATES,
    LinearExperts,
    MoEClassifier,
    distill,
    grow,
    prune_experts,
)


def make(**params):
    return MoEClassifier(**{"n_experts": 3, "max_iter": 10, "random_state": 0, **params})


@pytest.fixture(scope="module")
def frame():
    """A table of which "main", "kind" and "side" matter, in this order, and two more do not."""
    rng = np.random.RandomState(0)
    X = pd.DataFrame(rng.normal(size=(400, 4)), columns=["noise", "main", "side", "other"])
    X["side"] *= 100  # the scale says nothing
    X["kind"] = pd.Categorical(rng.choice(list("abcde"), 400))
    score = 3 * X["main"] + 0.01 * X["side"] + 4 * X["kind"].isin(["a", "b"])
    return X, np.where(score > 1, "yes", "no")


@pytest.fixture(scope="module")
def fitted(frame):
    return make().fit(*frame)


def test_columns_that_matter_come_first(fitted):
    importances = dict(zip(fitted.feature_names_in_, fitted.feature_importances_, strict=True))
    assert sorted(importances, key=lambda name: -importances[name])[:3] == ["main", "kind", "side"]
    assert importances["side"] > 1.5 * max(importances["noise"], importances["other"])
    assert sum(importances.values()) == pytest.approx(1)
    assert min(importances.values()) >= 0


def test_linear_mixture_against_its_coefficients():
    """One logistic regression has the slopes of its coefficients everywhere."""
    rng = np.random.RandomState(0)
    X = rng.normal(size=(500, 3)) * [1, 5, 0.1]
    y = rng.uniform(size=500) < 1 / (1 + np.exp(-X @ [2, 0.1, 0]))
    clf = MoEClassifier(1, experts=LinearExperts(), encoder=None, random_state=0).fit(X, y)
    weight = clf.module_.experts.weight.detach()[0].numpy()  # (n_columns, n_classes)
    weight = weight if weight.shape[0] == 3 else weight.T
    slope = np.abs(weight[:, 1] - weight[:, 0])
    expected = slope * X.std(axis=0)
    np.testing.assert_allclose(clf.feature_importances_, expected / expected.sum(), atol=0.02)


def test_they_are_a_copy_and_live_on(fitted):
    before = fitted.feature_importances_
    fitted.feature_importances_[:] = 7
    assert np.array_equal(fitted.feature_importances_, before)
    assert np.array_equal(pickle.loads(pickle.dumps(fitted)).feature_importances_, before)


def test_weights_of_zero_count_as_removed(frame):
    X, y = frame
    weight = np.repeat([1.0, 0.0], [300, 100])
    clf = make(max_iter=3, n_experts=2)
    weighted = clf.fit(X, y, sample_weight=weight).feature_importances_
    np.testing.assert_allclose(weighted, clf.fit(X[:300], y[:300]).feature_importances_)


@pytest.mark.parametrize(
    "params",
    [
        *({"gate": gate} for gate in sorted(GATES)),
        *({"experts": kind} for kind in OF_TABLES),
        {"mixing": "logit"},
        {"encoder": lambda shape: nn.Linear(*shape, 5)},
        {"experts": lambda shape, n_classes: nn.Linear(*shape, n_classes)},
    ],
    ids=lambda params: "_".join(f"{name}_{value}"[:30] for name, value in params.items()),
)
@pytest.mark.filterwarnings("ignore:The best of")
@pytest.mark.usefixtures("short_polish")
def test_every_kind_of_mixture(params, frame):
    clf = make(max_iter=5, **params).fit(*frame)
    importances = clf.feature_importances_
    assert importances.shape == (5,)
    assert importances.sum() == pytest.approx(1)
    assert importances[[1, 4]].sum() > 0.5
    assert all(parameter.grad is None for parameter in clf.module_.parameters())


def test_columns_that_a_part_does_not_read():
    rng = np.random.RandomState(0)
    X = rng.normal(size=(300, 4))
    y = np.where(X[:, 0] > 0, X[:, 1] > 0, X[:, 1] < 0)
    clf = make(gate_features=[0], expert_features=[1, 2]).fit(X, y)
    assert clf.feature_importances_[3] == 0
    assert clf.feature_importances_[:2].min() > clf.feature_importances_[2]


def test_a_prediction_that_depends_on_nothing(iris):
    class Deaf(nn.Module):
        def __init__(self, input_shape, n_classes):
            super().__init__()
            self.logits = nn.Parameter(torch.zeros(n_classes))

        def forward(self, x):
            return self.logits.expand(len(x), -1)

    clf = MoEClassifier(1, experts=Deaf, gate="constant", max_iter=1).fit(*iris)
    assert clf.feature_importances_.tolist() == [0, 0, 0, 0]


def test_sparse_and_plain_arrays_agree(digits):
    from scipy import sparse

    X, y = digits[0][:200], digits[1][:200]
    clf = make(max_iter=2)
    plain = clf.fit(X, y).feature_importances_
    np.testing.assert_allclose(
        clf.fit(sparse.csr_array(X), y).feature_importances_, plain, atol=1e-4
    )


# Selection of features


def test_recursive_elimination(frame):
    X, y = frame
    X = X.assign(kind=X["kind"].cat.codes)
    selector = RFE(make(max_iter=5), n_features_to_select=2, step=2).fit(X, y)
    assert selector.get_feature_names_out().tolist() == ["main", "kind"]


def test_selection_from_a_model_within_a_pipeline(frame):
    X, y = frame
    X = X.assign(kind=X["kind"].cat.codes)
    selector = SelectFromModel(make(max_iter=8), threshold="mean").set_output(transform="pandas")
    pipeline = make_pipeline(StandardScaler(), selector, LogisticRegression()).fit(X, y)
    assert "main" in pipeline[:-1].get_feature_names_out(X.columns)
    assert "noise" not in pipeline[:-1].get_feature_names_out(X.columns)


def test_later_mixtures(frame):
    X, y = frame
    clf = make(max_iter=4, gate="attentive").fit(X, y)
    student = distill(clf, X, y, max_iter=1)
    assert student.feature_importances_.sum() == pytest.approx(1)
    assert np.abs(student.feature_importances_ - clf.feature_importances_).max() > 1e-4
    pruned = prune_experts(student, method="heavy_hitters", n_experts=2, X=X)
    assert pruned.feature_importances_.sum() == pytest.approx(1)
    grown = grow(student, X[:40], y[:40], max_iter=1)
    assert grown.feature_importances_.shape == (5,)


# Mixtures without


def test_mixtures_that_have_none(frame):
    X, y = frame
    clf = make(max_iter=1)
    with pytest.raises(NotFittedError):
        _ = clf.feature_importances_
    images = load_digits()
    clf.fit(images.images[:100], images.target[:100] % 3)
    assert not hasattr(clf, "feature_importances_")
    with pytest.raises(AttributeError, match=r"of a mixture that reads images.*ExpertSamples"):
        _ = clf.feature_importances_
    trees = RandomForestClassifier(5, random_state=0)
    clf = make(experts=[("trees", trees), ("net", "mlp")], max_iter=1)
    with pytest.raises(AttributeError, match=r"classifiers of scikit-learn.*permutation"):
        _ = clf.fit(X.drop(columns="kind"), y).feature_importances_
    clf = make().partial_fit(X, y, classes=["no", "yes"])
    with pytest.raises(AttributeError, match="after partial_fit"):
        _ = clf.feature_importances_
