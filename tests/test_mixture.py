import pytest
import torch
from torch import nn

from sklearn_moe import (
    GATES,
    ComplexityConvExperts,
    ConvExperts,
    CustomExperts,
    MLPExperts,
    SoftmaxGate,
    SparsemaxGate,
)
from sklearn_moe.mixture import WORTH_AN_EXPERT, MixtureOfExperts

N, D, E, C = 8, 5, 4, 3


def build(generator, gate="softmax", mixing="probability", n_experts=E):
    experts = MLPExperts((6,)).build((D,), n_experts, C, generator)
    gate = GATES[gate].build((D,), n_experts, experts.hidden_size, generator)
    return MixtureOfExperts(experts, gate, mixing=mixing)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("mixing", ["probability", "logit"])
@pytest.mark.parametrize("training", [True, False])
def test_mixture_equals_a_loop(gate, mixing, training, generator):
    module = build(generator, gate, mixing).double().train(training)
    out = module(torch.randn(N, D, generator=generator, dtype=torch.float64), generator)
    for n in range(N):
        mixed = torch.zeros(C, dtype=torch.float64)
        for e in range(E):
            logits = out.expert_logits[n, e]
            mixed += out.gate_proba[n, e] * (
                logits.softmax(0) if mixing == "probability" else logits
            )
        expected = mixed if mixing == "probability" else mixed.softmax(0)
        torch.testing.assert_close(out.log_proba[n].exp(), expected)


@pytest.mark.parametrize("gate", GATES)
def test_gradients_are_finite_with_very_sure_gates(gate, generator):
    module = build(generator, gate)
    x = 1e4 * torch.randn(N, D, generator=generator)
    out = module(x, generator)
    assert torch.isfinite(out.log_proba).all()
    out.log_proba[:, 0].mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in module.parameters())


def test_probabilities_are_not_softmaxed_twice(generator):
    # A second softmax could not take a class above e / (e + C - 1) = 0.576.
    module = build(generator)
    with torch.no_grad():
        module.experts.layers[-1].bias[:, 0] = 100.0
    assert module(torch.randn(N, D, generator=generator)).log_proba[:, 0].exp().min() > 0.99


@pytest.mark.parametrize("gate", sorted(set(GATES) - {"kmeans"}))  # which has learnt nothing yet
@pytest.mark.parametrize("mixing", ["probability", "logit"])
def test_permuting_experts_changes_nothing(gate, mixing, generator):
    module = build(generator, gate, mixing).eval()
    x = torch.randn(N, D, generator=generator)
    before, order = module(x), torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        for parameter in module.experts.parameters():
            parameter.copy_(parameter[order])
        module.gate.keep(order.tolist())
    after = module(x)
    torch.testing.assert_close(after.log_proba, before.log_proba)
    torch.testing.assert_close(after.gate_proba, before.gate_proba[:, order])


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("mixing", ["probability", "logit"])
def test_likelihood_trains_the_gate(gate, mixing, generator):
    module = build(generator, gate, mixing)
    module(torch.randn(N, D, generator=generator), generator).log_proba[:, 0].sum().backward()
    for parameter in module.gate.parameters():
        assert parameter.grad.abs().sum() > 0


def test_hidden_is_that_of_the_experts(generator):
    module, x = build(generator), torch.randn(N, D, generator=generator)
    torch.testing.assert_close(module(x).hidden, module.experts(x)[1])


@pytest.mark.parametrize("mixing", ["probability", "logit"])
def test_one_expert_is_the_plain_network(mixing, generator):
    module = build(generator, mixing=mixing, n_experts=1)
    out = module(torch.randn(N, D, generator=generator))
    torch.testing.assert_close(out.log_proba, out.expert_logits[:, 0].log_softmax(dim=1))


def test_top_1_prediction_is_the_chosen_expert(generator):
    experts = MLPExperts((6,)).build((D,), E, C, generator)
    gate = SoftmaxGate(top_k=1).build((D,), E, 6, generator)
    out = MixtureOfExperts(experts, gate).eval()(torch.randn(N, D, generator=generator))
    chosen = out.expert_logits[torch.arange(N), out.gate_proba.argmax(dim=1)]
    torch.testing.assert_close(out.log_proba, chosen.log_softmax(dim=1))


class CountingExpert(nn.Linear):
    """Counts the rows that it gets."""

    def __init__(self, input_shape, n_outputs):
        super().__init__(input_shape[0], n_outputs)
        self.n_rows = 0

    def forward(self, x):
        self.n_rows += len(x)
        return super().forward(x)


