"""What is kept of a fitted mixture: arrays, plain values and our own classes."""

import importlib
import io
import pickle
import threading
import zipfile
from copy import copy, deepcopy
from functools import cache

import joblib
import numpy as np
import pandas as pd
import pytest
import skops.io
import torch
from kinds import OF_TABLES
from sklearn.base import BaseEstimator
from sklearn.datasets import load_digits, load_iris
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback
from torch import nn

from sklearn_moe import (
    GATES,
    REGULARIZERS,
    TRUSTED_TYPES,
    AttentiveGate,
    ComplexityConvExperts,
    ConvEncoder,
    FlipCrop,
    MLPExperts,
    MoEClassifier,
    compress_experts,
    distill,
    prune_experts,
)
from sklearn_moe.gates import GateModule
from sklearn_moe.parameters import architecture_of, settings_of


def data():
    X, y = load_iris(return_X_y=True)
    return StandardScaler().fit_transform(X).astype(np.float32), y


def images():
    digits = load_digits()
    return (digits.images[:150] / 16).astype(np.float32), digits.target[:150] % 3


def make(**params):
    params = {"n_experts": 4, "encoder": None, "max_iter": 2, "random_state": 0, **params}
    return MoEClassifier(**params)


def pickled(clf):
    return pickle.loads(pickle.dumps(clf))


def through_skops(clf, others=()):
    """Return what comes back from a file, which holds no types but that of clf and others."""
    file = skops.io.dumps(clf)
    own = f"{type(clf).__module__}.{type(clf).__name__}"
    assert own in TRUSTED_TYPES
    assert set(skops.io.get_untrusted_types(data=file)) <= {own, *others}
    return skops.io.loads(file, trusted=[*TRUSTED_TYPES, *others])


def assert_alike(clf, twin, X, y):
    """A twin predicts alike, and goes on alike."""
    assert np.array_equal(twin.predict_proba(X), clf.predict_proba(X))
    assert twin.net_.history == clf.net_.history
    going_on = deepcopy(clf)
    for each in (going_on, twin):
        each.partial_fit(X, y)
    assert np.array_equal(twin.predict_proba(X), going_on.predict_proba(X))
    assert twin.net_.history == going_on.net_.history
    assert twin.n_iter_ == clf.n_iter_ + 1


# Mixtures of all kinds


def pruned(clf, X, **params):
    return prune_experts(clf, X=X, **{"method": "similarity", "n_experts": 3, **params})


@cache
def merged():
    X, _ = data()
    return pruned(make(n_experts=5, gate="top_k").fit(*data()), X)


def fine_tuned():
    X, y = data()
    return pruned(merged(), X, y=y, n_experts=3, fine_tune=True, top_k=2, max_iter=1)


OTHERS = {
    "student": lambda: distill(make(gate="attentive", max_iter=5).fit(*data()), *data()),
    "student_of_pruned": lambda: distill(
        pruned(make(gate="attentive").fit(*data()), data()[0]), *data()
    ),
    "kept": lambda: pruned(make(n_experts=6).fit(*data()), data()[0], reduce="keep"),
    "random": lambda: pruned(make(experts="complexity").fit(*data()), None, method="random"),
    "cheap": lambda: pruned(
        make(n_experts=6, experts="zero_computation").fit(*data()),
        data()[0],
        method="heavy_hitters",
        n_experts=5,
    ),
    "compressed": lambda: compress_experts(make(experts=MLPExperts((8, 8))).fit(*data()), bond=4),
    "merged": merged,
    "merged_twice": lambda: pruned(merged(), data()[0], n_experts=2),
    "merged_and_kept": lambda: pruned(merged(), data()[0], method="random", n_experts=2),
    "fine_tuned": fine_tuned,
    "fine_tuned_and_merged": lambda: pruned(fine_tuned(), data()[0], n_experts=2),
    "early_stopping": lambda: (
        make(early_stopping=True, track_decomposition=True, mixing="logit")
        .fit(*data())
        .set_params(early_stopping=False)
    ),
    "warm": lambda: make(warm_start=True).fit(*data()).fit(*data()),
    "dropout": lambda: (
        make(experts=MLPExperts((8, 8), dropout=0.5), class_weight="balanced", verbose=2)
        .fit(*data())
        .set_params(class_weight=None)
    ),
    "text": lambda: make(
        regularization=["importance", "z_loss"],
        random_state=np.random.RandomState(0),
    ).fit(data()[0], np.array(["a", "b", "c"], dtype=object)[data()[1]]),
}

