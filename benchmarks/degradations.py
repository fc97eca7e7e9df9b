"""Do experts of growing kernel and width divide images by what was done to them?

    python benchmarks/degradations.py                 # the digits of scikit-learn, 8 by 8 pixels
    python benchmarks/degradations.py --data FOLDER   # mnist.npz, halved to 14 by 14 pixels
    python benchmarks/degradations.py --data FOLDER --seeds 1 --only cosine   # a quick look

A third of the images is clean, a third noisy and a third blurred. The label is the digit; nobody
tells the mixture what was done to an image. There are three experts, and the gate reads the pixels
or, with "frequencies", the mean power in six rings of the image's spectrum, as MoCE-IR does beside
its own features.

"ARI" is the adjusted Rand index between ``apply`` and what was done, for test images, and "alone"
is the error of the chosen expert. "Cost" has its thousands of multiply-adds, over all images and
over the clean, noisy and blurred ones. "Plain" experts are equal, and cost as much as the growing
ones do in the mean. The figures are means over the seeds, with the standard deviation ("sd") of
ARI and error.
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score
from timing import markdown
from torch import nn

from sklearn_moe import (
    AttentiveGate,
    BasisGate,
    Competence,
    ComplexityBalance,
    ComplexityConvExperts,
    ConvEncoder,
    ConvExperts,
    CosineGate,
    Importance,
    MoEClassifier,
    ScoreVariance,
    SoftmaxGate,
)

N_TRAIN, N_TEST = 1500, 1000
N_RINGS = 6


class Frequencies(nn.Module):
    """The logarithm of the mean power in rings of the spectrum of an image."""

    def __init__(self, input_shape):
        super().__init__()
        rows, columns = torch.fft.fftfreq(input_shape[0]), torch.fft.rfftfreq(input_shape[1])
        radius = (rows[:, None].square() + columns.square()).sqrt().flatten()
        ring = (2 * N_RINGS * radius).long().clamp(max=N_RINGS - 1)
        weight = nn.functional.one_hot(ring, N_RINGS).float()
        self.register_buffer("weight", weight / weight.sum(dim=0))

    def forward(self, x):
        power = torch.fft.rfft2(x, norm="ortho").abs().square().flatten(1)
        # White noise is near 0, and the powers of images are within a few units of it.
        return ((power @ self.weight + 1e-4).log() + 5) / 2


EXPERTS = {
    "growing": ComplexityConvExperts(4, 16, hidden_layer_sizes=(32,)),
    "plain": ConvExperts((14, 14), (32,), kernel_size=5),
}
GATES = {
    "softmax": SoftmaxGate(),
    "softmax, convolutions": SoftmaxGate(encoder=ConvEncoder((8,), pooling=4)),
    "softmax, frequencies": SoftmaxGate(encoder=Frequencies),
    "attentive, frequencies": AttentiveGate(encoder=Frequencies),
    "basis, frequencies": BasisGate(size=2, encoder=Frequencies),
    "cosine, frequencies": CosineGate(encoder=Frequencies),
}
REGULARIZATIONS = {
    "complexity .01": "complexity",
    "complexity 1": ComplexityBalance(1.0),
    "importance 1": Importance(1.0),
    "variance 3": ScoreVariance(3.0),
}
DIVIDED, CHEAP = "variance 3, importance 1", "variance 3, importance 1, complexity .3"
ALL_LEARN = f"{CHEAP}, competence .5"
REGULARIZATIONS[DIVIDED] = [ScoreVariance(3.0), Importance(1.0)]
REGULARIZATIONS[CHEAP] = [*REGULARIZATIONS[DIVIDED], ComplexityBalance(0.3)]
REGULARIZATIONS[ALL_LEARN] = [*REGULARIZATIONS[CHEAP], Competence(0.5)]
ROWS = [
    ("growing", "softmax", "complexity .01"),
    ("growing", "softmax", DIVIDED),
    ("growing", "softmax, convolutions", DIVIDED),
    ("growing", "softmax, frequencies", DIVIDED),
    ("growing", "attentive, frequencies", DIVIDED),
    ("growing", "basis, frequencies", DIVIDED),
    ("growing", "cosine, frequencies", "complexity .01"),
    ("growing", "cosine, frequencies", "complexity 1"),
    ("growing", "cosine, frequencies", "importance 1"),
    ("growing", "cosine, frequencies", "variance 3"),
    ("growing", "cosine, frequencies", DIVIDED),
    ("growing", "cosine, frequencies", CHEAP),
    ("growing", "cosine, frequencies", ALL_LEARN),
    ("plain", "softmax", "importance 1"),
    ("plain", "cosine, frequencies", DIVIDED),
]


def degrade(images, random, blur):
    """Return images in [0, 1], and for each whether it is clean (0), noisy (1) or blurred (2)."""
    images = images.astype(np.float32)
    degradation = random.permutation(np.arange(len(images)) % 3)
    noisy, blurred = degradation == 1, degradation == 2
    images[noisy] += random.normal(0, 0.3, images[noisy].shape)
    images[blurred] = gaussian_filter(images[blurred], (0, blur, blur))
    return images.clip(0, 1), degradation


def draw(folder, seed):
    """Return images, what was done to them, and labels, for training and for test."""
    random = np.random.RandomState(seed)
    if folder is None:
        digits = load_digits()
        order = random.permutation(len(digits.target))
        parts = [(digits.images[i] / 16, digits.target[i]) for i in (order[:1200], order[1200:])]
        return [(*degrade(X, random, 0.8), y) for X, y in parts]
    file, parts = np.load(folder / "mnist.npz"), []
    for part, n in (("train", N_TRAIN), ("test", N_TEST)):
        rows = random.permutation(len(file[f"y_{part}"]))[:n]
        halved = file[f"X_{part}"][rows].reshape(n, 14, 2, 14, 2).mean(axis=(2, 4)) / 255
        parts.append((*degrade(halved, random, 1.0), file[f"y_{part}"][rows]))
    return parts


def run(experts, gate, regularization, folder, seed):
    """Return ARI, error, error of the chosen expert alone, and costs: of all, and of each kind."""
    (X, _, y), (X_test, degradation, y_test) = draw(folder, seed)
    clf = MoEClassifier(
        3,
        experts=clone(EXPERTS[experts]),
        gate=clone(GATES[gate]),
        regularization=REGULARIZATIONS[regularization],
        encoder=None,
        max_iter=30,
        random_state=seed,
    ).fit(X, y)
    chosen = clf.apply(X_test)
    alone = clf.expert_proba(X_test)[np.arange(len(chosen)), chosen].argmax(axis=1)
    cost = clf.expert_costs_[chosen] / 1000
    return (
        adjusted_rand_score(degradation, chosen),
        100 * (1 - clf.score(X_test, y_test)),
        100 * np.mean(clf.classes_[alone] != y_test),
        cost.mean(),
        *(cost[degradation == kind].mean() for kind in range(3)),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with mnist.npz; none: digits")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default="", help="only rows that have this in their name")
    args = parser.parse_args()
    markdown(
        [
            *("experts; gate; regularization", "ARI", "its sd", "error, %", "its sd"),
            *("alone, %", "cost", "clean", "noisy", "blurred"),
        ],
        rows(args),
    )


def rows(args):
    for row in ROWS:
        name = "; ".join(row)
        if args.only in name:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The gate has collapsed")
                runs = [run(*row, args.data, seed) for seed in range(args.seeds)]
            ari, error, alone, *costs = np.mean(runs, axis=0)
            spread = np.std(runs, axis=0, ddof=min(1, args.seeds - 1))
            yield [name, ari, spread[0], error, spread[1], alone, *costs]


if __name__ == "__main__":
    main()
