import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from threading import Event, Thread, get_ident

import numpy as np
import pytest
import torch
from threadpoolctl import ThreadpoolController, threadpool_limits

from sklearn_moe import MLPExperts, MoEClassifier
from sklearn_moe.training import prediction
from sklearn_moe.training.prediction import threads_for
from sklearn_moe.training.threads import _openmp, intra_op_threads


@pytest.fixture
def several_threads(monkeypatch):
    """Give torch four threads in this thread, whatever the tests run with."""
    monkeypatch.setattr("sklearn_moe.training.threads._n_processors", lambda: 4)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def run(code, **environment):
    """Run Python code in a process of its own and return what it says."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        timeout=300,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


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
            seen.append((self.training, torch.get_num_threads()))
            return super().forward(x)

    clf = MoEClassifier(n_experts=2, experts=Spy, max_iter=2, n_threads=3).fit(X, y)
    assert {threads for is_training, threads in seen if is_training} == {3}
    seen.clear()
    clf.predict(X)
    assert set(seen) == {(False, 3)}
    seen.clear()
    clf.set_params(n_threads="auto").set_params(warm_start=True).fit(X, y).predict(X)
    assert set(seen) == {(True, 1), (False, 1)}


def test_large_work_takes_two_threads(several_threads):
    X, y = np.random.RandomState(0).normal(size=(64, 64)), np.arange(64) % 2
    net = MoEClassifier(n_experts=2, max_iter=1, experts=MLPExperts((512, 512))).fit(X, y).net_
    with threads_for(net, 1024):
        assert torch.get_num_threads() == 2
    with threads_for(net, 1):
        assert torch.get_num_threads() == 1
        with threads_for(net, 1024):  # a callback that predicts, say
            assert torch.get_num_threads() == 2


def test_experts_that_do_not_run_are_no_work(several_threads):
    X, y = np.random.RandomState(0).normal(size=(64, 64)), np.arange(64) % 2
    clf = MoEClassifier(n_experts=16, gate="hard", max_iter=1, experts=MLPExperts((512,)))
    net = clf.fit(X, y).net_
    for predicting, expected in ((False, 2), (True, 1)):
        with threads_for(net, 1024, predicting=predicting):
            assert torch.get_num_threads() == expected


def test_predictions_do_not_depend_on_chunks_and_threads(digits, several_threads, monkeypatch):
    X, y = digits
    clf = MoEClassifier(max_iter=2, random_state=0).fit(X, y)
    at_once = clf.predict_proba(X), clf.gate_proba(X), clf.apply(X)
    threads = []
    monkeypatch.setattr(
        prediction,
        "run_padded",
        lambda net, module, function, x: threads.append(get_ident()) or function(module, x),
    )
    monkeypatch.setattr(prediction, "CHUNK_SIZE", 100)
    clf = deepcopy(clf)  # which has not looked at its work yet
    for whole, method in zip(at_once, (clf.predict_proba, clf.gate_proba, clf.apply), strict=True):
        np.testing.assert_allclose(method(X), whole, atol=1e-6)
    assert get_ident() not in threads
    threads.clear()
    clf.net_.n_threads = 1
    np.testing.assert_allclose(clf.predict_proba(X), at_once[0], atol=1e-6)
    assert set(threads) == {get_ident()}


def test_loaded_libraries_are_looked_through_once(iris, monkeypatch):
    looked, look = [], ThreadpoolController.__init__
    monkeypatch.setattr(
        ThreadpoolController, "__init__", lambda self: looked.append(self) or look(self)
    )
    _openmp.cache_clear()
    clf = MoEClassifier(n_experts=2, max_iter=1, random_state=0)
    # While another thread has a number of its own, the number of a new thread is not plain to see.
    with intra_op_threads(2), ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            pool.submit(clf.fit, *iris).result()
        list(pool.map(clf.predict, [iris[0][:1]] * 50))
    assert len(looked) == 1


@pytest.mark.parametrize("limit", ["torch", "threadpoolctl", "processors"])
def test_limits_of_others_are_kept(limit, digits, several_threads, monkeypatch):
    X, y = digits
    experts = MLPExperts((512, 512))
    clf = MoEClassifier(n_experts=2, experts=experts, max_iter=1, random_state=0).fit(
        X[:64], y[:64]
    )
    seen = []
    monkeypatch.setattr(prediction, "CHUNK_SIZE", 256)
    clf = deepcopy(clf)  # which has not looked at its work yet
    monkeypatch.setattr(
        prediction,
        "run_padded",
        lambda net, module, function, x: (
            seen.append((get_ident(), torch.get_num_threads())) or function(module, x)
        ),
    )
    if limit == "processors":
        monkeypatch.setattr("sklearn_moe.training.threads._n_processors", lambda: 1)
    elif limit == "torch":
        torch.set_num_threads(1)
    with threadpool_limits(1 if limit == "threadpoolctl" else None):
        before = torch.get_num_threads()
        with threads_for(clf.net_, 1024):
            assert torch.get_num_threads() == 1
        clf.predict(X)
        assert torch.get_num_threads() == before
    assert set(seen) == {(get_ident(), 1)}
    with intra_op_threads(3):  # but a number of the user's own is taken as it is
        assert torch.get_num_threads() == 3


def test_a_new_thread_has_the_limit_of_the_process(several_threads):
    """Also where another thread sets a lower number at the moment."""
    seen = []

    def use():
        with intra_op_threads(2, within_limits=True):
            seen.append(torch.get_num_threads())
        seen.append(torch.get_num_threads())

    with intra_op_threads(3):
        thread = Thread(target=use)
        thread.start()
        thread.join()
    assert seen == [2, 4]


def test_a_new_process_is_left_as_it_is_and_forks():
    """In a notebook without ipywidgets, with one thread, as workers of joblib have it."""
    said = run(
        """
