"""What all experts have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from sklearn.base import BaseEstimator
from torch import Tensor, nn

from sklearn_moe.documentation import Documented

# Lowest log-probability: a class that an expert rules out costs the mixture a finite likelihood.
LOWEST = math.log(1e-7)


class Experts(Documented, BaseEstimator):
    """Base class of all kinds of experts: it holds hyperparameters, ``build`` makes the module.

    Attributes
    ----------
    is_linear : bool, default=False
        Whether each expert is a multinomial logistic regression.
    n_outside : int, default=0
        Number of experts that answer outside of the net. Their log-probabilities come with the
        samples.
    needs_images : bool, default=False
        Whether it reads images only.
    is_list : bool, default=False
        Whether it is a list of named experts, as :class:`EstimatorExperts` is.
    reads_shapes : bool, default=False
        Whether the modules have an attribute ``shapes``, for the ``ShapeFunctions`` of a table,
        and read them after the columns. ``input_shape`` then counts both.
    """

    is_linear = False
    n_outside = 0
    needs_images = False
    is_list = False
    reads_shapes = False

    def build(
        self,
        input_shape: tuple[int, ...],
        n_experts: int,
        n_classes: int,
        generator: torch.Generator,
    ) -> ExpertsModule:
        """Return one torch module that runs all experts.

        Parameters
        ----------
        input_shape : tuple of int
            Shape of one sample.
        n_experts, n_classes : int
            Number of experts and of classes.
        generator : torch.Generator
            Source of all initial weights.

        Returns
        -------
        ExpertsModule
        """
        raise NotImplementedError(
            f"{type(self).__name__} needs a method build(input_shape, n_experts, n_classes, "
            "generator)."
        )

    def build_hidden(
        self,
        input_shape: tuple[int, ...],
        n_experts: int,
        n_outputs: int,
        generator: torch.Generator,
    ) -> ExpertsModule:
        """Return experts for a hidden layer, whose outputs are vectors in place of logits.

        By default these are the same as for ``n_outputs`` classes.
        """
        return self.build(input_shape, n_experts, n_outputs, generator)


class ExpertsModule(nn.Module):
    """The torch module of all experts of a mixture.

    Attributes
    ----------
    hidden_size : int
        Length of the hidden vectors, which an attentive gate reads.
    costs : sequence of int
        Number of multiply-adds of each expert for one sample.
    widest : int or None, default=None
        Number of outputs of an expert's widest layer; None means ``hidden_size``. Predictions are
        made in chunks, so small that these outputs fit into the processor's cache for all experts.
    is_ordinary : sequence of bool, default=all True
        For each expert, whether it is an ordinary one. ``ZeroComputationBalance`` can send more
        samples to the others, which are cheap.
    independent : bool, default=True
        Whether an expert can run without the others.
    runs_at_once : bool, default=False
        Whether ``forward`` computes all experts together, not one after the other. If True, a
        gate that chooses a few experts runs only these, one by one, but only where that is faster.
    can_merge : bool, default=False
        Whether ``merge`` can replace several experts by their mean.
    uses_global_random_state : bool, default=False
        Whether the experts draw from torch's global random state. It is then seeded under a lock.
    is_linear : bool, default=False
        Whether each expert is a multinomial logistic regression.
    is_fixed : bool, default=False
        Whether nothing in the experts is trained.
    n_given : int, default=0
        How many numbers of a sample are log-probabilities of experts that answer outside.
    names : list of str or None, default=None
        Names of the experts, if a user gave them.
    """

    hidden_size: int
    widest: int | None = None
    independent = True
    runs_at_once = False
    can_merge = False
    uses_global_random_state = False
    is_linear = False
    is_fixed = False
    n_given = 0
    names: list[str] | None = None

    @property
    def costs(self) -> Sequence[int]:
        raise NotImplementedError(
            f"{type(self).__name__} needs a property costs: the multiply-adds that each of its "
            "experts takes for a sample."
        )

    @property
    def is_ordinary(self) -> Sequence[bool]:
        return [True] * len(self.costs)

    def forward(
        self, x: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return logits (N, E, C) and hidden vectors (N, E, H) of all experts for a batch.

        The generator is for dropout in training.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a method forward(x, generator).")

    def penalty(self) -> Tensor | None:
        """Return the penalty on the weights of each expert (E,), which is added to the loss.

        None if there is none. With a ``backward`` in closed form, this also sets its gradient.
        """
        return None

    def run_some(self, x: list[Tensor], experts: list[int]) -> list[Tensor]:
        """Return the logits of some experts in prediction; ``x`` has one batch for each."""
        raise NotImplementedError(
            f"{type(self).__name__} needs a method run_some(x, experts), or independent = False."
        )

    def keep(self, experts: list[int]) -> None:
        """Keep only these experts, in this order."""
        raise NotImplementedError(f"{type(self).__name__} needs a method keep(experts).")

    def merge(self, groups: list[list[int]], shares: list[list[float]], x: Tensor) -> None:
        """Replace groups of experts by their means.

        ``shares`` are the weights of the members of each group and sum to 1. ``x`` are samples: on
        them, each hidden unit is matched with the one that is most like it in the other experts.
        Raises a ValueError if ``can_merge`` is False.
        """
        raise ValueError(
            f"Experts of the kind {type(self).__name__.removesuffix('Module')!r} cannot be merged "
            "to one. Pass reduce='keep'."
        )

    def distances(self) -> Tensor:
        """Return the squared distances (E, E) of the experts' weights, with hidden units matched.

        Raises a ValueError if the weights of experts of this kind cannot be compared.
        """
        raise ValueError(
            f"Experts of the kind {type(self).__name__.removesuffix('Module')!r} cannot be "
            "compared by their weights. Pass another similarity."
        )

    def check_gate(self, gate: nn.Module) -> None:
        """Raise a ValueError if these experts cannot work with this gate."""

    def limit(self, gate_log_proba: Tensor) -> Tensor:
        """Remove experts that must not answer from the gate's log-probabilities (N, E)."""
        return gate_log_proba


