import pickle
import re
from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback
from skorch.dataset import ValidSplit
from torch import nn

from sklearn_moe import (
    AttentiveGate,
    MLPExperts,
    MoEClassifier,
    SoftmaxGate,
    decomposition_entropy,
    distill,
    distillation,
    distillation_report,
)

MOE = MoEClassifier(
    n_experts=4,
    gate="attentive",
    regularization="importance",
    batch_size=100,
    max_iter=12,
    random_state=0,
)


@pytest.fixture(scope="module")
def data(digits):
    X, y = digits
    return X[:600], y[:600], X[600:1000], y[600:1000]


@pytest.fixture(scope="module")
def teacher(data):
    return clone(MOE).fit(*data[:2])


@pytest.fixture(scope="module")
def student(data, teacher):
    return distill(teacher, *data[:2])


def states(clf):
    return {name: value.clone() for name, value in clf.module_.state_dict().items()}


@pytest.mark.parametrize("target", ["labels", "teacher"])
@pytest.mark.parametrize("top_k", [1, None])
def test_student_keeps_the_experts_and_leaves_the_teacher_alone(target, top_k, data, teacher):
    X, y, X_test, y_test = data
    before, params, proba = states(teacher), str(teacher.get_params()), teacher.predict_proba(X)
    student = distill(teacher, X, y, target=target, top_k=top_k)
    assert isinstance(student, MoEClassifier)
    assert student.get_params()["gate"].get_params() == {
        "encoder": None,
        "hidden_layer_sizes": (64,),
        "noise": 0.0,
        "temperature": 1.0,
        "top_k": top_k,
    }
    for name, value in states(teacher).items():
        assert torch.equal(value, before[name])
        if name.startswith("experts"):
            assert torch.equal(student.module_.state_dict()[name], value)
    assert str(teacher.get_params()) == params
    assert np.array_equal(teacher.predict_proba(X), proba)
    assert student.score(X_test, y_test) > teacher.score(X_test, y_test) - 0.05
    assert np.mean(student.apply(X) == teacher.apply(X)) > 0.5


def test_student_starts_from_the_trunk(data, teacher):
    slow = clone(MOE).set_params(learning_rate=1e-30, max_iter=1).fit(*data[:2])
    student = distill(slow, *data[:2])
    trunk, network = slow.module_.gate.trunk, student.module_.gate.network
    assert len(network.layers) == len(trunk.layers) + 1
    for name, value in trunk.state_dict().items():
        assert torch.equal(network.state_dict()[name], value)


@pytest.mark.parametrize("target", ["labels", "teacher"])
def test_student_with_two_experts_per_sample(target, data, teacher):
    X, y, X_test, y_test = data
    student = distill(teacher, X, y, target=target, top_k=2)
    assert ((student.gate_proba(X) > 0).sum(axis=1) <= 2).all()
    assert np.isfinite(student.loss_curve_).all()
    assert student.score(X_test, y_test) > teacher.score(X_test, y_test) - 0.05


def test_learning_rate_schedule_is_that_of_the_teacher(data):
    X, y = data[:2]
    curves = []
    for schedule in ("one_cycle", "constant"):
        teacher = clone(MOE).set_params(max_iter=2, learning_rate_schedule="constant").fit(X, y)
        curves.append(
            distill(teacher.set_params(learning_rate_schedule=schedule), X, y).loss_curve_
        )
    assert curves[0] != curves[1]


class StopsAtOnce(Callback):
    def on_epoch_end(self, net, **kwargs):
        if net.gate.top_k == 1:
            raise AssertionError("a callback of the teacher's training")


def test_callbacks_and_splits_of_the_teacher_are_left_out(data):
    X, y = data[:2]
    net_params = {"callbacks": [StopsAtOnce()], "train_split": ValidSplit(5), "max_epochs": 4}
    teacher = clone(MOE).set_params(net_params={**net_params, "optimizer__eps": 1e-7}).fit(X, y)
    student = distill(teacher, X, y, max_iter=7)
    assert student.n_iter_ == 7 and student.net_params == {"optimizer__eps": 1e-7}
    assert student.net_.optimizer_.param_groups[0]["eps"] == 1e-7
    assert set(teacher.net_params) == {*net_params, "optimizer__eps"}


def test_interruption_and_progress_are_reported(data, teacher, capsys, monkeypatch):
    X, y = data[:2]
    student = distill(clone(MOE).set_params(verbose=2, max_iter=2).fit(X, y), X, y)
    assert len(re.findall("train_loss", capsys.readouterr().out)) == 2
    assert student.decomposition_curves_ is None
    distill(clone(MOE).set_params(verbose=1, max_iter=2).fit(X, y), X, y)
    assert "epoch" in capsys.readouterr().err

    def ctrl_c(net, x, sample_weight, y):
        raise KeyboardInterrupt

    monkeypatch.setattr(distillation, "_likelihood", ctrl_c)
    with pytest.raises(KeyboardInterrupt, match="the teacher is as it was"):
        distill(teacher, X, y)


