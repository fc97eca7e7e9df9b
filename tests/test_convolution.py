import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sklearn_moe import ConvExperts, MoEClassifier, convolution
from sklearn_moe.convolution import ConvStack

N, E = 6, 3
LAYER = {
    "kernel_size": 3,
    "padding": "same",
    "pooling": 2,
    "normalization": None,
    "activation": "relu",
}


def build(generator, input_shape=(9, 8), channels=(2, 4), n_networks=E, **layer):
    layer = LAYER | layer
    return ConvStack(n_networks, input_shape, generator, channels=channels, **layer).double()


def separate(stack, network, x):
    """Run one network layer by layer, in the usual order."""
    for layer in stack.layers:
        x = F.conv2d(x, layer.weight[network], layer.bias[network], padding=layer.padding)
        if layer.normalization is not None:
            norm = (
                nn.BatchNorm2d(x.shape[1])
                if layer.normalization == "batch"
                else nn.GroupNorm(1, x.shape[1])
            )
            x = norm.double()(x)
        activation = {"relu": torch.relu, "gelu": F.gelu, "tanh": torch.tanh}[layer.activation]
        if layer.activation == "gelu":  # the one that is not monotone comes last
            x = activation(F.max_pool2d(x, layer.pooling))
        else:
            x = F.max_pool2d(activation(x), layer.pooling)
    return x.flatten(1)


@pytest.mark.parametrize("input_shape", [(9, 8), (8, 12), (3, 8, 9)])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"padding": "valid", "channels": (2,)},
        {"pooling": 1},
        {"pooling": 3, "kernel_size": 5, "channels": (3,)},
        {"normalization": "batch"},
        {"normalization": "layer"},
        {"activation": "gelu"},
        {"activation": "tanh"},
    ],
    ids=str,
)
@pytest.mark.parametrize("one_by_one", [False, True])
def test_stacked_equals_separate_networks(input_shape, change, one_by_one, generator, monkeypatch):
    if one_by_one:
        monkeypatch.setattr(convolution, "LAYER_FOR_ONE_BY_ONE", 0)
    stack = build(generator, input_shape, **change)
    x = torch.randn(N, *input_shape, generator=generator, dtype=torch.float64)
    images = x if x.dim() == 4 else x.unsqueeze(1)
    stacked = stack(x)
    loop = torch.stack([separate(stack, network, images).mT for network in range(E)])
    torch.testing.assert_close(stacked, loop)
    assert stacked.shape == (E, stack.n_features, N)
    upstream = torch.randn(stacked.shape, generator=generator, dtype=torch.float64)
    parameters = [parameter for name, parameter in stack.named_parameters() if "norm" not in name]
    torch.testing.assert_close(
        torch.autograd.grad(stacked, parameters, upstream),
        torch.autograd.grad(loop, parameters, upstream),
    )
    for network in range(E):
        torch.testing.assert_close(stack.run_one(x, network), loop[network].mT)


def test_equal_places_share_the_gradient_of_the_pooling(generator):
    stack = build(generator, channels=(2,))
    x = torch.ones(N, 9, 8, dtype=torch.float64)  # all places of a window are alike
    (pooled,) = torch.autograd.grad(stack(x).sum(), [stack.layers[0].bias])
    assert pooled.sum() <= N * E * stack.n_features
    torch.testing.assert_close(pooled, pooled.round())


def test_batch_normalization_uses_its_running_statistics_in_prediction(generator):
    stack = build(generator, normalization="batch", pooling=1, channels=(2,))
    x = torch.randn(N, 9, 8, generator=generator, dtype=torch.float64) + 3
    for _ in range(200):
        stack(x)
    trained = stack(x)
    stack.eval()
    # The running variance is the unbiased one.
    torch.testing.assert_close(stack(x), trained, rtol=0.02, atol=0.02)
    torch.testing.assert_close(stack(x)[..., :1], stack(x[:1]))


def test_both_ways_of_pooling_agree_under_batch_normalization(generator, monkeypatch):
    x = torch.randn(N, 8, 8, generator=generator, dtype=torch.float64)
    results = []
    for limit in (0, 32):
        monkeypatch.setattr(convolution, "CHANNELS_AT_ONCE", limit)
        stack = build(torch.Generator().manual_seed(0), (8, 8), normalization="batch")
        out = stack(x)
        out.square().sum().backward()
        gradients = [parameter.grad for parameter in stack.parameters()]
        results.append([out.detach(), *gradients, *stack.buffers()])
    torch.testing.assert_close(*results)


def test_large_pooling_is_left_to_torch(generator, monkeypatch):
    # Our own way takes as many convolutions as a window has pixels: 784 for whole images.
    monkeypatch.setattr(convolution.StackedConv, "_convolve_places", None)
    stack = build(generator, (28, 28), channels=(2,), pooling=28)
    x = torch.randn(N, 28, 28, generator=generator, dtype=torch.float64)
    expected = torch.stack([separate(stack, e, x.unsqueeze(1)).mT for e in range(E)])
    torch.testing.assert_close(stack(x), expected)


def test_weights_start_as_those_of_a_convolution(generator):
    layer = build(generator, (64, 20, 20), channels=(64,)).layers[0]
    bound = (64 * 9) ** -0.5
    for network in range(E):
        for values in (layer.weight[network], layer.bias[network]):
            assert 0.9 * bound < values.abs().max() <= bound


def test_channels_may_come_first_or_last(generator):
    x = torch.randn(N, 3, 8, 9, generator=generator, dtype=torch.float64)
    first = build(torch.Generator().manual_seed(0), (3, 8, 9))
    last = build(torch.Generator().manual_seed(0), (8, 9, 3))
    torch.testing.assert_close(first(x), last(x.permute(0, 2, 3, 1)))


def test_work_is_counted(generator):
    stack = build(generator, (28, 28), channels=(4, 8))
    assert stack.multiply_adds == 28 * 28 * 9 * 4 + 14 * 14 * 9 * 4 * 8
    assert stack.widest == 28 * 28 * 4
    assert stack.n_features == 8 * 7 * 7


def test_images_that_are_too_small(generator):
    with pytest.raises(ValueError, match=r"shape \(3, 3\) are too small for 2 convolutions"):
        build(generator, (3, 3))


@pytest.mark.parametrize("n_networks", [1, E])
def test_without_convolutions_all_networks_read_the_image(n_networks, generator):
    stack = build(generator, (4, 3), channels=(), n_networks=n_networks)
    x = torch.randn(7, 4, 3, generator=generator, dtype=torch.float64)
    features = stack(x)
    assert features.shape == (n_networks, stack.n_features, 7) == (n_networks, 12, 7)
    for network in range(n_networks):
        torch.testing.assert_close(features[network].mT, x.flatten(1))
        torch.testing.assert_close(stack.run_one(x, network), x.flatten(1))


@pytest.mark.parametrize("input_shape", [(4, 4), (4, 4, 3)])
@pytest.mark.parametrize("gate", ["softmax", "hard", "attentive"])
def test_experts_without_convolutions(gate, input_shape, generator):
    X = torch.randn(40, *input_shape, generator=generator).numpy()
    y = (X.reshape(40, -1).mean(axis=1) > 0).astype(int)
    clf = MoEClassifier(
        3,
        gate=gate,
        experts=ConvExperts(channels=(), hidden_layer_sizes=(5,)),
        max_iter=3,
        random_state=0,
    ).fit(X, y)
    mixed = clf.gate_proba(X)[..., None] * clf.expert_proba(X)
    np.testing.assert_allclose(clf.predict_proba(X), mixed.sum(axis=1), atol=1e-6)
