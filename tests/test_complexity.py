from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from sklearn_moe import (
    ComplexityBalance,
    ComplexityConvExperts,
    ComplexityExperts,
    Load,
    MoEClassifier,
)
from sklearn_moe.gates import Routing

N, D, C = 10, 4, 3


def test_sizes(generator):
    module = ComplexityExperts(8, 64).build((D,), 4, C, generator)
    assert [network.hidden_size for network in module.networks] == [8, 16, 32, 64]
    assert module.costs == tuple(size * (D + C) for size in (8, 16, 32, 64))
    alone = ComplexityExperts(8, 64).build((D,), 1, C, generator)
    assert [network.hidden_size for network in alone.networks] == [64]


@pytest.mark.parametrize("smallest, largest, n_experts", [(4, 5, 3), (8, 4, 2), (2, 3, 8)])
@pytest.mark.parametrize("experts", [ComplexityExperts, ComplexityConvExperts])
def test_too_many_experts(smallest, largest, n_experts, experts, generator):
    with pytest.raises(ValueError, match=f"n_experts={n_experts} experts cannot each be larger"):
        experts(smallest, largest).build((8, 8), n_experts, C, generator)


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


def test_kernels_and_channels_grow(generator):
    experts = ComplexityConvExperts(2, 8, n_convolutions=1, hidden_layer_sizes=(5,))
    module = experts.build((6, 4), 3, C, generator)
    weights = [network.body.layers[0].weight for network in module.networks]
    assert [tuple(each.shape) for each in weights] == [
        (1, 2, 1, 3, 3),
        (1, 4, 1, 5, 5),
        (1, 8, 1, 7, 7),
    ]
    # A multiply-add for each channel, pixel and number of the kernel; then 3 x 2 pixels are left.
    assert module.costs == tuple(
        channels * 24 * kernel**2 + channels * 6 * 5 + 5 * C
        for channels, kernel in ((2, 3), (4, 5), (8, 7))
    )


@pytest.mark.parametrize("hidden_layer_sizes, hidden_size", [((), C), ((5,), 5)])
@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3), (5, 6, 7)])
def test_each_is_a_convolutional_network(shape, hidden_layer_sizes, hidden_size, generator):
    experts = ComplexityConvExperts(1, 4, hidden_layer_sizes=hidden_layer_sizes)
    module = experts.build(shape, 3, C, generator).double()
    x = torch.randn(N, *shape, generator=generator, dtype=torch.float64)
    logits, hidden = module(x)
    assert hidden.shape == (N, 3, hidden_size)
    images = {2: lambda: x[:, None], 3: lambda: x.permute(0, 3, 1, 2) if shape[-1] < 5 else x}
    for e, network in enumerate(module.networks):
        out = images[len(shape)]()
        for layer in network.body.layers:
            out = F.conv2d(out, layer.weight[0], layer.bias[0], padding=e + 1)
            out = F.max_pool2d(out, 2).relu()
        out = out.flatten(1)
        for i, layer in enumerate(network.head.layers):
            out = F.linear(out.relu() if i else out, layer.weight[0], layer.bias[0])
        torch.testing.assert_close(logits[:, e], out, atol=1e-6, rtol=0)
        torch.testing.assert_close(module.run_some([x], [e])[0], out, atol=1e-6, rtol=0)
    costs = module.costs
    assert costs[0] < costs[1] < costs[2]
    module.keep([2, 0])
    torch.testing.assert_close(module(x)[0], logits[:, [2, 0]])
    assert list(module.costs) == [costs[2], costs[0]]


def test_an_even_kernel_is_refused(generator):
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        ComplexityConvExperts(kernel_size=4).build((8, 8), 2, C, generator)


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
