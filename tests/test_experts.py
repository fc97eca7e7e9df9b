import pytest
import torch
from torch import nn

from sklearn_moe import EXPERTS, ConvExperts, CustomExperts, MLPExperts
from sklearn_moe.experts import ExpertsModule

N, D, E, C = 7, 6, 3, 4


@pytest.mark.parametrize(
    "name, input_shape",
    [("mlp", (D,)), *((name, (2, 5, 5)) for name in EXPERTS if name != "strong")],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_samples, n_experts", [(N, E), (1, E), (N, 1)])
def test_shapes(name, input_shape, dtype, n_samples, n_experts, generator):
    module = EXPERTS[name].build(input_shape, n_experts, C, generator).to(dtype)
    logits, hidden = module(torch.randn(n_samples, *input_shape, dtype=dtype), generator)
    assert logits.shape == (n_samples, n_experts, C)
    assert hidden.shape == (n_samples, n_experts, module.hidden_size)
    assert logits.dtype == hidden.dtype == dtype


@pytest.mark.parametrize("sizes", [(), (5,), (5, 8)])
@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
def test_mlp_experts_equal_separate_networks(sizes, activation, generator):
    module = MLPExperts(sizes, activation=activation).build((D,), E, C, generator)
    x = torch.randn(N, D, generator=generator)
    logits, hidden = module(x)
    function = {"relu": torch.relu, "gelu": nn.functional.gelu, "tanh": torch.tanh}[activation]
    for e in range(E):
        out = tapped = nn.functional.linear(
            x, module.layers[0].weight[e], module.layers[0].bias[e]
        )
        for layer in module.layers[1:]:
            tapped = out  # the hidden vector is taken before its activation
            out = nn.functional.linear(function(out), layer.weight[e], layer.bias[e])
        torch.testing.assert_close(logits[:, e], out)
        torch.testing.assert_close(hidden[:, e], tapped)


@pytest.mark.parametrize("experts", [MLPExperts((32,), dropout=0.5), ConvExperts(dropout=0.5)])
def test_dropout_acts_in_training_only(experts, generator):
    module = experts.build((4, 4), E, C, generator)
    x = torch.randn(N, 4, 4, generator=generator)
    module.train()
    assert not torch.equal(module(x, generator)[0], module(x, generator)[0])
    module.eval()
    assert torch.equal(module(x, generator)[0], module(x, generator)[0])


@pytest.mark.parametrize(
    "experts, message",
    [
        (MLPExperts(activation="sine"), "The 'activation' parameter of MLPExperts"),
        (MLPExperts(dropout=1.0), "The 'dropout' parameter of MLPExperts"),
        (ConvExperts(pooling=0), "The 'pooling' parameter of ConvExperts"),
        (ConvExperts(padding=1), "The 'padding' parameter of ConvExperts"),
        (ConvExperts(kernel_size=2), "kernel_size must be odd with padding='same', got 2"),
        (
            ConvExperts(),
            r"Convolutions need images .*got samples of shape \(6,\). Pass input_shape",
        ),
        (MLPExperts((3, 0)), r"hidden_layer_sizes must hold integers of at least 1, got \(3, 0\)"),
    ],
)
def test_wrong_parameters(experts, message, generator):
    with pytest.raises(ValueError, match=message):
        experts.build((D,), E, C, generator)


class WithHidden(nn.Module):
    def __init__(self, input_shape, n_outputs):
        super().__init__()
        self.body = nn.Linear(input_shape[0], 8)
        self.head = nn.Linear(8, n_outputs)

    def forward(self, x):
        hidden = self.body(x)
        return self.head(hidden.relu()), hidden


class HiddenOf(nn.Linear):
    def __init__(self, input_shape, n_outputs, hidden_size):
        super().__init__(input_shape[0], n_outputs)
        self.hidden_size = hidden_size

    def forward(self, x):
        return super().forward(x), x[:, : self.hidden_size]


def without_hidden(input_shape, n_outputs):
    return nn.Linear(input_shape[0], n_outputs)


@pytest.mark.parametrize("factory, hidden_size", [(WithHidden, 8), (without_hidden, C)])
def test_custom_experts(factory, hidden_size, generator):
    state = generator.get_state()
    module = CustomExperts(factory).build((D,), E, C, generator)
    x = torch.randn(N, D, generator=generator)
    logits, hidden = module(x)
    assert logits.shape == (N, E, C)
    expected = module.experts[1].body(x) if factory is WithHidden else module.experts[1](x)
    torch.testing.assert_close(hidden[:, 1], expected)
    assert hidden.shape == (N, E, hidden_size) and module.hidden_size == hidden_size
    again = CustomExperts(factory).build((D,), E, C, generator.set_state(state))
    parameters = list(module.parameters())
    assert all(map(torch.equal, parameters, again.parameters()))
    assert not torch.equal(parameters[0], parameters[2])  # the experts differ


def test_custom_experts_leave_the_global_random_state_alone(generator):
    before = torch.random.get_rng_state()
    CustomExperts(without_hidden).build((D,), E, C, generator)
    assert torch.equal(before, torch.random.get_rng_state())


def test_custom_experts_say_what_is_wrong(generator):
    with pytest.raises(ValueError, match=r"logits of shape \(n_samples, 4\).*gave \[\(2, 5\)\]"):
        CustomExperts(lambda shape, n: nn.Linear(shape[0], n + 1)).build((D,), E, C, generator)
    sizes = iter([2, 3, 4])
    with pytest.raises(ValueError, match=r"one hidden size, got \[2, 3, 4\]"):
        CustomExperts(lambda shape, n: HiddenOf(shape, n, next(sizes))).build(
            (D,), E, C, generator
        )
    with pytest.raises(TypeError, match=r"must return a new torch.nn.Module .*got 'nothing'"):
        CustomExperts(lambda shape, n: "nothing").build((D,), E, C, generator)


def test_dropout_rate(generator):
    module = MLPExperts((1000,), dropout=0.9).build((D,), 1, 1, generator).train()
    first, second = module.layers
    with torch.no_grad():
        for parameter, value in zip(
            (*first.parameters(), *second.parameters()), (0, 1, 1, 0), strict=True
        ):
            parameter.fill_(value)
    # 1000 units that are 0 with probability .9 and 10 otherwise.
    out = module(torch.zeros(400, D), generator)[0].detach()
    torch.testing.assert_close(out.mean().item(), 1000.0, rtol=0.05, atol=0)
    torch.testing.assert_close(out.std().item(), 9000**0.5, rtol=0.3, atol=0)


def test_experts_say_their_costs():
    class Experts(ExpertsModule):
        pass

    with pytest.raises(NotImplementedError, match="Experts needs a property costs"):
        Experts().costs  # noqa: B018
