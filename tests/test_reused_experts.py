"""Experts that are there already, and classifiers beside experts that read images."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from torch import nn

from sklearn_moe import (
    GATES,
    FittedExpert,
    FlipCrop,
    MLPExperts,
    MoEClassifier,
    SoftmaxGate,
    decomposition_report,
    distill,
    expert_importance,
    gate_rules,
    prune_experts,
)

X, y = load_digits(return_X_y=True)
X, y = X[:800], y[:800]
FIRST = y < 5

SMALL = {"max_iter": 5, "random_state": 0}


@pytest.fixture(scope="module")
def old():
    return MoEClassifier(3, experts=MLPExperts((16,)), **SMALL).fit(X[FIRST], y[FIRST])


@pytest.fixture(scope="module")
def listed():
    experts = [("bayes", GaussianNB()), ("net", MLPExperts((8,)))]
    return MoEClassifier(experts=experts, **SMALL).fit(X, y)


@pytest.fixture(scope="module")
def reused(old):
    return MoEClassifier(experts=experts_of(old), **SMALL).fit(X, y)


def experts_of(old):
    return [("one", FittedExpert(old, 2)), ("other", FittedExpert(old, 0)), ("new", "mlp")]


# Experts of a fitted mixture


def test_an_expert_answers_as_in_its_mixture(old, listed, reused):
    one = FittedExpert(old, 2)
    expected = old.expert_proba(X)[:, 2]
    np.testing.assert_array_equal(one.predict_proba(X), expected)
    np.testing.assert_array_equal(one.fit(X, y).predict(X), old.classes_[expected.argmax(axis=1)])
    assert one.score(X[FIRST], y[FIRST]) > 0.8
    np.testing.assert_allclose(reused.expert_proba(X)[:, 0, :5], expected, atol=1e-5)
    assert reused.expert_proba(X)[:, 0, 5:].max() < 1e-6
    by_name = FittedExpert(listed, "net").predict_proba(X)
    np.testing.assert_array_equal(by_name, listed.expert_proba(X)[:, 1])


def test_pipelines_and_searches(old):
    clf = make_pipeline(MinMaxScaler(), clone(old)).fit(X[FIRST], y[FIRST])
    expected = clf[-1].expert_proba(clf[:-1].transform(X))[:, 1]
    np.testing.assert_array_equal(FittedExpert(clf, 1).predict_proba(X), expected)
    search = GridSearchCV(clf, {"moeclassifier__max_iter": [1]}, cv=2).fit(X[FIRST], y[FIRST])
    assert FittedExpert(search, 1).predict_proba(X).shape == (len(X), 5)


def test_the_mixture_stays_as_it_is(old, reused):
    before = pickle.dumps(old.net_)
    again = clone(reused).fit(X, y)
    np.testing.assert_array_equal(again.predict_proba(X), reused.predict_proba(X))
    assert pickle.dumps(old.net_) == before
    loaded = pickle.loads(pickle.dumps(reused))
    np.testing.assert_array_equal(loaded.predict_proba(X), reused.predict_proba(X))
    one, other = (expert.mixture for _, expert in loaded.experts[:2])
    assert one is other  # the file has it once


def test_searches_choose_the_expert(reused):
    assert "experts__one__mixture__random_state" not in reused.get_params()
    grid = {"experts__one__expert": [0, 1], "max_iter": [1]}
    search = GridSearchCV(reused, grid, cv=2).fit(X, y)
    assert search.best_params_["experts__one__expert"] in (0, 1)
    assert reused.experts[0][1].expert == 2


def test_reports_and_rules_name_them(reused):
    assert reused.expert_names_ == ["one", "other", "new"]
    assert list(reused.named_experts_) == ["one", "other"]
    assert "other" in str(decomposition_report(reused, X, y))
    assert gate_rules(reused, X, random_state=0).expert_names == reused.expert_names_
    assert reused.score(X, y) > 0.8


def test_pruning_and_distillation(old, reused):
    pruned = prune_experts(reused, method="heavy_hitters", n_experts=2, X=X)
    assert "one" in pruned.expert_names_ or "other" in pruned.expert_names_
    assert clone(pruned).fit(X, y).expert_names_ == pruned.expert_names_
    attentive = clone(reused).set_params(gate="attentive").fit(X, y)
    student = distill(attentive, X, y, max_iter=5)
    assert student.named_experts_.one.mixture is not None
    np.testing.assert_array_equal(student.expert_proba(X), attentive.expert_proba(X))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda old: FittedExpert(old, 3), ValueError, "from 0 to 2, as the mixture has 3"),
        (lambda old: FittedExpert(old, -1), ValueError, "'expert' parameter of FittedExpert"),
        (lambda old: FittedExpert(old, "net"), ValueError, "a position from 0 to 2"),
        (lambda old: FittedExpert(clone(old), 0), NotFittedError, "not fitted"),
        (lambda old: FittedExpert(LogisticRegression(), 0), (TypeError, ValueError), "gate_proba"),
        (lambda old: FittedExpert(None, 0), ValueError, "'mixture' parameter of FittedExpert"),
    ],
)
def test_wrong_experts(make, error, message, old):
    expert = make(old)
    for use in (
        lambda: expert.predict_proba(X),
        lambda: MoEClassifier(experts=[("old", expert), ("new", "mlp")]).fit(X, y),
    ):
        with pytest.raises(error, match=message):
            use()
    with pytest.raises(ValueError, match="The expert 'old'"):
        MoEClassifier(experts=[("old", expert)]).fit(X, y)


def test_wrong_names_and_classes(old, listed):
    with pytest.raises(ValueError, match=r"must be one of the names \['bayes', 'net'\]"):
        FittedExpert(listed, "nobody").predict(X)
    with pytest.raises(ValueError, match=r"'old' was fitted on the classes \[0, 1\], which y"):
        MoEClassifier(experts=[("old", FittedExpert(old, 0))]).fit(X[y > 1], y[y > 1])


# Torch modules and functions in a list


def linear_expert(input_shape, n_outputs):
    return nn.Linear(input_shape[0], n_outputs)


@pytest.fixture(scope="module")
def trained():
    """A network that knows the digits, with statistics of its batches."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
        x, labels = torch.as_tensor(X[:500], dtype=torch.float32), torch.as_tensor(y[:500])
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(40):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), labels).backward()
            optimizer.step()
    return net.eval()


