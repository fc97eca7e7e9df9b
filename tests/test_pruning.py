import pickle
from copy import deepcopy
from functools import cache
from itertools import permutations

import numpy as np
import pytest
import torch
from kinds import OF_IMAGES
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback

from sklearn_moe import (
    EXPERTS,
    GATES,
    MLPExperts,
    MoEClassifier,
    PruningReport,
    SoftmaxGate,
    ZeroComputationExperts,
    decomposition_entropy,
    distill,
    prune_experts,
)
from sklearn_moe.grouping import cka, divergence, group_experts
from sklearn_moe.layers import StackedMLP, matching_units

E = 6
METHODS = ["similarity", "router_norm", "heavy_hitters", "random"]
MOE = MoEClassifier(
    E, experts=MLPExperts((16,)), regularization="importance", max_iter=15, random_state=0
)


@pytest.fixture(scope="module")
def data(digits):
    X, y = digits
    return X[:600], y[:600], X[600:], y[600:]


@pytest.fixture(scope="module")
def fitted(data):
    return clone(MOE).fit(*data[:2])


def prune(clf, X, method, n_experts, **params):
    return prune_experts(clf, method=method, n_experts=n_experts, X=X, random_state=0, **params)


def make_twins(clf, pairs=((0, 3), (1, 4)), gate_too=False):
    """Return a copy of a mixture in which experts are doubles of others."""
    clf = deepcopy(clf)
    with torch.no_grad():
        for one, other in pairs:
            for layer in clf.module_.experts.layers:
                layer.weight[other], layer.bias[other] = layer.weight[one], layer.bias[one]
            if gate_too:
                last = clf.module_.gate.network.layers[-1]
                last.weight[0, other], last.bias[0, other] = last.weight[0, one], last.bias[0, one]
    return clf


# What all methods have in common


