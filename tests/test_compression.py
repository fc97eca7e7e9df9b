import pickle
from copy import deepcopy
from functools import cache
from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_moe import (
    CompressionReport,
    MLPExperts,
    MoEClassifier,
    MPOExperts,
    compress_experts,
    decomposition_entropy,
    distill,
    grow,
    load,
    prune_experts,
    save,
)
from sklearn_moe.experts.mpo import RIDGE, MPOLinear, compress_mlp, decompose
from sklearn_moe.layers import StackedMLP

E = 4
MOE = MoEClassifier(
    E, experts=MLPExperts((16,)), regularization="importance", max_iter=10, random_state=0
)


@pytest.fixture(scope="module")
def data(digits):
    X, y = digits
    return X[:600], y[:600], X[600:], y[600:]


@pytest.fixture(scope="module")
def fitted(data):
    return clone(MOE).fit(*data[:2])


@pytest.fixture(scope="module")
def fitted_with(data):
    """A function that returns a mixture with some parameters, which tests must not change."""
    return cache(lambda **params: clone(MOE).set_params(**params, max_iter=2).fit(*data[:2]))


def shuffle_units(mlp, expert, generator):
    """Bring the hidden units of an expert into another order, which changes no output."""
    order = slice(None)
    with torch.no_grad():
        for i, layer in enumerate(mlp.layers):
            layer.weight[expert] = layer.weight[expert][:, order]
            if i < len(mlp.layers) - 1:
                order = torch.randperm(layer.bias.shape[1], generator=generator)
                layer.weight[expert], layer.bias[expert] = (
                    layer.weight[expert][order],
                    layer.bias[expert][order],
                )


def make_equal(mlp, generator):
    """Make all experts equal to the first, up to the order of their hidden units."""
    with torch.no_grad():
        for layer in mlp.layers:
            layer.weight.copy_(layer.weight[:1].expand_as(layer.weight))
            layer.bias.copy_(layer.bias[:1].expand_as(layer.bias))
    for expert in range(1, mlp.n_networks):
        shuffle_units(mlp, expert, generator)


# One layer


def eyes(n):
    return torch.eye(n, dtype=torch.float64)


def layer_for(weight, generator, n_tensors=3, bond=None):
    n_experts, n_out, n_in = weight.shape
    return MPOLinear(n_experts, n_in, n_out, generator, n_tensors=n_tensors, bond=bond, noise=0.0)


@pytest.mark.parametrize("n_tensors", [2, 3, 4, 5])
@pytest.mark.parametrize("size", [(12, 8), (7, 10)])
def test_one_expert_is_exact_with_all_ranks(n_tensors, size, generator):
    weight = torch.randn(1, *size, generator=generator, dtype=torch.float64)
    layer = layer_for(weight, generator, n_tensors)
    assert layer.fit(weight, eyes(size[1])) < 1e-7
    torch.testing.assert_close(layer.weight(), weight.float(), atol=1e-5, rtol=0)


def test_two_tensors_keep_the_best_common_rows(generator):
    """The experts share the rows on the right, and their best choice is an SVD of all matrices."""
    weight = torch.randn(E, 12, 8, generator=generator, dtype=torch.float64)
    weight += 0.5 * torch.randn(12, 8, generator=generator, dtype=torch.float64)
    bond = 3
    layer = layer_for(weight, generator, n_tensors=2, bond=bond)
    found = layer.fit(weight, eyes(8))
    (left, right), (over, under) = layer.rows, layer.columns
    stacked = weight.reshape(E, left, right, over, under).permute(0, 1, 3, 2, 4)
    values = torch.linalg.svdvals(stacked.reshape(E * left * over, right * under))
    best = (values[bond:].square().sum() / values.square().sum()).sqrt().item()
    assert found == pytest.approx(best, rel=1e-3)


def separate(weight, layer):
    """Decompose each matrix by itself, and share the mean of the central tensors, in a loop."""
    tensors = [decompose(matrix, layer.rows, layer.columns, layer.bond) for matrix in weight]
    central = sum(own[layer.centre] for own in tensors) / len(weight)
    matrices = []
    for own in tensors:
        own[layer.centre] = central
        out = torch.ones(1, 1, 1, dtype=weight.dtype)
        for tensor in own:
            out = torch.einsum("IJr,rijs->IiJjs", out, tensor)
            out = out.flatten(0, 1).flatten(1, 2)
        matrices.append(out.squeeze(2))
    return torch.stack(matrices)


