"""Explanations of single samples: exact sums, exact contributions, and Shapley values."""

import itertools
import sys
import types

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from sklearn_moe import (
    AttentiveGate,
    MLPExperts,
    MoEClassifier,
    SoftmaxGate,
    TableEncoder,
    explain,
)
from sklearn_moe.interpretation.shapley import sampled_shapley

LINEAR = MoEClassifier(3, experts="linear", n_init=1, max_iter=3, random_state=0)


def logits(model, X):
    """Return the chosen expert's logits, and the gate's of the chosen expert and runner-up."""
    module, samples = model.module_, model.reader_.read(X, model)
    output = model.net_.evaluate(samples, lambda module, x: module(x).expert_logits)
    gate = model.net_.evaluate(samples, lambda module, x: module(x).gate_logits)
    assert not module.training
    own = output[np.arange(len(output)), model.apply(X)].astype(np.float64)
    return own, np.sort(gate.astype(np.float64), axis=1)


def check_sums(explanation, model, X, atol=1e-5):
    own, gate = logits(model, X)
    own = own[:, 1] - own[:, 0] if own.shape[1] == 2 else own - own.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(explanation.logit, own, atol=atol)
    np.testing.assert_allclose(explanation.gate_logit, gate[:, -1] - gate[:, -2], atol=atol)
    assert (explanation.expert == model.apply(X)).all()
    np.testing.assert_allclose(explanation.gate_proba, model.gate_proba(X), atol=1e-6)


@pytest.fixture(scope="module")
def linear(mixed_table):
    X, y = mixed_table
    return clone(LINEAR).fit(X, y == "yes"), X


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"encoder": TableEncoder(squash=False, n_knots=None)},
        {"gate_features": ["town", "age"], "expert_features": ["size", "colour", "new"]},
        {"gate": SoftmaxGate(temperature=0.5, top_k=2)},
        {"n_experts": 1},
    ],
    ids=["hats", "not squashed", "own columns", "temperature", "one expert"],
)
def test_sums_of_linear_parts(mixed_table, params):
    X, y = mixed_table
    clf = clone(LINEAR).set_params(**params).fit(X, y)  # three classes
    explanation = explain(clf, X)
    assert explanation.is_exact and explanation.gate_is_exact
    assert explanation.contributions.shape == (600, 6, 3)
    if clf.n_experts == 1:
        assert (explanation.gate_contributions == 0).all()
        assert "the only one" in repr(explanation)
        return
    check_sums(explanation, clf, X)
    if "gate_features" in params:
        assert (explanation.gate_contributions[:, [0, 2, 3, 5]] == 0).all()
        assert (explanation.contributions[:, [1, 2, 4]] == 0).all()
        assert explanation.gate_contributions[:, 4].any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("encoder", "container"),
    [("auto", np.asarray), (None, np.asarray), ("auto", sparse.csr_array)],
)
def test_sums_for_arrays(table, dtype, encoder, container):
    X, y = StandardScaler().fit_transform(table[0]).astype(dtype), table[1] > 0
    clf = clone(LINEAR).set_params(encoder=encoder).fit(container(X), y)
    explanation = explain(clf, container(X))
    assert explanation.contributions.shape == (600, 6)
    check_sums(explanation, clf, container(X))
    np.testing.assert_array_equal(explanation.data, X)
    assert explanation.feature_names.tolist() == [f"x{i}" for i in range(6)]


def test_contributions_against_their_definition(linear):
    """The contribution of a column is what the mean over its values in the background changes."""
    clf, X = linear
    explanation = explain(clf, X[:5], background=X)
    for column, name in enumerate(X.columns):
        for row in range(5):
            others = X.iloc[np.full(len(X), row)].reset_index(drop=True)
            others[name] = X[name].to_numpy() if name != "colour" else X[name].array
            output = clf.net_.evaluate(
                clf.reader_.read(others, clf), lambda module, x: module.expert_logits(x)
            )[:, explanation.expert[row]]
            mean = (output[:, 1] - output[:, 0]).mean(dtype=np.float64)
            changed = explanation.logit[row] - mean
            assert explanation.contributions[row, column] == pytest.approx(changed, abs=1e-5)