@pytest.fixture(scope="module")
def with_gate(data):
    """A function that returns a mixture with a gate, which tests must not change."""
    return cache(
        lambda gate: clone(MOE).set_params(gate=gate, max_iter=2, batch_size=200).fit(*data[:2])
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("gate", GATES)
def test_pruned_mixtures_are_ordinary_classifiers(method, gate, data, with_gate):
    X, y, X_test, y_test = *data[:2], data[2][:200], data[3][:200]
    clf = with_gate(gate)
    before, params = pickle.dumps(clf.module_), str(clf.get_params())
    if method == "router_norm" and clf.module_.gate.norm_change() is None:
        with pytest.raises(ValueError, match="needs a gate with trained weights for each expert"):
            prune(clf, X, method, 3)
        return
    pruned = prune(clf, X, method, 3)
    assert pickle.dumps(clf.module_) == before and str(clf.get_params()) == params
    assert isinstance(pruned, MoEClassifier) and pruned.n_experts == 3
    assert pruned.gate_proba(X_test).shape == (len(X_test), 3)
    assert pruned.gate_proba(X_test).sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert pruned.expert_usage_.shape == pruned.expert_costs_.shape == (3,)
    assert pruned.expert_usage_.sum() == pytest.approx(1)
    assert np.isfinite(pruned.predict_log_proba(X_test)).all()
    assert len(pickle.dumps(pruned)) < 0.7 * len(pickle.dumps(clf))
    assert np.array_equal(
        prune(clf, X, method, 3).predict_proba(X_test), pruned.predict_proba(X_test)
    )
    loaded = pickle.loads(pickle.dumps(pruned))
    assert np.array_equal(loaded.predict_proba(X_test), pruned.predict_proba(X_test))
    decomposition_entropy(pruned, X_test, y_test)
    pruned.partial_fit(X[:100], y[:100])
    assert np.isfinite(pruned.predict_log_proba(X_test)).all()
    assert clone(pruned).fit(X[:100], y[:100]).gate_proba(X_test).shape == (len(X_test), 3)


@pytest.fixture(scope="module")
def with_experts(data):
    """A function that returns a mixture of experts, which tests must not change."""

    @cache
    def fitted(experts):
        input_shape = (8, 8) if experts in OF_IMAGES else None
        clf = clone(MOE).set_params(
            experts=experts, input_shape=input_shape, max_iter=2, batch_size=200
        )
        return clf.fit(*data[:2])

    return fitted


@pytest.mark.filterwarnings("ignore:The best of")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("experts", sorted(set(EXPERTS) - {"strong"}))
def test_all_experts_can_be_pruned(method, experts, data, with_experts):
    X, clf = data[0][:200], with_experts(experts)
    pruned = prune(clf, X, method, 5)
    assert pruned.expert_proba(X).shape == (len(X), 5, 10)
    assert pruned.n_parameters_ < clf.n_parameters_
    if method == "similarity" and experts not in ("mlp", "linear"):
        with pytest.raises(ValueError, match=r"cannot be merged to one\. Pass reduce='keep'"):
            prune(clf, X, method, 3, reduce="merge")


@pytest.mark.parametrize("method", METHODS)
def test_all_experts_kept_is_the_identity(method, data, fitted):
    X = data[0]
    pruned = prune(fitted, X, method, E)
    assert np.array_equal(pruned.predict_proba(X), fitted.predict_proba(X))
    assert pruned.report_.groups == [[expert] for expert in range(E)]
    assert pruned.report_.agreement == 1


@pytest.mark.parametrize("method", [method for method in METHODS if method != "similarity"])
def test_kept_experts_and_their_gate_stay_as_they_are(method, data, fitted):
    X = data[0]
    pruned = prune(fitted, X, method, 3)
    kept = [expert for (expert,) in pruned.report_.groups]
    assert kept == sorted(np.argsort(-pruned.report_.scores)[:3])
    np.testing.assert_allclose(
        pruned.expert_proba(X), fitted.expert_proba(X)[:, kept], rtol=0, atol=1e-6
    )
    of_kept = fitted.gate_proba(X)[:, kept]
    np.testing.assert_allclose(
        pruned.gate_proba(X), of_kept / of_kept.sum(axis=1, keepdims=True), rtol=0, atol=1e-5
    )


def test_pipelines_and_searches(iris):
    X, y = iris
    clf = clone(MOE).set_params(max_iter=3)
    pipeline = make_pipeline(StandardScaler(), clf).fit(X, y)
    pruned = prune(pipeline, X, "similarity", 2, y=y)
    assert pruned[0] is not pipeline[0] and pruned[-1].n_experts == 2
    assert pruned[-1].report_.error_after == pytest.approx(1 - pruned.score(X, y))
    search = GridSearchCV(pipeline, {"moeclassifier__max_iter": [2]}, cv=2).fit(X, y)
    assert prune(search, X, "heavy_hitters", 2)[-1].n_experts == 2


def test_report(data, fitted):
    X, y = data[:2]
    pruned = prune(fitted, X, "heavy_hitters", 3, y=y)
    report = pruned.report_
    assert isinstance(report, PruningReport) and report.method == "heavy_hitters"
    assert report.error_before == pytest.approx(1 - fitted.score(X, y))
    assert report.error_after == pytest.approx(1 - pruned.score(X, y))
    assert report.agreement == np.mean(pruned.predict(X) == fitted.predict(X))
    assert report.n_parameters_after == pruned.n_parameters_
    assert (report.cost_before, report.cost_after) == (E * 1184, 3 * 1184)
    text = str(report)
    for part in ("from 6 to 3 experts by heavy hitters", "error", "3,552", "same class for"):
        assert part in text
    blind = prune_experts(fitted, method="router_norm", n_experts=3).report_
    assert blind.error_before is None and blind.agreement is None and blind.cost_after is None
    assert "error" not in str(blind) and "same class" not in str(blind)
    assert prune(fitted, X, "similarity", 3).report_.error_after is None


@pytest.mark.parametrize(
    "params, message",
    [
        ({"n_experts": 7}, "n_experts=7 must not be larger than 6, the present number"),
        ({"n_experts": 0}, "The 'n_experts' parameter of prune_experts must be an int in"),
        ({"method": "guess"}, "The 'method' parameter of prune_experts must be a str among"),
        ({"method": "similarity", "X": None}, "similarity='outputs' needs samples. Pass X, or"),
        (
            {"method": "similarity", "similarity": "gate", "reduce": "merge", "X": None},
            "reduce='merge' needs samples. Pass X, or reduce='keep'",
        ),
        ({"method": "heavy_hitters", "X": None}, "method='heavy_hitters' needs samples"),
        ({"stratified": True}, "stratified=True needs labels. Pass y."),
        ({"fine_tune": True}, "fine_tune=True needs samples and labels"),
        ({"top_k": 1}, "top_k, max_iter and sample_weight belong to fine_tune=True"),
        ({"y": np.full(600, 77)}, "y has none of the classes"),
        ({"fine_tune": True, "y": np.zeros(600)}, "fine_tune=True needs samples of all classes"),
        ({"fine_tune": True, "y": "y", "top_k": 4}, "top_k=4 must not be larger than n_experts=3"),
        ({"X": None, "y": "y"}, "y was passed without X"),
        ({"y": [1, 2]}, "inconsistent numbers of samples"),
        ({"X": np.zeros((4, 3))}, "X has 3 features"),
        ({"fine_tune": True, "y": "y", "regularization": "unknown"}, "unknown"),
    ],
)
def test_errors(params, message, data, fitted):
    X, y = data[:2]
    params = {"method": "heavy_hitters", "n_experts": 3, "X": X, **params}
    if isinstance(params.get("y"), str):
        params["y"] = y
    with pytest.raises(ValueError, match=message):
        prune_experts(fitted, **params)


def test_errors_of_the_mixture(data):
    X, y = data[:2]
    with pytest.raises(NotFittedError):
        prune(clone(MOE), X, "random", 3)
    with pytest.raises(TypeError, match="Expected a fitted MoEClassifier"):
        prune(StandardScaler(), X, "random", 3)
    top_2 = clone(MOE).set_params(gate="top_k", max_iter=2).fit(X, y)
    with pytest.raises(ValueError, match="n_experts=1 must be at least 2, the number of experts"):
        prune(top_2, X, "router_norm", 1)
    kmeans = clone(MOE).set_params(gate="kmeans", max_iter=2).fit(X, y)
    with pytest.raises(ValueError, match="needs a gate with a parameter top_k that learns"):
        prune(kmeans, X, "similarity", 3, y=y, fine_tune=True)
    cheap = ZeroComputationExperts((8,), n_constant=5)
    cheap = clone(MOE).set_params(experts=cheap, max_iter=2).fit(X, y)
    with torch.no_grad():
        cheap.module_.gate.network.layers[-1].bias[0, 0] = -100
    with pytest.raises(ValueError, match="one ordinary expert at least must be kept"):
        prune(cheap, X, "heavy_hitters", 3)


def test_experts_that_cannot_answer_alone(data):
    X, y = data[:2]
    params = {"experts": "orthogonal", "gate": "attentive", "max_iter": 2}
    clf = clone(MOE).set_params(**params).fit(X, y)
    with pytest.raises(ValueError, match="top_k=1 makes no sense"):
        prune(clf, X, "heavy_hitters", 3, y=y, fine_tune=True)
    with pytest.raises(ValueError, match="top_k=1 makes no sense"):
        distill(clf, X, y)
    tuned = prune(clf, X, "heavy_hitters", 3, y=y, fine_tune=True, top_k=2, max_iter=2)
    assert ((tuned.gate_proba(X) > 0).sum(axis=1) == 2).all()


# Similarity


def test_cka_by_its_invariants():
    rng = np.random.default_rng(0)
    one, noise = rng.normal(size=(2, 200, 5))
    turn = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    features = np.stack([one, 3 * one @ turn + 7, one + noise, noise, np.ones_like(one)], axis=1)
    similarity = cka(features)
    np.testing.assert_allclose(similarity, similarity.T, rtol=0, atol=1e-14)
    assert similarity.diagonal() == pytest.approx(1)
    assert similarity[0, 1] == pytest.approx(1, abs=1e-12)
    assert similarity[0, 1] > similarity[0, 2] > similarity[0, 3] > 0
    assert not similarity[4, :4].any()

    def by_definition(f, g):
        f, g = f - f.mean(axis=0), g - g.mean(axis=0)
        norm = np.linalg.norm
        return norm(f.T @ g) ** 2 / (norm(f.T @ f) * norm(g.T @ g))

    assert similarity[0, 3] == pytest.approx(by_definition(one, noise))


def test_divergence_by_hand():
    sure, other = [1.0, 0.0], [0.0, 1.0]
    expert_proba = np.array([[sure, sure, other], [sure, other, other]])
    gate_proba = np.array([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]])
    found = divergence(expert_proba, gate_proba)
    assert found == pytest.approx(np.log(2) * np.array([[0, 0.5, 1], [0.5, 0, 0.5], [1, 0.5, 0]]))
    # Samples count as much as the gate gives to both; of an unused pair nothing is known.
    found = divergence(expert_proba, np.array([[0.2, 0.8, 0], [1.0, 0, 0]]))
    assert found[0, 1] == pytest.approx(np.log(2) / 2)
    assert found[1, 2] == pytest.approx(np.log(2))
    assert divergence(expert_proba, np.array([[1.0, 0, 0]] * 2))[1, 2] == 0


