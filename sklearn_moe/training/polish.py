"""After the last epoch: polish what is simple, and remove columns that a sparse gate ignores."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy, deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sklearn_moe.mixture import MixtureOfExperts
from sklearn_moe.training.batches import evenly
from sklearn_moe.training.closed_form import has_known_gradient, likelihood_gradient
from sklearn_moe.training.restarts import (
    SAMPLES_TO_AGREE,
    End,
    log_joint,
    mean_log_likelihood,
)

if TYPE_CHECKING:
    from sklearn_moe.training.net import MoENet
    from sklearn_moe.training.restarts import Starts

# The polish holds all encoded samples in double precision, and reads them some hundred times.
# Larger tables gain little from it.
LARGEST_TABLE = 2**25

# Columns whose weights are smaller than this, relative to the largest, are removed at once if that
# is good, and the others one after the other.
SMALL = 0.3

# A sparse gate chooses among at most so many restarts that divide the samples differently.
MOST_DISTINCT = 3

CRITERIA = ("log_likelihood_", "n_identifiable_parameters_", "aic_", "bic_", "icl_")

# Numbers of columns are counted on at most about this many samples.
SAMPLES = 4096

# What a parameter costs where hat functions are removed, in twice the log-likelihood: as in the
# AIC. The BIC would also remove those that a threshold needs.
COST_OF_HAT = 2.0

# Steps of L-BFGS: before columns are removed, after each attempt to remove some, and in the end.
FIRST_STEPS, STEPS_OF_ATTEMPT, LAST_STEPS = 15, 15, 100


def can_be_polished(net: MoENet) -> bool:
    """Whether a net's mixture has linear or fixed experts, and a gradient in closed form."""
    module = net.module_
    return (
        (module.experts.is_linear or module.experts.is_fixed)
        and module.gate.top_k is None
        and type(module.encoder) is torch.nn.Identity
        and type(net.criterion_) is torch.nn.NLLLoss
        and net.augmentation is None
        and has_known_gradient(module, net.regularizations)
    )


def can_be_relaxed(net: MoENet, n_samples: int) -> bool:
    """Whether the penalty on a gate's weights is smaller once its columns are chosen."""
    gate, experts = net.module_.gate, net.module_.experts
    return is_small_enough(net, n_samples) and experts.is_linear and gate.is_linear


def is_small_enough(net: MoENet, n_samples: int) -> bool:
    """Whether a net can be polished on so many samples."""
    return can_be_polished(net) and (
        n_samples * net.module_.gate.input_weight.shape[2] <= LARGEST_TABLE
    )


def finish(
    net: MoENet,
    X: Any,
    y: NDArray,
    sample_weight: NDArray,
    group: NDArray | None = None,
    *,
    starts: Starts | None = None,
) -> None:
    """Polish linear experts or a gate, and let a sparse gate drop columns that it does not need.

    The score of a restart does not know how many columns the gate can do without. So a sparse gate
    chooses among restarts that divide the samples differently, by their BIC after columns are
    dropped. A linear gate of linear experts also drops hat functions, and is relaxed.

    Parameters
    ----------
    net : MoENet
        A trained net.
    X, y, sample_weight, group
        The training samples, as the net reads them.
    starts : Starts, default=None
        The restarts, of which the net has the best.
    """
    is_sparse = any(getattr(each, "of_weights", False) for each in net.regularizations)
    data = X, y, sample_weight
    if is_small_enough(net, len(X)):
        _polish(net, is_sparse, starts, *data, group)
    elif is_sparse:
        _drop_columns(_Trained(net, *data, group))


def _polish(net, is_sparse, starts, *data):
    """Bring a net with linear experts to the nearest optimum of its loss, by L-BFGS."""
    objective = _Objective(net, *data)
    before, finished = objective(), {}
    is_relaxed = is_sparse and can_be_relaxed(net, len(data[0]))
    if is_sparse:
        distinct = [] if starts is None else starts.distinct(MOST_DISTINCT)
        others = [objective.of(starts.ends[i].mixture) for i in distinct[1:]]
        objectives = [objective, *others]
        for each in objectives:
            each.minimise(FIRST_STEPS)
            _drop_columns(each)
            if is_relaxed:
                _drop_hats(each)
                each.relax()
                each.minimise(FIRST_STEPS)
        ends = [each.end() for each in objectives]
        best = int(np.nan_to_num([-end.score for end in ends], nan=np.inf).argmin())
        objective = objectives[best]
        finished = dict(zip(distinct, ends, strict=False))
    objective.minimise(LAST_STEPS)
    after = objective()
    if not (after.isfinite() if is_sparse else after < before):
        return
    objective.copy_to(net)
    if finished:
        starts.kept, starts.finished = distinct[best], finished


