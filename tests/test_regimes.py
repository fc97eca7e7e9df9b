"""Linear experts, restarts, annealing, columns of gate and experts, and the sparse gate."""

import pickle
import warnings
from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.compose import make_column_selector
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_moe import (
    Importance,
    LinearExperts,
    MoEClassifier,
    SoftmaxGate,
    SparseGate,
    decomposition_report,
    distill,
    prune_experts,
)
from sklearn_moe.experts.base import build_experts
from sklearn_moe.gates import build_gate
from sklearn_moe.mixture import MixtureOfExperts
from sklearn_moe.training import polish
from sklearn_moe.training.callbacks import OneCycle
from sklearn_moe.training.closed_form import likelihood_gradient
from sklearn_moe.training.net import MoENet
from sklearn_moe.training.restarts import End, Starts, mean_log_likelihood, penalty_on_weights
from sklearn_moe.training.session import Session


def sectors(n_samples, seed):
    """Three logistic rules on x2 to x5; which of them holds depends on the angle of (x0, x1)."""
    rules = np.array([[3, -2, 2, 2.5], [-2, 3, 2, -3], [2, 2.5, -3, 2]])
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n_samples, 6))
    angle = 2 * np.pi * np.arange(3) / 3
    scores = 5 * X[:, :2] @ [np.cos(angle), np.sin(angle)]
    gate = np.exp(scores - np.logaddexp.reduce(scores, axis=1, keepdims=True))
    proba = 1 / (1 + np.exp(-X[:, 2:] @ rules.T))
    regime = (gate.cumsum(axis=1) > rng.random((n_samples, 1))).argmax(axis=1)
    y = (rng.random(n_samples) < proba[np.arange(n_samples), regime]).astype(int)
    return X, y, regime, gate.argmax(axis=1), (gate * proba).sum(axis=1)


def towns(n_samples, seed):
    """Three logistic rules on three columns; the town decides which of them holds."""
    rules = np.array([[3, -2, 2], [-2, 3, -2.5], [-3, -2, 2]])
    rng = np.random.default_rng(seed)
    X = pd.DataFrame(rng.normal(size=(n_samples, 3)), columns=["age", "size", "income"])
    town = rng.integers(6, size=n_samples)
    proba = 1 / (1 + np.exp(-np.einsum("nd,nd->n", X.to_numpy(), rules[town % 3])))
    X["town"] = pd.Categorical(np.array(list("ABCDEF"))[town])
    return X, np.where(rng.random(n_samples) < proba, "yes", "no"), town % 3


@pytest.fixture(scope="module")
def data():
    return sectors(1500, 0)[:2]


@pytest.fixture(scope="module")
def fitted(data):
    """Two fits from other seeds; tests must not change them."""
    return [MoEClassifier(3, experts="linear", random_state=seed).fit(*data) for seed in range(2)]


@pytest.fixture(scope="module")
def town_data():
    return towns(1200, 0)


def test_regimes_are_found_and_found_again(fitted):
    X, y, regime, best, proba = sectors(3000, 1)
    chosen = [clf.apply(X) for clf in fitted]
    truth = adjusted_rand_score(best, regime)
    assert adjusted_rand_score(chosen[0], regime) > truth - 0.03
    assert adjusted_rand_score(*chosen) > 0.97
    assert log_loss(y, fitted[0].predict_proba(X)) < log_loss(y, proba) + 0.02
    for clf in fitted:
        assert clf.gate_columns_ == [0, 1]
        assert clf.init_scores_.shape == (10,) and clf.init_agreement_ > 0.95


def test_restarts_that_differ():
    choices = np.eye(3, dtype=int)[[0, 0, 1, 2, 2]].repeat(4, axis=1)
    choices[:, ::4] = 0
    scores = [-0.5, -0.4995, -0.3, -0.9, np.nan]
    starts = Starts([End(None, *each) for each in zip(scores, choices, strict=True)], 10_000)
    assert starts.kept == 2 and starts.agreement is None
    assert starts.distinct(3) == [2, 1, 3] and starts.distinct(2) == [2, 1]


