import pytest
import torch
from torch import nn

from sklearn_moe.layers import (
    ACTIVATIONS,
    MLP,
    StackedLinear,
    StackedMLP,
    check_layer_sizes,
    dropout_mask,
    linear,
)


def test_linear_is_initialised_as_torch_does(generator):
    ours, of_torch = linear(784, 300, generator), nn.Linear(784, 300)
    bound = 784**-0.5  # of a uniform distribution, whose standard deviation is bound / sqrt(3)
    for name, parameter in ours.named_parameters():
        assert parameter.shape == getattr(of_torch, name).shape
        assert parameter.abs().max() <= bound and getattr(of_torch, name).abs().max() <= bound
        torch.testing.assert_close(parameter.std().item(), bound / 3**0.5, rtol=0.1, atol=0)


def test_stacked_linear_is_initialised_per_expert(generator):
    layer = StackedLinear(8, 784, 640, generator)
    for parameter in layer.parameters():
        stds = parameter.detach().flatten(1).std(dim=1)
        torch.testing.assert_close(stds, torch.full((8,), 784**-0.5 / 3**0.5), rtol=0.1, atol=0)
    assert layer.weight.shape == (8, 640, 784)
    assert not torch.equal(layer.weight[0], layer.weight[1])


@pytest.mark.parametrize("shared_input", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stacked_linear_equals_a_loop(generator, shared_input, dtype):
    layer = StackedLinear(5, 7, 3, generator).to(dtype)
    shape = (11, 7) if shared_input else (5, 7, 11)
    x = torch.randn(shape, generator=generator, dtype=dtype, requires_grad=True)
    inputs = [x] * 5 if shared_input else x.mT.unbind()
    loop = torch.stack(
        [
            nn.functional.linear(each, weight, bias).T
            for each, weight, bias in zip(inputs, layer.weight, layer.bias, strict=True)
        ]
    )
    stacked = layer(x)
    torch.testing.assert_close(stacked, loop)
    upstream = torch.randn(stacked.shape, generator=generator, dtype=dtype)
    variables = (x, layer.weight, layer.bias)
    for ours, expected in zip(
        torch.autograd.grad(stacked, variables, upstream),
        torch.autograd.grad(loop, variables, upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours, expected)


def test_mlp_equals_linear_layers_with_relu_between(generator):
    network = MLP((4, 8, 7, 2), generator)
    x = torch.randn(3, 4, generator=generator)
    expected = x
    for i, layer in enumerate(network.layers):
        expected = expected.relu() if i > 0 else expected
        expected = nn.functional.linear(expected, layer.weight[0], layer.bias[0])
    torch.testing.assert_close(network(x), expected)
    torch.testing.assert_close(MLP((4,), generator)(x), x)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("sizes", [(6, 3), (6, 5, 3), (6, 5, 4, 3)])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_stacked_mlp_knows_its_gradient(activation, sizes, dropout, generator):
    network = StackedMLP(4, sizes, generator, activation=activation, dropout=dropout).double()
    x = torch.randn(11, 6, generator=generator, dtype=torch.float64)
    trail = network.run(x, generator)
    upstream = torch.randn(4, 3, 11, generator=generator, dtype=torch.float64)
    parameters = list(network.parameters())
    expected = torch.autograd.grad(trail[-1].output, parameters, upstream)
    with torch.no_grad():
        network.backward(trail, upstream)
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_dropout_keeps_the_mean(generator):
    mask = dropout_mask(torch.ones(1000, 100), 0.3, generator)
    assert mask.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    torch.testing.assert_close(mask.mean().item(), 1.0, rtol=0.02, atol=0)


def test_layers_leave_the_global_random_state_alone(generator):
    before = torch.random.get_rng_state()
    network = StackedMLP(3, (4, 8, 2), generator, dropout=0.5)
    network.run(torch.ones(10, 4), generator)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("sizes", [(0,), (4, -1), (2.5,)])
def test_check_layer_sizes(sizes):
    with pytest.raises(ValueError, match="hidden_layer_sizes must hold integers of at least 1"):
        check_layer_sizes("hidden_layer_sizes", sizes)
    assert check_layer_sizes("hidden_layer_sizes", 8) == (8,)
