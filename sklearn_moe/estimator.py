"""MoEClassifier: the scikit-learn face of the mixture of experts."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp
from sklearn.base import BaseEstimator, ClassifierMixin, _fit_context, clone
from sklearn.utils import _safe_indexing, check_consistent_length, check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from sklearn_moe.callbacks import OneCycle, Progress, ScikitLearnCallbacks, StopEarly
from sklearn_moe.data import (
    as_dense,
    as_eager,
    as_frame,
    as_objects,
    has_single_precision,
    reading,
)
from sklearn_moe.decomposition import usage_entropy
from sklearn_moe.encoders import ENCODERS, as_encoder
from sklearn_moe.engine import MoENet
from sklearn_moe.experts import EXPERTS, CustomExperts
from sklearn_moe.gates import GATES
from sklearn_moe.images import AUGMENTATIONS
from sklearn_moe.layers import check_layer_sizes
from sklearn_moe.mixture import MixtureOfExperts
from sklearn_moe.recipes import RECIPES, automatic_batch_size, automatic_weight_decay
from sklearn_moe.regularizers import REGULARIZERS
from sklearn_moe.validation import (
    check_device,
    check_net_params,
    check_shape,
    check_signature,
    check_sizes,
    check_weight,
    check_y,
    class_weights,
    encode,
    explained_memory,
    normalize,
    resolve,
    same_parameters,
    scaled,
    split,
    weighty,
)

try:
    from sklearn.callback import CallbackSupportMixin
except ImportError:  # scikit-learn < 1.9 has no callbacks

    class CallbackSupportMixin:
        pass


class MoEClassifier(ClassifierMixin, CallbackSupportMixin, BaseEstimator):
    r"""Mixture of experts for classification.

    Several small networks, the experts, and a gate that decides for each sample how much each
    expert says. They are trained together by maximum likelihood,

    .. math:: -\log \sum_e p_e(x)\, o_{ey}(x) + \text{regularization},

    with the gate's probabilities :math:`p` and the experts' class probabilities :math:`o`. What
    divides the work among the experts, the gate and the regularization, is chosen by name or, to
    tune it, as an object. Tables are scaled and encoded on the way in (see ``encoder``).

    Parameters
    ----------
    n_experts : int, default=8
        Number of experts, at most 65,536.
    experts : str, object or callable, default="auto"
        Kind of experts: a name, one of "auto", "mlp", "conv", "mpo", "orthogonal",
        "complexity" and "zero_computation", an object such as
        ``MLPExperts(hidden_layer_sizes=(128,))``, or a function ``(input_shape, n_outputs) ->
        torch.nn.Module`` that makes one expert; its forward returns logits or (logits, hidden).
        "auto" is "conv" for images, if the experts see them as such, and "mlp" for all else.
    gate : str or object, default="softmax"
        How experts are chosen: a name, one of "softmax", "top_k", "noisy_top_k", "hard",
        "attentive" and "kmeans", or an object such as ``AttentiveGate(key_size=16)``. "top_k"
        keeps two experts for a sample, "hard" one, "attentive" reads the experts' hidden vectors,
        "kmeans" gives each expert a cluster.
    regularization : str, object, list of these or None, default="auto"
        Penalties that shape the decomposition: any of "importance", "load", "sample_similarity",
        "entropy", "competence", "z_loss", "orthogonality", "complexity", "zero_computation",
        objects such as ``SampleSimilarity(strength=0.1)``, or a function
        ``(mixture_output, x, y, sample_weight) -> scalar tensor``. "auto", also within a list, is
        what predicts best on tables, ``[Importance(0.2), Competence(0.5)]``, and nothing
        elsewhere.
    encoder : {"auto", "table", "conv"}, object, callable or None, default="auto"
        What gate and experts have in common before them. "table" scales numbers, fills in what is
        missing and encodes categories (see ``TableEncoder``). "conv" or a ``ConvEncoder`` are
        convolutions, for images, and a function ``(input_shape) -> torch.nn.Module`` may return
        any backbone; these are trained with the rest. A table is encoded before a backbone reads
        it. "auto" is "table" for a table and nothing for images; None is nothing for both.
    categorical_features : "from_dtype", array-like or None, default="from_dtype"
        Which columns of a table hold categories: a mask, positions or names. "from_dtype" takes
        those columns of a data frame whose type is categorical or text, and columns of objects
        that hold text. None: no column does.
    augmentation : {"flip_crop"}, callable or None, default=None
        How images are changed at random in training: flipped and shifted by "flip_crop" or a
        ``FlipCrop``, or by a function ``(x, generator) -> x`` of a batch.
    mixing : {"probability", "logit"}, default="probability"
        Whether the experts' probabilities or their logits are averaged. With logits, experts no
        longer stand on their own, and the decomposition says less.
    learning_rate : float or "auto", default="auto"
        Learning rate of AdamW; the peak of the schedule. "auto" is 0.03 for tables, 0.01 under a
        gate that reads the experts (attentive), and 3e-3 for images and networks of your own; or
        with a constant schedule 3e-3 for tables and 1e-3 for all else.
    learning_rate_schedule : {"one_cycle", "constant"}, default="one_cycle"
        "one_cycle" raises the learning rate linearly over the first 30 % of ``fit`` and lowers it
        to zero along a cosine (Smith and Topin 2017, arXiv 1708.07120). ``partial_fit`` is always
        constant.
    weight_decay : float or "auto", default="auto"
        Decoupled weight decay of AdamW, which is multiplied by the learning rate. "auto" is 2 for
        tables with two classes, 0.7 for those with more, and 0 elsewhere; a 40th of it in
        ``partial_fit``. It acts in each step, so in epochs of more than 16 steps, as those of more
        than 4,000 samples have, it is multiplied by 16 / steps; above 4,000 samples also by
        (4,000 / samples) to the power of 3/4; and above 120 epochs by 120 / epochs. A number is
        taken as it is.
    batch_size : int or "auto", default="auto"
        Largest number of samples of a training batch; "auto" is a tenth of the samples, but at
        least 32 and at most 256. An epoch is dealt into batches that are as equal as possible.
    max_iter : int, default=40
        Number of epochs.
    class_weight : dict, "balanced" or None, default=None
        Weights of the classes, which multiply ``sample_weight``; "balanced" makes all classes
        count alike. A dict may also have weights for classes that ``y`` lacks, as a fold may, if
        it has one for each class of ``y``.
    early_stopping : bool, default=False
        Whether to end the training when the loss on a validation set (``X_val`` of ``fit``, or a
        stratified part of the training data) stops falling, and to restore the best weights.
        Under "one_cycle" the loss falls most when the learning rate does. So it waits from the
        peak of the rate on, and then lets the rate come down to zero, in a third of the epochs so
        far or in those that are left, before it ends the training.
    validation_fraction : float, default=0.1
        Part of the training data that early stopping sets aside if ``fit`` gets no ``X_val``.
    n_iter_no_change : int, default=10
        Early stopping waits for this many epochs without a fall of the loss.
    tol : float, default=1e-4
        Early stopping counts a fall of the loss by more than this, in nats.
    warm_start : bool, default=False
        Whether ``fit`` goes on from the weights of the last one.
    device : str, default="auto"
        A torch device such as "cpu", "cuda" or "cuda:1"; "auto" is CUDA where there is one.
    n_threads : int or "auto", default="auto"
        Torch's threads within an operation, in fit and predict. "auto" takes two where the work of
        a batch is worth it and one otherwise, and never more than the process was given
        (``OMP_NUM_THREADS``, ``torch.set_num_threads``, ``threadpool_limits``, joblib, its
        processors). One and two threads round differently, by about 1e-7. An int is taken as it
        is. A forked child has one thread.
    net_params : dict, default=None
        Arguments of the skorch net, for all that has no parameter here. They win over ours; its
        list of ``callbacks`` is added. For example ``{"optimizer": torch.optim.SGD}``, which then
        has its own defaults for all but the learning rate. A warm start goes on with the net that
        it finds.
    input_shape : tuple of int, default=None
        Shape of the images whose pixels are the columns of a table ``X``, such as (28, 28) or
        (32, 32, 3), for pipelines whose other steps need tables. None takes ``X`` as it is.
    track_decomposition : bool, default=False
        Whether to record in ``decomposition_curves_`` how the experts divide the training samples
        in each epoch; ``verbose`` does, too.
    verbose : int, default=0
        0 is silent, 1 shows a progress bar, 2 prints a line per epoch.
    random_state : int, RandomState instance or None, default=None
        Seed of initial weights, batches, dropout and gate noise. An int gives the same result each
        time and leaves all global random states untouched; None draws a seed from numpy's.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    encoder_ : TableTransformer or None
        What turns the columns of a table into the numbers that gate and experts read; None if
        they read ``X`` itself.
    n_features_in_ : int
        Number of features; for images the length of their first axis.
    feature_names_in_ : ndarray of shape (``n_features_in_``,)
        Names of the features, where ``X`` had string column names.
    n_iter_ : int
        Number of epochs trained, over all warm starts and partial fits.
    loss_curve_ : list of float of length ``n_iter_``
        Mean training loss of each epoch, regularization included, in nats.
    validation_loss_curve_ : list of float or None
        Mean validation loss, without regularization, in nats, after each epoch that had a
        validation set; None if none had.
    validation_scores_ : list of float or None
        Accuracy on the validation set after the same epochs.
    best_validation_score_ : float or None
        Accuracy on the validation set in that epoch of the last training in which its loss was
        lowest, whose weights early stopping restores.
    decomposition_curves_ : dict of lists of float, or None
        "sample_entropy", "usage_entropy" and "expert_class_information" of the training samples,
        in bits, in each epoch that ``track_decomposition`` or ``verbose`` recorded; None if there
        was none, and for a student of :func:`distill`. As in ``loss_curve_``, each batch counts
        with the weights of its time.
    expert_usage_ : ndarray of shape (n_experts,)
        Mean gate probability of each expert over the samples, with their weights, of the last
        training.
    expert_costs_ : ndarray of shape (n_experts,)
        Multiply-adds that each expert takes for a sample; of networks of your own the number of
        their parameters, which it is for linear layers.
    n_parameters_ : int
        Number of parameters of gate, experts and encoder.
    report_ : DistillationReport, PruningReport or None
        How the mixture compares with the one that :func:`distill` or :func:`prune_experts` made it
        from.
    device_ : str
        Where the mixture is.
    net_ : MoENet
        The skorch net.
    module_ : MixtureOfExperts
        The torch module.

    See Also
    --------
    decomposition_entropy : Measures how the experts divide the samples.
    sklearn.neural_network.MLPClassifier : One network.

    References
    ----------
    R. A. Jacobs, M. I. Jordan, S. J. Nowlan, G. E. Hinton, Adaptive Mixtures of Local Experts,
    Neural Computation 3, 1991.

    Y. Krishnamurthy, C. Watkins, T. Gaertner, Improving Expert Specialization in Mixture of
    Experts, 2023, arXiv 2302.14703.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.model_selection import train_test_split
    >>> from sklearn_moe import MoEClassifier
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)
    >>> clf = MoEClassifier(n_experts=4, gate="attentive", regularization="importance",
    ...                     random_state=0).fit(X_train, y_train)
    >>> clf.score(X_test, y_test) > 0.9
    True
    >>> clf.gate_proba(X_test).shape
    (143, 4)
    """

    _parameter_constraints: dict = {
        # Experts that are networks one by one would take hours to make.
        "n_experts": [Interval(Integral, 1, 2**16, closed="both")],
        "experts": [StrOptions({"auto", *EXPERTS}), HasMethods("build"), callable],
        "gate": [StrOptions(set(GATES)), HasMethods("build")],
        "regularization": [StrOptions({"auto", *REGULARIZERS}), callable, list, tuple, None],
        "encoder": [StrOptions({"auto", *ENCODERS}), HasMethods("build"), callable, None],
        "categorical_features": ["array-like", StrOptions({"from_dtype"}), None],
        "augmentation": [StrOptions(set(AUGMENTATIONS)), callable, None],
        "mixing": [StrOptions({"probability", "logit"})],
        "learning_rate": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
        "learning_rate_schedule": [StrOptions({"one_cycle", "constant"})],
        "weight_decay": [StrOptions({"auto"}), Interval(Real, 0, None, closed="left")],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "class_weight": [StrOptions({"balanced"}), dict, None],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "warm_start": ["boolean"],
        "device": [str],
        # With a million OpenMP ends the process.
        "n_threads": [StrOptions({"auto"}), Interval(Integral, 1, 1024, closed="both")],
        "net_params": [dict, None],
        "input_shape": ["array-like", None],
        "track_decomposition": ["boolean"],
        "verbose": ["verbose"],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_experts: int = 8,
        *,
        experts: str | object | Callable[[tuple[int, ...], int], nn.Module] = "auto",
        gate: str | object = "softmax",
        regularization: str | Callable | Sequence | None = "auto",
        encoder: str | object | Callable[[tuple[int, ...]], nn.Module] | None = "auto",
        categorical_features: ArrayLike | str | None = "from_dtype",
        augmentation: str | Callable | None = None,
        mixing: str = "probability",
        learning_rate: float | str = "auto",
        learning_rate_schedule: str = "one_cycle",
        weight_decay: float | str = "auto",
        batch_size: int | str = "auto",
        max_iter: int = 40,
        class_weight: dict | str | None = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
        warm_start: bool = False,
        device: str = "auto",
        n_threads: int | str = "auto",
        net_params: dict[str, Any] | None = None,
        input_shape: Sequence[int] | None = None,
        track_decomposition: bool = False,
        verbose: int = 0,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.n_experts = n_experts
        self.experts = experts
        self.gate = gate
        self.regularization = regularization
        self.encoder = encoder
        self.categorical_features = categorical_features
        self.augmentation = augmentation
        self.mixing = mixing
        self.learning_rate = learning_rate
        self.learning_rate_schedule = learning_rate_schedule
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.class_weight = class_weight
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.warm_start = warm_start
        self.device = device
        self.n_threads = n_threads
        self.net_params = net_params
        self.input_shape = input_shape
        self.track_decomposition = track_decomposition
        self.verbose = verbose
        self.random_state = random_state

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.sparse = True
        encodes = self._encodes_tables()
        tags.input_tags.allow_nan = tags.input_tags.categorical = encodes
        tags.input_tags.string = encodes
        return tags

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return all parameters.

        Parameters
        ----------
        deep : bool, default=True
            Whether to return those of the objects among them, too, such as ``gate__top_k``; of
            regularizations in a list by their place, ``regularization__0__strength``.

        Returns
        -------
        dict
            Values by name.
        """
        params = super().get_params(deep=deep)
        if deep and isinstance(self.regularization, (list, tuple)):
            for place, each in enumerate(self.regularization):
                if hasattr(each, "get_params"):
                    params |= {
                        f"regularization__{place}__{name}": value
                        for name, value in each.get_params().items()
                    }
        return params

    def set_params(self, **params) -> MoEClassifier:
        """Set parameters, also nested ones such as ``gate__top_k``.

        Parameters
        ----------
        **params : dict
            Parameters by name.

        Returns
        -------
        self : MoEClassifier

        Raises
        ------
        ValueError
            For an unknown parameter, and for a nested parameter of something that is given by
            name, as only objects have parameters.
        """
        in_list = [key for key in params if re.match(r"regularization__\d+__", key)]
        if in_list:
            self.set_params(**{key: each for key, each in params.items() if key not in in_list})
            known = self.get_params()
            for key in in_list:
                if key not in known:
                    raise ValueError(
                        f"Cannot set {key}: regularization={self.regularization!r} has no such "
                        "parameter. Pass a list of objects, for example [Importance()]."
                    )
                _, place, name = key.split("__", maxsplit=2)
                self.regularization[int(place)].set_params(**{name: params[key]})
            return self
        for key in params:
            name, _, nested = key.partition("__")
            value = params.get(name, getattr(self, name, None))
            if nested and name in _ROOMS and not hasattr(value, "set_params"):
                raise ValueError(
                    f"Cannot set {key}: {name}={value!r} has no parameters of its own. Pass one "
                    f"object in its place, for example {name}="
                    f"{_example(_ROOMS[name], value, nested, params[key])!r}."
                )
        return super().set_params(**params)

    # Training

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        X_val: ArrayLike | None = None,
        y_val: ArrayLike | None = None,
        sample_weight_val: ArrayLike | None = None,
    ) -> MoEClassifier:
        """Fit the mixture of experts.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Training samples: a table, as an array, a sparse matrix or a data frame (pandas,
            polars, pyarrow, dask) with missing values, text and categories, or images of shape
            (height, width), (height, width, n_channels) with at most 4 channels, or (n_channels,
            height, width). They become float32; a sparse matrix becomes dense. Images of bytes
            (uint8) are divided by 255, batch by batch, and later so are whole numbers of any type.
        y : array-like of shape (n_samples,)
            Class labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples, at least 0; a weight of zero equals removal.
        X_val : array-like of shape (n_val, n_features) or (n_val, ...), default=None
            Validation samples. Their loss and accuracy are recorded each epoch, and early stopping
            watches the loss.
        y_val : array-like of shape (n_val,), default=None
            Labels of the validation samples.
        sample_weight_val : array-like of shape (n_val,), default=None
            Weights of the validation samples.

        Returns
        -------
        self : MoEClassifier

        Raises
        ------
        ValueError
            If the data or a parameter are not valid, or the loss becomes NaN. A mixture that was
            fitted before stays as it was.
        KeyboardInterrupt
            If a user interrupts the training. The mixture keeps the weights that it had by then,
            or stays as it was before if no epoch was complete.
        MemoryError
            If the mixture, or a batch, does not fit into memory.

        Warns
        -----
        UserWarning
            If nearly all samples go to one expert: the usage entropy is below a tenth of
            ``log2(n_experts)``. If a warm start gets columns with values that the first training
            did not see (see :meth:`partial_fit`).
        """
        return self._fit(X, y, sample_weight, (X_val, y_val, sample_weight_val))

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        classes: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> MoEClassifier:
        """Train for one epoch on these samples, going on from the present weights.

        The first call fits the encoding of a table: the scales of its numbers, its categories and
        which columns have missing values. Later calls keep it. So the first chunk should be large
        enough to be typical. Later categories are read as unknown ones.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Training samples.
        y : array-like of shape (n_samples,)
            Class labels.
        classes : array-like of shape (n_classes,), default=None
            All classes that will ever come; needed in the first call.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples, at least 0.

        Returns
        -------
        self : MoEClassifier

        Raises
        ------
        ValueError
            If the data or a parameter are not valid, the first call has no ``classes``, a label is
            not among them, or ``early_stopping`` or ``class_weight="balanced"`` is set.
        KeyboardInterrupt
            If a user interrupts the training; the mixture stays as it was before.

        Warns
        -----
        UserWarning
            If a column has categories or missing values for the first time, or if its numbers are
            more than five standard deviations from where they were. Each column is named once.
        """
        if self.early_stopping:
            raise ValueError(
                "partial_fit does not support early_stopping=True, as it never sees all data. Set "
                "early_stopping=False."
            )
        if isinstance(self.class_weight, str):
            raise ValueError(
                "partial_fit does not support class_weight='balanced', as it never sees all data. "
                "Pass a dict of class weights."
            )
        if classes is None:
            if not hasattr(self, "net_"):
                raise ValueError("classes must be passed on the first call to partial_fit.")
            return self._fit(X, y, sample_weight, classes=self.classes_)
        classes = np.unique(check_y(classes, "classes"))
        return self._fit(X, y, sample_weight, classes=classes)

    def _fit(self, X, y, sample_weight, validation=(None, None, None), classes=None):
        """Train a copy, and become it: a training that fails leaves all as it was."""
        incremental = classes is not None
        going_on = (incremental or self.warm_start) and hasattr(self, "net_")
        new = self._snapshot()
        interrupted = new._train(self, X, y, sample_weight, validation, classes, going_on)
        n_new = new.n_iter_ - (self.n_iter_ if going_on else 0)
        if interrupted and n_new == 0:
            raise KeyboardInterrupt(
                "The training was interrupted in its first epoch; the mixture is as it was before."
            )
        former = {name: value for name, value in vars(self).items() if name != "feature_names_in_"}
        self.__dict__ = {**former, **vars(new)}  # in one go, as other threads may predict
        if interrupted:
            raise KeyboardInterrupt(
                f"The training was interrupted after {n_new} complete epochs; the mixture keeps "
                "the weights that it had by then."
            )
        if not incremental:  # one chunk of a stream may well belong to one expert
            self._warn_of_collapse()
        return self

    def _snapshot(self):
        """Return a shallow copy, which other threads cannot change."""
        new = object.__new__(type(self))
        new.__dict__.update(vars(self))
        return new

    def _train(self, estimator, X, y, sample_weight, validation, classes, going_on):
        """Train in place of an estimator, and return whether a user interrupted it."""
        incremental = classes is not None
        self._check_parameters()
        is_table = self.encoder_ is not None if going_on else self._is_table(X)
        X = as_eager(X)
        given = X
        y = check_y(y)
        X = self._read(X, reset=not going_on, is_table=is_table)
        check_consistent_length(X, y)
        y, classes = self._check_classes(y, classes, going_on)
        weight = check_weight(sample_weight, X, "sample_weight")
        validation = self._check_validation(*validation, X, classes, is_table)
        if going_on:
            random_state = deepcopy(self._random_state)
        else:
            seed = check_random_state(self.random_state).randint(np.iinfo(np.int32).max)
            random_state = np.random.RandomState(seed)

        rows, total, validation = self._weigh(X, y, weight, validation, classes, random_state)
        if len(rows) < len(X):
            X, y = X[rows], y[rows]
        if is_table:
            if going_on:
                self._warn_of_news(X)
            else:
                self.encoder_.fit(X, sample_weight=total)
            X = self.encoder_.transform(X)
            if validation is not None:
                validation = self.encoder_.transform(validation[0]), *validation[1:]

        build_seed, train_seed = random_state.randint(np.iinfo(np.int32).max, size=2).tolist()
        if going_on:
            net = self._go_on(X, is_table, incremental)
        else:
            with explained_memory(self.n_experts):
                net = self._new_net(X, len(classes), build_seed, is_table, incremental)
        epochs = 1 if incremental else net.max_epochs
        n_iter_before = self.n_iter_ if going_on else 0
        self.classes_ = classes
        self._random_state = random_state
        callbacks = self._callbacks(epochs, incremental)
        if hasattr(self, "_skl_callbacks"):
            task = {
                "X": _safe_indexing(given, rows),
                "y": classes[y],
                "metadata": None if sample_weight is None else {"sample_weight": weight[rows]},
            }
            callbacks.append(ScikitLearnCallbacks(estimator, epochs, dict(vars(self)), **task))
        if self.early_stopping:  # last, as no callback after it hears of the epoch that it ends
            schedule = next((each for each in callbacks if isinstance(each, OneCycle)), None)
            callbacks.append(StopEarly(self.n_iter_no_change, self.tol, schedule))
        with explained_memory(self.n_experts):
            interrupted = net.train(
                X,
                y,
                total,
                validation=validation,
                epochs=1 if incremental else None,
                callbacks=callbacks,
                seed=train_seed,
                read=self._encode,
            )
        self._adopt(net, X, total, n_iter_before)
        return interrupted

    def _weigh(self, X, y, weight, validation, classes, random_state):
        """Multiply in the class weights, drop samples without weight, set a validation set aside.

        Returns
        -------
        rows : ndarray of int
            The samples to train on.
        total : ndarray
            Their weights, with a mean of 1.
        validation : tuple of samples, labels and weights, or None
        """
        weight = scaled(weight)
        class_weight = class_weights(self.class_weight, y, weight, classes)
        total = weight * class_weight[y]
        rows = weighty(total)
        if validation is not None:
            X_val, y_val, weight_val = validation
            weight_val = scaled(weight_val) * class_weight[y_val]
            held_out = weighty(weight_val)
            validation = X_val[held_out], y_val[held_out], normalize(weight_val[held_out])
        elif self.early_stopping:
            rows, held_out = split(
                rows, y[rows], fraction=self.validation_fraction, random_state=random_state
            )
            validation = X[held_out], y[held_out], normalize(total[held_out])
        return rows, normalize(total[rows]), validation

    def _callbacks(self, epochs, incremental=False):
        """Return the callbacks that any training has."""
        callbacks = []
        if self.learning_rate_schedule == "one_cycle" and not incremental:
            callbacks.append(OneCycle(epochs))
        if self.verbose == 1:
            callbacks.append(Progress(epochs))
        return callbacks

    def _check_parameters(self):
        """Check what scikit-learn's table of constraints cannot."""
        check_device(self.device)
        for name in ("n_experts", "batch_size", "max_iter", "n_iter_no_change", "n_threads"):
            if isinstance(getattr(self, name), (bool, np.bool_)):  # which are integers, too
                raise ValueError(f"{name} must be an integer, got {getattr(self, name)!r}.")
        check_sizes(self.get_params())

    def _check_classes(self, y, classes, going_on):
        """Return labels as indices of the sorted classes, and these."""
        with reading("y"):
            check_classification_targets(y)
        classes = np.unique(y) if classes is None else classes
        if len(classes) < 2:
            raise ValueError(
                f"MoEClassifier needs at least 2 classes, got one class: {classes.tolist()}."
            )
        if going_on and not np.array_equal(classes, self.classes_):
            raise ValueError(
                f"The classes {classes.tolist()} differ from {self.classes_.tolist()}, those of "
                "the training that warm_start or partial_fit goes on with."
            )
        return encode(y, classes, "y"), classes

    def _encodes_tables(self):
        """Whether tables are encoded, before a backbone of the user's own if there is one."""
        encoder = self._encoder()
        return encoder is not None and not getattr(encoder, "needs_images", False)

    def _is_table(self, X):
        """Whether X is a table that the encoder turns into numbers."""
        if self._encodes_tables():
            with reading("X"):
                n_axes = len(X.shape if hasattr(X, "shape") else np.asarray(X).shape)
            if n_axes <= 2 and self.input_shape is None:
                return True
            if self._has_table_encoder() and self.encoder != "auto":
                raise ValueError(
                    f"encoder={self.encoder!r} is for tables, got images. Leave encoder='auto', "
                    "or pass encoder='conv'."
                )
        if not (self.categorical_features is None or isinstance(self.categorical_features, str)):
            got = "images" if self._encodes_tables() else f"encoder={self.encoder!r}"
            raise ValueError(
                f"categorical_features needs a table and encoder='auto' or 'table', got {got}."
            )
        return False

    def _has_table_encoder(self):
        """Whether nothing but the encoding of tables comes before gate and experts."""
        return hasattr(self._encoder(), "make_transformer")

    def _encoder(self):
        """Return what ``encoder`` stands for; "auto" is the encoding of tables."""
        if not isinstance(self.encoder, str):
            return self.encoder
        return ENCODERS.get("table" if self.encoder == "auto" else self.encoder)

    def _read(self, X, *, reset, is_table):
        """Return a table as ``Table``, and all else as an array of float32 or uint8."""
        X = as_dense(as_objects(as_eager(X)))
        if not is_table:
            return self._read_array(X, reset=reset)
        if as_frame(X) is not None:
            validate_data(self, X, reset=reset, skip_check_array=True)
            if 0 in X.shape:
                raise ValueError(
                    f"X is a data frame of shape {X.shape}. MoEClassifier needs at least one row "
                    "and one column."
                )
        else:
            X = self._checked(X, reset=reset, dtype=None, ensure_all_finite=False)
        if not reset:
            return self.encoder_.read(X)
        encoder = as_encoder(self._encoder()) if self._has_table_encoder() else ENCODERS["table"]
        self.encoder_ = encoder.make_transformer()
        return self.encoder_.read(X, self.categorical_features)

    def _read_array(self, X, *, reset):
        """Return images, or tables that are read as they are, on the scale of the training."""
        with reading("X"):
            is_whole = np.asarray(X).dtype.kind in "iu"
        X = self._checked(X, reset=reset, **_X_CHECKS)
        if self.input_shape is not None and X.ndim == 2:
            shape = check_layer_sizes("input_shape", self.input_shape)
            if X.shape[1] != math.prod(shape):
                raise ValueError(
                    f"X has {X.shape[1]} features, but input_shape={shape} needs "
                    f"{math.prod(shape)}."
                )
            X = X.reshape(len(X), *shape)
        if 0 in X.shape:
            raise ValueError(f"X has samples of shape {X.shape[1:]}, which hold no numbers.")
        if X.ndim == 2:
            X = X.astype(np.float32, copy=False)
        if reset:
            self.encoder_ = None
            self._scale = "bytes" if X.dtype == np.uint8 else None
            if self._scale is None and X.ndim > 2 and X.min() >= 0 and X.max() <= 1:
                self._scale = "fractions"
            return X
        return self._on_scale(X, is_whole) if X.ndim > 2 else X

    def _on_scale(self, X, is_whole):
        """Return images on the scale of those of the training."""
        if self._scale == "bytes":
            if not is_whole and X.max() > 2:
                raise ValueError(
                    f"X holds floats up to {X.max():.4g}, but the mixture was fitted on bytes, "
                    "which it divides by 255. Pass whole numbers, or floats from 0 to 1."
                )
            return X / np.float32(255) if is_whole and X.dtype != np.uint8 else X
        if self._scale == "fractions" and is_whole and X.max() > 1:
            raise ValueError(
                f"X holds whole numbers up to {X.max():.4g}, but the mixture was fitted on "
                "numbers from 0 to 1. Divide X by 255."
            )
        return X.astype(np.float32, copy=False)

    def _checked(self, X, *, reset, **checks):
        """Return an array that scikit-learn has checked, and say what to do if it complains."""
        try:
            with reading("X"):
                return validate_data(self, X, reset=reset, **checks)
        except (ValueError, TypeError) as error:
            for complaint, advice in _ADVICE.items():
                if complaint in str(error):
                    what = str(error).splitlines()[0].rstrip(".")
                    raise ValueError(f"{what}. {advice}") from error
            raise

    def _check_validation(self, X_val, y_val, weight_val, X, classes, is_table):
        if X_val is None and y_val is None and weight_val is None:
            return None
        if X_val is None or y_val is None:
            raise ValueError(
                "X_val and y_val must be passed together, and sample_weight_val only with them."
            )
        try:
            y_val = check_y(y_val)
            X_val = self._read(X_val, reset=False, is_table=is_table)
            check_consistent_length(X_val, y_val)
            weight_val = check_weight(weight_val, X_val, "sample_weight_val")
        except ValueError as error:
            raise ValueError(f"The validation set X_val, y_val is not valid: {error}") from error
        if not is_table:
            check_shape("X_val", X_val, X.shape[1:])
        return X_val, encode(y_val, classes, "y_val"), weight_val

    def _warn_of_news(self, table):
        """Warn of what the encoding of columns, which stays as it is, does not know."""
        news = self.encoder_.news(table)
        told = getattr(self, "_told", frozenset())
        for column in sorted(set(news) - told):
            name = getattr(self, "feature_names_in_", range(self.n_features_in_))[column]
            warnings.warn(
                f"Column {name!r} {news[column]}. partial_fit and warm starts keep the encoding "
                "of the first training. Let that see more of the data, or fit anew.",
                stacklevel=6,
            )
        self._told = told | set(news)

    def _recipe(self, X):
        """Return what "auto" means in a training on such samples."""
        is_ours = self.encoder is None or self._has_table_encoder()
        is_ours = is_ours and (not callable(self.experts) or hasattr(self.experts, "build"))
        if not (X.ndim == 2 and is_ours):
            return RECIPES["other"]
        gate = resolve("gate", self.gate, GATES)
        # As its module, a gate that does not say so reads the experts.
        return RECIPES["attentive" if getattr(gate, "needs_hidden", True) else "table"]

    def _settings(self, X, n_classes, incremental):
        """Return what a net takes anew in each training."""
        net_params = self.net_params or {}
        check_net_params(net_params)
        recipe = self._recipe(X)
        learning_rate = self.learning_rate
        if learning_rate == "auto":
            schedule = "constant" if incremental else self.learning_rate_schedule
            learning_rate = recipe["learning_rate"][schedule]
        settings = {
            "regularizations": self._regularizations(recipe["regularization"]),
            "augmentation": self._augmentation(),
            "n_threads": self.n_threads,
            "track_decomposition": bool(self.track_decomposition or self.verbose),
            "lr": learning_rate,
            "optimizer__weight_decay": self.weight_decay,
            "max_epochs": self.max_iter,
            "batch_size": self.batch_size,
            "verbose": int(self.verbose >= 2),
        }
        if "optimizer" in net_params:  # which has its own defaults
            del settings["optimizer__weight_decay"]
        settings = {name: net_params.get(name, value) for name, value in settings.items()}
        if settings["batch_size"] == "auto":
            settings["batch_size"] = automatic_batch_size(len(X))
        if settings.get("optimizer__weight_decay") == "auto":
            settings["optimizer__weight_decay"] = automatic_weight_decay(
                recipe,
                n_classes=n_classes,
                n_samples=len(X),
                batch_size=settings["batch_size"],
                epochs=None if incremental else settings["max_epochs"],
            )
        return settings

    def _architecture(self, is_table):
        """Return what a net keeps for good."""
        encoder = self.encoder
        if isinstance(encoder, str) and encoder == "auto":
            encoder = "table" if is_table else None
        experts = self.experts
        if callable(experts) and not hasattr(experts, "build"):
            experts = CustomExperts(experts)
        return {
            # Which experts "auto" means depends on what the encoder makes of the samples.
            "experts": "auto" if experts == "auto" else resolve("experts", experts, EXPERTS),
            "encoder": as_encoder(encoder),
            "gate": resolve("gate", self.gate, GATES),
            "n_experts": self.n_experts,
            "mixing": self.mixing,
        }

    def _regularizations(self, auto):
        """Return the penalties, where "auto" stands for those of the recipe."""
        given = self.regularization
        if given is None:
            return []
        regularizations = []
        for each in given if isinstance(given, (list, tuple)) else [given]:
            is_auto = isinstance(each, str) and each == "auto"
            regularizations += map(_penalty, auto if is_auto else [each])
        return [each for each in regularizations if getattr(each, "strength", 1) != 0]

    def _augmentation(self):
        augmentation = self.augmentation
        if augmentation is not None:
            augmentation = resolve("augmentation", augmentation, AUGMENTATIONS)
            check_signature("augmentation", augmentation, "x", "generator")
        if isinstance(augmentation, BaseEstimator):
            augmentation._validate_params()
        return augmentation

    def _new_net(self, X, n_classes, seed, is_table, incremental):
        net_params = self.net_params or {}
        arguments = {
            **self._architecture(is_table),
            **self._settings(X, n_classes, incremental),
            "input_shape": X.shape[1:],
            "n_classes": n_classes,
            "seed": seed,
            "device": self.device,
            **({} if "optimizer" in net_params else _OPTIMIZER),
            **net_params,
        }
        arguments["device"] = check_device(arguments["device"])
        return MoENet(**arguments).initialize()

    def _go_on(self, X, is_table, incremental):
        """Return the present net with the present settings."""
        for name, value in self._architecture(is_table).items():
            before = getattr(self.net_, name)
            if not same_parameters(value, before):
                raise ValueError(
                    f"warm_start=True and partial_fit cannot change {name} from {before!r} to "
                    f"{value!r}. Fit with warm_start=False."
                )
        net = self.net_.copy_to_train()
        return net.set_params(**self._settings(X, net.n_classes, incremental))

    def _adopt(self, net, X, weight, n_iter_before=0):
        """Take over a net that was trained with these samples and weights."""
        gate_proba = net.evaluate(X, MixtureOfExperts.gate_proba)
        self.expert_usage_ = np.average(gate_proba, axis=0, weights=weight.astype(np.float64))
        self.net_ = net
        self.report_ = None
        rows = [row for row in net.history if "train_loss" in row]
        self.n_iter_ = len(rows)
        self.loss_curve_ = [float(row["train_loss"]) for row in rows]
        validated = [row for row in rows if "valid_loss" in row]
        self.validation_loss_curve_ = self.validation_scores_ = self.best_validation_score_ = None
        if validated:
            self.validation_loss_curve_ = [float(row["valid_loss"]) for row in validated]
            self.validation_scores_ = [float(row["valid_accuracy"]) for row in validated]
        tracked = [row for row in rows if "usage_entropy" in row]
        self.decomposition_curves_ = (
            {name: [row[name] for row in tracked] for name in _TRACKED} if tracked else None
        )
        new = [row for row in rows[n_iter_before:] if "valid_loss" in row]
        if new:
            best = min(new, key=lambda row: row["valid_loss"])
            self.best_validation_score_ = float(best["valid_accuracy"])

    def _warn_of_collapse(self):
        usage = self.expert_usage_
        if usage_entropy([usage]) < 0.1 * math.log2(len(usage)):
            warnings.warn(
                f"The gate has collapsed: expert {usage.argmax()} answers for {usage.max():.0%} "
                "of the training samples. Use a regularization that spreads the work, such as "
                "regularization='importance' or 'sample_similarity', or fewer experts.",
                stacklevel=5,  # at the user's call
            )

    # Prediction

    def predict(self, X: ArrayLike) -> NDArray:
        """Predict the most probable class of each sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples,)
            Class labels.
        """
        fitted = self._snapshot()  # another thread may fit
        proba = fitted.predict_proba(X)
        return fitted.classes_[proba.argmax(axis=1)]

    def predict_proba(self, X: ArrayLike) -> NDArray[np.floating]:
        """Predict the probability of each class.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Probabilities in the order of ``classes_``; rows sum to 1. They are float64, and
            float32 if ``X`` is float32 or float16.
        """
        return self._evaluate_proba(X, MixtureOfExperts.predict_proba)

    def predict_log_proba(self, X: ArrayLike) -> NDArray[np.floating]:
        """Predict the logarithm of the probability of each class.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Log-probabilities, exact also where the probability is 0.
        """
        log_proba = self._evaluate(
            X, lambda module, x: module.predict_log_proba(x).log_softmax(dim=1)
        )
        if log_proba.dtype == np.float64:
            log_proba -= logsumexp(log_proba, axis=1, keepdims=True)
        return log_proba

    def gate_proba(self, X: ArrayLike) -> NDArray[np.floating]:
        """Return how much each expert says about each sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples, n_experts)
            Gate probabilities after top-k masking; rows sum to 1. A gate with ``top_k=1`` gives
            one expert the whole sample here, although it trains on the full softmax.
        """
        return self._evaluate_proba(X, MixtureOfExperts.gate_proba)

    def expert_proba(self, X: ArrayLike, *, chosen_only: bool = False) -> NDArray[np.floating]:
        """Predict the probability of each class by each expert on its own.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Samples.
        chosen_only : bool, default=False
            Whether to return only what the expert says that the gate chooses for a sample (see
            :meth:`apply`).

        Returns
        -------
        ndarray of shape (n_samples, n_experts, n_classes) or (n_samples, n_classes)
            Each expert's probabilities, or those of the chosen expert.
        """
        if chosen_only:
            return self._evaluate_proba(
                X, lambda module, x: module.chosen_expert_logits(x).softmax(dim=1)
            )
        return self._evaluate_proba(X, lambda module, x: module.expert_logits(x).softmax(dim=2))

    def apply(self, X: ArrayLike) -> NDArray[np.int64]:
        """Return the expert that the gate chooses for each sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples,)
            Index of the most probable expert.
        """
        return self._evaluate(X, lambda module, x: module.gate_proba(x).argmax(dim=1))

    def _evaluate_proba(self, X, function):
        """Return probabilities as :meth:`_evaluate` does, which sum to 1 in their precision."""
        proba = self._evaluate(X, function)
        if proba.dtype == np.float64:
            proba /= proba.sum(axis=-1, keepdims=True)
        return proba

    def _evaluate(self, X, function):
        """Return a function of the mixture, in double precision unless X has less."""
        check_is_fitted(self)
        fitted = self._snapshot()  # another thread may fit
        X = as_eager(X)
        is_single = has_single_precision(X)
        X = fitted._encode(X)
        check_shape("X", X, fitted.net_.input_shape)
        values = fitted.net_.evaluate(X, function)
        return values if is_single or values.dtype.kind != "f" else values.astype(np.float64)

    def _encode(self, X):
        """Return samples as the net reads them."""
        X = self._read(X, reset=False, is_table=self.encoder_ is not None)
        return X if self.encoder_ is None else self.encoder_.transform(X)

    # The machine

    def to(self, device: str) -> MoEClassifier:
        """Move the fitted mixture to a device.

        Parameters
        ----------
        device : str
            A torch device such as "cpu" or "cuda", or "auto".

        Returns
        -------
        self : MoEClassifier
        """
        check_is_fitted(self)
        self.net_.to(check_device(device))
        return self

    @property
    def device_(self) -> str:
        """Where the fitted mixture is."""
        return str(self.net_.device)

    @property
    def module_(self) -> nn.Module:
        """The fitted torch module."""
        return self.net_.module_

    @property
    def expert_costs_(self) -> NDArray[np.int64]:
        """Multiply-adds that each expert takes for a sample."""
        return np.array(self.module_.experts.costs)

    @property
    def n_parameters_(self) -> int:
        """Number of parameters of gate, experts and encoder."""
        return sum(parameter.numel() for parameter in self.module_.parameters())

    def __sklearn_is_fitted__(self):
        return hasattr(self, "net_")


