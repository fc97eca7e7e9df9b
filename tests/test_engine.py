from threading import Event, Thread, get_ident

import numpy as np
import pytest
import torch
from sklearn.base import clone
from skorch.callbacks import Callback
from skorch.dataset import Dataset

from sklearn_moe import MLPExperts, MoEClassifier
from sklearn_moe.engine import (
    BLOCKS_OF_WINDOW,
    ROWS_OF_BLOCK,
    MoENet,
    TensorBatches,
    intra_op_threads,
)


@pytest.mark.parametrize(
    "n_samples, batch_size, sizes",
    [
        (10, 4, [3, 3, 4]),
        (257, 256, [128, 129]),
        (8, 4, [4, 4]),
        (3, 8, [3]),
        (1, 1, [1]),
    ],
)
@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_are_as_equal_as_possible(n_samples, batch_size, sizes, shuffle):
    X, y = torch.arange(n_samples).float().unsqueeze(1), torch.arange(n_samples)
    batches = TensorBatches(Dataset({"x": X}, y), batch_size)
    if shuffle:
        batches.generator = torch.Generator().manual_seed(0)
    dealt = list(batches)
    assert sorted(len(y) for _, y in dealt) == sizes
    assert len(batches) == len(sizes)
    assert sorted(torch.cat([y for _, y in dealt]).tolist()) == list(range(n_samples))
    for inputs, y in dealt:
        assert torch.equal(inputs["x"][:, 0], y.float())


def test_batches_are_shuffled_anew_in_each_epoch():
    batches = TensorBatches(Dataset(torch.arange(100), torch.arange(100)), 10)
    batches.generator = torch.Generator().manual_seed(0)
    first, second = (torch.cat([y for _, y in batches]).tolist() for _ in range(2))
    assert first != second != list(range(100))


def test_threads_are_restored():
    """In a new thread, because torch keeps a part of the count for each thread."""
    seen = []

    def use():
        before = torch.get_num_threads()
        with intra_op_threads(3):
            seen.append(torch.get_num_threads())
            with intra_op_threads(1):
                seen.append(torch.get_num_threads())
        seen.append(torch.get_num_threads() == before)

    thread = Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [3, 1, True]


def test_threads_are_restored_where_threads_overlap():
    before = torch.get_num_threads()
    entered, leave, seen = Event(), Event(), []

    def use():
        with intra_op_threads(before + 1):
            entered.set()
            leave.wait(timeout=60)
            seen.append(torch.get_num_threads())
        seen.append(torch.get_num_threads())

    thread = Thread(target=use)
    with intra_op_threads(before + 1):
        thread.start()
        assert entered.wait(timeout=60)
    assert torch.get_num_threads() == before
    leave.set()
    thread.join()
    assert seen == [before + 1, before]
    assert torch.get_num_threads() == before
    new = Thread(target=lambda: seen.append(torch.get_num_threads()))
    new.start()
    new.join()
    assert seen[-1] == before


def test_threads_are_restored_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), intra_op_threads(before + 1):
        raise RuntimeError
    assert torch.get_num_threads() == before


def test_threads_are_set_for_training_and_prediction(iris):
    X, y = iris
    seen = []

    class Spy(torch.nn.Linear):
        def __init__(self, input_shape, n_outputs):
            super().__init__(input_shape[0], n_outputs)

        def forward(self, x):
            seen.append(torch.get_num_threads())
            return super().forward(x)

    clf = MoEClassifier(n_experts=2, experts=Spy, max_iter=2, n_threads=3).fit(X, y)
    assert set(seen[2:]) == {3}  # after the two probes of the build
    seen.clear()
    clf.set_params(n_threads="auto").set_params(warm_start=True).fit(X, y).predict(X)
    assert set(seen) == {1}


def test_large_work_takes_two_threads():
    X, y = np.random.RandomState(0).normal(size=(64, 64)), np.arange(64) % 2
    net = MoEClassifier(n_experts=2, max_iter=1, experts=MLPExperts((512, 512))).fit(X, y).net_
    with net.threads(1024):
        assert torch.get_num_threads() == 2
    with net.threads(1):
        assert torch.get_num_threads() == 1


def test_experts_that_do_not_run_are_no_work():
    X, y = np.random.RandomState(0).normal(size=(64, 64)), np.arange(64) % 2
    clf = MoEClassifier(n_experts=16, gate="hard", max_iter=1, experts=MLPExperts((512,)))
    net = clf.fit(X, y).net_
    for predicting, expected in ((False, 2), (True, 1)):
        with net.threads(1024, predicting=predicting):
            assert torch.get_num_threads() == expected


def test_the_net_is_a_skorch_net(iris):
    X, y = iris
    clf = MoEClassifier(n_experts=2, max_iter=5, random_state=0).fit(X, y)
    encoded = clf.encoder_.transform(X)
    np.testing.assert_allclose(clf.net_.predict_proba(encoded), clf.predict_proba(X), rtol=1e-6)
    assert np.array_equal(clf.net_.predict(encoded), clf.predict(X))
    assert clf.net_.history[:, "train_loss"] == clf.loss_curve_


