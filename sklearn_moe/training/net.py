"""The skorch net behind the estimator: what it does differently from skorch's own nets.

``MoENet`` is a skorch net, so callbacks, history, checkpoints and prediction work as usual. It is
trained in a ``Session``, which holds the data of one training.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy, deepcopy
from typing import Any

import numpy as np
import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback, PassthroughScoring
from skorch.dataset import Dataset
from skorch.history import History
from torch import Tensor

from sklearn_moe.checks import of_net_params
from sklearn_moe.containers import SparseRows
from sklearn_moe.mixture import MixtureOfExperts
from sklearn_moe.plain import Plain
from sklearn_moe.training import prediction
from sklearn_moe.training.batches import TensorBatches
from sklearn_moe.training.building import build_mixture, keep_in_list, samples_shape
from sklearn_moe.training.callbacks import (
    Log,
    RefitGate,
    StopOnNaN,
    TrackDecomposition,
    listens_to_batches,
)
from sklearn_moe.training.defaults import usual_defaults, widest
from sklearn_moe.training.state import (
    arrays,
    columns_of,
    device_here,
    lay_out_alike,
    plain,
    rows_of,
    tensors,
)
from sklearn_moe.training.steps import gradient_for, on_device, steps_of_epoch

# The usual classes of a net's parts. The state of a net leaves them out, as it holds only data.
_CLASSES = {
    "module": MixtureOfExperts,
    "criterion": torch.nn.NLLLoss,
    "optimizer": torch.optim.AdamW,
    "iterator_train": TensorBatches,
    "iterator_valid": TensorBatches,
    "dataset": Dataset,
}


class MoENet(Plain, NeuralNetClassifier):
    """The skorch net that trains a mixture of experts.

    Its state, which is pickled, holds parameters, arrays and plain values. The net is built again
    from them, so everything that a module has learned must be in its ``state_dict``.

    Parameters
    ----------
    experts, gate, encoder : object
        Hyperparameter objects with a ``build`` method. The experts may be "auto", the encoder
        None.
    table : TableTransformer or None
        The fitted encoding of a table, whose layer comes first.
    regularizations : list of callable
        Penalties that are added to the loss.
    augmentation : callable or None
        Changes the training batches at random.
    gate_columns, expert_columns : ndarray of int or None
        Which of the numbers that the encoding of a table returns the gate and the experts read;
        None means all.
    input_shape : tuple of int
        Shape of one sample.
    image_shape : tuple of int or None
        Shape of an image, if samples are flat images with log-probabilities behind them.
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
        Arguments of ``skorch.NeuralNetClassifier``. An ``iterator_train`` must take a
        ``generator``.
    """

    def __init__(
        self,
        experts,
        gate,
        encoder=None,
        table=None,
        *,
        gate_columns=None,
        expert_columns=None,
        regularizations,
        augmentation=None,
        input_shape,
        image_shape=None,
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
        self.table = table
        self.gate_columns = gate_columns
        self.expert_columns = expert_columns
        self.regularizations = regularizations
        self.augmentation = augmentation
        self.input_shape = input_shape
        self.image_shape = image_shape
        self.n_experts = n_experts
        self.n_classes = n_classes
        self.mixing = mixing
        self.seed = seed
        self.n_threads = n_threads
        self.track_decomposition = track_decomposition
        ours = {
            **_CLASSES,
            "criterion__reduction": "none",
            "iterator_valid__batch_size": prediction.CHUNK_SIZE,
            "train_split": None,
            "predict_nonlinearity": None,
            "classes": list(range(n_classes)),
        }
        super().__init__(**{**ours, **kwargs})

    session_: Any = None  # the current training, a Session
    steps_: Any = None
    _work: tuple[tuple, prediction.Work] | None = None

    # Methods that skorch calls

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
            # How to build the parts again: their sizes, and what pruning or growing has changed.
            n_experts, n_classes = self.n_experts, self.n_classes
            sizes = {"encoder": None, "experts": (n_experts, n_classes), "gate": n_experts}
            self.steps_ = {part: [("build", size)] for part, size in sizes.items()}
        self.module_ = self.build(self.seed)
        return self

    def build(self, seed: int) -> MixtureOfExperts:
        """Build a mixture, with initial weights from a seed."""
        with usual_defaults():
            module = build_mixture(self, torch.Generator().manual_seed(seed))
        return module.eval()  # as at all times except during training steps

    def initialize_criterion(self):
        with of_net_params("criterion"):
            return super().initialize_criterion()

    def initialize_optimizer(self, *args, **kwargs):
        with of_net_params("optimizer"):
            return super().initialize_optimizer(*args, **kwargs)

    def get_params_for_optimizer(self, *args, **kwargs):
        (groups, *others), params = super().get_params_for_optimizer(*args, **kwargs)
        return [groups or [{"params": []}], *others], params  # torch refuses an empty list

    def get_iterator(self, dataset, training=False):
        with of_net_params("iterator_train" if training else "iterator_valid"):
            return super().get_iterator(dataset, training=training)

    def get_params_for(self, prefix):
        params = super().get_params_for(prefix)
        if prefix == "iterator_train" and self.session_ is not None:
            params |= self.session_.for_batches
        return params

    def get_split_datasets(self, X, y=None, **fit_params):
        if self.session_ is None or self.session_.validation is None:
            return super().get_split_datasets(X, y, **fit_params)
        return self.get_dataset(X, y), self.session_.validation

    def check_data(self, X, y=None):
        """Check nothing, as the estimator has checked the data."""

    @property
    def listeners(self) -> list[Callback]:
        """The callbacks of the net, and those of the current training."""
        own = [callback for _, callback in self.callbacks_]
        return own if self.session_ is None else own + self.session_.callbacks

    def notify(self, method_name, **kwargs):
        super().notify(method_name, **kwargs)
        if self.session_ is not None:
            for callback in self.session_.callbacks:
                getattr(callback, method_name)(self, **kwargs)

    def on_epoch_begin(self, net, **kwargs):
        self.forget_batches()
        super().on_epoch_begin(net, **kwargs)

    def forget_batches(self) -> None:
        """Keep only the records of epochs; those of batches could outgrow the model."""
        if self.history:
            self.history[-1]["batches"].clear()

    def fit_loop(self, *args, **kwargs):
        try:
            super().fit_loop(*args, **kwargs)
        except KeyboardInterrupt:
            # Callbacks also end a training with this exception, but only after a whole epoch.
            is_amid_epoch = not self.history or "train_loss" not in self.history[-1]
            if self.session_ is not None and is_amid_epoch:
                self.session_.interrupted = True
        if self.session_ is not None:
            self.session_.after_epochs()
        return self

    def run_single_epoch(self, iterator, training, prefix, step_fn, **fit_params):
        """Train or validate for one epoch.

        skorch tells all callbacks about each batch and reads its loss from the device. Small nets
        would spend more time on that than on their arithmetic. So a training does it only if a
        user's callback listens to batches; otherwise the history gets one entry for all batches.
        """
        listeners = [callback for callback in self.listeners if listens_to_batches(callback)]
        try:
            if training and all(getattr(each, "needs_no_history", False) for each in listeners):
                self._train_one_epoch(iterator, prefix, listeners)
            else:
                super().run_single_epoch(iterator, training, prefix, step_fn, **fit_params)
        finally:
            if training:
                self._set_training(False)

    def _train_one_epoch(self, iterator, prefix, listeners):
        self._set_training(True)
        # A list of losses would keep small tensors alive among the large ones of each step, and
        # the memory between them could not be given back.
        n_restarts = self.module_.n_restarts
        total, sizes = torch.zeros(n_restarts, dtype=widest(self.device), device=self.device), []

        def announce():
            for callback in listeners:
                callback.on_batch_begin(self, batch=None, training=True)

        for step in steps_of_epoch(self, iterator, announce):
            for callback in listeners:
                callback.on_batch_end(self, training=True, **step)
            sizes.append(len(step["batch"][1]))
            total.add_(step["loss"], alpha=sizes[-1])
        self.history.new_batch()
        loss = self._take_down(total / sum(sizes)).item()
        self.history.record_batch(f"{prefix}_loss", loss)
        self.history.record_batch(f"{prefix}_batch_size", sum(sizes))
        self.history.record(f"{prefix}_batch_count", len(sizes))

    def train_step_single(self, batch, **fit_params):
        self._set_training(True)
        step = gradient_for(self)(self, *on_device(self, batch), with_prediction=True)
        return {**step, "loss": self._take_down(step["loss"])}

    def _take_down(self, losses):
        """Return the lowest loss of all restarts, of which some may fail."""
        if self.module_.n_restarts == 1:
            return losses
        self.module_.losses = losses
        return losses.nan_to_num(torch.inf).min()

    def validation_step(self, batch, **fit_params):
        inputs, y = on_device(self, batch)
        sample_weight = inputs["sample_weight"]
        with torch.no_grad():
            log_proba = self.module_.best(inputs["x"]).log_proba
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
                net = self._predicting()
                return prediction.run_padded(net, net.module_, MixtureOfExperts.predict_proba, x)
        before = self.module_.training
        self._set_training(True)
        try:
            with torch.enable_grad():
                return self.module_(x).log_proba.softmax(dim=1)
        finally:
            self._set_training(before)

    # Saving and copying

    def get_state(self) -> dict[str, Any]:
        params = {
            name: value
            for name, value in vars(self).items()
            if not (name.startswith("_") or name.endswith("_"))
            and not (name in _CLASSES and value is _CLASSES[name])
        }
        if not self.initialized_:
            return {"params": params}
        callbacks = dict(self.callbacks_)
        ours = {
            name: callback
            for name, callback in callbacks.items()
            if name in dict(self._default_callbacks)
            and not any(param.startswith(f"callbacks__{name}") for param in params)
        }
        return {
            "params": params,
            "steps": {part: list(steps) for part, steps in self.steps_.items()},
            "module": arrays(self.module_.state_dict()),
            "frozen": [
                name for name, value in self.module_.named_parameters() if not value.requires_grad
            ],
            "criterion": arrays(self.criterion_.state_dict()),
            "optimizer": arrays(self.optimizer_.state_dict()),
            "history": columns_of(self.history),
            "callbacks": [
                (name, None if name in ours else callback) for name, callback in callbacks.items()
            ],
            "best_scores": {
                name: plain(callback.best_score_)
                for name, callback in ours.items()
                if hasattr(callback, "best_score_")
            },
        }

    def set_state(self, state: dict[str, Any]) -> None:
        params = {**state["params"], "device": device_here(state["params"]["device"])}
        # A user's callbacks must not be initialized a second time.
        self.__init__(**{**params, "callbacks": "disable"})  # type: ignore[misc]
        if "module" in state:
            self.steps_ = state["steps"]
            self.initialize()
            self.module_.load_state_dict(tensors(state["module"]))
            for name, parameter in self.module_.named_parameters():
                parameter.requires_grad_(name not in state["frozen"])
            self.criterion_.load_state_dict(tensors(state["criterion"]))
            if state["optimizer"] is not None:  # a saved file leaves it out
                self.optimizer_.load_state_dict(tensors(state["optimizer"]))
                lay_out_alike(self.optimizer_)
            self.history_ = History(rows_of(state["history"]))
            ours = {name: callback.initialize() for name, callback in self._default_callbacks}
            for name, best_score in state["best_scores"].items():
                ours[name].best_score_ = best_score
            self.callbacks_ = [
                (name, ours[name] if callback is None else callback)
                for name, callback in state["callbacks"]
            ]
        self.callbacks = params["callbacks"]

    def __copy__(self) -> MoENet:
        return deepcopy(self)

    def __deepcopy__(self, memo: dict) -> MoENet:
        # The module is copied. The optimizer is built anew, as some optimizers cannot be copied.
        net = memo[id(self)] = object.__new__(type(self))
        for name, value in vars(self).items():
            if name not in ("optimizer_", "session_"):
                net.__dict__[name] = deepcopy(value, memo)
        return net._take_over_optimizer(self) if self.initialized_ else net

    def _take_over_optimizer(self, net):
        """Build an optimizer that starts from the state of another net's optimizer."""
        self.initialize_optimizer()
        self.optimizer_.load_state_dict(deepcopy(net.optimizer_.state_dict()))
        return self

    # Methods that the estimator calls

    def keep(self, experts: list[int]) -> None:
        """Keep only these experts, in this order."""
        self.module_.experts.keep(experts)
        self.module_.gate.keep(experts)
        for part in ("experts", "gate"):
            self.steps_[part].append(("keep", experts))
        keep_in_list(self, experts)
        self._work = None

    def change_layers(self, change: str, experts: list, *how: Any) -> None:
        """Keep experts of the hidden layers, or merge groups of them (see ``MoELayersModule``)."""
        with usual_defaults(self.device):
            getattr(self.module_.encoder, change)(experts, *how)
        self.steps_["encoder"].append((change, experts))
        self._work = None

    def merge(
        self,
        groups: list[list[int]],
        shares: list[list[float]] | None = None,
        x: Tensor | None = None,
    ) -> None:
        """Replace each group of experts by one expert, which gets all samples of the group.

        With ``shares`` and samples ``x`` it is the mean of the group (see
        :class:`ExpertsModule`), otherwise the first of the group.
        """
        firsts = [group[0] for group in groups]
        with usual_defaults(self.device):
            if shares is None:
                self.module_.experts.keep(firsts)
            else:
                self.module_.experts.merge(groups, shares, self.module_.for_experts(x))
            self.module_.gate = self.module_.gate.merge(groups)
        self.steps_["experts"].append(("keep", firsts))
        self.steps_["gate"].append(("merge", groups))
        keep_in_list(self, firsts)
        self._work = None

    def take(self, top_k: int) -> None:
        """Let ``top_k`` experts answer for a sample from now on."""
        self.module_.gate.take(top_k)
        self.steps_["gate"].append(("take", top_k))
        self._work = None

    def snapshot(self) -> MoENet:
        """Return a net with a copy of the module as it is now; it shares everything else."""
        net = object.__new__(type(self))
        net.__dict__.update(self.__dict__, module_=deepcopy(self.module_.best).eval())
        net.session_ = None
        return net

    def _predicting(self):
        """Return this net, or during a training a copy, if the module cannot predict as it is."""
        is_ready = not self.module_.training and self.module_.best is self.module_
        return self if is_ready else self.snapshot()

    def copy_to_train(self) -> MoENet:
        """Return a copy whose training goes on from here and does not change this net."""
        net = self.snapshot()
        parameters = self.module_.parameters(), net.module_.parameters()
        for own, copied in zip(*parameters, strict=True):  # deepcopy drops a user's hooks
            copied._backward_hooks = own._backward_hooks
            copied._post_accumulate_grad_hooks = own._post_accumulate_grad_hooks
        net.history_ = copy(self.history)
        return net._take_over_optimizer(self)

    def evaluate(
        self,
        X: np.ndarray | SparseRows | Tensor,
        function: Callable[[MixtureOfExperts, Tensor], Tensor],
        dtype: type | None = None,
    ) -> np.ndarray:
        """Apply a function of the mixture and a batch to all rows of X.

        ``dtype`` is the type of the result; by default it is that of torch's output.
        """
        return prediction.evaluate(self._predicting(), X, function, dtype)

    @property
    def own_shape(self) -> tuple[int, ...]:
        """Shape of a sample, without what experts outside of the net say about it."""
        return self.image_shape or samples_shape(self)

    @property
    def work(self) -> prediction.Work:
        """How many multiply-adds the mixture takes."""
        module = self.module_
        key = module.experts, module.gate, module.encoder, self.device
        if self._work is None or any(
            one is not other for one, other in zip(self._work[0], key, strict=True)
        ):
            self._work = key, prediction.Work.of(module, self.device)
        return self._work[1]

    def to(self, device: str) -> None:
        """Move module and optimizer to a device."""
        self.device = device
        self.module_.to(device)
        # An optimizer that loads its own state moves its tensors to the device of its parameters.
        self.optimizer_.load_state_dict(self.optimizer_.state_dict())
