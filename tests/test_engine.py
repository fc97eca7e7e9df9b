from threading import Event, Thread

import numpy as np
import pytest
import torch
from skorch.dataset import Dataset

from sklearn_moe import MLPExperts, MoEClassifier
from sklearn_moe.engine import TensorBatches, intra_op_threads


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
    X = X.astype(np.float32)
    assert np.array_equal(clf.net_.predict_proba(X), clf.predict_proba(X))
    assert np.array_equal(clf.net_.predict(X), clf.predict(X))
    assert clf.net_.history[:, "train_loss"] == clf.loss_curve_
