"""What happens around the epochs: progress, learning rate, stopping, scikit-learn's callbacks.

These are skorch callbacks that last for one training.
"""

from __future__ import annotations

import math

import torch
from sklearn.base import BaseEstimator
from skorch.callbacks import Callback, PrintLog
from skorch.utils import data_from_dataset
from torch.nn import functional as F

from sklearn_moe.measures import mutual_information, usage_entropy
from sklearn_moe.training.batches import as_tensor, spaced
from sklearn_moe.training.defaults import widest
from sklearn_moe.training.prediction import CHUNK_SIZE


def usual_callbacks(
    estimator: BaseEstimator,
    epochs: int,
    *,
    incremental: bool = False,
    annealing: float | None = None,
) -> list[Callback]:
    """Return the callbacks that every training of a ``MoEClassifier`` has."""
    callbacks = []
    if annealing is not None:
        callbacks.append(Anneal(annealing, epochs))
    if estimator.learning_rate_schedule == "one_cycle" and not incremental:
        callbacks.append(OneCycle(epochs))
    if estimator.verbose == 1:
        callbacks.append(Progress(epochs))
    return callbacks


class BatchCallback(Callback):
    """Base class of our callbacks that listen to batches.

    They need neither the history of batches, which the net then does not keep, nor the batch in
    ``on_batch_begin``. Those with ``can_be_captured = True`` change nothing in a step, so that a
    CUDA graph may replay it.
    """

    needs_no_history = True


def listens_to_batches(callback: Callback) -> bool:
    """Whether a callback has something to do in each batch."""
    events = ("on_batch_begin", "on_batch_end", "on_grad_computed")
    return any(
        getattr(getattr(callback, name), "__func__", None) is not getattr(Callback, name)
        for name in events
    )


class Progress(BatchCallback):
    """A progress bar over the epochs, which moves with the batches."""

    can_be_captured = True

    shown = {
        "train_loss": "train_loss",
        "valid_loss": "valid_loss",
        "sample_entropy": "H_s",
        "usage_entropy": "H_u",
        "expert_class_information": "I(E;Y)",
    }

    def __init__(self, epochs: int):
        self.epochs = epochs

    def on_train_begin(self, net, **kwargs):
        # Import it only to draw a bar: in a notebook without ipywidgets, the import warns.
        from tqdm.auto import tqdm

        layout = "{l_bar}{bar}| {n:.1f}/{total} epochs [{elapsed}<{remaining}{postfix}]"
        self.bar = tqdm(total=self.epochs, desc="MoEClassifier", bar_format=layout)
        self.epoch = 0

    def on_epoch_begin(self, net, dataset_train, **kwargs):
        self.n_batches = len(net.get_iterator(dataset_train, training=True))

    def on_batch_end(self, net, training, **kwargs):
        if training:
            # Rounding must not move it beyond the end of the epoch, as tqdm would warn.
            self.bar.update(min(1 / self.n_batches, self.epoch + 1 - self.bar.n))

    def on_epoch_end(self, net, **kwargs):
        self.epoch += 1
        row = net.history[-1]
        self.bar.set_postfix(
            {label: f"{row[key]:.4g}" for key, label in self.shown.items() if key in row}
        )
        self.bar.update(self.epoch - self.bar.n)

    def on_train_end(self, net, **kwargs):
        self.bar.close()


class TrackDecomposition(BatchCallback):
    """Record H_s, H_u and I(E;Y) of each epoch of a net with ``track_decomposition``, in bits.

    Like the training loss, they are measured on the training batches, each with the weights that
    the mixture had at that time. So nothing runs twice, and nothing is read from the device within
    an epoch. Samples count with their weights.
    """

    can_be_captured = True

    def on_epoch_begin(self, net, **kwargs):
        if not net.track_decomposition:
            return
        shape = net.n_experts, net.n_classes
        table = torch.zeros(shape, device=net.device, dtype=widest(net.device))
        self.sample_entropy, self.usage, self.table = table.new_zeros(()), table.sum(dim=1), table

    def on_batch_end(self, net, batch, training, gate_proba=None, **kwargs):
        if not (net.track_decomposition and training):
            return
        inputs, y = batch
        gate_proba = gate_proba.to(self.table.dtype)
        sample_weight = inputs["sample_weight"].to(self.table.dtype)
        self.sample_entropy += torch.special.entr(gate_proba).sum(dim=1) @ sample_weight
        self.usage += sample_weight @ gate_proba
        self.table.index_put_((gate_proba.argmax(dim=1), y), sample_weight, accumulate=True)

    def on_epoch_end(self, net, **kwargs):
        if not net.track_decomposition:
            return
        usage, table = self.usage.cpu().numpy(), self.table.cpu().numpy()
        nats = self.sample_entropy.item() / table.sum()
        net.history.record("sample_entropy", float(nats / math.log(2)))
        net.history.record("usage_entropy", usage_entropy([usage / usage.sum()]))
        net.history.record("expert_class_information", mutual_information(table))


