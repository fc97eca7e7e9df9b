"""Cross-validation with measures of the decomposition, the number of experts, and tuning."""

from sklearn_moe.model_selection.cross_validation import (
    Comparison,
    CrossValidation,
    compare,
    cross_validate,
)
from sklearn_moe.model_selection.ensemble import MixtureEnsemble
from sklearn_moe.model_selection.likelihood_ratio import (
    LikelihoodRatioTest,
    likelihood_ratio_test,
)
from sklearn_moe.model_selection.n_experts import NExpertsChoice, choose_n_experts
from sklearn_moe.model_selection.search import MoESearchCV
from sklearn_moe.model_selection.spaces import suggest_parameters
from sklearn_moe.model_selection.tune import tune

__all__ = [
    "Comparison",
    "CrossValidation",
    "LikelihoodRatioTest",
    "MixtureEnsemble",
    "MoESearchCV",
    "NExpertsChoice",
    "choose_n_experts",
    "compare",
    "cross_validate",
    "likelihood_ratio_test",
    "suggest_parameters",
    "tune",
]
