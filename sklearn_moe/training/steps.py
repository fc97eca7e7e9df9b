"""One step of a training, in the fastest way that the net allows.

Each way says itself which nets it can train. The gradient comes in closed form or from autograd;
the steps are made one by one or replayed as CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from skorch.callbacks import PassthroughScoring
from torch import Tensor

from sklearn_moe.layers import all_declare
from sklearn_moe.training.batches import TensorBatches
from sklearn_moe.training.closed_form import has_known_gradient, likelihood_gradient
from sklearn_moe.training.cuda_graphs import GraphedSteps

if TYPE_CHECKING:
    from sklearn_moe.training.net import MoENet


class Autograd:
    """The gradient of any objective and any mixture, from autograd."""

    def takes(self, net: MoENet) -> bool:
        """Whether this way can find the gradient of a net's loss."""
        return True

    def __call__(
        self, net: MoENet, inputs: dict[str, Tensor], y: Tensor, with_prediction: bool = False
    ) -> dict[str, Tensor]:
        """Set the gradients of a batch, and return its loss and gate probabilities."""
        net.optimizer_.zero_grad()
        loss, log_proba, gate_proba = net.session_.objective(net, **inputs, y=y)
        if loss.requires_grad:  # nothing may be left to learn for a gate that learns otherwise
            loss.backward()
        step = {"loss": loss.detach(), "gate_proba": gate_proba.detach()}
        if with_prediction:
            step["y_pred"] = log_proba.detach().softmax(dim=1)
        return step


class ClosedForm:
    """The gradient of the likelihood in closed form, for mixtures whose parts are all known."""

    def takes(self, net: MoENet) -> bool:
        """Whether this way can find the gradient of a net's loss."""
        return is_plain_likelihood(net) and has_known_gradient(net.module_, net.regularizations)

    def __call__(
        self, net: MoENet, inputs: dict[str, Tensor], y: Tensor, with_prediction: bool = False
    ) -> dict[str, Tensor]:
        """Set the gradients of a batch, and return its loss and gate probabilities."""
        loss, gate_proba, expert_proba = likelihood_gradient(
            net.module_,
            **inputs,
            y=y,
            generator=net.session_.generator,
            augmentation=net.augmentation,
            regularizations=net.regularizations,
            inverse_temperature=net.session_.inverse_temperature,
        )
        step = {"loss": loss, "gate_proba": gate_proba}
        if with_prediction:
            step["y_pred"] = torch.einsum("ne,nec->nc", gate_proba, expert_proba)
        return step


GRADIENTS = (ClosedForm(), Autograd())


def gradient_for(net: MoENet) -> ClosedForm | Autograd:
    """Return the first way that can find the gradient of a net's loss."""
    return next(each for each in GRADIENTS if each.takes(net))


def is_plain_likelihood(net: MoENet) -> bool:
    """Whether the objective is the likelihood, without changes by a user."""
    return (
        net.session_.is_likelihood
        and type(net.criterion_) is torch.nn.NLLLoss
        and net.criterion_.weight is None
        and net.criterion_.reduction == "none"
        and net.criterion_.ignore_index == -100
        and all_declare(net.criterion_, "has_known_gradient")
    )


def steps_of_epoch(
    net: MoENet, iterator: Any, announce: Callable[[], None]
) -> Iterator[dict[str, Any]]:
    """Make the steps of one epoch, and yield the batch, loss and gate probabilities of each.

    Before each step, ``announce()`` is called. With CUDA graphs, the next step overwrites the
    tensors of the previous one.
    """
    gradient, session = gradient_for(net), net.session_
    batches, step = iterator, lambda batch: make_step(net, gradient, batch)
    if _can_be_captured(net, iterator):
        if session.graphed_steps is None:
            session.graphed_steps = GraphedSteps(
                lambda rows: make_step(net, gradient, iterator.take(rows)),
                net.optimizer_,
                session.generator,
            )
        batches, step = iterator.rows(), session.graphed_steps
    for batch in batches:
        announce()
        yield step(batch)


def make_step(net: MoENet, gradient: ClosedForm | Autograd, batch: Any) -> dict[str, Any]:
    """Make one training step."""
    steps = []
    batch = on_device(net, batch)

    def closure():  # some optimizers call it several times
        steps.append(gradient(net, *batch))
        return steps[-1]["loss"].sum()  # of all restarts

    net.optimizer_.step(closure)
    return {**steps[0], "batch": batch}


def on_device(net: MoENet, batch: Any) -> Any:
    """Return a batch on the device, if the training set did not fit there."""
    inputs, y = batch
    if y.device.type == torch.device(net.device).type:
        return batch

    def sent(values):
        return values.pin_memory().to(net.device, non_blocking=True)

    return {name: sent(values) for name, values in inputs.items()}, sent(y)


def _can_be_captured(net, iterator):
    """Whether a step can become a CUDA graph: nothing in it may wait for the device."""
    return (
        type(iterator) is TensorBatches
        and iterator.y.is_cuda
        and iterator.group is None
        and iterator.n_batches > 1
        and is_plain_likelihood(net)
        # Any other callback may change something that a graph would not notice.
        and all(
            type(each) is PassthroughScoring or "can_be_captured" in vars(type(each))
            for each in net.listeners
        )
        and net.augmentation is None
        and all(vars(type(each)).get("can_be_captured") for each in net.regularizations)
        and not any(callable(getattr(each, "metric", 0)) for each in net.regularizations)
        and all_declare(net.module_, "can_be_captured")
        and all(
            "capturable" in group and group.get("fused") for group in net.optimizer_.param_groups
        )
    )
