"""MNIST with the paper's networks: 5 small convolutional experts, 20 epochs.

    python examples/paper/mnist.py                     # the paper's settings, seeds 0 to 4
    python examples/paper/mnist.py --settings ours     # the same networks, better trained
    python examples/paper/mnist.py --data FOLDER       # reads FOLDER/mnist.npz
    python examples/paper/mnist.py --samples 3000 --epochs 5 --seeds 0 --results try.csv

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

CONVOLUTION = {"channels": (1,), "padding": "valid"}


def read(folder):
    X_train, y_train, X_test, y_test = load("mnist", folder)
    return (
        standardize(X_train, 0.1307, 0.3081),
        y_train,
        standardize(X_test, 0.1307, 0.3081),
        y_test,
    )


def make_models(settings):
    network = {"hidden_layer_sizes": (128, 32), "encoder": ConvEncoder(**CONVOLUTION)}
    base = MoEClassifier(
        n_experts=5,
        experts=ConvExperts(hidden_layer_sizes=(5, 32), **CONVOLUTION),
        gate=SoftmaxGate(**network),
        batch_size=512,
        max_iter=20,
        regularization=None,
        learning_rate=1e-3,
        learning_rate_schedule="constant",
        weight_decay=0.0,
    )
    if settings == "ours":
        base.set_params(
            batch_size=256,
            learning_rate=1e-2,
            learning_rate_schedule="one_cycle",
            augmentation=FlipCrop(flip=False, crop=1),
        )
    # 0.8 is the best of the authors' importances; 0.35 is their beta_s of 1e-6.
    return models(base, AttentiveGate(**network), importance=0.8, sample_similarity=0.35)


if __name__ == "__main__":
    main(__doc__, "mnist", read, make_models)