import multiprocessing
import sys
from types import ModuleType, SimpleNamespace

sys.modules["ipykernel.zmqshell"] = ModuleType("ipykernel.zmqshell")
sys.modules["IPython"] = SimpleNamespace(get_ipython=lambda: None)
sys.modules["ipywidgets"] = None

import numpy as np
import torch
from threadpoolctl import threadpool_info

from sklearn_moe import MoEClassifier, tune
from sklearn_moe.training.prediction import threads_for
from sklearn_moe.training.threads import intra_op_threads

X, y = [[0.0], [1.0]] * 9, [0, 1] * 9
clf = MoEClassifier(n_experts=2, max_iter=1).fit(X, y)
tune(clf, X, y, n_trials=1, cv=2, pruner=None, refit=False, verbose=0)
with threads_for(clf.net_, 10**9):
    assert torch.get_num_threads() == 1
assert torch.get_num_threads() == 1
assert all(each["num_threads"] == 1 for each in threadpool_info() if "torch" in each["filepath"])

# A forked child predicts and fits.
torch.set_num_threads(2)
X = np.random.default_rng(0).normal(size=(64, 784))
y = np.arange(64) % 2
clf = MoEClassifier(n_experts=2, max_iter=1, n_threads=2, random_state=0).fit(X, y)

def work():
    clf.predict(X)
    clf.fit(X, y)
    torch.ones(1_000_000).exp()  # nor does the rest of torch wait

fork = multiprocessing.get_context("fork")
children = [fork.Process(target=work), fork.Process(target=work)]
with intra_op_threads(2):  # as in a training
    children[0].start()
children[1].start()
for child in children:
    child.join(30)
    child.kill()
codes = [child.exitcode for child in children]
assert codes == [0, 0], codes
""",
        OMP_NUM_THREADS="1",
        OMP_WAIT_POLICY="passive",
    )
    assert said == ""


@pytest.mark.parametrize("gate", ["softmax", "top_k"])
def test_wide_tables_are_predicted_in_small_chunks(gate, monkeypatch):
    X = np.array(list("abcdefghij") * 20, dtype=object)[:, np.newaxis]
    clf = MoEClassifier(3, gate=gate, experts="linear", max_iter=1, n_init=1, random_state=0)
    clf.fit(X, np.arange(200) % 3 > 0)
    expected = clf.predict_proba(X)
    monkeypatch.setattr(prediction, "CHUNK_OF_TABLE", 320)
    clf = deepcopy(clf)
    clf.net_._work = None
    assert clf.net_.work.chunk_size == 32
    assert np.array_equal(clf.predict_proba(X), expected)