def test_restarts_after_a_choice_by_another_score():
    """A restart counts as the finished one that it is like, with the score that this one got."""
    one, other, third = np.eye(3, dtype=int).repeat(8, axis=1)
    near_one, moved = one.copy(), other.copy()
    near_one[0], moved[-1] = 0, 1
    scores = [-0.30, -0.31, -0.3105, -0.32, -0.3001]
    choices = [other, one, near_one, one, third]
    starts = Starts([End(None, *each) for each in zip(scores, choices, strict=True)], 10_000)
    index = adjusted_rand_score
    assert starts.kept == 0 and starts.agreement == index(other, third)
    # Restart 1 is kept. Of those like it, 2 is near, and 3 is not; 4 is like none.
    starts.kept = 1
    starts.finished = {0: End(None, -0.29, moved), 1: End(None, -0.25, other)}
    assert starts.agreement == pytest.approx(index(one, near_one))
    # Where 0 is near, it is compared as it is now.
    starts.finished[0] = End(None, -0.251, moved)
    expected = [index(one, near_one), index(other, moved)]
    assert starts.agreement == pytest.approx(np.mean(expected))


def test_a_sparse_gate_keeps_the_restart_with_the_lowest_bic(data, monkeypatch):
    X, y = data[0][:500], data[1][:500]
    clf = MoEClassifier(2, experts="linear", n_init=6, max_iter=15, random_state=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The best of")
        best = clone(clf).fit(X, y)
        monkeypatch.setattr(polish, "MOST_DISTINCT", 1)
        first = clone(clf).fit(X, y)
    np.testing.assert_array_equal(best.init_scores_, first.init_scores_)
    assert best.bic_ <= first.bic_ + 0.1


def test_the_report_names_the_columns_of_the_gate(data, fitted):
    assert "gate      chooses by the columns: 0, 1\n" in decomposition_report(fitted[0], *data)
    assert decomposition_report(fitted[0], *data, output_dict=True)["gate_columns"] == [0, 1]


def test_criteria(data, fitted):
    X, y = data
    clf = fitted[0]
    log_proba = clf.predict_log_proba(X)[np.arange(len(y)), y]
    assert clf.log_likelihood_ == pytest.approx(log_proba.sum(), rel=1e-5)
    k = clf.n_identifiable_parameters_
    # The gate is linear in two columns: it has dropped their hat functions.
    assert k == 2 * (2 + 1) + 3 * 7
    assert clf.aic_ == pytest.approx(2 * k - 2 * clf.log_likelihood_)
    assert clf.bic_ == pytest.approx(k * np.log(len(y)) - 2 * clf.log_likelihood_)
    joint = clf.gate_proba(X) * np.exp(clf.expert_log_likelihood(X, y))
    posterior = joint / joint.sum(axis=1, keepdims=True)
    entropy = -(posterior * np.log(np.maximum(posterior, 1e-300))).sum()
    assert clf.icl_ == pytest.approx(clf.bic_ + 2 * entropy, rel=1e-4)


def test_weights_count_rows(data):
    X, y = data
    once = MoEClassifier(2, experts="linear", n_init=1, max_iter=3, random_state=0).fit(X, y)
    twice = clone(once).fit(X, y, np.full(len(y), 2.0))
    assert twice.log_likelihood_ == pytest.approx(2 * once.log_likelihood_, rel=1e-5)
    k = once.n_identifiable_parameters_
    assert twice.bic_ == pytest.approx(k * np.log(2 * len(y)) - 2 * twice.log_likelihood_)


def test_one_expert_is_a_logistic_regression(data):
    X, y = data
    clf = MoEClassifier(1, experts=LinearExperts(l2=0), random_state=0).fit(X, y)
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=np.inf)).fit(X, y)
    np.testing.assert_allclose(clf.predict_proba(X), reference.predict_proba(X), atol=1e-3)
    assert clf.n_identifiable_parameters_ == 7