def test_groups_are_a_partition_whatever_the_order():
    rng = np.random.default_rng(0)
    distance = np.abs(np.subtract.outer(*[rng.normal(size=9)] * 2))
    usage = rng.dirichlet(np.ones(9))
    order = rng.permutation(9)
    for n_groups in range(1, 10):
        groups = group_experts(distance, usage, n_groups)
        assert len(groups) == n_groups
        assert sorted(expert for group in groups for expert in group) == list(range(9))
        permuted = group_experts(distance[np.ix_(order, order)], usage[order], n_groups)
        assert {frozenset(group) for group in groups} == {
            frozenset(order[group].tolist()) for group in permuted
        }


def test_groups_against_a_naive_search():
    rng = np.random.default_rng(1)
    distance = rng.random((7, 7))
    distance = (distance + distance.T) * (1 - np.eye(7))
    usage = rng.dirichlet(np.ones(7))

    def cost(a, b):
        weights = np.outer(usage[a], usage[b])
        mean = (distance[np.ix_(a, b)] * weights).sum() / weights.sum()
        return mean * usage[a].sum() * usage[b].sum() / usage[a + b].sum()

    groups = [[expert] for expert in range(7)]
    while len(groups) > 3:
        _, one, other = min(
            (cost(groups[i], groups[j]), i, j) for j in range(len(groups)) for i in range(j)
        )
        groups[one] = groups[one] + groups.pop(other)
    assert group_experts(distance, usage, 3) == groups


