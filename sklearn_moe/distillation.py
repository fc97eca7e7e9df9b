"""Distillation: replace a gate that reads all experts by one that runs only one of them."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state, gen_batches
from sklearn.utils._param_validation import Interval, StrOptions, validate_params
from sklearn.utils.validation import check_consistent_length, check_is_fitted
from torch import nn
from torch.nn import functional as F

from sklearn_moe.checks import (
    check_shape,
    check_weight,
    class_weights,
    encode,
    normalize,
    weighty,
)
from sklearn_moe.decomposition import (
    Decomposition,
    check_labels,
    decomposition_entropy,
    final_model,
    with_last,
)
from sklearn_moe.encoders import output_shape
from sklearn_moe.gates import SoftmaxGate
from sklearn_moe.importances import column_importances
from sklearn_moe.mixture import MixtureOfExperts
from sklearn_moe.training.building import build_gate_of, samples_shape
from sklearn_moe.training.callbacks import usual_callbacks
from sklearn_moe.training.defaults import usual_defaults
from sklearn_moe.training.prediction import CHUNK_SIZE
from sklearn_moe.training.session import Session, fitted_attributes


@validate_params(
    {
        "target": [StrOptions({"labels", "teacher"})],
        "top_k": [Interval(Integral, 1, None, closed="left"), None],
        "max_iter": [Interval(Integral, 1, None, closed="left"), None],
    },
    prefer_skip_nested_validation=True,
)
def distill(
    estimator: BaseEstimator,
    X: ArrayLike,
    y: ArrayLike | None = None,
    *,
    target: str = "labels",
    top_k: int | None = 1,
    max_iter: int | None = None,
    sample_weight: ArrayLike | None = None,
) -> BaseEstimator:
    r"""Distill an attentive gate into an ordinary one, which chooses before any expert runs.

    An attentive gate is sure of its choice, but it has to run all experts on a sample before it
    can choose one. The student keeps the experts unchanged and takes over the network of the
    attentive gate. A new linear layer on top of this network scores the experts from the sample
    alone. Only the new gate is trained, without regularization. Then one expert runs for each
    sample in prediction. Any other gate that reads the experts (``needs_hidden``) can be distilled
    as well.

    With ``target="labels"``, as in the paper, the gate maximises the likelihood of the mixture;
    with ``target="teacher"`` it imitates the teacher's gate :math:`q` and needs no labels:

    .. math:: L_\mathrm{labels} = -\frac{1}{N} \sum_n \log \sum_e p_{ne}\, o_{ne y_n}, \qquad
              L_\mathrm{teacher} = \frac{1}{N} \sum_n \mathrm{KL}(q_n \,\|\, p_n)

    Parameters
    ----------
    estimator : MoEClassifier, Pipeline or search
        The teacher: a fitted ``MoEClassifier`` with probability mixing and a gate that reads the
        experts, such as "attentive". A pipeline that ends in one, or a search with such a
        ``best_estimator_``, works as well. The teacher is not changed.
    X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        Training samples, as the teacher takes them.
    y : array-like of shape (n_samples,), default=None
        Labels; without them ``target`` must be "teacher".
    target : {"labels", "teacher"}, default="labels"
        What the student learns from.
    top_k : int or None, default=1
        How many experts of the student answer for a sample. None keeps the soft mixture of all.
    max_iter : int, default=None
        Number of epochs; None takes those of the teacher's fit, even if it stopped earlier.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples, at least 0. With ``target="labels"``, the teacher's
        ``class_weight`` multiplies them.

    Returns
    -------
    MoEClassifier or Pipeline
        The student: a new fitted ``MoEClassifier``, or the teacher's pipeline with it as last
        step. It has a ``SoftmaxGate``, no regularization, no early stopping, and no ``callbacks``,
        ``train_split`` or ``max_epochs`` in ``net_params``. All other parameters, including
        encoders and augmentation, are the teacher's. Its ``report_`` is the
        :class:`DistillationReport` for the training samples; curves of the decomposition are not
        recorded.

    Raises
    ------
    ValueError
        If the teacher's gate does not read the experts, its mixing is not "probability", or the
        data or a parameter are not valid.

    Notes
    -----
    Only ``distill`` distils: a student that is fitted again, or cloned and fitted, becomes an
    ordinary mixture, and ``partial_fit`` trains its experts, too. How much a student
    loses, if anything, depends on the data; compare it with its teacher on a test set.

    See Also
    --------
    distillation_report : Compares teacher and student on other samples.

    References
    ----------
    Y. Krishnamurthy, C. Watkins, T. Gaertner, Improving Expert Specialization in Mixture of
    Experts, 2023, arXiv 2302.14703.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklearn_moe import MoEClassifier, distill
    >>> X, y = load_iris(return_X_y=True)
    >>> moe = MoEClassifier(n_experts=3, gate="attentive", max_iter=20, random_state=0)
    >>> teacher = make_pipeline(StandardScaler(), moe).fit(X, y)
    >>> student = distill(teacher, X, y)
    >>> student[-1].gate
    SoftmaxGate(hidden_layer_sizes=(64,), top_k=1)
    >>> student.score(X, y) > 0.9
    True
    """
    teacher, samples = final_model(estimator, X)
    gate = _check_teacher(teacher)
    if y is not None:
        y = check_labels(y)
    elif target == "labels":
        raise ValueError("target='labels' needs y. Pass the labels, or target='teacher'.")
    X, classes, weight = _training_data(teacher, samples, y, target, sample_weight)

    net_params = {
        name: value
        for name, value in (teacher.net_params or {}).items()
        if name not in ("callbacks", "max_epochs", "train_split")
    }
    student = deepcopy(teacher).set_params(
        gate=SoftmaxGate(
            **{name: getattr(gate, name) for name in _HANDED_ON if hasattr(gate, name)},
            top_k=top_k,
        ),
        regularization=None,
        early_stopping=False,
        max_iter=teacher.net_.max_epochs if max_iter is None else max_iter,
        net_params=net_params or None,
    )
    build_seed, train_seed = check_random_state(student.random_state).randint(
        np.iinfo(np.int32).max, size=2
    )
    net = _with_new_gate(student.net_, student.gate, int(build_seed))
    net.max_epochs = student.max_iter
    # Experts and encoder are not trained. So samples pass through them only once, unless
    # augmentation changes the samples each time.
    objective = _likelihood if target == "labels" else _divergence
    module = net.module_
    table, encoder = module.table, module.encoder
    if net.augmentation is None:
        inputs, goal = _encoded(net, X), _goals(teacher.net_, X, classes, target)
        module.table = module.encoder = nn.Identity()
    else:
        inputs, goal = X, classes
        objective = _on_changed(objective, teacher.module_.eval(), target)
    callbacks = usual_callbacks(student, student.max_iter)
    session = Session(
        net, inputs, goal, weight, seed=int(train_seed), callbacks=callbacks, objective=objective
    )
    if session.run():
        raise KeyboardInterrupt("The distillation was interrupted; the teacher is as it was.")
    module.table, module.encoder = table, encoder
    vars(student).update(fitted_attributes(net, X, weight))
    student._importances = column_importances(net, X, weight)
    student.report_ = distillation_report(teacher, student, samples, y)
    return with_last(estimator, student)


# Parameters that the student's gate takes over from the teacher's.
_HANDED_ON = ("hidden_layer_sizes", "temperature", "encoder")


def _with_new_gate(net, gate, seed):
    """Give a net an ordinary gate, which takes over what it can from the present one."""
    net.gate, net.regularizations = gate, []
    net.callbacks, net.train_split, net.track_decomposition = [], None, False
    net.initialize_callbacks().initialize_history()
    generator = torch.Generator().manual_seed(seed)
    module, teacher = net.module_, net.module_.gate
    net.steps_["gate"] = [("build", net.n_experts)]
    hidden_size = module.experts.hidden_size
    with usual_defaults():
        shape = output_shape(module.encoder, output_shape(module.table, samples_shape(net)))
        student = build_gate_of(net, shape, net.n_experts, hidden_size, generator)
    module.experts.check_gate(student)
    teacher.teach(student.to(net.device))
    module.gate = student
    return net.initialize_optimizer()


def _encoded(net, X):
    """Return the samples as the gate reads them, after the encoder, which is not trained."""
    module = net.module_
    changes = [part for part in (module.table, module.encoder) if type(part) is not nn.Identity]
    if not changes and X.dtype == np.float32:
        return X
    return net.evaluate(X, MixtureOfExperts.encode)


def _check_teacher(teacher):
    """Return the gate of the teacher, and raise an error if it cannot be distilled."""
    check_is_fitted(teacher)
    gate, mixing = teacher.net_.gate, teacher.net_.mixing
    if not teacher.module_.gate.needs_hidden:
        advice = "It runs one expert for a sample as it is."
        if teacher.module_.gate.top_k != 1:
            advice = "For one that runs one expert for a sample, fit gate='hard'."
        raise ValueError(
            "distill needs a teacher with a gate that reads the experts, such as "
            f"gate='attentive', got gate={gate!r}, which chooses before they run. {advice}"
        )
    if mixing != "probability":
        raise ValueError(
            f"distill needs a teacher with mixing='probability', got {mixing!r}: with logits the "
            "experts do not stand on their own."
        )
    return gate


def _training_data(teacher, X, y, target, sample_weight):
    """Return the samples, their classes (zeros without labels) and their weights."""
    X = teacher.reader_.read(X, teacher)
    check_shape("X", X, teacher.net_.input_shape)
    if y is not None:
        check_consistent_length(X, y)
        y = encode(y, teacher.classes_, "y")
    weight = check_weight(sample_weight, X, "sample_weight")
    if target == "teacher":
        y = np.zeros(len(X), dtype=np.int64)
    else:
        weight = weight * class_weights(teacher.class_weight, y, weight, teacher.classes_)[y]
    rows = weighty(weight)
    if len(rows) < len(X):
        X, y, weight = X[rows], y[rows], weight[rows]
    return X, y, normalize(weight)


def _goals(net, X, y, target):
    """Return the target of the student's gate for each sample."""
    if target == "teacher":
        return net.evaluate(X, MixtureOfExperts.gate_proba)
    return np.concatenate(
        [
            net.evaluate(X[rows], _expert_log_proba)[np.arange(rows.stop - rows.start), :, y[rows]]
            for rows in gen_batches(len(X), CHUNK_SIZE)
        ]
    )


