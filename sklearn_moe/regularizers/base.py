"""What all regularizations have in common."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real

from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval
from torch import Tensor

from sklearn_moe.mixture import MixtureOutput


class Regularizer(BaseEstimator):
    """Base class of the regularizations: ``strength`` times ``penalty``.

    A subclass has the parameter ``strength`` (at least 0; a regularization of strength 0 is left
    out) and the method ``penalty(mixture, x, y, sample_weight)``, which returns a scalar tensor.

    Attributes
    ----------
    gate_only : bool, default=False
        Says that the penalty reads ``gate_logits``, ``gate_proba`` and ``routing`` alone of the
        mixture. The training is then faster, and the rest of the mixture is None.
    has_gradient : bool, default=False
        Says that ``penalty_and_gradient`` gives the same penalty and its gradient, which spares
        autograd, for a penalty on the gate's probabilities alone.
    per_nat_of_experts : float, default=0.0
        For a penalty that is a multiple of the experts' mean negative log-likelihood and nothing
        else: the factor. The training is then faster.
    balances : bool, default=False
        Whether a higher strength makes the use of the experts more even.
    sharpens : bool, default=False
        Whether it makes the gate surer.
    can_be_captured : bool, default=False
        Whether the penalty never waits for the device, so that CUDA graphs can replay it.

    Examples
    --------
    >>> from sklearn_moe import MoEClassifier, Regularizer
    >>> class SureExperts(Regularizer):
    ...     def __init__(self, strength=0.1):
    ...         self.strength = strength
    ...     def penalty(self, mixture, x, y, sample_weight):
    ...         log_proba = mixture.expert_logits.log_softmax(dim=2)
    ...         entropy = -(log_proba.exp() * log_proba).sum(dim=2).mean(dim=1)
    ...         return (sample_weight * entropy).mean()
    >>> clf = MoEClassifier(regularization=["importance", SureExperts()])
    """

    gate_only = False
    has_gradient = False
    per_nat_of_experts = 0.0
    balances = False
    sharpens = False
    can_be_captured = False

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if {"penalty", "__call__"} & set(vars(cls)):  # promises that hold for another penalty
            for promise in ("gate_only", "has_gradient", "per_nat_of_experts"):
                if promise not in vars(cls):
                    setattr(cls, promise, getattr(Regularizer, promise))

    _parameter_constraints: dict = {"strength": [Interval(Real, 0, None, closed="left")]}

    def __call__(
        self, mixture: MixtureOutput, x: Tensor, y: Tensor, sample_weight: Tensor
    ) -> Tensor:
        """Return the weighted penalty of a batch.

        Parameters
        ----------
        mixture : MixtureOutput
            What the mixture says about the batch.
        x : Tensor of shape (n_samples, ...)
            What gate and experts see.
        y : Tensor of shape (n_samples,)
            Indices of the classes.
        sample_weight : Tensor of shape (n_samples,)
            Weights, with a mean of 1 over the training set.

        Returns
        -------
        Tensor of shape ()
        """
        return self.strength * check_penalty(self, self.penalty(mixture, x, y, sample_weight))


def check_penalty(regularization: Callable, value: Tensor) -> Tensor:
    """Return what a regularization says about a batch; raise if it is no scalar."""
    if isinstance(value, Real) or (isinstance(value, Tensor) and value.dim() == 0):
        return value
    got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
    raise ValueError(
        f"The regularization {regularization!r} must return a scalar tensor, got {got}."
    )
