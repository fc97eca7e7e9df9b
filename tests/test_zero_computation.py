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
    assert module.is_ordinary.tolist() == [kind == "ordinary" for kind in module.kinds]


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
    # n_ordinary = 2, n_zero = 2, tau = 0.5: shares 1/6 and 1/3 of 2 * 6 places.
    module = build(generator, 4, n_zero=2, n_copy=0, n_constant=0, capacity=1.0, tau=0.5)
    log_proba = gate([[1, 0, 1, 0]] * 5 + [[1, 1, 0, 0]])
    kept = (module.limit(log_proba) > -torch.inf).int().tolist()
    # Two places of expert 0, four of expert 2; the fifth sample would lose both of its experts.
    assert kept == [[1, 0, 1, 0]] * 2 + [[0, 0, 1, 0]] * 2 + [[1, 0, 1, 0]] + [[0, 1, 0, 0]]
    torch.testing.assert_close(module.limit(log_proba).exp().sum(dim=1), torch.ones(6))


def test_capacities_of_the_reference():
    n_ordinary, n_cheap, tau, n_samples, gamma = 8, 4, 0.75, 512, 1.1
    share = np.array([tau] * n_ordinary + [1.0] * n_cheap)
    capacity = gamma * n_samples * share / share.sum()
    np.testing.assert_allclose(capacity[[0, -1]], [42.24, 56.32])
    np.testing.assert_allclose(capacity.sum(), 563.2)


def test_soft_gates_and_no_capacity_have_no_limit(generator):
    soft = torch.randn(N, E, generator=generator).log_softmax(dim=1)
    assert torch.equal(build(generator).limit(soft), soft)
    torch.testing.assert_close(build(generator, capacity=0.1).limit(soft), soft)


def balance(gate_logits, gate_proba, is_ordinary, tau):
    mixture = SimpleNamespace(
        gate_logits=gate_logits,
        gate_proba=gate_proba,
        experts=SimpleNamespace(is_ordinary=torch.tensor(is_ordinary)),
    )
    weight = torch.ones(len(gate_logits))
    return ZeroComputationBalance(1.0, tau=tau)(mixture, None, None, weight)


def test_balance_by_hand():
    # Uniform routing to 2 of 5 experts: (k / E) * mean(eta).
    proba = gate(
        [[1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [1, 0, 0, 0, 1], [0, 1, 1, 0, 0], [0, 0, 0, 1, 1]]
    )
    uniform = torch.zeros(5, 5)
    is_ordinary = [True, True, True, False, False]
    torch.testing.assert_close(balance(uniform, proba.exp(), is_ordinary, 1.0), torch.tensor(0.4))
    torch.testing.assert_close(
        balance(uniform, proba.exp(), is_ordinary, 0.5), torch.tensor(0.4 * 0.8)
    )
    # All to one expert: eta of this expert.
    sure = torch.tensor([[50.0, 0, 0, 0, 0]] * 3)
    torch.testing.assert_close(
        balance(sure, sure.softmax(1).round(), is_ordinary, 0.5), torch.tensor(1.0)
    )
    torch.testing.assert_close(
        balance(sure.flip(1), sure.softmax(1).round().flip(1), is_ordinary, 0.5), torch.tensor(0.5)
    )


def test_only_the_probabilities_have_a_gradient(generator):
    logits = torch.randn(N, 4, generator=generator, requires_grad=True)
    proba = torch.randn(N, 4, generator=generator, requires_grad=True)
    balance(logits, proba, [True, True, False, False], 0.5).backward()
    assert proba.grad is None and logits.grad.abs().sum() > 0


def test_smaller_tau_skips_more(digits):
    X, y = digits

    def n_ordinary(tau):
        clf = MoEClassifier(
            gate=SoftmaxGate(top_k=2),
            experts=ZeroComputationExperts((32,)),
            regularization=ZeroComputationBalance(0.3, tau=tau),
            random_state=0,
        ).fit(X[:1200], y[:1200])
        assert clf.score(X[1200:], y[1200:]) > 0.85
        asked = clf.gate_proba(X[1200:]) > 0
        return asked[:, clf.module_.experts.is_ordinary.numpy()].sum(axis=1).mean()

    assert n_ordinary(0.1) < n_ordinary(1.0)


def test_no_cluster_for_experts_that_say_the_same_of_all_samples(iris):
    clf = MoEClassifier(4, gate="kmeans", experts="zero_computation")
    with pytest.raises(ValueError, match="cannot answer for a cluster of their own"):
        clf.fit(*iris)
    clf.set_params(experts=ZeroComputationExperts((8,), n_copy=2), max_iter=3).fit(*iris)
