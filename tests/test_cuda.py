"""The same on a GPU; skipped without one."""

import io
import pickle

import numpy as np
import pytest
import torch
from kinds import OF_TABLES
from torch import nn

from sklearn_moe import (
    GATES,
    AttentiveGate,
    ConvEncoder,
    FlipCrop,
    MLPExperts,
    MoEClassifier,
    compress_experts,
    decomposition_entropy,
    distill,
    prune_experts,
)
from sklearn_moe.training import steps
from sklearn_moe.training.net import MoENet

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("gate", GATES)
def test_fit_and_predict(gate, digits):
    X, y = digits
    params = {"gate": gate, "regularization": ["importance", "sample_similarity"]}
    accuracy = {}
    for device in ("cpu", "cuda"):
        clf = MoEClassifier(device=device, random_state=0, **params).fit(X[:1200], y[:1200])
        assert clf.device_ == device
        assert next(clf.module_.parameters()).device.type == device
        accuracy[device] = clf.score(X[1200:], y[1200:])
        np.testing.assert_allclose(clf.predict_proba(X).sum(axis=1), 1, atol=1e-6)
    assert accuracy["cuda"] == pytest.approx(accuracy["cpu"], abs=0.03)
    decomposition_entropy(clf, X, y)


def test_same_seed_same_result_and_untouched_global_state(digits):
    X, y = digits
    before = torch.cuda.get_rng_state(), torch.random.get_rng_state()
    clf = MoEClassifier(
        gate="noisy_top_k",
        experts=MLPExperts(dropout=0.2),
        device="cuda",
        max_iter=5,
        random_state=0,
    )
    one, other = (clf.fit(X, y).predict_proba(X) for _ in range(2))
    np.testing.assert_allclose(one, other, atol=1e-6)
    after = torch.cuda.get_rng_state(), torch.random.get_rng_state()
    assert all(map(torch.equal, before, after))


@pytest.mark.parametrize("encoder", [None, ConvEncoder((8,), normalization="batch")])
def test_images(encoder, digits):
    X, y = (digits[0].reshape(-1, 8, 8) * 255).astype(np.uint8), digits[1]
    clf = MoEClassifier(
        n_experts=3,
        encoder=encoder,
        gate=AttentiveGate(encoder=None if encoder else "conv"),
        augmentation=FlipCrop(flip=False, crop=1),
        device="cuda",
        max_iter=20,
        random_state=0,
    ).fit(X, y)
    assert clf.score(X, y) > 0.8
    proba = clf.predict_proba(X)
    student = distill(clf, X, y)
    assert student.device_ == "cuda" and student.score(X, y) > 0.8
    np.testing.assert_allclose(clf.to("cpu").predict_proba(X), proba, atol=1e-3)


def test_custom_experts_with_dropout(digits):
    X, y = digits

    def expert(input_shape, n_outputs):
        return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, n_outputs))

    before = torch.cuda.get_rng_state()
    clf = MoEClassifier(experts=expert, device="cuda", max_iter=10, random_state=0).fit(X, y)
    assert torch.equal(before, torch.cuda.get_rng_state())
    assert clf.score(X, y) > 0.5


def test_pickle_loads_without_cuda(digits, monkeypatch):
    X, y = digits
    clf = MoEClassifier(device="cuda", max_iter=10, random_state=0).fit(X, y)
    data = pickle.dumps(clf)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.warns(UserWarning, match="CPU|cpu"):
        twin = pickle.load(io.BytesIO(data))
    assert twin.device_ == "cpu"
    np.testing.assert_allclose(twin.predict_proba(X), clf.predict_proba(X), atol=1e-5)
    twin.set_params(device="cpu").partial_fit(X, y)


def test_to(digits):
    X, y = digits
    clf = MoEClassifier(device="cuda", max_iter=10, random_state=0).fit(X, y)
    on_cuda = clf.predict_proba(X)
    np.testing.assert_allclose(clf.to("cpu").predict_proba(X), on_cuda, atol=1e-5)
    clf.partial_fit(X, y).to("cuda").partial_fit(X, y)
    assert clf.device_ == "cuda"


def test_early_stopping(digits):
    X, y = digits
    clf = MoEClassifier(early_stopping=True, device="cuda", random_state=0).fit(X, y)
    assert len(clf.validation_scores_) == clf.n_iter_


@pytest.mark.parametrize("target", ["labels", "teacher"])
def test_distillation_and_tracking(target, digits):
    X, y = digits
    params = {"gate": "attentive", "regularization": "importance", "random_state": 0}
    teacher = MoEClassifier(device="cuda", track_decomposition=True, **params).fit(X, y)
    assert len(teacher.decomposition_curves_["usage_entropy"]) == teacher.n_iter_
    student = distill(teacher, X, y, target=target)
    assert student.device_ == "cuda"
    assert student.score(X, y) > teacher.score(X, y) - 0.05
    experts = teacher.module_.experts.state_dict()
    for name, value in student.module_.experts.state_dict().items():
        assert torch.equal(value, experts[name])