@pytest.mark.filterwarnings("ignore:The best of")
def test_a_column_of_categories_decides(town_data):
    X, y, regime = town_data
    for clf in (
        MoEClassifier(3, experts="linear", random_state=0),
        MoEClassifier(3, experts="linear", gate_features=["town"], random_state=0),
    ):
        clf.fit(X, y)
        assert clf.gate_columns_ == ["town"]
        assert adjusted_rand_score(clf.apply(X), regime) == 1


# Restarts


def make_net(seed, **params):
    params = {
        "experts": LinearExperts(),
        "gate": SoftmaxGate(),
        "regularizations": [SparseGate()],
        "input_shape": (6,),
        "n_experts": 3,
        "n_classes": 2,
        "mixing": "probability",
        "seed": seed,
        "n_threads": 1,
        "track_decomposition": False,
        "lr": 0.1,
        "max_epochs": 5,
        "batch_size": 200,
        **params,
    }
    return MoENet(**params).initialize()


def test_stacked_restarts_are_trainings_alone(data):
    X, y = data[0].astype(np.float32), data[1]
    weight = np.random.default_rng(0).uniform(0.5, 1.5, len(y)).astype(np.float32)
    seeds = [3, 1, 4]
    ends = []
    for seed in seeds:
        net = make_net(seed)
        Session(net, X, y, weight, seed=0, callbacks=[OneCycle(5)]).run(5)
        ends.append((mean_log_likelihood(net, X, y, weight) - penalty_on_weights(net), net))
    net = make_net(seeds[0])
    session = Session(net, X, y, weight, seed=0, callbacks=[OneCycle(5)], seeds=seeds)
    session.run(5)
    np.testing.assert_allclose(session.starts.scores, [score for score, _ in ends], rtol=1e-4)
    best = ends[session.starts.scores.argmax()][1]
    for name, tensor in best.module_.state_dict().items():
        torch.testing.assert_close(net.module_.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:The best of", "ignore:The gate has collapsed")
@pytest.mark.parametrize(
    "params",
    [
        {"gate": "attentive"},  # which cannot be stacked
        {"regularization": ["importance", "entropy"]},
        {"experts": "mlp"},
        {"experts": "mpo", "early_stopping": True},
    ],
)
def test_other_mixtures_have_restarts_too(params, data):
    X, y = data[0][:300], data[1][:300]
    clf = MoEClassifier(3, n_init=3, max_iter=4, random_state=0, **params).fit(X, y)
    assert clf.init_scores_.shape == (3,)
    assert clf.n_iter_ == len(clf.loss_curve_) <= 4
    twin = clone(clf).fit(X, y)
    np.testing.assert_array_equal(twin.predict_proba(X), clf.predict_proba(X))


def test_restarts_that_disagree_warn(data):
    X, y = data
    clf = MoEClassifier(8, experts="linear", n_init=2, max_iter=2, random_state=0)
    with pytest.warns(UserWarning, match="best of 2 restarts may not be the best.*Raise n_init"):
        clf.fit(X, y)


@pytest.mark.filterwarnings("ignore:The best of")
def test_a_validation_set_decides_between_flexible_mixtures(data):
    X, y = data
    clf = MoEClassifier(3, n_init=3, max_iter=5, random_state=0)
    clf.fit(X[:1000], y[:1000], X_val=X[1000:], y_val=y[1000:])
    log_proba = clf.predict_log_proba(X[1000:])[np.arange(500), y[1000:]]
    assert clf.init_scores_.max() == pytest.approx(log_proba.mean(), rel=1e-5)


# Annealing


@pytest.mark.parametrize("group", [None, np.arange(50) // 3])
@pytest.mark.parametrize("b", [1.0, 0.3])
def test_annealed_gradient_in_closed_form(b, group, generator):
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(50, 6)))
    if group is not None:
        x[:, :2] = x[3 * group, :2]
    y, weight = torch.from_numpy(rng.integers(3, size=50)), torch.from_numpy(rng.uniform(size=50))
    gate = build_gate(SoftmaxGate((4,)), (2,), 3, 3, generator)
    gate.group_columns([0, 1])
    experts = build_experts(LinearExperts(l2=0.1, l1=0.05), (5,), 3, 3, generator)
    columns = {"gate_columns": [0, 1], "expert_columns": [1, 2, 3, 4, 5]}
    mixture = MixtureOfExperts(experts, gate, **columns).double().train()
    penalty = SparseGate(0.1)
    loss, *_ = likelihood_gradient(
        mixture,
        x,
        weight,
        y,
        regularizations=[penalty],
        inverse_temperature=b,
        group=None if group is None else torch.from_numpy(group),
    )
    gradients = {name: each.grad.clone() for name, each in mixture.named_parameters()}
    mixture.zero_grad()

    hidden = torch.relu(
        x[:, :2] @ gate.network.layers[0].weight[0].mT + gate.network.layers[0].bias[0]
    )
    scores = hidden @ gate.network.layers[1].weight[0].mT + gate.network.layers[1].bias[0]
    weights, biases = experts.layers[0].weight, experts.layers[0].bias
    logits = torch.einsum("nd,ecd->nec", x[:, 1:], weights) + biases
    log_gate = scores.log_softmax(1)
    of_class = logits.log_softmax(2)[torch.arange(50), :, y]
    if group is None:
        expected = -((b * (log_gate + of_class)).logsumexp(1) / b) @ weight / 50
    else:
        expected = 0
        for rows in (np.flatnonzero(group == each) for each in range(17)):
            joint = log_gate[rows[0]] + weight[rows] @ of_class[rows]
            expected = expected - (b * joint).logsumexp(0) / b / 50
    expected = expected + 0.1 * weights.square().sum() + 0.05 * weights.abs().sum()
    norms = gate.network.layers[0].weight[0].norm(dim=0)
    expected = expected + 0.1 * norms.sum()
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    for name, each in mixture.named_parameters():
        torch.testing.assert_close(gradients[name], each.grad)


def test_annealing_with_autograd_is_that_in_closed_form(data):
    X, y = data[0][:200], data[1][:200]
    fits = [
        MoEClassifier(
            3, annealing=0.3, regularization=each, max_iter=3, batch_size=200, random_state=0
        ).fit(X, y)
        for each in (None, lambda mixture, x, y, weight: 0.0)  # a function needs autograd
    ]
    np.testing.assert_allclose(*(clf.predict_proba(X) for clf in fits), atol=1e-4)
    plain = clone(fits[0]).set_params(annealing=None).fit(X, y)
    assert np.abs(plain.predict_proba(X) - fits[0].predict_proba(X)).max() > 1e-3


@pytest.mark.parametrize(
    "params, match",
    [
        ({"annealing": 0.2, "gate": "top_k"}, "annealing=0.2 needs a gate that mixes all experts"),
        ({"annealing": 0.2, "mixing": "logit"}, "annealing=0.2 needs"),
        (
            {"annealing": 0.2, "net_params": {"criterion": torch.nn.NLLLoss}},
            "annealing=0.2 changes the likelihood",
        ),
        ({"annealing": 0.0}, "'annealing' parameter"),
        ({"annealing": 2}, "'annealing' parameter"),
        ({"n_init": 0}, "'n_init' parameter"),
        ({"n_init": True}, "n_init"),
        ({"gate_features": []}, r"gate_features=\[\] selects no column"),
        ({"gate_features": [6]}, "gate_features must be positions from 0 to 5"),
        ({"expert_features": ["age"]}, "expert_features has the name 'age', but X has no column"),
        ({"expert_features": [True]}, r"expert_features is a mask of shape \(1,\)"),
        ({"gate_features": [0], "encoder": torch.nn.Identity}, "gate_features needs gate and"),
        ({"experts": LinearExperts(l2=-1)}, "'l2' parameter"),
        ({"gate": "kmeans", "regularization": "sparse_gate"}, "'sparse_gate' needs a gate whose"),
    ],
)
def test_wrong_parameters(params, match, data):
    with pytest.raises((ValueError, TypeError), match=match):
        MoEClassifier(3, max_iter=1, **params).fit(data[0][:100], data[1][:100])


@pytest.mark.filterwarnings("ignore:The gate has collapsed")
def test_wrong_data():
    X, y = np.random.default_rng(0).normal(size=(5, 3)), [0, 1, 0, 1, 1]
    with pytest.raises(ValueError, match="at least one sample each, got n_samples=5"):
        MoEClassifier(6, experts="linear").fit(X, y)
    with pytest.raises(ValueError, match="gate_features needs a table, got images"):
        MoEClassifier(2, gate_features=[0]).fit(np.zeros((4, 5, 5)), [0, 1, 0, 1])
    clf = MoEClassifier(3, experts="linear", n_init=1, max_iter=1)
    with pytest.warns(UserWarning, match=r"Class 0 has fewer training samples \(2\) than"):
        clf.fit(X, y)


def test_separation_is_named(town_data):
    X = town_data[0].assign(age=np.sign(town_data[0]["age"]))
    y = X["age"] > 0
    clf = MoEClassifier(1, experts=LinearExperts(l2=0), regularization=None, random_state=0)
    with pytest.warns(UserWarning, match=r"column 'age' in expert 0 has grown.*l2=1e-4"):
        clf.fit(X, y)


# Columns


@pytest.mark.parametrize("experts", ["mlp", "linear"])
@pytest.mark.parametrize("encoder", ["auto", None])
def test_gate_and_experts_read_their_columns_only(experts, encoder, data):
    X, y = data
    clf = MoEClassifier(
        3,
        experts=experts,
        encoder=encoder,
        gate_features=[0, 1],
        expert_features=[False, False, True, True, True, True],
        regularization=None,
        n_init=1,
        max_iter=3,
        random_state=0,
    ).fit(X, y)
    changed = X.copy()
    changed[:, 2:] += 1
    np.testing.assert_array_equal(clf.gate_proba(changed), clf.gate_proba(X))
    assert np.abs(clf.expert_proba(changed) - clf.expert_proba(X)).max() > 0.01
    changed = X.copy()
    changed[:, :2] += 1
    np.testing.assert_array_equal(clf.expert_proba(changed), clf.expert_proba(X))
    assert np.abs(clf.gate_proba(changed) - clf.gate_proba(X)).max() > 0.01
    assert clf.gate_columns_ == [0, 1]


@pytest.mark.filterwarnings("ignore:The best of")
def test_columns_by_a_selector_in_a_pipeline_and_after_pickling(town_data):
    X, y, _ = town_data
    clf = MoEClassifier(
        3,
        experts="linear",
        gate_features=make_column_selector(dtype_include="category"),
        expert_features=["age", "size", "income"],
        n_init=2,
        max_iter=10,
        random_state=0,
    )
    pipeline = make_pipeline("passthrough", clf).fit(X, y)
    twin = pickle.loads(pickle.dumps(pipeline))
    np.testing.assert_array_equal(twin.predict_proba(X), pipeline.predict_proba(X))
    assert twin[-1].gate_columns_ == ["town"]
    assert twin[-1].log_likelihood_ == pipeline[-1].log_likelihood_
    selector = clf.gate_features
    with pytest.raises(ValueError, match="cannot change gate_features"):
        clf.set_params(warm_start=True, gate_features=["age"]).fit(X, y)
    clf.set_params(gate_features=selector).fit(X, y)
    assert clf.init_scores_ is None  # a warm start has none


def test_linear_experts_after_an_encoder(table):
    """They read all that it returns, and it reads all of the encoded table."""
    X, y = table
    clf = MoEClassifier(
        2,
        experts="linear",
        encoder=lambda shape: torch.nn.Linear(shape[0], 3),
        n_init=1,
        max_iter=2,
        random_state=0,
    ).fit(X, y)
    assert clf.encoder_.is_hat_.any() and clf.module_.expert_columns is None
    assert clf.module_.experts.weight.shape[-1] == 3


@pytest.mark.parametrize("gate", ["attentive", "cosine", "kmeans", "hard"])
def test_columns_under_any_gate(gate, data):
    X, y = data[0][:300], data[1][:300]
    clf = MoEClassifier(3, gate=gate, gate_features=[0, 1], max_iter=2, random_state=0).fit(X, y)
    assert clf.gate_columns_ == [0, 1]
    if gate == "attentive":
        student = distill(clf, X, y)
        assert student.gate_columns_ == [0, 1]
        changed = X.copy()
        changed[:, 2:] += 1
        np.testing.assert_array_equal(student.gate_proba(changed), student.gate_proba(X))
    elif gate == "cosine":
        pruned = prune_experts(clf, n_experts=2, X=X, y=y, method="similarity")
        assert pruned.predict_proba(X).shape == (300, 2)
        assert pruned.log_likelihood_ is None


def test_penalty_of_a_sparse_gate(generator):
    gate = build_gate(SoftmaxGate(), (5,), 3, 3, generator)
    gate.group_columns([0, 0, 0, 2, 4])  # three of one column, and one each of two others
    weight = gate.network.layers[0].weight[0]
    expected = 3**0.5 * weight[:, :3].norm() + weight[:, 3].norm() + weight[:, 4].norm()
    torch.testing.assert_close(SparseGate().penalty_of(gate), expected[None])


def test_a_sparse_gate_of_other_experts_drops_columns(data):
    X, y = data
    clf = MoEClassifier(3, regularization=SparseGate(0.02), max_iter=20, random_state=0).fit(X, y)
    assert len(clf.gate_columns_) < 6
    with pytest.raises(ValueError, match="'sparse_gate' needs a gate whose first layer reads"):
        MoEClassifier(3, regularization="sparse_gate").fit(np.zeros((20, 5, 5)), np.arange(20) % 2)


def test_a_gate_drops_hat_functions_that_it_does_not_need(fitted):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(1500, 4))
    inside = np.abs(X[:, 0]) < 0.7  # two thresholds in one column
    rule = np.where(inside, 3, -3) * X[:, 1] + 2 * X[:, 2]
    y = rule + rng.logistic(size=1500) > 0
    bent = MoEClassifier(2, experts="linear", random_state=0).fit(X, y)
    assert adjusted_rand_score(inside, bent.apply(X)) > 0.7
    assert bent.gate_columns_ == [0]
    is_hat = bent.encoder_.is_hat_
    assert bent.module_.gate.used_inputs.numpy()[is_hat].sum() == 7
    for clf in fitted:
        is_hat = clf.encoder_.is_hat_
        assert not clf.module_.gate.used_inputs.numpy()[is_hat].any()
        assert clf.gate_columns_ == [0, 1]