def polish_again(
    net: MoENet, X: Any, y: NDArray, sample_weight: NDArray, group: NDArray | None = None
) -> None:
    """Bring a polished net to the nearest optimum for other samples.

    Columns that its gate does not use stay out.

    Parameters
    ----------
    net : MoENet
        A net that can be polished.
    X, y, sample_weight, group
        The samples, as the net reads them.
    """
    objective = _Objective(net, X, y, sample_weight, group)
    objective.dropped = ~net.module_.gate.used_inputs
    before = objective()
    objective.minimise(LAST_STEPS)
    if objective() < before:
        objective.copy_to(net)


@torch.no_grad()
def _drop_columns(target: _Trained | _Objective) -> None:
    """Set the gate's weights of columns to zero where this lowers the BIC."""
    gate = target.mixture.gate
    norms = gate.column_squares()[0].sqrt()
    order = norms.argsort()
    attempt_to_drop, n_dropped = _attempts(target, target.bic), 0

    def attempt(n):
        nonlocal n_dropped
        is_better = attempt_to_drop(torch.isin(gate.column_groups, order[:n]))
        n_dropped = n if is_better else n_dropped
        return is_better

    n = int((norms < SMALL * norms.max()).sum())
    while n > 0 and not attempt(n):
        n //= 2
    while n_dropped < len(order) and attempt(n_dropped + 1):
        pass


@torch.no_grad()
def _drop_hats(target: _Objective) -> None:
    """Make the gate linear in all columns, or in some of them, where this lowers the AIC."""
    if target.is_hat is None:
        return
    attempt = _attempts(target, lambda: target.bic(COST_OF_HAT))
    unused = ~target.mixture.gate.used_inputs
    hats = target.is_hat & ~unused
    if not hats.any() or attempt(unused | hats):
        return
    columns = target.mixture.gate.column_groups
    for column in columns[hats].unique():
        attempt(~target.mixture.gate.used_inputs | (hats & (columns == column)))


def _attempts(target: Any, criterion: Callable[[], float]) -> Callable[[Tensor], bool]:
    """Return a function that drops inputs of the gate, unless this raises a criterion."""
    best = criterion()

    def attempt(dropped):
        nonlocal best
        before = target.dropped, deepcopy(target.mixture.state_dict())
        target.dropped = dropped
        target.mixture.gate.input_weight[:, :, dropped] = 0
        target.minimise(STEPS_OF_ATTEMPT)
        value = criterion()
        if not value <= best:  # it may be nan
            target.dropped, state = before
            target.mixture.load_state_dict(state)
            return False
        best = value
        return True

    return attempt


class _Trained:
    """A trained mixture of any kind, whose weights stay as they are."""

    dropped: Tensor | None = None

    def __init__(self, net, X, y, sample_weight, group):
        self.net, self.mixture = net, net.module_
        self.n_samples = len(X)
        if group is None:
            rows, self.n_units = evenly(len(X), SAMPLES), len(X)
        else:
            self.n_units = group.max() + 1
            share = evenly(self.n_units, SAMPLES)
            rows = np.isin(group, np.arange(self.n_units)[share])
            group = group[rows]
        self.data = X[rows], y[rows], sample_weight[rows], group

    def minimise(self, steps: int) -> None:
        """Do nothing."""

    def bic(self) -> float:
        """Return the BIC, as far as it depends on the columns that the gate reads."""
        loss = -mean_log_likelihood(self.net, *self.data)
        n_parameters = int(self.mixture.gate.input_weight.count_nonzero())
        return 2 * self.n_samples * loss + n_parameters * np.log(self.n_units)


