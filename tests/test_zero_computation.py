from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sklearn_moe import (
    MLPExperts,
    MoEClassifier,
    SoftmaxGate,
    ZeroComputationBalance,
    ZeroComputationExperts,
)
from sklearn_moe.gates import Routing
from sklearn_moe.mixture import MixtureOfExperts

N, D, E, C = 12, 5, 8, 3


def build(generator, n_experts=E, **params):
    experts = ZeroComputationExperts((6,), **params)
    return experts.build((D,), n_experts, C, generator)


@pytest.mark.parametrize(
    "n_experts, kinds",
    [
        (1, "ordinary"),
        (2, "ordinary zero"),
        (4, "ordinary ordinary zero copy"),
        (8, "ordinary ordinary ordinary ordinary zero copy constant constant"),
        (9, "ordinary " * 5 + "zero copy constant constant"),
    ],
)
def test_automatic_numbers(n_experts, kinds, generator):
    module = build(generator, n_experts)
    assert module.kinds == kinds.split()
    assert module.is_ordinary == [kind == "ordinary" for kind in module.kinds]


def test_given_numbers(generator):
    assert build(generator, 4, n_constant=2).kinds == ["ordinary"] * 2 + ["constant"] * 2
    with pytest.raises(ValueError, match="together 4, must leave an ordinary expert of n_exp"):
        build(generator, 4, n_zero=1, n_copy=1, n_constant=2)


def test_what_the_experts_say(generator):
    module = build(generator).eval()
    x = torch.randn(N, D, generator=generator)
    logits, hidden = module(x)
    assert logits.shape == (N, E, C) and hidden.shape == (N, E, 6)
    torch.testing.assert_close(logits[:, :4], module.ordinary.logits_and_hidden(x)[0])
    assert (logits[:, 4] == 0).all()
    torch.testing.assert_close(logits[:, 5], x @ module.copy.weight[0].T)
    torch.testing.assert_close(logits[:, 6:], module.constant.weight.expand(N, 2, C))
    ordinary = D * 6 + 6 * C
    assert module.costs == (*[ordinary] * 4, 0, D * C, 0, 0)
    own = module.run_some([x] * E, list(range(E)))
    torch.testing.assert_close(torch.stack(own, 1), logits)


def test_without_cheap_experts_they_are_ordinary_ones(generator):
    state = generator.get_state()
    module = build(generator, n_zero=0, n_copy=0, n_constant=0)
    plain = MLPExperts((6,)).build((D,), E, C, generator.set_state(state))
    x = torch.randn(N, D, generator=generator)
    assert all(map(torch.equal, module(x), plain(x)))


def test_keep(generator):
    module = build(generator).eval()
    x = torch.randn(N, D, generator=generator)
    before = module(x)
    kept = [1, 3, 5, 7]
    module.keep(kept)
    for after, whole in zip(module(x), before, strict=True):
        torch.testing.assert_close(after, whole[:, kept])
    assert module.kinds == ["ordinary", "ordinary", "copy", "constant"]
    with pytest.raises(ValueError, match="one ordinary expert at least must be kept"):
        module.keep([2, 3])


def gate(rows):
    chosen = torch.tensor(rows, dtype=torch.float32)
    return (chosen / chosen.sum(dim=1, keepdim=True)).log()


def test_capacities(generator):
    # n_ordinary = 2, n_copy = 2, tau = 0.5: shares 1/6 and 1/3 of 2 * 6 places.
    module = build(generator, 4, n_zero=0, n_copy=2, n_constant=0, capacity=1.0, tau=0.5)
    log_proba = gate([[1, 0, 1, 0]] * 5 + [[1, 1, 0, 0]])
    kept = (module.limit(log_proba) > -torch.inf).int().tolist()
    # Two places of expert 0, four of expert 2; the fifth sample would lose both of its experts.
    assert kept == [[1, 0, 1, 0]] * 2 + [[0, 0, 1, 0]] * 2 + [[1, 0, 1, 0]] + [[0, 1, 0, 0]]
    torch.testing.assert_close(module.limit(log_proba).exp().sum(dim=1), torch.ones(6))
    assert torch.equal(module.eval().limit(log_proba), log_proba)