@pytest.mark.parametrize("reduce", ["keep", "merge"])
@pytest.mark.parametrize("similarity", ["outputs", "cka", "weights"])
@pytest.mark.parametrize("gate", ["softmax", "top_k", "noisy_top_k", "hard", "kmeans"])
def test_doubles_can_be_merged_without_any_change(gate, similarity, reduce, data, with_gate):
    X, X_test = data[0], data[2][:200]
    clf = make_twins(deepcopy(with_gate(gate)))
    pruned = prune(clf, X, "similarity", 4, similarity=similarity, reduce=reduce)
    groups = {frozenset(group) for group in pruned.report_.groups}
    assert groups == {frozenset(group) for group in ((0, 3), (1, 4), (2,), (5,))}
    np.testing.assert_allclose(
        pruned.predict_proba(X_test), clf.predict_proba(X_test), rtol=0, atol=2e-6
    )
    before = clf.gate_proba(X_test)
    for expert, group in enumerate(pruned.report_.groups):
        np.testing.assert_allclose(
            pruned.gate_proba(X_test)[:, expert], before[:, group].sum(axis=1), rtol=0, atol=1e-6
        )
    again = prune(pruned, X, "heavy_hitters", 2)
    kept = [pruned.report_.groups[expert] for (expert,) in again.report_.groups]
    with pytest.raises(ValueError, match="or had its experts merged"):
        prune(pruned, X, "router_norm", 2)
    assert again.gate_proba(X_test).sum(axis=1) == pytest.approx(1, abs=1e-5)
    if gate == "softmax":
        of_kept = np.stack([before[:, group].sum(axis=1) for group in kept], axis=1)
        of_kept /= of_kept.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(again.gate_proba(X_test), of_kept, rtol=0, atol=1e-5)


def test_units_are_brought_into_one_order(generator):
    networks = StackedMLP(3, (5, 8, 7, 4), generator)
    x = torch.randn(300, 5, generator=generator)
    orders = [torch.randperm(size, generator=generator) for size in (8, 7)]
    first, second, third = networks.layers
    with torch.no_grad():  # the third network is the first with its units in another order
        first.weight[2], first.bias[2] = first.weight[0, orders[0]], first.bias[0, orders[0]]
        second.weight[2] = second.weight[0][orders[1]][:, orders[0]]
        second.bias[2] = second.bias[0, orders[1]]
        third.weight[2], third.bias[2] = third.weight[0][:, orders[1]], third.bias[0]
        outputs = networks.logits_and_hidden(x)[0]
        torch.testing.assert_close(outputs[:, 0], outputs[:, 2])
        naive = deepcopy(networks)
        for layer in naive.layers:
            layer.weight[0] = (layer.weight[0] + layer.weight[2]) / 2
            layer.bias[0] = (layer.bias[0] + layer.bias[2]) / 2
        error = (naive.logits_and_hidden(x)[0][:, 0] - outputs[:, 0]).abs().max()
        networks.merge([[0, 2], [1]], [[0.3, 0.7], [1.0]], x)
        merged = networks.logits_and_hidden(x)[0]
    assert error > 0.1
    torch.testing.assert_close(merged, outputs[:, :2], atol=1e-5, rtol=0)


