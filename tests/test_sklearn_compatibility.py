"""scikit-learn's own checks, over every gate, experts and regularization."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from sklearn_moe import EXPERTS, GATES, REGULARIZERS, MoEClassifier

pytestmark = [
    # One of the checks fits a single sample, others ten: few samples may go to one expert.
    pytest.mark.filterwarnings("ignore:The gate has collapsed"),
]


def _configurations():  # the default is among the gates
    yield MoEClassifier(max_iter=12, batch_size=16)
    yield MoEClassifier(max_iter=12, mixing="logit")
    for gate in GATES:
        yield MoEClassifier(max_iter=12, gate=gate)
    for experts in sorted(set(EXPERTS) - {"conv"}):  # the checks have tables alone
        yield MoEClassifier(max_iter=12, experts=experts)
    for regularization in REGULARIZERS:
        gate = "noisy_top_k" if regularization == "load" else "softmax"
        yield MoEClassifier(max_iter=12, gate=gate, regularization=regularization)


def _expected_failures(estimator):
    reason = (
        "The check compares weights with repeated rows, which shuffle into other batches, to 1e-7 "
        "after a training in float32. test_estimator.py compares full batches to 1e-5, and zero "
        "weights with removed rows exactly."
    )
    return {
        "check_sample_weight_equivalence_on_dense_data": reason,
        "check_sample_weight_equivalence_on_sparse_data": reason,
    }


@parametrize_with_checks(list(_configurations()), expected_failed_checks=_expected_failures)
def test_estimator_checks(estimator, check):
    check(estimator)
