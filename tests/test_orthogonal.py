from types import SimpleNamespace

import pytest
import torch

from sklearn_moe import MoEClassifier, OrthogonalExperts, SoftOrthogonality
from sklearn_moe.layers import orthogonalize

N, E, H = 64, 5, 32


@pytest.fixture
def vectors(generator):
    return torch.randn(N, E, H, generator=generator)


@pytest.mark.parametrize("shape", [(N, E, H), (N, 64, 64), (1, 1, 3)])
def test_orthonormal(shape, generator):
    units = orthogonalize(torch.randn(shape, generator=generator))
    identity = torch.eye(shape[1]).expand(shape[0], -1, -1)
    torch.testing.assert_close(units @ units.mT, identity, atol=1e-5, rtol=0)


def test_as_gram_and_schmidt_say(vectors):
    expected = torch.zeros_like(vectors)
    for n in range(N):
        for e in range(E):
            rest = vectors[n, e].clone()
            for f in range(e):
                rest -= (vectors[n, e] @ expected[n, f]) * expected[n, f]
            expected[n, e] = rest / rest.norm()
    units = orthogonalize(vectors)
    torch.testing.assert_close(units, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(orthogonalize(units), units, atol=1e-6, rtol=0)  # idempotent
    torch.testing.assert_close(vectors @ units.mT @ units, vectors, atol=1e-5, rtol=0)
    scaled = vectors * torch.tensor([3.0, 0.1, 1, 20, 7]).view(1, E, 1)
    torch.testing.assert_close(orthogonalize(scaled), units, atol=1e-5, rtol=0)


def test_without_normalization_the_first_stays(vectors):
    out = orthogonalize(vectors, normalize=False)
    assert torch.equal(out[:, 0], vectors[:, 0])
    products = out @ out.mT
    off = products - torch.diag_embed(products.diagonal(dim1=1, dim2=2))
    assert off.abs().max() < 1e-4
    torch.testing.assert_close(
        out / out.norm(dim=2, keepdim=True), orthogonalize(vectors), atol=1e-5, rtol=0
    )


def test_a_copy_becomes_zero(vectors):
    vectors[:, 3] = 2 * vectors[:, 1]
    vectors[0, 2] = 0
    vectors.requires_grad_()
    units = orthogonalize(vectors)
    assert (units[:, 3] == 0).all() and (units[0, 2] == 0).all()
    torch.testing.assert_close(units[1:, [0, 1, 2, 4]].norm(dim=2), torch.ones(N - 1, 4))
    (units[:, 4].sum() + units.sum()).backward()
    assert torch.isfinite(vectors.grad).all()


def test_the_hidden_vectors_of_the_experts(generator):
    module = OrthogonalExperts((16,)).build((6,), 4, 3, generator)
    logits, hidden = module(torch.randn(10, 6, generator=generator))
    gram = hidden @ hidden.mT
    torch.testing.assert_close(gram, 16 * torch.eye(4).expand(10, 4, 4), atol=1e-4, rtol=0)
    torch.testing.assert_close(logits, module.head(hidden.relu()))
    module.keep([0, 1])
    torch.testing.assert_close(module(torch.zeros(1, 6))[0].shape, torch.Size([1, 2, 3]))


def test_what_makes_no_sense(generator, iris):
    with pytest.raises(ValueError, match="last hidden layer of at least n_experts=4 units"):
        OrthogonalExperts((3,)).build((6,), 4, 3, generator)
    with pytest.raises(ValueError, match="top_k=1 makes no sense"):
        MoEClassifier(experts="orthogonal", gate="hard").fit(*iris)


def test_penalty_by_hand():
    hidden = torch.tensor([[[1.0, 0], [2, 0], [0, 3]], [[1, 1], [0, 0], [-1, 0]]])
    hidden.requires_grad_()
    weight = torch.tensor([0.5, 1.5])
    value = SoftOrthogonality(2.0)(SimpleNamespace(hidden=hidden), None, None, weight)
    # Squared cosines of the pairs: 1 of the first sample, 1/2 of the second.
    torch.testing.assert_close(value, torch.tensor(2 * (0.5 * 1 + 1.5 * 0.5) / 2))
    value.backward()
    assert torch.isfinite(hidden.grad).all()


def test_orthogonal_experts_have_no_penalty(vectors):
    mixture = SimpleNamespace(hidden=orthogonalize(vectors))
    assert SoftOrthogonality()(mixture, None, None, torch.ones(N)) < 1e-9


def test_the_penalty_makes_experts_differ(digits):
    X, y = digits[0][:600], digits[1][:600]

    def cosine(regularization):
        clf = MoEClassifier(
            n_experts=3, regularization=regularization, max_iter=10, random_state=0
        ).fit(X, y)
        with torch.no_grad():
            x = torch.as_tensor(X[:200])
            hidden = torch.nn.functional.normalize(clf.module_(x).hidden, dim=2)
        return (hidden @ hidden.mT)[:, [0, 0, 1], [1, 2, 2]].abs().mean()

    assert cosine(SoftOrthogonality(1.0)) < 0.7 * cosine(None)
