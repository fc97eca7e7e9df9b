"""Coefficients of linear experts, their errors, and what is said about them."""

from copy import copy, deepcopy
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest
from joblib import parallel_config
from scipy.special import expit
from scipy.stats import norm
from sklearn.datasets import load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_moe import (
    CoefficientDisplay,
    LinearExperts,
    MoEClassifier,
    SoftmaxGate,
    expert_summary,
    grow,
)
from sklearn_moe.gates import CosineGate
from sklearn_moe.interpretation.inference import Design, Likelihood
from sklearn_moe.interpretation.terms import _in_units
from sklearn_moe.training import polish

matplotlib.use("Agg")


def draw(n, seed=0):
    """Two opposite rules, by the sign of x0; a town changes the odds by 1."""
    rng = np.random.default_rng(seed)
    X = pd.DataFrame(rng.normal(size=(n, 3)), columns=["when", "price", "size"])
    X["price"] = 50 + 10 * X["price"]
    X["town"] = rng.choice(["Bonn", "Ulm"], size=n, p=[0.7, 0.3])
    slope = np.where(X["when"] > 0, 0.2, -0.2)
    score = slope * (X["price"] - 50) + X["size"] + (X["town"] == "Ulm")
    return X, (rng.random(n) < expit(score)).astype(int)


@pytest.fixture(scope="module")
def fitted():
    X, y = draw(1500)
    columns = {"gate_features": ["when"], "expert_features": ["price", "size", "town"]}
    return MoEClassifier(2, experts="linear", n_init=4, random_state=0, **columns).fit(X, y), X, y


@pytest.fixture(scope="module")
def summary(fitted):
    return expert_summary(*fitted)


def likelihood(rng, group=None):
    gate, experts = (Design(rng.normal(size=(60, 2))) for _ in range(2))
    if group is not None:
        gate = gate.take(np.unique(group, return_index=True)[1][group])
    return Likelihood(
        gate,
        experts,
        rng.integers(3, size=60),
        n_experts=3,
        n_classes=3,
        sample_weight=rng.uniform(0.5, 2, size=60),
        group=group,
        gate_penalty=0.1 * np.eye(3),
    )


@pytest.mark.parametrize("grouped", [False, True])
def test_derivatives_are_those_of_the_likelihood(grouped):
    rng = np.random.default_rng(0)
    target = likelihood(rng, np.arange(60) // 4 if grouped else None)
    at = rng.normal(size=target.n_parameters)

    def penalised(parameters):
        return target.evaluate(parameters)[0] - parameters @ target.penalty @ parameters / 2

    _, gradient, information = target.evaluate(at)
    steps = 1e-5 * np.eye(len(at))
    slopes = [(penalised(at + step) - penalised(at - step)) / 2e-5 for step in steps]
    np.testing.assert_allclose(slopes, gradient, atol=1e-6)
    curves = [
        (target.evaluate(at - step)[1] - target.evaluate(at + step)[1]) / 2e-5 for step in steps
    ]
    np.testing.assert_allclose(curves, information, atol=1e-5)


@pytest.mark.parametrize("grouped", [False, True])
def test_units_can_be_drawn_again(grouped):
    rng = np.random.default_rng(0)
    group = np.arange(60) // 4 if grouped else None
    target = likelihood(rng, group)
    at = rng.normal(size=target.n_parameters)
    counts = rng.integers(4, size=len(target.unit_weight))
    repeated = copy(target)
    repeated.penalty = target.penalty * 0
    value, gradient, information = repeated.resampled(counts).evaluate(at)
    total = np.zeros(3, dtype=object)
    for unit, count in enumerate(counts.tolist()):
        alone = np.eye(len(counts))[unit]
        total += count * np.array(repeated.resampled(alone).evaluate(at), dtype=object)
    for found, expected in zip((value, gradient, information), total, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-8)


def test_numbers_of_experts_mean_nothing():
    rng = np.random.default_rng(0)
    target = likelihood(rng)
    at, order = rng.normal(size=target.n_parameters), [2, 0, 1]
    renumbered = target.renumbered(at, order)
    np.testing.assert_allclose(
        target.responsibilities(renumbered), target.responsibilities(at)[:, order]
    )


@pytest.mark.parametrize("data", ["two classes", "wine"])
def test_one_expert_is_a_logistic_regression(data):
    X, y = draw(400) if data == "two classes" else load_wine(return_X_y=True, as_frame=True)
    X = X[["price", "size"]] if data == "two classes" else X.iloc[:, :2]
    clf = MoEClassifier(1, experts="linear", n_init=1, random_state=0).fit(X, y)
    table = expert_summary(clf, X, y).to_frame()
    regression = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10000)
    regression = make_pipeline(StandardScaler(), regression).fit(X, y)
    scaler, model = regression
    own = model.coef_ / scaler.scale_
    if len(own) > 1:
        own = own[1:] - own[0]
    proba = regression.predict_proba(X)[:, 1:]
    design = np.column_stack([np.ones(len(X)), X])
    blocks = [
        [
            design.T @ (design * (proba[:, [i]] * ((i == j) - proba[:, [j]])))
            for j in range(proba.shape[1])
        ]
        for i in range(proba.shape[1])
    ]
    errors = np.sqrt(np.diag(np.linalg.inv(np.block(blocks)))).reshape(len(own), -1)
    found = table.pivot(index="class", columns="feature")
    for i, name in enumerate(X):
        np.testing.assert_allclose(found["coefficient"][name], own[:, i], rtol=1e-3)
        np.testing.assert_allclose(found["standard_error"][name], errors[:, i + 1], rtol=1e-3)
    np.testing.assert_allclose(found["standard_error"]["intercept"], errors[:, 0], rtol=1e-3)


