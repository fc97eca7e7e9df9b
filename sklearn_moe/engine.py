"""The skorch net behind the estimator: loss, batches, device, threads.

``MoENet`` is a skorch net, so callbacks, history, checkpoints and prediction work as usual. It is
trained by the estimator, which knows what its batches have to hold.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from copy import copy, deepcopy
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback, PassthroughScoring
from skorch.dataset import Dataset
from skorch.helper import predefined_split
from skorch.history import History
from skorch.utils import data_from_dataset
from torch import Tensor
from torch.nn import functional as F

from sklearn_moe.callbacks import (
    BatchCallback,
    Log,
    OneCycle,
    Progress,
    RefitGate,
    StopEarly,
    StopOnNaN,
    TrackDecomposition,
    listens_to_batches,
)
from sklearn_moe.convolution import ConvStack
from sklearn_moe.cuda_graphs import GraphedSteps
from sklearn_moe.defaults import usual_defaults
from sklearn_moe.encoders import build_encoder, output_shape
from sklearn_moe.experts import EXPERTS, MLPExpertsModule, build_experts
from sklearn_moe.gates import AttentiveGateModule, SoftmaxGateModule, build_gate
from sklearn_moe.gradient import has_known_gradient, likelihood_gradient
from sklearn_moe.images import augment
from sklearn_moe.layers import MLP, StackedLinear, consists_of, seeded_globally
from sklearn_moe.mixture import MixtureOfExperts
from sklearn_moe.regularizers import REGULARIZERS, Competence, check_penalty
from sklearn_moe.threads import intra_op_threads, threads_given

# Predictions are made in chunks of at most this many rows, whatever the batch size of the training
# was, and of fewer where the outputs of a layer of all experts would outgrow so many numbers: what
# does not fit into the processor's cache is slow.
CHUNK_SIZE = 8192
CHUNK_OF_LAYER = 2**18
CHUNK_OF_CONVOLUTION = {"cpu": 2**20, "cuda": 2**28}

# Predictions are made for a multiple of this many rows, a multiple of what a processor vectorises.
ROWS_AT_ONCE = 16

# One row alone runs as it is where it takes more multiply-adds than these, as sixteen would take
# twice the time or more. Its probabilities may differ by 1e-7 then from those in a batch.
WORK_TO_PAD_A_ROW = 6e4

# Multiply-adds of a batch from which a second thread pays, where there may be one. Sums in another
# order give other bits, so the choice depends on the work and on what the process was given, never
# on how busy the machine is.
WORK_FOR_TWO_THREADS = 2e8


# How the rows of a file are shuffled.
ROWS_OF_BLOCK = 1024
BLOCKS_OF_WINDOW = 64

# Modules and regularizations that do not wait for the device.
_GRAPHED = {
    MixtureOfExperts,
    MLPExpertsModule,
    SoftmaxGateModule,
    AttentiveGateModule,
    MLP,
    StackedLinear,
    torch.nn.Linear,
    torch.nn.ModuleList,
    torch.nn.Identity,
}
_CAPTURABLE = {Competence} | {type(each) for each in REGULARIZERS.values() if each.gate_only}


_OWN_CALLBACKS = {
    Log,
    OneCycle,
    PassthroughScoring,
    Progress,
    RefitGate,
    StopEarly,
    StopOnNaN,
    TrackDecomposition,
}


@contextmanager
def _of_net_params(name):
    """Say of errors of a constructor whose arguments are a user's where these come from."""
    try:
        yield
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"net_params[{name!r}] can't be made with its arguments in net_params: {error}"
        ) from error


