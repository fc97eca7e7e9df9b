import pytest

from sklearn_moe import MoEClassifier
from sklearn_moe.parameters import settings_of
from sklearn_moe.recipes import (
    RECIPES,
    automatic_batch_size,
    automatic_epochs,
    automatic_weight_decay,
)


def decay(n_samples, *, n_classes=2, batch_size=None, epochs=40):
    return automatic_weight_decay(
        RECIPES["table"],
        n_classes=n_classes,
        n_samples=n_samples,
        batch_size=batch_size or automatic_batch_size(RECIPES["table"], n_samples),
        epochs=epochs,
    )


@pytest.mark.parametrize("n_classes, expected", [(2, 2.0), (3, 0.7)])
def test_weight_decay_is_the_chosen_one_where_it_was_chosen(n_classes, expected):
    for n_samples in (10, 300, 1000, 2500, 4000):
        for epochs in (1, 40, 120):
            assert decay(n_samples, n_classes=n_classes, epochs=epochs) == expected


@pytest.mark.parametrize("batch_size", [1, 30, 256, 2048, -1])
@pytest.mark.parametrize("epochs", [1, 40, 1000])
@pytest.mark.parametrize("n_classes", [2, 10])
def test_weight_decay_does_not_grow_with_the_steps(n_classes, epochs, batch_size):
    chosen = decay(4000, n_classes=n_classes)
    before = chosen
    for n_samples in (100, 4000, 15_000, 500_000):
        each = decay(n_samples, n_classes=n_classes, batch_size=batch_size, epochs=epochs)
        n_steps = 1 if batch_size == -1 else -(-n_samples // batch_size)
        assert 0 < each <= before
        assert n_steps * each <= 16 * chosen * (1 + 1e-9)
        # What only decays does not get near 1e-38: half the peak of the rate is its mean.
        assert 0.5 * 0.03 * n_steps * epochs * each < 60
        before = each


@pytest.mark.parametrize("batch_size", [1, 256, -1])
@pytest.mark.parametrize("n_samples", [1, 4000, 500_000])
def test_a_chunk_of_a_stream_has_a_40th_of_the_weight_decay(n_samples, batch_size):
    for n_classes, expected in ((2, 2 / 40), (3, 0.7 / 40)):
        sizes = {"n_classes": n_classes, "batch_size": batch_size}
        assert decay(n_samples, epochs=None, **sizes) == expected


def test_other_networks_have_no_weight_decay():
    sizes = {"n_classes": 2, "n_samples": 10**6, "batch_size": 256, "epochs": 40}
    for epochs in (40, None):
        assert automatic_weight_decay(RECIPES["other"], **{**sizes, "epochs": epochs}) == 0.0


def test_large_tables_have_fewer_epochs():
    for name in ("table", "attentive"):
        seen = [automatic_epochs(RECIPES[name], n) for n in (1, 4000, 15_000, 50_000, 3e5, 10**6)]
        assert seen == [40, 40, 22, 12, 5, 3]
    assert automatic_epochs(RECIPES["other"], 10**6) == automatic_epochs(RECIPES["linear"], 10**6)


def test_epochs_of_a_fit():
    few, many = ({"is_flat": True, "n_classes": 2, "n_samples": n} for n in (100, 10**6))
    for params, shape, expected in (
        ({}, few, 40),
        ({}, many, 3),
        ({"max_iter": 7}, many, 7),
        ({"net_params": {"max_epochs": 3}}, many, 3),
        ({"experts": "linear"}, many, 40),
        ({}, {**many, "is_flat": False}, 40),
    ):
        assert settings_of(MoEClassifier(**params), **shape)["max_epochs"] == expected


def test_batches():
    sizes = [automatic_batch_size(RECIPES["table"], n) for n in (1, 1000, 10_000, 10**5, 10**6)]
    assert sizes == [32, 100, 256, 256, 512]
