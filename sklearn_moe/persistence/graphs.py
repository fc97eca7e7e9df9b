"""A fitted mixture as a graph that other runtimes run: ONNX, and torch's exported programs."""

from __future__ import annotations

import io
import json
import warnings
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from sklearn_moe.mixture import MixtureOfExperts
from sklearn_moe.training.defaults import usual_defaults

if TYPE_CHECKING:
    from sklearn_moe.estimator import MoEClassifier

OUTPUTS = ("proba", "gate_proba", "expert")

# Where a file has the description of the mixture.
METADATA_KEY = "sklearn_moe"
METADATA_FILE = "sklearn_moe.json"

# Protocol buffers, of which an ONNX file is made, are smaller than this.
LARGEST_ONNX = 2**31

# Rows of the batch that is traced. A single row, or none, would be taken for a constant.
ROWS_TO_TRACE = 3


class ExportableMixture(nn.Module):
    """All that a prediction gives, in one forward pass that is the same for any number of rows.

    Which experts a gate chooses depends on the data, which a graph cannot. So all experts run, and
    those that are not chosen count with a probability of zero.

    Parameters
    ----------
    mixture : MixtureOfExperts
        The mixture in evaluation mode.
    temperature : float
        Temperature of the probabilities of the classes.
    """

    def __init__(self, mixture: MixtureOfExperts, temperature: float):
        super().__init__()
        self.mixture = mixture
        self.temperature = temperature

    def forward(self, x: Tensor, codes: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return probabilities of the classes and of the experts, and the chosen expert.

        ``codes`` are the columns of categories that follow the columns of numbers ``x``.
        """
        if codes is not None:
            x = torch.cat([x, codes.to(x.dtype)], dim=1)
        output = self.mixture(x)
        proba = (output.log_proba / self.temperature).softmax(dim=1)
        return proba, output.gate_proba, output.gate_proba.argmax(dim=1)


def describe(clf: MoEClassifier) -> dict[str, Any]:
    """Return what a user of an exported file must know, for JSON."""
    import sklearn_moe

    return {
        "sklearn_moe": sklearn_moe.__version__,
        "classes": clf.classes_.tolist(),
        "experts": clf.expert_names_ or list(range(len(clf.expert_costs_))),
        "inputs": _describe_inputs(clf),
        "outputs": list(OUTPUTS),
    }


def _describe_inputs(clf):
    """Describe the inputs of a graph, in their order."""
    shape, table = clf.net_.input_shape, clf.encoder_
    if len(shape) > 1:
        scale = None if clf.reader_.scale is None else [0, 1]
        return [{"name": "images", "dtype": "float32", "shape": list(shape), "range": scale}]
    names = column_names(clf)
    if table is None:
        return [{"name": "numbers", "dtype": "float32", "columns": names}]
    inputs = []
    if not table.is_categorical_.all():
        numbers = [names[i] for i in np.flatnonzero(~table.is_categorical_)]
        inputs.append({"name": "numbers", "dtype": "float64", "columns": numbers})
    if table.is_categorical_.any():
        inputs.append({"name": "codes", "dtype": "int64", "columns": category_columns(clf)})
    return inputs


def column_names(clf: MoEClassifier) -> list[str | int]:
    """Return the names of the columns of a table, or their positions if they have none."""
    names = getattr(clf, "feature_names_in_", np.arange(clf.n_features_in_))
    return names.tolist()


def category_columns(clf: MoEClassifier) -> list[dict[str, Any]]:
    """Return the names of the columns of categories, and how each codes its categories.

    The code of a category is its position; a missing value is the category None, if there is one.
    Anything else has the code ``unknown``.
    """
    table, names = clf.encoder_, column_names(clf)
    return [
        {
            "name": names[position],
            "categories": categories,
            "unknown": len(categories) if has_infrequent else -1,
        }
        for position, categories, has_infrequent in zip(
            np.flatnonzero(table.is_categorical_),
            table.categories_,
            table.has_infrequent_,
            strict=True,
        )
    ]


def to_torch(clf: MoEClassifier) -> bytes:
    """Return the content of a file for ``torch.export.load``."""
    about = describe(clf)
    buffer = io.BytesIO()
    extra = {METADATA_FILE: json.dumps(about, default=str)}
    torch.export.save(_traced(clf, about["inputs"]), buffer, extra_files=extra)
    return buffer.getvalue()


def to_onnx(clf: MoEClassifier) -> bytes:
    """Return the content of an ONNX file.

    Raises
    ------
    ImportError
        If onnx or onnxscript is not installed.
    ValueError
        If the mixture is too large for one file, or cannot be converted.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "format='onnx' needs onnx and onnxscript, which are not installed: "
            f'pip install "sklearn-moe[export]" ({error}).'
        ) from error
    n_bytes = sum(each.nbytes for each in clf.module_.state_dict().values())
    if n_bytes >= LARGEST_ONNX:
        raise ValueError(
            f"The weights take {n_bytes} bytes, and an ONNX file must have less than "
            f"{LARGEST_ONNX}. Export with format='torch'."
        )
    about = describe(clf)
    traced = _traced(clf, about["inputs"])
    with _explaining("ONNX", " Or pass format='torch'."), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about names, and about torch itself
        program: Any = torch.onnx.export(
            traced,
            dynamo=True,
            verbose=False,
            input_names=[each["name"] for each in about["inputs"]],
            output_names=list(OUTPUTS),
            dynamic_shapes=_axes(about["inputs"], "rows"),  # names the axis
        )
    program.model.metadata_props[METADATA_KEY] = json.dumps(about, default=str)
    return program.model_proto.SerializeToString()


def _traced(clf, inputs):
    """Return the exported program of a mixture, for any number of rows."""
    module = ExportableMixture(deepcopy(clf.module_.best).cpu().eval(), clf.temperature_)
    module.requires_grad_(False)
    for tensor in (*module.parameters(), *module.buffers()):  # a file takes no views of others
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    examples = tuple(
        torch.zeros(
            ROWS_TO_TRACE,
            *each.get("shape", [len(each.get("columns", ()))]),
            dtype=getattr(torch, each["dtype"]),
        )
        for each in inputs
    )
    axes = _axes(inputs, torch.export.Dim("rows"))
    with _explaining("a graph"), torch.no_grad(), usual_defaults():
        return torch.export.export(module, examples, dynamic_shapes=axes, strict=False)


@contextmanager
def _explaining(what, advice=""):
    """Say what an error of torch means."""
    try:
        yield
    except Exception as error:
        why = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"torch {torch.__version__} cannot make {what} of this mixture. Modules of yours must "
            f"not depend on the values or the number of the rows.{advice} {type(error).__name__}: "
            f"{why}"
        ) from error


def _axes(inputs, rows):
    """Return the axes of any length, by the arguments of ``forward``."""
    return {argument: {0: rows} for argument in ("x", "codes")[: len(inputs)]}
