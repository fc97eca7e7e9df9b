import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_wine
from torch import nn

from sklearn_moe import (
    ENCODERS,
    ConvEncoder,
    CustomEncoder,
    MoEClassifier,
    SoftmaxGate,
    TableEncoder,
    distill,
)
from sklearn_moe.encoders import output_shape


def backbone(input_shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(input_shape)), 7), nn.Dropout(0.1))


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("input_shape", [(8, 9), (8, 9, 3), (3, 8, 9)])
def test_shapes(name, input_shape, generator):
    module = ENCODERS[name].build(input_shape, generator)
    shape = output_shape(module, input_shape)
    assert module(torch.randn(5, *input_shape)).shape == (5, *shape)


def test_any_backbone(iris):
    X, y = iris
    before = torch.random.get_rng_state()
    one, other = (
        MoEClassifier(
            n_experts=3,
            encoder=backbone,
            gate=SoftmaxGate(encoder=backbone),
            max_iter=40,
            random_state=0,
        ).fit(X, y)
        for _ in range(2)
    )
    assert torch.equal(before, torch.random.get_rng_state())
    assert np.array_equal(one.predict_proba(X), other.predict_proba(X))
    assert one.score(X, y) > 0.9
    assert one.module_.experts.layers[0].weight.shape[2] == 7


def test_encoders_are_trained(iris):
    start, later = (
        MoEClassifier(n_experts=3, encoder=backbone, max_iter=n, random_state=0).fit(*iris)
        for n in (1, 5)
    )
    first, second = start.module_.encoder[1].weight, later.module_.encoder[1].weight
    assert not torch.equal(first, second)


def test_wrong_encoders(iris, generator):
    with pytest.raises(TypeError, match="encoder must be a function"):
        MoEClassifier(encoder=nn.Linear(4, 4)).fit(*iris)
    for params in ({"encoder": ConvEncoder}, {"gate": SoftmaxGate(encoder=ConvEncoder)}):
        with pytest.raises(ValueError, match=r"not a class: write encoder=ConvEncoder\(...\)"):
            MoEClassifier(**params).fit(*iris)
    with pytest.raises(ValueError, match=r"not a class: write encoder=TableEncoder\(...\)"):
        MoEClassifier(encoder=TableEncoder).fit(*iris)
    with pytest.raises(TypeError, match=r"must return a torch.nn.Module, but .* returns 3"):
        CustomEncoder(lambda shape: 3).build((4,), generator)
    with pytest.raises(ValueError, match=r"features of shape \(n_samples, ...\)"):
        output_shape(nn.Flatten(0), (4, 4))
    with pytest.raises(ValueError, match="The 'encoder' parameter of MoEClassifier"):
        MoEClassifier(encoder="resnet").fit(*iris)
    with pytest.raises(ValueError, match="The 'encoder' parameter of SoftmaxGate"):
        MoEClassifier(gate=SoftmaxGate(encoder="resnet")).fit(*iris)
    with pytest.raises(ValueError, match="cannot change encoder"):
        clf = MoEClassifier(encoder=backbone, max_iter=1, warm_start=True).fit(*iris)
        clf.set_params(encoder=None).fit(*iris)


def test_a_table_is_encoded_before_a_backbone(mixed_table):
    X, y = load_wine(return_X_y=True)
    clf = MoEClassifier(3, encoder=backbone, max_iter=20, random_state=0).fit(X, y)
    assert clf.score(X, y) > 0.95
    X, y = mixed_table
    clf = MoEClassifier(3, encoder=backbone, max_iter=5, random_state=0).fit(X, y)
    assert clf.module_.encoder[1].in_features == clf.encoder_.transform(X).shape[1]
    student = distill(clone(clf).set_params(gate="attentive").fit(X, y), X, y, max_iter=2)
    assert np.isfinite(student.predict_proba(X)).all()
