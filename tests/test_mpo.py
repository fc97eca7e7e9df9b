import math

import pytest
import torch

from sklearn_moe import MLPExperts, MoEClassifier, MPOExperts
from sklearn_moe.experts.mpo import MPOLinear, balanced_factors, contract, decompose

D, E, C = 12, 4, 3


def matrix(tensors):
    """Contract tensors as the equation says, entry by entry of the indices."""
    out = tensors[0].squeeze(0)  # (i, j, r)
    for tensor in tensors[1:]:
        out = torch.einsum("abr,rijs->aibjs", out, tensor)
        out = out.reshape(out.shape[0] * out.shape[1], -1, out.shape[-1])
    return out.squeeze(2)


@pytest.mark.parametrize("rows, columns", [((3, 4, 2), (2, 4, 3)), ((2, 3, 2, 2, 2), (2,) * 5)])
def test_all_ranks_rebuild_the_matrix(rows, columns, generator):
    given = torch.randn(
        math.prod(rows), math.prod(columns), generator=generator, dtype=torch.float64
    )
    tensors = decompose(given, rows, columns)
    torch.testing.assert_close(matrix(tensors), given, atol=1e-12, rtol=0)
    stacked = [tensor.unsqueeze(0) for tensor in tensors]
    torch.testing.assert_close(contract(stacked)[0], given, atol=1e-12, rtol=0)
    for k, tensor in enumerate(tensors[:-1], start=1):
        sizes = [row * column for row, column in zip(rows, columns, strict=True)]
        assert tensor.shape[3] == min(math.prod(sizes[:k]), math.prod(sizes[k:]))


def test_the_error_of_a_bond_is_what_it_discards(generator):
    rows, columns = (4, 6), (5, 3)  # two tensors: one cut
    given = torch.randn(24, 15, generator=generator, dtype=torch.float64)
    kept = matrix(decompose(given, rows, columns, bond=7))
    unfolded = given.reshape(4, 6, 5, 3).permute(0, 2, 1, 3).reshape(20, 18)
    discarded = torch.linalg.svdvals(unfolded)[7:].square().sum().sqrt()
    torch.testing.assert_close((given - kept).norm(), discarded, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "size, n_factors, factors",
    [
        (64, 3, (4, 4, 4)),
        (256, 3, (8, 8, 4)),
        (30, 3, (3, 5, 2)),
        (61, 3, (3, 7, 3)),  # 63
        (1, 3, (1, 1, 1)),
        (6, 2, (2, 3)),
        (1000, 3, (10, 10, 10)),
        (784, 5, (2, 7, 7, 4, 2)),
        (784, 4, (2, 7, 28, 2)),
        (100_000, 6, (5, 5, 5, 40, 5, 4)),
        (99_991, 6, (5, 5, 5, 40, 5, 4)),  # a prime
    ],
)
def test_balanced_factors(size, n_factors, factors):
    assert balanced_factors(size, n_factors) == factors


@pytest.mark.parametrize("n_tensors", range(2, 8))
def test_the_centre_has_most_of_a_layer(n_tensors, generator):
    """Whatever the sizes, what each expert has for itself is less than a dense matrix."""
    for n_in, n_out in [(64, 64), (784, 256), (256, 256), (14, 64), (7, 16), (61, 97)]:
        layer = MPOLinear(8, n_in, n_out, generator, n_tensors=n_tensors, bond=None, noise=0.0)
        assert len(layer.auxiliary) == n_tensors - 1
        assert sum(tensor[0].numel() for tensor in layer.auxiliary) < 0.85 * n_in * n_out
        assert sum(map(torch.numel, layer.parameters())) < 8 * (n_in + 1) * n_out
        torch.testing.assert_close(
            layer.weight().std().item(), (3 * n_in) ** -0.5, rtol=0.2, atol=0
        )


def test_the_largest_factors_meet_in_the_centre(generator):
    layer = MPOLinear(8, 784, 256, generator, n_tensors=5, bond=None, noise=0.0)
    assert layer.central.shape[1:3] == (4, 7)
    part = sum(map(torch.numel, layer.parameters())) / (8 * 785 * 256)
    assert part == pytest.approx(0.21, abs=0.01)


def test_parameters(generator):
    layer = MPOLinear(8, 64, 64, generator, n_tensors=3, bond=None, noise=0.1)
    sizes = [tensor[0].numel() for tensor in layer.auxiliary]
    assert (sizes, layer.central.numel()) == ([256, 256], 4096)
    assert sum(map(torch.numel, layer.parameters())) == 8 * 512 + 4096 + 8 * 64
    cut = MPOLinear(8, 64, 64, generator, n_tensors=3, bond=8, noise=0.1)
    assert sum(map(torch.numel, cut.parameters())) == 8 * 256 + 1024 + 8 * 64


