"""Time the fit of a mixture of experts beside its peers.

    python benchmarks/speed_fit.py                       # the default, then encoder=None
    python benchmarks/speed_fit.py --grid                # experts x hidden x features x batch
    python benchmarks/speed_fit.py --covertype FOLDER    # 581k real rows, FOLDER/covertype.csv.gz
    python benchmarks/speed_fit.py --busy                # beside a process that takes one core

Every figure is a ratio of times within one process: the median over pairs of fits that take turns,
ours divided by the peer's. The data are random, as the time does not depend on them; the seeds and
the number of epochs, which is the default, are the same on both sides. The peers are

- ``loop``: the same mixture and the same loss, importance and competence included, in a bare torch
  loop, written as well as we can: stacked experts, samples last, fused AdamW, slices of tensors,
  no callbacks, no checks;
- ``MLPClassifier``: scikit-learn's, with one hidden layer that has as many parameters as our
  experts and gate together, the same batches and epochs;
- ``skorch``: a ``NeuralNetClassifier`` with skorch's own defaults around the same module;
- ``modules``: the bare loop over a Python list of expert modules.

Peers get the better of one and two threads; ours chooses for itself.

The first table is of the default settings, for a table of 54 numbers: the mixture encodes it, with
hat functions, batch by batch. Its peers are the same with the encoder as a step of a pipeline, and
gradient boosting on a wide table, mostly of categories. All others have ``encoder=None``.
"""

import argparse
import itertools
import subprocess
import sys
import time
import warnings

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from skorch import NeuralNetClassifier
from timing import make_data, markdown, ratios
from torch import nn

from sklearn_moe import MLPExperts, MoEClassifier, TableEncoder
from sklearn_moe.containers import read_table


def load_covertype(folder):
    table = pd.read_csv(f"{folder}/covertype.csv.gz")
    X = table.iloc[:, :-1].to_numpy(np.float32)
    return (X - X.mean(axis=0)) / X.std(axis=0).clip(1e-6), table.iloc[:, -1].to_numpy()


class BareMixture(nn.Module):
    """The default mixture, with the samples on the last axis throughout."""

    def __init__(self, n_features, n_classes, n_experts, hidden):
        super().__init__()
        self.first = nn.Linear(n_features, n_experts * hidden)
        bound = hidden**-0.5
        self.weight = nn.Parameter(
            torch.empty(n_experts, n_classes, hidden).uniform_(-bound, bound)
        )
        self.bias = nn.Parameter(torch.zeros(n_experts, n_classes, 1))
        self.gate = nn.Linear(n_features, n_experts)
        self.n_experts = n_experts

    def parts(self, x):
        """Return log-probabilities of the gate (E, N) and of the experts (E, C, N)."""
        hidden = torch.addmm(self.first.bias.unsqueeze(1), self.first.weight, x.mT).relu()
        hidden = hidden.view(self.n_experts, -1, len(x))
        logits = torch.baddbmm(self.bias, self.weight, hidden)
        gate = torch.addmm(self.gate.bias.unsqueeze(1), self.gate.weight, x.mT)
        return gate.log_softmax(dim=0), logits.log_softmax(dim=1)

    def forward(self, x):
        gate, experts = self.parts(x)
        return (gate.unsqueeze(1) + experts).logsumexp(dim=0).mT


class ModuleMixture(nn.Module):
    """The same from a list of modules."""

    def __init__(self, n_features, n_classes, n_experts, hidden):
        super().__init__()
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(n_features, hidden), nn.ReLU(), nn.Linear(hidden, n_classes))
            for _ in range(n_experts)
        )
        self.gate = nn.Linear(n_features, n_experts)

    def parts(self, x):
        logits = torch.stack([expert(x) for expert in self.experts])
        return self.gate(x).log_softmax(1).mT, logits.log_softmax(2).mT


