import math

import numpy as np
import pytest
import torch

from sklearn_moe import (
    GATES,
    AttentiveGate,
    BalancedGate,
    BasisGate,
    CosineGate,
    GumbelGate,
    SharedExpertGate,
    SoftmaxGate,
    SparsemaxGate,
    TableEncoder,
    TreeGate,
)
from sklearn_moe.gates import mask_all_but_top_k
from sklearn_moe.gates.sparsemax import sparsemax

N, D, E, H = 9, 6, 4, 5


@pytest.fixture
def batch(generator):
    x = torch.randn(N, D, generator=generator)
    hidden = torch.randn(N, E, H, generator=generator)
    return x, hidden


def build(gate, generator, n_experts=E):
    return gate.build((D,), n_experts, H, generator)


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("training", [True, False])
def test_probabilities(name, training, batch, generator):
    module = build(GATES[name], generator).train(training)
    out = module(*batch, generator)
    proba = out.log_proba.exp()
    assert out.logits.shape == out.log_proba.shape == (N, E)
    torch.testing.assert_close(proba.sum(dim=1), torch.ones(N))
    top_k = GATES[name].top_k
    if top_k is not None and not (training and top_k == 1):
        assert ((proba > 0).sum(dim=1) == top_k).all()
    elif name != "sparsemax":
        assert (proba > 0).all()


@pytest.mark.parametrize("name", sorted(set(GATES) - {"kmeans"}))  # which has none
def test_gradient_reaches_the_gate(name, batch, generator):
    module = build(GATES[name], generator).train()
    weights = torch.randn(N, E, generator=generator)
    (module(*batch, generator).log_proba.exp() * weights).sum().backward()
    for parameter in module.parameters():
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("name", [name for name in GATES if (GATES[name].top_k or 1) == 1])
def test_one_expert_gets_everything(name, generator):
    x, hidden = torch.randn(1, D), torch.randn(1, 1, H)
    out = build(GATES[name], generator, n_experts=1)(x, hidden, generator)
    assert out.log_proba.exp().item() == 1


def test_top_k_ties_go_to_the_lower_index():
    masked = mask_all_but_top_k(torch.tensor([[1.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]]), 2)
    kept = masked.isfinite()
    assert kept.tolist() == [[False, True, True, False], [True, True, False, False]]


def test_temperature_divides_the_logits(batch, generator):
    state = generator.get_state()
    warm = build(SoftmaxGate(temperature=4.0), generator)(*batch)
    plain = build(SoftmaxGate(), generator.set_state(state))(*batch)
    torch.testing.assert_close(warm.logits * 4, plain.logits)


def test_hard_gate_trains_on_the_full_softmax(batch, generator):
    module = build(GATES["hard"], generator)
    in_training = module.train()(*batch)
    torch.testing.assert_close(in_training.log_proba, in_training.logits.log_softmax(dim=1))
    in_prediction = module.eval()(*batch)
    assert torch.equal(in_prediction.log_proba.argmax(dim=1), in_training.logits.argmax(dim=1))
    assert in_prediction.log_proba.exp().max(dim=1).values.eq(1).all()


def test_noise_is_drawn_in_training_only(batch, generator):
    module = build(SoftmaxGate(noise=2.0, top_k=2), generator)
    out = module.train()(*batch, generator)
    noise = torch.stack([module(*batch, generator).routing.noisy_logits for _ in range(2000)])
    assert out.routing.noise_scale == 2.0 / E
    torch.testing.assert_close((noise - out.logits).std().item(), 0.5, rtol=0.02, atol=0)
    assert module.eval()(*batch, generator).routing is None
    assert torch.equal(module(*batch).log_proba, module(*batch).log_proba)


def test_attentive_gate_equals_the_definition(batch, generator):
    x, hidden = batch
    module = build(AttentiveGate((8, 7), key_size=3, temperature=2.0), generator)
    trunk, query, key = module.trunk, module.query, module.key
    expected = torch.empty(N, E)
    for n in range(N):
        for e in range(E):
            dot = query(trunk(x[n : n + 1])[0]) @ key(hidden[n, e])
            expected[n, e] = dot / math.sqrt(3) / 2.0
    torch.testing.assert_close(module(x, hidden).logits, expected)
    assert query.bias is None and key.bias is None


def test_attentive_gate_is_uniform_where_it_sees_no_difference(batch, generator):
    x, hidden = batch
    module = build(AttentiveGate(), generator)
    alike = hidden[:, :1].expand(N, E, H)
    assert module(x, alike).logits.std(dim=1).max() == 0
    without_query = build(AttentiveGate(()), generator)(torch.zeros_like(x), hidden)
    assert without_query.log_proba.exp().eq(1 / E).all()