def test_coefficients_are_in_the_units_of_the_columns(summary):
    table = summary.to_frame()
    experts = table[table["part"] == "expert"]
    price = experts[experts["feature"] == "price"].sort_values("coefficient")
    assert (price["lower"].to_numpy() < [-0.2, 0.2]).all()
    assert (price["upper"].to_numpy() > [-0.2, 0.2]).all()
    town = experts[experts["feature"] == "town = Ulm (against Bonn)"]
    assert len(town) == 2
    assert ((town["lower"] < 1) & (town["upper"] > 1)).all()
    np.testing.assert_allclose(table["odds_ratio"], np.exp(table["coefficient"]))
    gate = table[table["part"] == "gate"]
    assert gate["feature"].iloc[1].startswith("when = ")
    assert gate["class"].isna().all()


def test_it_says_which_coefficients_differ(summary):
    assert summary.one_for_all > 0
    assert summary.alike[0, 1] == pytest.approx(summary.one_for_all, abs=1e-3)
    differing = dict(
        zip(summary.differences["feature"], summary.differences["p_value"], strict=True)
    )
    assert differing["price"] < 1e-10
    assert differing["size"] > 0.05
    assert "These coefficients differ between experts: price" in repr(summary)
    assert "town (against Bonn)" in repr(summary)


def test_weights_count_samples(fitted):
    clf, X, y = fitted
    rows = np.arange(600)
    twice = np.concatenate([rows, rows])
    params = {**clf.get_params(), "n_init": 1}
    both = MoEClassifier(**params).fit(X.iloc[rows], y[rows], sample_weight=np.full(600, 2.0))
    found = expert_summary(both, X.iloc[rows], y[rows], sample_weight=np.full(600, 2.0))
    repeated = expert_summary(both, X.iloc[twice], y[twice])
    for column in ("coefficient", "standard_error"):
        np.testing.assert_allclose(
            found.coefficients[column], repeated.coefficients[column], rtol=1e-5
        )


def test_one_rule_for_all_experts():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(500, 3))
    y = X[:, 1] + rng.logistic(size=500) > 0
    clf = MoEClassifier(2, experts="linear", n_init=1, random_state=0).fit(X, y)
    summary = expert_summary(clf, X, y)
    assert summary.one_for_all < 0
    assert "The experts do not differ" in repr(summary)


def test_no_errors_where_the_classes_are_separated():
    X, y = draw(300)
    X["tells"] = y + 0.01 * X["size"]
    clf = MoEClassifier(1, experts="linear", n_init=1, random_state=0).fit(X, y)
    summary = expert_summary(clf, X, y)
    table = summary.to_frame().set_index("feature")
    assert np.isnan(table["standard_error"]["tells"])
    assert np.isfinite(table["coefficient"]["tells"])
    assert "grow without bound" in repr(summary)


def test_no_coefficient_of_a_column_that_others_determine():
    X, y = draw(300)
    X["double"] = 2 * X["price"]
    clf = MoEClassifier(1, experts="linear", n_init=1, random_state=0).fit(X, y)
    summary = expert_summary(clf, X, y)
    assert "double" not in summary.coefficients["feature"]
    assert "No coefficient: double" in repr(summary)


def test_no_errors_for_a_gate_with_layers(fitted):
    _, X, y = fitted
    clf = MoEClassifier(
        2, experts="linear", gate=SoftmaxGate((4,)), n_init=1, max_iter=5, random_state=0
    ).fit(X, y)
    summary = expert_summary(clf, X, y)
    assert np.isnan(summary.coefficients["standard_error"]).all()
    assert "the gate is not linear" in repr(summary)
    assert set(summary.coefficients["part"]) == {"expert"}


