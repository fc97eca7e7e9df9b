import pickle

import numpy as np
import pytest
import torch
from torch import nn

from sklearn_moe import (
    AttentiveGate,
    ConvEncoder,
    MLPExperts,
    MoEClassifier,
    distill,
    prune_experts,
)
from sklearn_moe.experts import EXPERTS
from sklearn_moe.gates import GATES
from sklearn_moe.regularizers import REGULARIZERS
from sklearn_moe.training.defaults import usual_defaults


class Shifted(nn.Linear):
    """A user's expert, which makes tensors in its forward, too."""

    def __init__(self, input_shape, n_outputs):
        super().__init__(*input_shape, n_outputs)

    def forward(self, x):
        return super().forward(x + torch.ones(x.shape[1]) / 3)


CONFIGURATIONS = {
    "default": {},
    "logit": {"mixing": "logit", "track_decomposition": True},
    "dropout": {"experts": MLPExperts(dropout=0.3), "early_stopping": True},
    "own_experts": {"experts": Shifted},
    "own_encoder": {"encoder": lambda shape: nn.Linear(*shape, 5)},
    "adam": {"net_params": {"optimizer": torch.optim.Adam}},
    "images": {
        "gate": AttentiveGate(encoder=ConvEncoder(normalization="batch")),
        "augmentation": "flip_crop",
    },
    **{f"experts_{name}": {"experts": name} for name in EXPERTS if name != "strong"},
    **{f"gate_{name}": {"gate": name} for name in GATES},
    **{f"regularization_{name}": {"regularization": name} for name in REGULARIZERS},
}
CONFIGURATIONS["regularization_load"]["gate"] = "noisy_top_k"
for name in ("complexity", "zero_computation"):
    CONFIGURATIONS[f"regularization_{name}"]["experts"] = name


@pytest.fixture
def usual():
    """Bring torch's defaults back."""
    yield
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


@pytest.mark.filterwarnings("ignore:The best of")
@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.usefixtures("short_polish")
def test_defaults_of_a_user_change_nothing(name, usual):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 4)), np.arange(60) % 3
    if name == "images" or name.endswith("conv"):
        X = rng.integers(0, 256, size=(60, 6, 6), dtype=np.uint8)
    clf = MoEClassifier(n_experts=3, max_iter=2, batch_size=30, random_state=0)
    clf.set_params(**CONFIGURATIONS[name])

    def results():
        clf.set_params(warm_start=False).fit(X, y)
        yield clf.loss_curve_
        yield from (clf.predict_proba(X), clf.predict_proba(X[:1]), clf.apply(X))
        yield clf.set_params(warm_start=True).fit(X, y).expert_proba(X)

    expected = list(results())
    torch.set_default_dtype(torch.bfloat16)
    torch.set_default_device("meta")
    for result, usual_result in zip(results(), expected, strict=True):
        np.testing.assert_array_equal(result, usual_result)
    assert torch.get_default_dtype() is torch.bfloat16
    assert torch.get_default_device().type == "meta"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_defaults_of_a_user_change_no_tool(dtype, iris, usual):
    X, y = iris
    clf = MoEClassifier(n_experts=4, gate="attentive", max_iter=2, random_state=0)

    def results():
        fitted = pickle.loads(pickle.dumps(clf.fit(X, y)))
        yield fitted.predict_proba(X)
        student = distill(fitted, X, y)
        yield student.predict_proba(X)
        yield prune_experts(student, method="similarity", n_experts=2, X=X).predict_proba(X)

    expected = list(results())
    torch.set_default_dtype(dtype)
    torch.set_default_device("meta")
    for result, usual_result in zip(results(), expected, strict=True):
        np.testing.assert_array_equal(result, usual_result)


def test_what_is_made_by_default(usual):
    torch.set_default_dtype(torch.float16)
    torch.set_default_device("meta")
    with usual_defaults():
        for made in (
            torch.empty(2),
            torch.tensor([0.1]),
            torch.full((2,), 0.1),
            torch.linspace(0, 1, 3),
            nn.Linear(2, 2).weight,
        ):
            assert made.dtype is torch.float32 and made.device.type == "cpu"
        assert torch.tensor(0.1).item() == pytest.approx(0.1, abs=1e-8)
        assert torch.arange(3).dtype is torch.int64
        assert torch.zeros(2, dtype=torch.float64).dtype is torch.float64
        assert torch.as_tensor(np.zeros(2)).dtype is torch.float64
        assert torch.zeros(2, device="meta").device.type == "meta"
    assert torch.ones(1).dtype is torch.float16
