"""How important the columns of a table are for a mixture: ``feature_importances_``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from sklearn_moe.containers import SparseRows
from sklearn_moe.shapes import ShapeFunctions
from sklearn_moe.training.batches import as_tensor, spaced
from sklearn_moe.training.defaults import usual_defaults
from sklearn_moe.training.prediction import threads_for

if TYPE_CHECKING:
    from sklearn_moe.training.net import MoENet

# Samples on which importances are computed, and how many others lend their values to each.
SAMPLES = 500
N_OTHERS = 8


def column_importances(
    net: MoENet, X: NDArray | SparseRows, sample_weight: NDArray[np.float32]
) -> NDArray[np.float64] | None:
    """Return the importance of each column of a table; None for what is no table of numbers.

    Parameters
    ----------
    net : MoENet
        A trained net.
    X : ndarray or SparseRows of shape (n_samples, ...)
        Training samples, as the net reads them.
    sample_weight : ndarray of shape (n_samples,)
        Their weights.

    Returns
    -------
    ndarray of shape (n_features,) or None
        Importances that sum to 1, as ``MoEClassifier.feature_importances_`` defines them; zeros if
        the prediction depends on no column. None for images, and if classifiers that answer
        outside of the net are among the experts.
    """
    module, device = net.module_, net.device
    if len(net.input_shape) != 1 or module.experts.n_given:
        return None
    rows, weight = spaced(torch.from_numpy(sample_weight), SAMPLES)
    n_rows = len(weight)
    rows = torch.arange(n_rows) if isinstance(rows, slice) else rows
    with usual_defaults(device), threads_for(net, n_rows):
        with torch.no_grad():
            batch = as_tensor(X, "cpu").index_select(0, rows)
            encoded = module.table(batch.to(device)).float()
        sources = np.arange(encoded.shape[1]) if net.table is None else net.table.sources_
        sources = torch.from_numpy(sources).to(device)
        slopes, encoded, sources = _slopes(module, encoded, sources)
        squares = torch.zeros(net.input_shape[0], dtype=torch.float64, device=device)
        generator, weight = torch.Generator().manual_seed(0), weight.to(device).double()
        for _ in range(N_OTHERS):
            others = torch.randperm(n_rows, generator=generator, device="cpu").to(device)
            changes = slopes * (encoded[others] - encoded)
            of_columns = torch.zeros(n_rows, len(squares), device=device)
            of_columns.index_add_(1, sources, changes)
            squares += weight @ of_columns.double().square()
    importances = squares.sqrt().nan_to_num().cpu().numpy()
    return importances / (importances.sum() or 1.0)


def _slopes(module, encoded, sources):
    """Return the gradient of the log-odds of each sample's two most probable classes.

    Return also the columns that it belongs to, and their sources: the encoded columns, and the
    values of shape functions. These are too steep to be taken for linear.
    """
    columns, sources = [encoded.requires_grad_(True)], [sources]
    read = module.for_experts(sources[0][None])[0]

    def take(shapes, inputs, values):
        columns.append(values.detach().requires_grad_(True))
        sources.append(read[shapes.position])
        return columns[-1]

    shapes = [part for part in module.experts.modules() if isinstance(part, ShapeFunctions)]
    hooks = [part.register_forward_hook(take) for part in shapes]
    log_proba = module.soft_log_proba(encoded.clone())  # experts may change their input
    for hook in hooks:
        hook.remove()
    best = log_proba.detach().topk(2, dim=1).indices
    log_odds = log_proba.gather(1, best)
    slopes = torch.autograd.grad(
        (log_odds[:, 0] - log_odds[:, 1]).sum(), columns, materialize_grads=True
    )
    return torch.cat(slopes, dim=1), torch.cat(columns, dim=1).detach(), torch.cat(sources)