def test_weights_are_a_dense_layer_at_first(generator):
    layer = MPOLinear(E, 10, 7, generator, n_tensors=3, bond=None, noise=0.0)
    weight = layer.weight()
    assert weight.shape == (E, 7, 10)
    torch.testing.assert_close(weight, weight[:1].expand_as(weight))
    assert weight.abs().max() <= 10**-0.5 + 1e-6  # as nn.Linear would have it
    torch.testing.assert_close(weight.std().item(), (10 * 3) ** -0.5, rtol=0.2, atol=0)


def test_experts_equal_a_loop(generator):
    module = MPOExperts((8, 6), bond=5).build((D,), E, C, generator).eval()
    x = torch.randn(5, D, generator=generator)
    logits, hidden = module(x)
    for e in range(E):
        out = x
        for layer in module.layers:
            tensors = [tensor[e] for tensor in layer.auxiliary]
            tensors.insert(1, layer.central)
            n_out, n_in = layer.size
            tapped = out @ matrix(tensors)[:n_out, :n_in].T + layer.bias[e]
            out = tapped.relu()
        expected = out @ module.head.weight[e].T + module.head.bias[e]
        torch.testing.assert_close(logits[:, e], expected)
        torch.testing.assert_close(hidden[:, e], tapped)
    own = module.run_some([x, x[:2]], [3, 1])
    torch.testing.assert_close(own[0], logits[:, 3])
    torch.testing.assert_close(own[1], logits[:2, 1])


def test_what_belongs_to_whom(generator):
    module = MPOExperts((8,)).build((D,), E, C, generator).eval()
    x = torch.randn(5, D, generator=generator)
    before, layer = module(x)[0].detach(), module.layers[0]
    with torch.no_grad():
        layer.auxiliary[0][2] += 1
    changed = (module(x)[0] != before).flatten(2).any(dim=2).any(dim=0)
    assert changed.tolist() == [False, False, True, False]
    with torch.no_grad():
        layer.central += 1
    assert (module(x)[0] != before).flatten(2).any(dim=2).any(dim=0).all()


def test_the_central_gradient_is_the_sum_over_the_experts(generator):
    module = MPOExperts((8,), mask_probability=0).build((D,), E, C, generator)
    x = torch.randn(5, D, generator=generator)

    def gradient(loss):
        return torch.autograd.grad(loss, module.layers[0].central)[0]

    summed = sum(gradient(module(x)[0][:, e].square().sum()) for e in range(E))
    torch.testing.assert_close(gradient(module(x)[0].square().sum()), summed)


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_mask(probability, generator):
    module = MPOExperts((8,), mask_probability=probability).build((D,), E, C, generator)
    x = torch.randn(5, D, generator=generator)
    has_gradient = []
    for _ in range(200):
        module.zero_grad()
        module(x, generator)[0].sum().backward()
        has_gradient.append(module.layers[0].central.grad is not None)
        assert module.layers[0].auxiliary[0].grad is not None
    torch.testing.assert_close(sum(has_gradient) / 200, 1 - probability, atol=0.15, rtol=0)


def test_a_masked_centre_never_moves(iris):
    def centre(probability, n):
        experts = MPOExperts((8,), mask_probability=probability)
        clf = MoEClassifier(n_experts=3, experts=experts, max_iter=n, random_state=0).fit(*iris)
        return clf.module_.experts.layers[0].central

    assert torch.equal(centre(1.0, 1), centre(1.0, 5))
    assert not torch.equal(centre(0.5, 1), centre(0.5, 5))


def test_keep(generator):
    module = MPOExperts((8,)).build((D,), E, C, generator).eval()
    x = torch.randn(5, D, generator=generator)
    before = module(x)[0]
    module.keep([2, 0])
    torch.testing.assert_close(module(x)[0], before[:, [2, 0]])
    assert len(module.costs) == 2


def test_it_saves_parameters(digits):
    def n_parameters(experts):
        module = experts.build((64,), 8, 10, torch.Generator().manual_seed(0))
        return sum(map(torch.numel, module.parameters()))

    dense, shared = n_parameters(MLPExperts((64, 64))), n_parameters(MPOExperts((64, 64), bond=8))
    assert dense > 5 * shared
    X, y = digits
    clf = MoEClassifier(experts=MPOExperts((64, 64), bond=8), max_iter=15, random_state=0)
    clf.fit(X[:900], y[:900])
    assert clf.score(X[900:], y[900:]) > 0.9


def test_no_hidden_layer(generator):
    with pytest.raises(ValueError, match="MPOExperts needs at least one hidden layer"):
        MPOExperts(()).build((D,), E, C, generator)