def train(module, X, y, batch_size, epochs):
    X, y = torch.from_numpy(X), torch.from_numpy(y)
    weight = torch.ones(len(X))
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True)
    for _ in range(epochs):
        losses = []
        for rows in torch.randperm(len(X)).split(batch_size):
            optimizer.zero_grad()
            gate, experts = module.parts(X[rows])
            w, of_class = weight[rows], y[rows].expand(len(experts), 1, -1)
            own = experts.gather(1, of_class).squeeze(1)  # of each expert for the right class
            importance = gate.exp() @ w
            loss = -((gate + own).logsumexp(dim=0) @ w) / len(w)
            loss = loss + 0.2 * importance.var() / importance.mean().square()
            loss = loss - 0.5 * (own.mean(dim=0) @ w) / len(w)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        torch.stack(losses).mean().item()


def compare(X, y, *, n_experts, hidden, batch_size, epochs, peers, n_pairs):
    """Return our time as a ratio to that of each peer."""
    n_features, n_classes = X.shape[1], len(np.unique(y))
    sizes = n_features, n_classes, n_experts, hidden
    n_parameters = sum(parameter.numel() for parameter in BareMixture(*sizes).parameters())
    n_units = round((n_parameters - n_classes) / (n_features + 1 + n_classes))

    def ours():
        MoEClassifier(
            n_experts,
            experts=MLPExperts((hidden,)),
            encoder=None,
            batch_size=batch_size,
            max_iter=epochs,
            device="cpu",
            random_state=0,
        ).fit(X, y)

    def mlp_classifier():
        MLPClassifier(
            (n_units,), batch_size=batch_size, max_iter=epochs, n_iter_no_change=epochs + 1
        ).fit(X, y)

    def plain_skorch():
        NeuralNetClassifier(
            BareMixture(*sizes),
            criterion=nn.NLLLoss,
            optimizer=torch.optim.AdamW,
            batch_size=batch_size,
            max_epochs=epochs,
            train_split=None,
            classes=list(range(n_classes)),
            verbose=0,
        ).fit(X, y)

    known = {
        "loop": lambda: train(BareMixture(*sizes), X, y, batch_size, epochs),
        "MLPClassifier": mlp_classifier,
        "skorch": plain_skorch,
        "modules": lambda: train(ModuleMixture(*sizes), X, y, batch_size, epochs),
    }
    found = ratios(ours, {name: known[name] for name in peers}, n_pairs=n_pairs)
    return [found[name] for name in peers]


class EncoderStep(TransformerMixin, BaseEstimator):
    """The encoder of tables as a step before a mixture with ``encoder=None``."""

    def fit(self, X, y=None):
        is_categorical = np.zeros(X.shape[1], dtype=bool)
        table = read_table(X, is_categorical)
        self.encoder_ = TableEncoder().make_transformer().fit(table, is_categorical=is_categorical)
        return self

    def transform(self, X):
        return self.encoder_.transform(X)


def wide_table(n_rows=4000, n_columns=40):
    """Return a frame of 36 columns of categories, some 400 in all, and 4 of numbers."""
    random = np.random.RandomState(0)
    numbers = random.normal(size=(n_rows, 4))
    codes = random.randint(11, size=(n_rows, n_columns - 4))
    score = numbers[:, 0] + np.sin(codes[:, :6]).sum(axis=1) + random.normal(size=n_rows)
    frame = pd.DataFrame(numbers, columns=[f"number{i}" for i in range(4)])
    for i, column in enumerate(codes.T):
        frame[f"category{i}"] = pd.Categorical([f"value{code}" for code in column])
    return frame, (score > 0).astype(int)


