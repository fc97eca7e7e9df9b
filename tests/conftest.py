import gc
import os
import signal

# What is imported and collected stays. Looking through it for garbage, again and again, takes as
# long as all imports do.
gc.disable()

# Two workers of pytest share two cores, and so do the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Threads that wait for others must not keep a core busy.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_digits, load_iris
from sklearn.preprocessing import StandardScaler

from sklearn_moe import MixtureOutput, MoEClassifier
from sklearn_moe.experts import strong
from sklearn_moe.recipes import RECIPES
from sklearn_moe.training.net import MoENet


def pytest_addoption(parser):
    group = parser.getgroup("fuzzing", "tests/test_fuzz.py")
    group.addoption("--fuzz-cases", type=int, default=150, help="how many random cases to draw")
    group.addoption("--fuzz-seed", type=int, default=0, help="the seed of the random cases")
    group.addoption("--fuzz-case", type=int, help="the number of a case to repeat alone")


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def iris():
    X, y = load_iris(return_X_y=True)
    return StandardScaler().fit_transform(X), y


@pytest.fixture(scope="session")
def digits():
    X, y = load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(X))
    return X[order] / 16, y[order]


@pytest.fixture(scope="session")
def table():
    """Continuous columns with enough rows for hat functions, and a target of three classes."""
    rng = np.random.RandomState(0)
    X = rng.normal(size=(600, 6)) * [1, 1, 1, 10, 0.1, 1] + [0, 0, 0, 100, 0, -5]
    score = np.sin(2 * X[:, 0]) + np.where(X[:, 1] > 0, X[:, 2], (X[:, 3] - 100) / 10)
    y = np.digitize(score + 0.1 * rng.normal(size=600), [-0.6, 0.6])
    return X, y


@pytest.fixture(scope="module")
def small_strong_experts():
    """Make the four classifiers of ``experts="strong"`` small."""
    make = strong._experts_for

    def small_experts_for(is_categorical):
        experts = dict(make(is_categorical))
        experts["boosting"][-1].set_params(max_iter=5)
        experts["forest"][-1].set_params(n_estimators=5)
        experts["mixture"].set_params(n_experts=2, max_iter=3)
        return list(experts.items())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strong, "_experts_for", small_experts_for)
        yield


@pytest.fixture(scope="session")
def mixed_table():
    """A frame of all kinds of columns with missing values, and a target that needs most."""
    rng = np.random.RandomState(0)
    n = 600
    colour, town = rng.choice(["blue", "green", "red"], n), rng.choice(["Bonn", "Trier", "Ulm"], n)
    size, age = rng.normal(1e3, 10, n), rng.exponential(5, n)
    rooms, new = rng.randint(1, 8, n), rng.uniform(size=n) < 0.5
    X = pd.DataFrame(
        {
            "size": size,
            "age": age.astype(np.float32),
            "rooms": rooms,
            "new": new,
            "town": town,
            "colour": pd.Categorical(colour),
        }
    )
    for column in ("size", "town", "colour"):
        X.loc[rng.uniform(size=n) < 0.05, column] = None
    y = np.where((size > 1e3) ^ (colour == "red"), "yes", "no").astype(object)
    y[(town == "Ulm") & (rooms > 4) & new] = "perhaps"
    return X, y


@pytest.fixture(scope="session")
def fitted_table(table):
    """A small mixture of the table; tests must not change it."""
    return MoEClassifier(max_iter=5, random_state=0).fit(*table)


@pytest.fixture
def short_polish(monkeypatch):
    """Let the polish of linear experts end early, where it does not matter how well they fit."""
    for name in ("FIRST_STEPS", "STEPS_OF_ATTEMPT", "LAST_STEPS"):
        monkeypatch.setattr(f"sklearn_moe.training.polish.{name}", 2)
    monkeypatch.setattr("sklearn_moe.training.polish.MOST_DISTINCT", 1)


def load_few_digits(monkeypatch, n_samples):
    def load(**params):
        X, y = load_digits(**params)
        return X[:n_samples], y[:n_samples]

    monkeypatch.setattr("sklearn.datasets.load_digits", load)


@pytest.fixture
def few_digits(monkeypatch):
    """Let code load a third of the digits."""
    load_few_digits(monkeypatch, 600)


@pytest.fixture
def short_trainings(short_polish, monkeypatch):
    """Let a training end after one epoch; building the guide runs the examples whole.

    Of linear experts there are two starts, and of the digits a sixth.
    """
    load_few_digits(monkeypatch, 300)
    fit_loop = MoENet.fit_loop

    def short(net, X, y=None, epochs=None, **params):
        return fit_loop(net, X, y, epochs=1, **params)

    monkeypatch.setattr(MoENet, "fit_loop", short)
    for recipe in RECIPES.values():
        monkeypatch.setitem(recipe, "n_init", min(recipe["n_init"], 2))


@pytest.fixture
def interruptible():
    """Let SIGINT raise KeyboardInterrupt, which jobs in the background ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def make_mixture():
    """Make a MixtureOutput from gate logits (or probabilities), as regularizations get it."""

    def make(gate_logits=None, gate_proba=None, routing=None, n_classes=3):
        if gate_logits is None:
            gate_logits = torch.as_tensor(gate_proba, dtype=torch.float64).log()
        if gate_proba is None:
            gate_proba = gate_logits.softmax(dim=1)
        gate_proba = torch.as_tensor(gate_proba, dtype=gate_logits.dtype)
        # They depend on the sample and the expert alone, whatever the order of both.
        slopes = torch.linspace(-1, 2, n_classes, dtype=gate_logits.dtype)
        expert_logits = gate_proba.unsqueeze(2) * slopes
        return MixtureOutput(
            log_proba=expert_logits.mean(dim=1).log_softmax(dim=1),
            gate_logits=gate_logits,
            gate_proba=gate_proba,
            expert_logits=expert_logits,
            hidden=expert_logits,
            routing=routing,
        )

    return make