def build_experts(
    experts: BaseEstimator,
    input_shape: tuple[int, ...],
    n_experts: int,
    n_classes: int,
    generator: torch.Generator,
    *,
    hidden: bool = False,
) -> ExpertsModule:
    """Build the module of some experts, and check its output for two samples of zeros.

    For a hidden layer, ``n_classes`` is the number of outputs.
    """
    # Experts of a user may have no more than ``build``.
    build = getattr(experts, "build_hidden", experts.build) if hidden else experts.build
    module = build(input_shape, n_experts, n_classes, generator)
    if not isinstance(module, ExpertsModule):
        raise TypeError(
            f"build of the experts {experts!r} must return a sklearn_moe.experts.ExpertsModule, "
            f"got {module!r}. Derive their module from that class, or pass a function that makes "
            "one expert."
        )
    was_training = module.training
    output = run_two_samples(module.eval(), input_shape)
    module.train(was_training)
    hidden_size = getattr(module, "hidden_size", None)
    expected = [(2, n_experts, n_classes), (2, n_experts, hidden_size)]
    shapes = shapes_of(output)
    if shapes != expected:
        raise ValueError(
            f"The experts {experts!r} must return logits (n_samples, {n_experts}, {n_classes}) "
            f"and hidden vectors (n_samples, {n_experts}, hidden_size={hidden_size}); a batch of "
            f"shape {(2, *input_shape)} gave {shapes!r}."
        )
    logits = output[0]
    if (logits >= 0).all() and (logits.sum(dim=2) - 1).abs().max() < 1e-5:
        raise ValueError(
            f"The experts {experts!r} must return logits, but theirs are probabilities: none is "
            "negative, and they sum to 1. Leave out the softmax at the end."
        )
    return module


def run_two_samples(network: nn.Module, input_shape: tuple[int, ...]) -> Any:
    """Run two samples of zeros through an expert, or through all, and return the output."""
    try:
        with torch.no_grad():
            output = network(torch.zeros(2, *input_shape))
    except Exception as error:
        raise ValueError(
            f"The experts must read batches of shape {('n_samples', *input_shape)} of "
            f"torch.float32, but {type(network).__name__} raises {type(error).__name__}: {error}"
        ) from error
    for tensor in output if isinstance(output, tuple) else (output,):
        if isinstance(tensor, Tensor) and tensor.dtype != torch.float32:
            raise ValueError(
                f"The experts must return torch.float32, but {type(network).__name__} returns "
                f"{tensor.dtype}."
            )
    return output


def shapes_of(output: Any) -> list:
    """Return the shapes of the tensors in an output; anything else is returned as it is."""
    outputs = output if isinstance(output, tuple) else (output,)
    return [tuple(each.shape) if isinstance(each, Tensor) else each for each in outputs]