def _on_changed(objective, teacher, target):
    """Return the objective for samples that augmentation has changed."""
    of_encoded = MixtureOfExperts(
        teacher.experts,
        teacher.gate,
        gate_columns=teacher.gate_columns,
        expert_columns=teacher.expert_columns,
        gate_shape=teacher.gate_shape,
    )

    def on_changed(net, x, sample_weight, y):
        with torch.no_grad():
            x = teacher.encode(x, net.session_.generator, net.augmentation)
            if target == "teacher":
                goal = of_encoded.gate_proba(x)
            else:
                rows = torch.arange(len(y), device=y.device)
                goal = _expert_log_proba(of_encoded, x)[rows, :, y]
        return objective(net, x, sample_weight, goal)

    return on_changed


def _expert_log_proba(module, x):
    return module.expert_logits(x).log_softmax(dim=2)


def _gate_log_proba(net, x):
    # Over all experts: a gate that trains with its top k alone never learns about the others.
    module = net.module_
    logits = module.gate(module.for_gate(x), None, net.session_.generator).logits
    return logits.log_softmax(dim=1)


def _likelihood(net, x, sample_weight, y):
    """Negative log-likelihood; y holds each expert's log-probability of the true class."""
    log_proba = _gate_log_proba(net, x)
    loss = -(log_proba + y).logsumexp(dim=1)
    return (loss * sample_weight).mean(), log_proba, log_proba.softmax(dim=1)


