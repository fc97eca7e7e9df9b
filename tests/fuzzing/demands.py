"""What the fuzzer demands of each call, and of each fitted mixture."""

from __future__ import annotations

import os
import pickle
import random
import re
import signal
import traceback
import warnings
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from sklearn.exceptions import DataConversionWarning

import sklearn_moe
from fuzzing.params import PARAMS

OURS = os.path.dirname(sklearn_moe.__file__)

# Where scikit-learn checks parameters and data.
OF_SCIKIT_LEARN = re.compile(
    r"sklearn[/\\](base|utils[/\\](validation|_param_validation|multiclass|_array_api|_tags))\.py$"
)

# A message must name what is at fault: one of these.
NAMED = re.compile(
    r"\bX\b|\by\b|\b(array|sample|feature|label|class|classes|image|parameter|fitted)"
    rf"|{'|'.join(PARAMS)}"
)

OF_FEATURE_NAMES = re.compile(r"X (has|does not have valid) feature names, but")


def is_of_our_words(frame, keyword):
    """Whether a frame of a traceback is one of ours, or of scikit-learn's checks, that speaks."""
    is_ours = frame.filename.startswith(OURS) or OF_SCIKIT_LEARN.search(frame.filename)
    return bool(is_ours) and keyword in frame.line


def check_refusal(error):
    """An error comes from a ``raise`` of ours, and names what is at fault."""
    innermost = traceback.extract_tb(error.__traceback__)[-1]
    told = "".join(traceback.format_exception(error))
    assert is_of_our_words(innermost, "raise"), f"An error that is not of our words:\n{told}"
    assert NAMED.search(str(error)), f"An error that does not name what is at fault: {error}"


def check_warning(message, category, filename, lineno, file=None, line=None):
    """A warning is one of ours, or one of scikit-learn's about names of features or shapes."""
    if category is DataConversionWarning or OF_FEATURE_NAMES.match(str(message)):
        return
    stack = [
        frame
        for frame in traceback.extract_stack()[:-1]
        if not frame.filename.endswith(("warnings.py", "_py_warnings.py"))
    ]
    is_ours = category is UserWarning and is_of_our_words(stack[-1], "warnings.warn(")
    told = "".join(traceback.format_list(stack[-6:]))
    assert is_ours, f"A warning that is not ours, {category.__name__}: {message}\n{told}"


def digest(value):
    """Return the values of arguments as bytes."""
    if isinstance(value, dict):
        value = {name: digest(each) for name, each in value.items()}
    if isinstance(value, tuple):
        value = tuple(map(digest, value))
    if isinstance(value, (pd.DataFrame, pd.Series)):  # of which pickles hold more than values
        types = str(value.dtype) if isinstance(value, pd.Series) else value.dtypes.astype(str)
        axes = [(str(axis.dtype), axis.names, list(axis)) for axis in value.axes]
        value = axes, types, value.astype(object).to_numpy()
    try:
        return pickle.dumps(value)
    except Exception:  # such as of generators
        return repr(value)


def global_state():
    return {
        "random": random.getstate(),
        "numpy": pickle.dumps(np.random.get_state()),  # noqa: NPY002
        "torch": torch.get_rng_state().numpy().tobytes(),
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "determinism": torch.are_deterministic_algorithms_enabled(),
        "errors": np.geterr(),
        # torch itself sets some, in its first training
        "environment": {k: v for k, v in os.environ.items() if not k.startswith("TORCH")},
        "SIGINT": signal.getsignal(signal.SIGINT),
    }


@contextmanager
def supervised(data):
    """No call warns of what is not ours, changes its data, or leaves a global setting changed."""
    before, state = digest(data), global_state()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = check_warning
        yield
    after = global_state()
    changed = [name for name in state if state[name] != after[name]]
    assert not changed, f"It changed what is global: {changed}"
    assert digest(data) == before, "It changed its data"


@contextmanager
def in_time(seconds):
    """No hang, where there are alarms (not on Windows)."""

    def stop(*args):
        raise AssertionError(f"It takes more than {seconds} seconds")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check_answers(clf, X, n):
    """All probabilities are finite and sum to 1, and all methods agree."""
    n_classes, n_experts = len(clf.classes_), clf.net_.n_experts
    proba = clf.predict_proba(X)
    assert proba.shape == (n, n_classes)
    assert proba.dtype in (np.float32, np.float64)
    _check_distribution(proba)
    predicted = clf.predict(X)
    assert predicted.dtype == clf.classes_.dtype
    assert np.array_equal(predicted, clf.classes_[proba.argmax(axis=1)])
    np.testing.assert_allclose(np.exp(clf.predict_log_proba(X)), proba, atol=1e-5)
    gate_proba, expert_proba = clf.gate_proba(X), clf.expert_proba(X)
    assert gate_proba.shape == (n, n_experts)
    assert expert_proba.shape == (n, n_experts, n_classes)
    _check_distribution(gate_proba)
    _check_distribution(expert_proba)
    if clf.net_.mixing == "probability":
        mixed = np.einsum("ne,nec->nc", gate_proba, expert_proba)
        calibrated = mixed.astype(np.float64) ** (1 / clf.temperature_)
        calibrated /= calibrated.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(calibrated, proba, atol=1e-5 * max(1, 1 / clf.temperature_))
    chosen = clf.apply(X)
    assert np.array_equal(chosen, gate_proba.argmax(axis=1))
    of_chosen = clf.expert_proba(X, chosen_only=True)
    np.testing.assert_allclose(of_chosen, expert_proba[np.arange(n), chosen], atol=1e-5)
    return proba


def _check_distribution(proba):
    tolerance = 1e-12 if proba.dtype == np.float64 else 1e-5
    assert np.isfinite(proba).all() and proba.min() >= 0
    np.testing.assert_allclose(proba.sum(axis=-1), 1, atol=tolerance)


def check_attributes(clf):
    """What a training records is finite, and as long as it lasted."""
    assert len(clf.loss_curve_) == clf.n_iter_ and np.isfinite(clf.loss_curve_).all()
    assert len(clf.classes_) > 1
    assert clf.expert_usage_.shape == (clf.net_.n_experts,)
    np.testing.assert_allclose(clf.expert_usage_.sum(), 1, atol=1e-6)
    assert np.isfinite(clf.validation_loss_curve_ or []).all()
    assert clf.best_validation_score_ is None or 0 <= clf.best_validation_score_ <= 1
    for curve in (clf.decomposition_curves_ or {}).values():
        assert np.isfinite(curve).all()


def check_same(one, other):
    """Two arrays of probabilities are of equal values, up to the precision of either."""
    if np.float32 in (one.dtype, other.dtype):
        np.testing.assert_allclose(one, other, atol=1e-6)
    else:
        np.testing.assert_array_equal(one, other)
