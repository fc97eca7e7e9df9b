"""The probabilities of the experts once the class is known."""

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_moe import MoEClassifier, decomposition_stability, responsibilities, sample_entropy


@pytest.fixture(scope="module")
def grouped():
    """A mixture whose gate reads what is constant within each group of three."""
    rng = np.random.default_rng(0)
    groups = np.repeat([f"group {i}" for i in range(60)], 3)
    X = np.column_stack([np.repeat(rng.normal(size=60), 3), rng.normal(size=180)])
    y = np.where((X[:, 0] > 0) ^ (X[:, 1] > 0), "yes", "no")
    clf = MoEClassifier(2, experts="linear", n_init=1, max_iter=10, random_state=0)
    return clf.fit(X, y, groups=groups), X, y, groups


def test_bayes_rule(fitted_table, table):
    X, y = table
    proba = responsibilities(fitted_table, X, y)
    of_class = fitted_table.expert_proba(X)[np.arange(len(y)), :, y]
    joint = fitted_table.gate_proba(X) * of_class
    np.testing.assert_allclose(proba, joint / joint.sum(axis=1, keepdims=True), rtol=1e-4)
    assert proba.dtype == np.float64
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    # On average over the classes that the mixture predicts, they are the gate's probabilities.
    mean = sum(
        responsibilities(fitted_table, X, np.full(len(X), label)) * share[:, np.newaxis]
        for label, share in zip(
            fitted_table.classes_, fitted_table.predict_proba(X).T, strict=True
        )
    )
    np.testing.assert_allclose(mean, fitted_table.gate_proba(X), atol=1e-5)


def test_the_class_reveals_the_expert(grouped):
    clf, X, y, _ = grouped
    assert sample_entropy(responsibilities(clf, X, y)) < sample_entropy(clf.gate_proba(X))


def test_nothing_is_rounded_to_zero():
    X = np.random.RandomState(0).normal(size=(20, 2)).astype(np.float32)
    clf = MoEClassifier(2, experts="linear", n_init=1, encoder=None, gate="softmax", max_iter=1)
    clf.fit(X, np.arange(20) % 2)
    gate = next(clf.module_.gate.parameters())
    with torch.no_grad():
        for parameter in clf.module_.parameters():
            parameter.zero_()
        gate.view(-1)[0] = 150.0  # the log-odds of the experts: exp(-150) is 0 in float32
        clf.module_.experts.weight.view(2, 2, 2)[1, 1, 0] = 170.0
    x = np.array([[1.0, 0.0]])
    assert clf.gate_proba(x).min() == 0
    log_odds = np.diff(np.log(responsibilities(clf, x, [0])[0]))[0]
    expected = -150 + np.diff(clf.expert_log_likelihood(x, [0])[0])[0]
    assert log_odds == pytest.approx(expected)


@pytest.mark.parametrize("gate", ["hard", "attentive", "kmeans"])
def test_gates(iris, gate):
    clf = MoEClassifier(3, gate=gate, max_iter=2, random_state=0).fit(*iris)
    proba = responsibilities(clf, *iris)
    assert (proba[clf.gate_proba(iris[0]) == 0] == 0).all()
    np.testing.assert_allclose(proba.sum(axis=1), 1)


def test_pipelines_and_stability(iris):
    X, y = iris
    clf = MoEClassifier(3, max_iter=2, random_state=0)
    pipeline = make_pipeline(StandardScaler(), clf).fit(X, y)
    own = responsibilities(pipeline[-1], pipeline[:-1].transform(X), y)
    np.testing.assert_array_equal(responsibilities(pipeline, X, y), own)
    # A refit with the same seed has the same responsibilities, so that its experts match.
    stability = decomposition_stability(pipeline, X, y, n_refits=1, random_state=0)
    assert stability.choice.shape == (2, 150)


def test_groups_share_one_expert(grouped):
    clf, X, y, groups = grouped
    proba = responsibilities(clf, X, y, groups=groups)
    of_class = clf.expert_log_likelihood(X, y)
    for name in np.unique(groups):
        rows = groups == name
        joint = clf.gate_proba(X)[rows][0] * np.exp(of_class[rows].sum(axis=0))
        np.testing.assert_allclose(
            proba[rows], np.tile(joint / joint.sum(), (3, 1)), rtol=1e-3, atol=1e-12
        )
    alone = responsibilities(clf, X, y, groups=np.arange(len(y)))
    np.testing.assert_allclose(alone, responsibilities(clf, X, y))
    order = np.random.RandomState(0).permutation(len(y))
    np.testing.assert_allclose(
        responsibilities(clf, X[order], y[order], groups=groups[order]), proba[order], rtol=1e-4
    )


def test_errors(grouped, iris):
    clf, X, y, groups = grouped
    with pytest.raises(ValueError, match="y contains \\['perhaps'\\]"):
        responsibilities(clf, X, np.where(y == "yes", "perhaps", y))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        responsibilities(clf, X, y[1:])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        responsibilities(clf, X, y, groups=groups[1:])
    with pytest.raises(ValueError, match="of the group 0 different probabilities"):
        responsibilities(clf, X, y, groups=np.arange(len(y)) % 2)
    logit = MoEClassifier(2, mixing="logit", max_iter=1).fit(*iris)
    with pytest.raises(ValueError, match="needs mixing='probability'"):
        responsibilities(logit, *iris)
    with pytest.raises(NotFittedError):
        responsibilities(MoEClassifier(), *iris)
