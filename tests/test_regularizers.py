import math

import pytest
import torch

from sklearn_moe import (
    REGULARIZERS,
    Competence,
    Entropy,
    Importance,
    Load,
    MoEClassifier,
    SampleSimilarity,
    ScoreVariance,
    SoftNearestNeighbor,
    ZLoss,
)
from sklearn_moe.gates import Routing

# The others read the weights of the gate alone (test_regimes.py).
OF_BATCHES = [name for name, each in REGULARIZERS.items() if not each.of_weights]


def penalty(regularizer, mixture, x=None, weight=None):
    n_samples = len(mixture.gate_proba)
    if x is None:
        x = torch.arange(n_samples, dtype=torch.float64).unsqueeze(1)
    if weight is None:
        weight = torch.ones(n_samples, dtype=torch.float64)
    y = torch.zeros(n_samples, dtype=torch.long)
    return regularizer(mixture, x, y, weight)


@pytest.fixture
def noisy_mixture(make_mixture):
    """A mixture that every regularization takes, Load included."""

    def make(n_samples=12, n_experts=4, rows=slice(None)):
        generator = torch.Generator().manual_seed(1)
        logits = torch.randn(n_samples, n_experts, generator=generator, dtype=torch.float64)
        noisy = logits + 0.25 * torch.randn(logits.shape, generator=generator, dtype=torch.float64)
        logits, noisy = logits[rows].requires_grad_(), noisy[rows]
        return make_mixture(logits, routing=Routing(noisy, 0.25, min(2, n_experts)))

    return make


@pytest.mark.parametrize("name", OF_BATCHES)
@pytest.mark.parametrize("n_samples, n_experts", [(12, 4), (1, 4), (12, 1), (1, 1)])
def test_scalar_finite_and_with_gradient(name, n_samples, n_experts, noisy_mixture):
    mixture = noisy_mixture(n_samples, n_experts)
    value = penalty(REGULARIZERS[name], mixture)
    assert value.shape == () and torch.isfinite(value)
    (gradient,) = torch.autograd.grad(value, mixture.gate_logits)
    assert torch.isfinite(gradient).all()
    if n_samples > 1 and n_experts > 1:
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize("name", OF_BATCHES)
def test_zero_weight_equals_removal(name, noisy_mixture):
    x = torch.randn(12, 3, dtype=torch.float64)
    weight = torch.tensor([2.0, 0.5, 1.0, 0.0] * 3, dtype=torch.float64)
    rows = weight > 0
    weight = weight / weight.mean()  # as the estimator passes them
    kept = weight[rows] / weight[rows].mean()
    full = penalty(REGULARIZERS[name], noisy_mixture(), x, weight)
    removed = penalty(REGULARIZERS[name], noisy_mixture(rows=rows), x[rows], kept)
    torch.testing.assert_close(full, removed)


@pytest.mark.parametrize("name", OF_BATCHES)
def test_integer_weights_equal_repeats(name, noisy_mixture):
    x = torch.randn(12, 3, dtype=torch.float64)
    counts = torch.tensor([1, 2, 3] * 4)
    rows = torch.arange(12).repeat_interleave(counts)
    weighted = penalty(REGULARIZERS[name], noisy_mixture(), x, counts / counts.double().mean())
    repeated = penalty(REGULARIZERS[name], noisy_mixture(rows=rows), x[rows])
    torch.testing.assert_close(weighted, repeated)


@pytest.mark.parametrize("name", OF_BATCHES)
def test_all_weights_zero_in_a_batch(name, noisy_mixture):
    value = penalty(REGULARIZERS[name], noisy_mixture(), weight=torch.zeros(12).double())
    assert value == 0


@pytest.mark.parametrize("name", OF_BATCHES)
def test_order_of_experts_does_not_matter(name, make_mixture, generator):
    logits = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    noisy = logits + 0.1 * torch.randn(12, 4, generator=generator, dtype=torch.float64)
    order = torch.tensor([3, 1, 0, 2])
    one = make_mixture(logits, routing=Routing(noisy, 0.1, 2))
    other = make_mixture(logits[:, order], routing=Routing(noisy[:, order], 0.1, 2))
    torch.testing.assert_close(
        penalty(REGULARIZERS[name], one), penalty(REGULARIZERS[name], other)
    )


