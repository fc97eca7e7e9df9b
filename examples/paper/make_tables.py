"""Our results beside the paper's, as Markdown: means and standard deviations over the seeds.

    python examples/paper/make_tables.py
    python examples/paper/make_tables.py --results try.csv

The authors' figures are means over the runs in their published result files (10 runs for MNIST and
FashionMNIST, 5 for CIFAR-100), not the single best runs that they head; "best" settings of the
regularizations are those of least mean training error. I(E;Y) is computed as there, with the
classes that the chosen experts predict; all entropies are in bits.

Y. Krishnamurthy, C. Watkins, T. Gaertner, Improving Expert Specialization in Mixture of Experts,
2023, arXiv 2302.14703.
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

# (data, model): error, I(E;Y), H_s, H_u; None where no mean is known.
AUTHORS = {
    ("mnist", "single network"): (0.134, None, None, None),
    ("mnist", "mixture"): (0.0443, 1.61, 0.136, 1.84),
    ("mnist", "mixture, importance"): (0.0348, 2.04, 0.122, 2.32),
    ("mnist", "mixture, sample similarity"): (0.0383, 2.06, 0.117, 2.30),
    ("mnist", "attentive"): (0.0433, 1.85, 0.060, 1.96),
    ("mnist", "attentive, importance"): (0.0349, 2.26, 0.058, 2.31),
    ("mnist", "attentive, sample similarity"): (0.0351, 2.18, 0.053, 2.28),
    ("mnist", "attentive, importance, distilled"): (0.0348, 2.26, 0.051, 2.31),
    ("mnist", "attentive, sample similarity, distilled"): (0.0345, 2.17, 0.058, 2.28),
    ("fashion_mnist", "single network"): (0.148, None, None, None),
    ("fashion_mnist", "mixture"): (0.110, None, None, None),
    ("fashion_mnist", "mixture, importance"): (0.104, None, None, None),
    ("fashion_mnist", "mixture, sample similarity"): (0.105, None, None, None),
    ("fashion_mnist", "attentive"): (0.114, None, None, None),
    ("fashion_mnist", "attentive, importance"): (0.105, None, None, None),
    ("fashion_mnist", "attentive, sample similarity"): (0.105, None, None, None),
    ("fashion_mnist", "attentive, importance, distilled"): (0.100, None, None, None),
    ("fashion_mnist", "attentive, sample similarity, distilled"): (0.102, None, None, None),
    ("cifar100", "single network"): (0.468, None, None, None),
    ("cifar100", "mixture"): (0.470, 0.99, 0.41, 1.20),
    ("cifar100", "mixture, importance"): (0.483, 4.17, 1.35, 3.91),
    ("cifar100", "mixture, sample similarity"): (0.488, 3.94, 1.24, 3.75),
    ("cifar100", "attentive"): (0.461, 1.80, 0.52, 2.04),
    ("cifar100", "attentive, importance"): (0.443, 3.61, 1.06, 3.83),
    ("cifar100", "attentive, importance, distilled"): (0.621, 2.48, 2.51, 4.08),
}
# The single runs that the authors head their tables with.
HEADLINES = {
    ("mnist", "single network"): 0.096,
    ("mnist", "mixture"): 0.038,
    ("mnist", "mixture, importance"): 0.032,
    ("mnist", "mixture, sample similarity"): 0.029,
    ("mnist", "attentive"): 0.033,
    ("mnist", "attentive, importance"): 0.035,
    ("mnist", "attentive, sample similarity"): 0.032,
    ("mnist", "attentive, importance, distilled"): 0.030,
    ("mnist", "attentive, sample similarity, distilled"): 0.028,
    ("fashion_mnist", "single network"): 0.132,
    ("fashion_mnist", "mixture"): 0.104,
    ("fashion_mnist", "mixture, importance"): 0.103,
    ("fashion_mnist", "mixture, sample similarity"): 0.095,
    ("fashion_mnist", "attentive"): 0.098,
    ("fashion_mnist", "attentive, importance"): 0.098,
    ("fashion_mnist", "attentive, sample similarity"): 0.096,
    ("fashion_mnist", "attentive, importance, distilled"): 0.087,
    ("fashion_mnist", "attentive, sample similarity, distilled"): 0.089,
}
NAMES = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "fashion_mnist_and_mnist": "FashionMNIST and MNIST",
    "cifar100": "CIFAR-100",
}
MEASURES = ["error", "one_expert_error", "information", "sample_entropy", "usage_entropy"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results.csv")
    args = parser.parse_args()
    results = defaultdict(list)
    with args.results.open(newline="") as file:
        for row in csv.DictReader(file):
            sizes = row["data"], row["settings"], row["epochs"], row["n_train"]
            results[sizes, row["model"]].append(row)
    before = None
    for (sizes, model), rows in results.items():
        data, settings, epochs, n_train = sizes
        if sizes != before:
            print(f"\n{NAMES[data]}, {settings} settings, {epochs} epochs, {n_train} images\n")
            print(
                "| model | runs | error | with one expert | I(E;Y) | H_s | H_u "
                "| authors: error / I / H_s / H_u | their best run |"
            )
            print("|---|---:|---|---|---|---|---|---|---|")
            before = sizes
        cells = [model, str(len(rows))]
        for measure in MEASURES:
            values = [float(row[measure]) for row in rows]
            digits = 4 if "error" in measure else 3 if measure == "sample_entropy" else 2
            spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.{digits}f}{spread}")
        authors = AUTHORS.get((data, model), ())
        cells.append(" / ".join(f"{value:g}" for value in authors if value is not None))
        cells.append(str(HEADLINES.get((data, model), "")))
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
