import pytest
import torch
from torch import nn

from sklearn_moe.layers import StackedLinear, check_layer_sizes, dropout, linear, mlp


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
    shape = (11, 7) if shared_input else (5, 11, 7)
    x = torch.randn(shape, generator=generator, dtype=dtype, requires_grad=True)
    inputs = [x] * 5 if shared_input else x.unbind()
    loop = torch.stack(
        [
            nn.functional.linear(each, weight, bias)
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


def test_mlp_has_no_final_activation(generator):
    network = mlp((4, 8, 8, 2), generator)
    kinds = [type(layer) for layer in network]
    assert kinds == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    x = torch.randn(3, 4, generator=generator)
    torch.testing.assert_close(mlp((4,), generator)(x), x)


def test_dropout_keeps_the_mean(generator):
    out = dropout(torch.ones(1000, 100), 0.3, generator)
    assert out.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    torch.testing.assert_close(out.mean().item(), 1.0, rtol=0.02, atol=0)


def test_layers_leave_the_global_random_state_alone(generator):
    before = torch.random.get_rng_state()
    mlp((4, 8, 2), generator)
    StackedLinear(3, 4, 5, generator)
    dropout(torch.ones(10), 0.5, generator)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("sizes", [(0,), (4, -1), (2.5,)])
def test_check_layer_sizes(sizes):
    with pytest.raises(ValueError, match="hidden_layer_sizes must hold integers of at least 1"):
        check_layer_sizes("hidden_layer_sizes", sizes)
    assert check_layer_sizes("hidden_layer_sizes", 8) == (8,)
