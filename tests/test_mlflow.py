"""A mixture in mlflow's default format, which is that of skops."""

import numpy as np
import pytest
from test_persistence import data, make

from sklearn_moe import TRUSTED_TYPES


@pytest.mark.filterwarnings("ignore")  # of mlflow's own dependencies
def test_round_trip(tmp_path):
    import mlflow.sklearn  # takes seconds

    X, y = data()
    clf, path = make().fit(X, y), tmp_path / "model"
    mlflow.sklearn.save_model(clf, path, skops_trusted_types=TRUSTED_TYPES, pip_requirements=[])
    assert (path / "model.skops").is_file()
    twin = mlflow.sklearn.load_model(path)
    assert np.array_equal(twin.predict_proba(X), clf.predict_proba(X))
