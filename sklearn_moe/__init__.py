"""Mixture of experts for scikit-learn, with a decomposition that can be measured and shaped."""

from sklearn_moe.decomposition import (
    SCORERS,
    Decomposition,
    decomposition_entropy,
    expert_class_information,
    sample_entropy,
    usage_entropy,
)
from sklearn_moe.display import (
    DecompositionDisplay,
    ExpertRegionsDisplay,
    ExpertSamplesDisplay,
    GateDisplay,
    ParetoFrontDisplay,
    TrainingDisplay,
)
from sklearn_moe.distillation import DistillationReport, distill, distillation_report
from sklearn_moe.encoders import ENCODERS, ConvEncoder, CustomEncoder, TableEncoder
from sklearn_moe.estimator import MoEClassifier
from sklearn_moe.experts import (
    EXPERTS,
    ComplexityExperts,
    ConvExperts,
    CustomExperts,
    MLPExperts,
    MPOExperts,
    OrthogonalExperts,
    ZeroComputationExperts,
)
from sklearn_moe.gates import GATES, AttentiveGate, KMeansGate, SoftmaxGate
from sklearn_moe.images import AUGMENTATIONS, FlipCrop
from sklearn_moe.mixture import MixtureOutput
from sklearn_moe.model_selection import MoESearchCV, compare, cross_validate, tune
from sklearn_moe.persistence import TRUSTED_TYPES
from sklearn_moe.pruning import PruningReport, prune_experts
from sklearn_moe.regularizers import (
    REGULARIZERS,
    Competence,
    ComplexityBalance,
    Entropy,
    Importance,
    Load,
    Regularizer,
    SampleSimilarity,
    SoftOrthogonality,
    ZeroComputationBalance,
    ZLoss,
)
from sklearn_moe.report import decomposition_report

__version__ = "0.1.0"

__all__ = [
    "AUGMENTATIONS",
    "ENCODERS",
    "EXPERTS",
    "GATES",
    "REGULARIZERS",
    "SCORERS",
    "TRUSTED_TYPES",
    "AttentiveGate",
    "Competence",
    "ComplexityBalance",
    "ComplexityExperts",
    "ConvEncoder",
    "ConvExperts",
    "CustomEncoder",
    "CustomExperts",
    "Decomposition",
    "DecompositionDisplay",
    "DistillationReport",
    "Entropy",
    "ExpertRegionsDisplay",
    "ExpertSamplesDisplay",
    "FlipCrop",
    "GateDisplay",
    "Importance",
    "KMeansGate",
    "Load",
    "MLPExperts",
    "MPOExperts",
    "MixtureOutput",
    "MoEClassifier",
    "MoESearchCV",
    "OrthogonalExperts",
    "ParetoFrontDisplay",
    "PruningReport",
    "Regularizer",
    "SampleSimilarity",
    "SoftOrthogonality",
    "SoftmaxGate",
    "TableEncoder",
    "TrainingDisplay",
    "ZLoss",
    "ZeroComputationBalance",
    "ZeroComputationExperts",
    "compare",
    "cross_validate",
    "decomposition_entropy",
    "decomposition_report",
    "distill",
    "distillation_report",
    "expert_class_information",
    "prune_experts",
    "sample_entropy",
    "tune",
    "usage_entropy",
]
