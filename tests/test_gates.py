import math

import pytest
import torch

from sklearn_moe import GATES, AttentiveGate, CosineGate, SoftmaxGate, TableEncoder
from sklearn_moe.gates import mask_all_but_top_k

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
    else:
        assert (proba > 0).all()


@pytest.mark.parametrize("name", sorted(set(GATES) - {"kmeans"}))  # which has none
def test_gradient_reaches_the_gate(name, batch, generator):
    module = build(GATES[name], generator).train()
    weights = torch.randn(N, E, generator=generator)
    (module(*batch, generator).log_proba.exp() * weights).sum().backward()
    for parameter in module.parameters():
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "name", [name for name in GATES if name != "top_k" and "noisy" not in name]
)
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
