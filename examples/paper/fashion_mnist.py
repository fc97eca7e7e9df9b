"""FashionMNIST with the paper's networks: 5 convolutional experts, 20 epochs.

    python examples/paper/fashion_mnist.py                     # the paper's settings
    python examples/paper/fashion_mnist.py --settings ours     # the same experts, better trained
    python examples/paper/fashion_mnist.py --data FOLDER       # reads FOLDER/fashion_mnist.npz
    python examples/paper/fashion_mnist.py --samples 3000 --epochs 5 --seeds 0 --results try.csv

Results are appended to results.csv; make_tables.py shows them.
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


def read(folder):
    X_train, y_train, X_test, y_test = load("fashion_mnist", folder)
    return standardize(X_train, 0.2859, 0.353), y_train, standardize(X_test, 0.2859, 0.353), y_test


def make_models(settings):
    encoder = {"channels": (8,), "padding": "valid", "normalization": "batch"}
    network = {"hidden_layer_sizes": (512, 32), "encoder": ConvEncoder(**encoder)}
    if settings == "ours":  # a better gate, with a sixth of the parameters
        encoder["channels"] = (16, 32)
        network = {"hidden_layer_sizes": (128, 32), "encoder": ConvEncoder(**encoder)}
    base = MoEClassifier(
        n_experts=5,
        experts=ConvExperts((1,), hidden_layer_sizes=(64, 32), padding="valid"),
        gate=SoftmaxGate(**network),
        batch_size=512,
        max_iter=20,
        regularization=None,
        learning_rate=1e-3,
        learning_rate_schedule="constant",
        weight_decay=0.0,
    )
    importance = 0.6  # the best of the authors'
    if settings == "ours":
        importance = 1.0
        base.set_params(
            batch_size=256,
            learning_rate=5e-3,
            learning_rate_schedule="one_cycle",
            weight_decay=0.01,
            augmentation=FlipCrop(crop=1),
        )
    # 0.34 is the authors' beta_s of 1e-6.
    return models(base, AttentiveGate(**network), importance, sample_similarity=0.34)


if __name__ == "__main__":
    main(__doc__, "fashion_mnist", read, make_models)
