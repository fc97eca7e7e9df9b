"""A mixture of linear experts as a Python file that imports nothing."""

from __future__ import annotations

import math
from pprint import pformat
from typing import TYPE_CHECKING, Any

from sklearn_moe.categories import places_of
from sklearn_moe.persistence.linear import linear_mixture

if TYPE_CHECKING:
    from sklearn_moe.estimator import MoEClassifier

_TEMPLATE = '''\
"""Class probabilities of a mixture of {n_experts} linear experts. No imports are needed.

A row is a dict with the names of the columns, or a sequence in the order of the columns. None and
NaN are missing values.

Written by sklearn_moe {version}.
"""

{data}

def predict_proba(row):
    """Return the probability of each of CLASSES."""
    x = _encode(row)
    gate, logits = _gate_proba(x), [_linear(*expert, x) for expert in EXPERTS]
    if MIXES_LOGITS:
        scores = [sum(map(_product, gate, own)) for own in zip(*logits)]
        return _softmax([score / TEMPERATURE for score in scores])
    proba = [sum(map(_product, gate, own)) for own in zip(*map(_softmax, logits))]
    powers = [p ** (1 / TEMPERATURE) for p in proba]
    total = sum(powers)
    return [power / total for power in powers]


def gate_proba(row):
    """Return how much each expert counts for a row."""
    return _gate_proba(_encode(row))


def apply(row):
    """Return the index of the most probable expert."""
    gate = gate_proba(row)
    return gate.index(max(gate))


def _gate_proba(x):
    scores = _linear(*GATE, x)
    if GATE_LENGTH:
        length = sum(each**2 for each in _linear(GATE_LENGTH, [0] * len(GATE_LENGTH), x)) ** 0.5
        scores = [score / max(length, 1e-12) for score in scores]
    order = sorted(range(len(scores)), key=lambda expert: -scores[expert])
    kept = order[:TOP_K]
    powers = _softmax([scores[expert] for expert in kept])
    return [powers[kept.index(e)] if e in kept else 0.0 for e in range(len(scores))]


def _encode(row):
    numbers, marks, hats, categories = [], [], [], []
    for name, position, factor, mean, scale, knots, gaps, marks_missing in NUMBERS:
        value = _get(row, name, position)
        is_missing = value is None or value != value
        z = 0.0 if is_missing else (float(value) * factor - mean) / scale
        z = min(max(z, -1e18), 1e18)
        squashed = z / (1 + (z / 3) ** 2) ** 0.5
        numbers.append(squashed if SQUASH else min(max(z, -FARTHEST), FARTHEST))
        if marks_missing:
            marks.append(float(is_missing))
        left = 1.0
        for knot, gap in zip(knots, gaps):
            risen = min(max((squashed - knot) / gap, 0.0), 1.0)
            hats.append(left - risen)
            left = risen
        if knots:
            hats.append(left)
    for name, position, places, unknown, n_encoded in CATEGORIES:
        value = _get(row, name, position)
        if value is not None and value != value:
            value = None
        place = places.get(value, places.get(_number(value), unknown))
        categories += [float(place == each) for each in range(n_encoded)]
    return numbers + marks + hats + categories


def _get(row, name, position):
    return row[name] if hasattr(row, "keys") else row[position]


def _number(value):
    try:
        return float(str(value))
    except ValueError:
        return value


def _linear(weights, biases, x):
    return [bias + sum(map(_product, weight, x)) for weight, bias in zip(weights, biases)]


def _product(a, b):
    return a * b


def _softmax(scores):
    largest = max(scores)
    powers = [2.718281828459045 ** (score - largest) for score in scores]
    total = sum(powers)
    return [power / total for power in powers]
'''


_COMMENTS = {
    "NUMBERS": "Name, position, factor, mean, scale, knots, gaps, whether NaN is marked.",
    "CATEGORIES": "Name, position, codes, code of all others, number of encoded columns.",
    "GATE": "Weights and biases: one for each expert; of GATE_LENGTH, one for each direction.",
    "EXPERTS": "For each expert, weights and biases: one for each class.",
}


def to_python(clf: MoEClassifier) -> bytes:
    """Return the content of a Python file with ``predict_proba``, ``gate_proba`` and ``apply``."""
    import sklearn_moe

    plain = linear_mixture(clf, "python")
    columns = [
        (
            each.name,
            each.position,
            places_of(each.categories),
            len(each.categories) if each.has_other else -1,
            len(each.categories) + each.has_other,
        )
        for each in plain.categories
    ]
    length = plain.gate_length
    data = {
        "CLASSES": plain.classes,
        "NUMBERS": [tuple(vars(each).values()) for each in plain.numbers],
        "CATEGORIES": columns,
        "SQUASH": plain.squash,
        "FARTHEST": plain.farthest,
        "GATE": (plain.gate_weight.tolist(), plain.gate_bias.tolist()),
        "GATE_LENGTH": None if length is None else length.tolist(),
        "TOP_K": plain.top_k,
        "EXPERTS": [
            (weight.tolist(), bias.tolist())
            for weight, bias in zip(plain.expert_weight, plain.expert_bias, strict=True)
        ],
        "MIXES_LOGITS": plain.mixes_logits,
        "TEMPERATURE": plain.temperature,
    }
    # Python has no literal for the number that a category such as "inf" stands for.
    has_infinity = any(math.inf in map(abs, _numbers(places)) for _, _, places, _, _ in columns)
    written = "inf = float('inf')\n" if has_infinity else ""
    for name, value in data.items():
        comment = f"# {_COMMENTS[name]}\n" if name in _COMMENTS else ""
        written += f"{comment}{name} = {_literal(value)}\n"
    text = _TEMPLATE.format(
        n_experts=len(plain.expert_bias), version=sklearn_moe.__version__, data=written
    )
    return text.encode()


def _numbers(places):
    return [each for each in places if isinstance(each, float)]


def _literal(value: Any) -> str:
    """Write a value as Python does; anything but numbers and text becomes text."""
    return pformat(_plain(value), width=95, compact=True, sort_dicts=False)


def _plain(value):
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    is_plain = value is None or isinstance(value, (bool, int, float, str, dict))
    return value if is_plain else str(value)