def test_background(linear):
    clf, X = linear
    own, other = explain(clf, X[:40]), explain(clf, X[:40], background=X[40:])
    np.testing.assert_allclose(own.logit, other.logit, atol=1e-6)
    assert np.abs(own.base - other.base).max() > 1e-3
    of_expert = own.expert == own.expert[0]
    np.testing.assert_allclose(own.base[of_expert], own.base[0])
    with pytest.raises(ValueError, match=r"one sample.*background="):
        explain(clf, X[:1])
    assert len(explain(clf, X[:1], background=X).expert) == 1
    with pytest.raises(ValueError, match="background is not valid"):
        explain(clf, X, background=X[["size"]])


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"gate": AttentiveGate()},
        {"gate": SoftmaxGate((4,)), "experts": "linear"},
        {"encoder": lambda shape: torch.nn.Linear(*shape, 4)},
    ],
    ids=["default", "attentive", "gate with layers", "backbone"],
)
def test_sums_of_estimates(mixed_table, params):
    X, y = mixed_table
    clf = MoEClassifier(3, max_iter=2, n_init=1, random_state=0).set_params(**params).fit(X, y)
    explanation = explain(clf, X[:8], background=X, n_permutations=2, random_state=0)
    assert explanation.gate_is_exact == (not params)
    assert explanation.is_exact == (params.get("experts") == "linear")
    check_sums(explanation, clf, X[:8])
    again = explain(clf, X[:4], background=X, n_permutations=2, random_state=0)
    np.testing.assert_allclose(again.contributions, explanation.contributions[:4], atol=1e-6)


def test_estimates_of_a_linear_mixture(mixed_table):
    """Experts without hidden layers are linear, too, but explained by Shapley values."""
    X, y = mixed_table
    clf = clone(LINEAR).set_params(experts=MLPExperts(hidden_layer_sizes=())).fit(X, y == "yes")
    background = X[:30]
    estimate = explain(clf, X[30:40], background=background, n_permutations=30, random_state=0)
    assert not estimate.is_exact
    # Each row of the background was used once. So even the estimate is exact.
    module = clf.module_
    encoded, of_background = (
        clf.encoder_.transform(part).astype(np.float64) for part in (X[30:40], background)
    )
    weight = module.experts.layers[0].weight.detach().numpy()[estimate.expert]
    terms = (encoded - of_background.mean(axis=0)) * (weight[:, 1] - weight[:, 0])
    for column in range(6):
        own = terms[:, clf.encoder_.sources_ == column].sum(axis=1)
        np.testing.assert_allclose(estimate.contributions[:, column], own, atol=1e-5)


def test_shapley_values_by_all_permutations():
    def function(rows, sample):
        return np.stack([rows[:, 0] * rows[:, 1] + rows[:, 2], rows.max(axis=1)], axis=1)

    rng = np.random.RandomState(0)
    x, start = rng.normal(size=(2, 3)), rng.normal(size=(1, 3))
    expected = np.zeros((2, 3, 2))
    for order in itertools.permutations(range(3)):
        row = np.repeat(start, 2, axis=0)
        for column in order:
            before = function(row, None)
            row[:, column] = x[:, column]
            expected[:, column] += (function(row, None) - before) / 6
    contributions, base = sampled_shapley(function, x, start, 4000, rng)
    np.testing.assert_allclose(contributions, expected, atol=0.03)
    np.testing.assert_allclose(base, np.repeat(function(start, None), 2, axis=0))
    np.testing.assert_allclose(base + contributions.sum(axis=1), function(x, None))


