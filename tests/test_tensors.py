"""Tensors of torch as X and y, and the devices that a mixture may be on."""

import os
import subprocess
import sys

import numpy as np
import pytest
import scipy
import torch
from sklearn.utils.fixes import parse_version

from sklearn_moe import MoEClassifier
from sklearn_moe.checks import check_device
from sklearn_moe.training.state import device_here

METHODS = ("predict", "predict_proba", "predict_log_proba", "gate_proba", "expert_proba", "apply")

DISPATCH = """if True:
    import numpy as np, sklearn, torch
    from sklearn.datasets import load_digits
    from sklearn_moe import MoEClassifier
    X, y = load_digits(n_class=3, return_X_y=True)
    images = X.reshape(-1, 8, 8).astype(np.float32)
    for X, params in ((X, {}), (X.astype(np.float32), {"encoder": None}), (images, {})):
        tensors = torch.tensor(X, requires_grad=True), torch.tensor(y)
        val = {"X_val": X[:20], "y_val": y[:20]}
        val_tensors = {name: torch.tensor(value) for name, value in val.items()}
        clf = MoEClassifier(2, max_iter=2, random_state=0, **params)
        expected = clf.fit(X, y, np.ones(len(y)), **val)
        expected = {name: getattr(clf, name)(X) for name in METHODS}
        log_likelihood, score = clf.expert_log_likelihood(X, y), clf.score(X, y)
        with sklearn.config_context(array_api_dispatch=True):
            clf.fit(*tensors, torch.ones(len(y)), **val_tensors)
            for name, values in expected.items():
                got = getattr(clf, name)(tensors[0])
                assert isinstance(got, torch.Tensor) and got.device == tensors[0].device
                assert np.array_equal(got.numpy(), values), name
                assert isinstance(getattr(clf, name)(X), np.ndarray)
            got = clf.expert_log_likelihood(*tensors)
            assert np.array_equal(got.numpy(), log_likelihood)
            assert abs(clf.score(*tensors) - score) < 1e-6  # computed in single precision
            clf.partial_fit(*tensors)
            words = np.array(["a", "b", "c"])[y]  # tensors hold no text
            assert set(clf.fit(tensors[0], words).predict(tensors[0])) <= {"a", "b", "c"}
"""


@pytest.mark.smoke
@pytest.mark.skipif(parse_version(scipy.__version__) < parse_version("1.14"), reason="no dispatch")
def test_tensors_in_and_out_with_dispatch():
    code = DISPATCH.replace("METHODS", repr(METHODS))
    environment = {**os.environ, "SCIPY_ARRAY_API": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr.decode()


def test_tensors_without_dispatch(fitted_table, table):
    clf, X = fitted_table, table[0]
    proba = clf.predict_proba(torch.tensor(X))
    assert isinstance(proba, np.ndarray) and np.array_equal(proba, clf.predict_proba(X))
    for method in (clf.predict, lambda X: clf.__sklearn_clone__().fit(X, table[1])):
        with pytest.raises(TypeError, match=r"device 'meta'.*tensor.cpu\(\).*array_api_dispatch"):
            method(torch.tensor(X, device="meta"))


def test_devices_that_are_not_there(table, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for device, message in (
        ("mps", "torch finds no such"),
        ("tpu", "must be 'auto'"),
        ("xpu", ""),
    ):
        with pytest.raises(ValueError, match=f"device={device!r}.*{message}"):
            MoEClassifier(device=device).fit(*table)
    with pytest.warns(UserWarning, match=r"was on the device 'mps'.*on 'cpu' now|on 'cuda' now"):
        assert device_here("mps") != "mps"


def test_mps_is_for_images(table, monkeypatch, fitted_table):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert check_device("mps", 2) == device_here("mps") == "mps"
    with pytest.raises(ValueError, match=r"device='mps' is for images.*device='cpu'"):
        MoEClassifier(device="mps").fit(*table)
    with pytest.raises(ValueError, match="device='mps' is for images"):
        fitted_table.to("mps")
    assert fitted_table.device_ == "cpu"