def test_distances_of_weights_against_all_orders(generator):
    networks = StackedMLP(3, (3, 4, 2), generator)
    first, last = networks.layers
    expected = np.zeros((3, 3))
    with torch.no_grad():
        for e in range(3):
            for f in range(3):
                expected[e, f] = min(
                    sum(
                        ((first.weight[e, i] - first.weight[f, j]) ** 2).sum()
                        + (first.bias[e, i] - first.bias[f, j]) ** 2
                        + ((last.weight[e, :, i] - last.weight[f, :, j]) ** 2).sum()
                        for i, j in enumerate(order)
                    )
                    + ((last.bias[e] - last.bias[f]) ** 2).sum()
                    for order in permutations(range(4))
                ).item()
    assert networks.distances().numpy() == pytest.approx(expected, rel=1e-5)


def test_distances_do_not_depend_on_the_order_of_units(generator):
    networks = StackedMLP(3, (5, 8, 7, 4), generator)
    before = networks.distances()
    torch.testing.assert_close(before, before.mT)
    order = torch.randperm(8, generator=generator)
    first, second, _ = networks.layers
    with torch.no_grad():
        first.weight[1], first.bias[1] = first.weight[1, order], first.bias[1, order]
        second.weight[1] = second.weight[1][:, order]
    torch.testing.assert_close(networks.distances(), before)


def groups_by(distance, usage, n_experts):
    groups = group_experts(distance, usage, n_experts)
    return sorted(sorted(group, key=lambda expert: -usage[expert]) for group in groups)


@pytest.mark.parametrize("gate", ["softmax", "noisy_top_k", "cosine", "kmeans", "gumbel"])
def test_similarity_in_the_gate_by_a_loop(gate, data, with_gate):
    clf = with_gate(gate)
    module = clf.module_.gate
    if gate == "cosine":
        rows = [row / row.norm() for row in module.directions.weight.detach()]
    elif gate == "kmeans":
        rows = list(module.weight)
    else:
        rows = list(module.network.layers[-1].weight.detach()[0])
    distance = np.array([[((e - f) ** 2).sum().item() for f in rows] for e in rows])
    params = {"method": "similarity", "similarity": "gate", "n_experts": 3}
    blind = prune_experts(clf, **params).report_
    assert blind.groups == groups_by(distance, clf.expert_usage_, 3)
    assert blind.scores == pytest.approx(clf.expert_usage_)
    X = data[0][:300]
    usage = clf.gate_proba(X).mean(axis=0)
    assert prune_experts(clf, **params, X=X).report_.groups == groups_by(distance, usage, 3)


def test_what_changes_no_gate_changes_no_group(fitted):
    """A vector that is added to the weights of all experts does not change the softmax."""
    params = {"method": "similarity", "similarity": "gate", "n_experts": 3}
    shifted = deepcopy(fitted)
    with torch.no_grad():
        weight = shifted.module_.gate.network.layers[-1].weight
        weight += torch.linspace(-1, 1, weight.shape[2])
    groups = [prune_experts(clf, **params).report_.groups for clf in (fitted, shifted)]
    assert groups[0] == groups[1]


@pytest.mark.parametrize("gate", ["softmax", "hard"])
def test_doubles_are_found_without_samples(gate, data, with_gate):
    X_test = data[2][:200]
    clf = make_twins(with_gate(gate), gate_too=True)
    for similarity in ("weights", "gate"):
        pruned = prune_experts(clf, method="similarity", similarity=similarity, n_experts=4)
        groups = {frozenset(group) for group in pruned.report_.groups}
        assert groups == {frozenset(group) for group in ((0, 3), (1, 4), (2,), (5,))}
        np.testing.assert_allclose(
            pruned.predict_proba(X_test), clf.predict_proba(X_test), rtol=0, atol=2e-6
        )


@pytest.mark.parametrize("gate", ["attentive", "constant", "tree", "shared_expert"])
def test_gates_without_weights_for_each_expert(gate, with_gate):
    clf = with_gate(gate)
    with pytest.raises(ValueError, match="similarity='gate' needs a gate with weights for each"):
        prune_experts(clf, method="similarity", similarity="gate", n_experts=3)


@pytest.mark.parametrize("experts", ["complexity", "mpo", "orthogonal"])
def test_experts_whose_weights_cannot_be_compared(experts, with_experts):
    clf = with_experts(experts)
    with pytest.raises(ValueError, match="cannot be compared by their weights"):
        prune_experts(clf, method="similarity", similarity="weights", n_experts=3)


@pytest.mark.filterwarnings("ignore:The best of")
def test_linear_experts_by_their_coefficients(data, with_experts):
    clf = with_experts("linear")
    layer = clf.module_.experts
    rows = torch.cat([layer.weight.flatten(1), layer.bias], dim=1).detach().double()
    distance = torch.cdist(rows, rows).square().numpy()
    pruned = prune_experts(clf, method="similarity", similarity="weights", n_experts=3)
    assert pruned.report_.groups == groups_by(distance, clf.expert_usage_, 3)