class MaskedExpert(nn.Linear):
    """Has state outside its state dict."""

    def __init__(self, input_shape, n_outputs):
        super().__init__(input_shape[0], n_outputs)
        self.mask = (torch.rand(input_shape[0]) > 0.5).float()

    def forward(self, x):
        return super().forward(x * self.mask)


def test_experts_with_hidden_state(data):
    X, y = data[:2]
    teacher = clone(MOE).set_params(experts=MaskedExpert, max_iter=3).fit(X, y)
    assert np.array_equal(distill(teacher, X, y).expert_proba(X), teacher.expert_proba(X))


def test_data_frames_and_columns_of_labels(data):
    X, y = data[:2]
    frame = pd.DataFrame(X).add_prefix("pixel ")
    names = np.array([f"digit {label}" for label in range(10)], dtype=object)
    teacher = clone(MOE).set_params(max_iter=3).fit(frame, names[y])
    for target in ("labels", "teacher"):
        student = distill(teacher, frame, names[y][:, np.newaxis], target=target)
        assert student.report_.teacher_error == pytest.approx(1 - teacher.score(frame, names[y]))
        assert student.feature_names_in_.tolist() == frame.columns.tolist()


def test_first_loss_is_the_likelihood_or_the_divergence(data):
    """With such a learning rate the gate stays as it starts, and the loss can be recomputed."""
    X, y = data[:2]
    weight = np.random.RandomState(0).uniform(0.5, 2, size=len(X))
    slow = clone(MOE).set_params(learning_rate=1e-30, max_iter=1, batch_size=len(X)).fit(X, y)
    student = distill(slow, X, y, top_k=None, sample_weight=weight)
    p, o = student.gate_proba(X), slow.expert_proba(X)[np.arange(len(X)), :, y]
    expected = np.average(-np.log((p * o).sum(axis=1)), weights=weight)
    assert student.loss_curve_ == pytest.approx([expected], rel=1e-4)
    student = distill(slow, X, target="teacher", top_k=None, sample_weight=weight)
    p, q = student.gate_proba(X), slow.gate_proba(X)
    expected = np.average((q * np.log(q / p)).sum(axis=1), weights=weight)
    assert student.loss_curve_ == pytest.approx([expected], rel=1e-4)


def test_one_expert_runs_for_a_sample(data, teacher, student):
    X_test, y_test = data[2:]
    chosen = student.apply(X_test)
    alone = teacher.expert_proba(X_test)[np.arange(len(X_test)), chosen]
    np.testing.assert_allclose(student.predict_proba(X_test), alone, atol=1e-6)
    report = distillation_report(teacher, student, X_test, y_test)
    gate, expert = 64 * 64 + 64 * 4, 64 * 256 + 256 * 10
    assert report.student_cost == gate + expert
    assert report.teacher_cost > 4 * expert


def test_same_weights_with_one_expert_and_with_all(data, teacher, student):
    """The gate trains on the full softmax in both cases."""
    one, soft = (distill(teacher, *data[:2], top_k=top_k) for top_k in (1, None))
    for name, value in states(one).items():
        assert torch.equal(value, states(soft)[name])
    assert np.array_equal(one.apply(data[2]), soft.apply(data[2]))
    assert student.loss_curve_ == one.loss_curve_


def test_report(data, teacher, student):
    X, y, X_test, y_test = data
    report = distillation_report(teacher, student, X_test, y_test)
    one, other = teacher.predict(X_test), student.predict(X_test)
    assert report.teacher_error == pytest.approx(np.mean(one != y_test))
    assert report.student_error == pytest.approx(np.mean(other != y_test))
    assert report.agreement == np.mean(one == other)
    assert report.expert_agreement == np.mean(teacher.apply(X_test) == student.apply(X_test))
    expected = decomposition_entropy(teacher, X_test, y_test)
    assert report.teacher.sample_entropy == expected.sample_entropy
    assert report.student.sample_entropy == 0
    text = str(report)
    for part in ("error", "H_s", "H_u", "I(E;Y)", "multiply-adds", "teacher", "student", "same"):
        assert part in text
    assert student.report_.student_error == pytest.approx(1 - student.score(X, y))
    assert deepcopy(student).set_params(max_iter=1).fit(X, y).report_ is None


def test_without_labels(data, teacher):
    X = data[0]
    student = distill(teacher, X, target="teacher")
    assert student.report_.teacher_error is student.report_.student_error is None
    assert "error" not in str(student.report_)
    assert student.report_.agreement > 0.9


def test_pipelines_and_searches(data):
    X, y, X_test, y_test = data
    pipeline = make_pipeline(StandardScaler(), clone(MOE).set_params(max_iter=10))
    search = GridSearchCV(pipeline, {"moeclassifier__n_experts": [3]}, cv=2).fit(X, y)
    mean = search.best_estimator_[0].mean_.copy()
    student = distill(search, X, y)
    assert list(student.named_steps) == ["standardscaler", "moeclassifier"]
    assert student.score(X_test, y_test) > search.score(X_test, y_test) - 0.05
    student.fit(X_test, y_test)
    assert np.array_equal(search.best_estimator_[0].mean_, mean)
    assert search.best_estimator_[-1].gate == "attentive"


