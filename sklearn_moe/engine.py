"""The skorch net behind the estimator: loss, batches, device, threads.

``MoENet`` is a skorch net, so callbacks, history, checkpoints and prediction work as usual. It is
trained by the estimator, which knows what its batches have to hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from itertools import pairwise
from threading import Lock

import numpy as np
import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback, PassthroughScoring, PrintLog
from skorch.dataset import Dataset
from skorch.helper import predefined_split
from skorch.utils import data_from_dataset
from threadpoolctl import ThreadpoolController
from torch import Tensor

from sklearn_moe.callbacks import StopEarly, TrackDecomposition
from sklearn_moe.experts import seeded_globally
from sklearn_moe.mixture import MixtureOfExperts

# Predictions are made in chunks of this many rows, whatever the batch size of the training was.
CHUNK_SIZE = 8192

# Multiply-adds of a batch from which a second thread pays. The choice depends on the work alone,
# never on the machine, because sums in another order give other bits.
WORK_FOR_TWO_THREADS = 2e8


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
    """

    def __init__(self, dataset, batch_size: int, generator: torch.Generator | None = None):
        self.X, self.y = data_from_dataset(dataset)
        self.n_samples = len(dataset)
        self.n_batches = math.ceil(self.n_samples / batch_size)
        self.generator = generator

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator:
        if self.generator is None or self.n_batches == 1:
            bounds = np.linspace(0, self.n_samples, self.n_batches + 1).astype(int)
            batches = [slice(*pair) for pair in pairwise(bounds)]
        else:
            order = torch.randperm(self.n_samples, generator=self.generator)
            batches = order.to(self.y.device).tensor_split(self.n_batches)
        for batch in batches:
            if isinstance(self.X, dict):
                X = {name: values[batch] for name, values in self.X.items()}
            else:
                X = self.X[batch]
            yield X, (None if self.y is None else self.y[batch])


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
        loss = loss + regularization(mixture, x, y, sample_weight)
    return loss, mixture.log_proba, mixture.gate_proba


