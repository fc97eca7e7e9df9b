"""Read a fitted mixture: which samples an expert owns, and what it does there."""

from sklearn_moe.interpretation.document import model_document
from sklearn_moe.interpretation.explanation import Explanation, explain
from sklearn_moe.interpretation.importance import ExpertImportance, expert_importance
from sklearn_moe.interpretation.responsibilities import responsibilities
from sklearn_moe.interpretation.rules import GateRules, gate_rules
from sklearn_moe.interpretation.summary import ExpertSummary, expert_summary

__all__ = [
    "ExpertImportance",
    "ExpertSummary",
    "Explanation",
    "GateRules",
    "expert_importance",
    "expert_summary",
    "explain",
    "gate_rules",
    "model_document",
    "responsibilities",
]
