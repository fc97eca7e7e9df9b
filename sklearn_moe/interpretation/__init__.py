"""Read a fitted mixture: what each expert does, and which samples it owns."""

from sklearn_moe.interpretation.summary import ExpertSummary, expert_summary

__all__ = ["ExpertSummary", "expert_summary"]
