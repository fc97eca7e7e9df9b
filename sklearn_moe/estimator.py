"""MoEClassifier: the mixture of experts as a scikit-learn classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin, _fit_context
from sklearn.utils import get_tags
from torch import nn

from sklearn_moe.checks import check_y
from sklearn_moe.fitted import FittedMixture
from sklearn_moe.fitting import train
from sklearn_moe.notices import warn_of_collapse, warn_of_disagreement, warn_of_separation
from sklearn_moe.parameters import (
    CONSTRAINTS,
    check_nested,
    classifiers_among,
    encodes_tables,
    parameters_in_lists,
    set_parameters_in_lists,
)
from sklearn_moe.tensors import takes_tensors

try:
    from sklearn.callback import CallbackSupportMixin
except ImportError:  # scikit-learn < 1.9 has no callbacks

    class CallbackSupportMixin:  # type: ignore[no-redef]
        pass


class MoEClassifier(FittedMixture, ClassifierMixin, CallbackSupportMixin, BaseEstimator):
    r"""Mixture of experts for classification.

    A mixture has several small networks, the experts, and a gate that decides for each sample how
    much each expert counts. They are trained together by maximum likelihood,

    .. math:: -\log \sum_e p_e(x)\, o_{ey}(x) + \text{regularization},

    with the gate's probabilities :math:`p` and the experts' class probabilities :math:`o`. The
    gate and the regularization decide how the work is divided among the experts. Choose them by
    name, or pass objects to tune them. Tables are scaled and encoded automatically (see
    ``encoder``).

    Parameters
    ----------
    n_experts : int, default=8
        Number of experts, at most 65,536. A list of experts is as long as it is.
    experts : str, object, callable or list, default="auto"
        Kind of experts: a name in ``EXPERTS``, an object such as
        ``MLPExperts(hidden_layer_sizes=(128,))``, or a function ``(input_shape, n_outputs) ->
        torch.nn.Module`` that makes one expert; its forward returns logits or (logits, hidden).
        A list such as ``[("forest", RandomForestClassifier()), ("net", MLPExperts())]`` has any
        classifiers of scikit-learn, and torch modules that are trained already (see
        ``EstimatorExperts``). "strong" is such a list, which predicts tables best and takes five
        to ten times as long (see ``StrongExperts``). "auto" is "conv" if the experts read images,
        and "mlp" otherwise.
    gate : str or object, default="softmax"
        How experts are chosen: a name in ``GATES`` or an object such as
        ``AttentiveGate(key_size=16)``. "softmax" mixes all experts, "top_k" keeps two of them for
        a sample and "hard" one, "attentive" reads the experts' hidden vectors, "kmeans" gives each
        expert a cluster of the samples, and "constant" gives all samples the same mixture.
    regularization : str, object, list of these or None, default="auto"
        Penalties that shape the decomposition: names in ``REGULARIZERS``, such as "importance" and
        "sample_similarity", objects such as ``SampleSimilarity(strength=0.1)``, or a function
        ``(mixture_output, x, y, sample_weight) -> scalar tensor``. "auto", also within a list,
        stands for ``[Importance(0.2), Competence(0.5)]`` on tables, which predicts best there, and
        for no penalty elsewhere.
    encoder : str, object, callable or None, default="auto"
        The layers before gate and experts, which both share: a name in ``ENCODERS``. "table"
        scales numbers, fills in missing values and encodes categories. "conv" has convolutions,
        "moe" and "conv_moe" hidden layers of experts (see ``MoELayers``), and a function
        ``(input_shape) -> torch.nn.Module`` may return any backbone. A table is encoded before a
        backbone reads it. "auto" is "table" for tables and None, no encoder, for images.
    categorical_features : "from_dtype", array-like or None, default="from_dtype"
        Which columns of a table hold categories: a mask, positions or names. "from_dtype" takes
        the columns of a data frame whose type is categorical or text, and object columns that
        hold text. None: no column holds categories.
    augmentation : {"flip_crop"}, callable or None, default=None
        Random changes of the training images: "flip_crop" or a ``FlipCrop`` flips and shifts
        them, and a function ``(x, generator) -> x`` may change a batch in any other way.
    gate_features, expert_features : array-like, callable or None, default=None
        The columns of a table that the gate and the experts read: names, positions, a mask, or a
        function of ``X`` that returns one of these, such as scikit-learn's
        ``make_column_selector``. None is all columns. If the gate has its own columns, such as
        the circumstances of a case, and the experts have others, only one decomposition explains
        the data, and it is found more surely.
    mixing : {"probability", "logit"}, default="probability"
        Whether the experts' probabilities or their logits are averaged. With logits, the
        prediction of a single expert means little, and the decomposition says less.
    learning_rate : float or "auto", default="auto"
        Learning rate of AdamW; the peak of the schedule. "auto" is 0.03 for tables, 0.01 for
        tables with a gate that reads the experts (attentive), and 3e-3 for images and for networks
        that you wrote. With a constant schedule, it is 3e-3 for tables and 1e-3 for everything
        else.
    learning_rate_schedule : {"one_cycle", "constant"}, default="one_cycle"
        "one_cycle" raises the learning rate linearly over the first 30 % of ``fit`` and lowers it
        to zero along a cosine (Smith and Topin 2017, arXiv 1708.07120). ``partial_fit`` always
        uses a constant rate.
    weight_decay : float or "auto", default="auto"
        Decoupled weight decay of AdamW, which is multiplied by the learning rate. "auto" is 2 for
        tables with two classes, 0.7 for tables with more classes, and 0 for everything else.
        ``fit`` multiplies it by 16 / steps if an epoch has more than 16 steps, by
        (4,000 / samples) to the power of 1/4 above 4,000 samples, and by 120 / epochs above 120
        epochs; ``partial_fit`` takes a 40th of it. A number is used unchanged.
    batch_size : int or "auto", default="auto"
        Largest number of samples of a training batch; "auto" is a tenth of the samples, but at
        least 32 and at most 256, or 512 above 100,000 samples. Batches are as equal as possible.
    max_iter : int or "auto", default="auto"
        Number of epochs. "auto" is 40; for tables of more than 4,000 samples it is multiplied by
        (4,000 / samples) to the power of 0.45. It is at most 1.5e6 / samples, and at least 3.
    n_init : int or "auto", default="auto"
        Number of random starts. The mixture that ends with the highest score is kept: for linear
        experts the likelihood of the training samples less the penalties on weights, for others
        the likelihood of a validation set (``X_val``, or ``validation_fraction`` of the samples).
        Under a sparse gate of linear experts, the best and up to two others that divide the
        samples differently drop columns, and the lowest BIC decides. Mixtures of fully connected
        experts with a soft gate train all at once; others make a short training from each start,
        and the best goes on. "auto" is 10 for linear experts and 1 otherwise. Warm starts and
        ``partial_fit`` have one.
    annealing : float, "auto" or None, default="auto"
        Deterministic annealing: in the first half of the training, the likelihood is
        :math:`\frac{1}{b} \log \sum_e (p_e\, o_{ey})^b`. The inverse temperature :math:`b` rises
        linearly from this value to 1. The smaller it is, the longer all experts learn from all
        samples, and the fewer starts end in a bad optimum. It needs a gate that mixes all experts.
        "auto" is 0.2 for linear experts and None, which is no annealing, otherwise.
    class_weight : dict, "balanced" or None, default=None
        Weights of the classes, which multiply ``sample_weight``; "balanced" gives all classes the
        same total weight. A dict may also have weights for classes that are missing in ``y``, for
        example in one fold, if it has a weight for each class of ``y``.
    early_stopping : bool, str or callable, default=False
        Whether to end the training when the loss on a validation set (``X_val`` of ``fit``, or a
        stratified part of the training data) stops falling, and to restore the best weights.
        "refined_log_loss" watches the log loss after the best temperature, so that a training
        does not end because it becomes too sure; ``calibrate=True`` then finds that temperature.
        The name of a scorer of scikit-learn, or a function ``scorer(clf, X, y)``, watches that
        score. It gets ``X`` as the networks read it.
        With "one_cycle", the loss falls most while the learning rate falls. So early stopping
        waits from the peak of the rate on. Before it ends the training, it lowers the rate to
        zero, over a third of the epochs so far or over those that are left, if they are fewer.
    validation_fraction : float, default=0.1
        Part of the training data that early stopping sets aside if ``fit`` gets no ``X_val``.
    n_iter_no_change : int, default=10
        Early stopping waits for this many epochs without a fall of the loss, or a rise of the
        score.
    tol : float, default=1e-4
        Early stopping only counts larger falls of the loss, in nats, or rises of the score.
    calibrate : bool, default=False
        Whether to calibrate the probabilities: :meth:`predict_proba` divides the log-probabilities
        of the mixture by one temperature, ``temperature_``, and normalises them again. This
        temperature has the lowest log loss on samples that had no part in the fit, or is nearer to
        1 if they are few. They are the validation set, if the fit has one (``X_val``, early
        stopping or restarts). Otherwise one mixture is fitted on each half of the samples and
        predicts the other, so that ``fit`` takes about twice as long; of a temperature above 1 the
        root is then taken, as halves overfit more. Where one half lacks a class, it stays 1, with
        a warning. Predicted classes, gate and experts do not change.
    warm_start : bool, default=False
        Whether ``fit`` goes on from the weights of the last fit.
    device : str, default="auto"
        A torch device such as "cpu", "cuda" or "cuda:1"; "auto" is CUDA where there is one. "mps",
        the GPU of a Mac, is for images only and has not been tested: it lacks the double precision
        that tables need.
    n_threads : int or "auto", default="auto"
        Number of torch's threads within an operation. "auto" uses two if a batch has enough work
        and one otherwise, and never more than the process was given (``OMP_NUM_THREADS``,
        ``torch.set_num_threads``, ``threadpool_limits``, joblib, its processors). Results with one
        and two threads differ by about 1e-7 through rounding. A forked child has one thread.
    net_params : dict, default=None
        Arguments of the skorch net, which override those of this package; a list of ``callbacks``
        is added to its own. For example, ``{"optimizer": torch.optim.SGD}`` trains with SGD, with
        torch's defaults for all but the learning rate. A warm start goes on with the present net.
    input_shape : tuple of int, default=None
        Shape of the images whose pixels are the columns of a table ``X``, such as (28, 28) or
        (32, 32, 3), for pipelines whose other steps need tables. None takes ``X`` as it is.
    track_decomposition : bool, default=False
        Whether to record in ``decomposition_curves_`` how the experts divide the training samples
        in each epoch; ``verbose`` records it, too.
    verbose : int, default=0
        0 is silent, 1 shows a progress bar, 2 prints a line per epoch.
    random_state : int, RandomState instance or None, default=None
        Seed of initial weights, batches, dropout and gate noise. An int gives the same result each
        time; None draws a seed from numpy's global random state.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    reader_ : Reader
        Turns samples into the arrays that ``net_`` takes, as ``reader_.read(X, estimator)``.
    encoder_ : TableTransformer or None
        Turns the columns of a table into the numbers that gate and experts read; None if they
        read ``X`` itself.
    n_features_in_ : int
        Number of features; for images the length of their first axis.
    feature_names_in_ : ndarray of shape (``n_features_in_``,)
        Names of the features, where ``X`` had string column names.
    n_iter_ : int
        Number of epochs trained, over all warm starts and partial fits.
    loss_curve_ : list of float of length ``n_iter_``
        Mean training loss of each epoch, regularization included, in nats.
    init_scores_ : ndarray of shape (n_init,) or None
        The score of each restart (see ``n_init``) at its end, in nats per sample;
        None without restarts.
    init_agreement_ : float or None
        Whether other restarts found the same: the mean adjusted Rand index between the experts
        that the kept restart chooses and those of the restarts that come within 0.002 nats per
        sample of its score (or 2 nats in all). Where a sparse gate chooses among restarts by their
        BIC, this is the score, and a restart that did not take part counts as the one that divides
        the samples as it did. 1 is the same decomposition, though not always the best one; None if
        no other restart came so near.
    log_likelihood_ : float or None
        Log-likelihood of the training samples, each counted with its weight. This and the next
        four attributes are for linear experts under a soft gate without a backbone, and None for
        all other mixtures.
    n_identifiable_parameters_ : int or None
        Number of free parameters: :math:`(E - 1) (D_g + 1) + E (C - 1) (D_e + 1)` with the numbers
        of linearly independent columns that the gate uses, :math:`D_g`, and that the experts read,
        :math:`D_e`. For a gate with hidden layers, the gate's part is its number of parameters.
    aic_, bic_, icl_ : float or None
        Akaike's and the Bayesian information criterion and the integrated completed likelihood,
        which adds to the BIC twice the entropy of the samples' posterior probabilities of the
        experts, in nats. Lower is better. With ``groups``, the samples of BIC and ICL are the
        groups, as in R's flexmix.
    gate_columns_ : list or None
        Names (or positions) of the columns of a table that the gate uses: all that it reads, less
        those that ``regularization="sparse_gate"`` has removed. None if the gate does not read
        columns.
    validation_loss_curve_ : list of float or None
        Mean validation loss, without regularization, in nats, after each epoch that had a
        validation set; None if none had.
    validation_scores_ : list of float or None
        Accuracy on the validation set after the same epochs.
    best_validation_score_ : float or None
        Accuracy on the validation set in the epoch of the last training with the lowest
        validation loss. Early stopping restores the weights of this epoch.
    decomposition_curves_ : dict of lists of float, or None
        "sample_entropy", "usage_entropy" and "expert_class_information" of the training samples,
        in bits, in each epoch that ``track_decomposition`` or ``verbose`` recorded; None if no
        epoch was recorded, and for a student of :func:`distill`. As in ``loss_curve_``, each batch
        is measured with the weights that the mixture had at that time.
    temperature_ : float
        The temperature of the probabilities :math:`T` (see ``calibrate``), 1 without calibration.
        The prediction of the mixture :math:`\hat y` becomes
        :math:`\hat y_c^{1/T} / \sum_k \hat y_k^{1/T}`. Warm starts without ``X_val``,
        ``partial_fit``, :func:`distill`, :func:`prune_experts`, :func:`compress_experts` and
        :func:`grow` keep it.
    feature_importances_ : ndarray of shape (n_features,)
        Importance of each column of a table, at least 0 and with a sum of 1: how much the log-odds
        of the two most probable classes change, as a root mean square, if the column takes the
        value of another training sample,

        .. math:: I_j \propto \sqrt{\tfrac{1}{N} \sum_n \big(
                  \nabla_{\!j} \log \tfrac{\hat y_{n1}}{\hat y_{n2}} \cdot (x_{mj} - x_{nj})
                  \big)^2}

        to first order, with the encoded values :math:`x_{nj}` of the column, of at most 500
        samples :math:`n` and 8 others :math:`m` for each. A gate that takes a few experts counts
        as one that mixes all. Columns that say the same share their importance. All are 0 if the
        prediction is the same for all samples. There is none for images, with classifiers of
        scikit-learn among the experts, and after ``partial_fit``.
    expert_usage_ : ndarray of shape (n_experts,)
        Mean gate probability of each expert over the weighted samples of the last training.
    expert_names_ : list of str or None
        Names of the experts, if ``experts`` is a list.
    named_experts_ : Bunch
        The fitted classifiers among the experts, by name.
    expert_costs_ : ndarray of shape (n_experts,)
        Multiply-adds for a sample; parameters of your own networks, and 0 for classifiers.
    n_parameters_ : int
        Number of parameters of gate, experts and encoder.
    report_ : DistillationReport, PruningReport, CompressionReport or None
        Compares it with the mixture before it was distilled, pruned or compressed.
    input_summary_ : InputSummary or None
        Mean and main directions of each class, as the gate reads it, for :func:`grow`; None after
        ``partial_fit``.
    device_ : str
        Device of the mixture.
    net_ : MoENet
        The skorch net.
    module_ : MixtureOfExperts
        The torch module.

    See Also
    --------
    decomposition_entropy : Measures how the experts divide the samples.
    sklearn.neural_network.MLPClassifier : A single network.

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

    # Groups of a splitter are no groups of ``fit``, unless a user asks for it.
    __metadata_request__fit = {"groups": False}

    _parameter_constraints = CONSTRAINTS

    def __init__(
        self,
        n_experts: int = 8,
        *,
        experts: str | object | list | Callable[[tuple[int, ...], int], nn.Module] = "auto",
        gate: str | object = "softmax",
        regularization: str | Callable | Sequence | None = "auto",
        encoder: str | object | Callable[[tuple[int, ...]], nn.Module] | None = "auto",
        categorical_features: ArrayLike | str | None = "from_dtype",
        augmentation: str | Callable | None = None,
        gate_features: ArrayLike | Callable | None = None,
        expert_features: ArrayLike | Callable | None = None,
        mixing: str = "probability",
        learning_rate: float | str = "auto",
        learning_rate_schedule: str = "one_cycle",
        weight_decay: float | str = "auto",
        batch_size: int | str = "auto",
        max_iter: int | str = "auto",
        n_init: int | str = "auto",
        annealing: float | str | None = "auto",
        class_weight: dict | str | None = None,
        early_stopping: bool | str | Callable = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
        calibrate: bool = False,
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
        self.gate_features = gate_features
        self.expert_features = expert_features
        self.mixing = mixing
        self.learning_rate = learning_rate
        self.learning_rate_schedule = learning_rate_schedule
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.n_init = n_init
        self.annealing = annealing
        self.class_weight = class_weight
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.calibrate = calibrate
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
        tags.input_tags.allow_nan = tags.input_tags.categorical = encodes_tables(self)
        tags.input_tags.string = encodes_tables(self)
        takes_all_tables = getattr(self.experts, "needs_tables", False)
        for classifier in [] if takes_all_tables else classifiers_among(self.experts):
            of_classifier = get_tags(classifier).input_tags
            tags.input_tags.sparse &= of_classifier.sparse
            tags.input_tags.allow_nan &= of_classifier.allow_nan
        return tags

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return all parameters.

        Parameters
        ----------
        deep : bool, default=True
            Whether to include the parameters of nested objects, such as ``gate__top_k``; those of
            regularizations in a list are named by position, ``regularization__0__strength``, and
            those of experts in a list by name, ``experts__forest__max_depth``.

        Returns
        -------
        dict
            Values by name.
        """
        params = super().get_params(deep=deep)
        return params | parameters_in_lists(self) if deep else params

    def set_params(self, **params: Any) -> MoEClassifier:
        """Set parameters, including nested ones such as ``gate__top_k``.

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
        params = set_parameters_in_lists(self, params)
        check_nested(self, params)
        return super().set_params(**params)

    # Training

    @takes_tensors
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
        groups: ArrayLike | None = None,
    ) -> MoEClassifier:
        r"""Fit the mixture of experts.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Training samples: a table, as an array, a sparse matrix or a data frame (pandas,
            polars, pyarrow, dask) with missing values, text and categories, or images of shape
            (height, width), (height, width, n_channels) with at most 4 channels, or (n_channels,
            height, width). Sparse matrices become dense batch by batch. Images of bytes (uint8)
            are divided by 255, batch by batch, unless all are 0 or 1, as in masks. A mixture that
            was fitted on bytes also divides other whole numbers by 255.
        y : array-like of shape (n_samples,)
            Class labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples, at least 0; a weight of zero removes the sample.
        X_val : array-like of shape (n_val, n_features) or (n_val, ...), default=None
            Validation samples. Their loss and accuracy are recorded each epoch, and early stopping
            watches the loss.
        y_val : array-like of shape (n_val,), default=None
            Labels of the validation samples.
        sample_weight_val : array-like of shape (n_val,), default=None
            Weights of the validation samples.
        groups : array-like of shape (n_samples,), default=None
            Labels of groups, such as the patient of a visit or the customer of an order. All
            samples of a group get one expert: the likelihood of a group is
            :math:`\sum_e p_e \prod_n o_{ney_n}`. The gate reads the columns that are constant
            within each group; ``gate_features`` may name some of them.

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
        validation = X_val, y_val, sample_weight_val
        return self._fit(X, y, sample_weight, validation, groups=groups)

    @takes_tensors
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
        enough to be typical. Categories that first occur in later chunks count as unknown.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Training samples.
        y : array-like of shape (n_samples,)
            Class labels.
        classes : array-like of shape (n_classes,), default=None
            All classes that will ever occur; required in the first call.
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
            If a user interrupts the training. The mixture stays as it was before, unless the epoch
            was complete.

        Warns
        -----
        UserWarning
            If a column has new categories or missing values for the first time, if its numbers are
            no longer constant, if half of them lie more than 5 standard deviations from the mean
            of the first training, or a tenth of them more than 30, or if they vary much less than
            in the first training, about a hundredth as much. Each column is named once. In a
            column with a level for infrequent categories, new ones count as infrequent, without a
            warning.
        """
        if self.early_stopping:
            raise ValueError(
                f"partial_fit does not support early_stopping={self.early_stopping!r}, as it "
                "never sees all data. Set early_stopping=False."
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

    def _fit(self, X, y, sample_weight, validation=(None, None, None), classes=None, groups=None):
        """Train a copy and take over its state, so that a failed training changes nothing."""
        incremental = classes is not None
        going_on = (incremental or self.warm_start) and hasattr(self, "net_")
        new = self._snapshot()
        interrupted = train(new, self, X, y, sample_weight, validation, classes, groups, going_on)
        n_new = new.n_iter_ - (self.n_iter_ if going_on else 0)
        if interrupted and n_new == 0:
            raise KeyboardInterrupt(
                "The training was interrupted in its first epoch; the mixture is as it was before."
            )
        former = {name: value for name, value in vars(self).items() if name != "feature_names_in_"}
        # Change everything in one assignment, as other threads may predict at the same time.
        self.__dict__ = {**former, **vars(new)}
        if interrupted:
            raise KeyboardInterrupt(
                f"The training was interrupted after {n_new} complete "
                f"epoch{'s' * (n_new > 1)}; the mixture keeps the weights that it had by then."
            )
        if not incremental:  # a single chunk of a stream may well belong to one expert
            warn_of_collapse(self)
            warn_of_disagreement(self)
            warn_of_separation(self)
        return self

    def __sklearn_is_fitted__(self):
        return hasattr(self, "net_")
