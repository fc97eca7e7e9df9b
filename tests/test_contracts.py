"""Gates, experts, regularizations and networks of a user's own, and what their mistakes say."""

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator
from torch import nn

from sklearn_moe import (
    Importance,
    MoEClassifier,
    Regularizer,
    SoftmaxGate,
    decomposition_report,
    distill,
    prune_experts,
)
from sklearn_moe.encoders import Encoder
from sklearn_moe.experts import ExpertsModule
from sklearn_moe.experts.base import Experts
from sklearn_moe.gates import Gate, GateModule
from sklearn_moe.layers import linear

E = 3


def fit(data, **params):
    params = {"max_iter": 2, "random_state": 0, "encoder": None, **params}
    return MoEClassifier(E, **params).fit(*data)


# A gate of one's own


class SumGate(BaseEstimator):
    """It reads hidden vectors alone, as a gate does that says nothing else."""

    def build(self, input_shape, n_experts, hidden_size, generator):
        return SumGateModule(linear(hidden_size, 1, generator))


class SumGateModule(GateModule):
    def __init__(self, layer):
        super().__init__(temperature=1.0, top_k=None)
        self.layer = layer

    def score(self, x, hidden):
        return self.layer(hidden).squeeze(2)

    def keep(self, experts):
        pass


class LinearGate(Gate):
    """It derives from the base class and says that it does not read hidden vectors."""

    needs_hidden = False

    def build(self, input_shape, n_experts, hidden_size, generator):
        return SoftmaxGate().build(input_shape, n_experts, hidden_size, generator)


@pytest.mark.parametrize("gate, rate", [(SumGate(), 0.01), (LinearGate(), 0.03)])
def test_learning_rate_of_a_gate_of_ones_own(gate, rate, iris):
    assert fit(iris, gate=gate).net_.lr == rate


def test_gate_that_reads_the_experts_can_be_distilled(iris):
    teacher = fit(iris, gate=SumGate(), max_iter=20)
    student = distill(teacher, *iris, max_iter=20)
    assert str(student.gate) == "SoftmaxGate(top_k=1)"
    assert np.array_equal(student.expert_proba(iris[0]), teacher.expert_proba(iris[0]))
    assert student.score(*iris) > 0.8


def test_report_knows_that_a_gate_reads_the_experts(iris):
    for gate, is_advised in ((SumGate(), False), (LinearGate(), True)):
        report = decomposition_report(fit(iris, gate=gate), *iris, output_dict=True)
        assert "unsure" in report["verdict"]
        assert ("gate='attentive', which is surer" in report["advice"]) == is_advised


class PlainGate:
    """A gate that is no scikit-learn estimator."""

    def build(self, input_shape, n_experts, hidden_size, generator):
        return SoftmaxGate().build(input_shape, n_experts, hidden_size, generator)


def test_fine_tuning_needs_a_parameter_top_k(iris):
    X, y = iris
    for gate in (PlainGate(), LinearGate()):
        clf = fit(iris, gate=gate)
        prune = {"method": "heavy_hitters", "n_experts": 2, "X": X, "y": y}
        assert prune_experts(clf, **prune).n_experts == 2
        with pytest.raises(ValueError, match="needs a gate with a parameter top_k"):
            prune_experts(clf, **prune, fine_tune=True)


class Returns(BaseEstimator):
    def __init__(self, module):
        self.module = module

    def build(self, *args):
        return self.module


class WrongScores(GateModule):
    needs_hidden = False

    def __init__(self, scores):
        super().__init__(temperature=1.0, top_k=None)
        self.scores = scores

    def score(self, x, hidden):
        return self.scores(x)