@pytest.mark.parametrize("top_k", [None, 1])
def test_capacity_needs_an_expert_to_lose(top_k, iris):
    experts = ZeroComputationExperts((8,), capacity=1.1)
    clf = MoEClassifier(4, gate=SoftmaxGate(top_k=top_k), experts=experts, random_state=0)
    with pytest.raises(ValueError, match=rf"capacity=1.1 needs a gate .* got top_k={top_k}"):
        clf.fit(*iris)


def test_zero_experts_leave_their_part_to_the_others(generator):
    module = build(generator, 4, n_zero=2, n_copy=0, n_constant=0)
    rows = [[1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 1, 1], [1, 1, 0, 0]]
    expected = gate([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0]])
    torch.testing.assert_close(module.eval().limit(gate(rows)), expected)
    # In training they vote, from which the gate learns where they will not do.
    assert torch.equal(module.train().limit(gate(rows)), gate(rows))


@pytest.mark.parametrize("gate", ["softmax", "top_k", "attentive"])
def test_zero_experts_say_nothing_beside_others(gate, iris):
    X, y = iris
    experts = ZeroComputationExperts((8,), n_zero=1)
    clf = MoEClassifier(4, gate=gate, experts=experts, max_iter=3, random_state=0).fit(X, y)
    gate_proba = clf.gate_proba(X)
    assert not gate_proba[:, 3].any()
    mixed = np.einsum("ne,nec->nc", gate_proba, clf.expert_proba(X))
    np.testing.assert_allclose(clf.predict_proba(X), mixed, atol=1e-6)
    if gate == "softmax":  # it makes no difference how much the gate would give it
        with torch.no_grad():
            clf.module_.gate.network.layers[-1].bias[0, 3] += 3
        np.testing.assert_allclose(clf.gate_proba(X), gate_proba, atol=1e-6)


def test_a_zero_expert_that_is_alone_makes_all_classes_equally_probable(iris):
    X, y = iris
    experts = ZeroComputationExperts((8,), n_zero=1)
    clf = MoEClassifier(4, gate="hard", experts=experts, max_iter=3, random_state=0).fit(X, y)
    with torch.no_grad():
        clf.module_.gate.network.layers[-1].bias[0, 3] += 50
    assert (clf.gate_proba(X)[:, 3] == 1).all()
    np.testing.assert_allclose(clf.predict_proba(X), 1 / 3, atol=1e-6)


def test_capacities_of_the_reference():
    n_ordinary, n_cheap, tau, n_samples, gamma = 8, 4, 0.75, 512, 1.1
    share = np.array([tau] * n_ordinary + [1.0] * n_cheap)
    capacity = gamma * n_samples * share / share.sum()
    np.testing.assert_allclose(capacity[[0, -1]], [42.24, 56.32])
    np.testing.assert_allclose(capacity.sum(), 563.2)


def test_without_zero_experts_and_capacity_there_is_no_limit(generator):
    soft = torch.randn(N, E, generator=generator).log_softmax(dim=1)
    assert torch.equal(build(generator, n_copy=2).limit(soft), soft)


def balance(gate_logits, top_k, tau=1.0, routing=None):
    """The balance of two ordinary and else cheap experts."""
    n_cheap = gate_logits.shape[1] - 2
    mixture = SimpleNamespace(
        gate_logits=gate_logits,
        routing=routing,
        top_k=top_k,
        experts=SimpleNamespace(is_ordinary=[True] * 2 + [False] * n_cheap),
    )
    weight = torch.ones(len(gate_logits))
    return ZeroComputationBalance(1.0, tau=tau)(mixture, None, None, weight).item()