def test_no_errors_where_restarts_disagree(fitted):
    clf, X, y = fitted
    clf = clf._snapshot()
    clf.init_agreement_ = 0.5
    summary = expert_summary(clf, X, y)
    assert np.isnan(summary.coefficients["standard_error"]).all()
    assert summary.differences == {}
    assert "found other decompositions" in repr(summary)


def test_a_knot_at_zero_is_zero():
    rng = np.random.default_rng(0)
    mean, scale = rng.uniform(1, 50, size=(2, 100))
    knots = -mean / scale / np.sqrt(1 + (mean / scale / 3) ** 2)  # squashed
    table = SimpleNamespace(mean_=mean, scale_=scale, exponent_=np.zeros(100, dtype=int))
    assert not any(_in_units(table, i, knots[[i]]) for i in range(100))


def test_groups():
    X, y = draw(400)
    group = np.arange(400) // 4
    X["when"] = X["when"].to_numpy()[group * 4]
    clf = MoEClassifier(2, experts="linear", n_init=1, random_state=0)
    clf.fit(X, y, groups=group)
    summary = expert_summary(clf, X, y, groups=group)
    assert summary.n_samples == 100
    with pytest.raises(ValueError, match="samples of the fit, with its sample_weight and groups"):
        expert_summary(clf, X, y)


def test_bootstrap_of_one_expert_is_that_of_a_logistic_regression():
    X, y = draw(300)
    X = X[["when", "size"]]
    clf = MoEClassifier(1, experts="linear", n_init=1, random_state=0).fit(X, y)
    found = expert_summary(
        clf, X, y, standard_errors="bootstrap", n_bootstrap=150, random_state=0
    ).to_frame()
    rng, coefficients = np.random.default_rng(0), []
    for _ in range(150):
        rows = rng.integers(300, size=300)
        model = LogisticRegression(C=np.inf).fit(X.iloc[rows], y[rows])
        coefficients.append([*model.intercept_, *model.coef_[0]])
    np.testing.assert_allclose(found["standard_error"], np.std(coefficients, axis=0), rtol=0.25)
    half = norm.ppf(0.975) * found["standard_error"]
    np.testing.assert_allclose(found["upper"], found["coefficient"] + half)
    np.testing.assert_allclose(found["lower"], found["coefficient"] - half)
    assert set(found["method"]) == {"bootstrap"}


def test_bootstrap_of_a_mixture(fitted, summary):
    clf, X, y = fitted
    arguments = {"standard_errors": "bootstrap", "n_bootstrap": 40, "random_state": 0}
    found = expert_summary(clf, X, y, **arguments)
    with parallel_config("threading"):
        again = expert_summary(clf, X, y, n_jobs=2, **arguments)
    one, other = found.to_frame(), summary.to_frame()
    pd.testing.assert_frame_equal(one, again.to_frame())
    # A gate that is nearly a threshold has no errors; then its own coefficients are shown.
    np.testing.assert_allclose(one["coefficient"], other["coefficient"], rtol=0.01)
    of_experts = one["part"] == "expert"
    ratio = one["standard_error"][of_experts] / other["standard_error"][of_experts]
    assert 0.5 < ratio.min() < ratio.max() < 2
    assert "These coefficients differ between experts: price" in repr(found)
    assert "40 bootstrap samples" in repr(found)
    assert len(CoefficientDisplay(found).plot().points_) == 2


def test_bootstrap_draws_as_many_samples_as_weights_count():
    X, y = draw(200)
    weight = np.full(200, 2.0)
    clf = MoEClassifier(1, experts="linear", n_init=1, random_state=0)
    clf.fit(X, y, sample_weight=weight)
    arguments = {"standard_errors": "bootstrap", "n_bootstrap": 60, "random_state": 0}
    found = expert_summary(clf, X, y, sample_weight=weight, **arguments)
    twice = np.tile(np.arange(200), 2)
    repeated = expert_summary(clf, X.iloc[twice], y[twice], **arguments)
    np.testing.assert_allclose(
        found.coefficients["standard_error"], repeated.coefficients["standard_error"], rtol=0.3
    )


