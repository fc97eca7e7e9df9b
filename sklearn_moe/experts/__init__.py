"""Experts: small networks that map a sample to class logits.

An experts object holds hyperparameters only; ``build`` turns it into one torch module that runs
all experts (see :class:`ExpertsModule`). ``EXPERTS`` names the usual choices.
"""

from sklearn.base import BaseEstimator

from sklearn_moe.experts.base import ExpertsModule, build_experts
from sklearn_moe.experts.complexity import ComplexityExperts
from sklearn_moe.experts.conv import ConvExperts, ConvExpertsModule
from sklearn_moe.experts.custom import CustomExperts
from sklearn_moe.experts.mlp import MLPExperts, MLPExpertsModule
from sklearn_moe.experts.mpo import MPOExperts
from sklearn_moe.experts.orthogonal import OrthogonalExperts
from sklearn_moe.experts.zero_computation import ZeroComputationExperts

EXPERTS: dict[str, BaseEstimator] = {
    "mlp": MLPExperts(),
    "conv": ConvExperts(),
    "mpo": MPOExperts(),
    "orthogonal": OrthogonalExperts(),
    "complexity": ComplexityExperts(),
    "zero_computation": ZeroComputationExperts(),
}
"""The experts that ``MoEClassifier(experts=...)`` knows by name."""

__all__ = [
    "EXPERTS",
    "ComplexityExperts",
    "ConvExperts",
    "ConvExpertsModule",
    "CustomExperts",
    "ExpertsModule",
    "MLPExperts",
    "MLPExpertsModule",
    "MPOExperts",
    "OrthogonalExperts",
    "ZeroComputationExperts",
    "build_experts",
]