@pytest.mark.filterwarnings("ignore:The best of")
def test_a_sparse_gate_of_merged_experts_goes_on(iris):
    X, y = iris
    clf = MoEClassifier(4, experts="linear", n_init=2, max_iter=3, random_state=0).fit(X, y)
    pruned = prune(clf, X, "similarity", 2)
    assert pruned.gate_columns_ == clf.gate_columns_
    (penalty,) = clf.net_.regularizations
    assert penalty.penalty_of(pruned.module_.gate) == penalty.penalty_of(clf.module_.gate)
    proba = deepcopy(pruned).partial_fit(X, y).predict_proba(X)
    assert np.isfinite(proba).all()
    assert np.abs(proba - pruned.predict_proba(X)).max() > 0
    again = deepcopy(pruned).set_params(warm_start=True).fit(X, y)
    assert set(again.gate_columns_) <= set(range(4))


def test_matching_units_undoes_a_permutation(generator):
    units = torch.randn(6, 50, generator=generator)
    order = torch.randperm(6, generator=generator)
    assert order[matching_units(units, 2 * units[order] + 1)].tolist() == list(range(6))


def test_merged_top_k_gate_trains(data):
    """Also where all members of a group are masked, whose logarithm is -inf."""
    X, y, X_test, y_test = data
    clf = clone(MOE).set_params(gate="top_k").fit(X, y)
    pruned = prune(clf, X, "similarity", 4)
    before = pruned.score(X_test, y_test)
    for _ in range(5):
        pruned.partial_fit(X, y)
    assert all(torch.isfinite(p).all() for p in pruned.module_.parameters())
    assert pruned.score(X_test, y_test) > before - 0.05
    assert ((pruned.gate_proba(X_test) > 0).sum(axis=1) <= 2).all()


# Router norm


def test_change_of_the_norm():
    gate = SoftmaxGate((8,)).build((5,), E, 3, torch.Generator().manual_seed(0))
    last = gate.network.layers[-1]
    assert torch.equal(gate.norm_change(), torch.zeros(E))
    with torch.no_grad():
        last.weight[0, 4] *= 2
        last.bias += 100
    assert gate.norm_change().argmax() == 4 and (gate.norm_change() != 0).sum() == 1
    gate.keep([4, 2])
    assert gate.norm_change()[0] > 0 and gate.norm_change()[1] == 0
    gate.begin()
    assert not gate.norm_change().any()


def test_start_of_the_norm_is_that_of_the_last_fit(data):
    X, y = data[:2]
    clf = clone(MOE).set_params(max_iter=3, warm_start=True)
    clf.partial_fit(X, y, classes=range(10))
    first = clf.module_.gate.start_norms.clone()
    clf.partial_fit(X, y)
    assert torch.equal(clf.module_.gate.start_norms, first)
    norms = clf.module_.gate.network.layers[-1].weight.detach()[0].norm(dim=1)
    clf.fit(X, y)
    assert torch.equal(clf.module_.gate.start_norms, norms)
    changes = clf.module_.gate.norm_change().numpy()
    report = prune_experts(clf, method="router_norm", n_experts=2).report_
    assert report.scores == pytest.approx(changes)
    assert report.groups == [[e] for e in sorted(np.argsort(-changes)[:2])]


def test_ties_keep_the_first(fitted, data):
    clf = deepcopy(fitted)
    clf.module_.gate.begin()
    report = prune_experts(clf, method="router_norm", n_experts=2).report_
    assert report.groups == [[0], [1]] and not report.scores.any()


def test_order_of_experts_does_not_matter(data, fitted):
    X = data[0]
    order = [3, 5, 0, 4, 1, 2]
    permuted = deepcopy(fitted)
    permuted.module_.experts.keep(order)
    permuted.module_.gate.keep(order)
    for method in ("similarity", "router_norm", "heavy_hitters"):
        groups = prune(fitted, X, method, 3).report_.groups
        found = prune(permuted, X, method, 3).report_.groups
        assert {frozenset(group) for group in groups} == {
            frozenset(order[expert] for expert in group) for group in found
        }


# Heavy hitters


