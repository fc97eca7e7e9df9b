"""The types that a saved mixture is made of."""

from __future__ import annotations

from sklearn_moe.committee import Committee
from sklearn_moe.compression import CompressionReport
from sklearn_moe.decomposition import Decomposition
from sklearn_moe.distillation import DistillationReport
from sklearn_moe.encoders import ENCODERS, CustomEncoder
from sklearn_moe.estimator import MoEClassifier
from sklearn_moe.experts import EXPERTS, CustomExperts, EstimatorExperts, FittedExpert
from sklearn_moe.experts.strong import TableColumns
from sklearn_moe.gates import GATES
from sklearn_moe.images import AUGMENTATIONS
from sklearn_moe.model_selection.ensemble import MixtureEnsemble
from sklearn_moe.pruning import PruningReport
from sklearn_moe.reader import Reader
from sklearn_moe.regularizers import REGULARIZERS
from sklearn_moe.summaries import InputSummary
from sklearn_moe.tables import TableTransformer
from sklearn_moe.training.net import MoENet

_ROOMS = (ENCODERS, EXPERTS, GATES, AUGMENTATIONS, REGULARIZERS)

CLASSES: list[type] = sorted(
    {type(each) for room in _ROOMS for each in room.values()}
    | {CustomEncoder, CustomExperts, MoEClassifier, MoENet, Reader, TableTransformer}
    | {Committee, EstimatorExperts, FittedExpert, InputSummary, TableColumns}
    | {CompressionReport, Decomposition, DistillationReport, MixtureEnsemble, PruningReport},
    key=lambda cls: cls.__name__,
)

TRUSTED_TYPES: list[str] = [f"{cls.__module__}.{cls.__qualname__}" for cls in CLASSES]
"""The types of this package that a skops file of a mixture may hold, for skops' ``trusted``.

A file of a ``MoEClassifier`` holds only this class. The others are those of its parts, such as
``net_`` and the objects of its parameters, which may have files of their own. No other types are
needed, unless the mixture contains classes or functions that you wrote, or classifiers of which
skops does not trust all types.
"""