def test_a_gate_is_relaxed_once_its_columns_are_chosen(data, fitted):
    X, y = data
    assert SparseGate(0.01).relaxed().strength == pytest.approx(0.001)
    importance = Importance(0.3)
    assert importance.relaxed() is importance
    # The gradient of the likelihood is that of a tenth of the penalty.
    clf = fitted[0]
    module = deepcopy(clf.module_).double().requires_grad_(True)
    encoded = clf.module_.encode(torch.as_tensor(clf.reader_.read(X, clf))).double()
    module.table = torch.nn.Identity()
    loss = -module(encoded).log_proba[torch.arange(len(y)), torch.as_tensor(y)].mean()
    loss = loss + module.experts.penalty().sum()
    loss = loss + 1e-4 * SparseGate().penalty_of(module.gate).sum()
    loss.backward()
    gradient = module.gate.input_weight.grad[0][:, module.gate.used_inputs]
    assert gradient.abs().max() < 1e-4


# The rest of scikit-learn's ways


@pytest.mark.filterwarnings("ignore:The best of")
def test_float32_and_frames_give_the_same(data):
    X, y = data[0][:600].astype(np.float32), data[1][:600]
    params = {"experts": "linear", "n_init": 2, "max_iter": 10, "random_state": 0}
    fits = [MoEClassifier(2, **params).fit(each, y) for each in (X, X.astype(float))]
    fits.append(MoEClassifier(2, **params).fit(pd.DataFrame(X, columns=list("abcdef")), y))
    for clf in fits[1:]:
        proba = clf.predict_proba(pd.DataFrame(X, columns=list("abcdef")) if clf is fits[2] else X)
        np.testing.assert_allclose(proba, fits[0].predict_proba(X), atol=1e-4)


