"""A gate that learns from clusters, without gradients."""

from __future__ import annotations

import math
import warnings
from numbers import Integral, Real

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor

from sklearn_moe.gates.base import Gate, GateModule, GateOutput, mask_all_but_top_k

# More dimensions are reduced to so many principal components before they are clustered.
MAX_DIMENSIONS = 32


class KMeansGate(Gate):
    r"""A hard gate without gradients: each expert owns a cluster of the samples.

    Before each epoch k-means divides the samples into as many clusters as there are experts. Each
    cluster gets an expert of its own, those with the least sum of median losses, and a linear gate
    learns by least squares to send samples to the expert :math:`\pi(n)` of their cluster:

    .. math:: W = (X^T X + \lambda I)^{-1} X^T Y, \qquad Y_{ne} = [e = \pi(n)], \qquad
              l_n = [x_n, 1] W

    One expert answers for a sample, in training too. No expert is left out, so no penalty on the
    gate is needed, nor has it an effect. It is for data that fall into families; on data of one
    kind each expert only gets less of them.

    Parameters
    ----------
    assignment : {"least_squares", "nearest_centroid"}, default="least_squares"
        How a sample gets to a cluster: by the linear gate of the reference, or to the nearest
        centroid, which is linear, too. Least squares overlook a cluster between two others.
    matching : {"hungarian", "greedy"}, default="hungarian"
        How clusters get experts: with the least sum of losses, or, as in the reference, one after
        the other the best that is left.
    max_iter : int, default=20
        Largest number of iterations of k-means, which goes on from the last centroids.
    ridge : float, default=0.001
        Weight :math:`\lambda`, at least 0.
    max_samples : int, default=20000
        At most so many samples are clustered, evenly spaced.

    Notes
    -----
    In the reference, tasks with learned contexts are clustered, after each step. Here it is the
    standardised samples, or their first 32 principal components. While there are fewer clusters
    than experts, as of fewer distinct samples, all experts learn from all samples.

    References
    ----------
    R. D. Nzoyem, G. Stevens, A. Sahota, D. A. W. Barton, T. Deakin, Towards Foundational Models
    for Dynamical System Reconstruction: Hierarchical Meta-Learning via Mixture of Experts, 2025,
    arXiv 2502.05335.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_moe import MoEClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = MoEClassifier(n_experts=2, gate="kmeans", random_state=0).fit(X, y)
    >>> sorted(set(clf.gate_proba(X).ravel().tolist()))
    [0.0, 1.0]
    """

    _parameter_constraints: dict = {
        "assignment": [StrOptions({"least_squares", "nearest_centroid"})],
        "matching": [StrOptions({"hungarian", "greedy"})],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "ridge": [Interval(Real, 0, None, closed="left")],
        "max_samples": [Interval(Integral, 1, None, closed="left")],
    }

    needs_hidden = False
    top_k = 1

    def __init__(
        self,
        *,
        assignment: str = "least_squares",
        matching: str = "hungarian",
        max_iter: int = 20,
        ridge: float = 1e-3,
        max_samples: int = 20000,
    ):
        self.assignment = assignment
        self.matching = matching
        self.max_iter = max_iter
        self.ridge = ridge
        self.max_samples = max_samples

    def build(
        self,
        input_shape: tuple[int, ...],
        n_experts: int,
        hidden_size: int,
        generator: torch.Generator,
    ) -> GateModule:
        """Return the torch module of this gate."""
        self._validate_params()
        return KMeansGateModule(math.prod(input_shape), n_experts, **self.get_params())