@pytest.mark.parametrize("experts", OF_TABLES)
def test_experts_and_their_regularizations(experts, digits):
    X, y = digits
    regularization = {"orthogonal": "orthogonality", "mlp": None, "mpo": None}.get(
        experts, experts
    )
    clf = MoEClassifier(
        gate="noisy_top_k",
        experts=experts,
        regularization=regularization,
        device="cuda",
        max_iter=15,
        random_state=0,
    ).fit(X[:1200], y[:1200])
    assert clf.score(X[1200:], y[1200:]) > 0.9
    on_gpu = clf.predict_proba(X)
    np.testing.assert_allclose(clf.to("cpu").predict_proba(X), on_gpu, atol=1e-4)


@pytest.mark.parametrize("gate", ["softmax", "top_k", "attentive"])
@pytest.mark.parametrize("method", ["similarity", "router_norm", "heavy_hitters"])
def test_pruning(gate, method, digits):
    X, y = digits
    clf = MoEClassifier(6, gate=gate, device="cuda", max_iter=10, random_state=0).fit(X, y)
    if (gate, method) == ("attentive", "router_norm"):
        return
    pruned = prune_experts(clf, method=method, n_experts=3, X=X, y=y)
    assert pruned.device_ == "cuda" and pruned.gate_proba(X).shape == (len(X), 3)
    tuned = prune_experts(clf, method=method, n_experts=3, X=X, y=y, fine_tune=True, max_iter=5)
    assert tuned.score(X, y) > 0.9


def test_compress(digits):
    X, y = digits
    clf = MoEClassifier(4, device="cuda", max_iter=10, random_state=0).fit(X, y)
    compressed = compress_experts(clf, X, y, bond=16, fine_tune=True, max_iter=5)
    assert compressed.device_ == "cuda" and compressed.score(X, y) > 0.9
    params = {"method": "similarity", "similarity": "weights", "n_experts": 2}
    assert prune_experts(clf, **params).predict_proba(X).shape == (len(X), 10)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"experts": MLPExperts((32, 16), dropout=0.1)},
        {"gate": "noisy_top_k", "regularization": ["importance", "load"]},
        {"gate": "attentive", "regularization": "sample_similarity", "track_decomposition": True},
    ],
    ids=str,
)
def test_graphs_change_nothing(params, digits, monkeypatch):
    X, y = digits
    clf = MoEClassifier(device="cuda", batch_size=100, max_iter=3, random_state=0, **params)
    proba = clf.fit(X, y).predict_proba(X)
    losses, curves = clf.loss_curve_, clf.decomposition_curves_
    monkeypatch.setattr(steps, "_can_be_captured", lambda *args: False)
    np.testing.assert_allclose(clf.fit(X, y).predict_proba(X), proba, atol=1e-6)
    assert clf.loss_curve_ == pytest.approx(losses)
    assert str(clf.decomposition_curves_)[:60] == str(curves)[:60]


def test_usual_trainings_run_as_graphs(digits, monkeypatch):
    X, y = digits
    replayed = []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(
        torch.cuda.CUDAGraph, "replay", lambda graph: (replayed.append(graph), replay(graph))
    )
    clf = MoEClassifier(device="cuda", batch_size=100, max_iter=3, random_state=0).fit(X, y)
    assert len(set(map(id, replayed))) == 2  # 1797 samples in batches of 99 and 100
    assert all(parameter.grad is None for parameter in clf.module_.parameters())
    replayed.clear()
    clf.set_params(regularization=lambda mixture, x, y, weight: mixture.log_proba.mean()).fit(X, y)
    assert not replayed


def test_training_set_that_does_not_fit(digits, monkeypatch):
    X, y = digits
    clf = MoEClassifier(device="cuda", max_iter=3, early_stopping=True, random_state=0)
    proba = clf.fit(X, y).predict_proba(X)
    monkeypatch.setattr(MoENet, "_fits", lambda *args: False)
    np.testing.assert_allclose(clf.fit(X, y).predict_proba(X), proba, atol=1e-6)
    assert clf.device_ == "cuda"


def test_no_step_waits_for_the_device(digits):
    X, y = digits
    clf = MoEClassifier(device="cuda", batch_size=100, max_iter=20, random_state=0)
    synchronised = {}
    for epochs in (5, 20):
        with torch.profiler.profile() as profiler:
            clf.set_params(max_iter=epochs).fit(X, y)
        counts = {event.key: event.count for event in profiler.key_averages()}
        synchronised[epochs] = counts.get("cudaStreamSynchronize", 0)
    # Each epoch reads its losses and sends its order of the rows; 18 steps add nothing.
    assert (synchronised[20] - synchronised[5]) / 15 <= 4
