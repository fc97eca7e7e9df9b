"""Build the mixture of a net, also again after pruning has changed it."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sklearn_moe.encoders import build_encoder, output_shape
from sklearn_moe.experts import EXPERTS, build_experts
from sklearn_moe.experts.base import ExpertsModule
from sklearn_moe.experts.grown import GrownExpertsModule, grow_experts
from sklearn_moe.gates import GateModule, build_gate
from sklearn_moe.gates.grown import GrownGateModule, grow_gate
from sklearn_moe.mixture import MixtureOfExperts
from sklearn_moe.shapes import ShapeFunctions

if TYPE_CHECKING:
    from sklearn_moe.training.net import MoENet


def build_mixture(net: MoENet, generator: torch.Generator) -> MixtureOfExperts:
    """Build a mixture with the parameters of a net, and initial weights from a generator."""
    table, shape = None, samples_shape(net)
    if net.table is not None:
        table = net.table.make_layer()
        shape = (table.n_out,)
    elif net.image_shape is not None:  # images come flat, with log-probabilities behind them
        table, shape = nn.Unflatten(1, net.image_shape), net.image_shape
    n_given = getattr(net.experts, "n_outside", 0) * net.n_classes
    encoder = _make(
        lambda _: build_encoder(net.encoder, shape, generator), None, net.steps_["encoder"]
    )
    shape = output_shape(encoder, shape)

    def experts_for(sizes):
        return build_experts_of(net, shape, *sizes, generator)

    def gate_for(n_experts):
        return build_gate_of(net, shape, n_experts, experts.hidden_size, generator)

    def more_experts(experts, change):
        return add_experts(net, shape, experts, generator, **change)

    def wider_gate(gate, change):
        return add_stage(net, shape, gate, experts.hidden_size, generator, **change)

    experts = _make(experts_for, more_experts, net.steps_["experts"])
    gate = _make(gate_for, wider_gate, net.steps_["gate"])
    gate_columns, expert_columns = net.gate_columns, net.expert_columns
    if n_given:  # the last columns are log-probabilities, which only the experts read
        n_columns = math.prod(shape)
        if gate_columns is None:
            gate_columns = np.arange(n_columns)
        if expert_columns is not None:
            expert_columns = np.r_[expert_columns, n_columns : n_columns + n_given]
    return net.module(
        experts,
        gate,
        mixing=net.mixing,
        encoder=encoder,
        table=table,
        gate_columns=gate_columns,
        expert_columns=expert_columns,
        gate_shape=shape if n_given and len(shape) > 1 else None,
    )


def samples_shape(net: MoENet) -> tuple[int, ...]:
    """Return the shape of a sample without what experts outside of the net say about it."""
    n_given = getattr(net.experts, "n_outside", 0) * net.n_classes
    return (net.input_shape[0] - n_given,) if n_given else net.input_shape


def build_experts_of(
    net: MoENet,
    shape: tuple[int, ...],
    n_experts: int,
    n_classes: int,
    generator: torch.Generator,
) -> ExpertsModule:
    """Build experts of a net, for samples that have this shape after the encoder."""
    experts = net.experts
    if isinstance(experts, str):
        experts = EXPERTS["conv" if len(shape) in (2, 3) else "mlp"]
    own_shape = _shape_of(net.expert_columns, shape)
    if n_outside := getattr(experts, "n_outside", 0):
        if len(own_shape) > 1:
            experts = copy(experts)
            experts.image_shape = own_shape
        own_shape = (math.prod(own_shape) + n_outside * n_classes,)
    shapes = _shapes(net) if getattr(experts, "reads_shapes", False) else None
    if shapes is None:
        return build_experts(experts, own_shape, n_experts, n_classes, generator)
    own_shape = (own_shape[0] + len(shapes.value),)
    module = build_experts(experts, own_shape, n_experts, n_classes, generator)
    module.shapes = shapes
    return module


def _shapes(net):
    """Return the shape functions of the columns that the experts read, or None if there are none.

    The columns of numbers come first among those that are encoded.
    """
    if net.table is None or not _is_direct(net):
        return None
    knots = net.table.shape_knots_
    read = range(len(knots)) if net.expert_columns is None else net.expert_columns
    bent = {i: knots[j] for i, j in enumerate(read) if j < len(knots) and len(knots[j])}
    return ShapeFunctions([*bent], [*bent.values()]) if bent else None


def _is_direct(net):
    """Whether gate and experts read the encoded columns of a table, not what a network makes."""
    return net.encoder is None or net.encoder.needs_tables


def add_experts(
    net: MoENet,
    shape: tuple[int, ...],
    experts: ExpertsModule,
    generator: torch.Generator,
    *,
    n_new: int,
    former: list[int],
    n_classes: int,
) -> GrownExpertsModule:
    """Return experts of a net with ``n_new`` more beside them (see ``grow_experts``)."""
    new = build_experts_of(net, shape, n_new, n_classes, generator)
    return grow_experts(experts, new, former, n_classes)


def add_stage(
    net: MoENet,
    shape: tuple[int, ...],
    gate: GateModule,
    hidden_size: int,
    generator: torch.Generator,
    **change: Any,
) -> GrownGateModule:
    """Return the gate of a net with one more stage (see ``grow_gate``)."""
    n_experts = change["n_experts"] + change["n_new"]
    new = build_gate_of(net, shape, n_experts, hidden_size, generator)
    return grow_gate(gate, new, **change)


def build_gate_of(
    net: MoENet,
    shape: tuple[int, ...],
    n_experts: int,
    hidden_size: int,
    generator: torch.Generator,
) -> GateModule:
    """Build the gate of a net, for samples that have this shape after the encoder."""
    own_shape = _shape_of(net.gate_columns, shape)
    gate = build_gate(net.gate, own_shape, n_experts, hidden_size, generator)
    sources = _sources(net, shape)
    if sources is not None:
        gate.group_columns(sources if net.gate_columns is None else sources[net.gate_columns])
    return gate


def _sources(net: MoENet, shape: tuple[int, ...]) -> NDArray[np.int64] | None:
    """Return from which column of a table each encoded number comes, if from a single one."""
    if net.table is not None:
        return net.table.sources_ if _is_direct(net) else None
    return np.arange(*shape) if net.encoder is None and len(shape) == 1 else None


def _make(build: Callable, grow: Any, steps: list[tuple[str, Any]]) -> Any:
    """Build a part of a mixture, and repeat the changes of pruning and growing since."""
    part: Any = None
    for step, value in steps:
        if step == "build":
            part = build(value)
        elif step == "grow":
            part = grow(part, value)
        elif step == "keep":
            part.keep(value)
        elif step == "merge":
            part = part.merge(value)
        elif step == "take":
            part.take(value)
    return part


def keep_in_list(net: MoENet, experts: list[int]) -> None:
    """Take the other experts off the list, if there is one, and what they say off samples."""
    if not getattr(net.experts, "is_list", False):
        return
    n_outside, module = net.experts.n_outside, net.module_
    net.experts = net.experts.only(experts)
    net.steps_["experts"] = [("build", (len(experts), net.n_classes))]
    n_gone = (n_outside - net.experts.n_outside) * net.n_classes
    if n_gone:
        net.input_shape = (net.input_shape[0] - n_gone,)
        if module.expert_columns is not None:
            module.expert_columns = module.expert_columns[:-n_gone]
    if net.image_shape is not None and net.experts.n_outside == 0:
        net.input_shape, net.image_shape = net.image_shape, None
        module.table = nn.Identity()
        module.gate_columns = module.gate_shape = None


def _shape_of(columns: NDArray | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a sample of which only some columns are read."""
    return shape if columns is None else (len(columns),)
