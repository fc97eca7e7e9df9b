"""The likelihood of a mixture of logistic regressions, its maximum and its curvature."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import null_space
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

# Columns whose singular value is smaller than this, relative to the largest, add nothing: the hat
# functions of a column sum to 1 in single precision.
SMALLEST = 1e-5

# A direction in which the likelihood tells the logits of typical samples only up to this standard
# error cannot be estimated.
LARGEST_ERROR = 5.0

# A prior precision of all parameters, so weak that it only stops those that would grow without
# bound.
STOP = 0.01 * LARGEST_ERROR**-2

# Numbers of a matrix of scores that are held at once.
AT_ONCE = 2**22


class Design:
    """Columns and a constant, turned into independent columns of unit mean square.

    Parameters
    ----------
    x : ndarray of shape (n_samples, n_columns)
        Encoded samples.
    """

    def __init__(self, x: NDArray):
        x = np.column_stack([np.ones(len(x)), x.astype(np.float64)])
        left, sizes, right = np.linalg.svd(x, full_matrices=False)
        rank = int(np.sum(sizes > SMALLEST * sizes[0]))
        scale = np.sqrt(len(x))
        self.columns = left[:, :rank] * scale
        self._from_columns = right[:rank].T / (sizes[:rank] / scale)
        self._right = right[:rank]

    def take(self, rows: NDArray) -> Design:
        """Return the design with other rows of the samples."""
        design = copy(self)
        design.columns = self.columns[rows]
        return design

    def penalty(self, strength: NDArray) -> NDArray[np.float64]:
        r"""Return the matrix of :math:`\sum_d s_d w_d^2` as a function of the parameters.

        Weights that the samples do not tell apart are those with the smallest penalty.

        Parameters
        ----------
        strength : ndarray of shape (n_columns,)
            The :math:`s_d`; there is none for the bias.
        """
        strength = np.diag(np.concatenate([[0.0], strength]))
        known = self._from_columns.T @ strength @ self._from_columns
        free = null_space(self._right)
        cross = self._from_columns.T @ strength @ free
        return known - cross @ np.linalg.pinv(free.T @ strength @ free) @ cross.T

    def parameters(self, logits: NDArray) -> NDArray[np.float64]:
        """Return the parameters (n_outputs, rank) of the logits (n_samples, n_outputs)."""
        return logits.astype(np.float64).T @ self.columns / len(self.columns)

    def contrast(self, direction: NDArray) -> NDArray[np.float64] | None:
        """Return a contrast of the parameters that is a contrast of weights; None if unknown.

        Parameters
        ----------
        direction : ndarray of shape (1 + n_columns,)
            Factors of the bias and the weights. A sum of weights that the samples do not determine
            is unknown, such as that of a category without samples.
        """
        known = self._right.T @ (self._right @ direction)
        if np.linalg.norm(known - direction) > 1e-3 * np.linalg.norm(direction):
            return None
        return direction @ self._from_columns


def determined(x: NDArray, sources: NDArray) -> NDArray[np.bool_]:
    """Return which columns of a table earlier ones determine, with a constant.

    Parameters
    ----------
    x : ndarray of shape (n_samples, n_columns)
        Encoded columns.
    sources : ndarray of int of shape (n_columns,)
        The column of the table from which each comes.

    Returns
    -------
    ndarray of bool of shape (n_columns,)
    """
    basis = np.full((len(x), 1), len(x) ** -0.5)
    out = np.zeros(len(sources), dtype=bool)
    for source in np.unique(sources):
        own = x[:, sources == source].astype(np.float64)
        size = np.linalg.norm(own)
        for _ in range(2):  # once more, for the sake of rounding
            own -= basis @ (basis.T @ own)
        left, sizes, _ = np.linalg.svd(own, full_matrices=False)
        left = left[:, sizes > SMALLEST * size]
        out[sources == source] = left.shape[1] == 0
        basis = np.hstack([basis, left])
    return out


class Maximum(NamedTuple):
    """A maximum of the penalised likelihood.

    Attributes
    ----------
    parameters : ndarray of shape (n_parameters,)
        The parameters, first those of the gate, then those of each expert.
    log_likelihood : float
        The logarithm of the likelihood, without the penalty.
    covariance : ndarray of shape (n_parameters, n_parameters)
        Inverse of the observed information and the penalty.
    unknown : ndarray of shape (n_parameters, n_unknown)
        The part of it, as a product of this matrix with its transpose, in directions in which the
        likelihood has hardly any curvature.
    responsibilities : ndarray of shape (n_units, n_experts)
        Probability of each expert, given the labels.
    """

    parameters: NDArray[np.float64]
    log_likelihood: float
    covariance: NDArray[np.float64]
    unknown: NDArray[np.float64]
    responsibilities: NDArray[np.float64]


class Likelihood:
    r"""The log-likelihood of a mixture of logistic regressions as a function of its parameters.

    The first expert is the baseline of the gate, and the first class that of each expert. All
    samples of a unit have one expert; with :math:`a_{ue} = \log p_{ue} + \sum_{n \in u} w_n \log
    o_{ne}(y_n)`, the log-likelihood is :math:`\sum_u v_u \log \sum_e \exp a_{ue}`. Its second
    derivatives follow from those of :math:`a_{ue}` (Louis 1982).

    Parameters
    ----------
    gate : Design or ndarray of shape (n_samples, n_experts)
        The columns that the gate reads, or its fixed log-probabilities.
    experts : Design
        The columns that the experts read.
    y : ndarray of shape (n_samples,)
        Positions of the classes.
    n_experts, n_classes : int
        Their numbers.
    sample_weight : ndarray of shape (n_samples,)
        Weights that count samples.
    group : ndarray of shape (n_samples,) or None
        Labels of the units; None makes each sample one.
    gate_penalty : ndarray of shape (rank, rank) or None
        Matrix of a penalty on the gate's weights, in nats of the mean loss.

    References
    ----------
    T. A. Louis, Finding the Observed Information Matrix when Using the EM Algorithm, Journal of
    the Royal Statistical Society B 44, 1982.
    """

    def __init__(
        self,
        gate: Design | NDArray,
        experts: Design,
        y: NDArray,
        *,
        n_experts: int,
        n_classes: int,
        sample_weight: NDArray,
        group: NDArray | None = None,
        gate_penalty: NDArray | None = None,
    ):
        unit = np.arange(len(y)) if group is None else np.unique(group, return_inverse=True)[1]
        self.unit = unit
        order = np.argsort(unit, kind="stable")
        self.starts = np.flatnonzero(np.diff(unit[order], prepend=-1))
        self.n_experts, self.n_classes = n_experts, n_classes
        self.has_gate = isinstance(gate, Design)
        self.first = order[self.starts]
        columns = gate.columns if isinstance(gate, Design) else np.empty((len(y), 0))
        self.gate_columns = columns[self.first]
        self.offset = np.zeros(n_experts) if isinstance(gate, Design) else gate[self.first]
        self.expert_columns = experts.columns[order]
        self.y = y[order]
        weight = sample_weight[order].astype(np.float64)
        self.unit_weight = weight if group is None else np.ones(len(self.starts))
        self.row_weight = np.ones(len(y)) if group is None else weight
        self.unit_of_row = np.repeat(
            np.arange(len(self.starts)), np.diff(self.starts, append=len(y))
        )
        self.shapes = [(n_experts - 1, columns.shape[1])]
        self.shapes += [(n_classes - 1, experts.columns.shape[1])] * n_experts
        self.ends = np.cumsum([0, *(rows * columns for rows, columns in self.shapes)])
        self.penalty = STOP * np.eye(self.n_parameters)
        if gate_penalty is not None:
            # The sum of squares is that of the weights of all experts, less their mean.
            centred = np.eye(n_experts - 1) - 1 / n_experts
            penalty = sample_weight.sum() * np.kron(centred, gate_penalty)
            self.penalty[self.block(0), self.block(0)] += penalty

    @property
    def n_parameters(self) -> int:
        """Number of parameters."""
        return int(self.ends[-1])

    @property
    def n_samples(self) -> float:
        """The sum of the weights of samples or, with groups, the number of groups."""
        return float(self.unit_weight.sum())

    def block(self, part: int) -> slice:
        """Return where the parameters of the gate (0) or of expert ``part - 1`` are."""
        return slice(self.ends[part], self.ends[part + 1])

    def unpack(self, parameters: NDArray) -> list[NDArray]:
        """Return the parameters of the gate and of each expert, (n_outputs - 1, rank) each."""
        return [
            parameters[self.block(part)].reshape(shape) for part, shape in enumerate(self.shapes)
        ]

    def resampled(self, counts: NDArray, log_gate: NDArray | None = None) -> Likelihood:
        """Return the likelihood of units that are drawn with replacement.

        Parameters
        ----------
        counts : ndarray of shape (n_units,)
            How often each unit is drawn.
        log_gate : ndarray of shape (n_samples, n_experts), default=None
            The fixed log-probabilities of a gate that was fitted to these units.
        """
        other = copy(self)
        other.unit_weight = counts.astype(np.float64)
        if log_gate is not None:
            other.offset = log_gate[self.first]
        return other

    def renumbered(self, parameters: NDArray, order: NDArray) -> NDArray[np.float64]:
        """Return the parameters if the experts had other numbers.

        Parameters
        ----------
        parameters : ndarray of shape (n_parameters,)
            The parameters.
        order : ndarray of int of shape (n_experts,)
            The present number of each expert of the new order.
        """
        gate, *experts = self.unpack(parameters)
        gate = np.pad(gate, ((1, 0), (0, 0)))[order]
        parts = [gate[1:] - gate[:1], *(experts[each] for each in order)]
        return np.concatenate([part.ravel() for part in parts])

    def evaluate(self, parameters: NDArray) -> tuple[float, NDArray, NDArray]:
        """Return the log-likelihood, its gradient and its negative second derivatives.

        The last two are those of the penalised likelihood.
        """
        value, gradient = 0.0, -self.penalty @ parameters
        information = self.penalty.copy()
        for units in self._pieces():
            value += self._add(units, parameters, gradient, information)
        return value, gradient, information

    def responsibilities(self, parameters: NDArray) -> NDArray[np.float64]:
        """Return the probability of each expert given the labels, (n_units, n_experts)."""
        return np.concatenate(
            [softmax(self._logits(units, parameters)[0], axis=1) for units in self._pieces()]
        )

    def maximise(self, start: NDArray) -> Maximum:
        """Return the maximum of the penalised likelihood that is nearest to these parameters."""
        n = self.n_samples
        last: dict[str, Any] = {}

        def at(parameters):
            key = parameters.tobytes()
            if key not in last:
                last.clear()
                last[key] = self.evaluate(parameters)
            return last[key]

        def loss(parameters):
            penalty = parameters @ self.penalty @ parameters / 2
            return (penalty - at(parameters)[0]) / n

        end = minimize(
            loss,
            start,
            jac=lambda parameters: -at(parameters)[1] / n,
            hess=lambda parameters: at(parameters)[2] / n,
            method="trust-exact",
            options={"gtol": 1e-9, "maxiter": 60},
        ).x
        value, _, information = at(end)
        sizes, directions = np.linalg.eigh(information)
        is_known = sizes > LARGEST_ERROR**-2
        return Maximum(
            parameters=end,
            log_likelihood=value,
            covariance=directions / np.maximum(sizes, STOP) @ directions.T,
            unknown=directions[:, ~is_known] / np.sqrt(np.maximum(sizes[~is_known], STOP)),
            responsibilities=self.responsibilities(end),
        )

    def _pieces(self) -> Iterator[slice]:
        """Return slices of units whose scores fit into memory."""
        step = max(1, AT_ONCE // self.n_parameters)
        return (slice(i, i + step) for i in range(0, len(self.starts), step))

    def _rows(self, units):
        end = self.starts[units.stop] if units.stop < len(self.starts) else len(self.y)
        return slice(self.starts[units.start], end)

    def _logits(self, units, parameters):
        """Return a_ue, and the probabilities of experts and classes."""
        rows = self._rows(units)
        parts = self.unpack(parameters)
        gate = np.pad(self.gate_columns[units] @ parts[0].T, ((0, 0), (1, 0)))
        offset = self.offset if self.has_gate else self.offset[units]
        gate = log_softmax(gate + offset, axis=1)
        joint, of_classes = gate.copy(), []
        for expert, part in enumerate(parts[1:]):
            logits = np.pad(self.expert_columns[rows] @ part.T, ((0, 0), (1, 0)))
            log_proba = log_softmax(logits, axis=1)
            of_label = log_proba[np.arange(len(logits)), self.y[rows]] * self.row_weight[rows]
            joint[:, expert] += self._sum(of_label, units)
            of_classes.append(np.exp(log_proba))
        return joint, np.exp(gate), of_classes

    def _sum(self, values, units):
        """Sum the values of the rows of each unit."""
        if len(self.starts) == len(self.y):
            return values
        return np.add.reduceat(values, self.starts[units] - self.starts[units.start], axis=0)

    def _add(self, units, parameters, gradient, information):
        """Add what some units contribute, and return their log-likelihood."""
        rows = self._rows(units)
        joint, gate_proba, of_classes = self._logits(units, parameters)
        value = np.logaddexp.reduce(joint, axis=1)
        responsibility = np.exp(joint - value[:, np.newaxis])
        weight = self.unit_weight[units]
        mean = np.zeros((len(joint), self.n_parameters))
        of_gate = self.block(0)
        for expert, proba in enumerate(of_classes):
            own, of_expert = responsibility[:, expert], self.block(expert + 1)
            chosen = np.zeros_like(gate_proba)
            chosen[:, expert] = 1
            gate_score = _products((chosen - gate_proba)[:, 1:], self.gate_columns[units])
            error = np.eye(self.n_classes)[self.y[rows]] - proba
            error = error[:, 1:] * self.row_weight[rows][:, np.newaxis]
            score = self._sum(_products(error, self.expert_columns[rows]), units)
            mean[:, of_gate] += own[:, np.newaxis] * gate_score
            mean[:, of_expert] = own[:, np.newaxis] * score
            # A matrix times itself takes half the time.
            root = np.sqrt(weight * own)[:, np.newaxis]
            gate_score, score = root * gate_score, root * score
            information[of_gate, of_gate] -= gate_score.T @ gate_score
            cross = gate_score.T @ score
            information[of_gate, of_expert] -= cross
            information[of_expert, of_gate] -= cross.T
            information[of_expert, of_expert] -= score.T @ score
            of_row = (weight * own)[self.unit_of_row[rows] - units.start] * self.row_weight[rows]
            information[of_expert, of_expert] += _curvature(
                proba[:, 1:], of_row, self.expert_columns[rows]
            )
        information[of_gate, of_gate] += _curvature(
            gate_proba[:, 1:], weight, self.gate_columns[units]
        )
        gradient += weight @ mean
        mean *= np.sqrt(weight)[:, np.newaxis]
        information += mean.T @ mean
        return float(weight @ value)


def _products(errors, columns):
    """Return the products of each error with each column, (n_rows, n_errors * n_columns)."""
    return (errors[:, :, np.newaxis] * columns[:, np.newaxis]).reshape(len(columns), -1)


def _curvature(proba, weight, columns):
    """Return the information of a multinomial logistic regression on weighted rows."""
    n, n_columns = proba.shape[1], columns.shape[1]
    out = np.empty((n, n_columns, n, n_columns))
    for one in range(n):
        for other in range(one, n):
            if one == other:
                root = np.sqrt(proba[:, one] * (1 - proba[:, one]) * weight)
                scaled = root[:, np.newaxis] * columns
                out[one, :, one] = scaled.T @ scaled
                continue
            spread = proba[:, one] * proba[:, other] * weight
            out[one, :, other] = -columns.T @ (spread[:, np.newaxis] * columns)
            out[other, :, one] = out[one, :, other].T
    return out.reshape(n * n_columns, n * n_columns)