def mixture_with(net, **params):
    listed = [("net", net), ("line", GaussianNB()), ("made", linear_expert)]
    params = {"experts": listed, "encoder": None, **SMALL, "max_iter": 3, **params}
    return MoEClassifier(**params)


def own_copy(clf):
    """The copy of the first network within a mixture."""
    return clf.module_.experts.parts[0].experts[0]


def are_equal(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_trained_module_trains_on(trained):
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    clf = mixture_with(trained).fit(X, y)
    assert clf.expert_names_ == ["net", "line", "made"]
    assert clf.net_.lr == 3e-3 and clf.net_.optimizer__weight_decay == 0
    assert clf.score(X, y) > 0.9
    assert are_equal(before, trained.state_dict())
    weight = own_copy(clf)[0].weight
    assert 0 < (weight - trained[0].weight).abs().max() < 0.3
    x = torch.as_tensor(X, dtype=torch.float32)
    expected = own_copy(clf)(x).softmax(dim=1).detach().numpy()
    np.testing.assert_allclose(clf.expert_proba(X)[:, 0], expected, atol=1e-5)
    again = [clone(clf).fit(X, y), pickle.loads(pickle.dumps(clf)), clf.fit(X, y)]
    one, *others = (each.predict_proba(X) for each in again)
    assert all(np.array_equal(one, other) for other in others)


@pytest.mark.parametrize("gate", [each for each in GATES if "top_k" not in each])
@pytest.mark.parametrize("alone", [True, False])
def test_frozen_modules_stay(gate, alone, trained):
    """With weights and statistics of batches, also if nothing but the gate is left to learn."""
    frozen = pickle.loads(pickle.dumps(trained)).requires_grad_(False)
    experts = {"experts": [("net", frozen), ("bayes", GaussianNB())]} if alone else {}
    optimizer = {"optimizer__weight_decay": 0.5}
    clf = mixture_with(frozen, gate=gate, net_params=optimizer, **experts).fit(X, y)
    assert are_equal(trained.state_dict(), own_copy(clf).state_dict())
    loaded = pickle.loads(pickle.dumps(clf)).partial_fit(X, y)
    assert are_equal(trained.state_dict(), own_copy(loaded).state_dict())


def test_nothing_is_left_to_learn_by_gradients():
    """Classifiers under a gate that is fitted otherwise."""
    experts = [("line", LogisticRegression()), ("bayes", GaussianNB())]
    clf = MoEClassifier(experts=experts, gate="kmeans", **SMALL).fit(X[:, 20:30], y > 4)
    assert clf.n_parameters_ == 0 and clf.score(X[:, 20:30], y > 4) > 0.6
    loaded = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(
        loaded.predict_proba(X[:, 20:30]), clf.predict_proba(X[:, 20:30])
    )


@pytest.mark.filterwarnings("ignore:The best of 2 restarts")
def test_frozen_parts_stay(trained):
    half = pickle.loads(pickle.dumps(trained))
    half[:3].requires_grad_(False)
    clf = mixture_with(half, n_init=2).fit(X, y)
    assert are_equal(trained[:3].state_dict(), own_copy(clf)[:3].state_dict())
    assert not torch.equal(trained[3].weight, own_copy(clf)[3].weight)


def test_modules_and_functions_read_images():
    images = (X.reshape(-1, 8, 8) / 16).astype(np.float32)
    net = nn.Sequential(nn.Unflatten(1, (1, 8)), nn.Conv2d(1, 4, 3), nn.Flatten())
    net = nn.Sequential(net, nn.ReLU(), nn.Linear(144, 10))

    class WithHidden(nn.Module):
        def __init__(self, input_shape, n_outputs):
            super().__init__()
            self.layer = nn.Linear(64, n_outputs)

        def forward(self, x):
            return self.layer(x.flatten(1)), x.flatten(1)

    listed = [("net", net), ("made", WithHidden), ("own", "conv")]
    clf = MoEClassifier(experts=listed, gate="attentive", **SMALL).fit(images, y)
    assert clf.score(images, y) > 0.5
    pruned = prune_experts(clf, method="heavy_hitters", n_experts=2, X=images)
    assert pruned.expert_proba(images).shape == (len(y), 2, 10)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.Linear(64, 9), ValueError, r"\(n_samples, 10\).*gave \[\(2, 9\)\]"),
        (lambda: nn.Linear(63, 10), ValueError, "batches of shape .*64.* With encoder=None"),
        (lambda: nn.Linear(64, 10).double(), ValueError, "of torch.float32"),
        (lambda: nn.Softmax(dim=1), ValueError, r"gave \[\(2, 64\)\]"),
        (lambda: lambda shape: None, TypeError, "must take the arguments"),
        (lambda: lambda shape, n: 3, TypeError, "must return a new torch.nn.Module"),
    ],
)
def test_wrong_networks(make, error, message):
    clf = MoEClassifier(experts=[("bad one", make()), ("new", "mlp")], encoder=None)
    with pytest.raises(error, match=f"The expert 'bad one' cannot be built.*{message}"):
        clf.fit(X, y)


