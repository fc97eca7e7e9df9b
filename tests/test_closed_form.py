import numpy as np
import pytest
import torch
from torch import nn

from sklearn_moe import (
    AttentiveGate,
    Importance,
    MLPExperts,
    MoEClassifier,
    SoftmaxGate,
)
from sklearn_moe.layers import StackedLinear
from sklearn_moe.mixture import MixtureOfExperts
from sklearn_moe.regularizers import REGULARIZERS
from sklearn_moe.training.closed_form import has_known_gradient, likelihood_gradient
from sklearn_moe.training.steps import ClosedForm


def make(gate, experts, generator, mixing="probability"):
    experts = experts.build((6,), 5, 4, generator)
    gate = gate.build((6,), 5, experts.hidden_size, generator)
    return MixtureOfExperts(experts, gate, mixing=mixing).double()


KNOWN = [name for name, each in REGULARIZERS.items() if each.gate_only or name == "competence"]


@pytest.mark.parametrize(
    "gate",
    [
        SoftmaxGate(),
        SoftmaxGate((7, 8), temperature=0.3),
        SoftmaxGate(top_k=2),
        SoftmaxGate(top_k=2, noise=1.0),
        SoftmaxGate(top_k=1, temperature=2.0),
    ],
    ids=str,
)
@pytest.mark.parametrize("experts", [MLPExperts(()), MLPExperts((7, 8), dropout=0.2)], ids=str)
@pytest.mark.parametrize("names", [[], ["competence"], ["importance", "entropy"], KNOWN], ids=str)
def test_gradient_equals_that_of_autograd(gate, experts, names, generator):
    if "load" in names and not (gate.noise > 0 and gate.top_k):
        pytest.skip("load needs a noisy top-k gate")
    module = make(gate, experts, generator)
    regularizations = [REGULARIZERS[name] for name in names]
    assert has_known_gradient(module, regularizations)
    x = torch.randn(13, 6, generator=generator, dtype=torch.float64)
    y = torch.randint(4, (13,), generator=generator)
    weight = torch.rand(13, generator=generator, dtype=torch.float64)

    state = generator.get_state()
    mixture = module(x, generator)
    expected = (nn.functional.nll_loss(mixture.log_proba, y, reduction="none") * weight).mean()
    for each in regularizations:
        expected = expected + each(mixture, x, y, weight)
    expected.backward()
    gradients = [parameter.grad for parameter in module.parameters()]

    module.zero_grad()
    generator.set_state(state)
    loss, gate_proba, expert_proba = likelihood_gradient(
        module, x, weight, y, generator=generator, regularizations=regularizations
    )
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gate_proba, mixture.gate_proba.detach())
    torch.testing.assert_close(expert_proba, mixture.expert_logits.detach().softmax(dim=2))
    for parameter, gradient in zip(module.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_other_mixtures_are_left_to_autograd(generator):
    experts = MLPExperts((4,))
    assert has_known_gradient(make(SoftmaxGate(), experts, generator), [Importance()])
    assert not has_known_gradient(make(SoftmaxGate(), experts, generator), [lambda *args: 0])
    assert not has_known_gradient(make(AttentiveGate(), experts, generator), [])
    assert not has_known_gradient(make(SoftmaxGate(), experts, generator, mixing="logit"), [])
    frozen = make(SoftmaxGate(), experts, generator)
    frozen.gate.requires_grad_(False)
    assert not has_known_gradient(frozen, [])


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


class OwnLayer(StackedLinear):
    pass


def parametrize(module):
    nn.utils.parametrize.register_parametrization(module.experts.layers[0], "weight", Doubled())


def normalize(module):
    nn.utils.parametrizations.weight_norm(module.gate.network.layers[0])


def share(module):
    module.experts.layers[1].weight = module.experts.layers[0].weight


def replace(module):
    module.gate.network.layers[0].__class__ = OwnLayer


def override(module):
    layer = module.gate.network.layers[0]
    layer.forward = lambda x: 2 * OwnLayer.forward(layer, x)


CHANGES = {
    "parametrization": parametrize,
    "weight_norm": normalize,
    "shared": share,
    "other_type": replace,
    "own_forward": override,
    "forward_hook": lambda module: module.register_forward_hook(lambda *args: None),
    "forward_pre_hook": lambda module: module.gate.network.register_forward_pre_hook(
        lambda *args: None
    ),
    "backward_hook": lambda module: module.experts.layers[1].register_full_backward_hook(
        lambda *args: None
    ),
    "backward_pre_hook": lambda module: module.experts.register_full_backward_pre_hook(
        lambda *args: None
    ),
    "tensor_hook": lambda module: module.gate.network.layers[0].bias.register_hook(
        lambda gradient: None
    ),
    "accumulation_hook": lambda module: module.experts.layers[
        0
    ].weight.register_post_accumulate_grad_hook(lambda weight: None),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_mixtures_are_left_to_autograd(name, generator):
    module = make(SoftmaxGate(), MLPExperts((6, 6)), generator)
    assert has_known_gradient(module, [])
    CHANGES[name](module)
    assert not has_known_gradient(module, [])


def test_mixtures_are_left_to_autograd_under_a_hook_on_all_modules(generator):
    module = make(SoftmaxGate(), MLPExperts((4,)), generator)
    hook = nn.modules.module.register_module_forward_hook(lambda *args: None)
    try:
        assert not has_known_gradient(module, [])
    finally:
        hook.remove()
    assert has_known_gradient(module, [])


def test_what_users_add_takes_part(iris):
    X, y = iris
    seen = []

    class Changed(MixtureOfExperts):
        """A mixture as usual, with a parametrization and hooks."""

        def __new__(cls, *args, **kwargs):
            module = MixtureOfExperts(*args, **kwargs)
            nn.utils.parametrize.register_parametrization(
                module.experts.layers[0], "weight", Doubled()
            )
            module.gate.register_forward_hook(lambda *args: seen.append("forward"))
            module.experts.layers[1].register_full_backward_hook(
                lambda *args: seen.append("backward")
            )
            module.gate.network.layers[0].bias.register_hook(lambda grad: seen.append("tensor"))
            return module

    clf = MoEClassifier(max_iter=1, batch_size=50, random_state=0, warm_start=True)
    clf.set_params(net_params={"module": Changed}).fit(X, y)
    before = clf.module_.experts.layers[0].parametrizations.weight.original
    clf.fit(X, y)
    after = clf.module_.experts.layers[0].parametrizations.weight.original
    assert not torch.equal(after, before)
    assert seen.count("tensor") == 6
    assert seen.count("backward") == 6 + 2  # the importances go back once after each fit
    assert seen.count("forward") >= 6


class OfExperts(Importance):
    def penalty(self, mixture, x, y, sample_weight):
        return mixture.expert_logits.square().mean()


class WithoutGradient(Importance):
    gate_only = True

    def penalty(self, mixture, x, y, sample_weight):
        return torch.zeros(())


class OwnMixture(MixtureOfExperts):
    def forward(self, x, generator=None):
        OwnMixture.n_runs = getattr(OwnMixture, "n_runs", 0) + 1
        return super().forward(x, generator)


def test_what_users_derive_is_run(iris):
    X, y = iris
    clf = MoEClassifier(max_iter=2, batch_size=30, random_state=0)
    clf.set_params(regularization=OfExperts()).fit(X, y)
    clf.set_params(regularization=WithoutGradient()).fit(X, y)
    clf.set_params(regularization=None, net_params={"module": OwnMixture}).fit(X, y)
    assert OwnMixture.n_runs >= 10


@pytest.mark.parametrize("gate", ["softmax", "noisy_top_k"])
def test_trainings_with_and_without_autograd_agree(gate, digits, monkeypatch):
    X, y = digits[0][:1000], digits[1][:1000]
    clf = MoEClassifier(
        gate=gate, experts=MLPExperts(dropout=0.1), regularization="importance", max_iter=3
    )
    known = clf.set_params(random_state=0).fit(X, y).predict_proba(X)
    monkeypatch.setattr(ClosedForm, "takes", lambda *args: False)
    np.testing.assert_allclose(clf.fit(X, y).predict_proba(X), known, atol=1e-3)


def test_frozen_parameters_stay(digits):
    X, y = digits
    clf = MoEClassifier(warm_start=True, max_iter=2, random_state=0).fit(X, y)
    before = {name: value.clone() for name, value in clf.module_.named_parameters()}
    clf.module_.gate.requires_grad_(False)
    clf.fit(X, y)
    for name, value in clf.module_.named_parameters():
        assert torch.equal(value, before[name]) == name.startswith("gate")