@pytest.mark.parametrize("bond", [4, None])
def test_the_joint_fit_beats_separate_decompositions(bond, generator):
    weight = torch.randn(E, 16, 16, generator=generator, dtype=torch.float64)
    layer = layer_for(weight, generator, bond=bond)
    found = layer.fit(weight, eyes(16))
    relative = ((weight - layer.weight()).norm() / weight.norm()).item()
    assert found == pytest.approx(relative, rel=1e-4)
    mean = weight.mean(dim=0).expand_as(weight)
    for naive in (separate(weight, layer), separate(mean, layer)):
        assert found < 0.95 * ((weight - naive).norm() / weight.norm())


def test_a_layer_is_near_where_it_is_used(generator):
    weight = torch.randn(E, 16, 16, generator=generator, dtype=torch.float64)
    root = torch.diag(torch.tensor([1.0] * 4 + [1e-3] * 12, dtype=torch.float64))
    errors = []
    for metric in (root, eyes(16)):
        layer = layer_for(weight, generator, bond=4)
        layer.fit(weight, metric)
        errors.append(((weight - layer.weight()) @ root).norm())
    assert errors[0] < 0.5 * errors[1]


# All layers


@pytest.mark.parametrize("sizes", [(5, 8, 4), (5, 8, 7, 4)])
def test_units_are_aligned_by_their_weights(sizes, generator):
    mlp = StackedMLP(3, sizes, generator)
    make_equal(mlp, generator)
    x = torch.randn(20, 5, generator=generator)
    before = mlp.logits_and_hidden(x)[0]
    assert not torch.equal(mlp.layers[0].weight[1], mlp.layers[0].weight[0])
    mlp.align()
    torch.testing.assert_close(mlp.logits_and_hidden(x)[0], before)
    for layer in mlp.layers:
        assert torch.equal(layer.weight, layer.weight[:1].expand_as(layer.weight))


def test_alignment_is_the_best_of_all_orders(generator):
    mlp = StackedMLP(2, (3, 4, 2), generator)

    def distance(layers, order):
        (w, b), (v, _) = layers
        first, last = mlp.layers
        return (
            (first.weight[0] - w[order]).square().sum()
            + (first.bias[0] - b[order]).square().sum()
            + (last.weight[0] - v[:, order]).square().sum()
        )

    with torch.no_grad():
        own = [(layer.weight[1].clone(), layer.bias[1].clone()) for layer in mlp.layers]
        best = min(distance(own, list(order)) for order in permutations(range(4)))
        mlp.align()
        aligned = [(layer.weight[1], layer.bias[1]) for layer in mlp.layers]
        torch.testing.assert_close(distance(aligned, list(range(4))), best)


def test_layer_errors_by_a_loop(generator):
    experts = MLPExperts((6, 5), activation="tanh").build((4,), 3, 2, generator)
    x = torch.randn(40, 4, generator=generator)
    gate_proba = torch.randn(40, 3, generator=generator).softmax(dim=1)
    module, errors = compress_mlp(
        experts, n_tensors=3, bond=2, inputs=(x, gate_proba), align=False
    )[1:]
    for i, (layer, own, error) in enumerate(
        zip(experts.layers, module.layers, errors, strict=False)
    ):
        lost, total, squares = 0.0, 0.0, 0.0
        for e in range(3):
            for n in range(40):
                h = x[n]
                for before in experts.layers[:i]:
                    h = torch.tanh(before.weight[e] @ h + before.bias[e])
                share = gate_proba[n, e] / 40
                lost += share * ((own.weight()[e] - layer.weight[e]) @ h).square().sum()
                total += share * (layer.weight[e] @ h).square().sum()
                squares += share * h.square().sum()
        ridge = RIDGE * squares / (3 * layer.weight.shape[2])
        lost += ridge * (own.weight() - layer.weight).square().sum()
        total += ridge * layer.weight.square().sum()
        assert error == pytest.approx((lost / total).sqrt().item(), rel=1e-3)


@pytest.mark.parametrize("sizes", [(16,), (16, 8)])
@pytest.mark.parametrize("with_samples", [True, False])
def test_equal_experts_are_exact(sizes, with_samples, data, fitted_with, generator):
    """Also if their hidden units are in another order."""
    X, _, X_test, _ = data
    clf = deepcopy(fitted_with(experts=MLPExperts(sizes)))
    make_equal(clf.module_.experts, generator)
    compressed = compress_experts(clf, X if with_samples else None, bond=None)
    np.testing.assert_allclose(
        compressed.predict_proba(X_test), clf.predict_proba(X_test), rtol=0, atol=1e-5
    )
    assert max(compressed.report_.layer_errors) < 1e-6


def test_samples_of_zeros(generator):
    """Nothing is known about the inputs then."""
    experts = MLPExperts((6, 5)).build((4,), 3, 2, generator)
    inputs = torch.zeros(10, 4), torch.full((10, 3), 1 / 3)
    module, errors = compress_mlp(experts, n_tensors=3, bond=2, inputs=inputs)[1:]
    assert all(torch.isfinite(each).all() for each in module.parameters())
    assert np.isfinite(errors).all()