class Log(PrintLog):
    """skorch's log of epochs, which formats its lines only if they are printed.

    Formatting them makes a short epoch a tenth longer.
    """

    can_be_captured = True

    def on_epoch_end(self, net, **kwargs):
        if net.verbose or self.sink is not print:
            super().on_epoch_end(net, **kwargs)


class RefitGate(Callback):
    """Refit a gate that learns without gradients (``refits``) before each epoch.

    The gate gets its input for at most ``max_samples`` training samples, and the losses of all
    experts on them.
    """

    can_be_captured = True

    def on_train_begin(self, net, **kwargs):
        net.module_.gate.remember()

    def on_train_end(self, net, **kwargs):
        net.module_.gate.forget()

    def on_epoch_begin(self, net, dataset_train=None, **kwargs):
        module = net.module_
        if not module.gate.refits:
            return
        inputs, y = data_from_dataset(dataset_train)
        data = inputs["x"], y
        rows, weight = spaced(inputs["sample_weight"], module.gate.max_samples)
        generator = net.session_.generator
        seed = torch.randint(2**31, (), generator=generator, device=generator.device).item()
        seen, losses = [], []
        with torch.no_grad():
            parts = (as_tensor(values[rows], y.device).split(CHUNK_SIZE) for values in data)
            for x, labels in zip(*parts, strict=True):
                x = module.encode(x.to(net.device))
                logits = module.run_experts(x)[0].permute(0, 2, 1)
                targets = labels.to(net.device)[:, None].expand(-1, logits.shape[2])
                losses.append(F.cross_entropy(logits, targets, reduction="none"))
                seen.append(module.for_gate(x))
            module.gate.refit(torch.cat(seen), torch.cat(losses), weight, seed)


class AnnealTopK(Callback):
    """Let fewer and fewer experts answer for a sample, over the first half of a training.

    A gate that takes one expert would train all of them. So if ``last`` is 1, it takes two from
    the middle of the training on, and one after the training.

    Parameters
    ----------
    first, last : int
        How many experts the gate takes for a sample in the first epoch, and in the end.
    """

    def __init__(self, first: int, last: int):
        self.first = first
        self.last = last

    def on_epoch_begin(self, net, **kwargs):
        progress = min(1.0, 2 * self.epoch / net.max_epochs)
        last = min(max(self.last, 2), net.n_experts)
        net.module_.gate.take(round(self.first + progress * (last - self.first)))
        self.epoch += 1

    def on_train_begin(self, net, **kwargs):
        self.epoch = 0

    def on_train_end(self, net, **kwargs):
        net.module_.gate.take(self.last)


class StopOnNaN(Callback):
    """Stop a training whose loss is no longer a number."""

    can_be_captured = True

    def on_epoch_end(self, net, **kwargs):
        row = net.history[-1]
        self._check(net, row["train_loss"])
        self._check(net, row.get("valid_loss", 0.0), "validation")

    def on_train_end(self, net, X, **kwargs):
        # The last step may leave weights that give no finite loss.
        log_proba = net.evaluate(X.X["x"][:256], lambda module, x: module(x).log_proba)
        self._check(net, -log_proba.mean().item())

    def _check(self, net, value, kind="training"):
        if not math.isfinite(value):
            raise ValueError(
                f"The {kind} loss became {value} in epoch {len(net.history)}. Lower "
                f"learning_rate (it is {net.lr}), scale the features (for example with "
                "StandardScaler), or lower the strength of the regularization."
            )


class Anneal(BatchCallback):
    """Let the experts part slowly: raise the inverse temperature of the likelihood to 1.

    It rises linearly over the first half of the training. Of restarts that train at once, every
    second one trains without annealing: annealed restarts tend to the same optimum, which usually,
    but not always, is the best.

    Parameters
    ----------
    first : float
        The inverse temperature at the start.
    epochs : int
        Length of the training.
    """

    def __init__(self, first: float, epochs: int):
        self.first = first
        self.epochs = epochs

    def for_epochs(self, epochs: int) -> Anneal:
        """Return the same for a training of another length."""
        return Anneal(self.first, epochs)

    def on_train_begin(self, net, **kwargs):
        self.step = 0

    def on_epoch_begin(self, net, dataset_train, **kwargs):
        if self.step == 0:
            self.n_steps = self.epochs * len(net.get_iterator(dataset_train, training=True))

    def on_batch_begin(self, net, training, **kwargs):
        if training:
            progress = min(1.0, 2 * self.step / self.n_steps)
            b = self.first + (1 - self.first) * progress
            n_restarts = net.module_.n_restarts
            if n_restarts > 1:
                b, first = torch.ones(n_restarts, device=net.device), b
                b[::2] = first
            net.session_.inverse_temperature = b
            self.step += 1