@pytest.mark.filterwarnings("ignore:The best of", "ignore:The gate has collapsed")
def test_streams_and_images():
    X, y, *_ = sectors(400, 0)
    clf = MoEClassifier(3, experts="linear", random_state=0)
    clf.partial_fit(X[:200], y[:200], classes=[0, 1]).partial_fit(X[200:], y[200:])
    assert clf.init_scores_ is None and clf.predict(X).shape == (400,)
    images = np.random.default_rng(0).uniform(size=(60, 4, 4))
    clf = MoEClassifier(2, experts="linear", n_init=2, max_iter=5, random_state=0)
    clf.fit(images, images[:, 0, 0] > 0.5)
    assert clf.gate_columns_ is None and clf.bic_ is not None


# Groups


def visits(n_units):
    """Sectors where each unit has five rows and one regime, which its first two columns tell."""
    X, _, regime, *_ = sectors(5 * n_units, 0)
    rng, unit = np.random.default_rng(1), np.repeat(np.arange(n_units), 5)
    X[:, :2], regime = X[::5, :2][unit], regime[::5][unit]
    rules = np.array([[3, -2, 2, 2.5], [-2, 3, 2, -3], [2, 2.5, -3, 2]])
    proba = 1 / (1 + np.exp(-np.einsum("nd,nd->n", X[:, 2:], rules[regime])))
    return X, (rng.random(len(X)) < proba).astype(int), unit, regime