class _Objective:
    """The loss of a mixture on all samples, in double precision; a call sets the gradients."""

    dropped: Tensor | None = None

    def __init__(self, net, X, y, sample_weight, group):
        self.mixture = _in_double(net.module_)
        self.n_units = len(X) if group is None else group.max() + 1
        self.regularizations = net.regularizations
        is_hat = None if net.table is None else net.table.is_hat_[_columns(net)]
        self.is_hat = None if is_hat is None else torch.from_numpy(is_hat).to(net.device)
        encoded = torch.from_numpy(net.evaluate(X, MixtureOfExperts.encode))
        self.batch = {
            "x": encoded.to(net.device).double(),
            "sample_weight": torch.from_numpy(sample_weight).to(net.device).double(),
            "y": torch.from_numpy(y).to(net.device),
            "group": None if group is None else torch.from_numpy(group).to(net.device),
        }

    def of(self, mixture: MixtureOfExperts) -> _Objective:
        """Return the loss of another mixture on the same samples."""
        other = copy(self)
        other.mixture = _in_double(mixture)
        return other

    def relax(self) -> None:
        """Let the penalties be smaller, as the columns are chosen (Meinshausen 2007)."""
        self.regularizations = [relaxed(each) for each in self.regularizations]

    def __call__(self, regularizations: Any = None) -> Tensor:
        loss, *_ = likelihood_gradient(
            self.mixture,
            **self.batch,
            regularizations=self.regularizations if regularizations is None else regularizations,
        )
        if self.dropped is not None:
            self.mixture.gate.input_weight.grad[:, :, self.dropped] = 0
        return loss

    def minimise(self, steps: int) -> None:
        """Minimise the loss by L-BFGS."""
        optimizer = torch.optim.LBFGS(
            self.mixture.parameters(),
            max_iter=steps,
            history_size=20,
            tolerance_grad=1e-7,
            tolerance_change=1e-9,
            line_search_fn="strong_wolfe",
        )
        optimizer.step(self)

    @torch.no_grad()
    def copy_to(self, net: MoENet) -> None:
        """Give a net the parameters of the mixture."""
        for name, parameter in self.mixture.named_parameters():
            net.module_.get_parameter(name).copy_(parameter)

    @torch.no_grad()
    def bic(self, cost: float | None = None) -> float:
        """Return the BIC, as far as it depends on the columns that the gate reads.

        With another ``cost`` of a parameter than the logarithm of the number of samples, it is
        another criterion. A gate with layers counts as a linear one of its narrowest layer. With
        each weight of its first layer as a parameter, one of five gates with 16 units lost the
        columns of planted regions, in which one of three classifiers is right; so, none does.
        """
        gate, x = self.mixture.gate, self.mixture.for_gate(self.batch["x"])
        n_samples, n_outputs = len(x), min(layer.weight.shape[1] for layer in gate.network.layers)
        rows = evenly(n_samples, SAMPLES)
        n_parameters = (n_outputs - 1) * _rank(x[rows, gate.used_inputs])
        loss, penalty = self([]), self.mixture.experts.penalty()
        if penalty is not None:
            loss = loss - penalty.sum()
        cost = np.log(self.n_units) if cost is None else cost
        return float(2 * n_samples * loss) + n_parameters * cost

    @torch.no_grad()
    def end(self) -> End:
        """Return what the restart has come to; its score is the BIC, as a log-likelihood."""
        x = self.batch["x"]
        rows = evenly(len(x), SAMPLES_TO_AGREE)
        choice = self.mixture.gate_proba(x[rows]).argmax(dim=1).cpu().numpy()
        return End(self.mixture, -self.bic() / (2 * len(x)), choice)


def relaxed(regularization: Any) -> Any:
    """Return what takes the place of a regularization once columns are chosen."""
    is_of_weights = getattr(regularization, "of_weights", False)
    return regularization.relaxed() if is_of_weights else regularization


def _columns(net):
    return slice(None) if net.gate_columns is None else net.gate_columns


def _in_double(module):
    """Return the gate and the experts of a mixture, in double precision."""
    return MixtureOfExperts(
        deepcopy(module.experts).double(),
        deepcopy(module.gate).double(),
        gate_columns=module.gate_columns,
        expert_columns=module.expert_columns,
    ).eval()


def information_criteria(
    net: MoENet,
    n: float,
    X: Any,
    y: NDArray,
    sample_weight: NDArray,
    group: NDArray | None = None,
) -> dict[str, Any]:
    """Return the log-likelihood and the criteria of a mixture of logistic regressions.

    Parameters
    ----------
    net : MoENet
        A fitted net.
    n : float
        How many samples these are, as the sum of a user's weights.
    X, y, sample_weight, group
        The training samples, with weights of mean 1.
    """
    if not (can_be_polished(net) and net.module_.experts.is_linear):
        return {}
    joint = log_joint(net, X, y, sample_weight, group)
    log_proba = np.logaddexp.reduce(joint, axis=1)
    posterior = np.exp(joint - log_proba[:, np.newaxis])
    entropy = -np.sum(posterior * np.log(np.maximum(posterior, 1e-300)), axis=1)
    weight = sample_weight.astype(np.float64) if group is None else np.ones(len(joint))
    weight *= n / sample_weight.sum(dtype=np.float64)
    log_likelihood = float(weight @ log_proba)
    n_parameters = _n_identifiable(net, X)
    bic = n_parameters * np.log(weight.sum()) - 2 * log_likelihood
    aic, icl = 2 * n_parameters - 2 * log_likelihood, bic + 2 * weight @ entropy
    values = log_likelihood, n_parameters, aic, float(bic), float(icl)
    return dict(zip(CRITERIA, values, strict=True))


def _n_identifiable(net, X):
    module = net.module_
    encoded = net.evaluate(X[evenly(len(X), SAMPLES)], MixtureOfExperts.encode)
    encoded = torch.from_numpy(encoded).to(net.device).flatten(1)
    of_gate = sum(parameter.numel() for parameter in module.gate.parameters())
    if module.gate.is_linear:
        inputs = module.for_gate(encoded)[:, module.gate.used_inputs]
        of_gate = (net.n_experts - 1) * _rank(inputs)
    of_experts = net.n_experts * (net.n_classes - 1) * _rank(module.for_experts(encoded))
    return of_gate + of_experts


def _rank(x):
    """Return the number of linearly independent columns, with a column of ones."""
    x = torch.nn.functional.pad(x.double(), (0, 1), value=1.0)
    # The hat functions of a column sum to 1 in single precision.
    return int(torch.linalg.matrix_rank(x, rtol=1e-5))