@pytest.mark.parametrize("gate, k", [("softmax", 1), ("top_k", 2), ("hard", 1)])
def test_counts(gate, k, data):
    X, y = data[:2]
    clf = clone(MOE).set_params(gate=gate, max_iter=3).fit(X, y)
    soft, hard = (
        prune(clf, X, "heavy_hitters", 3, counting=counting).report_.scores
        for counting in ("soft", "hard")
    )
    assert hard.sum() == len(X) * k and soft.sum() == pytest.approx(len(X))
    if gate == "softmax":
        assert soft == pytest.approx(clf.gate_proba(X).sum(axis=0), rel=1e-5)
        assert hard.tolist() == np.bincount(clf.apply(X), minlength=E).tolist()
    if gate == "top_k":
        assert hard.tolist() == (clf.gate_proba(X) > 0).sum(axis=0).tolist()


def test_expert_of_a_rare_class_is_kept():
    """Experts 0 and 1 share a frequent class, expert 2 has a rare one for itself."""
    clf = MoEClassifier(3, experts=MLPExperts(()), encoder=None, max_iter=1, random_state=0)
    X = np.eye(3)[[0] * 45 + [1] * 45 + [2] * 10]
    y = np.array([0] * 90 + [1] * 10)
    clf.fit(X, y)
    with torch.no_grad():
        last = clf.module_.gate.network.layers[-1]
        last.weight.copy_(20 * torch.eye(3))
        last.bias.zero_()
    assert prune(clf, X, "heavy_hitters", 2).report_.groups == [[0], [1]]
    report = prune(clf, X, "heavy_hitters", 2, y=y, stratified=True).report_
    assert report.groups == [[0], [2]] and report.scores == pytest.approx([0.5, 0.5, 1], abs=1e-3)


def test_experts_that_are_never_chosen_are_not_missed(data, fitted):
    X, _, X_test, _ = data
    clf = make_twins(fitted, ())
    with torch.no_grad():
        clf.module_.gate.network.layers[-1].bias[0, [1, 4]] = -1000
    for gate in (None, 2):
        clf.module_.gate.top_k = gate
        for counting in ("soft", "hard"):
            pruned = prune(clf, X, "heavy_hitters", 4, counting=counting)
            assert pruned.report_.groups == [[0], [2], [3], [5]]
            np.testing.assert_allclose(
                pruned.predict_proba(X_test), clf.predict_proba(X_test), rtol=0, atol=1e-6
            )


def test_one_expert_is_the_whole_of_a_sure_gate(data, fitted):
    X = data[2]
    sure = deepcopy(fitted)
    with torch.no_grad():
        for parameter in sure.module_.gate.parameters():
            parameter *= 1e6
    soft = sure.predict_proba(X)
    sure.module_.gate.top_k = 1
    np.testing.assert_allclose(sure.predict_proba(X), soft, rtol=0, atol=1e-6)


class TopKOfEpochs(Callback):
    def on_train_begin(self, net, **kwargs):
        self.seen = []

    def on_epoch_end(self, net, **kwargs):
        self.seen.append(net.module_.gate.top_k)


@pytest.mark.parametrize("gate", ["softmax", "attentive"])
def test_fine_tuning(gate, data):
    X, y, X_test, y_test = data
    callback = TopKOfEpochs()
    clf = clone(MOE).set_params(gate=gate, net_params={"callbacks": [callback]}).fit(X, y)
    before = prune(clf, X, "heavy_hitters", 4)
    pruned = prune(clf, X, "heavy_hitters", 4, y=y, fine_tune=True, max_iter=12)
    assert pruned.gate.top_k == 1 and pruned.regularization == "entropy"
    assert not pruned.warm_start and pruned.n_iter_ == clf.n_iter_ + 12
    seen = dict(pruned.net_.callbacks_)["TopKOfEpochs"].seen
    assert seen == [4, 4, 3, 3, 3, 2] + [2] * 6
    assert decomposition_entropy(pruned, X_test).sample_entropy == 0
    assert "anneal_top_k" not in dict(pruned.net_.callbacks_)
    assert pruned.score(X_test, y_test) > before.score(X_test, y_test)
    assert pruned.score(X_test, y_test) > clf.score(X_test, y_test) - 0.06
    assert pruned.report_.error_after == pytest.approx(1 - pruned.score(X, y))
    again = prune(clf, X, "heavy_hitters", 4, y=y, fine_tune=True, max_iter=12)
    assert np.array_equal(again.predict_proba(X), pruned.predict_proba(X))
    assert pickle.loads(pickle.dumps(pruned)).module_.gate.top_k == 1