def test_one_module_is_no_kind_of_experts(trained):
    with pytest.raises(TypeError, match=r"(?s)not a module.*experts=\[\('net', module\)"):
        MoEClassifier(experts=trained).fit(X, y)


# Classifiers beside experts that read images


IMAGES = (X.reshape(-1, 8, 8) / 16).astype(np.float32)


def seeing(**params):
    listed = [("bayes", GaussianNB(var_smoothing=0.01)), ("net", "conv")]
    return MoEClassifier(**{"experts": listed, **SMALL, "max_iter": 2, **params})


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"gate": "attentive"},
        {"gate": "hard"},
        {"gate": SoftmaxGate(encoder="conv")},
        {"encoder": "conv", "experts": [("bayes", GaussianNB()), ("net", "mlp")]},
        {"augmentation": FlipCrop(flip=False, crop=1), "early_stopping": True},
        {"experts": [("bayes", GaussianNB())]},
    ],
    ids=str,
)
def test_classifiers_beside_networks_for_images(params):
    clf = seeing(**params).fit(IMAGES, y)
    assert clf.score(IMAGES, y) > 0.75
    mixed = np.einsum("ne,nec->nc", clf.gate_proba(IMAGES), clf.expert_proba(IMAGES))
    np.testing.assert_allclose(clf.predict_proba(IMAGES), mixed, atol=1e-6)
    loaded = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(loaded.predict_proba(IMAGES), clf.predict_proba(IMAGES))
    flat = seeing(**params, input_shape=(8, 8)).fit(IMAGES.reshape(-1, 64), y)
    np.testing.assert_array_equal(
        flat.predict_proba(IMAGES.reshape(-1, 64)), clf.predict_proba(IMAGES)
    )