class KMeansGateModule(GateModule):
    """The torch module of a :class:`KMeansGate`."""

    needs_hidden = False

    def __init__(
        self,
        n_features: int,
        n_experts: int,
        *,
        assignment: str,
        matching: str,
        max_iter: int,
        ridge: float,
        max_samples: int,
    ):
        super().__init__(temperature=1.0, top_k=1)
        self.assignment = assignment
        self.matching = matching
        self.max_iter = max_iter
        self.ridge = ridge
        self.max_samples = max_samples
        self.register_buffer("weight", torch.zeros(n_experts, n_features))
        self.register_buffer("bias", torch.zeros(n_experts))
        self.register_buffer("is_fitted", torch.tensor(False))
        self.centroids = None  # of the last refit, standardised

    def keep(self, experts: list[int]) -> None:
        self.weight, self.bias = self.weight[experts], self.bias[experts]
        self.centroids = None

    def score(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        return x.flatten(1) @ self.weight.mT + self.bias

    def route(self, logits: Tensor, generator: torch.Generator | None = None) -> GateOutput:
        routed = mask_all_but_top_k(logits, 1)
        if self.training:  # all alike, until there are clusters
            routed = torch.where(self.is_fitted, routed, logits)
        return GateOutput(logits, routed.log_softmax(dim=1), None)

    def refit(self, x: Tensor, losses: Tensor, sample_weight: Tensor, seed: int) -> None:
        """Learn the gate anew from samples and the losses of all experts on them.

        Parameters
        ----------
        x : Tensor of shape (n_samples, ...)
            What the gate sees.
        losses : Tensor of shape (n_samples, n_experts)
            The loss of each expert on each sample.
        sample_weight : Tensor of shape (n_samples,)
            Weights of the samples.
        seed : int
            Seed of the first centroids.
        """
        x, losses, weight = (
            values.flatten(1).double().cpu().numpy() if values.dim() > 1 else values.cpu().numpy()
            for values in (x, losses, sample_weight)
        )
        n_experts = losses.shape[1]
        mean, scale = x.mean(axis=0), x.std(axis=0)
        scale[scale == 0] = 1
        features = standardised = (x - mean) / scale
        projection = np.eye(x.shape[1])
        if x.shape[1] > MAX_DIMENSIONS and len(x) > MAX_DIMENSIONS:
            projection = PCA(MAX_DIMENSIONS, svd_solver="full").fit(features).components_
            features = features @ projection.T
        cluster = self._clusters(features, projection, weight, n_experts, seed)
        if cluster is None:
            self.centroids = None
            return
        centroids = np.stack([features[cluster == j].mean(axis=0) for j in range(n_experts)])
        self.centroids = np.stack(
            [standardised[cluster == j].mean(axis=0) for j in range(n_experts)]
        )
        cost = np.stack([np.median(losses[cluster == j], axis=0) for j in range(n_experts)])
        expert = match(cost, self.matching)
        if self.assignment == "nearest_centroid":
            linear = np.empty((n_experts, features.shape[1] + 1))
            linear[expert] = np.column_stack([2 * centroids, -np.square(centroids).sum(axis=1)])
        else:
            target = np.eye(n_experts)[expert[cluster]]
            linear = least_squares(features, target, weight, self.ridge)
        gate = linear[:, :-1] @ projection / scale
        self.weight.copy_(torch.as_tensor(gate))
        self.bias.copy_(torch.as_tensor(linear[:, -1] - gate @ mean))
        self.is_fitted.fill_(True)

    def _clusters(self, features, projection, weight, n_experts, seed):
        """Return the cluster of each sample, or None if there are not so many clusters."""
        if len(features) < n_experts:
            return None
        start = {"init": "k-means++", "n_init": 10}
        if self.centroids is not None:
            start = {"init": self.centroids @ projection.T, "n_init": 1}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # of fewer distinct samples
            kmeans = KMeans(n_experts, **start, max_iter=self.max_iter, random_state=seed)
            cluster = kmeans.fit_predict(features, sample_weight=weight)
        return cluster if len(np.unique(cluster)) == n_experts else None


def match(cost: np.ndarray, matching: str) -> np.ndarray:
    """Return an expert for each cluster, by the costs (clusters, experts)."""
    if matching == "hungarian":
        return linear_sum_assignment(cost)[1]
    left, experts = cost.copy(), []
    for row in left:
        experts.append(int(np.argmin(row)))
        left[:, experts[-1]] = np.inf
    return np.array(experts)


def least_squares(
    features: np.ndarray, target: np.ndarray, weight: np.ndarray, ridge: float
) -> np.ndarray:
    """Return the rows [slopes, intercept] of a weighted linear least-squares fit per target."""
    design = np.column_stack([features, np.ones(len(features))])
    weighted = design * weight[:, None]
    gram = weighted.T @ design + ridge * np.eye(design.shape[1])
    return np.linalg.lstsq(gram, weighted.T @ target, rcond=None)[0].T