def test_attentive_gate_sends_gradient_into_the_experts(batch, generator):
    x, hidden = batch
    hidden.requires_grad_()
    build(AttentiveGate(), generator)(x, hidden).log_proba[:, 0].sum().backward()
    assert hidden.grad.abs().sum() > 0


def test_permuting_experts_permutes_the_attentive_gate(batch, generator):
    x, hidden = batch
    module = build(AttentiveGate(), generator)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(
        module(x, hidden[:, order]).logits, module(x, hidden).logits[:, order]
    )


@pytest.mark.parametrize(
    "gate, message",
    [
        (SoftmaxGate(top_k=5), r"top_k=5 must not be larger than n_experts=4"),
        *[
            (gate(encoder=encoder), r"Set MoEClassifier\(encoder='table'\)")
            for gate in (SoftmaxGate, AttentiveGate)
            for encoder in ("table", TableEncoder(n_knots=4))
        ],
        (SoftmaxGate(top_k=0), r"The 'top_k' parameter of SoftmaxGate must be an int"),
        (SoftmaxGate(temperature=0), r"The 'temperature' parameter of SoftmaxGate"),
        (SoftmaxGate(noise=-1), r"The 'noise' parameter of SoftmaxGate"),
        (AttentiveGate(key_size=0), r"The 'key_size' parameter of AttentiveGate"),
        (AttentiveGate((0,)), r"hidden_layer_sizes must hold integers of at least 1, got \(0,\)"),
    ],
)
def test_wrong_parameters(gate, message, generator):
    with pytest.raises(ValueError, match=message):
        build(gate, generator)


@pytest.mark.parametrize("top_k", [None, 1, 2])
def test_the_noisy_logits_decide(top_k, generator):
    module = build(SoftmaxGate(top_k=top_k, noise=50.0), generator).train()
    out = module(torch.randn(200, D, generator=generator), None, generator)
    noisy = out.routing.noisy_logits
    assert (out.logits.argmax(dim=1) != noisy.argmax(dim=1)).any()
    if top_k == 2:
        noisy = noisy.masked_fill(noisy < noisy.topk(2).values[:, -1:], -torch.inf)
    torch.testing.assert_close(out.log_proba, noisy.log_softmax(dim=1))


def test_noisy_hard_gate_predicts_with_one_expert(batch, generator):
    module = build(SoftmaxGate(top_k=1, noise=1.0), generator).eval()
    assert module(*batch).log_proba.exp().eq(1).sum(dim=1).eq(1).all()


def test_defaults():
    assert GATES["noisy_top_k"].get_params() == SoftmaxGate(top_k=2, noise=1.0).get_params()
    assert (GATES["top_k"].top_k, GATES["hard"].top_k, AttentiveGate().key_size) == (2, 1, 32)


def test_a_cosine_gate_reads_directions_alone(batch, generator):
    module = build(CosineGate(size=7, temperature=0.5), generator)
    x, _ = batch
    logits = module(x, None).logits
    own = x @ module.projection.weight.mT
    expected = torch.nn.functional.cosine_similarity(
        own.unsqueeze(1), module.directions.weight.unsqueeze(0), dim=2
    )
    torch.testing.assert_close(logits, expected / 0.5)
    torch.testing.assert_close(module(1e3 * x, None).logits, logits)
    with torch.no_grad():
        module.directions.weight *= torch.rand(E, 1, generator=generator) + 0.1
    torch.testing.assert_close(module(x, None).logits, logits)
    with torch.no_grad():
        module.log_change.fill_(math.log(2))  # twice the temperature
    torch.testing.assert_close(module(x, None).logits, logits / 2)
    module.keep([3, 1])
    torch.testing.assert_close(module(x, None).logits, logits[:, [3, 1]] / 2)


# The tree


def leaves(decide, first, last, decisions):
    """The probability of each leaf: the left half of the leaves gets what does not go right."""
    if last - first == 1:
        return [1.0]
    right, middle = decide(next(decisions)), (first + last + 1) // 2
    left_part = leaves(decide, first, middle, decisions)
    right_part = leaves(decide, middle, last, decisions)
    return [(1 - right) * p for p in left_part] + [right * p for p in right_part]


@pytest.mark.parametrize("n_experts", [1, 2, 3, 5, 8])
def test_tree(n_experts, batch, generator):
    module = build(TreeGate(temperature=0.5), generator, n_experts)
    x = batch[0]
    proba = module(x, None).log_proba.exp()
    weight, bias = module.decisions.weight, module.decisions.bias
    for row, found in zip(x, proba, strict=True):

        def decide(i, row=row):
            return torch.sigmoid(2 * (weight[i] @ row + bias[i])).item()

        expected = leaves(decide, 0, n_experts, iter(range(n_experts)))
        torch.testing.assert_close(found.tolist(), expected, atol=1e-6, rtol=1e-5)
    assert (module.ways != 0).sum(dim=1).max() == math.ceil(math.log2(n_experts))