class TensorBatches:
    """Batches as slices of tensors that already live on the device.

    skorch uses it in place of torch's ``DataLoader``, which would collate single rows. The rows
    are dealt into batches of at most ``batch_size`` that are as equal as possible.

    Parameters
    ----------
    dataset : skorch.dataset.Dataset
        Holds a tensor, or a dict of tensors, and the targets.
    batch_size : int
        Largest number of rows of a batch.
    generator : torch.Generator, default=None
        Shuffles the rows of each epoch; None keeps their order.
    in_windows : bool, default=False
        Whether to shuffle blocks of neighbouring rows, and the rows of 64 blocks at a time, so
        that a file which is larger than the memory is read in long pieces.
    """

    def __init__(
        self,
        dataset,
        batch_size: int,
        generator: torch.Generator | None = None,
        in_windows: bool = False,
    ):
        self.X, self.y = data_from_dataset(dataset)
        self.in_windows = in_windows
        self.n_samples = len(dataset)
        self.n_batches = -(-self.n_samples // batch_size)
        self.generator = generator

    def __len__(self) -> int:
        return self.n_batches

    def rows(self) -> Iterator[slice | Tensor]:
        """Deal the rows of one epoch into batches."""
        if self.generator is None or self.n_batches == 1:
            bounds = np.linspace(0, self.n_samples, self.n_batches + 1).astype(int)
            return (slice(*pair) for pair in pairwise(bounds))
        return iter(self._shuffle().to(self.y.device).tensor_split(self.n_batches))

    def _shuffle(self):
        if not self.in_windows or self.n_samples <= ROWS_OF_BLOCK * BLOCKS_OF_WINDOW:
            return self._permutation(self.n_samples)
        n_blocks = math.ceil(self.n_samples / ROWS_OF_BLOCK)
        blocks = self._permutation(n_blocks)
        places = torch.arange(ROWS_OF_BLOCK, device=blocks.device)
        windows = []
        for window in blocks.split(BLOCKS_OF_WINDOW):
            rows = (window.unsqueeze(1) * ROWS_OF_BLOCK + places).flatten()
            rows = rows[rows < self.n_samples]
            windows.append(rows[self._permutation(len(rows))])
        return torch.cat(windows)

    def _permutation(self, n):
        return torch.randperm(n, generator=self.generator, device=self.generator.device)

    def take(self, rows: slice | Tensor):
        """Return the batch of these rows."""

        def of(values):
            return values[rows] if isinstance(rows, slice) else values.index_select(0, rows)

        X = {name: of(x) for name, x in self.X.items()} if isinstance(self.X, dict) else of(self.X)
        return X, (None if self.y is None else of(self.y))

    def __iter__(self) -> Iterator:
        return map(self.take, self.rows())


def likelihood(net: MoENet, x: Tensor, sample_weight: Tensor, y: Tensor):
    """The objective of an ordinary training: likelihood of the mixture plus regularizations.

    Returns
    -------
    loss : Tensor of shape ()
        What is minimised.
    log_proba : Tensor of shape (n_samples, n_classes)
        The prediction.
    gate_proba : Tensor of shape (n_samples, n_experts)
        The gate's probabilities.
    """
    mixture = net.module_(x, net.generator_)
    loss = (net.criterion_(mixture.log_proba, y) * sample_weight).mean()
    for regularization in net.regularizations:
        penalty = regularization(mixture, mixture.x, y, sample_weight)
        loss = loss + check_penalty(regularization, penalty)
    return loss, mixture.log_proba, mixture.gate_proba


# The classes that a net is made of. Its state leaves them out, as it holds nothing but data.
_CLASSES = {
    "module": MixtureOfExperts,
    "criterion": torch.nn.NLLLoss,
    "optimizer": torch.optim.AdamW,
    "iterator_train": TensorBatches,
    "iterator_valid": TensorBatches,
    "dataset": Dataset,
}


class MoENet(NeuralNetClassifier):
    """The skorch net that trains a mixture of experts.

    Its state, of which a pickle is made, holds parameters, arrays and plain values. From them the
    net is built anew: what a module has learned must be in its ``state_dict``.

    Parameters
    ----------
    experts, gate, encoder : object
        Hyperparameter objects with a ``build`` method. The experts may be "auto", the encoder
        None.
    regularizations : list of callable
        Penalties that are added to the loss.
    augmentation : callable or None
        Changes the batches of a training.
    input_shape : tuple of int
        Shape of one sample.
    n_experts, n_classes : int
        Sizes of the mixture.
    mixing : {"probability", "logit"}
        How experts become one prediction.
    seed : int
        Seed of the initial weights.
    n_threads : int or "auto"
        Number of torch's intra-op threads in training and prediction.
    track_decomposition : bool
        Whether the history records H_s, H_u and I(E;Y) of each epoch.
    **kwargs
        Arguments of ``skorch.NeuralNetClassifier``. An own ``iterator_train`` has to take a
        ``generator``.
    """

    def __init__(
        self,
        experts,
        gate,
        encoder=None,
        *,
        regularizations,
        augmentation=None,
        input_shape,
        n_experts,
        n_classes,
        mixing,
        seed,
        n_threads,
        track_decomposition,
        **kwargs,
    ):
        self.experts = experts
        self.gate = gate
        self.encoder = encoder
        self.regularizations = regularizations
        self.augmentation = augmentation
        self.input_shape = input_shape
        self.n_experts = n_experts
        self.n_classes = n_classes
        self.mixing = mixing
        self.seed = seed
        self.n_threads = n_threads
        self.track_decomposition = track_decomposition
        ours = {
            **_CLASSES,
            "criterion__reduction": "none",
            "iterator_valid__batch_size": CHUNK_SIZE,
            "train_split": None,
            "predict_nonlinearity": None,
            "classes": list(range(n_classes)),
        }
        super().__init__(**{**ours, **kwargs})

    objective_ = staticmethod(likelihood)  # unless a training brings its own
    _graphed_steps = None
    steps_ = None

    # What skorch asks of a net

    @property
    def _default_callbacks(self):
        return [
            ("train_loss", PassthroughScoring("train_loss", on_train=True)),
            ("valid_loss", PassthroughScoring("valid_loss")),
            ("valid_accuracy", PassthroughScoring("valid_accuracy", lower_is_better=False)),
            ("stop_on_nan", StopOnNaN()),
            ("decomposition", TrackDecomposition()),
            ("refit_gate", RefitGate()),
            ("print_log", Log()),
        ]

    def initialize_module(self):
        if self.steps_ is None:
            # How experts and gate came about: with how many experts each was built, and what
            # pruning did to it since.
            self.steps_ = {part: [("build", self.n_experts)] for part in ("experts", "gate")}
        with usual_defaults():
            module = self._build()
        self.module_ = module.eval()  # as it is at all times but those of a training step
        return self

    def _build(self):
        generator = torch.Generator().manual_seed(self.seed)
        encoder = build_encoder(self.encoder, self.input_shape, generator)
        shape = output_shape(encoder, self.input_shape)
        experts_of = self.experts
        if isinstance(experts_of, str):
            experts_of = EXPERTS["conv" if len(shape) in (2, 3) else "mlp"]

        def experts_for(n_experts):
            return build_experts(experts_of, shape, n_experts, self.n_classes, generator)

        def gate_for(n_experts):
            return build_gate(self.gate, shape, n_experts, experts.hidden_size, generator)

        experts = _make(experts_for, self.steps_["experts"])
        gate = _make(gate_for, self.steps_["gate"])
        return self.module(experts, gate, mixing=self.mixing, encoder=encoder)

    def initialize_criterion(self):
        with _of_net_params("criterion"):
            return super().initialize_criterion()

    def initialize_optimizer(self, *args, **kwargs):
        with _of_net_params("optimizer"):
            return super().initialize_optimizer(*args, **kwargs)

    def get_iterator(self, dataset, training=False):
        with _of_net_params("iterator_train" if training else "iterator_valid"):
            return super().get_iterator(dataset, training=training)

    def check_data(self, X, y=None):
        """Leave the checks to the estimator."""

    def on_epoch_begin(self, net, **kwargs):
        self._forget_batches()
        super().on_epoch_begin(net, **kwargs)

    def _forget_batches(self):
        # Epoch figures stay; the figures of single batches would outgrow the model.
        if self.history:
            self.history[-1]["batches"].clear()

    def fit_loop(self, *args, **kwargs):
        try:
            super().fit_loop(*args, **kwargs)
        except KeyboardInterrupt:
            # skorch's callbacks end a training by this exception, too, but after a whole epoch.
            self.interrupted_ = not self.history or "train_loss" not in self.history[-1]
        for _, callback in self.callbacks_:
            if isinstance(callback, StopEarly):
                callback.restore(self)
        return self

    def run_single_epoch(self, iterator, training, prefix, step_fn, **fit_params):
        """Train or validate for one epoch.

        skorch tells all callbacks of each batch and reads its loss from the device. Small nets
        would spend more time on that than on their arithmetic. So it happens in a training only if
        a user's callback listens to batches; otherwise the history gets one entry that stands for
        all batches.
        """
        listeners = [callback for _, callback in self.callbacks_ if listens_to_batches(callback)]
        try:
            if training and all(isinstance(each, BatchCallback) for each in listeners):
                self._train_one_epoch(iterator, prefix, listeners)
            else:
                super().run_single_epoch(iterator, training, prefix, step_fn, **fit_params)
        finally:
            if training:
                self._set_training(False)

    def _train_one_epoch(self, iterator, prefix, listeners):
        self._set_training(True)
        self._gradient_is_known = self._knows_gradient()
        batches, make_step = iterator, self._step
        if self._can_be_graphed(iterator):
            if self._graphed_steps is None:
                self._graphed_steps = GraphedSteps(
                    lambda rows: self._step(iterator.take(rows)), self.optimizer_, self.generator_
                )
            batches, make_step = iterator.rows(), self._graphed_steps
        losses, sizes = [], []
        for batch in batches:
            for callback in listeners:
                callback.on_batch_begin(self, batch=None, training=True)
            step = make_step(batch)
            for callback in listeners:
                callback.on_batch_end(self, training=True, **step)
            losses.append(step["loss"].clone())
            sizes.append(len(step["batch"][1]))
        self.history.new_batch()
        loss = np.average(torch.stack(losses).tolist(), weights=sizes)
        self.history.record_batch(f"{prefix}_loss", float(loss))
        self.history.record_batch(f"{prefix}_batch_size", sum(sizes))
        self.history.record(f"{prefix}_batch_count", len(sizes))

    def _step(self, batch):
        """Make one training step and return the batch, its first loss and gate probabilities."""
        steps = []
        batch = self._on_device(batch)

        def closure():  # which some optimizers call several times
            steps.append(self._loss_and_gradient(batch))
            return steps[-1]["loss"]

        self.optimizer_.step(closure)
        return {**steps[0], "batch": batch}

    def _on_device(self, batch):
        """Return the batch on the device, for training sets that do not fit there."""
        inputs, y = batch
        if y.device.type == torch.device(self.device).type:
            return batch

        def sent(values):
            return values.pin_memory().to(self.device, non_blocking=True)

        return {name: sent(values) for name, values in inputs.items()}, sent(y)

    def _can_be_graphed(self, iterator):
        """Whether all of a step is known not to wait for the device."""
        return (
            type(iterator) is TensorBatches
            and iterator.y.is_cuda
            and iterator.n_batches > 1
            and self._is_plain_likelihood()
            # Another callback may change anything, which a graph would not notice.
            and all(type(callback) in _OWN_CALLBACKS for _, callback in self.callbacks_)
            and type(self.module_) is MixtureOfExperts
            and self.augmentation is None
            and type(self.module_.encoder) is torch.nn.Identity
            and type(self.module_.experts) is MLPExpertsModule
            and type(self.module_.gate) in (SoftmaxGateModule, AttentiveGateModule)
            and type(self.module_.gate.encoder) is torch.nn.Identity
            and all(type(each) in _CAPTURABLE for each in self.regularizations)
            and not any(callable(getattr(each, "metric", 0)) for each in self.regularizations)
            and consists_of(self.module_, _GRAPHED)
            and all(
                "capturable" in group and group.get("fused")
                for group in self.optimizer_.param_groups
            )
        )

    def _is_plain_likelihood(self):
        return (
            self.objective_ is likelihood
            and type(self.criterion_) is torch.nn.NLLLoss
            and self.criterion_.weight is None
            and self.criterion_.reduction == "none"
            and self.criterion_.ignore_index == -100
            and consists_of(self.criterion_, {torch.nn.NLLLoss})
        )

    def _knows_gradient(self):
        """Whether the loss is one whose gradient needs no autograd."""
        return self._is_plain_likelihood() and has_known_gradient(
            self.module_, self.regularizations
        )

    def _loss_and_gradient(self, batch, with_prediction=False):
        inputs, y = batch
        if self.augmentation is not None:
            inputs = {**inputs, "x": augment(self.augmentation, inputs["x"], self.generator_)}
        if self._gradient_is_known:
            loss, gate_proba, expert_proba = likelihood_gradient(
                self.module_,
                **inputs,
                y=y,
                generator=self.generator_,
                regularizations=self.regularizations,
            )
            step = {"loss": loss, "gate_proba": gate_proba}
            if with_prediction:
                step["y_pred"] = torch.einsum("ne,nec->nc", gate_proba, expert_proba)
            return step
        self.optimizer_.zero_grad()
        loss, log_proba, gate_proba = self.objective_(self, **inputs, y=y)
        loss.backward()
        step = {"loss": loss.detach(), "gate_proba": gate_proba.detach()}
        if with_prediction:
            step["y_pred"] = log_proba.detach().softmax(dim=1)
        return step

    def train_step_single(self, batch, **fit_params):
        self._set_training(True)
        self._gradient_is_known = self._knows_gradient()
        return self._loss_and_gradient(self._on_device(batch), with_prediction=True)

    def validation_step(self, batch, **fit_params):
        inputs, y = self._on_device(batch)
        sample_weight = inputs["sample_weight"]
        with torch.no_grad():
            log_proba = self.module_(inputs["x"]).log_proba
            loss = (self.criterion_(log_proba, y) * sample_weight).mean()
            correct = ((log_proba.argmax(dim=1) == y) * sample_weight).mean()
        self.history.record_batch("valid_accuracy", correct.item())
        return {"loss": loss, "y_pred": log_proba.softmax(dim=1)}

    def evaluation_step(self, batch, training=False):
        self.check_is_fitted()
        inputs, _ = batch
        x = inputs["x"] if isinstance(inputs, dict) else inputs
        x = torch.as_tensor(x, device=self.device)
        if not training:
            with torch.no_grad():
                return self._predicting()._run(MixtureOfExperts.predict_proba, x)
        before = self.module_.training
        self._set_training(True)
        try:
            with torch.enable_grad():
                return self.module_(x).log_proba.softmax(dim=1)
        finally:
            self._set_training(before)

    # What is kept

    def __getstate__(self) -> dict[str, Any]:
        params = {
            name: value
            for name, value in vars(self).items()
            if not (name.startswith("_") or name.endswith("_"))
            and not (name in _CLASSES and value is _CLASSES[name])
        }
        if not self.initialized_:
            return {"params": params}
        # Within a training there are others, which live as long as it and hold its data.
        lasting = dict(self._uniquely_named_callbacks())
        callbacks = {name: callback for name, callback in self.callbacks_ if name in lasting}
        ours = {
            name: callback
            for name, callback in callbacks.items()
            if name in dict(self._default_callbacks)
            and not any(param.startswith(f"callbacks__{name}") for param in params)
        }
        return {
            "params": params,
            "steps": {part: list(steps) for part, steps in self.steps_.items()},
            "module": _arrays(self.module_.state_dict()),
            "frozen": [
                name for name, value in self.module_.named_parameters() if not value.requires_grad
            ],
            "criterion": _arrays(self.criterion_.state_dict()),
            "optimizer": _arrays(self.optimizer_.state_dict()),
            "history": [
                {name: _plain(value) for name, value in row.items()} for row in self.history
            ],
            "callbacks": [
                (name, None if name in ours else callback) for name, callback in callbacks.items()
            ],
            "best_scores": {
                name: _plain(callback.best_score_)
                for name, callback in ours.items()
                if hasattr(callback, "best_score_")
            },
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        params = {**state["params"], "device": _device_here(state["params"]["device"])}
        # Those of a user must not be initialized a second time.
        self.__init__(**{**params, "callbacks": "disable"})
        if "module" in state:
            self.steps_ = state["steps"]
            self.initialize()
            self.module_.load_state_dict(_tensors(state["module"]))
            for name, parameter in self.module_.named_parameters():
                parameter.requires_grad_(name not in state["frozen"])
            self.criterion_.load_state_dict(_tensors(state["criterion"]))
            self.optimizer_.load_state_dict(_tensors(state["optimizer"]))
            _lay_out_alike(self.optimizer_)
            self.history_ = History(state["history"])
            ours = {name: callback.initialize() for name, callback in self._default_callbacks}
            for name, best_score in state["best_scores"].items():
                ours[name].best_score_ = best_score
            self.callbacks_ = [
                (name, ours[name] if callback is None else callback)
                for name, callback in state["callbacks"]
            ]
        self.callbacks = params["callbacks"]

    def __deepcopy__(self, memo: dict) -> MoENet:
        # The module is copied as it is. Some optimizers can only be built anew.
        net = memo[id(self)] = object.__new__(type(self))
        net.__dict__.update(
            {
                name: deepcopy(value, memo)
                for name, value in vars(self).items()
                if name != "optimizer_"
            }
        )
        return net._take_over_optimizer(self) if self.initialized_ else net

    def _take_over_optimizer(self, net):
        """Go on with what the optimizer of another net has seen."""
        self.initialize_optimizer()
        self.optimizer_.load_state_dict(deepcopy(net.optimizer_.state_dict()))
        return self

    # What the estimator asks of a net

    def train(
        self,
        X: np.ndarray,
        y: np.ndarray,
        sample_weight: np.ndarray,
        *,
        validation: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
        epochs: int | None = None,
        callbacks: list[Callback],
        seed: int,
        objective: Callable = likelihood,
        read: Callable | None = None,
    ) -> bool:
        """Train, with callbacks and an objective that live as long as this training.

        Parameters
        ----------
        X : ndarray of shape (n_samples, ...)
            Samples, float32.
        y : ndarray of shape (n_samples, ...)
            What the objective wants to know about each sample: for the likelihood its class.
        sample_weight : ndarray of shape (n_samples,)
            Weights with a mean of 1, float32.
        validation : tuple of X, y and sample_weight, default=None
            A validation set.
        epochs : int, default=None
            Number of epochs; None means a fit of ``max_epochs``.
        callbacks : list of skorch.callbacks.Callback
            They come after the net's own.
        seed : int
            Seed of batches, dropout and gate noise.
        objective : callable, default=likelihood
            ``objective(net, x, sample_weight, y)``; see :func:`likelihood` for what it returns.
        read : callable, default=None
            Turns other samples into such ones; callbacks find it as ``net.read_``.

        Returns
        -------
        interrupted : bool
            True if a user interrupted the training.
        """
        device = torch.device(self.device)
        dataset = self._dataset(X, y, sample_weight)
        own_callbacks, own_split = self.callbacks_, self.train_split
        self.callbacks_ = own_callbacks + [
            (type(callback).__name__, callback.initialize()) for callback in callbacks
        ]
        if validation is not None:
            self.train_split = predefined_split(self._dataset(*validation))
        self.iterator_train__generator = torch.Generator().manual_seed(seed + 1)
        if self.iterator_train is TensorBatches:
            self.iterator_train__in_windows = _is_memory_map(X)
        self.generator_ = torch.Generator(device).manual_seed(seed)
        self.objective_, self.read_ = objective, read
        self.interrupted_ = False
        if epochs is None:
            self.module_.gate.begin()
        uses_global_state = any(
            getattr(part, "uses_global_random_state", False) for part in self.module_.modules()
        )
        n_rows = len(X) if self.batch_size == -1 else min(self.batch_size, len(X))
        try:
            with (
                usual_defaults(device),
                self.threads(n_rows),
                seeded_globally(seed, device) if uses_global_state else nullcontext(),
            ):
                self.partial_fit(dataset, epochs=epochs)
        finally:
            self.callbacks_, self.train_split = own_callbacks, own_split
            self.iterator_train__generator = self.generator_ = self._graphed_steps = None
            self.optimizer_.zero_grad()  # gives the memory back
            del self.objective_, self.read_
            self._forget_batches()
        return self.interrupted_

    def refit_gate(self, dataset: Dataset) -> None:
        """Let a gate that learns without gradients learn from training samples."""
        gate = self.module_.gate
        inputs, y = data_from_dataset(dataset)
        rows, weight = _spaced(inputs["sample_weight"], gate.max_samples)
        seed = torch.randint(
            2**31, (), generator=self.generator_, device=self.generator_.device
        ).item()
        seen, losses = [], []
        with torch.no_grad():
            parts = (values[rows].split(CHUNK_SIZE) for values in (inputs["x"], y))
            for x, labels in zip(*parts, strict=True):
                x = self.module_.encode(x.to(self.device))
                logits = self.module_.experts(x)[0].permute(0, 2, 1)
                targets = labels.to(self.device)[:, None].expand(-1, logits.shape[2])
                losses.append(F.cross_entropy(logits, targets, reduction="none"))
                seen.append(x)
            gate.refit(torch.cat(seen), torch.cat(losses), weight, seed)

    def keep(self, experts: list[int]) -> None:
        """Drop all experts but these, whose order becomes theirs."""
        self.module_.experts.keep(experts)
        self.module_.gate.keep(experts)
        for steps in self.steps_.values():
            steps.append(("keep", experts))

    def merge(
        self,
        groups: list[list[int]],
        shares: list[list[float]] | None = None,
        x: Tensor | None = None,
    ) -> None:
        """Replace groups of experts by one each, to which all their samples go.

        With ``shares`` and samples ``x`` it is their mean (see :class:`ExpertsModule`), otherwise
        the first.
        """
        firsts = [group[0] for group in groups]
        with usual_defaults(self.device):
            if shares is None:
                self.module_.experts.keep(firsts)
            else:
                self.module_.experts.merge(groups, shares, x)
            self.module_.gate = self.module_.gate.merge(groups)
        self.steps_["experts"].append(("keep", firsts))
        self.steps_["gate"].append(("merge", groups))

    def take(self, top_k: int) -> None:
        """Let so many experts answer for a sample from now on."""
        self.module_.gate.take(top_k)
        self.steps_["gate"].append(("take", top_k))

    def snapshot(self) -> MoENet:
        """Return a net that predicts as this one does now and shares the rest with it."""
        net = object.__new__(type(self))
        net.__dict__.update(self.__dict__, module_=deepcopy(self.module_).eval())
        return net

    def _predicting(self):
        """Return this net, or a copy amid a training step, which must not notice."""
        return self.snapshot() if self.module_.training else self

    def copy_to_train(self) -> MoENet:
        """Return a net whose training goes on from here, and leaves this one as it is."""
        net = self.snapshot()
        parameters = self.module_.parameters(), net.module_.parameters()
        for own, copied in zip(*parameters, strict=True):  # hooks are not copied, but a user's
            copied._backward_hooks = own._backward_hooks
            copied._post_accumulate_grad_hooks = own._post_accumulate_grad_hooks
        net.history_ = copy(self.history)
        return net._take_over_optimizer(self)

    def evaluate(
        self, X: np.ndarray | Tensor, function: Callable[[MixtureOfExperts, Tensor], Tensor]
    ) -> np.ndarray:
        """Return what a function of the mixture and a batch says about each row of X."""
        net, chunk_size = self._predicting(), self._chunk_size()

        def part(start):
            with torch.inference_mode():
                x = _tensor(X[start : start + chunk_size], self.device)
                return net._run(function, x).cpu().numpy()

        starts = range(0, len(X), chunk_size)
        with self.threads(min(chunk_size, len(X)), predicting=True):
            if not self._predicts_in_two_threads(len(starts)):
                return np.concatenate([part(start) for start in starts])
            # One chunk each is faster than two threads for each product of one chunk, and does not
            # suffer when another process has one of the processor's cores.
            with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                return np.concatenate(list(pool.map(part, starts)))

    def _predicts_in_two_threads(self, n_chunks):
        return (
            n_chunks > 3
            and self.n_threads == "auto"
            and torch.get_num_threads() == 1
            and threads_given() > 1
            and torch.device(self.device).type == "cpu"
            and type(self.module_.experts) is MLPExpertsModule
        )

    def _chunk_size(self):
        on_cpu = torch.device(self.device).type == "cpu"
        experts = self.module_.experts
        limit = CHUNK_OF_LAYER
        width = self.n_experts * getattr(
            experts, "widest", max(experts.hidden_size, self.n_classes)
        )
        if convolutions := _convolutions(self.module_):
            limit = CHUNK_OF_CONVOLUTION["cpu" if on_cpu else "cuda"]
            width = max(width, *(stack.n_networks * stack.widest for stack in convolutions))
        elif self.module_.is_conditional or not on_cpu:
            return CHUNK_SIZE
        return min(max(2 ** int(math.log2(limit / width)), ROWS_AT_ONCE), CHUNK_SIZE)

    def _run(self, function, x):
        # Vectorised loops do the last few rows in another way, with other bits. So that a
        # prediction does not depend on its place in the batch, there are no last few rows.
        n_missing = -len(x) % ROWS_AT_ONCE
        is_dear = len(x) == 1 and _multiply_adds(self.module_) > WORK_TO_PAD_A_ROW
        with usual_defaults(self.device):
            if n_missing == 0 or is_dear:
                return function(self.module_, x)
            padded = F.pad(x, (0, 0) * (x.dim() - 1) + (0, n_missing))
            return function(self.module_, padded)[: len(x)]

    def to(self, device: str) -> None:
        """Move module and optimizer to a device."""
        self.device = device
        self.module_.to(device)
        # Loading its own state moves an optimizer's tensors to where its parameters are.
        self.optimizer_.load_state_dict(self.optimizer_.state_dict())

    def threads(self, n_rows: int, *, predicting: bool = False):
        """Return a context in which torch uses the right number of threads for such batches."""
        if self.n_threads != "auto":
            return intra_op_threads(self.n_threads)
        gate, experts = self.module_.gate, self.module_.experts
        work = _multiply_adds(experts)
        if predicting and self.module_.is_conditional:
            work *= gate.top_k / self.n_experts
        work += _multiply_adds(gate) + _multiply_adds(self.module_.encoder)
        n_threads = 2 if n_rows * work >= WORK_FOR_TWO_THREADS else 1
        return intra_op_threads(n_threads, within_limits=True)

    def _dataset(self, X, y, sample_weight):
        device = self.device if self._fits(X) else "cpu"
        inputs = {"x": _tensor(X, device), "sample_weight": _tensor(sample_weight, device)}
        return Dataset(inputs, _tensor(y, device))

    def _fits(self, X):
        """Whether the device has room for the samples, and as much again for the training."""
        device = torch.device(self.device)
        return device.type == "cpu" or 2 * X.nbytes < torch.cuda.mem_get_info(device)[0]


def _make(build: Callable[[int], torch.nn.Module], steps: list[tuple[str, Any]]):
    """Build experts or a gate, and do what was done to them since."""
    part = None
    for step, value in steps:
        if step == "build":
            part = build(value)
        elif step == "keep":
            part.keep(value)
        elif step == "merge":
            part = part.merge(value)
        elif step == "take":
            part.take(value)
    return part


def _arrays(state):
    """Return a state of torch with arrays in place of tensors."""

    def array(value):
        if not isinstance(value, Tensor):
            return value
        # numpy does not know bfloat16; loading makes it that again.
        value = value.float() if value.dtype == torch.bfloat16 else value
        return value.detach().cpu().numpy()

    return _mapped(array, state)


def _tensors(state):
    """Return such a state with tensors of its own."""

    def tensor(value):
        return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value

    return _mapped(tensor, state)


def _mapped(function, state):
    """Return nested dicts and lists with what a function makes of each value in them."""
    if isinstance(state, dict):
        return {name: _mapped(function, value) for name, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(_mapped(function, value) for value in state)
    return function(state)


def _lay_out_alike(optimizer):
    """Give an optimizer's tensors the memory layout of their parameters, as fused steps need."""
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                like = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False)
                values[name] = like.copy_(value)


def _plain(value):
    return value.item() if isinstance(value, np.generic) else value


def _device_here(device: str) -> str:
    """Return the device, or if it is not there another, with a warning."""
    wanted = torch.device(device)
    n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted.type != "cuda" or (wanted.index or 0) < n_devices:
        return device
    found = "cuda" if n_devices else "cpu"
    warnings.warn(
        f"The mixture was on the device {device!r}, which is not there. It is on {found!r} now.",
        stacklevel=3,
    )
    return found


def _tensor(array: np.ndarray | Tensor, device) -> Tensor:
    if isinstance(array, Tensor):
        return array.to(device)
    array = np.ascontiguousarray(array)
    if not array.flags.writeable:  # torch would warn, but nothing here writes to it
        array = np.asarray(_Writeable(array))
    return torch.from_numpy(array).to(device)


def _spaced(weight, n_samples):
    """Return at most so many rows, evenly spaced if each has its weight's length, and weights."""
    if len(weight) <= n_samples:
        return slice(None), weight
    reached = weight.double().cumsum(0)
    places = (torch.arange(n_samples, device=weight.device) + 0.5) / n_samples * reached[-1]
    return torch.searchsorted(reached, places, right=True).unique(return_counts=True)


def _convolutions(module):
    return [part for part in module.modules() if isinstance(part, ConvStack)]


def _multiply_adds(module):
    """Return about how many multiply-adds a module takes for a sample."""
    convolved = sum(stack.n_networks * stack.multiply_adds for stack in _convolutions(module))
    return sum(parameter.numel() for parameter in module.parameters()) + convolved


class _Writeable:
    """The memory of a read-only array, for numpy to look at as if it could be written."""

    def __init__(self, array):
        self.array = array
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def _is_memory_map(array):
    """Whether an array reads its values from a file."""
    while array is not None and not isinstance(array, np.memmap):
        array = getattr(array, "base", None)
    return array is not None
