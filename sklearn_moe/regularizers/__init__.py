r"""Regularizations: penalties that shape how the experts divide the work.

Each is called with a training batch and returns a scalar that is added to the loss. Sample weights
act like numbers of samples: a weight of zero removes the sample. ``REGULARIZERS`` names the usual
choices.

Symbols: :math:`p` are the gate's probabilities after masking (``gate_proba``), :math:`q` is the
softmax of the full gate logits :math:`l`, and :math:`w` are the sample weights. The indices of
samples are :math:`n` and :math:`m`, the index of experts is :math:`e`.
"""

from sklearn_moe.regularizers.balance import Importance, Load
from sklearn_moe.regularizers.base import Regularizer, check_penalty
from sklearn_moe.regularizers.competence import Competence
from sklearn_moe.regularizers.complexity import ComplexityBalance
from sklearn_moe.regularizers.confidence import Entropy, ScoreVariance, ZLoss
from sklearn_moe.regularizers.orthogonality import SoftOrthogonality
from sklearn_moe.regularizers.sample_similarity import SampleSimilarity
from sklearn_moe.regularizers.soft_nearest_neighbor import SoftNearestNeighbor
from sklearn_moe.regularizers.sparse_gate import SparseGate
from sklearn_moe.regularizers.zero_computation import ZeroComputationBalance

REGULARIZERS: dict[str, Regularizer] = {
    "importance": Importance(),
    "load": Load(),
    "sample_similarity": SampleSimilarity(),
    "soft_nearest_neighbor": SoftNearestNeighbor(),
    "entropy": Entropy(),
    "competence": Competence(),
    "score_variance": ScoreVariance(),
    "sparse_gate": SparseGate(),
    "z_loss": ZLoss(),
    "orthogonality": SoftOrthogonality(),
    "complexity": ComplexityBalance(),
    "zero_computation": ZeroComputationBalance(),
}
"""The regularizations that ``MoEClassifier(regularization=...)`` knows by name."""

# The public names. A new class only needs its line in the dictionary above.
__all__ = [
    "REGULARIZERS",
    "Regularizer",
    *dict.fromkeys(type(each).__name__ for each in REGULARIZERS.values()),
]
