from types import SimpleNamespace

import pytest
import torch

from sklearn_moe import ComplexityBalance, ComplexityExperts, Load, MoEClassifier
from sklearn_moe.gates import Routing

N, D, C = 10, 4, 3


def test_sizes(generator):
    module = ComplexityExperts(8, 64).build((D,), 4, C, generator)
    assert [network.hidden_size for network in module.networks] == [8, 16, 32, 64]
    assert module.costs == tuple(size * (D + C) for size in (8, 16, 32, 64))
    alone = ComplexityExperts(8, 64).build((D,), 1, C, generator)
    assert [network.hidden_size for network in alone.networks] == [64]


@pytest.mark.parametrize("smallest, largest, n_experts", [(4, 5, 3), (8, 4, 2), (2, 3, 8)])
def test_too_many_experts(smallest, largest, n_experts, generator):
    with pytest.raises(ValueError, match=f"n_experts={n_experts} experts cannot each be larger"):
        ComplexityExperts(smallest, largest).build((D,), n_experts, C, generator)


def test_each_is_a_network_of_its_own(generator):
    module = ComplexityExperts(2, 8).build((D,), 3, C, generator).eval()
    x = torch.randn(N, D, generator=generator)
    logits, hidden = module(x)
    assert hidden.shape == (N, 3, 8)
    for e, network in enumerate(module.networks):
        first, last = network.layers
        tapped = x @ first.weight[0].T + first.bias[0]
        torch.testing.assert_close(logits[:, e], tapped.relu() @ last.weight[0].T + last.bias[0])
        torch.testing.assert_close(hidden[:, e, : network.hidden_size], tapped)
        assert (hidden[:, e, network.hidden_size :] == 0).all()
        torch.testing.assert_close(module.run_some([x], [e])[0], logits[:, e])
    module.keep([2, 0])
    torch.testing.assert_close(module(x)[0], logits[:, [2, 0]])
    assert list(module.costs) == [8 * (D + C), 2 * (D + C)]


def penalty(q, costs, routing=None, strength=1.0):
    mixture = SimpleNamespace(
        gate_logits=torch.tensor(q).log(),
        experts=SimpleNamespace(costs=costs),
        routing=routing,
    )
    return ComplexityBalance(strength)(mixture, None, None, torch.ones(len(q)))


def test_equal_costs_give_the_plain_variation():
    # Importances 2 and 1: variance 1/2, squared mean 9/4.
    value = penalty([[0.6, 0.4], [0.6, 0.4], [0.8, 0.2]], (5, 5))
    torch.testing.assert_close(value, torch.tensor(2 / 9 / 2))


def test_inverse_proportion_costs_nothing():
    q = [[4 / 7, 2 / 7, 1 / 7]] * 3
    torch.testing.assert_close(penalty(q, (1, 2, 4)), torch.tensor(0.0), atol=1e-6, rtol=0)
    assert penalty(q, (4, 2, 1)) > 0.1


def test_with_noise_it_has_loads(generator):
    logits = torch.randn(N, 3, generator=generator)
    routing = Routing(logits + 0.1, 0.3, 2)
    mixture = SimpleNamespace(
        gate_logits=logits, experts=SimpleNamespace(costs=(1, 1, 1)), routing=routing
    )
    weight = torch.ones(N)
    without = SimpleNamespace(**{**vars(mixture), "routing": None})
    difference = [ComplexityBalance(1.0)(each, None, None, weight) for each in (mixture, without)]
    expected = Load(0.5)(mixture, None, None, weight)
    torch.testing.assert_close(difference[0] - difference[1], expected)


def test_a_dear_expert_is_asked_less(digits):
    X, y = digits

    def cost(strength):
        clf = MoEClassifier(
            n_experts=4,
            gate="hard",
            experts=ComplexityExperts(8, 128),
            regularization=ComplexityBalance(strength),
            max_iter=12,
            random_state=0,
        ).fit(X[:1200], y[:1200])
        assert clf.score(X[1200:], y[1200:]) > 0.85
        return (clf.gate_proba(X) @ clf.expert_costs_).mean()

    assert cost(1.0) < 0.7 * cost(0.0)
