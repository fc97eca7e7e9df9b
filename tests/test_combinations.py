"""Every gate with every kind of experts and every regularization, by name."""

from functools import cache

import numpy as np
import pytest
from kinds import OF_IMAGES

from sklearn_moe import (
    EXPERTS,
    GATES,
    REGULARIZERS,
    ComplexityConvExperts,
    ComplexityExperts,
    ConvExperts,
    LinearExperts,
    MLPExperts,
    MoEClassifier,
    MPOExperts,
    OrthogonalExperts,
    ZeroComputationExperts,
    distill,
    prune_experts,
)

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(60, 4)), np.arange(60) % 3

# The kinds that the names stand for, small.
KINDS = {
    "auto": "auto",
    "mlp": MLPExperts((5,)),
    "conv": ConvExperts((2,), (5,), pooling=1),
    "linear": LinearExperts(),
    "mpo": MPOExperts((5,)),
    "orthogonal": OrthogonalExperts((5,)),
    "complexity": ComplexityExperts(2, 5),
    "complexity_conv": ComplexityConvExperts(1, 4, hidden_layer_sizes=(), pooling=1),
    "zero_computation": ZeroComputationExperts((5,)),
}

ALONE = "a gate with top_k=1 makes no sense"
SENSELESS = {
    ("hard", "orthogonal"): ALONE,
    ("kmeans", "orthogonal"): ALONE,
    ("kmeans", "zero_computation"): "a k-means gate makes no sense",
}
NO_NOISE = "regularization='load' needs a gate that draws noise and keeps the top k experts"

NO_COLUMNS = "regularization='sparse_gate' needs a gate whose first layer reads the columns"

PAIRS = [(gate, experts) for gate in GATES for experts in KINDS]


def make(gate, experts, regularization):
    return MoEClassifier(
        4,
        gate=gate,
        experts=KINDS[experts],
        regularization=regularization,
        encoder=None,
        input_shape=(2, 2) if experts in OF_IMAGES else None,
        batch_size=60,
        max_iter=2,
        n_init=1,
        random_state=0,
    )


@cache
def fitted(gate, experts):
    return make(gate, experts, None).fit(X, Y)


def predicts_or_says_why_not(message, function, *args, **kwargs):
    """Let the mixture predict that a function makes, or check its error."""
    if message is None:
        proba = function(*args, **kwargs).predict_proba(X)
        np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-6)
    else:
        with pytest.raises(ValueError, match=message):
            function(*args, **kwargs)


def test_all_names_are_here():
    assert {*KINDS, "strong"} == {"auto", *EXPERTS}


pytestmark = pytest.mark.usefixtures("short_polish")


# The labels are random, so a sparse gate may drop all columns.
@pytest.mark.filterwarnings("ignore:The gate has collapsed")
@pytest.mark.parametrize("gate, experts", PAIRS)
def test_fits_or_says_why_not(gate, experts):
    for regularization in (None, "auto", *REGULARIZERS):
        message = SENSELESS.get((gate, experts))
        if message is None and regularization == "load" and gate != "noisy_top_k":
            message = NO_NOISE
        if message is None and regularization == "sparse_gate":
            reads_columns = GATES[gate].has_input_weight and experts not in OF_IMAGES
            message = None if reads_columns else NO_COLUMNS
        predicts_or_says_why_not(message, make(gate, experts, regularization).fit, X, Y)


@pytest.mark.parametrize("gate, experts", [pair for pair in PAIRS if pair not in SENSELESS])
def test_predicts_what_gate_and_experts_say(gate, experts):
    clf = fitted(gate, experts)
    mixed = clf.gate_proba(X)[..., None] * clf.expert_proba(X)
    np.testing.assert_allclose(clf.predict_proba(X), mixed.sum(axis=1), atol=1e-6)


# A constant gate that keeps one expert gives it all samples.
@pytest.mark.filterwarnings("ignore:The gate has collapsed")
@pytest.mark.parametrize("gate, experts", [pair for pair in PAIRS if pair not in SENSELESS])
def test_is_distilled_and_pruned_or_says_why_not(gate, experts):
    clf = fitted(gate, experts)
    alone = ALONE if experts == "orthogonal" else None
    message = alone if gate == "attentive" else "with a gate that reads the experts"
    predicts_or_says_why_not(message, distill, clf, X, Y, max_iter=1)
    prune = {"method": "similarity", "n_experts": 3, "X": X}
    predicts_or_says_why_not(None, prune_experts, clf, **prune)
    message = "a parameter top_k that learns by gradients" if gate == "kmeans" else None
    prune.update(y=Y, fine_tune=True, max_iter=2)
    for top_k in (1, 2):
        missing = message or (alone if top_k == 1 else None)
        predicts_or_says_why_not(missing, prune_experts, clf, **prune, top_k=top_k)