def default_path(n_pairs):
    """Yield the time of a fit with the default settings beside a peer."""
    options = {"device": "cpu", "random_state": 0}
    X, y = make_data(4000, 54, 7)
    X = X.astype(np.float64)
    clf = MoEClassifier(**options)
    piped = make_pipeline(EncoderStep(), MoEClassifier(encoder=None, **options))
    found = ratios(
        lambda: clf.fit(X, y), {"step": lambda: piped.fit(X, y)}, n_pairs=n_pairs, choose=True
    )
    yield "4000 x 54 numbers, beside the encoder as a step", found["step"]
    try:
        from catboost import CatBoostClassifier
    except ImportError:
        return
    X, y = wide_table()
    names = [name for name in X if name.startswith("category")]
    clf = MoEClassifier(**options)
    found = ratios(
        lambda: clf.fit(X, y),
        {
            "catboost": lambda: CatBoostClassifier(
                cat_features=names, verbose=0, allow_writing_files=False
            ).fit(X, y)
        },
        n_pairs=max(1, n_pairs // 3),
        choose=True,
    )
    yield "4000 x 40, 400 categories, beside CatBoost", found["catboost"]


def short_table(n_pairs):
    peers = ["loop", "MLPClassifier", "skorch", "modules"]
    for n_samples, batch_size in ((1024, 32), (8192, 128), (8192, 256), (51200, 2048)):
        yield (
            f"{n_samples} rows, batches of {batch_size}",
            *compare(
                *make_data(n_samples, 54, 7),
                n_experts=8,
                hidden=16,
                batch_size=batch_size,
                epochs=40,  # the default
                peers=peers,
                n_pairs=n_pairs,
            ),
        )


def grid(n_pairs):
    for n_features, n_experts, hidden, batch_size in itertools.product(
        (20, 54, 784), (4, 16, 64), (32, 128), (32, 128, 256, 2048)
    ):
        yield (
            f"{n_features} features, {n_experts} experts of {hidden}, batches of {batch_size}",
            *compare(
                *make_data(4 * max(batch_size, 256), n_features, 10),
                n_experts=n_experts,
                hidden=hidden,
                batch_size=batch_size,
                epochs=2,
                peers=["loop", "MLPClassifier"],
                n_pairs=n_pairs,
            ),
        )


def beside_a_busy_process(n_pairs):
    """Yield the time of a fit while another process takes one core, against an idle machine."""
    for n_features, n_experts, hidden, n_samples in ((54, 8, 16, 51200), (784, 64, 128, 8192)):
        X, y = make_data(n_samples, n_features, 7)
        clf = MoEClassifier(
            n_experts,
            experts=MLPExperts((hidden,)),
            encoder=None,
            batch_size=2048,
            max_iter=2,
            device="cpu",
            random_state=0,
        ).fit(X, y)
        seconds = {False: [], True: []}
        for is_busy in (False, True) * n_pairs:
            other = (
                subprocess.Popen([sys.executable, "-c", "while True: pass"]) if is_busy else None
            )
            start = time.perf_counter()
            clf.fit(X, y)
            seconds[is_busy].append(time.perf_counter() - start)
            if is_busy:
                other.kill()
                other.wait()
        name = f"{n_features} features, {n_experts} experts of {hidden}, batches of 2048"
        yield name, np.median(np.array(seconds[True]) / seconds[False])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7, help="number of pairs (default: 7)")
    parser.add_argument("--grid", action="store_true", help="all sizes, against two peers")
    parser.add_argument("--covertype", help="folder of covertype.csv.gz: real rows instead")
    parser.add_argument("--busy", action="store_true", help="beside a busy process, and without")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # that one or two epochs have not converged
    if options.covertype:
        X, y = load_covertype(options.covertype)
        peers = ["loop", "MLPClassifier"]
        sizes = {"n_experts": 8, "hidden": 16, "batch_size": 2048, "epochs": 1}
        row = compare(X, y, peers=peers, n_pairs=options.pairs, **sizes)
        markdown(["fit", *peers], [(f"{len(X)} rows, batches of 2048", *row)])
    elif options.busy:
        markdown(["fit", "busy against idle"], beside_a_busy_process(options.pairs))
    elif options.grid:
        markdown(["fit", "loop", "MLPClassifier"], grid(options.pairs))
    else:
        markdown(["fit, default settings", "ratio"], default_path(options.pairs))
        print()
        peers = ["loop", "MLPClassifier", "skorch", "modules"]
        markdown(["fit, encoder=None", *peers], short_table(options.pairs))