def test_one_expert_is_exact(data):
    X, y, X_test, _ = data
    clf = clone(MOE).set_params(n_experts=1, max_iter=2).fit(X, y)
    compressed = compress_experts(clf, X, bond=None, n_tensors=2)
    np.testing.assert_allclose(
        compressed.predict_proba(X_test), clf.predict_proba(X_test), rtol=0, atol=1e-5
    )


def test_biases_and_last_layer_stay(data, fitted_with):
    clf = fitted_with(gate="attentive")
    compressed = compress_experts(clf, data[0], bond=4)
    (first, last), module = clf.module_.experts.layers, compressed.module_.experts
    assert torch.equal(module.layers[0].bias, first.bias)
    assert torch.equal(module.head.weight, last.weight) and torch.equal(
        module.head.bias, last.bias
    )


# Compressed mixtures


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"gate": "attentive"},
        {"gate": "top_k", "mixing": "logit"},
        {"gate": "hard", "experts": MLPExperts((16, 12), activation="gelu", dropout=0.1)},
        {"encoder": None},
    ],
    ids=str,
)
def test_compressed_mixtures_are_ordinary_classifiers(params, data, tmp_path):
    X, y, X_test, y_test = (part[:200] for part in data)
    clf = clone(MOE).set_params(**params, max_iter=2).fit(X, y)
    before, former = pickle.dumps(clf.module_), str(clf.get_params())
    state = torch.random.get_rng_state()
    compressed = compress_experts(clf, X, bond=8)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert pickle.dumps(clf.module_) == before and str(clf.get_params()) == former
    proba = compressed.predict_proba(X_test)
    again = compress_experts(clf, X, bond=8)
    assert np.array_equal(again.predict_proba(X_test), proba)
    assert type(compressed.experts) is MPOExperts and compressed.experts.bond == 8
    assert compressed.n_parameters_ < clf.n_parameters_
    assert compressed.expert_usage_ == pytest.approx(compressed.gate_proba(X).mean(axis=0))
    save(compressed, tmp_path / "clf.skops")
    for twin in (pickle.loads(pickle.dumps(compressed)), load(tmp_path / "clf.skops")):
        assert np.array_equal(twin.predict_proba(X_test), proba)
        assert str(twin.report_) == str(compressed.report_)
        twin.partial_fit(X, y)
        assert np.isfinite(twin.predict_log_proba(X_test)).all()
    decomposition_entropy(compressed, X_test, y_test)
    pruned = prune_experts(compressed, method="heavy_hitters", n_experts=2, X=X)
    assert pickle.loads(pickle.dumps(pruned)).gate_proba(X_test).shape == (200, 2)
    warm = deepcopy(compressed).set_params(warm_start=True).fit(X, y)
    assert warm.n_iter_ == clf.n_iter_ + 2
    refitted = clone(compressed).fit(X[:100], y[:100])
    assert refitted.n_parameters_ == compressed.n_parameters_


def test_pruned_distilled_and_compressed(data, fitted_with):
    X, y, X_test, _ = data
    student = distill(fitted_with(gate="attentive"), X, y)
    pruned = prune_experts(student, method="similarity", n_experts=3, X=X)
    compressed = compress_experts(pruned, X, bond=8)
    twin = pickle.loads(pickle.dumps(compressed))
    assert np.array_equal(twin.predict_proba(X_test), compressed.predict_proba(X_test))
    assert compressed.n_experts == 3


@pytest.mark.parametrize("seed", range(5))
def test_samples_help(seed, data):
    X, y, X_test, _ = data
    clf = clone(MOE).set_params(random_state=seed).fit(X, y)
    agreement = [
        np.mean(compress_experts(clf, samples, bond=6).predict(X_test) == clf.predict(X_test))
        for samples in (None, X)
    ]
    assert agreement[1] > agreement[0]


def test_fine_tuning(data, fitted):
    X, y, X_test, y_test = data
    plain = compress_experts(fitted, X, y, bond=2)
    params = {"bond": 2, "fine_tune": True, "max_iter": 5, "regularization": "entropy"}
    tuned = compress_experts(fitted, X, y, **params)
    assert tuned.score(X_test, y_test) > plain.score(X_test, y_test)
    assert tuned.n_iter_ == fitted.n_iter_ + 5
    assert tuned.regularization == "entropy" and not tuned.warm_start
    assert tuned.report_.error_after == pytest.approx(1 - tuned.score(X, y))
    assert tuned.report_.layer_errors == plain.report_.layer_errors
    weight = np.where(y == 3, 0.0, 1.0) + 1e-9
    ignorant = compress_experts(fitted, X, y, sample_weight=weight, **params)
    assert np.mean(ignorant.predict(X) == 3) < np.mean(tuned.predict(X) == 3)