@pytest.mark.parametrize(
    "module, error, message",
    [
        (nn.Linear(4, E), TypeError, r"must return a sklearn_moe.gates.GateModule, got Linear"),
        (WrongScores(lambda x: x[:, 0]), ValueError, r"\(n_samples, 3\).*gave \(2,\)"),
        (WrongScores(lambda x: x), ValueError, r"\(n_samples, 3\).*\(2, 4\) gave \(2, 4\)"),
        (WrongScores(lambda x: None), ValueError, "one score for each sample .* gave None"),
        (GateModule(temperature=1.0, top_k=None), NotImplementedError, "needs a method score"),
    ],
)
def test_wrong_gate_modules(module, error, message, iris):
    with pytest.raises(error, match=message):
        fit(iris, gate=Returns(module))


# Experts of one's own


class Tower(BaseEstimator):
    """Linear experts whose module has all that the contract asks for, and a name of its own."""

    def build(self, input_shape, n_experts, n_classes, generator):
        return TowerModule(nn.Parameter(torch.zeros(n_experts, n_classes, *input_shape)))


class TowerModule(ExpertsModule):
    multiply_adds = 12  # which is no word of the contract

    def __init__(self, weight):
        super().__init__()
        self.weight = weight
        self.hidden_size = weight.shape[1]

    @property
    def costs(self):
        return [self.weight[0].numel()] * len(self.weight)

    def forward(self, x, generator=None):
        logits = torch.einsum("nd,ecd->nec", x, self.weight)
        return logits, logits

    def run_some(self, x, experts):
        return [own @ self.weight[expert].mT for own, expert in zip(x, experts, strict=True)]

    def keep(self, experts):
        self.weight = nn.Parameter(self.weight.data[experts])


@pytest.mark.parametrize("runs_at_once", [False, True])
@pytest.mark.parametrize("gate", ["softmax", "top_k", "hard", "attentive"])
def test_experts_need_no_more_than_the_contract_asks(gate, runs_at_once, iris, monkeypatch):
    monkeypatch.setattr(TowerModule, "runs_at_once", runs_at_once)
    clf = fit(iris, experts=Tower(), gate=gate, max_iter=20)
    assert clf.score(*iris) > 0.6
    assert clf.expert_costs_.tolist() == [12] * E
    mixed = clf.gate_proba(iris[0])[..., None] * clf.expert_proba(iris[0])
    np.testing.assert_allclose(clf.predict_proba(iris[0]), mixed.sum(axis=1), atol=1e-6)
    pruned = prune_experts(clf, method="heavy_hitters", n_experts=2, X=iris[0])
    assert pruned.n_experts == 2


def test_experts_say_by_their_own_name_that_they_have_no_mean(iris):
    merge = {"method": "similarity", "n_experts": 2, "X": iris[0], "reduce": "merge"}
    with pytest.raises(ValueError, match=r"kind 'Tower' cannot be merged"):
        prune_experts(fit(iris, experts=Tower()), **merge)
    with pytest.raises(ValueError, match=r"kind 'CustomExperts' cannot be merged"):
        prune_experts(fit(iris, experts=net), **merge)


class Net(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.layer = nn.Linear(n_in, n_out)


def net(input_shape, n_outputs):
    return nn.Linear(input_shape[0], n_outputs)


class Says(ExpertsModule):
    hidden_size = 4

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, generator=None):
        return self.function(x)


@pytest.mark.parametrize(
    "experts, error, message",
    [
        (Net, TypeError, r"experts=Net must take the arguments \(input_shape, n_outputs\), but"),
        (
            lambda shape, n: nn.Sequential(net(shape, n), nn.Softmax(dim=1)),
            ValueError,
            "must return logits, but theirs are probabilities",
        ),
        (
            lambda shape, n: net(shape, n).double(),
            ValueError,
            r"of torch.float32, but Linear raises RuntimeError: .*Double",
        ),
        (
            lambda shape, n: nn.Linear(shape[0] + 1, n),
            ValueError,
            r"batches of shape \('n_samples', 4\).*Linear raises RuntimeError",
        ),
        (Returns(nn.Linear(4, E)), TypeError, "must return a sklearn_moe.experts.ExpertsModule"),
        (Returns(Says(lambda x: x)), ValueError, r"logits \(n_samples, 3, 3\).*gave \[\(2, 4\)\]"),
        (
            Returns(Says(lambda x: (x.double(), x))),
            ValueError,
            "must return torch.float32, but Says returns torch.float64",
        ),
    ],
)
def test_wrong_experts(experts, error, message, iris):
    with pytest.raises(error, match=message):
        fit(iris, experts=experts)