_OPTIMIZER = {"optimizer": torch.optim.AdamW, "optimizer__fused": True}

_TRACKED = ("sample_entropy", "usage_entropy", "expert_class_information")

# Images of bytes stay as they are until the net scales a batch of them.
_X_CHECKS = {"dtype": [np.float32, np.uint8], "order": "C", "allow_nd": True}

_TEXT = "Leave encoder='auto', which encodes text and categories. Without it X must be numeric."

_ADVICE = {
    "could not convert string": _TEXT,
    "is not compatible with arrays of bytes/strings": _TEXT,
    "Complex data not supported": "Pass real and imaginary part as features of their own.",
    "contains NaN": "Leave encoder='auto', which fills in what is missing in a table.",
    "contains infinity": "X must be finite: clip or drop such values first.",
}

_ROOMS = {
    "experts": EXPERTS,
    "gate": GATES,
    "encoder": ENCODERS,
    "augmentation": AUGMENTATIONS,
    "regularization": REGULARIZERS,
}


def _example(room, name, nested, value):
    """Return what a name stands for, or the first of the room that has the parameter, with it."""
    named = room.get(name) if isinstance(name, str) else None
    options = [named] if named is not None else list(room.values())
    for option in options:
        if nested in option.get_params():
            return clone(option).set_params(**{nested: value})
    return options[0]


def _penalty(given):
    """Return the penalty that a name stands for, or the one that a user passed."""
    penalty = resolve("regularization", given, REGULARIZERS)
    if not callable(penalty):
        raise ValueError(
            f"regularization={penalty!r} must be a name, a regularization such as Importance(), "
            "or a function."
        )
    check_signature("regularization", penalty, "mixture_output", "x", "y", "sample_weight")
    if isinstance(penalty, BaseEstimator):
        penalty._validate_params()
    return penalty