EXPERTS_OF_BOTH_KINDS = [MLPExperts((6, 7)), MLPExperts(()), CustomExperts(CountingExpert)]


IMAGES = [
    ConvExperts((2, 3), (5,)),
    ConvExperts((2,), (), normalization="layer"),
    ComplexityConvExperts(1, 4, hidden_layer_sizes=(5,)),
]


@pytest.mark.parametrize(
    "experts, input_shape",
    [
        *((experts, (D,)) for experts in EXPERTS_OF_BOTH_KINDS),
        *((each, (4, 6)) for each in IMAGES),
    ],
    ids=["mlp", "linear", "custom", "conv", "conv with linear head", "complexity_conv"],
)
@pytest.mark.parametrize("gate", [*GATES.values(), SoftmaxGate(top_k=E)], ids=[*GATES, "all"])
@pytest.mark.parametrize("mixing", ["probability", "logit"])
@pytest.mark.parametrize("n_samples", [1, 50])
@pytest.mark.parametrize("worth", [0.0, torch.inf], ids=["in turn", "at once"])
def test_prediction_equals_the_whole_mixture(
    experts, input_shape, gate, mixing, n_samples, worth, generator, monkeypatch
):
    monkeypatch.setitem(WORTH_AN_EXPERT, "cpu", worth)
    experts = experts.build(input_shape, E, C, generator)
    gate = gate.build(input_shape, E, experts.hidden_size, generator)
    module = MixtureOfExperts(experts, gate, mixing=mixing).eval()
    x = torch.randn(n_samples, *input_shape, generator=generator)
    whole = module(x)
    torch.testing.assert_close(module.expert_logits(x), whole.expert_logits)
    chosen = whole.expert_logits[torch.arange(n_samples), whole.gate_proba.argmax(dim=1)]
    torch.testing.assert_close(module.chosen_expert_logits(x), chosen)
    torch.testing.assert_close(module.predict_log_proba(x), whole.log_proba)
    torch.testing.assert_close(module.predict_proba(x), whole.log_proba.softmax(dim=1))
    torch.testing.assert_close(module.route(x).log_proba.softmax(dim=1), whole.gate_proba)


@pytest.mark.parametrize(
    "gate, n_runs",
    [(SoftmaxGate(top_k=1), 50), (SoftmaxGate(top_k=2), 100), (SparsemaxGate(), None)],
    ids=["one", "two", "one or more"],
)
def test_only_the_chosen_experts_run_in_prediction(gate, n_runs, generator):
    experts = CustomExperts(CountingExpert).build((D,), E, C, generator)
    gate = gate.build((D,), E, experts.hidden_size, generator)
    module, x = MixtureOfExperts(experts, gate).eval(), torch.randn(50, D, generator=generator)
    chosen = module(x).gate_proba > 0
    for expert in experts.experts:
        expert.n_rows = 0
    module.route(x)
    assert [expert.n_rows for expert in experts.experts] == [0] * E
    module.predict_proba(x)
    assert [expert.n_rows for expert in experts.experts] == chosen.sum(dim=0).tolist()
    assert chosen.sum() == n_runs or (n_runs is None and 50 < chosen.sum() < 50 * E)


@pytest.mark.parametrize("gate", ["softmax", "top_k", "attentive"])
@pytest.mark.parametrize(
    "experts, input_shape",
    [
        (MLPExperts((6, 7)), (D,)),
        (CustomExperts(CountingExpert), (D,)),
        (ConvExperts((2, 3), (5,), normalization="batch"), (8, 8)),
    ],
    ids=["mlp", "custom", "conv"],
)
def test_keeping_some_experts(gate, experts, input_shape, generator):
    module = experts.build(input_shape, E, C, generator)
    gate = GATES[gate].build(input_shape, E, module.hidden_size, generator)
    mixture = MixtureOfExperts(module, gate).eval()
    x = torch.randn(N, *input_shape, generator=generator)
    before, costs = mixture(x), module.costs
    kept = [3, 0, 2]
    module.keep(kept)
    gate.keep(kept)
    after = mixture(x)
    torch.testing.assert_close(after.expert_logits, before.expert_logits[:, kept])
    torch.testing.assert_close(after.gate_logits, before.gate_logits[:, kept])
    assert list(module.costs) == [costs[expert] for expert in kept]
    torch.testing.assert_close(mixture.predict_log_proba(x), after.log_proba)
