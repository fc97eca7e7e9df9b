"""Experts: small networks that map a sample to class logits.

An experts object holds hyperparameters only; ``build`` turns it into one torch module that runs
all experts (see :class:`ExpertsModule`). ``EXPERTS`` names the usual choices.
"""

from typing import Any

from sklearn_moe.checks import resolve
from sklearn_moe.experts.base import Experts, ExpertsModule, build_experts
from sklearn_moe.experts.complexity import ComplexityConvExperts, ComplexityExperts
from sklearn_moe.experts.conv import ConvExperts, ConvExpertsModule
from sklearn_moe.experts.custom import CustomExperts
from sklearn_moe.experts.estimators import EstimatorExperts, ListedExpertsModule
from sklearn_moe.experts.fitted import FittedExpert
from sklearn_moe.experts.linear import LinearExperts
from sklearn_moe.experts.mlp import MLPExperts, MLPExpertsModule
from sklearn_moe.experts.mpo import MPOExperts
from sklearn_moe.experts.orthogonal import OrthogonalExperts
from sklearn_moe.experts.strong import StrongExperts
from sklearn_moe.experts.zero_computation import ZeroComputationExperts

EXPERTS: dict[str, Experts] = {
    "mlp": MLPExperts(),
    "conv": ConvExperts(),
    "linear": LinearExperts(),
    "mpo": MPOExperts(),
    "orthogonal": OrthogonalExperts(),
    "complexity": ComplexityExperts(),
    "complexity_conv": ComplexityConvExperts(),
    "zero_computation": ZeroComputationExperts(),
    "strong": StrongExperts(),
}
"""The experts that ``MoEClassifier(experts=...)`` knows by name."""

# The public names. A new class only needs its line in the dictionary above.
__all__ = [
    "EXPERTS",
    "CustomExperts",
    "EstimatorExperts",
    "FittedExpert",
    *dict.fromkeys(type(each).__name__ for each in EXPERTS.values()),
]


def as_experts(experts: Any, parameter: str = "experts") -> Any:
    """Return experts as an object: a name, a list or a function is looked up or wrapped."""
    if isinstance(experts, (list, tuple)):
        experts = EstimatorExperts(experts)
    elif callable(experts) and not hasattr(experts, "build"):
        experts = CustomExperts(experts)
    return resolve(parameter, experts, EXPERTS)
