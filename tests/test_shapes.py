"""Shape functions: what experts of a large table learn about single columns, together."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from torch import nn

from sklearn_moe import (
    LinearExperts,
    MLPExperts,
    MoEClassifier,
    MPOExperts,
    SoftmaxGate,
    TableEncoder,
    compress_experts,
    distill,
    grow,
    load,
    prune_experts,
    save,
)
from sklearn_moe.mixture import MixtureOfExperts
from sklearn_moe.shapes import SCALE, ShapeFunctions, with_shapes
from sklearn_moe.tables import ROWS_FOR_SHAPES
from sklearn_moe.training.closed_form import has_known_gradient, likelihood_gradient

MOE = MoEClassifier(
    4, encoder=TableEncoder(n_shape_knots=16), max_iter=5, batch_size=64, random_state=0
)


def stripes(n_rows, seed=0):
    """Two columns of numbers, of which the first says the class in 18 stripes, and a category."""
    random = np.random.RandomState(seed)
    X = pd.DataFrame({"a": random.uniform(size=n_rows), "b": random.normal(size=n_rows)})
    X["town"] = random.choice(["Bonn", "Ulm"], n_rows)
    return X, (18 * X["a"]).astype(int).to_numpy() % 2


@pytest.fixture(scope="module")
def data():
    return stripes(600)


@pytest.fixture(scope="module")
def fitted(data):
    return clone(MOE).fit(*data)


@pytest.fixture
def shapes(generator):
    knots = [np.array([-1.0, 0.5, 0.6, 2.0]), np.array([-0.3, 0.4])]
    shapes = ShapeFunctions([3, 1], knots).double()
    shapes.value.data.normal_(generator=generator)
    return shapes


def test_values_are_interpolated(shapes, generator):
    x = 2 * torch.randn(50, 5, generator=generator, dtype=torch.float64)
    first, second = shapes.value.detach().numpy()
    expected = [
        np.interp(x[:, 3], [-1.0, 0.5, 0.6, 2.0], first),
        np.interp(x[:, 1], [-0.3, 0.4], second[:2]),
    ]
    values = with_shapes(shapes, x).detach()
    torch.testing.assert_close(values[:, :5], x)
    np.testing.assert_allclose(values[:, 5:].mT, SCALE * np.array(expected), atol=1e-7)
    assert with_shapes(None, x) is x


@pytest.mark.parametrize("sizes", [(7,), (7, 8)])
def test_gradient_equals_that_of_autograd(sizes, shapes, generator):
    experts = MLPExperts(sizes).build((5 + 2,), 3, 4, generator)
    experts.shapes = shapes
    gate = SoftmaxGate().build((5,), 3, experts.hidden_size, generator)
    module = MixtureOfExperts(experts, gate).double()
    assert has_known_gradient(module, [])
    x = torch.randn(13, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(4, (13,), generator=generator)
    weight = torch.rand(13, generator=generator, dtype=torch.float64)

    log_proba = module(x).log_proba
    (nn.functional.nll_loss(log_proba, y, reduction="none") * weight).mean().backward()
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    assert "experts.shapes.value" in gradients
    module.zero_grad()
    likelihood_gradient(module, x, weight, y)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], msg=name)


@pytest.mark.parametrize("n_rows", [ROWS_FOR_SHAPES - 1, ROWS_FOR_SHAPES])
def test_large_tables_have_them(n_rows):
    X, y = stripes(n_rows)
    X["few"] = np.arange(n_rows) % 6
    clf = MoEClassifier(2, max_iter=1, random_state=0).fit(X.astype({"a": "float32"}), y)
    is_large = n_rows == ROWS_FOR_SHAPES
    n_knots = [32, 32, 0] if is_large else [0, 0, 0]  # "few" has a hat function for each value
    assert [len(knots) for knots in clf.encoder_.shape_knots_] == n_knots
    assert (clf.module_.experts.shapes is not None) == is_large


@pytest.mark.parametrize(
    "params",
    [
        {"encoder": TableEncoder(n_shape_knots=None)},
        {"encoder": TableEncoder(n_knots=None, n_shape_knots=16)},
        {"encoder": TableEncoder(n_shape_knots=16, squash=False)},
        {"experts": "linear", "n_init": 1},
        {"experts": LinearExperts(), "n_init": 1},
        {"experts": "orthogonal"},
        {"expert_features": ["town"]},
    ],
    ids=str,
)
def test_who_has_none(params, data):
    clf = clone(MOE).set_params(**params).fit(*data)
    assert getattr(clf.module_.experts, "shapes", None) is None


def test_columns_of_the_experts(data):
    X, y = data
    clf = clone(MOE).set_params(expert_features=["b", "town"]).fit(X, y)
    assert clf.module_.experts.shapes.position.tolist() == [0]
    (knots,) = [own for own in clf.encoder_.shape_knots_[1:] if len(own)]
    np.testing.assert_allclose(clf.module_.experts.shapes.start[0], knots[:-1], rtol=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_they_learn_sharp_thresholds(seed):
    train, test = stripes(2000, seed), stripes(2000, seed + 10)
    scores = [
        MoEClassifier(
            4, encoder=TableEncoder(n_shape_knots=n_knots), max_iter=20, random_state=seed
        )
        .fit(*train)
        .score(*test)
        for n_knots in (None, 32)
    ]
    assert scores[1] > scores[0] + 0.05


@pytest.mark.parametrize(
    "params",
    [
        {"gate": "hard"},
        {"gate": "attentive"},
        {"n_init": 2},
        {"experts": MPOExperts((16,))},
        {"experts": MLPExperts((16, 8), dropout=0.2)},
        {"early_stopping": True},
        {"calibrate": True},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:The best of 2 restarts")
def test_any_mixture(params, data):
    clf = clone(MOE).set_params(**params).fit(*data)
    assert clf.module_.experts.shapes.value.abs().max() > 0
    proba = clf.predict_proba(data[0])
    np.testing.assert_allclose(clf.predict_proba(data[0][:1]), proba[:1], atol=1e-6)


def test_later_mixtures_keep_them(fitted, data, tmp_path):
    X, y = data
    proba = fitted.predict_proba(X)
    assert (pickle.loads(pickle.dumps(fitted)).predict_proba(X) == proba).all()
    later = [
        fitted,
        prune_experts(fitted, method="similarity", n_experts=2, X=X, reduce="merge"),
        prune_experts(fitted, method="router_norm", n_experts=2),
        compress_experts(fitted, X, y, bond=None),
        grow(fitted, X[:200], y[:200]),
        distill(clone(MOE).set_params(gate="attentive").fit(X, y), X, y),
    ]
    for clf in later:
        save(clf, tmp_path / "moe.safetensors")
        twin = load(tmp_path / "moe.safetensors")
        assert (twin.predict_proba(X) == clf.predict_proba(X)).all()
        assert any(isinstance(part, ShapeFunctions) for part in twin.module_.modules())


def test_training_goes_on(data):
    X, y = data
    clf = clone(MOE).set_params(warm_start=True).fit(X, y)
    before = clf.module_.experts.shapes.value.clone()
    clf.fit(X, y)
    clf.partial_fit(X[:100], y[:100])
    assert clf.module_.experts.shapes.value.shape == before.shape
    assert not torch.equal(clf.module_.experts.shapes.value, before)


def test_importances_do_not_take_them_for_linear(data):
    X, y = data
    moe = clone(MOE).set_params(max_iter=30)
    importances = moe.fit(X, y).feature_importances_
    without = moe.set_params(encoder__n_shape_knots=None).fit(X, y).feature_importances_
    assert importances.argmax() == 0
    np.testing.assert_allclose(importances, without, atol=0.15)
