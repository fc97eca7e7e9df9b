"""What all regularizations have in common."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real

from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval
from torch import Tensor

from sklearn_moe.documentation import Documented
from sklearn_moe.mixture import MixtureOutput

# What holds only for the penalty of the class that says so.
_PROMISES = ("gate_only", "has_gradient", "per_nat_of_experts", "of_weights", "sums_over_layers")


class Regularizer(Documented, BaseEstimator):
    """Base class of the regularizations: ``strength`` times ``penalty``.

    A subclass has the parameter ``strength`` (at least 0; a regularization of strength 0 is left
    out) and the method ``penalty(mixture, x, y, sample_weight)``, which returns a scalar tensor.

    Attributes
    ----------
    gate_only : bool, default=False
        Whether the penalty reads only ``gate_logits``, ``gate_proba`` and ``routing`` of the
        mixture. If True, training can be faster, and the rest of the mixture may be None.
    has_gradient : bool, default=False
        Whether there is a method ``penalty_and_gradient(gate_proba, sample_weight)``. It returns
        the same penalty and its gradient with respect to the gate's probabilities, so that
        training can do without autograd. The penalty must not read anything else.
    per_nat_of_experts : float, default=0.0
        If the weighted penalty is a multiple of the experts' mean negative log-likelihood, and
        nothing else, the factor. Training is then faster.
    of_weights : bool, default=False
        Whether the penalty reads only the weights of the gate. Then there are three more methods:
        ``penalty_of(gate)`` and ``add_gradient(gate)`` return the penalty of each restart, and
        the second one adds the gradient, times ``strength``, to that of the gate's weights;
        ``slope(gate)`` returns this gradient, divided by the weight, for each input.
    balances : bool, default=False
        Whether a higher strength makes the use of the experts more even. The report then advises
        it if the experts are used unevenly.
    sharpens : bool, default=False
        Whether a higher strength makes the gate surer. The report then advises it if the gate is
        unsure.
    sums_over_layers : bool, default=gate_only
        Whether the penalties on the hidden mixtures of ``MoELayers`` are added. The
        ``expert_logits`` and ``log_proba`` of hidden mixtures are vectors, so the penalty must not
        read them.
    can_be_captured : bool, default=False
        Whether the penalty never waits for the device, so that CUDA graphs can replay it. A
        subclass has to set it again.

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
    of_weights = False
    balances = False
    sharpens = False
    can_be_captured = False

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if {"penalty", "__call__"} & set(vars(cls)):  # these hold for the inherited penalty only
            for promise in _PROMISES:
                if promise not in vars(cls):
                    setattr(cls, promise, getattr(Regularizer, promise))

    _parameter_constraints: dict = {"strength": [Interval(Real, 0, None, closed="left")]}

    @property
    def sums_over_layers(self) -> bool:
        return self.gate_only

    def relaxed(self) -> Regularizer:
        """Return what takes the place of this penalty once it has chosen columns."""
        return self

    def __call__(
        self, mixture: MixtureOutput, x: Tensor, y: Tensor, sample_weight: Tensor
    ) -> Tensor:
        """Return the weighted penalty of a batch.

        Parameters
        ----------
        mixture : MixtureOutput
            The output of the mixture for the batch.
        x : Tensor of shape (n_samples, ...)
            The batch as gate and experts see it, after the encoder.
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
    """Return the value of a regularization, or raise an error if it is not a scalar."""
    is_tensor = isinstance(value, Tensor)
    if isinstance(value, Real) or (is_tensor and value.dim() == 0 and not value.is_complex()):
        return value
    got = f"a tensor of shape {tuple(value.shape)} of {value.dtype}" if is_tensor else repr(value)
    raise ValueError(
        f"The regularization {regularization!r} must return a real scalar tensor, got {got}."
    )
