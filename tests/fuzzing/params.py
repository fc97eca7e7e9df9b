"""Random parameters of ``MoEClassifier``, in and out of range."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch
from sklearn.dummy import DummyClassifier, DummyRegressor
from skorch.callbacks import GradientNormClipping
from torch import nn

from fuzzing.tables import pick
from sklearn_moe import (
    AttentiveGate,
    Competence,
    ComplexityExperts,
    ConvEncoder,
    ConvExperts,
    ConvMoELayers,
    Entropy,
    EstimatorExperts,
    FlipCrop,
    Importance,
    KMeansGate,
    LinearExperts,
    Load,
    MLPExperts,
    MoELayers,
    MPOExperts,
    OrthogonalExperts,
    SampleSimilarity,
    SoftmaxGate,
    SoftOrthogonality,
    SparseGate,
    TableEncoder,
    ZeroComputationExperts,
    ZLoss,
)


def linear_expert(input_shape, n_outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(input_shape)), n_outputs))


def backbone(input_shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(input_shape)), 4), nn.Tanh())


def first_column(X):
    return [0]


def penalty(mixture, x, y, sample_weight):
    return 0.1 * (mixture.gate_proba.square().sum(dim=1) * sample_weight).mean()


def noise(x, generator):
    return x + 0.1 * torch.rand(x.shape, generator=generator, device=x.device)


# For each parameter what is in range, what is out of range, and how often to draw the former.
PARAMS = {
    "n_experts": (
        [1, 2, 3, 5, np.int64(4)],
        [0, -1, 1.5, 2.0, "3", None, True, np.nan, [2], 10**9],
        0.9,
    ),
    "experts": (
        [
            *[MLPExperts((8,))] * 12,
            MLPExperts((), activation="tanh"),
            MLPExperts(4, dropout=0.5),
            MLPExperts([8, 8], activation="gelu"),
            *["linear", LinearExperts(), LinearExperts(l2=0.0, l1=0.1)],
            MPOExperts((8,)),
            MPOExperts((8, 4), n_tensors=2, bond=2, mask_probability=1.0),
            OrthogonalExperts((8,)),
            OrthogonalExperts((8,), normalize=False),
            ComplexityExperts(4, 8),
            ComplexityExperts(4, 16, dropout=0.1),
            ZeroComputationExperts((8,)),
            ZeroComputationExperts((8,), n_zero=1, n_copy=0, n_constant=1, capacity=1.1),
            linear_expert,
            *[[("prior", DummyClassifier()), ("net", MLPExperts((8,)))]] * 3,
            [("prior", DummyClassifier()), ("uniform", DummyClassifier(strategy="uniform"))],
            [("linear", "linear"), ("net", MLPExperts((4,), dropout=0.5))],
            EstimatorExperts([("prior", DummyClassifier())], cv=2, calibrate=False),
        ],
        [
            [],
            [DummyClassifier()],
            [("prior", DummyClassifier)],
            [("prior", DummyClassifier()), ("prior", DummyClassifier())],
            [("prior", DummyClassifier(strategy="nonsense"))],
            [("cv", DummyClassifier()), ("net", "mlp")],
            [("line", DummyRegressor())],
            [("net", "nonsense")],
            EstimatorExperts([("prior", DummyClassifier())], cv="prefit"),
            EstimatorExperts(None),
            "auto",
            "mlp",
            "complexity",
            "conv",
            ConvExperts((4,), (8,)),
            MLPExperts((0,)),
            MLPExperts((8,), dropout=1.0),
            MLPExperts((8,), activation="sine"),
            MLPExperts("8"),
            MLPExperts(None),
            MLPExperts((8, "8")),
            MLPExperts([[8]]),
            MLPExperts(2.5),
            LinearExperts(l2=-1.0),
            LinearExperts(l1="0"),
            MPOExperts((8,), bond=0),
            MPOExperts((8,), n_tensors=50),
            ZeroComputationExperts((8,), n_zero=99),
            ZeroComputationExperts((8,), capacity=-1.0),
            ComplexityExperts(0, 8),
            MLPExperts,
            SoftmaxGate(),
            "nonsense",
            None,
            8,
            nn.Linear(3, 2),
            nn.Linear,
            len,
            lambda input_shape, n_outputs: nn.Linear(99, n_outputs),
            lambda input_shape, n_outputs: None,
        ],
        0.97,
    ),
    "gate": (
        [
            "softmax",
            "hard",
            "top_k",
            "noisy_top_k",
            "attentive",
            "kmeans",
            SoftmaxGate((4,), temperature=0.5, noise=0.5),
            SoftmaxGate(top_k=1, noise=2.0),
            SoftmaxGate(temperature=1e-3),
            SoftmaxGate(encoder=backbone),
            AttentiveGate((), key_size=3),
            AttentiveGate((5,), top_k=1),
            KMeansGate(assignment="nearest_centroid", matching="greedy", max_samples=7),
            KMeansGate(ridge=0, max_iter=1),
        ],
        [
            SoftmaxGate(top_k=0),
            SoftmaxGate(top_k=9),
            SoftmaxGate(top_k=1.0),
            SoftmaxGate(top_k=True),
            SoftmaxGate(temperature=0),
            SoftmaxGate(temperature=1e-45),
            SoftmaxGate(temperature=np.inf),
            SoftmaxGate(temperature=np.nan),
            SoftmaxGate(noise=-1),
            SoftmaxGate(noise=np.inf),
            SoftmaxGate((-3,)),
            SoftmaxGate(encoder="table"),
            SoftmaxGate(encoder="conv"),
            AttentiveGate(key_size=0),
            KMeansGate(ridge=-1),
            KMeansGate(max_samples=0),
            KMeansGate(max_samples=1),
            SoftmaxGate,
            MLPExperts(),
            "nonsense",
            None,
            3,
            len,
            nn.Linear(3, 2),
        ],
        0.6,
    ),
    "regularization": (
        [
            None,
            "importance",
            "sample_similarity",
            "entropy",
            "competence",
            "z_loss",
            "orthogonality",
            "sparse_gate",
            ["importance", SparseGate(0.1)],
            [],
            ["importance", Entropy(0.1)],
            (Importance(0), Competence(2)),
            SampleSimilarity(0.1, max_samples=5),
            SoftOrthogonality(0.1),
            penalty,
            [penalty, "importance"],
        ],
        [
            "load",
            "complexity",
            "zero_computation",
            "auto",
            ["auto"],
            "nonsense",
            [None],
            [["importance"]],
            {"importance": 0.2},
            {"importance"},
            Importance,
            Importance(-1),
            Importance(np.nan),
            Importance(np.inf),
            Importance("0.2"),
            ZLoss(1e30),
            Load(0.1),
            SampleSimilarity(max_samples=1),
            0.2,
            len,
            lambda mixture, x, y, sample_weight: mixture.gate_proba.sum(dim=1),
            lambda mixture, x, y, sample_weight: 0.0,
            lambda mixture, x, y, sample_weight: None,
            lambda mixture, x, y, sample_weight: mixture.gate_proba.sum() * float("nan"),
            lambda mixture: 0.0,
        ],
        0.5,
    ),
    "encoder": (
        [
            None,
            "table",
            TableEncoder(n_knots=3, max_categories=2, n_shape_knots=8),
            TableEncoder(n_knots=None, max_categories=None),
            MoELayers(1, n_experts=3, hidden_size=4),
            MoELayers(n_experts=4, hidden_size=3, gate="softmax", experts="zero_computation"),
            backbone,
        ],
        [
            "conv",
            ConvEncoder((2,)),
            ConvEncoder((2,), kernel_size=99),
            "conv_moe",
            MoELayers(gate="kmeans"),
            MoELayers(hidden_size=0),
            TableEncoder(n_knots=1),
            TableEncoder(max_categories=0),
            TableEncoder(n_knots=10**6),
            TableEncoder,
            "nonsense",
            3,
            len,
            nn.Linear(3, 2),
            lambda input_shape: nn.Linear(99, 2),
            lambda input_shape: nn.Flatten(0),
        ],
        0.25,
    ),
    "categorical_features": (
        [None, [0], [], [True], (0,), np.array([0]), ["column 0"]],
        [
            [7],
            [-1],
            [0, 0],
            [0.0],
            [1.5],
            [True] * 99,
            ["nonsense"],
            ["column 0", 1],
            [[0]],
            0,
            {"column 0": 1},
            {0},
            "column 0",
            [None],
            slice(0, 1),
            np.array([[True]]),
            len,
        ],
        0.2,
    ),
    "augmentation": (
        [noise],
        ["flip_crop", FlipCrop(crop=99), "nonsense", FlipCrop, 3, len],
        0.05,
    ),
    "mixing": (["probability", "logit"], ["nonsense", None, 1], 0.3),
    "learning_rate": (
        [1e-3, 0.1, "auto", np.float32(0.01), 1],
        [0, -1.0, np.nan, np.inf, "1", None, 1e30, True, 10**400, 1e-320],
        0.3,
    ),
    "learning_rate_schedule": (["constant", "one_cycle"], ["nonsense", None, 1], 0.3),
    "weight_decay": (
        [0, 0.1, "auto", 5],
        [-1, np.nan, np.inf, "1", None, True, 1e30, 10**400],
        0.2,
    ),
    "batch_size": (
        [1, 2, 7, 32, 10**6, "auto", np.int32(5)],
        [0, -1, 2.5, "all", None, np.inf, True, 10**400],
        0.5,
    ),
    "max_iter": ([1, 2, 3], [0, -1, 2.5, "3", None, True, np.inf], 0.3),
    "class_weight": (
        ["balanced", {}, {0: 1.0, 1: 2.0}, {"no": 3, "yes": 1}, {False: 1, True: 2}],
        [
            "nonsense",
            {0: -1, 1: 1},
            {0: np.nan},
            {0: np.inf, 1: 1},
            {0: "heavy", 1: 1},
            {0: 0, 1: 0},
            {0: None},
            {7: 1},
            {"no": 1e308, "yes": 1e308},
            {0: 10**400, 1: 1},
            [1, 2],
            3,
            len,
        ],
        0.15,
    ),
    "early_stopping": ([True, False], [2, "yes", None, [True]], 0.2),
    "validation_fraction": (
        [0.1, 0.5, 0.9],
        [0, 1, -0.1, 1.5, np.nan, "half", None, 1e-9, 1 - 1e-9],
        0.1,
    ),
    "n_iter_no_change": ([1, 10], [0, -1, 1.5, None, True, np.inf], 0.1),
    "tol": ([0, 1e-3, 1.0], [-1, np.nan, np.inf, None, "1"], 0.1),
    "calibrate": ([True, False], [2, "yes", None], 0.2),
    "warm_start": ([True, False], [2, "yes", None], 0.2),
    "device": (["cpu", "auto"], ["cuda", "cuda:9", "meta", "mps", "nonsense", "", 0, None], 0.1),
    "n_threads": ([1, 2, "auto"], [0, -1, 1.5, "all", None, True, 10**6, 10**12], 0.2),
    "net_params": (
        [
            {},
            {"optimizer": torch.optim.SGD},
            {"optimizer": torch.optim.SGD, "optimizer__momentum": 0.5},
            {"optimizer__betas": (0.8, 0.99)},
            {"batch_size": -1},
            {"callbacks": [GradientNormClipping()]},
        ],
        [
            {"nonsense": 1},
            {"optimizer__nonsense": 1},
            {"callbacks": 3},
            {"callbacks": [3]},
            {"optimizer": "adam"},
            {"optimizer": None},
            {"max_epochs": -1},
            {"lr": "fast"},
            {"device": "nonsense"},
            {3: 4},
            [],
            "nonsense",
        ],
        0.08,
    ),
    "n_init": ([1, 2, 3, "auto"], [0, -1, 1.5, True, "many", None, 10**9, [2]], 0.15),
    "annealing": ([None, 0.2, 0.7, 1, "auto"], [0, -1, 2, "hot", True, [0.2], np.nan], 0.15),
    **dict.fromkeys(
        ("gate_features", "expert_features"),
        (
            [None, [0], first_column],
            [[99], [-1], ["nonsense"], [], [True], [[0]], 3.5, "nonsense", len, {0}, [None]],
            0.1,
        ),
    ),
    "input_shape": (
        [],
        [(3, 4), "ab", (0,), (-1, 2), 5, [2.5], [[2]], (), [None], {2, 3}, np.nan, len],
        0.0,
    ),
    "track_decomposition": ([True, False], [2, "yes", None], 0.2),
    "verbose": ([0, 1, 2, True], [-1, "loud", None, 1.5], 0.05),
    "random_state": (
        [0, 1, 2**31, np.int64(3), np.random.RandomState(0)],
        [-1, 2**40, 1.5, "seed", [1], np.random.default_rng(0), len],
        0.3,
    ),
}

# What small samples need, to be quick.
SMALL = {"experts": MLPExperts((8,)), "n_experts": 3, "max_iter": 2, "random_state": 0}


EXPERTS_OF_IMAGES = [
    "auto",
    "conv",
    "complexity_conv",
    ConvExperts((4,), (8,)),
    ConvExperts(3, (), padding="valid"),
]

ENCODERS_OF_IMAGES = [
    "auto",
    "conv",
    ConvEncoder((2,), normalization="batch"),
    ConvEncoder((2, 3), pooling=1, normalization="layer"),
    ConvMoELayers(1, n_experts=2, channels=2, expert_channels=2),
    MoELayers(1, n_experts=3, hidden_size=4),
    backbone,
    None,
]


def draw_params(rng, n_odd=0):
    """Draw parameters, so many of them out of range."""
    params = dict(SMALL)
    for name, (in_range, _, share) in PARAMS.items():
        if rng.uniform() < share:
            params[name] = deepcopy(pick(rng, in_range))
    if params.get("encoder", "auto") is None:  # and so no categories
        params.pop("categorical_features", None)
    for name in rng.choice(list(PARAMS), n_odd, replace=False).tolist():
        params[name] = deepcopy(pick(rng, PARAMS[name][1]))
    return params