IMAGES = {
    "conv": {},
    "complexity_conv": {"experts": ComplexityConvExperts(1, 4, normalization="batch")},
    "encoder": {
        "encoder": ConvEncoder((4,), normalization="batch"),
        "augmentation": FlipCrop(crop=1),
    },
    "encoder_of_gate": {"gate": AttentiveGate(encoder="conv"), "input_shape": (8, 8)},
}


@pytest.mark.parametrize(
    "params",
    [
        *({"gate": gate} for gate in GATES),
        *({"experts": experts} for experts in ["auto", *OF_TABLES]),
        *({"regularization": regularization} for regularization in ("auto", *REGULARIZERS)),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:The best of")
def test_mixtures_by_name(params):
    X, y = data()
    gate = {"complexity": "hard", "load": "noisy_top_k"}.get(params.get("regularization"))
    clf = make(**{"gate": gate or "softmax", **params}).fit(X, y)
    assert_alike(clf, through_skops(clf), X, y)


@pytest.mark.parametrize("kind", OTHERS)
def test_other_mixtures(kind):
    X, y = data()
    clf = OTHERS[kind]()
    assert_alike(clf, pickled(clf), X, clf.classes_[y])
    twin = through_skops(clf)
    assert np.array_equal(twin.predict_proba(X), clf.predict_proba(X))
    assert repr(twin.report_) == repr(clf.report_)


@pytest.mark.parametrize("kind", IMAGES)
def test_mixtures_of_images(kind):
    X, y = images()
    clf = make(**IMAGES[kind]).fit(X, y)
    assert_alike(clf, through_skops(clf), X, y)


def test_loaded_mixtures_can_be_pruned_again():
    X, _ = data()
    proba = [pruned(clf, X, n_experts=2).predict_proba(X) for clf in (merged(), pickled(merged()))]
    assert np.array_equal(*proba)


def test_net_of_a_table():
    through_skops(make(encoder="auto").fit(*data()).net_)


def test_default_mixture():
    X, y = data()
    clf = make(encoder="auto").fit(X, y)
    assert_alike(clf, through_skops(clf), X, y)


def test_table_of_categories():
    X, y = data()
    X = pd.DataFrame(X, columns=list("abcd"))
    X["c"] = np.where(X["c"] > 0, "high", None)
    X["d"] = X["d"].round().astype("category")
    X.loc[3, "a"] = np.nan
    clf = make(encoder="auto", categorical_features=["c", "d"]).fit(X, y)
    assert_alike(clf, through_skops(clf), X, y)


# What a file holds


def test_trusted_types_are_ours():
    for name in TRUSTED_TYPES:
        module, _, cls = name.rpartition(".")
        assert module.partition(".")[0] == "sklearn_moe"
        assert isinstance(getattr(importlib.import_module(module), cls), type)


def test_no_pickle_in_a_file(monkeypatch):
    X, y = data()
    clf = make(early_stopping=True).fit(X, y)
    dump = skops.io.dumps(clf)
    with zipfile.ZipFile(io.BytesIO(dump)) as file:
        for name in file.namelist():
            if name != "schema.json":
                np.load(io.BytesIO(file.read(name)), allow_pickle=False)

    def refuse(*args, **kwargs):
        raise AssertionError("loading a file must not unpickle anything")

    for name in ("load", "loads", "Unpickler", "_Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    twin = skops.io.loads(dump, trusted=TRUSTED_TYPES)
    assert np.array_equal(twin.predict_proba(X), clf.predict_proba(X))


def test_a_pickle_needs_no_more_than_a_skops_file():
    """No torch, no skorch, no function of ours: a file outlives changes of them."""
    modules = set()

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            modules.add(module.partition(".")[0])
            return super().find_class(module, name)

    clf = make(gate="top_k", early_stopping=True).fit(*data())
    Unpickler(io.BytesIO(pickle.dumps(clf))).load()
    assert modules == {"sklearn_moe", "numpy"}


def test_no_training_data_in_a_pickle():
    X = np.random.RandomState(0).randn(200, 64).astype(np.float32)
    clf = make(n_experts=2, max_iter=1, experts=MLPExperts((4,)), warm_start=True)
    clf.fit(X, np.arange(200) % 2, X_val=X + 100, y_val=np.arange(200) % 2)
    content = pickle.dumps(clf)
    assert len(content) < X.nbytes  # whatever its form
    assert X[3].tobytes() not in content and (X[3] + 100).tobytes() not in content


def test_a_pickle_within_a_training():
    X, y = data()
    contents = []
    clf = make(verbose=1, early_stopping=True, net_params={"callbacks": [Keep(contents)]})
    clf.fit(X, y)
    twin = pickle.loads(contents[-1])
    assert len(contents) == 2 and twin.history[-1]["epoch"] == 2
    assert [name for name, _ in twin.callbacks_] == [name for name, _ in clf.net_.callbacks_]


def test_a_stream_adds_no_more_than_its_figures():
    X, y = data()
    clf = make().partial_fit(X, y, classes=[0, 1, 2])
    sizes = []
    for _ in range(5):
        clf = pickled(clf.partial_fit(X, y))
        sizes.append(len(pickle.dumps(clf)))
    assert max(np.diff(sizes)) < 100


def test_loading_leaves_the_random_state_alone():
    clf = make(experts=linear).fit(*data())
    content, before = pickle.dumps(clf), torch.get_rng_state()
    twin = pickle.loads(content)
    assert torch.equal(before, torch.get_rng_state())
    assert not twin.module_.training


# Copies


@pytest.mark.parametrize("params", [{}, {"gate": "kmeans"}, {"experts": "mpo"}])
def test_copies_are_on_their_own(params):
    X, y = data()
    clf = make(**params).fit(X, y)
    proba = clf.predict_proba(X)
    for twin in (deepcopy(clf), pickled(clf), copy(clf.net_)):
        with torch.no_grad():
            for value in twin.module_.state_dict().values():
                if isinstance(value, torch.Tensor) and value.is_floating_point():
                    value.zero_()
        assert np.array_equal(clf.predict_proba(X), proba)
    assert_alike(clf, deepcopy(clf), X, y)


def test_a_deep_copy_keeps_what_a_module_has_beside_its_state():
    clf = make(experts=linear).fit(*data())
    clf.module_.experts.note = ["mine"]
    twin = deepcopy(clf)
    assert twin.module_.experts.note == ["mine"]
    parameters = [p for group in twin.net_.optimizer_.param_groups for p in group["params"]]
    assert all(a is b for a, b in zip(parameters, twin.module_.parameters(), strict=True))


def test_joblib_maps_arrays(tmp_path):
    X, y = data()
    clf = make().fit(X, y)
    joblib.dump(clf, tmp_path / "clf.joblib")
    assert_alike(clf, joblib.load(tmp_path / "clf.joblib", mmap_mode="r"), X, y)


def test_a_net_before_its_training():
    clf = make().fit(*data())
    net = type(clf.net_)(
        **architecture_of(clf, False),
        **settings_of(clf, is_flat=True, n_samples=30, n_classes=3),
        input_shape=(4,),
        n_classes=3,
        seed=0,
    )
    assert not pickled(net).initialized_ and pickled(net).seed == 0


def test_threads_load_at_once():
    X, y = data()
    clf = make(experts=linear).fit(X, y)
    content, found = pickle.dumps(clf), []

    def load():
        found.append(pickle.loads(content).predict_proba(X))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(np.array_equal(each, clf.predict_proba(X)) for each in found)


# A device that is not there


@pytest.mark.parametrize("device", ["cuda", "cuda:7"])
def test_loads_without_its_device(device, monkeypatch):
    X, y = data()
    clf = make().fit(X, y)
    clf.net_.device = device
    content = pickle.dumps(clf)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.warns(UserWarning, match=f"device '{device}'.* on 'cpu' now"):
        twin = pickle.loads(content)
    assert twin.device_ == "cpu"
    clf.net_.device = "cpu"
    assert_alike(clf, twin, X, y)


# What a user passes


def linear(input_shape, n_outputs):
    return nn.Linear(*input_shape, n_outputs)


def half(input_shape):
    return nn.Sequential(nn.Linear(*input_shape, 6), nn.BatchNorm1d(6), Half())


class Half(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 5, dtype=torch.bfloat16)

    def forward(self, x):
        return self.layer(x.bfloat16()).float()


class Counter(Callback):
    def initialize(self):
        self.epochs = 0
        return self

    def on_epoch_end(self, net, **kwargs):
        self.epochs += 1


class Keep(Callback):
    def __init__(self, contents):
        self.contents = contents

    def on_epoch_end(self, net, **kwargs):
        self.contents.append(pickle.dumps(net))


class PointGate(BaseEstimator):
    top_k = None

    def build(self, input_shape, n_experts, hidden_size, generator):
        return PointGateModule(torch.randn(n_experts, *input_shape, generator=generator))


class PointGateModule(GateModule):
    needs_hidden = False

    def __init__(self, points):
        super().__init__(temperature=1.0, top_k=None)
        self.points = nn.Parameter(points)

    def keep(self, experts):
        self.points = nn.Parameter(self.points.data[experts])

    def score(self, x, hidden):
        return -torch.cdist(x, self.points)


NET_PARAMS = [
    {"optimizer": torch.optim.SGD, "optimizer__momentum": 0.9},
    {"optimizer": torch.optim.AdamW},
    {"optimizer": torch.optim.LBFGS, "optimizer__max_iter": 2, "batch_size": 150},
    {"optimizer__param_groups": [("gate.*", {"lr": 0.2})]},
    {"callbacks__print_log": None, "callbacks": [("counter", Counter())]},
    {"criterion": nn.NLLLoss, "criterion__weight": torch.tensor([1.0, 2.0, 3.0])},
]


@pytest.mark.parametrize("net_params", NET_PARAMS)
def test_net_params(net_params):
    X, y = data()
    clf = make(net_params=net_params).fit(X, y)
    twin = pickled(clf)
    assert [name for name, _ in twin.net_.callbacks_] == [name for name, _ in clf.net_.callbacks_]
    assert_alike(clf, twin, X, y)


def test_callbacks_of_a_user_go_on():
    clf = make(net_params={"callbacks": [("counter", Counter())]}).fit(*data())
    twin = pickled(clf)
    counter = dict(twin.net_.callbacks_)["counter"]
    assert counter.epochs == 2 and twin.net_.callbacks[0][1] is counter
    assert twin.partial_fit(*data()).net_.callbacks[0][1].epochs == 3


@pytest.mark.parametrize(
    "params", [{"experts": linear}, {"gate": PointGate()}, {"experts": linear, "gate": "top_k"}]
)
def test_parts_of_a_user(params):
    X, y = data()
    clf = make(**params).fit(X, y)
    assert_alike(clf, through_skops(clf, [f"{__name__}.linear", f"{__name__}.PointGate"]), X, y)
    smaller = prune_experts(clf, method="similarity", n_experts=2, X=X)
    assert_alike(smaller, pickled(smaller), X, y)


def test_frozen_and_small_parameters():
    X, y = data()
    clf = make(encoder=half).fit(X, y)
    for parameter in clf.module_.encoder[0].parameters():
        parameter.requires_grad_(False)
    twin = pickled(clf)
    assert_alike(clf, twin, X, y)
    assert [p.requires_grad for p in twin.module_.encoder.parameters()][:3] == [False, False, True]
    assert twin.module_.encoder[2].layer.weight.dtype == torch.bfloat16