@pytest.mark.parametrize("n_samples", [3, 1024, 200_000])
def test_windows_hold_neighbours(n_samples):
    dataset = Dataset(torch.arange(n_samples), torch.arange(n_samples))
    batches = TensorBatches(dataset, 500, torch.Generator().manual_seed(0), in_windows=True)
    first, second = (torch.cat([y for _, y in batches]) for _ in range(2))
    assert torch.equal(first.sort().values, torch.arange(n_samples))
    assert n_samples == 3 or not torch.equal(first, second)
    window = first[: ROWS_OF_BLOCK * BLOCKS_OF_WINDOW]
    assert len(torch.unique(window // ROWS_OF_BLOCK)) <= BLOCKS_OF_WINDOW + 1


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_memory_map_is_read_in_place(mode, digits, tmp_path, monkeypatch):
    X, y = digits
    np.save(tmp_path / "X.npy", X.astype(np.float32))
    mapped = np.load(tmp_path / "X.npy", mmap_mode=mode)
    seen = []
    monkeypatch.setattr(
        MoENet,
        "get_iterator",
        lambda net, dataset, training=False: (
            seen.append(dataset.X["x"].data_ptr())
            or super(MoENet, net).get_iterator(dataset, training=training)
        ),
    )
    clf = MoEClassifier(encoder=None, max_iter=10, random_state=0).fit(mapped, y)
    assert set(seen) == {mapped.ctypes.data}
    assert clf.score(mapped, y) > 0.9
    np.testing.assert_allclose(clf.predict_proba(mapped), clf.predict_proba(X), rtol=1e-6)
    in_memory = clone(clf).fit(X, y)  # fits into one window
    assert np.array_equal(in_memory.predict_proba(X), clf.predict_proba(X))
    assert np.array_equal(np.load(tmp_path / "X.npy"), X.astype(np.float32))
    clf.partial_fit(mapped[:100], y[:100])


def test_read_only_arrays_are_not_copied_and_do_not_warn(digits, recwarn):
    X = digits[0].astype(np.float32)
    X.flags.writeable = False
    before = X.copy()
    clf = MoEClassifier(max_iter=2, random_state=0).fit(X, digits[1])
    clf.predict(X)
    assert np.array_equal(X, before)
    assert not [warning for warning in recwarn if "writ" in str(warning.message)]


def test_predictions_do_not_depend_on_chunks_and_threads(digits, monkeypatch):
    X, y = digits
    clf = MoEClassifier(max_iter=2, random_state=0).fit(X, y)
    at_once = clf.predict_proba(X), clf.gate_proba(X), clf.apply(X)
    threads = []
    monkeypatch.setattr(
        MoENet,
        "_run",
        lambda net, function, x: threads.append(get_ident()) or function(net.module_, x),
    )
    monkeypatch.setattr("sklearn_moe.engine.CHUNK_SIZE", 100)
    for whole, method in zip(at_once, (clf.predict_proba, clf.gate_proba, clf.apply), strict=True):
        np.testing.assert_allclose(method(X), whole, atol=1e-6)
    assert get_ident() not in threads
    threads.clear()
    clf.net_.n_threads = 1
    np.testing.assert_allclose(clf.predict_proba(X), at_once[0], atol=1e-6)
    assert set(threads) == {get_ident()}


def test_history_has_batches_only_for_those_who_listen(digits):
    X, y = digits

    class Listener(Callback):
        n_batches = 0

        def on_batch_end(self, net, batch, training, loss, y_pred, gate_proba, **kwargs):
            assert net.history[-1, "batches", -1, "train_loss"] == loss.item()
            assert y_pred.shape == (len(batch[1]), 10)
            torch.testing.assert_close(y_pred.sum(dim=1), torch.ones(len(y_pred)))
            Listener.n_batches += 1

    clf = MoEClassifier(batch_size=100, max_iter=2, random_state=0)
    proba = clf.fit(X, y).predict_proba(X)
    curve, counts = clf.loss_curve_, clf.net_.history[:, "train_batch_count"]
    clf.set_params(net_params={"callbacks": [Listener]}).fit(X, y)
    assert Listener.n_batches == 2 * 18 and counts == [18, 18]
    assert np.array_equal(clf.predict_proba(X), proba)  # whoever listens changes nothing
    assert clf.loss_curve_ == pytest.approx(curve)


def test_optimizers_that_call_the_loss_several_times(iris):
    X, y = iris
    net_params = {"optimizer": torch.optim.LBFGS, "optimizer__max_iter": 5, "lr": 0.1}
    clf = MoEClassifier(net_params=net_params, batch_size=150, max_iter=10, random_state=0)
    assert clf.fit(X, y).score(X, y) > 0.9