class MoENet(NeuralNetClassifier):
    """The skorch net that trains a mixture of experts.

    Parameters
    ----------
    experts, gate : object
        Hyperparameter objects with a ``build`` method.
    regularizations : list of callable
        Penalties that are added to the loss.
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
        *,
        regularizations,
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
        self.regularizations = regularizations
        self.input_shape = input_shape
        self.n_experts = n_experts
        self.n_classes = n_classes
        self.mixing = mixing
        self.seed = seed
        self.n_threads = n_threads
        self.track_decomposition = track_decomposition
        ours = {
            "module": MixtureOfExperts,
            "criterion": torch.nn.NLLLoss,
            "criterion__reduction": "none",
            "iterator_train": TensorBatches,
            "iterator_valid": TensorBatches,
            "iterator_valid__batch_size": CHUNK_SIZE,
            "train_split": None,
            "predict_nonlinearity": None,
            "classes": list(range(n_classes)),
        }
        super().__init__(**{**ours, **kwargs})

    objective_ = staticmethod(likelihood)  # unless a training brings its own

    # What skorch asks of a net

    @property
    def _default_callbacks(self):
        return [
            ("train_loss", PassthroughScoring("train_loss", on_train=True)),
            ("valid_loss", PassthroughScoring("valid_loss")),
            ("valid_accuracy", PassthroughScoring("valid_accuracy", lower_is_better=False)),
            ("decomposition", TrackDecomposition()),
            ("print_log", PrintLog()),
        ]

    def initialize_module(self):
        generator = torch.Generator().manual_seed(self.seed)
        experts = self.experts.build(self.input_shape, self.n_experts, self.n_classes, generator)
        gate = self.gate.build(self.input_shape, self.n_experts, experts.hidden_size, generator)
        self.module_ = self.module(experts, gate, mixing=self.mixing)
        return self

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

    def train_step_single(self, batch, **fit_params):
        self._set_training(True)
        inputs, y = batch
        loss, log_proba, gate_proba = self.objective_(self, **inputs, y=y)
        loss.backward()
        return {
            "loss": loss.detach(),
            "y_pred": log_proba.detach().softmax(dim=1),
            "gate_proba": gate_proba.detach(),  # for callbacks
        }

    def validation_step(self, batch, **fit_params):
        self._set_training(False)
        inputs, y = batch
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
        self._set_training(training)
        with torch.set_grad_enabled(training):
            x = torch.as_tensor(x, device=self.device)
            log_proba = self.module_(x).log_proba if training else self.module_.predict(x)
            return log_proba.softmax(dim=1)

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
            Number of epochs; None means all of ``max_epochs``.
        callbacks : list of skorch.callbacks.Callback
            They come after the net's own.
        seed : int
            Seed of batches, dropout and gate noise.
        objective : callable, default=likelihood
            ``objective(net, x, sample_weight, y)``; see :func:`likelihood` for what it returns.

        Returns
        -------
        interrupted : bool
            True if a user interrupted the training.
        """
        device = torch.device(self.device)
        dataset = self._dataset(X, y, sample_weight)
        own_callbacks, own_split = self.callbacks_, self.train_split
        before = deepcopy((self.module_.state_dict(), self.optimizer_.state_dict()))
        n_epochs_before = len(self.history)
        self.callbacks_ = own_callbacks + [
            (type(callback).__name__, callback.initialize()) for callback in callbacks
        ]
        if validation is not None:
            self.train_split = predefined_split(self._dataset(*validation))
        self.iterator_train__generator = torch.Generator().manual_seed(seed + 1)
        self.generator_ = torch.Generator(device).manual_seed(seed)
        self.objective_ = objective
        self.interrupted_ = False
        uses_global_state = getattr(self.module_.experts, "uses_global_random_state", False)
        n_rows = len(X) if self.batch_size == -1 else min(self.batch_size, len(X))
        try:
            with (
                self.threads(n_rows),
                seeded_globally(seed, device) if uses_global_state else nullcontext(),
            ):
                self.partial_fit(dataset, epochs=epochs)
        except BaseException:
            # A model that was trained before has its weights back.
            self.module_.load_state_dict(before[0])
            self.optimizer_.load_state_dict(before[1])
            del self.history[n_epochs_before:]
            raise
        finally:
            self.callbacks_, self.train_split = own_callbacks, own_split
            self.iterator_train__generator = self.generator_ = None
            del self.objective_
            self._forget_batches()
        return self.interrupted_

    def snapshot(self) -> MoENet:
        """Return a net that predicts as this one does now and shares the rest with it."""
        net = object.__new__(type(self))
        net.__dict__.update(self.__dict__, module_=deepcopy(self.module_))
        return net

    def evaluate(
        self, X: np.ndarray | Tensor, function: Callable[[MixtureOfExperts, Tensor], Tensor]
    ) -> np.ndarray:
        """Return what a function of the mixture and a batch says about each row of X."""
        self._set_training(False)
        parts = []
        n_rows = min(CHUNK_SIZE, len(X))
        with self.threads(n_rows, predicting=True), torch.inference_mode():
            for start in range(0, len(X), CHUNK_SIZE):
                x = _tensor(X[start : start + CHUNK_SIZE], self.device)
                parts.append(function(self.module_, x).cpu().numpy())
        return np.concatenate(parts)

    def to(self, device: str) -> None:
        """Move module and optimizer to a device."""
        self.device = device
        self.module_.to(device)
        # Loading its own state moves an optimizer's tensors to where its parameters are.
        self.optimizer_.load_state_dict(self.optimizer_.state_dict())

    def threads(self, n_rows: int, *, predicting: bool = False):
        """Return a context in which torch uses the right number of threads for such batches."""
        n_threads = self.n_threads
        if n_threads == "auto":
            gate, experts = self.module_.gate, self.module_.experts
            work = sum(parameter.numel() for parameter in experts.parameters())
            if predicting and self.module_.is_conditional:
                work *= gate.top_k / self.n_experts
            work += sum(parameter.numel() for parameter in gate.parameters())
            n_threads = 2 if n_rows * work >= WORK_FOR_TWO_THREADS else 1
        return intra_op_threads(n_threads)

    def _dataset(self, X, y, sample_weight):
        inputs = {
            "x": _tensor(X, self.device),
            "sample_weight": _tensor(sample_weight, self.device),
        }
        return Dataset(inputs, _tensor(y, self.device))


def _tensor(array: np.ndarray | Tensor, device) -> Tensor:
    if isinstance(array, Tensor):
        return array.to(device)
    if not array.flags.writeable:  # torch would warn; nothing here writes to it
        array = array.copy()
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


_threads_lock = Lock()
_threads_users = 0
_threads_before = 0


@contextmanager
def intra_op_threads(n_threads: int):
    """Set torch's intra-op threads for a while.

    A part of torch's count belongs to the calling thread (OpenMP), another to the process (MKL).
    Of several threads that use this at once, the last one out restores the process's part.
    """
    global _threads_users, _threads_before
    with _threads_lock:
        if _threads_users == 0:
            _threads_before = torch.get_num_threads()
        _threads_users += 1
    try:
        torch.set_num_threads(n_threads)
        yield
    finally:
        with _threads_lock:
            _threads_users -= 1
            if _threads_users == 0:
                torch.set_num_threads(_threads_before)
            else:
                for library in ThreadpoolController().lib_controllers:
                    if library.user_api == "openmp" and "torch" in library.filepath:
                        library.set_num_threads(_threads_before)