def test_a_function_that_fails_speaks_for_itself(iris):
    def fails(input_shape, n_outputs):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fit(iris, experts=fails)


@pytest.mark.parametrize(
    "params, arguments",
    [
        ({"experts": lambda n_outputs: None}, "input_shape, n_outputs"),
        ({"encoder": lambda: None}, "input_shape"),
        ({"regularization": lambda mixture: 0.0}, "mixture_output, x, y, sample_weight"),
        ({"regularization": ["importance", len]}, "mixture_output, x, y, sample_weight"),
        ({"augmentation": len}, "x, generator"),
    ],
)
def test_functions_of_other_arguments(params, arguments, iris):
    (name,) = params
    with pytest.raises(TypeError, match=rf"{name} must take the arguments \({arguments}\), but"):
        fit(iris, **params)


class Back(nn.Sequential):
    """A backbone that reads a number, where encoders read the shape of a sample."""

    def __init__(self, n_in, n_out=8):
        super().__init__(nn.Linear(n_in, n_out))


def nothing():
    return nn.Identity()


@pytest.mark.parametrize("encoder", [Back, type("Nothing", (Back,), {"__init__": nothing})])
@pytest.mark.parametrize("of_gate", [False, True])
def test_a_class_of_networks_as_encoder(encoder, of_gate, iris):
    params = {"gate": SoftmaxGate(encoder=encoder)} if of_gate else {"encoder": encoder}
    name = encoder.__name__
    message = (
        rf"encoder={name} must take the arguments \(input_shape\), but {name}\(\(4,\)\) raises"
    )
    with pytest.raises(TypeError, match=rf"{message} .*lambda input_shape: {name}\(...\)"):
        fit(iris, **params)
    fitting = type(
        "Fitting", (Back,), {"__init__": lambda self, shape: Back.__init__(self, *shape)}
    )
    fit(iris, encoder=fitting)


def test_an_encoder_that_cannot_read_samples_is_named(iris):
    with pytest.raises(ValueError, match=r"read batches of shape \('n_samples', 4\), but Linear"):
        fit(iris, encoder=lambda input_shape: nn.Linear(99, 2))


class Doubles(nn.Module):
    def forward(self, x):
        return x.double()


@pytest.mark.parametrize("of_gate", [False, True])
def test_an_encoder_of_double_precision_is_named(of_gate, iris):
    def encoder(input_shape):
        return Doubles()

    params = {"gate": SoftmaxGate(encoder=encoder)} if of_gate else {"encoder": encoder}
    with pytest.raises(ValueError, match=r"must return torch.float32, but Doubles returns .*64"):
        fit(iris, **params)


# Regularizations, augmentations and nets


class Returned(Regularizer):
    gate_only = True

    def __init__(self, value=None, strength=1.0):
        self.value = value
        self.strength = strength

    def penalty(self, mixture, x, y, sample_weight):
        return self.value


@pytest.mark.parametrize("gate", ["softmax", "attentive"])  # with known gradient, with autograd
@pytest.mark.parametrize(
    "value, got",
    [
        (None, "None"),
        (torch.ones(1), r"shape \(1,\)"),
        ("0", "'0'"),
        (torch.tensor(1j), "torch.complex64"),
    ],
)
def test_penalties_must_be_scalars(value, got, gate, iris):
    for regularization in (Returned(value), lambda *batch: value):
        with pytest.raises(ValueError, match=f"must return a real scalar tensor, got .*{got}"):
            fit(iris, regularization=regularization, gate=gate)
    assert fit(iris, regularization=Returned(0.0), gate=gate).n_iter_ == 2