def test_pieces_do_not_matter(monkeypatch, fitted_table, table):
    X = table[0][:5]
    whole = explain(fitted_table, X, n_permutations=3, random_state=0)
    monkeypatch.setattr("sklearn_moe.interpretation.shapley.AT_ONCE", 100)
    parts = explain(fitted_table, X, n_permutations=3, random_state=0)
    np.testing.assert_allclose(whole.contributions, parts.contributions, atol=1e-6)
    np.testing.assert_allclose(whole.base, parts.base, atol=1e-6)


def test_text(linear, mixed_table):
    clf, X = linear
    text = repr(explain(clf, X))
    assert text.startswith("600 samples.") and "exact." in text
    assert "True against False" in text and "colour = " in text and "rather than" in text
    assert "595 more samples" in text and max(map(len, text.splitlines())) < 100
    probability = clf.expert_proba(X[:1], chosen_only=True)[0, 1]
    assert f"True against False ({probability:.0%})" in text


def test_pipelines_and_searches(table):
    X, y = pd.DataFrame(table[0][:200], columns=list("abcdef")), table[1][:200]
    steps = ColumnTransformer([("pass", StandardScaler(), ["d", "a"])])
    pipeline = make_pipeline(steps, LINEAR).fit(X, y)
    explanation = explain(pipeline, X)
    assert explanation.feature_names.tolist() == ["pass__d", "pass__a"]
    check_sums(explanation, pipeline[-1], steps.transform(X))
    search = GridSearchCV(pipeline, {"moeclassifier__max_iter": [1]}, cv=2).fit(X, y)
    assert explain(search, X).feature_names.tolist() == ["pass__d", "pass__a"]
    unnamed = make_pipeline(FunctionTransformer(np.asarray), LINEAR).fit(X, y)
    assert explain(unnamed, X).feature_names.tolist() == [f"x{i}" for i in range(6)]


def test_polars(mixed_table):
    polars = pytest.importorskip("polars")
    X, y = mixed_table
    frame = polars.from_pandas(X)
    clf = clone(LINEAR).fit(frame, y)
    explanation = explain(clf, frame)
    assert explanation.data[0, 4] == X.iloc[0, 4]
    np.testing.assert_allclose(explanation.logit, explain(clf, X).logit, atol=1e-6)


def test_for_shap(linear, monkeypatch):
    clf, X = linear
    explanation = explain(clf, X)
    monkeypatch.setitem(sys.modules, "shap", None)
    with pytest.raises(ImportError, match="pip install shap"):
        explanation.to_shap()

    def keep(values, **params):
        return types.SimpleNamespace(values=values, **params)

    monkeypatch.setitem(sys.modules, "shap", types.SimpleNamespace(Explanation=keep))
    of_expert, of_gate = explanation.to_shap(), explanation.to_shap("gate")
    assert of_expert.values.shape == of_gate.values.shape == of_expert.data.shape == (600, 6)
    assert of_gate.base_values is explanation.gate_base
    assert of_expert.feature_names == list(X.columns)
    with pytest.raises(ValueError, match="'part' parameter"):
        explanation.to_shap("experts")


def test_errors(linear, table):
    clf, X = linear
    with pytest.raises(NotFittedError):
        explain(MoEClassifier(), table[0])
    with pytest.raises(ValueError, match="feature names"):
        explain(clf, X.rename(columns={"size": "length"}))
    with pytest.raises(ValueError, match="'n_permutations' parameter"):
        explain(clf, X, n_permutations=0)
    with pytest.raises(TypeError, match="gate_proba"):
        explain(PCA().fit(table[0]), table[0])
    images, y = load_digits(return_X_y=True)
    images = images[:100].reshape(-1, 8, 8)
    of_images = MoEClassifier(2, max_iter=1, random_state=0).fit(images, y[:100])
    with pytest.raises(ValueError, match=r"explain needs a table.*ExpertSamplesDisplay"):
        explain(of_images, images)
