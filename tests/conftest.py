import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_iris
from sklearn.preprocessing import StandardScaler

from sklearn_moe import MixtureOutput


@pytest.fixture(scope="session")
def iris():
    X, y = load_iris(return_X_y=True)
    return StandardScaler().fit_transform(X), y


@pytest.fixture(scope="session")
def digits():
    X, y = load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(X))
    return X[order] / 16, y[order]


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