def test_auto_within_a_list_stands_for_its_regularizations(iris):
    own = Importance(0.7)
    both = fit(iris, regularization=["auto", own]).net_.regularizations
    assert str(both) == str([*fit(iris).net_.regularizations, own])
    images = iris[0].reshape(-1, 2, 2), iris[1]
    alone = fit(images, regularization=["auto", own], experts="mlp").net_.regularizations
    assert str(alone) == str([own])  # "auto" is nothing for images


@pytest.mark.parametrize(
    "augmentation, got",
    [
        (lambda x, generator: None, "None"),
        (lambda x, generator: x[:, :1], r"\(\(75, 1\), torch.float32\)"),
        (lambda x, generator: x.double(), "torch.float64"),
    ],
)
def test_augmentations_must_keep_the_shape(augmentation, got, iris):
    with pytest.raises(ValueError, match=f"must return a batch of the same shape and .*{got}"):
        fit(iris, augmentation=augmentation, batch_size=75)


@pytest.mark.parametrize(
    "net_params, message",
    [
        ({"callbacks": [5]}, r"net_params\['callbacks'\] must hold skorch callbacks.*got 5"),
        ({"callbacks": [("mine", "x")]}, r"must hold skorch callbacks.*got \('mine', 'x'\)"),
        ({"callbacks": None}, r"net_params\['callbacks'\] must be a list, got None"),
        ({"nonsense": 1}, "net_params has 'nonsense', which is no argument of skorch"),
        ({"iterator_train": 5}, "must be a class such as torch.utils.data.DataLoader, got 5"),
        ({"optimizer__nonsense": 1}, r"net_params\['optimizer'\] can't be made.*'nonsense'"),
        ({"optimizer": "adam"}, r"must be a class such as torch.optim.Adam, got 'adam'"),
    ],
)
def test_wrong_net_params(net_params, message, iris):
    with pytest.raises(ValueError, match=message):
        fit(iris, net_params=net_params)


# Nested parameters


@pytest.mark.parametrize(
    "params, key, value, example",
    [
        (
            {"regularization": "sample_similarity"},
            "regularization__strength",
            0.5,
            "regularization=SampleSimilarity(strength=0.5)",
        ),
        ({"gate": "hard"}, "gate__temperature", 2, "gate=SoftmaxGate(temperature=2, top_k=1)"),
        ({"gate": "attentive"}, "gate__key_size", 8, "gate=AttentiveGate(key_size=8)"),
        ({"experts": "mpo"}, "experts__bond", 4, "experts=MPOExperts(bond=4)"),
        ({}, "experts__dropout", 0.1, "experts=MLPExperts(dropout=0.1)"),
        ({}, "encoder__n_knots", 5, "encoder=TableEncoder(n_knots=5)"),
        ({"regularization": None}, "regularization__tau", 0.1, "ZeroComputationBalance(tau=0.1)"),
        ({}, "gate__nonsense", 1, "gate=SoftmaxGate()"),
    ],
)
def test_nested_parameters_of_a_name_suggest_its_object(params, key, value, example):
    with pytest.raises(ValueError, match="has no parameters of its own") as error:
        MoEClassifier(**params).set_params(**{key: value})
    assert str(error.value).endswith(f"{example}.")


@pytest.mark.parametrize(
    "part, method, arguments",
    [
        (Experts(), "build", ((4,), E, 2, None)),
        (Gate(), "build", ((4,), E, 2, None)),
        (Encoder(), "build", ((4,), None)),
        (ExpertsModule(), "forward", (torch.zeros(2, 4),)),
        (ExpertsModule(), "run_some", ([torch.zeros(2, 4)], [0])),
        (ExpertsModule(), "keep", ([0],)),
        (GateModule(temperature=1.0, top_k=None), "keep", ([0],)),
        (GateModule(temperature=1.0, top_k=None), "refit", (*torch.zeros(3, 2, 4), 0)),
    ],
)
def test_a_method_that_is_missing_is_named(part, method, arguments):
    with pytest.raises(NotImplementedError, match=rf"{type(part).__name__} needs .*{method}\("):
        getattr(part, method)(*arguments)
