"""Fitted mixtures in files: the types of which they are made."""

from sklearn_moe.persistence.trusted import TRUSTED_TYPES

__all__ = ["TRUSTED_TYPES"]
