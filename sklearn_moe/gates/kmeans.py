"""A gate that learns from clusters, without gradients."""

from __future__ import annotations

import math
import warnings
from numbers import Integral, Real

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import StandardScaler
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.extmath import randomized_svd
from torch import Tensor

from sklearn_moe.gates.base import (
    Gate,
    GateFormula,
    GateModule,
    GateOutput,
    mask_all_but_top_k,
)

# Samples of more dimensions are reduced to this many principal components for the clustering.
MAX_DIMENSIONS = 32


class KMeansGate(Gate):
    r"""A hard gate without gradients: each expert owns a cluster of the samples.

    Before each epoch, k-means divides the samples into as many clusters as there are experts. In
    the first epoch, each cluster gets a different expert, such that the sum of the experts' median
    losses is smallest. After that, k-means starts from the means of the experts' samples, and a
    cluster keeps the expert of most of its samples. A linear gate then learns by least squares to
    send samples to the expert :math:`\pi(n)` of their cluster:

    .. math:: W = (X^T X + \lambda I)^{-1} X^T Y, \qquad Y_{ne} = [e = \pi(n)], \qquad
              l_n = [x_n, 1] W

    One expert answers for a sample, also in training. Every expert gets a cluster, so the gate
    needs no penalty, and penalties on the gate have no effect. Use it for data that fall into
    families. On other data, each expert only gets fewer samples.

    Parameters
    ----------
    assignment : {"least_squares", "nearest_centroid"}, default="least_squares"
        How the gate assigns a sample to a cluster: by the least squares of the reference, or to
        the nearest centroid, which is linear, too. Least squares can miss a cluster that lies
        between two others.
    matching : {"hungarian", "greedy"}, default="hungarian"
        How clusters get experts. "hungarian" finds the best sum, of losses or of samples that
        stay. "greedy", as in the reference, gives each cluster in turn the best expert that is
        left.
    max_iter : int, default=20
        Largest number of iterations of k-means in an epoch.
    ridge : float, default=0.001
        Weight :math:`\lambda`, at least 0.
    max_samples : int, default=20000
        Largest number of samples to cluster. If there are more, evenly spaced ones are used.

    Notes
    -----
    The reference clusters the learned contexts of tasks after each step, and gives the clusters to
    the experts by their losses each time. Here the standardised samples are clustered, or their
    first 32 principal components. While there are fewer clusters than experts, for example because
    few samples are distinct, all experts learn from all samples.

    With ``MoEClassifier(encoder=...)``, what the encoder makes of the samples at the beginning of
    each epoch is clustered. The encoder learns from the experts alone, as the gate has no
    gradient. The experts keep their samples when the features move: a shift or another scale of
    the features changes nothing.

    ``partial_fit`` keeps the clusters that it has. Each of them counts as one point with the
    weight of all its samples, and k-means divides these points and the samples of the chunk
    (Guha et al. 2003). It starts from the present centroids and anew, and the division with the
    smaller sum of squares counts. So a chunk that lacks a cluster leaves it alone, a new family
    gets a cluster of its own, for which two others merge for good, and a cluster keeps the expert
    of most of its samples. The first chunk may hold a single family, but there are no clusters
    before a chunk has as many distinct samples as there are experts. Means and scales are those of
    all samples so far; with more than 32 features, they and the components stay those of the first
    chunk that had enough clusters. Earlier samples count as at most ``max_samples``, and with the
    features that they had then. The default encoder of tables keeps the scales of the first chunk:
    if this lacks families, scale the columns yourself and set ``encoder=None``.

    A warm start clusters its samples anew, from the present centroids on, and then gives the
    clusters to the experts. Earlier samples do not count: only the same samples leave the clusters
    in place.

    References
    ----------
    R. D. Nzoyem, G. Stevens, A. Sahota, D. A. W. Barton, T. Deakin, Towards Foundational Models
    for Dynamical System Reconstruction: Hierarchical Meta-Learning via Mixture of Experts, 2025,
    arXiv 2502.05335.

    S. Guha, A. Meyerson, N. Mishra, R. Motwani, L. O'Callaghan, Clustering Data Streams: Theory
    and Practice, IEEE Transactions on Knowledge and Data Engineering 15 (3), 2003.

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
    refits = True
    weight: Tensor
    bias: Tensor
    is_fitted: Tensor
    mean: Tensor
    scale: Tensor
    projection: Tensor
    products: Tensor
    sums: Tensor

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
        # Samples are standardised and projected to fewer dimensions before they are clustered.
        n_dimensions = min(n_features, MAX_DIMENSIONS)
        self.register_buffer("mean", torch.zeros(n_features).double())
        self.register_buffer("scale", torch.ones(n_features).double())
        self.register_buffer("projection", torch.eye(n_dimensions, n_features).double())
        # Sums over the samples so far, with a one as last feature: of products, and by expert.
        self.register_buffer("products", torch.zeros((n_dimensions + 1,) * 2).double())
        self.register_buffer("sums", torch.zeros(n_experts, n_dimensions + 1).double())
        self.is_whole_fit = False
        # While a training lasts: the five buffers above at its start, and the samples' experts.
        self.before: list[Tensor] | None = None
        self.former: np.ndarray | None = None

    @property
    def centroids(self) -> np.ndarray | None:
        """The experts' centroids (E, n_features), or None if there are none yet."""
        if not self.sums.any():
            return None
        mean, scale, projection, sums = (
            each.cpu().numpy() for each in (self.mean, self.scale, self.projection, self.sums)
        )
        return mean + scale * (sums[:, :-1] / sums[:, -1:] @ projection)

    def keep(self, experts: list[int]) -> None:
        self.weight, self.bias = self.weight[experts], self.bias[experts]
        self.sums = torch.zeros_like(self.sums[experts])

    def begin(self) -> None:
        self.is_whole_fit = True

    def remember(self) -> None:
        """Store the sums of earlier trainings, unless this is a whole fit."""
        self.forget()
        if not self.is_whole_fit and self.centroids is not None:
            self.before = [
                each.clone()
                for each in (self.mean, self.scale, self.projection, self.products, self.sums)
            ]
        self.is_whole_fit = False

    def forget(self) -> None:
        self.before = self.former = None

    def score(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        return x.flatten(1) @ self.weight.mT + self.bias

    @property
    def expert_weights(self) -> Tensor:
        return self.weight

    def formula(self) -> GateFormula:
        return GateFormula(self.weight, self.bias)

    def route(self, logits: Tensor, generator: torch.Generator | None = None) -> GateOutput:
        routed = mask_all_but_top_k(logits, 1)
        if self.training:  # without clusters, all experts get all samples
            routed = torch.where(self.is_fitted, routed, logits)
        return GateOutput(logits, routed.log_softmax(dim=1), None)

    def refit(self, x: Tensor, losses: Tensor, sample_weight: Tensor, seed: int) -> None:
        """Learn the gate anew from samples and the losses of all experts on them.

        Parameters
        ----------
        x : Tensor of shape (n_samples, ...)
            Samples, as the gate sees them.
        losses : Tensor of shape (n_samples, n_experts)
            The loss of each expert on each sample.
        sample_weight : Tensor of shape (n_samples,)
            Weights of the samples.
        seed : int
            Seed of the first centroids.
        """
        x, losses, weight = (
            values.flatten(1).double().cpu().numpy()
            if values.dim() > 1
            else values.double().cpu().numpy()
            for values in (x, losses, sample_weight)
        )
        if self.before is None:
            former, basis = self.former, self._basis(x, weight, seed)
            points = reduce(x, *basis)
            products = second_moments(points, weight)
        else:
            former, basis, points, products, weight = self._go_on(x, weight)
        expert = self._cluster(points, weight, losses, former, basis, seed)
        if self.before is None:
            self.former = expert
        if expert is None:
            self.sums.zero_()
            return
        mean, scale, projection = basis
        sums = (one_hot(expert, losses.shape[1]) * weight[:, None]).T @ with_ones(points)
        if self.assignment == "nearest_centroid":
            centroids = sums[:, :-1] / sums[:, -1:]
            linear = np.column_stack([2 * centroids, -np.square(centroids).sum(axis=1)])
        else:
            linear = least_squares(products, sums, self.ridge)
        gate = linear[:, :-1] @ projection / scale
        self.weight.copy_(torch.as_tensor(gate))
        self.bias.copy_(torch.as_tensor(linear[:, -1] - gate @ mean))
        self.mean.copy_(torch.as_tensor(mean))
        self.scale.copy_(torch.as_tensor(scale))
        self.projection.copy_(torch.as_tensor(projection))
        self.products.copy_(torch.as_tensor(products))
        self.sums.copy_(torch.as_tensor(sums))
        self.is_fitted.fill_(True)

    def _basis(self, x, weight, seed):
        """Return the mean, scale and components of samples."""
        # Rounding can make the variance of a constant column negative. It then counts as zero.
        with np.errstate(invalid="ignore"):
            scaler = StandardScaler().fit(x, sample_weight=weight)
        projection = np.eye(*self.projection.shape)
        if x.shape[1] > MAX_DIMENSIONS:
            weighted = scaler.transform(x) * np.sqrt(weight)[:, None]
            # Fixed options, because the automatic ones depend on the number of rows.
            components = randomized_svd(
                weighted, MAX_DIMENSIONS, n_iter=4, transpose=False, random_state=seed
            )[2]
            projection = np.zeros_like(projection)
            projection[: len(components)] = components
        return scaler.mean_, scaler.scale_, projection

    def _go_on(self, x, weight):
        """Add samples to those of earlier trainings, of which each cluster is one point.

        Return each point's expert so far, -1 for the samples; the mean, scale and components of
        all; the points; their second moments; and their weights.
        """
        mean, scale, projection, products, sums = (each.cpu().numpy() for each in self.before)
        # Earlier samples count as at most max_samples.
        share = min(1.0, self.max_samples / sums[:, -1].sum())
        products, sums = share * products, share * sums
        new = reduce(x, mean, scale, projection)
        products = products + second_moments(new, weight)
        points = np.concatenate([sums[:, :-1] / sums[:, -1:], new])
        weight = np.concatenate([sums[:, -1], weight])
        if projection.shape[0] == projection.shape[1]:  # no components: scale by all samples
            shift = products[-1, :-1] / products[-1, -1]
            deviation = products.diagonal()[:-1] / products[-1, -1] - shift**2
            deviation = np.sqrt(deviation.clip(min=0))
            mean = mean + scale * shift
            is_constant = scale * deviation <= 1e-6 * np.abs(mean)  # up to rounding in float32
            factor = np.where(is_constant, 1.0, deviation)
            scale = scale * factor
            points = (points - shift) / factor
            change = np.diag(np.append(1 / factor, 1.0))
            change[:-1, -1] = -shift / factor
            products = change @ products @ change.T
        former = np.append(np.arange(len(sums)), np.full(len(x), -1))
        return former, (mean, scale, projection), points, products, weight

    def _cluster(self, points, weight, losses, former, basis, seed):
        """Return the expert of each point's cluster, or None if there are too few clusters."""
        from sklearn.cluster import KMeans  # here, as it takes long

        n_experts = losses.shape[1]
        if len(points) < n_experts:
            return None
        starts = []
        if former is not None:
            members = one_hot(former, n_experts) * weight[:, None]
            means = members.T @ points / members.sum(axis=0)[:, None]
            starts.append({"init": means, "n_init": 1})
        elif self.centroids is not None:
            starts.append({"init": reduce(self.centroids, *basis), "n_init": 1})
        if not starts or self.before is not None:
            # In a stream, a new family may be far from all centroids.
            starts.append({"init": "k-means++", "n_init": 1 if starts else 10})
        # A tolerance above 0 would be relative to a variance that ignores the weights.
        candidates = [
            KMeans(n_experts, **start, max_iter=self.max_iter, tol=0, random_state=seed)
            for start in starts
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # if few samples are distinct
            for kmeans in candidates:
                kmeans.fit(points, sample_weight=weight)
        cluster = min(candidates, key=lambda kmeans: kmeans.inertia_).labels_
        if not np.bincount(cluster, weight, n_experts).all():
            return None
        if former is None:
            members = [cluster == j for j in range(n_experts)]
            cost = np.stack([weighted_median(losses[rows], weight[rows]) for rows in members])
        else:
            cost = -one_hot(cluster, n_experts).T @ members
        return match(cost, self.matching)[cluster]


def one_hot(index: np.ndarray, n: int) -> np.ndarray:
    """Return indicators (n_samples, n); a row is zero if its index is not among them."""
    return (index[:, None] == np.arange(n)).astype(float)


def with_ones(points: np.ndarray) -> np.ndarray:
    """Return points with a one as last feature."""
    return np.column_stack([points, np.ones(len(points))])


def second_moments(points: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the weighted sum of the products of each point's features; the last is 1."""
    design = with_ones(points)
    return design.T @ (design * weight[:, None])


def reduce(
    x: np.ndarray, mean: np.ndarray, scale: np.ndarray, projection: np.ndarray
) -> np.ndarray:
    """Return the coordinates of samples for the clustering."""
    return (x - mean) / scale @ projection.T


def weighted_median(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the weighted lower median of each column."""
    order = values.argsort(axis=0)
    half = weight.sum() / 2 * (1 - 1e-9)  # whatever the order of the sum
    middle = (weight[order].cumsum(axis=0) >= half).argmax(axis=0)[None]
    return np.take_along_axis(values, np.take_along_axis(order, middle, axis=0), axis=0)[0]


def match(cost: np.ndarray, matching: str) -> np.ndarray:
    """Return an expert for each cluster, from costs of shape (clusters, experts)."""
    if matching == "hungarian":
        return linear_sum_assignment(cost)[1]
    left, experts = cost.copy(), []
    for row in left:
        experts.append(int(np.argmin(row)))
        left[:, experts[-1]] = np.inf
    return np.array(experts)


def least_squares(products: np.ndarray, sums: np.ndarray, ridge: float) -> np.ndarray:
    """Return the rows [slopes, intercept] of a linear least-squares fit per expert.

    Parameters
    ----------
    products : ndarray of shape (d + 1, d + 1)
        Weighted sum of the products of each sample's features; the last feature is 1.
    sums : ndarray of shape (n_experts, d + 1)
        Weighted sum of the features of each expert's samples.
    ridge : float
        Number that is added to the diagonal.
    """
    products = products + ridge * np.eye(len(products))
    return np.linalg.lstsq(products, sums.T, rcond=None)[0].T