def _divergence(net, x, sample_weight, y):
    """Divergence from the teacher's gate; y holds the probabilities of this gate."""
    log_proba = _gate_log_proba(net, x)
    loss = F.kl_div(log_proba, y, reduction="none").sum(dim=1)
    return (loss * sample_weight).mean(), log_proba, log_proba.softmax(dim=1)


@dataclass(frozen=True, eq=False, repr=False)
class DistillationReport:
    """A teacher and its student side by side; printing it shows a table.

    Attributes
    ----------
    teacher_error, student_error : float or None
        Share of the samples that each gets wrong; None without labels.
    agreement : float
        Share of the samples for which both predict the same class.
    expert_agreement : float
        Share of the samples for which both gates choose the same expert.
    teacher, student : Decomposition
        How each divides the samples among the experts. A student with ``top_k=1`` has an H_s of
        0, because it uses one expert for each sample.
    teacher_cost, student_cost : float or None
        Mean number of multiply-adds for a sample, of the experts that run and of the gate; None
        if there are classifiers of scikit-learn among the experts.
    """

    teacher_error: float | None
    student_error: float | None
    agreement: float
    expert_agreement: float
    teacher: Decomposition
    student: Decomposition
    teacher_cost: float | None
    student_cost: float | None

    def __repr__(self) -> str:
        rows = [("H_s, bits", *self._both("sample_entropy"), ".3f")]
        rows.append(("H_u, bits", *self._both("usage_entropy"), ".3f"))
        rows.append(("I(E;Y), bits", *self._both("expert_class_information"), ".3f"))
        if self.teacher_cost is not None and self.student_cost is not None:
            rows.append(("multiply-adds per sample", self.teacher_cost, self.student_cost, ",.0f"))
        if self.teacher_error is not None:
            rows.insert(0, ("error", self.teacher_error, self.student_error, ".4f"))
        lines = [f"{'':26}{'teacher':>12}{'student':>12}"]
        lines += [f"{name:26}{one:12{form}}{other:12{form}}" for name, one, other, form in rows]
        lines.append(
            f"They predict the same class for {self.agreement:.1%} of the samples and choose the "
            f"same expert for {self.expert_agreement:.1%}."
        )
        return "\n".join(lines)

    def _both(self, measure):
        return getattr(self.teacher, measure), getattr(self.student, measure)