def expert_with_statistics(input_shape, n_outputs):
    return nn.Sequential(
        nn.Linear(input_shape[0], 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, n_outputs)
    )


@pytest.mark.parametrize("experts", [MLPExperts((8,), dropout=0.5), expert_with_statistics])
def test_experts_stay_as_they_are_whatever_they_do_in_training(experts, data):
    X, y = data[:2]
    teacher = clone(MOE).set_params(experts=experts, max_iter=3, weight_decay=0.1).fit(X, y)
    student = distill(teacher, X, y)
    for name, value in states(teacher).items():
        if name.startswith("experts"):
            assert torch.equal(student.module_.state_dict()[name], value)


def test_student_is_an_ordinary_classifier(data, teacher):
    X, y, X_test, y_test = data
    student = distill(teacher, X, y, max_iter=5)
    assert student.n_iter_ == 5 == student.max_iter
    assert np.array_equal(
        pickle.loads(pickle.dumps(student)).predict_proba(X), student.predict_proba(X)
    )
    assert clone(student).set_params(max_iter=15).fit(X, y).score(X_test, y_test) > 0.8
    before = states(student)
    student.partial_fit(X, y)  # trains all of it
    assert not torch.equal(
        student.module_.state_dict()["experts.layers.0.weight"], before["experts.layers.0.weight"]
    )


def test_class_weights_count_with_labels(data):
    """Weights of the classes are weights of their samples, for one and the same teacher."""
    X, y = data[:2]
    class_weight = {label: 1.0 + label for label in range(10)}
    teacher = clone(MOE).set_params(max_iter=3).fit(X, y)
    by_sample = distill(teacher, X, y, sample_weight=1.0 + y)
    by_class = distill(teacher.set_params(class_weight=class_weight), X, y)
    assert by_class.loss_curve_ == by_sample.loss_curve_
    teacher.set_params(class_weight=None)
    assert distill(teacher, X, y).loss_curve_ != by_class.loss_curve_


def test_weightless_samples_count_as_removed(data, teacher):
    X, y = data[:2]
    weight = np.arange(len(X)) % 2
    half = weight == 1
    for target in ("labels", "teacher"):
        one = distill(teacher, X, y, target=target, sample_weight=weight, max_iter=5)
        other = distill(teacher, X[half], y[half], target=target, max_iter=5)
        assert np.array_equal(one.predict_proba(X), other.predict_proba(X))


def test_teacher_with_early_stopping_and_a_gate_without_layers(data):
    X, y, X_test, y_test = data
    params = {"early_stopping": True, "max_iter": 15, "gate": AttentiveGate((), temperature=0.5)}
    teacher = clone(MOE).set_params(**params).fit(X, y)
    student = distill(teacher, X, y)
    assert student.n_iter_ == 15 and student.gate.temperature == 0.5
    assert len(student.module_.gate.network.layers) == 1
    assert student.score(X_test, y_test) > 0.8


@pytest.mark.parametrize(
    "params, kwargs, error, message",
    [
        ({}, {"y": None}, ValueError, "target='labels' needs y"),
        ({}, {"target": "logits"}, ValueError, "'target' parameter of distill must be"),
        ({}, {"top_k": 0}, ValueError, "'top_k' parameter of distill must be"),
        ({}, {"top_k": 5}, ValueError, "top_k=5 must not be larger than n_experts=4"),
        ({}, {"y": [0, 1], "target": "teacher"}, ValueError, "inconsistent numbers of samples"),
        ({}, {"y": np.full(600, 99)}, ValueError, r"y contains \[99\], which are not among"),
        ({"gate": "softmax"}, {}, ValueError, r"got gate=SoftmaxGate\(\), .* fit gate='hard'"),
        ({"gate": "hard"}, {}, ValueError, "before they run. It runs one expert for a sample as"),
        ({"mixing": "logit"}, {}, ValueError, "mixing='probability', got 'logit'"),
    ],
)
def test_wrong_arguments(params, kwargs, error, message, data):
    teacher = clone(MOE).set_params(max_iter=1, **params).fit(*data[:2])
    with pytest.raises(error, match=message):
        distill(teacher, **{"X": data[0], "y": data[1], **kwargs})


def test_teacher_must_be_fitted(data):
    with pytest.raises(NotFittedError):
        distill(clone(MOE), *data[:2])
    with pytest.raises(TypeError, match="has no gate_proba"):
        distill(StandardScaler().fit(data[0]), *data[:2])


def test_gate_may_be_an_object(data):
    gate = AttentiveGate((32, 16), key_size=8)
    teacher = clone(MOE).set_params(gate=gate, max_iter=2).fit(*data[:2])
    assert str(distill(teacher, *data[:2]).gate) == str(SoftmaxGate((32, 16), top_k=1))
