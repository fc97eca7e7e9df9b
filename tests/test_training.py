from threading import Thread

import numpy as np
import pytest
import torch
from sklearn.base import clone
from skorch.callbacks import Callback
from skorch.dataset import Dataset

from sklearn_moe import MLPExperts, MoEClassifier
from sklearn_moe.mixture import MixtureOfExperts
from sklearn_moe.training.batches import BLOCKS_OF_WINDOW, ROWS_OF_BLOCK, TensorBatches
from sklearn_moe.training.callbacks import BatchCallback
from sklearn_moe.training.net import MoENet


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


def test_the_net_is_a_skorch_net(iris):
    X, y = iris
    clf = MoEClassifier(n_experts=2, max_iter=5, random_state=0).fit(X, y)
    np.testing.assert_allclose(clf.net_.predict_proba(X), clf.predict_proba(X), rtol=1e-6)
    assert np.array_equal(clf.net_.predict(X), clf.predict(X))
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


class Predicting(Callback):
    """Predict amid a training, from another thread, as a server may."""

    def __init__(self, X):
        self.X = X

    def predict(self, net, **kwargs):
        for predict in (
            lambda: net.evaluate(self.X, MixtureOfExperts.predict_proba),
            lambda: net.predict_proba(self.X),
        ):
            thread = Thread(target=predict)
            thread.start()
            thread.join()

    on_batch_begin = on_batch_end = on_epoch_begin = on_epoch_end = predict


class PredictingInOurEpochs(Predicting, BatchCallback):
    pass


@pytest.mark.parametrize("callback", [Predicting, PredictingInOurEpochs])
def test_predictions_do_not_disturb_a_training(callback, iris):
    X, y = iris
    clf = MoEClassifier(
        encoder=None, experts=MLPExperts(dropout=0.5), max_iter=2, batch_size=50, random_state=0
    )
    expected = clf.fit(X, y).predict_proba(X)
    clf.set_params(net_params={"callbacks": [callback(X.astype(np.float32))]}).fit(X, y)
    np.testing.assert_allclose(clf.predict_proba(X), expected, atol=1e-6)


def test_predictions_amid_a_training_are_predictions(iris):
    X, y = iris
    X = X.astype(np.float32)
    seen = []

    class Both(BatchCallback):
        def on_batch_end(self, net, training, **kwargs):
            assert net.module_.training
            seen.append([net.evaluate(X, MixtureOfExperts.predict_proba) for _ in range(2)])

        def on_epoch_end(self, net, **kwargs):
            assert not net.module_.training

    clf = MoEClassifier(encoder=None, experts=MLPExperts(dropout=0.5), max_iter=2)
    clf.set_params(net_params={"callbacks": [Both]}).fit(X, y)
    assert all(np.array_equal(*pair) for pair in seen)
    assert np.array_equal(seen[-1][0], clf.predict_proba(X))
    assert not any(part.training for part in clf.module_.modules())


def test_a_training_leaves_nothing_on_the_net(iris):
    X, y = iris

    class Look(Callback):
        def on_epoch_end(self, net, **kwargs):
            during.append(net.session_)

    during = []
    clf = MoEClassifier(n_experts=2, max_iter=2, random_state=0)
    before = set(vars(clf.fit(X, y).net_))
    clf.set_params(net_params={"callbacks": [Look()]}, early_stopping=True, verbose=1)
    clf.fit(X, y)
    assert set(vars(clf.net_)) - before <= {"callbacks"} and clf.net_.session_ is None
    assert during[0] is during[1] is not None
