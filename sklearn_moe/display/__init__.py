"""Pictures of a decomposition, in the style of scikit-learn's Display classes.

``from_estimator`` and ``from_predictions`` compute what is drawn; ``plot`` draws it and keeps the
artists. They need matplotlib (``pip install "sklearn-moe[plot]"``) and do not change its settings.
"""

from sklearn_moe.display.coefficients import CoefficientDisplay
from sklearn_moe.display.decomposition import DecompositionDisplay
from sklearn_moe.display.effects import ExpertEffectDisplay
from sklearn_moe.display.gate import GateDisplay
from sklearn_moe.display.n_experts import NExpertsDisplay
from sklearn_moe.display.pareto_front import ParetoFrontDisplay
from sklearn_moe.display.regions import ExpertRegionsDisplay
from sklearn_moe.display.rules import GateRulesDisplay
from sklearn_moe.display.samples import ExpertSamplesDisplay
from sklearn_moe.display.stability import DecompositionStabilityDisplay
from sklearn_moe.display.training import TrainingDisplay

__all__ = [
    "CoefficientDisplay",
    "DecompositionDisplay",
    "DecompositionStabilityDisplay",
    "ExpertEffectDisplay",
    "ExpertRegionsDisplay",
    "ExpertSamplesDisplay",
    "GateDisplay",
    "GateRulesDisplay",
    "NExpertsDisplay",
    "ParetoFrontDisplay",
    "TrainingDisplay",
]