def test_pruned_tree_keeps_proportions(batch, generator):
    module = build(TreeGate(), generator, 5)
    before = module(batch[0], None).log_proba.exp()[:, [3, 0, 1]]
    module.keep([3, 0, 1])
    after = module(batch[0], None).log_proba.exp()
    torch.testing.assert_close(after, before / before.sum(dim=1, keepdim=True))


# Draws


def test_gumbel_draws_from_the_softmax(generator):
    module = build(GumbelGate(temperature=0.01), generator)
    x = torch.randn(1, D, generator=generator)
    expected = module.eval()(x, None).log_proba.exp()
    torch.testing.assert_close(expected, module.score(x, None).softmax(dim=1))
    drawn = module.train()(x.expand(20_000, D), None, generator).log_proba.exp()
    assert drawn.max(dim=1).values.mean() > 0.98
    torch.testing.assert_close(drawn.mean(dim=0), expected[0], atol=0.02, rtol=0)
    sure = drawn.max(dim=1).values.mean()
    module.of_draw = 5.0
    assert (
        module(x.expand(500, D), None, generator).log_proba.exp().max(dim=1).values.mean() < sure
    )


# A sparse softmax


@pytest.mark.parametrize("scale", [0.1, 1.0, 100.0])
def test_sparsemax_equals_a_search_for_the_threshold(scale, generator):
    scores = scale * torch.randn(20, 5, generator=generator, dtype=torch.float64)
    proba = sparsemax(scores)
    for n in range(20):
        low, high = scores[n].min().item() - 1, scores[n].max().item()
        for _ in range(100):  # the sum falls while the threshold rises
            threshold = (low + high) / 2
            total = sum(max(score - threshold, 0.0) for score in scores[n].tolist())
            low, high = (threshold, high) if total > 1 else (low, threshold)
        expected = [max(score - low, 0.0) for score in scores[n].tolist()]
        torch.testing.assert_close(proba[n].tolist(), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(sparsemax(scores + 3), proba)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(sparsemax(scores[:, order]), proba[:, order])


@pytest.mark.parametrize(
    "scores, expected",
    [
        ([0.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]),
        ([0.5, 0.0, 0.0, -9.0], [2 / 3, 1 / 6, 1 / 6, 0.0]),
        ([1e6 + 0.25, 1e6, 3.0, 2.0], [0.625, 0.375, 0.0, 0.0]),
        ([0.5, -torch.inf, 0.0, -torch.inf], [0.75, 0.0, 0.25, 0.0]),
    ],
)
def test_sparsemax_by_hand(scores, expected):
    torch.testing.assert_close(sparsemax(torch.tensor([scores])), torch.tensor([expected]))


def test_gradient_of_sparsemax(generator):
    scores = torch.randn(20, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(sparsemax, scores)


@pytest.mark.parametrize("n_active", [1, 1.5, 3, 99])
def test_sparsemax_gate_asks_as_many_as_wanted(n_active, generator):
    module = build(SparsemaxGate(n_active=n_active), generator).train()
    x = torch.randn(500, D, generator=generator)
    for _ in range(800):
        in_training = module(x, None).log_proba
    module.eval()
    temperature, in_prediction = module.temperature, module(x, None).log_proba
    answers = in_training.isfinite().sum(dim=1)
    assert answers.float().mean().item() == pytest.approx(min(n_active, E), abs=0.05)
    if 1 < n_active < E:
        assert answers.min() < answers.max()
    torch.testing.assert_close(in_prediction, in_training, atol=0.01, rtol=0.05)
    assert torch.equal(module.temperature, temperature)  # prediction leaves it
    assert module.formula() is None


@pytest.mark.parametrize("top_k", [1, 2])
def test_sparsemax_gate_has_a_limit(top_k, generator):
    module = build(SparsemaxGate(n_active=4, top_k=top_k), generator).eval()
    x = torch.randn(200, D, generator=generator)
    logits, log_proba, _ = module(x, None)
    assert log_proba.isfinite().sum(dim=1).max() == top_k == module.n_answers
    expected = sparsemax(mask_all_but_top_k(logits, top_k))
    torch.testing.assert_close(log_proba.exp(), expected)
    in_training = module.train()(x, None).log_proba.isfinite().sum(dim=1)
    assert in_training.max() == (E if top_k == 1 else top_k)


# Balance without a loss


def test_balanced_gate(batch, generator):
    """The bias decides who answers, and the logits alone how much each of them counts."""
    module = build(BalancedGate(rate=0.5), generator).train()
    x = batch[0]
    logits, log_proba, _ = module(x, None)
    torch.testing.assert_close(log_proba, mask_all_but_top_k(logits, 2).log_softmax(dim=1))
    counts = log_proba.isfinite().sum(dim=0)
    expected = 0.5 * torch.sign(counts.float().mean() - counts)
    torch.testing.assert_close(module.bias, expected)
    module.eval()
    assert module.formula() is None
    module.bias = torch.tensor([100.0, 0.0, 50.0, 0.0])
    log_proba = module(x, None).log_proba
    assert log_proba.isfinite().all(dim=0).tolist() == [True, False, True, False]
    torch.testing.assert_close(log_proba[:, [0, 2]], logits[:, [0, 2]].log_softmax(dim=1))
    assert module.bias[0] == 100  # prediction leaves it
    module.keep([2, 1])
    assert module.bias.tolist() == [50, 0]


def test_bias_balances(generator):
    module = build(BalancedGate(rate=0.02), generator).train()
    module.network.layers[-1].bias.data[0, :2] = 3.0
    x = torch.randn(200, D, generator=generator)
    first = module(x, None).log_proba.isfinite().float().mean(dim=0)
    for _ in range(400):
        last = module(x, None).log_proba.isfinite().float().mean(dim=0)
    assert first.max() - first.min() > 0.8 and last.max() - last.min() < 0.1


def test_balanced_gate_needs_two(generator):
    with pytest.raises(ValueError, match="top_k of at least 2, got 1"):
        build(BalancedGate(top_k=1), generator)
    with pytest.raises(ValueError, match="needs n_experts of at least 2, got 1"):
        build(BalancedGate(), generator, n_experts=1)


# A shared expert


@pytest.mark.parametrize("top_k", [None, 2, 3])
def test_shared_expert(top_k, batch, generator):
    module = build(SharedExpertGate(top_k=top_k, temperature=0.5), generator)
    module.share_logit.data.fill_(1.0)
    proba = module(batch[0], None).log_proba.exp()
    share = torch.sigmoid(torch.tensor(1.0))
    torch.testing.assert_close(proba[:, 0], share.expand(N))
    scores = module.network(batch[0])[:, 1:] * 2
    if top_k is not None:
        scores = mask_all_but_top_k(scores, top_k - 1)
    torch.testing.assert_close(proba[:, 1:], (1 - share) * scores.softmax(dim=1))
    module.keep([0, 2, 3])
    torch.testing.assert_close(module(batch[0], None).log_proba.exp()[:, 0], share.expand(N))
    module.keep([2, 0, 1])  # now the shared expert is the second
    torch.testing.assert_close(module(batch[0], None).log_proba.exp()[:, 1], share.expand(N))
    if top_k != 3:
        module.keep([0, 2])  # without it, the others share the samples
        expected = module.network(batch[0]) * 2
        torch.testing.assert_close(module(batch[0], None).log_proba, expected.log_softmax(dim=1))


def test_shared_expert_needs_another(generator):
    with pytest.raises(ValueError, match="top_k of at least 2, or None"):
        build(SharedExpertGate(top_k=1), generator)


# Bases


def test_basis_gate(batch, generator):
    """The cosine of the angle between a sample and its projection, by numpy."""
    module = build(BasisGate(size=2, temperature=0.5), generator)
    module.centre.data = torch.randn(D, generator=generator)
    module.bias.data = torch.randn(E, generator=generator)
    x = batch[0].numpy() - module.centre.detach().numpy()
    logits = module(batch[0], None).logits
    for expert, directions in enumerate(module.directions.detach().numpy()):
        projected = x @ directions.T @ np.linalg.pinv(directions.T)
        angle = np.sum(x * projected, axis=1) / (
            np.linalg.norm(x, axis=1) * np.linalg.norm(projected, axis=1)
        )
        expected = angle / 0.5 + module.bias[expert].item()
        np.testing.assert_allclose(logits[:, expert].detach(), expected, atol=1e-5)


@pytest.mark.parametrize("size", [1, 3])
def test_basis_gate_is_the_same_in_training(size, batch, generator):
    module = build(BasisGate(size=size), generator).double()
    x = batch[0].double()
    in_training, in_prediction = module.train()(x, None).logits, module.eval()(x, None).logits
    torch.testing.assert_close(in_training, in_prediction)


def test_basis_of_all_directions_tells_nothing(generator):
    module = build(BasisGate(size=99), generator)
    proba = module(torch.randn(5, D, generator=generator), None).log_proba.exp()
    torch.testing.assert_close(proba, torch.full((5, E), 1 / E))


def test_a_sample_at_the_centre(generator):
    module = build(BasisGate(size=2), generator)
    module(torch.zeros(3, D), None).log_proba[:, 0].sum().backward()
    assert all(torch.isfinite(each.grad).all() for each in module.parameters())
    x = torch.randn(3, D, generator=generator)
    for scale in (1e-20, 1e30):  # only the direction counts
        torch.testing.assert_close(module(x * scale, None).logits, module(x, None).logits)