@pytest.mark.parametrize("name", OF_BATCHES)
def test_strength_multiplies(name, noisy_mixture):
    regularizer = type(REGULARIZERS[name])
    one, three = (penalty(regularizer(strength), noisy_mixture()) for strength in (1.0, 3.0))
    torch.testing.assert_close(three, 3 * one)


# Importance


@pytest.mark.parametrize(
    "gate_proba, expected",
    [
        ([[0.5, 0.5], [0.2, 0.8], [0.8, 0.2]], 0.0),
        ([[1, 0, 0, 0], [1, 0, 0, 0]], 4.0),  # collapse gives E
        ([[1, 0], [1, 0], [0, 1]], 2 / 9),  # importances (2, 1)
        ([[0.5, 0.4, 0.1], [0.3, 0.3, 0.4], [0.1, 0.2, 0.7], [0.8, 0.2, 0.0]], 0.058125),
    ],
)
def test_importance_by_hand(gate_proba, expected, make_mixture):
    value = penalty(Importance(1.0), make_mixture(gate_proba=gate_proba))
    torch.testing.assert_close(value.item(), expected)


# Load


def test_load_by_hand(make_mixture):
    logits = torch.tensor([[0.9, 0.06, 0.04], [0.7, 0.18, 0.12], [0.85, 0.05, 0.1]])
    noise = torch.tensor(
        [[-0.037, 0.026, -0.018], [-0.074, 0.045, -0.015], [-0.067, -0.059, 0.073]]
    )
    mixture = make_mixture(logits.double(), routing=Routing((logits + noise).double(), 0.1, 2))
    torch.testing.assert_close(penalty(Load(1.0), mixture).item(), 0.728608, rtol=1e-5, atol=0)


def test_load_needs_a_noisy_gate(make_mixture):
    with pytest.raises(ValueError, match="gate='noisy_top_k'"):
        penalty(Load(), make_mixture(torch.zeros(3, 2)))
    with pytest.raises(ValueError, match="gate='noisy_top_k'"):
        penalty(
            Load(), make_mixture(torch.zeros(3, 2), routing=Routing(torch.zeros(3, 2), 1, None))
        )


# SampleSimilarity


def reference_terms(p, distance):
    """The two terms of the paper, by the loops over experts and samples."""
    n_samples, n_experts = p.shape
    same = different = 0.0
    for e in range(n_experts):
        for f in range(n_experts):
            for n in range(n_samples):
                for m in range(n_samples):
                    term = p[n, e] * p[m, f] * distance[n, m]
                    if e == f:
                        same = same + term / n_experts
                    else:
                        different = different + term / (n_experts**2 - n_experts)
    return same, different


@pytest.mark.parametrize(
    "gate_proba, same, different, ratio",
    [
        ([[1, 0], [1, 0], [0, 1]], 1 / 3, 5 / 3, 1 / 3),
        ([[0.5, 0.5]] * 3, 1.0, 1.0, 1.0),
        ([[1, 0]] * 3, 2.0, 0.0, 2.0),
    ],
)
def test_sample_similarity_by_hand(gate_proba, same, different, ratio, make_mixture):
    x = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    mixture = make_mixture(gate_proba=gate_proba)
    distance = torch.cdist(x, x) / 3
    terms = reference_terms(mixture.gate_proba, distance)
    assert [float(term) for term in terms] == pytest.approx([same, different])
    torch.testing.assert_close(penalty(SampleSimilarity(1.0), mixture, x).item(), ratio)


def test_sample_similarity_is_zero_for_coincident_clusters(make_mixture):
    x = torch.tensor([[1.0], [1.0], [5.0], [5.0]], dtype=torch.float64)
    mixture = make_mixture(gate_proba=[[1, 0], [1, 0], [0, 1], [0, 1]])
    torch.testing.assert_close(penalty(SampleSimilarity(), mixture, x).item(), 0.0)