def distillation_report(
    teacher: BaseEstimator, student: BaseEstimator, X: ArrayLike, y: ArrayLike | None = None
) -> DistillationReport:
    """Compare a student of :func:`distill` with its teacher.

    Parameters
    ----------
    teacher, student : MoEClassifier, Pipeline or search
        The fitted teacher and its student, with or without pipelines around them. Whether one is
        the student of the other is not checked.
    X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        Samples, preferably those of a test set.
    y : array-like of shape (n_samples,), default=None
        Labels; without them there are no errors, and I(E;Y) uses the predicted classes.

    Returns
    -------
    DistillationReport
        Errors, agreement, decompositions and costs.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_moe import MoEClassifier, distill, distillation_report
    >>> X, y = load_iris(return_X_y=True)
    >>> teacher = MoEClassifier(n_experts=3, gate="attentive", regularization="importance",
    ...                         random_state=0).fit(X, y)
    >>> student = distill(teacher, X, y)
    >>> report = distillation_report(teacher, student, X, y)
    >>> report.student_cost < report.teacher_cost
    True
    >>> report.student.sample_entropy
    0.0
    """
    y = None if y is None else check_labels(y)
    models = [final_model(estimator, X) for estimator in (teacher, student)]
    predicted = [model.predict(samples) for model, samples in models]
    chosen = [model.apply(samples) for model, samples in models]
    decompositions = [decomposition_entropy(model, samples, y) for model, samples in models]
    errors = [None if y is None else float(np.mean(classes != y)) for classes in predicted]
    costs = [
        None if decomposition.cost is None else decomposition.cost + model.module_.gate.cost
        for decomposition, (model, _) in zip(decompositions, models, strict=True)
    ]
    return DistillationReport(
        teacher_error=errors[0],
        student_error=errors[1],
        agreement=float(np.mean(predicted[0] == predicted[1])),
        expert_agreement=float(np.mean(chosen[0] == chosen[1])),
        teacher=decompositions[0],
        student=decompositions[1],
        teacher_cost=costs[0],
        student_cost=costs[1],
    )
