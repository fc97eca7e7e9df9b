"""Hidden layers of experts: equations, prediction, reports, files."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from sklearn_moe import (
    ConvMoELayers,
    EstimatorExperts,
    Importance,
    MLPExperts,
    MoEClassifier,
    MoELayers,
    SoftmaxGate,
    ZeroComputationExperts,
    decomposition_entropy,
    decomposition_report,
    distill,
    load,
    prune_experts,
    save,
)
from sklearn_moe.hidden_pruning import _ranks, vector_distance
from sklearn_moe.training.session import likelihood

X, y = load_digits(return_X_y=True)
X, y = X[:400], y[:400]
IMAGES = X.reshape(-1, 8, 8)


def fitted(encoder, X=X, **params):
    defaults = {"n_experts": 3, "max_iter": 3, "random_state": 0}
    return MoEClassifier(encoder=encoder, **(defaults | params)).fit(X, y)


def encoded_input(clf, X, n=12):
    """Return what the first layer reads, in float64, and the module of the encoder."""
    module = clf.module_.double().requires_grad_(False)
    samples = torch.as_tensor(clf.reader_.read(X[:n], clf)).double()
    with torch.no_grad():
        return module.table(samples).double(), module.encoder


def normalize(v, norm):
    centred = v - v.mean()
    scaled = centred / (centred.square().mean() + norm.eps).sqrt()
    shape = (-1,) + (1,) * (v.dim() - 1)
    return scaled * norm.weight.view(shape) + norm.bias.view(shape)


def top_k_weights(scores, k=2):
    """Return the softmax over the k largest scores, by a loop."""
    best = sorted(range(len(scores)), key=lambda e: -scores[e])[:k]
    total = sum(torch.exp(scores[e]) for e in best)
    return {e: torch.exp(scores[e]) / total for e in best}


def mlp_by_hand(network, expert, v):
    first, second = network.layers
    hidden = torch.relu(first.weight[expert] @ v + first.bias[expert])
    return second.weight[expert] @ hidden + second.bias[expert]


def scores_by_hand(gate, read):
    (layer,) = gate.network.layers
    return layer.weight[0] @ read + layer.bias[0]


@pytest.mark.parametrize("gating_residual", [True, False])
@pytest.mark.parametrize("experts", ["mlp", "zero_computation"])
def test_blocks_are_those_of_the_equations(experts, gating_residual):
    layers = MoELayers(2, n_experts=4, hidden_size=6, experts=experts)
    clf = fitted(layers.set_params(gating_residual=gating_residual))
    x, encoder = encoded_input(clf, X)
    out = encoder(x)
    first = encoder.first[1]
    for n in range(len(x)):
        v, below = first.weight @ x[n] + first.bias, None
        for mixture in encoder.mixtures:
            normed = normalize(v, mixture.encoder)
            read = normed if below is None else torch.cat([normed, below])
            scores = scores_by_hand(mixture.gate, read)
            mixed = torch.zeros(6, dtype=torch.float64)
            for e, weight in top_k_weights(scores).items():
                mixed += weight * answer_by_hand(mixture.experts, e, normed)
            v, below = v + mixed, scores if gating_residual else None
        last = encoder.between[-1]
        expected = F.layer_norm(v, (6,), last.weight, last.bias)
        torch.testing.assert_close(out[n], expected, rtol=1e-6, atol=1e-6)


def answer_by_hand(experts, e, v):
    if not hasattr(experts, "kinds"):
        return mlp_by_hand(experts, e, v)
    kind = experts.kinds[e]
    own = experts.kinds[:e].count(kind)
    if kind == "ordinary":
        return mlp_by_hand(experts.ordinary, own, v)
    if kind == "zero":
        return torch.zeros_like(v)
    if kind == "copy":
        return v
    logits = experts.constant.blend[own] @ v
    a = torch.exp(logits) / torch.exp(logits).sum()
    return a[0] * v + a[1] * experts.constant.weight[own]


def test_convolutional_blocks_are_those_of_the_equations():
    layers = ConvMoELayers(1, n_experts=3, channels=4, expert_channels=5)
    x, encoder = encoded_input(fitted(layers, IMAGES), IMAGES, n=5)
    out = encoder(x)
    images, (mixture,) = encoder.first(x), encoder.mixtures
    experts = mixture.experts
    for n, v in enumerate(images):
        normed = normalize(v, mixture.encoder)
        scores = scores_by_hand(mixture.gate, normed.mean(dim=(1, 2)))
        mixed = torch.zeros_like(v)
        for e, weight in top_k_weights(scores).items():
            inner = F.conv2d(normed, experts.inner.weight[e], experts.inner.bias[e], padding=1)
            outer = F.conv2d(
                inner.relu(), experts.outer.weight[e], experts.outer.bias[e], padding=1
            )
            mixed += weight * outer
        torch.testing.assert_close(out[n], (v + mixed).flatten(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("gate", ["top_k", "softmax"])
def test_outputs_of_the_experts_that_answer_are_orthogonal(gate):
    layers = MoELayers(1, n_experts=4, hidden_size=6, gate=gate, orthogonal=True)
    x, encoder = encoded_input(fitted(layers), X)
    out, (mixture,) = encoder(x), encoder.mixtures
    dense = []
    torch.testing.assert_close(encoder(x, None, dense), out)  # only those that answer ran above
    first, last = encoder.first[1], encoder.between[-1]
    for n in range(len(x)):
        v = first.weight @ x[n] + first.bias
        normed = normalize(v, mixture.encoder)
        k = 2 if gate == "top_k" else 4
        weights = top_k_weights(scores_by_hand(mixture.gate, normed), k)
        mixed, found = torch.zeros(6, dtype=torch.float64), []
        for e, weight in weights.items():  # the surest first
            u = mlp_by_hand(mixture.experts, e, normed)
            for other in found:
                u = u - (u @ other) / (other @ other) * other
            found.append(u)
            mixed += weight * u
        expected = F.layer_norm(v + mixed, (6,), last.weight, last.bias)
        torch.testing.assert_close(out[n], expected, rtol=1e-6, atol=1e-6)


def test_a_gating_residual_of_zeros_is_none():
    with_residual = fitted(MoELayers(2, n_experts=4, hidden_size=6)).module_.encoder
    without = fitted(MoELayers(2, n_experts=4, hidden_size=6, gating_residual=False))
    without = without.module_.encoder
    weights = with_residual.requires_grad_(False).state_dict()
    name = "mixtures.1.gate.network.layers.0.weight"
    weights[name][..., 6:] = 0
    with_residual.load_state_dict(weights)
    without.load_state_dict({**weights, name: weights[name][..., :6]})
    x = torch.randn(9, with_residual.first[1].in_features)
    torch.testing.assert_close(with_residual(x), without(x))


@pytest.mark.parametrize(
    ("encoder", "samples"),
    [
        (MoELayers(n_experts=4), X),
        (MoELayers(gate="noisy_top_k", experts=ZeroComputationExperts(capacity=1.1)), X),
        (MoELayers(n_experts=3, gate="attentive", experts="orthogonal"), X),
        (MoELayers(n_experts=3, gate="hard", experts="mpo", gating_residual=False), X),
        (MoELayers(1, gate="tree", experts="linear"), X),
        (MoELayers(n_experts=3, orthogonal=True), X),
        (MoELayers(1, n_experts=3, gate="softmax"), IMAGES),
        (ConvMoELayers(gate="balanced"), IMAGES),
    ],
    ids=["top_k", "zero", "attentive", "hard", "tree", "orthogonal", "images", "conv"],
)
def test_predictions_files_and_determinism(encoder, samples, tmp_path):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    clf = fitted(encoder, samples, regularization="importance")
    assert torch.equal(torch.get_rng_state(), state)
    proba = clf.predict_proba(samples)
    assert clf.score(samples, y) > 0.3
    np.testing.assert_array_equal(
        proba, fitted(encoder, samples, regularization="importance").predict_proba(samples)
    )
    # A prediction runs only the experts that the gates take, the module all of them.
    with torch.no_grad():
        output = clf.module_(torch.as_tensor(clf.reader_.read(samples, clf)))
    np.testing.assert_allclose(proba, output.log_proba.exp(), atol=1e-6)
    save(clf, tmp_path / "mixture.moe")
    for other in (pickle.loads(pickle.dumps(clf)), load(tmp_path / "mixture.moe")):
        np.testing.assert_array_equal(proba, other.predict_proba(samples))
    for layer, part in enumerate(output.layers):
        gate_proba = clf.gate_proba(samples, layer=layer)
        np.testing.assert_allclose(gate_proba, part.gate_proba, atol=1e-6)
    before = clf.n_iter_
    assert clf.partial_fit(samples, y).n_iter_ == before + 1
    assert clf.set_params(warm_start=True, max_iter=1).fit(samples, y).n_iter_ == before + 2


def test_regularizations_are_summed_over_layers():
    clf = fitted(MoELayers(2, n_experts=4, hidden_size=6), regularization=None)
    net, module = clf.net_, clf.module_
    samples = torch.as_tensor(clf.reader_.read(X, clf))
    labels, weight = torch.as_tensor(y), torch.ones(len(X))
    output = module(samples)

    class Training:
        generator, inverse_temperature = None, 1.0

    losses = []
    for regularizations in ([], [Importance(1.0)]):
        net.regularizations, net.session_ = regularizations, Training()
        losses.append(likelihood(net, samples, weight, labels)[0].item())
    expected = 0.0
    for part in (output, *output.layers):
        importance = part.gate_proba.sum(dim=0)
        expected += (importance.var() / importance.mean().square()).item()
    assert losses[1] - losses[0] == pytest.approx(expected, rel=1e-4)


def test_importance_spreads_the_experts_of_all_layers():
    def least_used(regularization):
        clf = fitted(
            MoELayers(2, n_experts=4, hidden_size=16), max_iter=15, regularization=regularization
        )
        return min(clf.gate_proba(X, layer=layer).mean(axis=0).min() for layer in (0, 1))

    assert least_used(Importance(1.0)) > max(0.1, least_used(None))


def test_reports_know_the_layers():
    clf = make_pipeline(StandardScaler(), MoEClassifier(3, encoder="moe", max_iter=3))
    clf = clf.set_params(moeclassifier__random_state=0).fit(X, y)
    decomposition = decomposition_entropy(clf, X, y)
    assert len(decomposition.layers) == 2
    for layer, part in enumerate(decomposition.layers):
        gate_proba = clf[-1].gate_proba(clf[:-1].transform(X), layer=layer)
        np.testing.assert_allclose(part.usage, gate_proba.mean(axis=0))
        assert part.relative_cost == pytest.approx(0.25)  # two of eight experts run
        assert f"hidden layer {layer}" in repr(decomposition)
    assert "layer 1" in str(decomposition_report(clf, X, y))
    assert decomposition_entropy(MoEClassifier(2, max_iter=1).fit(X, y), X, y).layers == ()


class Least(BaseEstimator):
    """Experts of a user who knows nothing of hidden layers."""

    def build(self, *sizes):
        return MLPExperts((4,)).build(*sizes)


def test_layers_take_experts_that_can_only_be_built():
    clf = fitted(MoELayers(1, n_experts=3, hidden_size=6, experts=Least()))
    assert clf.module_.layers[0].experts.hidden_size == 4


def test_searches_clones_and_students():
    clf = MoEClassifier(
        2, encoder=MoELayers(1, n_experts=3, hidden_size=8), max_iter=2, random_state=0
    )
    search = GridSearchCV(clf, {"encoder__n_layers": [1, 2], "encoder__gate": ["softmax"]}, cv=2)
    assert search.fit(X, y).best_params_["encoder__gate"] == "softmax"
    assert clone(clf).encoder.hidden_size == 8
    teacher = clf.set_params(gate="attentive").fit(X, y)
    student = distill(teacher, X, y)
    assert len(student.module_.layers) == 1


def test_a_zero_expert_keeps_its_share_in_a_hidden_layer():
    clf = fitted(MoELayers(1, n_experts=4, hidden_size=6, experts="zero_computation"))
    (layer,) = clf.module_.layers
    log_proba = torch.randn(5, 4).log_softmax(dim=1)
    assert torch.equal(layer.experts.limit(log_proba), log_proba)
    gate_proba = clf.gate_proba(X, layer=0)
    assert (gate_proba[:, layer.experts.kinds.index("zero")] > 0).any()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"encoder": MoELayers(gate="kmeans")}, "must learn by gradients"),
        ({"encoder": MoELayers(gate="sofmax")}, "encoder__gate='sofmax' is not known"),
        ({"encoder": MoELayers(gate=SoftmaxGate(top_k=9))}, "top_k=9 must not be larger"),
        ({"encoder": MoELayers(experts="strong")}, "of one kind, not a list"),
        (
            {"encoder": MoELayers(experts=EstimatorExperts([("net", "mlp")]))},
            "of one kind, not a list",
        ),
        ({"encoder": MoELayers(n_layers=0)}, "'n_layers' parameter of MoELayers"),
        ({"encoder": MoELayers(n_experts=True)}, "encoder__n_experts must be an integer"),
        ({"encoder": "conv_moe"}, "Convolutions need images"),
        ({"gate": SoftmaxGate(encoder="moe")}, "has gates and experts of its own"),
        ({"encoder": MoELayers(experts="mlps")}, "encoder__experts='mlps' is not known"),
        ({"regularization": "load", "encoder": "moe", "gate": "noisy_top_k"}, "hidden layers"),
        ({"regularization": "sparse_gate", "encoder": "moe"}, "with encoder='auto'"),
    ],
)
def test_bad_input_raises(params, message):
    with pytest.raises(ValueError, match=message):
        MoEClassifier(max_iter=1, **params).fit(X, y)


def test_images_can_be_too_small_for_the_layers():
    with pytest.raises(ValueError, match="too small for n_layers=4"):
        fitted(ConvMoELayers(4), IMAGES)


def test_groups_need_columns_that_the_gate_reads():
    group = np.arange(len(X)) // 4
    with pytest.raises(ValueError, match="groups needs gate and experts that read the columns"):
        MoEClassifier(encoder="moe").fit(np.column_stack([X, group]), y, groups=group)


@pytest.mark.parametrize("layer", [-1, 2, "first", 0.0, True])
def test_a_layer_that_is_not_there_raises(layer):
    with pytest.raises(ValueError, match="from 0 to 1"):
        fitted("moe", max_iter=1).gate_proba(X, layer=layer)
    with pytest.raises(ValueError, match="no hidden layers"):
        fitted("auto", max_iter=1).gate_proba(X, layer=layer)


# Pruning


def layered(**params):
    encoder = MoELayers(2, n_experts=5, hidden_size=8, **params)
    return fitted(encoder, max_iter=6, regularization="importance")


def sizes(clf):
    return [len(layer.experts.costs) for layer in clf.module_.layers]


def test_one_ranking_decides_in_all_layers():
    clf = layered()
    pruned = prune_experts(clf, method="heavy_hitters", n_hidden_experts=6, X=X, y=y)
    counts = []
    with torch.no_grad():
        output = clf.module_(torch.as_tensor(clf.reader_.read(X, clf)))
    for number, layer in enumerate(output.layers):
        shares = layer.gate_logits.double().softmax(dim=1).sum(dim=0)
        counts += [(share.item(), number, expert) for expert, share in enumerate(shares)]
    # Two of each layer, and then the best of those that are left.
    ranked = sorted(counts, reverse=True)
    kept = [*[c for c in ranked if c[1] == 0][:2], *[c for c in ranked if c[1] == 1][:2]]
    kept += [c for c in ranked if c not in kept][:2]
    for number, groups in enumerate(pruned.report_.hidden_groups):
        assert [expert for (expert,) in groups] == sorted(e for _, n, e in kept if n == number)
    assert sum(sizes(pruned)) == 6
    assert sizes(clf) == [5, 5]
    assert "hidden layer 1 was" in repr(pruned.report_)
    assert pruned.n_experts == clf.n_experts == 3


@pytest.mark.parametrize(
    "params",
    [
        {"method": "router_norm"},
        {"method": "random", "random_state": 0},
        {"method": "heavy_hitters", "counting": "hard", "stratified": True},
        {"method": "similarity"},
        {"method": "similarity", "reduce": "keep", "similarity": "cka"},
        {"method": "similarity", "similarity": "weights", "n_experts": 2},
        {"method": "similarity", "similarity": "gate"},
    ],
    ids=str,
)
def test_pruned_layers_predict_train_and_travel(params, tmp_path):
    pruned = prune_experts(layered(), n_hidden_experts=5, X=X, y=y, **params)
    assert sum(sizes(pruned)) == 5
    assert min(sizes(pruned)) >= 2
    assert pruned.n_experts == params.get("n_experts", 3)
    proba = pruned.predict_proba(X)
    save(pruned, tmp_path / "pruned.moe")
    for other in (pickle.loads(pickle.dumps(pruned)), load(tmp_path / "pruned.moe")):
        np.testing.assert_array_equal(proba, other.predict_proba(X))
    assert pruned.gate_proba(X, layer=1).shape == (len(X), sizes(pruned)[1])
    assert sizes(pruned.partial_fit(X, y)) == sizes(pruned)


@pytest.mark.parametrize("method", ["heavy_hitters", "similarity", "random"])
@pytest.mark.parametrize("top_k", [1, 2])
def test_an_ordinary_expert_stays_in_each_layer(method, top_k):
    clf = layered(experts="zero_computation", gate=SoftmaxGate(top_k=top_k))
    for layer in clf.module_.layers:  # the cheap experts get the samples
        (last,) = layer.gate.network.layers
        last.bias.data += 20 * ~torch.tensor(layer.experts.is_ordinary)
    for seed in range(3):
        pruned = prune_experts(
            clf, method=method, n_hidden_experts=2 * top_k, X=X, random_state=seed
        )
        assert sizes(pruned) == [top_k, top_k]
        assert all(any(layer.experts.is_ordinary) for layer in pruned.module_.layers)
        assert np.isfinite(pruned.predict_proba(X)).all()


def test_the_best_ordinary_expert_comes_first():
    scores, is_ordinary = np.array([1.0, 3.0, 5.0, 4.0]), [True, True, False, False]
    assert _ranks(scores, is_ordinary).tolist() == [3, 0, 1, 2]
    assert _ranks(scores, [True] * 4).tolist() == [3, 2, 0, 1]


def test_the_report_counts_hidden_experts():
    clf = layered(gate="softmax")
    report = prune_experts(clf, method="heavy_hitters", n_hidden_experts=6, X=X).report_
    cost = clf.module_.layers[0].experts.costs[0]
    others = 3 * clf.expert_costs_[0]
    assert (report.cost_before, report.cost_after) == (others + 10 * cost, others + 6 * cost)
    assert repr(report).startswith(
        "Pruned from 3 to 3 experts, and to 6 in hidden layers, by heav"
    )


def test_merged_layers_have_no_weights_for_each_expert():
    pruned = prune_experts(layered(), method="similarity", n_hidden_experts=9, X=X)
    merged = sizes(pruned).index(4)
    for params in ({"method": "router_norm"}, {"method": "similarity", "similarity": "gate"}):
        with pytest.raises(ValueError, match=f"hidden layer {merged} has none"):
            prune_experts(pruned, n_hidden_experts=6, **params)


@pytest.mark.parametrize(
    "params",
    [{"method": "router_norm"}, {"method": "similarity", "similarity": "gate"}],
    ids=str,
)
def test_hidden_layers_alone_do_not_ask_the_gate_above(params):
    clf = fitted(MoELayers(2, n_experts=4, hidden_size=8), gate="attentive")
    pruned = prune_experts(clf, n_hidden_experts=5, **params)
    assert sum(sizes(pruned)) == 5
    assert np.isnan(pruned.report_.scores).all()
    assert pruned.report_.groups == [[0], [1], [2]]
    with pytest.raises(ValueError, match="needs a gate with"):
        prune_experts(clf, n_experts=2, n_hidden_experts=5, **params)


def test_merged_copies_in_a_layer_predict_the_same():
    clf = fitted(MoELayers(1, n_experts=3, hidden_size=8, gate="softmax"))
    (layer,) = clf.module_.layers
    with torch.no_grad():
        for own in layer.experts.layers:
            own.weight[2], own.bias[2] = own.weight[0], own.bias[0]
    before = clf.predict_proba(X)
    for reduce in ("keep", "merge"):
        pruned = prune_experts(clf, method="similarity", n_hidden_experts=2, X=X, reduce=reduce)
        assert sorted(map(sorted, pruned.report_.hidden_groups[0])) == [[0, 2], [1]]
        np.testing.assert_allclose(pruned.predict_proba(X), before, atol=1e-6)


def test_distance_of_vectors():
    rng = np.random.default_rng(0)
    vectors, gate_proba = rng.normal(size=(20, 3, 4)), rng.dirichlet([1, 1, 1], 20)
    found = vector_distance(vectors, gate_proba)
    for one in range(3):
        for other in range(3):
            total = weight = 0.0
            for n in range(20):
                both = gate_proba[n, one] + gate_proba[n, other]
                total += both * ((vectors[n, one] - vectors[n, other]) ** 2).sum()
                weight += both
            assert found[one, other] == pytest.approx(total / weight, abs=1e-12)


@pytest.mark.parametrize(
    ("n", "message"), [(3, "must be between 4"), (11, "and 10"), (None, "Pass n_experts")]
)
def test_numbers_of_hidden_experts_that_cannot_be(n, message):
    with pytest.raises(ValueError, match=message):
        prune_experts(layered(), method="router_norm", n_hidden_experts=n)
    with pytest.raises(ValueError, match=r"no hidden layers|Pass n_experts"):
        prune_experts(fitted("auto", max_iter=1), method="router_norm", n_hidden_experts=n)