def test_bytes_and_shapes():
    images = (IMAGES * 255).astype(np.uint8)
    clf = seeing().fit(images[:, np.newaxis], y)
    assert clf.named_experts_.bayes.n_features_in_ == 64
    assert clf.named_experts_.bayes.theta_.max() > 200  # as they came
    assert clf.net_.own_shape == (1, 8, 8)
    assert clf.partial_fit(images[:, np.newaxis], y).score(images[:, np.newaxis], y) > 0.75
    with pytest.raises(ValueError, match=r"shape \(1, 4, 16\)"):
        clf.predict(images.reshape(-1, 1, 4, 16))
    with pytest.raises(ValueError, match="the mixture reads images"):
        gate_rules(clf, images[:, np.newaxis])
    with pytest.raises(ValueError, match="the mixture reads images"):
        expert_importance(clf, images[:, np.newaxis], y)


@pytest.mark.parametrize("gone", [[0], [1], [0, 2]])
def test_pruned_lists_for_images(gone):
    listed = [("bayes", GaussianNB()), ("net", "conv"), ("other", GaussianNB(var_smoothing=0.1))]
    clf = seeing(experts=listed).fit(IMAGES, y)
    left = [expert for expert in range(3) if expert not in gone]
    proba = clf.expert_proba(IMAGES)[:, left]
    pruned = pickle.loads(pickle.dumps(clf))
    pruned.net_.keep(left)
    pruned.net_.initialize_optimizer()
    pruned.reader_.keep(pruned.expert_names_)
    np.testing.assert_allclose(pruned.expert_proba(IMAGES), proba, atol=1e-6)
    assert pruned.net_.own_shape == (8, 8)
    one = prune_experts(clf, method="heavy_hitters", n_experts=1, X=IMAGES, y=y)
    assert one.report_.error_after < 0.3
    loaded = pickle.loads(pickle.dumps(pruned))
    np.testing.assert_array_equal(loaded.predict_proba(IMAGES), pruned.predict_proba(IMAGES))


def test_distillation_with_images():
    params = {"augmentation": FlipCrop(flip=False, crop=1)}, {}
    for each in params:
        teacher = seeing(gate="attentive", **each).fit(IMAGES, y)
        student = distill(teacher, IMAGES, y, max_iter=2)
        np.testing.assert_array_equal(student.expert_proba(IMAGES), teacher.expert_proba(IMAGES))


def test_experts_that_take_images_get_them():
    old = MoEClassifier(2, **SMALL).fit(IMAGES[FIRST], y[FIRST])
    listed = [("old", FittedExpert(old, 1)), ("bayes", GaussianNB()), ("new", "conv")]
    clf = seeing(experts=listed).fit(IMAGES, y)
    expected = old.expert_proba(IMAGES)[:, 1]
    np.testing.assert_allclose(clf.expert_proba(IMAGES)[:, 0, :5], expected, atol=1e-5)
