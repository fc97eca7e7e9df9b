"""Fitted mixtures in files: save, load, export, and the types of which mixtures are made."""

from sklearn_moe.persistence.exporting import export
from sklearn_moe.persistence.loading import load
from sklearn_moe.persistence.saving import save
from sklearn_moe.persistence.trusted import TRUSTED_TYPES

__all__ = ["TRUSTED_TYPES", "export", "load", "save"]
