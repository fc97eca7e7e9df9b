"""A list of experts with names: scikit-learn's classifiers, and kinds of this package."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import is_regressor
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.metaestimators import _BaseComposition
from torch import Tensor, nn

from sklearn_moe.experts.base import Experts, ExpertsModule, build_experts
from sklearn_moe.experts.custom import CustomExperts
from sklearn_moe.layers import LayerTrail


class EstimatorExperts(Experts, _BaseComposition):
    r"""Experts from a list: any classifiers of scikit-learn, beside kinds of this package.

    ``MoEClassifier(experts=[...])`` wraps a list in this. The classifiers are fitted on folds of
    the training samples, and the gate learns from their probabilities for samples that they have
    not seen, by the likelihood of the mixture. Then they are fitted on all samples. They get the
    table as it came, with text and categories; the gate reads it encoded. Of images they get the
    numbers as rows, unless their tags say that they take images (``three_d_array``). Kinds of this
    package, such as ``MLPExperts()``, and torch networks train together with the gate and learn
    what the others leave.

    The probabilities of each classifier are calibrated by one temperature :math:`T`, on samples
    that it has not seen: :math:`o_c \propto p_c^{1/T}`. Then one factor, of at most 1, makes all
    temperatures lower if this raises the likelihood of the best weighted mean: a mean of
    calibrated classifiers is less sure than it could be.

    Parameters
    ----------
    estimators : list of (str, estimator) tuples
        Names and experts: classifiers or pipelines with ``predict_proba``, a fitted mixture, or a
        kind of this package, as an object or a name in ``EXPERTS``, which is one expert. A
        ``FrozenEstimator`` and a ``FittedExpert`` are taken as they are. A ``torch.nn.Module``, or
        a function that makes one as in ``CustomExperts``, is an expert, too (see Notes).
    cv : int, cross-validation generator or "prefit", default=5
        How to split the training samples. An int is the number of stratified folds, which keep
        ``groups`` together. With "prefit" the classifiers are fitted already and taken as they
        are: the gate should then learn from samples that they have not seen.
    calibrate : bool, default=True
        Whether to calibrate the classifiers that are fitted here. The factor is only for lists in
        which all are.
    n_jobs : int or None, default=None
        Number of processes for the fits; None is one, -1 is all processors.

    Notes
    -----
    A module returns the logits (n_samples, n_classes), or the pair (logits, hidden), of which only
    the logits count. It may be trained already: it is copied, and the copy goes on from the
    weights that the module has.
    Parameters with ``requires_grad=False`` stay as they are. Parts that have no others stay in
    evaluation mode, so that the statistics of a batch normalization do not change, either.

    Modules read what kinds of this package read: images, or the encoded table. With
    ``encoder=None`` these are the numbers of the table as they are.

    See Also
    --------
    FittedExpert : An expert of a fitted mixture, for the list of another one.
    sklearn.ensemble.StackingClassifier : Its final estimator reads only the probabilities.

    References
    ----------
    D. H. Wolpert, Stacked Generalization, Neural Networks 5, 1992.

    C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, On Calibration of Modern Neural Networks, 2017,
    arXiv 1706.04599.

    R. Ranjan, T. Gneiting, Combining Probability Forecasts, Journal of the Royal Statistical
    Society B 72, 2010.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.ensemble import RandomForestClassifier
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklearn_moe import MoEClassifier
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> line = make_pipeline(StandardScaler(), LogisticRegression())
    >>> forest = RandomForestClassifier(20, max_depth=5)
    >>> clf = MoEClassifier(experts=[("line", line), ("forest", forest)], random_state=0)
    >>> clf.fit(X, y).expert_names_
    ['line', 'forest']
    >>> clf.expert_proba(X).shape
    (569, 2, 2)
    """

    _parameter_constraints: dict = {
        "estimators": [list, tuple],
        "cv": [
            Interval(Integral, 2, None, closed="left"),
            StrOptions({"prefit"}),
            HasMethods(["split", "get_n_splits"]),
        ],
        "calibrate": ["boolean"],
        "n_jobs": [Integral, None],
    }

    # Whether its classifiers are for tables only.
    needs_tables = False
    is_list = True

    # Set before ``build``: the shape of the images that come flat.
    image_shape: tuple[int, ...] | None = None

    def __init__(
        self,
        estimators: Sequence[tuple[str, Any]],
        *,
        cv: Any = 5,
        calibrate: bool = True,
        n_jobs: int | None = None,
    ):
        self.estimators = estimators
        self.cv = cv
        self.calibrate = calibrate
        self.n_jobs = n_jobs

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return all parameters, with ``deep`` also the experts by name and their parameters."""
        return self._get_params("estimators", deep=deep)

    def set_params(self, **params: Any) -> EstimatorExperts:
        """Set parameters, experts by name, or their parameters, such as ``trees__max_depth``."""
        self._set_params("estimators", **params)
        return self

    @property
    def outside(self) -> list[tuple[str, Any]]:
        """The classifiers, which are fitted outside of the net."""
        return [each for each in self.estimators if not _is_own_kind(each[1])]

    @property
    def n_outside(self) -> int:  # type: ignore[override]
        return len(self.outside)

    @property
    def has_networks(self) -> bool:
        """Whether there are networks that a user wrote."""
        return any(_is_network(expert) for _, expert in self.estimators)

    def only(self, experts: list[int]) -> EstimatorExperts:
        """Return a list of these experts alone, in this order."""
        params = self.get_params(deep=False)
        return EstimatorExperts(**{**params, "estimators": [self.estimators[e] for e in experts]})

    def for_table(self, is_categorical: NDArray[np.bool_]) -> EstimatorExperts:
        """Return the list of experts for a table with these columns of categories."""
        return self

    def check(self) -> None:
        """Raise an error unless the list holds classifiers and kinds of experts with names."""
        from sklearn_moe.experts import EXPERTS, as_experts

        self._validate_params()
        if len(self.estimators) == 0:
            raise ValueError("experts is an empty list. Pass (name, estimator) tuples.")
        for each in self.estimators:
            if not (isinstance(each, (tuple, list)) and len(each) == 2 and _is_name(each[0])):
                raise ValueError(f"experts must hold (name, estimator) tuples, got {each!r}.")
        names = [name for name, _ in self.estimators]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"The name {name!r} stands twice in experts. Names must differ.")
            if "__" in name or name in self._get_param_names():
                raise ValueError(
                    f"An expert must not have the name {name!r}: names with two underscores, and "
                    f"{self._get_param_names()}, are those of parameters."
                )
        for name, expert in self.estimators:
            if not _is_own_kind(expert):
                _check_classifier(name, expert)
            elif isinstance(expert, str) and expert not in EXPERTS:
                raise ValueError(
                    f"The expert {name!r} is {expert!r}, which is no kind of experts. The names "
                    f"are {sorted(EXPERTS)}."
                )
            elif isinstance(as_experts(expert), EstimatorExperts):
                raise ValueError(
                    f"The expert {name!r} is itself a list of experts: {expert!r}. Pass one."
                )

    def build(
        self,
        input_shape: tuple[int, ...],
        n_experts: int,
        n_classes: int,
        generator: torch.Generator,
    ) -> ListedExpertsModule:
        """Return the torch module of these experts.

        The last ``n_outside * n_classes`` numbers of a sample are the log-probabilities of the
        classifiers; the others are the columns, or the flat images, that the kinds of this package
        read.
        """
        n_given = self.n_outside * n_classes
        own_shape = input_shape
        if n_given:
            own_shape = self.image_shape or (input_shape[0] - n_given,)
        parts = [
            _built(name, expert, own_shape, n_classes, generator)
            for name, expert in self.estimators
            if _is_own_kind(expert)
        ]
        names = [name for name, _ in self.estimators]
        members = _places([not _is_own_kind(expert) for _, expert in self.estimators])
        kind = ListedExpertsModule if parts else OutsideExpertsModule
        return kind(parts, members, names, self.n_outside, n_classes, self.image_shape)


