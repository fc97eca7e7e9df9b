"""Gates: they decide how much each expert counts for a sample.

A gate object holds hyperparameters only; ``build`` turns it into a :class:`GateModule`, which maps
the batch, and for some gates the experts' hidden vectors, to a :class:`GateOutput`. ``GATES``
names the usual choices.
"""

from sklearn_moe.gates.attentive import AttentiveGate, AttentiveGateModule
from sklearn_moe.gates.balanced import BalancedGate
from sklearn_moe.gates.base import (
    Gate,
    GateFormula,
    GateModule,
    GateOutput,
    Routing,
    build_gate,
    mask_all_but_top_k,
)
from sklearn_moe.gates.basis import BasisGate
from sklearn_moe.gates.constant import ConstantGate
from sklearn_moe.gates.cosine import CosineGate
from sklearn_moe.gates.gumbel import GumbelGate
from sklearn_moe.gates.kmeans import KMeansGate
from sklearn_moe.gates.shared import SharedExpertGate
from sklearn_moe.gates.softmax import SoftmaxGate, SoftmaxGateModule
from sklearn_moe.gates.sparsemax import SparsemaxGate
from sklearn_moe.gates.tree import TreeGate

GATES: dict[str, Gate] = {
    "softmax": SoftmaxGate(),
    "top_k": SoftmaxGate(top_k=2),
    "noisy_top_k": SoftmaxGate(top_k=2, noise=1.0),
    "hard": SoftmaxGate(top_k=1),
    "attentive": AttentiveGate(),
    "cosine": CosineGate(),
    "basis": BasisGate(),
    "constant": ConstantGate(),
    "kmeans": KMeansGate(),
    "tree": TreeGate(),
    "sparsemax": SparsemaxGate(),
    "gumbel": GumbelGate(),
    "balanced": BalancedGate(),
    "shared_expert": SharedExpertGate(),
}
"""The gates that ``MoEClassifier(gate=...)`` knows by name."""

# The public names. A new class only needs its line in the dictionary above.
__all__ = ["GATES", *dict.fromkeys(type(each).__name__ for each in GATES.values())]