class OneCycle(BatchCallback):
    """Raise the learning rate linearly to its peak, then lower it along a cosine to zero.

    Parameters
    ----------
    epochs : int
        Length of the cycle.

    References
    ----------
    L. N. Smith, N. Topin, Super-Convergence: Very Fast Training of Neural Networks Using Large
    Learning Rates, 2017, arXiv 1708.07120.
    """

    can_be_captured = True

    warm_up = 0.3  # part of the cycle in which the rate rises
    descent = 1 / 3  # length of an early descent, as a part of the epochs before it

    def __init__(self, epochs: int):
        self.epochs = epochs

    def for_epochs(self, epochs: int) -> OneCycle:
        """Return the same for a training of another length."""
        return OneCycle(epochs)

    def on_train_begin(self, net, **kwargs):
        self.step = 0
        self.descent_begins = None  # for an early descent: its first step, and the factor there
        self.peaks = [group["lr"] for group in net.optimizer_.param_groups]

    def on_epoch_begin(self, net, dataset_train, **kwargs):
        if self.step == 0:
            self.steps_of_epoch = len(net.get_iterator(dataset_train, training=True))
            self.n_steps = self.epochs * self.steps_of_epoch

    def on_batch_begin(self, net, training, **kwargs):
        if training:
            self.step += 1
            self._set(net, self.factor)

    def on_train_end(self, net, **kwargs):
        self._set(net, 1.0)

    @property
    def progress(self) -> float:
        """How much of the cycle is done, between 0 and 1."""
        return self.step / (self.n_steps + 1)

    @property
    def factor(self) -> float:
        """The rate as a part of its peak."""
        if self.descent_begins is not None:
            begin, height = self.descent_begins
            return height * _cosine((self.step - begin) / (self.n_steps + 1 - begin))
        if self.progress < self.warm_up:
            return self.progress / self.warm_up
        return _cosine((self.progress - self.warm_up) / (1 - self.warm_up))

    def come_down(self) -> int:
        """Start to lower the rate to zero, and return how many epochs this will take."""
        done = self.step // self.steps_of_epoch
        epochs = min(math.ceil(self.descent * done), self.epochs - done)
        self.descent_begins = self.step, self.factor
        self.n_steps = self.step + epochs * self.steps_of_epoch
        return epochs

    def _set(self, net, factor):
        for group, peak in zip(net.optimizer_.param_groups, self.peaks, strict=True):
            group["lr"] = factor * peak


def _cosine(progress):
    return 0.5 * (1 + math.cos(math.pi * progress))


class ScikitLearnCallbacks(Callback):
    """Tell scikit-learn's callbacks (``estimator.set_callbacks``) about each epoch.

    Parameters
    ----------
    estimator : estimator
        The estimator in training, which has the callbacks.
    epochs : int
        Number of epochs.
    attributes : dict
        Fitted attributes that, with ``net_``, make a copy of the estimator ready to predict.
    X, y, metadata
        The data that the callbacks get.
    """

    def __init__(self, estimator, epochs, attributes, *, X, y, metadata):
        self.attributes = attributes
        self.task = {"estimator": estimator, "X": X, "y": y, "metadata": metadata}
        self.context = estimator._init_callback_context(max_subtasks=epochs)

    def on_train_begin(self, net, **kwargs):
        self.context.call_on_fit_task_begin(**self.task)

    def on_epoch_begin(self, net, **kwargs):
        self.epoch = self.context.subcontext(task_name="epoch")
        self.epoch.call_on_fit_task_begin(**self.task)

    def on_epoch_end(self, net, **kwargs):
        epoch, self.epoch = self.epoch, None
        if self._end(epoch, net):
            raise KeyboardInterrupt  # skorch's signal to stop

    def on_train_end(self, net, **kwargs):
        if self.epoch is not None:  # interrupted, or ended by another callback
            self._end(self.epoch, net)
        self._end(self.context, net)

    def _end(self, context, net):
        def fitted():
            return {**self.attributes, "net_": net.snapshot()}

        return context.call_on_fit_task_end(**self.task, reconstruction_attributes=fitted)