@pytest.mark.parametrize("top_k, k", [(None, 1), (1, 1), (2, 2), (4, 4)])
def test_balance_by_hand(top_k, k):
    # Equal shares: (k / E) * mean(eta), whatever the gate does with the experts that it leaves.
    each_once = torch.eye(4) + 0.5 * torch.eye(4).roll(1, dims=1)
    assert balance(each_once, top_k) == pytest.approx(k / 4)
    assert balance(each_once, top_k, tau=0.5) == pytest.approx(k / 4 * 0.75)
    # All to one expert: eta of this expert.
    sure = torch.tensor([[50.0, 0, 0, 0]] * 3)
    assert balance(sure, top_k, tau=0.5) == pytest.approx(1.0)
    assert balance(sure.flip(1), top_k, tau=0.5) == pytest.approx(0.5)


def test_balance_counts_the_choice_after_noise():
    logits = torch.tensor([[1.0, 0, 0, 0]] * 3)
    routing = Routing(logits.roll(3, dims=1), 0.25, 2)
    (share,) = logits[:1].softmax(dim=1)
    expected = 0.5 * (share[3] + share[2] * 0)
    assert balance(logits, 1, tau=0.5, routing=routing) == pytest.approx(expected.item())


def test_balance_has_a_gradient_under_each_gate(generator):
    for top_k in (None, 1, 2):
        logits = torch.randn(N, 4, generator=generator, requires_grad=True)
        routing = Routing(logits + 0.1, 0.25, top_k)
        mixture = SimpleNamespace(gate_logits=logits, routing=routing, top_k=top_k, experts=None)
        ZeroComputationBalance(1.0)(mixture, None, None, torch.ones(N)).backward()
        assert logits.grad.abs().sum() > 0.01


@pytest.mark.parametrize("gate", ["hard", "softmax"])
def test_balance_keeps_a_gate_from_skipping_all(gate, digits):
    X, y = digits[0][:600], digits[1][:600]
    clf = MoEClassifier(
        gate=gate,
        experts=ZeroComputationExperts((32,)),
        regularization=ZeroComputationBalance(3.0, tau=0.5),
        max_iter=15,
        random_state=0,
    ).fit(X, y)
    share = np.bincount(clf.apply(X), minlength=8) / len(X)
    assert 0.2 < share[:4].sum() < 0.8 and share.max() < 0.4


def test_balance_counts_before_a_capacity_drops():
    """However little the experts may take, the loss knows how much the gate gives them."""
    values = []
    for capacity in (None, 0.5):
        generator = torch.Generator().manual_seed(0)
        experts = build(generator, 4, n_zero=0, n_copy=2, capacity=capacity)
        gate = SoftmaxGate(top_k=2).build((D,), 4, experts.hidden_size, generator)
        mixture = MixtureOfExperts(experts, gate)(torch.randn(N, D, generator=generator))
        values.append(ZeroComputationBalance(1.0)(mixture, None, None, torch.ones(N)).item())
        assert ((mixture.gate_proba > 0).sum(dim=1) == 1).any() == (capacity is not None)
    assert values[0] == values[1]


def test_smaller_tau_skips_more(digits):
    X, y = digits

    def n_ordinary(tau):
        clf = MoEClassifier(
            gate=SoftmaxGate(top_k=2),
            experts=ZeroComputationExperts((32,)),
            regularization=ZeroComputationBalance(0.3, tau=tau),
            max_iter=15,
            random_state=0,
        ).fit(X[:1200], y[:1200])
        assert clf.score(X[1200:], y[1200:]) > 0.85
        asked = clf.gate_proba(X[1200:]) > 0
        return asked[:, clf.module_.experts.is_ordinary].sum(axis=1).mean()

    assert n_ordinary(0.1) < n_ordinary(1.0)


def test_no_cluster_for_experts_that_say_the_same_of_all_samples(iris):
    clf = MoEClassifier(4, gate="kmeans", experts="zero_computation")
    with pytest.raises(ValueError, match="cannot answer for a cluster of their own"):
        clf.fit(*iris)
    clf.set_params(experts=ZeroComputationExperts((8,), n_copy=2), max_iter=3).fit(*iris)
