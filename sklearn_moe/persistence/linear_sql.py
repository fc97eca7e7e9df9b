"""A mixture of linear experts as a query in standard SQL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sklearn_moe.persistence.linear import linear_mixture

if TYPE_CHECKING:
    from sklearn_moe.estimator import MoEClassifier

# Databases put the formulas of a step into those of the next, and then compute them many times for
# each row. A window function in each step keeps them from it, in all databases.
BARRIER = "COUNT(*) OVER () AS moe_rows"

# Some databases raise an error for numbers that are too small for double precision. An exponential
# counts as zero below this, so that the product of two is large enough.
SMALLEST_EXPONENT = -300


def to_sql(clf: MoEClassifier, table: str, key: Sequence[str]) -> bytes:
    """Return the content of a file with a query.

    Parameters
    ----------
    clf : MoEClassifier
        A fitted mixture of linear experts.
    table : str
        Name of the table that the query reads.
    key : sequence of str
        Columns of the table that the query returns, too.
    """
    import sklearn_moe

    plain = linear_mixture(clf, "sql")
    query = _Query(table, key)
    scores, logits = _score(query, plain, _encode(query, plain))
    gate, n_experts = {"p": (scores, plain.top_k)}, len(scores)
    chosen = {"expert": _place_of_largest(scores)}
    if plain.mixes_logits:
        softmax = _softmax(query, gate, keep=[name for own in logits for name in own], new=chosen)
    else:
        experts = {f"q_{e}": (own, len(own)) for e, own in enumerate(logits)}
        softmax = _softmax(query, gate | experts, new=chosen)
        logits = [softmax[group] for group in experts]
    shares = softmax["p"]
    mixed = {
        f"y_{c}": " + ".join(f"{p} * {each}" for p, each in zip(shares, own, strict=True))
        for c, own in enumerate(zip(*logits, strict=True))
    }
    query.step(mixed, keep=[*shares, "expert"])
    proba, temperature = list(mixed), _number(plain.temperature)
    if plain.mixes_logits:
        scaled = {f"t_{c}": f"{y} / {temperature}" for c, y in enumerate(proba)}
        query.step(scaled, keep=[*shares, "expert"])
        group = {"r": (list(scaled), len(scaled))}
        proba = _softmax(query, group, keep=[*shares, "expert"])["r"]
    elif plain.temperature != 1:
        least = _number(math.exp(SMALLEST_EXPONENT * plain.temperature))
        powers = {
            f"t_{c}": _cases((f"{y} > {least}", f"POWER({y}, 1 / {temperature})"), "0")
            for c, y in enumerate(proba)
        }
        query.step(powers, keep=[*shares, "expert"])
        calibrated = _divided({f"r_{c}": power for c, power in enumerate(powers)})
        query.step(calibrated, keep=[*shares, "expert"])
        proba = list(calibrated)
    results = {
        **{f"proba_{label}": _double(y) for label, y in zip(plain.classes, proba, strict=True)},
        **{f"gate_proba_{e}": _double(share) for e, share in enumerate(shares)},
        "expert": "expert",
    }
    head = (
        f"-- Class probabilities of a mixture of {n_experts} linear experts.\n"
        "-- With moe_rows, each step is computed once.\n"
        f"-- Written by sklearn_moe {sklearn_moe.__version__}.\n"
    )
    return (head + query.text(results)).encode()


class _Query:
    """A query in steps, each of which reads what the one before has computed."""

    def __init__(self, table, key):
        self.sources = [_name(table)]
        # On the way, a key has a name that no computed column has.
        self.key = {f"moe_key_{i}": _name(each) for i, each in enumerate(key)}
        self.steps = []

    def step(self, new, keep=()):
        """Compute new columns, by their names, and keep some of those that are there."""
        computed = [f"{value} AS {name}" for name, value in new.items()]
        key = self.key if self.steps else [f"{own} AS {name}" for name, own in self.key.items()]
        columns = [BARRIER, *key, *keep, *computed]
        self.steps.append(f"SELECT {_lines(columns)}\n  FROM {self.sources[-1]}")
        self.sources.append(f"moe_{len(self.steps)}")

    def text(self, results):
        """Return the query, with columns by the names that a user sees."""
        named = zip(self.sources[1:], self.steps, strict=True)
        steps = ",\n".join(f"{name} AS (\n  {step}\n)" for name, step in named)
        columns = [f"{name} AS {own}" for name, own in self.key.items()]
        columns += [f"{value} AS {_name(name)}" for name, value in results.items()]
        return f"WITH {steps}\nSELECT {_lines(columns)}\nFROM {self.sources[-1]}\n"


def _encode(query, plain):
    """Let a query compute the encoded columns that have a weight somewhere; return their names."""
    numbers = {f"z_{i}": _standardised(each) for i, each in enumerate(plain.numbers)}
    categories = {f"c_{i}": _name(each.name) for i, each in enumerate(plain.categories)}
    query.step(numbers | categories)
    query.step({f"s_{i}": _squashed(z) for i, z in enumerate(numbers)}, [*numbers, *categories])
    limit = _number(plain.farthest)
    encoded = [
        f"s_{i}"
        if plain.squash
        else _cases(
            (f"{z} IS NULL", "0"), (f"{z} > {limit}", limit), (f"{z} < -{limit}", f"-{limit}"), z
        )
        for i, z in enumerate(numbers)
    ]
    for z, each in zip(numbers, plain.numbers, strict=True):
        if each.marks_missing:
            encoded.append(_cases((f"{z} IS NULL", "1"), "0"))
    for i, each in enumerate(plain.numbers):
        encoded += _hats(f"s_{i}", each.knots, each.gaps)
    for name, each in zip(categories, plain.categories, strict=True):
        encoded += _one_hot(name, each)
    weights = np.concatenate([plain.gate_weight, *plain.expert_weight])
    if plain.gate_length is not None:
        weights = np.concatenate([weights, plain.gate_length])
    used = weights.any(axis=0)
    used[0] = True  # a step needs a column
    new = {f"x_{i}": value for i, value in enumerate(encoded) if used[i]}
    query.step(new)
    return list(new)


def _standardised(column):
    value = _double(_name(column.name))
    if column.factor != 1:
        value += f" * {_number(column.factor)}"
    return f"({value} - {_number(column.mean)}) / {_number(column.scale)}"


def _squashed(z):
    near = f"{z} / SQRT(1 + {z} * {z} / 9)"
    return _cases((f"{z} IS NULL", "0"), (f"{z} > 1e9", "3"), (f"{z} < -1e9", "-3"), near)


def _hats(value, knots, gaps):
    """Return the hat functions of a squashed number."""
    hats, left = [], "1"
    for knot, gap in zip(knots, gaps, strict=False):  # no gap follows the last knot
        distance = f"({value} - {_number(knot)}) / {_number(gap)}"
        risen = _cases((f"{distance} <= 0", "0"), (f"{distance} >= 1", "1"), distance)
        hats.append(f"{left} - {risen}")
        left = risen
    return [*hats, left] if knots else []


def _one_hot(name, column):
    """Return a column for each category, and one for all others if there is one."""
    is_it = [
        f"{name} IS NULL" if each is None else f"{name} = {_literal(each)}"
        for each in column.categories
    ]
    encoded = [_cases((condition, "1"), "0") for condition in is_it]
    if column.has_other:
        encoded.append(_cases(*((condition, "0") for condition in is_it), "1"))
    return encoded


def _score(query, plain, encoded):
    """Let a query compute scores and logits; return their names, (E,) and (E, C)."""
    scores = [_linear(*each) for each in zip(plain.gate_weight, plain.gate_bias, strict=True)]
    if plain.gate_length is not None:
        lengths = {f"h_{i}": _linear(row, 0.0) for i, row in enumerate(plain.gate_length)}
        query.step(lengths, keep=encoded)
        length = f"SQRT({' + '.join(f'{h} * {h}' for h in lengths)})"
        scores = [_cases((f"{length} > 0", f"({score}) / {length}"), "0") for score in scores]
    experts = [
        [_linear(*each) for each in zip(weight, bias, strict=True)]
        for weight, bias in zip(plain.expert_weight, plain.expert_bias, strict=True)
    ]
    new = {f"g_{e}": score for e, score in enumerate(scores)}
    logits = [[f"l_{e}_{c}" for c in range(len(own))] for e, own in enumerate(experts)]
    for names, own in zip(logits, experts, strict=True):
        new |= dict(zip(names, own, strict=True))
    query.step(new)
    return [f"g_{e}" for e in range(len(scores))], logits


def _softmax(query, groups, keep=(), new=None):
    """Let a query compute the softmax of the k largest columns of each group.

    ``groups`` have the columns and k, by the prefix of the results, whose names are returned.
    ``new`` are more columns to compute in the first step.
    """
    columns = [name for names, _ in groups.values() for name in names]
    most = {f"{group}_most": _largest(names) for group, (names, _) in groups.items()}
    query.step(most | (new or {}), keep=[*columns, *keep])
    keep = [*keep, *(new or {})]
    powers = {
        group: {
            f"{group}_{i}_power": _power(f"{name} - {group}_most", _is_among(top_k, i, names))
            for i, name in enumerate(names)
        }
        for group, (names, top_k) in groups.items()
    }
    query.step({name: power for own in powers.values() for name, power in own.items()}, keep)
    results = {
        group: _divided({f"{group}_{i}": power for i, power in enumerate(own)})
        for group, own in powers.items()
    }
    query.step({name: share for own in results.values() for name, share in own.items()}, keep)
    return {group: list(own) for group, own in results.items()}


def _divided(powers):
    """Return each column, by its new name, divided by the sum of all."""
    total = " + ".join(powers.values())
    return {name: f"{power} / ({total})" for name, power in powers.items()}


def _power(exponent, condition):
    is_large = f"{exponent} > {SMALLEST_EXPONENT}"
    return _cases(
        (f"{condition} AND {is_large}" if condition else is_large, f"EXP({exponent})"), "0"
    )


def _is_among(top_k, i, names):
    """Return the condition that a column is among the k largest; the first of equal ones are."""
    if top_k == len(names):
        return None
    before = [
        _cases((f"{other} {'>=' if j < i else '>'} {names[i]}", "1"), "0")
        for j, other in enumerate(names)
        if j != i
    ]
    return f"{' + '.join(before)} < {top_k}"


def _largest(names):
    return _first_largest(names, names)


def _place_of_largest(names):
    return _first_largest(names, range(len(names)))


def _first_largest(names, values):
    """Return the value that belongs to the first of the largest columns."""
    if len(names) == 1:
        return str(values[0])
    conditions = [
        (" AND ".join(f"{name} >= {other}" for other in names[i + 1 :]), str(values[i]))
        for i, name in enumerate(names[:-1])
    ]
    return _cases(*conditions, str(values[-1]))


def _cases(*cases):
    """Return a CASE of (condition, value) tuples, and at last the value in all other cases."""
    *conditions, default = cases
    whens = " ".join(f"WHEN {condition} THEN {value}" for condition, value in conditions)
    return f"CASE {whens} ELSE {default} END"


def _linear(weight, bias):
    terms = [f"{_number(weight[i])} * x_{i}" for i in np.flatnonzero(weight)]
    return " + ".join([_number(bias), *terms])


def _double(value):
    return f"CAST({value} AS DOUBLE PRECISION)"


def _number(value):
    """Write a number in full precision; with an exponent, it is in double precision in SQL."""
    text = repr(float(value))
    text += "" if "e" in text else "e0"
    return f"({text})" if text.startswith("-") else text


def _literal(category):
    if isinstance(category, str):
        return "'" + category.replace("'", "''") + "'"
    return _number(category)


def _name(name):
    """Quote the name of a column or a table; a column without a name is x0, x1 and so on."""
    text = f"x{name}" if isinstance(name, int) else str(name)
    return '"' + text.replace('"', '""') + '"'


def _lines(columns):
    return ",\n    ".join(columns)
