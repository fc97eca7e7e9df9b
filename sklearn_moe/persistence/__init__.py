"""Fitted mixtures in files: save, load, and the types of which mixtures are made."""

from sklearn_moe.persistence.loading import load
from sklearn_moe.persistence.saving import save
from sklearn_moe.persistence.trusted import TRUSTED_TYPES

__all__ = ["TRUSTED_TYPES", "load", "save"]