def test_groups_get_one_expert():
    X, y, unit, regime = visits(240)
    order = np.random.default_rng(0).permutation(len(X))  # units need not be in one piece
    X, y, regime, names = X[order], y[order], regime[order], np.array([f"unit {i}" for i in unit])
    names = names[order]
    clf = MoEClassifier(3, experts="linear", random_state=0).fit(X, y, groups=names)
    assert clf.gate_columns_ == [0, 1]
    assert adjusted_rand_score(clf.apply(X), regime) > 0.65
    gate, of_class = clf.gate_proba(X), clf.expert_log_likelihood(X, y)
    joint = pd.DataFrame(of_class).groupby(names).sum()
    joint += np.log(pd.DataFrame(gate).groupby(names).first())
    expected = np.logaddexp.reduce(joint.to_numpy(), axis=1).sum()
    assert clf.log_likelihood_ == pytest.approx(expected, rel=1e-4)
    # The same without the closed form, which a function cannot have.
    params = {"experts": "linear", "n_init": 1, "annealing": None, "random_state": 0}
    one, other = (
        MoEClassifier(3, regularization=each, max_iter=2, batch_size=len(y), **params)
        .fit(X, y, groups=names)
        .loss_curve_
        for each in (None, lambda mixture, x, y, weight: 0.0)
    )
    np.testing.assert_allclose(one, other, rtol=1e-4)


@pytest.mark.parametrize(
    "params, groups, match",
    [
        ({}, np.arange(100) % 7, "groups needs a column for the gate that is constant"),
        ({"gate_features": [0, 3]}, np.arange(100) // 5, r"column 3 varies within the group 0"),
        ({}, [None] * 100, "groups has missing values"),
        ({}, np.arange(3), "inconsistent numbers of samples"),
        ({"early_stopping": True}, np.arange(100) // 5, "With groups, early stopping"),
    ],
)
def test_wrong_groups(params, groups, match):
    X, y, *_ = visits(20)
    with pytest.raises(ValueError, match=match):
        MoEClassifier(3, experts="linear", **params).fit(X, y, groups=groups)
