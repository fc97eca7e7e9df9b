"""Cross-validation with measures of the decomposition, and tuning with Optuna."""

from sklearn_moe.model_selection.cross_validation import (
    Comparison,
    CrossValidation,
    compare,
    cross_validate,
)
from sklearn_moe.model_selection.search import MoESearchCV
from sklearn_moe.model_selection.spaces import suggest_parameters
from sklearn_moe.model_selection.tune import tune

__all__ = [
    "Comparison",
    "CrossValidation",
    "MoESearchCV",
    "compare",
    "cross_validate",
    "suggest_parameters",
    "tune",
]