def test_pipelines_searches_and_types(iris):
    X, y = iris
    pipeline = make_pipeline(StandardScaler(), clone(MOE).set_params(max_iter=3)).fit(X, y)
    compressed = compress_experts(pipeline, X, y, bond=4)
    assert compressed[0] is not pipeline[0]
    assert compressed[-1].report_.error_after == pytest.approx(1 - compressed.score(X, y))
    search = GridSearchCV(pipeline, {"moeclassifier__max_iter": [2]}, cv=2).fit(X, y)
    assert type(compress_experts(search, X, bond=4)[-1].experts) is MPOExperts
    for dtype in (np.float32, np.float64):
        own = clone(MOE).set_params(max_iter=2).fit(X.astype(dtype), y)
        proba = compress_experts(own, X.astype(dtype), bond=4).predict_proba(X.astype(dtype))
        assert proba.dtype == dtype


def test_experts_that_read_some_columns(table):
    X, y = table
    clf = clone(MOE).set_params(expert_features=[0, 1, 2], max_iter=2).fit(X, y)
    compressed = compress_experts(clf, X, y, bond=16)
    assert compressed.report_.agreement > 0.8
    assert compressed.feature_importances_.sum() == pytest.approx(1)


def test_report(data, fitted):
    X, y = data[:2]
    compressed = compress_experts(fitted, X, y, bond=4)
    report = compressed.report_
    assert isinstance(report, CompressionReport) and report.n_experts == E
    assert report.error_before == pytest.approx(1 - fitted.score(X, y))
    assert report.error_after == pytest.approx(1 - compressed.score(X, y))
    assert report.agreement == np.mean(compressed.predict(X) == fitted.predict(X))
    assert report.n_parameters_before == fitted.n_parameters_
    assert report.n_parameters_after == compressed.n_parameters_
    assert report.cost_before == report.cost_after
    text = str(report)
    for part in ("Compressed 4 experts", "error", "same class for", "of the outputs of each"):
        assert part in text
    blind = compress_experts(fitted, bond=4)
    assert blind.report_.agreement is None and blind.report_.cost_after is None
    assert "of the weights of each" in str(blind.report_)
    assert np.array_equal(blind.expert_usage_, fitted.expert_usage_)
    with pytest.raises(AttributeError, match="or compress_experts without X"):
        _ = blind.feature_importances_


@pytest.mark.parametrize(
    "params, message",
    [
        ({"bond": 0}, "The 'bond' parameter of compress_experts must be an int in"),
        ({"n_tensors": 1}, "The 'n_tensors' parameter of compress_experts must be an int in"),
        ({"fine_tune": True}, "fine_tune=True needs samples and labels. Pass X and y"),
        ({"max_iter": 3}, "max_iter and sample_weight belong to fine_tune=True"),
        ({"y": np.zeros(600), "fine_tune": True}, "fine_tune=True needs samples of all classes"),
        ({"X": None, "y": "y"}, "y was passed without X"),
        ({"y": [1, 2]}, "inconsistent numbers of samples"),
        ({"X": np.zeros((4, 3))}, "X has 3 features"),
    ],
)
def test_errors(params, message, data, fitted):
    X, y = data[:2]
    params = {"X": X, "bond": 4, **params}
    if isinstance(params.get("y"), str):
        params["y"] = y
    with pytest.raises(ValueError, match=message):
        compress_experts(fitted, **params)


@pytest.mark.filterwarnings("ignore:The best of")
@pytest.mark.parametrize(
    "experts, kind",
    [
        ("linear", "got experts of the kind 'LinearExperts'"),
        ("complexity", "got experts of the kind 'ComplexityExperts'"),
        ("mpo", "got experts of the kind 'MPOExperts'"),
        (MLPExperts(()), "got experts of the kind 'MLPExperts' without any"),
    ],
)
def test_only_fully_connected_experts(experts, kind, data, fitted_with):
    clf = fitted_with(experts=experts)
    with pytest.raises(ValueError, match="needs MLPExperts with at least one hidden layer") as e:
        compress_experts(clf, data[0], bond=4)
    assert kind in str(e.value)


def test_other_errors(data, fitted):
    X, y = data[:2]
    with pytest.raises(NotFittedError):
        compress_experts(clone(MOE), X, bond=4)
    with pytest.raises(TypeError, match="Expected a fitted MoEClassifier"):
        compress_experts(StandardScaler(), X, bond=4)
    grown = grow(fitted, X, y, max_iter=1)
    with pytest.raises(ValueError, match="needs MLPExperts"):
        compress_experts(grown, X, bond=4)