@pytest.mark.parametrize("gate", [SoftmaxGate((2,)), CosineGate()])
def test_bootstrap_of_groups_for_a_gate_that_is_not_linear(gate, monkeypatch):
    monkeypatch.setattr(polish, "LAST_STEPS", 20)
    X, _ = draw(240)
    group = np.arange(240) // 4
    X["when"] = X["when"].to_numpy()[group * 4]
    noise = np.random.default_rng(0).logistic(size=240)
    y = np.sign(X["when"]) * 0.3 * (X["price"] - 50) + X["size"] + noise > 0
    columns = {"gate_features": ["when"], "expert_features": ["price", "size"]}
    clf = MoEClassifier(
        2, experts="linear", gate=gate, n_init=1, max_iter=5, random_state=0, **columns
    )
    clf.fit(X, y, groups=group)
    module = deepcopy(clf.module_.state_dict())
    found = expert_summary(
        clf, X, y, groups=group, standard_errors="bootstrap", n_bootstrap=20, random_state=0
    ).to_frame()
    assert set(found["part"]) == {"expert"}
    assert (found["standard_error"] > 0).all()
    price = found[found["feature"] == "price"]
    assert (np.sign(price["lower"]) == np.sign(price["upper"])).all()
    for name, value in clf.module_.state_dict().items():
        assert (value == module[name]).all()


def test_no_errors_where_refits_disagree():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 2))
    y = X[:, 1] + rng.logistic(size=300) > 0
    params = {"encoder": None, "regularization": None, "gate_features": [0], "n_init": 1}
    clf = MoEClassifier(3, experts="linear", random_state=0, max_iter=10, **params).fit(X, y)
    found = expert_summary(clf, X, y, standard_errors="bootstrap", n_bootstrap=20, random_state=0)
    assert found.differences == {}
    assert set(found.coefficients["method"]) == {None}
    assert "refits to bootstrap samples found other decompositions" in repr(found)


def test_no_errors_where_bootstrap_samples_are_separated():
    X, y = draw(300)
    X["rare"] = 0
    X.loc[[*np.flatnonzero(y == 0)[:2], *np.flatnonzero(y == 1)[:2]], "rare"] = 1
    clf = MoEClassifier(1, experts="linear", n_init=1, random_state=0).fit(X, y)
    by_information = expert_summary(clf, X, y).to_frame().set_index("feature")
    assert by_information["standard_error"]["rare"] > 0
    found = expert_summary(clf, X, y, standard_errors="bootstrap", n_bootstrap=60, random_state=0)
    errors = found.to_frame().set_index("feature")["standard_error"]
    assert np.isnan(errors["rare"])
    assert errors["price"] > 0
    assert "there or in the bootstrap samples" in repr(found)


def test_no_errors_of_a_gate_with_a_penalty(fitted, summary):
    _, X, y = fitted
    assert np.isnan(summary.to_frame().set_index("part")["standard_error"]["gate"]).all()
    assert "No standard errors of the gate" in repr(summary)
    X = X[["when", "size"]]
    y = expit(X["when"]) > np.random.default_rng(0).random(len(X))  # a regime for each class
    y ^= X["size"] > 0
    free = MoEClassifier(
        2,
        experts="linear",
        encoder=None,
        regularization=None,
        gate_features=["when"],
        expert_features=["size"],
        n_init=1,
        random_state=0,
    ).fit(X, y)
    found = expert_summary(free, X, y)
    assert (found.to_frame().set_index("part")["standard_error"]["gate"] > 0).all()


def test_picture(summary):
    display = CoefficientDisplay(summary).plot(n_features=2)
    assert len(display.points_) == 2
    assert len(display.axes_[0].get_yticks()) == 2
    label = display.axes_[0].get_legend().get_texts()[0].get_text()
    assert label.startswith("expert 0 (")


def test_errors(fitted):
    clf, X, y = fitted
    with pytest.raises(ValueError, match="X and y must be the samples of the fit"):
        expert_summary(clf, X[:500], y[:500])
    for name, value in {"confidence": 2, "standard_errors": "robust", "n_bootstrap": 5}.items():
        with pytest.raises(ValueError, match=name):
            expert_summary(clf, X, y, **{name: value})
    weight = np.full(300, 1e-3)  # in all, less than one sample
    light = MoEClassifier(1, experts="linear", n_init=1, max_iter=1)
    light.fit(X[:300], y[:300], sample_weight=weight)
    with pytest.raises(ValueError, match="sample_weight does not count samples"):
        expert_summary(light, X[:300], y[:300], sample_weight=weight, standard_errors="bootstrap")
    flexible = MoEClassifier(2, max_iter=1).fit(X, y)
    with pytest.raises(TypeError, match="experts='linear'"):
        expert_summary(flexible, X, y)
    with pytest.raises(TypeError, match="experts of the kind 'GrownExperts'"):
        expert_summary(grow(light, X, y), X, y)
    weighted = MoEClassifier(
        2, experts=LinearExperts(), class_weight="balanced", n_init=1, max_iter=1
    )
    with pytest.raises(ValueError, match="class_weight=None"):
        expert_summary(weighted.fit(X, y), X, y)
