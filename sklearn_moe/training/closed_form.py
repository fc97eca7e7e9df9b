"""The gradient of a mixture's likelihood, without autograd.

For small networks, autograd takes longer than the arithmetic. The usual mixture, of fully
connected experts with an ordinary gate, has a gradient in closed form; everything else is trained
with autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sklearn_moe.layers import all_declare
from sklearn_moe.mixture import MixtureOfExperts, MixtureOutput
from sklearn_moe.regularizers import check_penalty


def has_known_gradient(module: MixtureOfExperts, regularizations: list[Callable]) -> bool:
    """Whether :func:`likelihood_gradient` can train this mixture."""
    return (
        module.mixing == "probability"
        and all(
            getattr(each, "gate_only", False)
            or getattr(each, "of_weights", False)
            or getattr(each, "per_nat_of_experts", 0) > 0
            for each in regularizations
        )
        and all(parameter.requires_grad for parameter in module.parameters())
        and all_declare(module, "has_known_gradient")
    )


@torch.no_grad()
def likelihood_gradient(
    module: MixtureOfExperts,
    x: Tensor,
    sample_weight: Tensor,
    y: Tensor,
    *,
    generator: torch.Generator | None = None,
    augmentation: Callable | None = None,
    regularizations: Sequence[Any] = (),
    inverse_temperature: float | Tensor = 1.0,
    group: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Set the gradients of a mixture's parameters for a batch.

    With the responsibilities :math:`r_{ne} \propto p_{ne}\, o_{ne y_n}`, the experts' posterior
    probabilities given the class, the gradients of the weighted mean of the negative
    log-likelihood are

    .. math:: \frac{\partial L}{\partial l_{ne}} = \frac{w_n}{N} (p_{ne} - r_{ne}), \qquad
              \frac{\partial L}{\partial z_{nec}} = \frac{w_n}{N} r_{ne} (o_{nec} - [c = y_n])

    for the gate's logits :math:`l` and the experts' logits :math:`z`. With annealing, the
    responsibilities are :math:`r_{ne} \propto (p_{ne}\, o_{ne y_n})^b`. ``Competence`` adds
    :math:`\lambda / E` to the experts' responsibilities. Regularizations that read only the gate
    take little time; unless they know their gradient, it comes from autograd.

    For comparison, a single ``torch.autograd.Function`` for the loss took 1.3 to 1.5 times as long
    with 8 experts of 16 units on 54 features, for batches of 32 to 256, and 1.1 times with the
    default of 256 units and hat functions.

    Parameters
    ----------
    module : MixtureOfExperts
        A mixture for which :func:`has_known_gradient` is true, in training mode.
    x : Tensor of shape (n_samples, ...)
        The batch.
    sample_weight : Tensor of shape (n_samples,)
        Weights of the samples.
    y : Tensor of shape (n_samples,)
        Indices of the classes.
    generator : torch.Generator, default=None
        Source of dropout and gate noise.
    augmentation : callable, default=None
        Changes the batch at random.
    regularizations : list of callable, default=()
        Penalties that are added to the loss.
    inverse_temperature : float or Tensor of shape (n_restarts,), default=1.0
        The :math:`b` of annealing (see ``MoEClassifier``).
    group : Tensor of shape (n_samples,), default=None
        Numbers of groups. All samples of a group get one expert, whose probabilities are
        multiplied: :math:`\log \sum_e p_e \prod_n o_{ney_n}^{w_n}`.

    Returns
    -------
    loss : Tensor of shape () or (n_restarts,)
        The loss, regularizations included; one for each restart if there are several.
    gate_proba : Tensor of shape (n_samples, n_experts)
        The gate's probabilities, in the restart with the lowest loss.
    expert_proba : Tensor of shape (n_samples, n_experts, n_classes)
        Probabilities of the classes by each expert, in the same restart.

    References
    ----------
    R. A. Jacobs, M. I. Jordan, S. J. Nowlan, G. E. Hinton, Adaptive Mixtures of Local Experts,
    Neural Computation 3, 1991.
    """
    n_samples, n_restarts = len(x), module.n_restarts
    competence = sum(getattr(each, "per_nat_of_experts", 0) for each in regularizations)
    of_gate = [each for each in regularizations if getattr(each, "gate_only", False)]
    known = [each for each in of_gate if getattr(each, "has_gradient", False)]
    others = [each for each in of_gate if not getattr(each, "has_gradient", False)]
    of_weights = [each for each in regularizations if getattr(each, "of_weights", False)]
    weight = sample_weight / n_samples
    x = module.encode(x, generator, augmentation).flatten(1)
    # Experts first, as in the forward pass, because both draw from the generator.
    experts: Any = module.experts
    network: Any = module.gate.network
    expert_trail = experts.run(module.for_experts(x), generator)
    gate_trail = network.run(module.for_gate(x))
    temperature = module.gate.temperature
    if n_restarts == 1:
        gate_logits = gate_trail[-1].output.squeeze(0).mT / temperature
        with torch.set_grad_enabled(bool(others)):
            gate_logits.requires_grad_(bool(others))
            gate = module.gate.route(gate_logits, generator)
            if others:
                proba = gate.log_proba.softmax(dim=1)
                of_gate_only: Any = None, gate_logits, proba, None, None, gate.routing
                mixture = MixtureOutput(*of_gate_only)
                penalty = gate_logits.sum() * 0  # has a gradient even if no penalty has one
                for each in others:
                    penalty = penalty + check_penalty(each, each(mixture, x, y, sample_weight))
                (of_penalty,) = torch.autograd.grad(penalty, gate_logits)
        gate_log_proba = gate.log_proba.detach().mT.unsqueeze(0)
    else:
        gate_log_proba = (gate_trail[-1].output / temperature).log_softmax(dim=1)

    # The axes are restarts, experts, classes and samples.
    output = expert_trail[-1].output
    if experts.is_fixed and n_restarts > 1:  # the same for all restarts
        output = output.repeat(n_restarts, 1, 1)
    expert_log_proba = output.unflatten(0, (n_restarts, -1)).log_softmax(dim=2)
    of_class = y.expand(*expert_log_proba.shape[:2], 1, n_samples)
    log_of_class = expert_log_proba.gather(2, of_class).squeeze(2)
    b = inverse_temperature
    if group is None:
        unit_weight = gate_weight = weight
        log_joint = gate_log_proba + log_of_class
    else:
        group, counts = group.unique(return_inverse=True, return_counts=True)[1:]
        gate_weight = 1 / (n_samples * counts[group].to(weight.dtype))
        unit_weight = torch.full_like(weight[: len(counts)], 1 / n_samples)
        parts = gate_log_proba * (gate_weight * n_samples) + log_of_class * sample_weight
        log_joint = parts.new_zeros(*parts.shape[:2], len(counts)).index_add_(2, group, parts)
    is_annealed = isinstance(b, Tensor) or b != 1
    if is_annealed:
        log_joint.mul_(b.view(-1, 1, 1) if isinstance(b, Tensor) else b)
    log_responsibility = log_joint.log_softmax(dim=1)
    # For each expert, the two differ by the log-likelihood of the sample.
    nats = log_responsibility.amax(dim=1) - log_joint.amax(dim=1)
    loss = nats @ unit_weight
    if is_annealed:
        loss = loss / b
    gate_proba, responsibility = gate_log_proba.exp(), log_responsibility.exp_()
    if group is None:
        responsibility = of_experts = responsibility * weight
    else:
        responsibility = responsibility.index_select(2, group)
        of_experts, responsibility = responsibility * weight, responsibility * gate_weight
    if competence:
        loss = loss - competence * (log_of_class.mean(dim=1) @ weight)
        of_experts = of_experts + competence / of_experts.shape[1] * weight

    expert_proba = expert_log_proba.exp_()
    upstream = expert_proba * of_experts.unsqueeze(2)
    upstream.scatter_add_(2, of_class, -of_experts.unsqueeze(2))
    experts.backward(expert_trail, upstream.flatten(0, 1))
    upstream = gate_proba * gate_weight - responsibility
    for each in known:
        for proba, of_gate, total in zip(gate_proba, upstream, loss, strict=True):
            value, slope = each.penalty_and_gradient(proba.mT, sample_weight)
            total.add_(each.strength * value)
            slope = slope.mT * each.strength
            of_gate.add_(proba * (slope - (proba * slope).sum(dim=0)))
    if others:
        loss = loss + penalty.detach()
        upstream = upstream + of_penalty.mT
    network.backward(gate_trail, upstream / temperature)
    of_experts = module.experts.penalty()
    if of_experts is not None:
        loss = loss + of_experts.unflatten(0, (n_restarts, -1)).sum(dim=1)
    for each in of_weights:
        loss = loss + each.strength * each.add_gradient(module.gate)
    if n_restarts == 1:
        return loss[0], gate_proba[0].mT, expert_proba[0].permute(2, 0, 1)
    best = loss.nan_to_num(torch.inf).argmin()
    return loss, gate_proba[best].mT, expert_proba[best].permute(2, 0, 1)
