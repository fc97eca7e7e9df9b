import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from sklearn_moe import (
    AttentiveGate,
    ConvEncoder,
    ConvExperts,
    ExpertSamplesDisplay,
    FlipCrop,
    MLPExperts,
    MoEClassifier,
    SoftmaxGate,
    distill,
)
from sklearn_moe.convolution import ConvStack, multiply_adds
from sklearn_moe.experts import ConvExpertsModule, MLPExpertsModule
from sklearn_moe.images import channels_first

matplotlib.use("agg")
pytestmark = pytest.mark.smoke


@pytest.fixture
def images(digits):
    X, y = digits
    return (X.reshape(-1, 8, 8)[:300] * 255).astype(np.uint8), y[:300]


def make(**params):
    defaults = {"n_experts": 3, "experts": ConvExperts((4,), (8,)), "max_iter": 3}
    return MoEClassifier(**{**defaults, "random_state": 0, **params})


def test_every_layout_gives_the_same_mixture(images):
    X, y = images
    expected = make().fit(X, y).predict_proba(X)
    for alike in (X[..., None], X[:, None]):
        np.testing.assert_allclose(
            make().fit(alike, y).predict_proba(alike), expected, rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("experts", ["conv", "mlp"])
def test_bytes_are_scaled(experts, images):
    X, y = images
    as_bytes = make(experts=experts).fit(X, y)
    scaled = X.astype(np.float32) / np.float32(255)
    as_floats = make(experts=experts).fit(scaled, y)
    np.testing.assert_allclose(
        as_bytes.predict_proba(X), as_floats.predict_proba(scaled), rtol=1e-3, atol=1e-5
    )
    np.testing.assert_allclose(as_bytes.gate_proba(X), as_bytes.gate_proba(scaled), atol=1e-5)


def test_tables_of_bytes_are_not_scaled(digits):
    X, y = (digits[0][:200] * 16).astype(np.uint8), digits[1][:200]
    of_bytes, of_floats = (make(experts="mlp").fit(each, y) for each in (X, X.astype(float)))
    assert np.array_equal(of_bytes.predict_proba(X), of_floats.predict_proba(X))


def test_tables_of_pixels_become_images(images):
    X, y = images
    rows = X.reshape(len(X), -1)
    of_rows, of_images = make(input_shape=(8, 8)).fit(rows, y), make().fit(X, y)
    assert np.array_equal(of_rows.predict_proba(rows), of_images.predict_proba(X))
    assert of_rows.n_features_in_ == 64
    pipeline = make_pipeline(MinMaxScaler(), clone(of_rows)).fit(rows, y)
    assert pipeline.predict(rows).shape == y.shape
    drawn = ExpertSamplesDisplay.from_estimator(pipeline, rows)
    assert drawn.images[0].shape[1:] == (8, 8)
    plt.close("all")
    with pytest.raises(ValueError, match=r"X has 64 features, but input_shape=\(8, 7\) needs 56"):
        make(input_shape=(8, 7)).fit(rows, y)
    with pytest.raises(ValueError, match="The 'input_shape' parameter of MoEClassifier"):
        make(input_shape="8x8").fit(rows, y)


def test_automatic_experts(images):
    X, y = images
    rows = X.reshape(len(X), -1)
    assert type(make(experts="auto").fit(X, y).module_.experts) is ConvExpertsModule
    assert type(make(experts="auto").fit(rows, y).module_.experts) is MLPExpertsModule
    encoded = make(experts="auto", encoder="conv").fit(X, y)
    assert type(encoded.module_.experts) is MLPExpertsModule


def test_convolutions_learn_digits(digits):
    X, y = digits[0].reshape(-1, 8, 8), digits[1]
    gate = AttentiveGate((32,), encoder=ConvEncoder((8,)))
    for change in ({"gate": gate}, {"encoder": "conv"}):
        params = {"experts": "auto", "regularization": "importance", "max_iter": 15, **change}
        clf = make(**params).fit(X[:700], y[:700])
        assert clf.score(X[700:], y[700:]) > 0.9


@pytest.mark.parametrize("encoder", [None, ConvEncoder((4,), normalization="batch")])
def test_students_keep_encoders(encoder, images):
    X, y = images
    gate = AttentiveGate((8,), encoder="conv" if encoder is None else None)
    experts = ConvExperts((4,), (8,)) if encoder is None else "auto"
    teacher = make(gate=gate, encoder=encoder, experts=experts, max_iter=10).fit(X, y)
    student = distill(teacher, X, y)
    for name, tensor in teacher.module_.state_dict().items():
        if name.startswith(("experts", "encoder")):
            assert torch.equal(tensor, student.module_.state_dict()[name])
    assert student.gate.encoder == gate.encoder
    assert np.mean(student.predict(X) == teacher.predict(X)) > 0.8
    np.testing.assert_allclose(
        student.expert_proba(X, chosen_only=True), student.predict_proba(X), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("target", ["labels", "teacher"])
def test_student_learns_from_changed_images(target, images):
    X, y = images
    seen = []

    def spy(x, generator):
        seen.append(len(x))
        return x

    params = {
        "encoder": ConvEncoder((2,), normalization="batch"),
        "experts": MLPExperts((8,), dropout=0.5),
        "gate": AttentiveGate(),
        "max_iter": 6,
    }
    teacher = make(augmentation=spy, **params).fit(X, y)
    n_seen = len(seen)
    student = distill(teacher, X, y, target=target)
    assert sum(seen[n_seen:]) == student.max_iter * len(X)
    for name, tensor in teacher.module_.state_dict().items():
        if name.startswith(("experts", "encoder")):
            assert torch.equal(tensor, student.module_.state_dict()[name])
    # As the spy changes nothing, the student is that of a teacher without augmentation.
    teacher.net_.augmentation = None
    other = distill(teacher, X, y, target=target)
    np.testing.assert_allclose(other.predict_proba(X), student.predict_proba(X), atol=1e-4)
    assert np.mean(student.predict(X) == teacher.predict(X)) > 0.8


def test_predictions_do_not_depend_on_the_batch(images):
    X, y = images
    clf = make(gate=SoftmaxGate(encoder="conv"), encoder=None).fit(X, y)
    whole = clf.predict_proba(X)
    np.testing.assert_allclose(clf.predict_proba(X[37:91]), whole[37:91], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(clf.predict_proba(X[:1]), whole[:1], rtol=1e-5, atol=1e-7)


def test_a_search_reaches_the_parameters(images):
    X, y = images
    clf = make(gate=SoftmaxGate(encoder=ConvEncoder((2,))), augmentation=FlipCrop(flip=False))
    grid = {"experts__channels": [(2,), (2, 4)], "gate__encoder__padding": ["same", "valid"]}
    search = GridSearchCV(clf, {**grid, "augmentation__crop": [1]}, cv=2).fit(X, y)
    assert len(search.cv_results_["params"]) == 4
    with pytest.raises(ValueError, match=r"Pass one object .*ConvEncoder"):
        make(encoder="conv").set_params(encoder__channels=(3,))


@pytest.mark.parametrize("shape", [(10, 9), (10, 9, 3), (3, 10, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_flip_crop_moves_whole_images(shape, dtype, generator):
    x = torch.arange(20 * np.prod(shape)).reshape(20, *shape).remainder(251).to(dtype)
    changed = FlipCrop(crop=2)(x, generator)
    assert changed.shape == x.shape and changed.dtype == dtype
    seen = set()
    for before, after in zip(channels_first(x), channels_first(changed), strict=True):
        padded = torch.nn.functional.pad(before.float()[None], (2, 2, 2, 2), mode="reflect")[0]
        height, width = before.shape[1:]
        candidates = {
            (down, right, flipped): (crop.flip(2) if flipped else crop)
            for down in range(5)
            for right in range(5)
            for crop in [padded[:, down : down + height, right : right + width]]
            for flipped in (False, True)
        }
        found = [key for key, crop in candidates.items() if torch.equal(crop, after.float())]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) > 10 and {flipped for *_, flipped in seen} == {False, True}


def test_flip_crop_can_do_nothing(generator):
    x = torch.randn(5, 6, 6, generator=generator)
    assert torch.equal(FlipCrop(flip=False, crop=0)(x, generator), x)
    with pytest.raises(ValueError, match=r"FlipCrop\(crop=6\) must be smaller than the images"):
        FlipCrop(crop=6)(x, generator)


def test_augmentation_acts_in_training_only_and_is_reproducible(images):
    X, y = images
    seen = []

    def spy(mixture, x, y, sample_weight):
        seen.append(x.clone())
        return x.new_zeros(())

    params = {"augmentation": FlipCrop(crop=1), "regularization": spy, "batch_size": 300}
    one, other = make(**params).fit(X, y), make(**params).fit(X, y)
    assert torch.equal(seen[0], seen[3]) and not torch.equal(seen[0], seen[1])
    assert np.array_equal(one.predict_proba(X), other.predict_proba(X))
    assert np.array_equal(one.predict_proba(X), one.predict_proba(X))
    custom = make(augmentation=lambda x, generator: x * 0).fit(X, y)
    assert len(np.unique(custom.predict(X))) >= 1
    with pytest.raises(ValueError, match="The 'crop' parameter of FlipCrop"):
        make(augmentation=FlipCrop(crop=-1)).fit(X, y)


def test_memory_maps_of_bytes_are_not_copied(images, tmp_path):
    X, y = images
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    clf = make().fit(mapped, y)
    assert np.shares_memory(clf.reader_.read(mapped, clf), mapped)
    assert np.array_equal(clf.predict_proba(mapped), make().fit(X, y).predict_proba(X))


def test_regularizations_see_what_gate_and_experts_see(images):
    X, y = images
    shapes = set()

    def spy(mixture, x, y, sample_weight):
        shapes.add(tuple(x.shape[1:]))
        return x.new_zeros(())

    make(experts="auto", encoder=ConvEncoder((2,)), regularization=spy).fit(X, y)
    assert shapes == {(2 * 4 * 4,)}


def test_threads_count_the_work_of_convolutions(images):
    clf = make(experts=ConvExperts((4,), ())).fit(*images)
    body = clf.module_.experts.body
    assert isinstance(body, ConvStack)
    assert multiply_adds(clf.module_.experts) > 3 * 8 * 8 * 9 * 4


def test_convolutions_need_images(digits):
    with pytest.raises(ValueError, match=r"Convolutions need images .*Pass input_shape"):
        make().fit(*digits)