@pytest.mark.parametrize("gate", ["softmax", "hard"])
def test_fine_tuning_lets_fewer_and_fewer_experts_train(gate, data):
    """Also under a gate that takes one, which would train on all of them."""

    class Answering(Callback):
        def on_train_begin(self, net, **kwargs):
            self.seen = []

        def on_epoch_end(self, net, dataset_train, **kwargs):
            net.module_.train()
            gate_proba = net.module_(dataset_train.X["x"]).gate_proba
            self.seen.append(int((gate_proba > 0).sum(dim=1).max()))

    X, y = data[0][:100], data[1][:100]
    params = {"gate": gate, "max_iter": 2, "net_params": {"callbacks": [Answering()]}}
    clf = clone(MOE).set_params(**params).fit(X, y)
    weights = [clf.module_.gate.network.layers[-1].weight.clone()]
    pruned = prune(clf, X, "similarity", E, y=y, fine_tune=True, max_iter=12)
    assert dict(pruned.net_.callbacks_)["Answering"].seen == [6, 5, 5, 4, 3, 3] + [2] * 6
    weights.append(pruned.module_.gate.network.layers[-1].weight)
    assert (weights[0] != weights[1]).any() and pruned.module_.gate.top_k == 1
    assert ((pruned.gate_proba(X) > 0).sum(axis=1) == 1).all()


def test_fine_tuning_of_all_experts_and_with_other_regularizations(data, fitted):
    X, y = data[:2]
    params = {"fine_tune": True, "y": y, "max_iter": 3, "top_k": 2}
    pruned = prune(fitted, X, "similarity", E, regularization=None, **params)
    assert ((pruned.gate_proba(X) > 0).sum(axis=1) == 2).all()
    assert pruned.regularization is None and pruned.net_.regularizations == []
    merged = prune(fitted, X, "similarity", 3, regularization=["entropy", "importance"], **params)
    assert ((merged.gate_proba(X) > 0).sum(axis=1) == 2).all()
    assert len(merged.net_.regularizations) == 2


@pytest.mark.parametrize("gate", ["softmax", "hard", "top_k", "noisy_top_k"])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_fine_tuning_of_merged_experts_keeps_its_top_k(gate, top_k, data, with_gate):
    X, y = data[0][:200], data[1][:200]
    clf = with_gate(gate)
    regularization = "load" if gate == "noisy_top_k" and top_k > 1 else "entropy"
    params = {"y": y, "fine_tune": True, "max_iter": 2, "regularization": regularization}
    pruned = prune(clf, X, "similarity", 4, top_k=top_k, **params)
    for _ in range(2):
        assert ((pruned.gate_proba(X) > 0).sum(axis=1) == top_k).all()
        pruned = prune(pruned, X, "similarity", 3, top_k=top_k, **params)


def test_cost_of_merged_experts_is_what_runs(data, monkeypatch):
    X, y = data[:2]
    clf = clone(MOE).set_params(gate="top_k", experts=MLPExperts((256,)), max_iter=3).fit(X, y)
    pruned = prune(clf, X, "similarity", 3)
    experts = pruned.module_.experts
    monkeypatch.setattr("sklearn_moe.mixture.WORTH_AN_EXPERT", {"cpu": 0})
    run_some, rows = experts.run_some, []

    def spy(x, indices):
        rows.append(sum(map(len, x)))
        return run_some(x, indices)

    before = pruned.predict_proba(X[:592])
    monkeypatch.setattr(experts, "run_some", spy)
    np.testing.assert_allclose(pruned.predict_proba(X[:592]), before, atol=1e-6)
    cost = decomposition_entropy(pruned, X[:592]).cost
    assert rows[0] * experts.multiply_adds / 592 == pytest.approx(cost)
    assert cost < 2 * experts.multiply_adds


def test_interrupted_fine_tuning_is_honest(data, fitted):
    class CtrlC(Callback):
        def on_epoch_end(self, net, **kwargs):
            if net.module_.gate.top_k is not None:
                raise KeyboardInterrupt

    X, y = data[:2]
    clf = clone(MOE).set_params(net_params={"callbacks": [CtrlC()]}).fit(X, y)
    pruned = prune(clf, X, "heavy_hitters", 4, y=y, fine_tune=True, max_iter=6)
    assert pruned.n_iter_ < clf.n_iter_ + 6 and pruned.module_.gate.top_k == 1
    assert decomposition_entropy(pruned, X).sample_entropy == 0


# With distillation


def test_pruning_teachers_and_students(data):
    X, y, X_test, y_test = data
    teacher = clone(MOE).set_params(gate="attentive").fit(X, y)
    student = distill(teacher, X, y, max_iter=5)
    pruned = prune_experts(student, method="router_norm", n_experts=4)
    assert pruned.score(X_test, y_test) > 0.5
    smaller = prune(teacher, X, "similarity", 4)
    assert distill(smaller, X, y, max_iter=2).gate_proba(X).shape == (len(X), 4)
