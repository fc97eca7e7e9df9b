"""Mixture of experts for scikit-learn, with a decomposition that can be measured and shaped."""

from sklearn_moe import encoders, experts, gates, interpretation, regularizers
from sklearn_moe.compression import CompressionReport, compress_experts
from sklearn_moe.decomposition import SCORERS, Decomposition, decomposition_entropy
from sklearn_moe.display import (
    CoefficientDisplay,
    DecompositionDisplay,
    DecompositionStabilityDisplay,
    ExpertEffectDisplay,
    ExpertRegionsDisplay,
    ExpertSamplesDisplay,
    GateDisplay,
    GateRulesDisplay,
    NExpertsDisplay,
    ParetoFrontDisplay,
    TrainingDisplay,
)
from sklearn_moe.distillation import DistillationReport, distill, distillation_report
from sklearn_moe.encoders import *
from sklearn_moe.estimator import MoEClassifier
from sklearn_moe.experts import *
from sklearn_moe.gates import *
from sklearn_moe.growing import grow
from sklearn_moe.images import AUGMENTATIONS, FlipCrop
from sklearn_moe.interpretation import *
from sklearn_moe.measures import (
    expert_class_information,
    sample_entropy,
    specialization,
    usage_entropy,
)
from sklearn_moe.mixture import MixtureOutput
from sklearn_moe.model_selection import (
    MixtureEnsemble,
    MoESearchCV,
    choose_n_experts,
    compare,
    cross_validate,
    likelihood_ratio_test,
    tune,
)
from sklearn_moe.persistence import TRUSTED_TYPES, export, load, save
from sklearn_moe.pruning import PruningReport, prune_experts
from sklearn_moe.regularizers import *
from sklearn_moe.report import decomposition_report
from sklearn_moe.stability import DecompositionStability, decomposition_stability

__version__ = "0.1.0"

__all__ = [
    "AUGMENTATIONS",
    "CoefficientDisplay",
    "CompressionReport",
    "SCORERS",
    "TRUSTED_TYPES",
    "Decomposition",
    "DecompositionDisplay",
    "DecompositionStability",
    "DecompositionStabilityDisplay",
    "DistillationReport",
    "ExpertEffectDisplay",
    "ExpertRegionsDisplay",
    "ExpertSamplesDisplay",
    "FlipCrop",
    "GateDisplay",
    "GateRules",
    "GateRulesDisplay",
    "MixtureOutput",
    "MoEClassifier",
    "MixtureEnsemble",
    "MoESearchCV",
    "NExpertsDisplay",
    "ParetoFrontDisplay",
    "PruningReport",
    "TrainingDisplay",
    "choose_n_experts",
    "compare",
    "compress_experts",
    "cross_validate",
    "decomposition_entropy",
    "decomposition_report",
    "decomposition_stability",
    "distill",
    "distillation_report",
    "export",
    "expert_class_information",
    "gate_rules",
    "grow",
    "likelihood_ratio_test",
    "load",
    "prune_experts",
    "responsibilities",
    "sample_entropy",
    "save",
    "specialization",
    "tune",
    "usage_entropy",
    *encoders.__all__,
    *experts.__all__,
    *gates.__all__,
    *interpretation.__all__,
    *regularizers.__all__,
]