def test_sample_similarity_equals_the_loop_over_experts(make_mixture, generator):
    x = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    logits = torch.randn(6, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    mixture = make_mixture(logits)
    distance = torch.cdist(x, x)
    same, different = reference_terms(mixture.gate_proba, distance)
    # The paper's loss beta_s S - beta_d Df / N^2 and ours are the same function of the gate, up to
    # a constant: as rows of p sum to 1, Df is a constant minus S.
    expected = 3 * (3 * same) / distance.sum()
    value = penalty(SampleSimilarity(1.0), mixture, x)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(
        *(torch.autograd.grad(each, logits, retain_graph=True) for each in (value, expected))
    )
    torch.testing.assert_close(3 * same + 6 * different, distance.sum())


def test_sample_similarity_does_not_depend_on_scale_or_origin(make_mixture, generator):
    x = torch.randn(20, 4, generator=generator)
    mixture = make_mixture(torch.randn(20, 3, generator=generator))
    weight = torch.ones(20)
    values = [
        penalty(SampleSimilarity(), mixture, each, weight)
        for each in (x, 1000 * x, 1e25 * x, 1e-30 * x, x + 1e4)
    ]
    for value in values[1:4]:
        torch.testing.assert_close(value, values[0])
    torch.testing.assert_close(values[4], values[0], rtol=1e-3, atol=0)


def test_sample_similarity_metric_and_max_samples(make_mixture, generator):
    x = torch.randn(20, 2, 4, generator=generator, dtype=torch.float64)
    mixture = make_mixture(torch.randn(20, 3, generator=generator, dtype=torch.float64))
    rows = [0, 6, 12, 19]  # evenly spaced
    distance = torch.cdist(x.flatten(1), x[rows].flatten(1))
    together = mixture.gate_proba @ mixture.gate_proba[rows].T
    torch.testing.assert_close(
        penalty(SampleSimilarity(1.0, max_samples=4), mixture, x),
        3 * (together * distance).sum() / distance.sum(),
    )
    by_callable = SampleSimilarity(metric=torch.cdist)
    torch.testing.assert_close(
        penalty(by_callable, mixture, x), penalty(SampleSimilarity(), mixture, x)
    )
    city_block = SampleSimilarity(metric=lambda a, b: torch.cdist(a, b, p=1))
    assert penalty(city_block, mixture, x) != penalty(SampleSimilarity(), mixture, x)


# Entropy and ZLoss


def test_entropy_by_hand(make_mixture):
    uniform = make_mixture(torch.zeros(3, 4, dtype=torch.float64, requires_grad=True))
    value = penalty(Entropy(1.0), uniform)
    torch.testing.assert_close(value.item(), math.log(4))
    (gradient,) = torch.autograd.grad(value, uniform.gate_logits)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))
    sure = make_mixture(torch.tensor([[1e4, 0.0]], dtype=torch.float64))
    assert penalty(Entropy(1.0), sure) == 0


