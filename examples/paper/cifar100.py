r"""CIFAR-100 with the paper's networks of hidden size 256: 20 convolutional experts.

    python examples/paper/cifar100.py --device cuda                     # the paper's settings
    python examples/paper/cifar100.py --device cuda --settings ours     # the same, better trained
    python examples/paper/cifar100.py --device cuda --settings ours \
        --models "attentive, importance" --no-students                  # what results.csv has
    python examples/paper/cifar100.py --data FOLDER                     # reads its cifar100_*.npz
    python examples/paper/cifar100.py --samples 1000 --epochs 2 --seeds 0 --results try.csv

On a CPU a full run takes days; the last line is for a look. Unlike the paper's, every convolution
has a batch normalization here, and the augmentation is drawn anew for each image. Results are
appended to results.csv; make_tables.py shows them.
"""

from experiment import load, main, models, standardize

from sklearn_moe import (
    AttentiveGate,
    ConvEncoder,
    ConvExperts,
    FlipCrop,
    MoEClassifier,
    SoftmaxGate,
)

MEAN, STD = (0.5074, 0.4867, 0.4411), (0.2011, 0.1987, 0.2025)


def read(folder):
    X_train, y_train, X_test, y_test = load("cifar100", folder)
    return standardize(X_train, MEAN, STD), y_train, standardize(X_test, MEAN, STD), y_test


def make_models(settings):
    encoder = ConvEncoder((64, 128, 256, 512), normalization="batch")
    network = {"hidden_layer_sizes": (1024, 256), "encoder": encoder}
    base = MoEClassifier(
        n_experts=20,
        experts=ConvExperts((16, 32, 64, 128), (1024, 256), normalization="batch"),
        gate=SoftmaxGate(**network),
        augmentation=FlipCrop(crop=4),
        batch_size=256,
        max_iter=40,
        regularization=None,
        learning_rate=1e-3,
        learning_rate_schedule="constant",
        weight_decay=0.0,
    )
    importance = 0.2
    if settings == "ours":
        importance = 0.5
        base.set_params(
            batch_size=512,
            max_iter=26,
            learning_rate=4e-3,
            learning_rate_schedule="one_cycle",
            weight_decay=0.2,
        )
    attentive = AttentiveGate(**network)
    # 0.07 is the authors' beta_s of 1e-3.
    every = models(base, attentive, importance=importance, sample_similarity=0.07)
    if settings == "paper":
        for name, model in every.items():
            model.set_params(weight_decay=0.0 if "attentive" in name else 1e-3)
    return every


if __name__ == "__main__":
    main(__doc__, "cifar100", read, make_models)