class ListedExpertsModule(ExpertsModule):
    """Experts of several kinds, some of which answer outside of the net.

    Parameters
    ----------
    parts : list of ExpertsModule
        The experts that are trained here.
    members : list of (int or None, int) tuples
        For each expert its part, and its place there. The part is None for an expert whose
        log-probabilities come with the samples.
    names : list of str or None
        Names of the experts.
    n_outside : int
        Number of experts whose log-probabilities come with the samples.
    n_classes : int
        Number of classes.
    image_shape : tuple of int, default=None
        Shape of the images that come flat before log-probabilities.

    Attributes
    ----------
    outside : list of (int, int) tuples
        The experts that answer outside: their numbers here and there.
    """

    def __init__(
        self,
        parts: list[ExpertsModule],
        members: list[Any],
        names: list[str] | None,
        n_outside: int,
        n_classes: int,
        image_shape: tuple[int, ...] | None = None,
    ):
        super().__init__()
        self.image_shape = image_shape
        self.parts: Any = nn.ModuleList(parts)
        self.members = members
        self.names = names
        self.n_outside = n_outside
        self.hidden_size = self.n_classes = n_classes
        self.independent = all(part.independent for part in parts)
        self.uses_global_random_state = any(part.uses_global_random_state for part in parts)

    @property
    def n_given(self) -> int:  # type: ignore[override]
        return self.n_outside * self.n_classes

    @property
    def outside(self) -> list[tuple[int, int]]:
        return [(e, place) for e, (part, place) in enumerate(self.members) if part is None]

    @property
    def costs(self) -> list[int]:
        costs = [part.costs for part in self.parts]
        return [0 if part is None else costs[part][place] for part, place in self.members]

    @property
    def widest(self) -> int:  # type: ignore[override]
        return max([self.n_classes, *(part.widest or part.hidden_size for part in self.parts)])

    def forward(
        self, x: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        x, given = self._split(x)
        answers = [part(x, generator)[0] for part in self.parts]
        logits = [(given if p is None else answers[p])[:, place] for p, place in self.members]
        logits = torch.stack(logits, dim=1)
        return logits, logits.softmax(dim=2)

    def _split(self, x):
        """Return the samples, and the log-probabilities that came with them."""
        if self.n_given == 0:
            return x, None
        given = x[:, -self.n_given :].unflatten(1, (self.n_outside, self.n_classes))
        x = x[:, : -self.n_given]
        return x if self.image_shape is None else x.unflatten(1, self.image_shape), given

    def penalty(self) -> Tensor | None:
        penalties = [part.penalty() for part in self.parts]
        if all(each is None for each in penalties):
            return None
        return torch.cat([each for each in penalties if each is not None])

    def run_some(self, x: list[Tensor], experts: list[int]) -> list[Tensor]:
        logits = []
        for own, (part, place) in zip(x, (self.members[e] for e in experts), strict=True):
            own, given = self._split(own)
            if part is None:
                logits.append(given[:, place])
            else:
                logits += self.parts[part].run_some([own], [place])
        return logits

    def keep(self, experts: list[int]) -> None:
        if self.names is not None:
            self.names = [self.names[e] for e in experts]
        kept = [self.members[e] for e in experts]
        places = {
            part: sorted(place for p, place in kept if p == part)
            for part in sorted({p for p, _ in kept if p is not None})
        }
        for part, own in places.items():
            self.parts[part].keep(own)
        new = {part: number for number, part in enumerate(places)}
        self.parts = nn.ModuleList([self.parts[part] for part in places])
        outside = [member for member in kept if member[0] is None]
        self.members = [
            (None, outside.index((part, place)))
            if part is None
            else (new[part], places[part].index(place))
            for part, place in kept
        ]
        self.n_outside = len(outside)

    def asked(self, answers: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return for which samples the classifiers outside must answer, (n_samples, n_outside)."""
        asked = np.zeros((len(answers), self.n_outside), dtype=bool)
        for expert, place in self.outside:
            asked[:, place] = answers[:, expert]
        return asked


class OutsideExpertsModule(ListedExpertsModule):
    """Experts that all answer outside of the net, so that only the gate learns."""

    has_known_gradient = True
    is_fixed = True

    def run(self, x: Tensor, generator: torch.Generator | None = None) -> list[LayerTrail]:
        """Return the trail of a batch, as if the log-probabilities were the output of a layer."""
        logits, _ = self.forward(x)
        return [LayerTrail(x, None, x, logits.permute(1, 2, 0).contiguous())]

    def backward(self, trail: list[LayerTrail], upstream: Tensor) -> None:
        """Do nothing, as there is nothing to learn."""


def _built(name, expert, input_shape, n_classes, generator):
    """Return the module of one expert that is trained here."""
    from sklearn_moe.experts import as_experts

    is_module = isinstance(expert, nn.Module)
    if is_module:
        kind = CustomExperts(lambda input_shape, n_outputs: deepcopy(expert).cpu())
    else:
        kind = as_experts(expert)
    try:
        return build_experts(kind, input_shape, 1, n_classes, generator)
    except (TypeError, ValueError) as error:
        advice = ""
        if is_module and error.__cause__ is not None:  # an error within the module
            advice = ". With encoder=None, it reads the numbers of a table as they are."
        raise type(error)(f"The expert {name!r} cannot be built. {error}{advice}") from error


def _places(are_outside):
    """Return for each expert its part and its place there."""
    return [
        (None, sum(are_outside[:e])) if is_outside else (e - sum(are_outside[:e]), 0)
        for e, is_outside in enumerate(are_outside)
    ]


def _is_own_kind(expert):
    return isinstance(expert, str) or hasattr(expert, "build") or _is_network(expert)


def _is_network(expert):
    """Whether an expert is a torch module, or a function or class that makes one."""
    if isinstance(expert, nn.Module):
        return not hasattr(expert, "predict_proba")
    return callable(expert) and not (hasattr(expert, "build") or hasattr(expert, "fit"))


def _is_name(name):
    return isinstance(name, str) and name != ""


def _check_classifier(name, estimator):
    """Raise an error unless an expert is a classifier with probabilities."""
    if isinstance(estimator, type):
        raise ValueError(
            f"The expert {name!r} must be an object, not a class: write {estimator.__name__}()."
        )
    if not hasattr(estimator, "fit"):
        raise ValueError(f"The expert {name!r} must have the method fit, got {estimator!r}.")
    if is_regressor(estimator):
        raise ValueError(f"The expert {name!r} must be a classifier, got {estimator!r}.")
    if not hasattr(estimator, "predict_proba"):
        raise ValueError(
            f"The expert {name!r} must have the method predict_proba, which {estimator!r} lacks. "
            "Calibrate it: CalibratedClassifierCV(...)."
        )