def test_a_step_on_the_entropy_makes_the_gate_surer(make_mixture, generator):
    logits = torch.randn(10, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    before = penalty(Entropy(1.0), make_mixture(logits))
    (gradient,) = torch.autograd.grad(before, logits)
    assert penalty(Entropy(1.0), make_mixture(logits - gradient)) < before


def test_z_loss_by_hand(make_mixture):
    mixture = make_mixture(torch.zeros(3, 4, dtype=torch.float64))
    torch.testing.assert_close(penalty(ZLoss(1.0), mixture).item(), math.log(4) ** 2)


# Score variance


def test_score_variance(make_mixture, generator):
    logits = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    proba = logits.softmax(dim=1)
    expected = -2.0 * proba.var(dim=0, correction=0).sum()
    torch.testing.assert_close(penalty(ScoreVariance(2.0), make_mixture(logits)), expected)
    sure = 1e3 * torch.eye(4, dtype=torch.float64).repeat(3, 1)
    assert penalty(ScoreVariance(1.0), make_mixture(sure)).item() == pytest.approx(-0.75)
    same = logits[:1].expand(12, 4)
    assert penalty(ScoreVariance(1.0), make_mixture(same)).item() == pytest.approx(0, abs=1e-12)


# Soft nearest neighbours


@pytest.mark.parametrize("max_samples, rows", [(512, range(9)), (5, [0, 2, 4, 6, 8])])
def test_soft_nearest_neighbor_equals_a_loop(max_samples, rows, make_mixture, generator):
    x = torch.randn(9, 2, 4, generator=generator, dtype=torch.float64)
    mixture = make_mixture(torch.randn(9, 3, generator=generator, dtype=torch.float64))
    weight = torch.rand(9, generator=generator, dtype=torch.float64)
    y = torch.arange(9) // 2 % 3
    total = 0.0
    for n in rows:
        alike = near = 0.0
        for m in rows:
            cosine = torch.cosine_similarity(x[n].flatten(), x[m].flatten(), dim=0)
            similarity = weight[m] * torch.exp((cosine - 1) / 0.7)
            near += similarity
            if y[n] == y[m]:
                alike += similarity * (mixture.gate_proba[n] @ mixture.gate_proba[m])
        total -= 2.0 * weight[n] * torch.log(alike / near) / len(rows)
    regularizer = SoftNearestNeighbor(2.0, temperature=0.7, max_samples=max_samples)
    torch.testing.assert_close(regularizer(mixture, x, y, weight), total)
    torch.testing.assert_close(regularizer(mixture, 1e3 * x, y, weight), total)


@pytest.mark.parametrize(
    "gate_proba, y, expected",
    [
        ([[1, 0], [1, 0], [0, 1], [0, 1]], [0, 0, 1, 1], 0.0),  # the neighbour has both
        ([[1, 0], [0, 1], [1, 0], [0, 1]], [0, 0, 1, 1], math.log(2)),  # another expert
        ([[1, 0], [1, 0], [0, 1], [0, 1]], [0, 1, 0, 1], math.log(2)),  # another class
        ([[0.5, 0.5]] * 4, [0, 0, 1, 1], math.log(2)),
        ([[1, 0]] * 4, [0, 0, 1, 1], 0.0),  # it does not balance
    ],
)
def test_soft_nearest_neighbor_by_hand(gate_proba, y, expected, make_mixture):
    x = torch.eye(2, dtype=torch.float64)[[0, 0, 1, 1]]  # each sample has one neighbour
    regularizer = SoftNearestNeighbor(1.0, temperature=1e-3)
    mixture = make_mixture(gate_proba=gate_proba)
    value = regularizer(mixture, x, torch.tensor(y), torch.ones(4).double())
    assert value.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("temperature", [1e-9, 1e-30])
def test_soft_nearest_neighbor_takes_the_nearest_alone(temperature, make_mixture, generator):
    x = torch.randn(40, 30, generator=generator)
    gate_proba = torch.rand(40, 3, generator=generator).softmax(dim=1)
    mixture = make_mixture(gate_proba=gate_proba.tolist())
    y, weight = torch.zeros(40, dtype=torch.long), torch.ones(40)
    value = SoftNearestNeighbor(1.0, temperature=temperature)(mixture, x, y, weight)
    # That is the sample itself.
    expected = -(mixture.gate_proba**2).sum(dim=1).log().mean()
    torch.testing.assert_close(value, expected.to(value.dtype))


def test_soft_nearest_neighbor_trains_the_features(make_mixture, generator):
    x = torch.randn(12, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    mixture = make_mixture(torch.randn(12, 3, generator=generator, dtype=torch.float64))
    y, weight = torch.arange(12) % 2, torch.ones(12).double()
    before = SoftNearestNeighbor(1.0)(mixture, x, y, weight)
    (gradient,) = torch.autograd.grad(before, x)
    assert SoftNearestNeighbor(1.0)(mixture, x - gradient, y, weight) < before


@pytest.mark.parametrize(
    "regularizer, message",
    [
        (SoftNearestNeighbor(temperature=0.0), "'temperature' parameter"),
        (SoftNearestNeighbor(max_samples=1), "'max_samples' parameter"),
    ],
)
def test_wrong_parameters_of_soft_nearest_neighbor(regularizer, message, iris):
    with pytest.raises(ValueError, match=message):
        MoEClassifier(regularization=regularizer).fit(*iris)


# What they have in common, at the edges


@pytest.mark.parametrize(
    "name, reads",
    [
        ("importance", "p"),
        ("sample_similarity", "p"),
        ("score_variance", "p"),
        ("soft_nearest_neighbor", "p"),
        ("entropy", "q"),
        ("z_loss", "q"),
    ],
)
def test_reads_the_masked_or_the_full_gate(name, reads, make_mixture, generator):
    logits = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    masked = logits.masked_fill(logits < logits.topk(2).values[:, -1:], -torch.inf).softmax(dim=1)
    mixture = make_mixture(logits, gate_proba=masked)
    changed = {"gate_proba": logits.softmax(dim=1)} if reads == "q" else {"gate_logits": masked}
    other = mixture._replace(**changed)
    assert penalty(REGULARIZERS[name], mixture) == penalty(REGULARIZERS[name], other)


@pytest.mark.parametrize("name", ["importance", "load"])
def test_equal_shares_have_no_variation(name, make_mixture):
    logits = torch.zeros(6, 4, dtype=torch.float64, requires_grad=True)
    mixture = make_mixture(logits, routing=Routing(torch.zeros_like(logits), 0.25, 2))
    value = penalty(REGULARIZERS[name], mixture)
    assert value == 0 and torch.autograd.grad(value, logits)[0].isfinite().all()
    logits = torch.randn(6, 1, dtype=torch.float64)
    one = make_mixture(logits, routing=Routing(logits, 1.0, 1))
    assert penalty(REGULARIZERS[name], one) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["one sample", "equal samples", "zero weights"])
@pytest.mark.parametrize("name", OF_BATCHES)
def test_gradient_is_finite_where_nothing_differs(name, case, dtype, make_mixture, generator):
    n_samples = 1 if case == "one sample" else 12
    logits = torch.randn(n_samples, 64, generator=generator, dtype=dtype, requires_grad=True)
    mixture = make_mixture(logits, routing=Routing(logits.detach() + 0.1, 0.25, 2))
    weight = torch.full((n_samples,), 0.0 if case == "zero weights" else 1.0, dtype=dtype)
    x = torch.ones(n_samples, 3, dtype=dtype)
    value = penalty(type(REGULARIZERS[name])(3.5), mixture, x, weight)
    assert torch.autograd.grad(value, logits)[0].isfinite().all()


def test_defaults():
    assert {name: each.strength for name, each in REGULARIZERS.items()} == {
        "importance": 0.2,
        "load": 0.1,
        "sample_similarity": 0.3,
        "soft_nearest_neighbor": 0.1,
        "entropy": 0.01,
        "competence": 1.0,
        "score_variance": 0.3,
        "sparse_gate": 0.001,
        "z_loss": 0.001,
        "orthogonality": 0.01,
        "complexity": 0.01,
        "zero_computation": 0.01,
    }
    assert SampleSimilarity().max_samples == 256


# Competence


def test_competence_is_the_mean_loss_of_the_experts_on_their_own(make_mixture, generator):
    mixture = make_mixture(torch.randn(6, 4, generator=generator, dtype=torch.float64))
    y, weight = torch.arange(6) % 3, torch.arange(6.0, dtype=torch.float64)
    proba = mixture.expert_logits.softmax(dim=2)
    expected = 0.0
    for n in range(6):
        for e in range(4):
            expected -= weight[n].item() * math.log(proba[n, e, y[n]].item()) / (6 * 4)
    value = Competence(2.0)(mixture, None, y, weight)
    torch.testing.assert_close(value.item(), 2 * expected)


def test_competent_experts_answer_every_sample(digits):
    X, y = digits[0][:600], digits[1][:600]
    accuracy = {}
    for name in (None, "competence"):
        clf = MoEClassifier(n_experts=4, regularization=name, max_iter=15, random_state=0)
        answers = clf.fit(X, y).expert_proba(digits[0][600:]).argmax(axis=2)
        accuracy[name] = (answers == digits[1][600:, None]).mean(axis=0).min()
    assert accuracy["competence"] > 0.9 > accuracy[None]
