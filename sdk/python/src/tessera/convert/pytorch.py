"""PyTorch: modules that take tensors and give one."""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.compose

from ..errors import ConversionError
from ..graph import OPSETS, OUTPUT
from ..signature import Signature
from . import Converted


def predict(model: Any) -> Callable[[Any], np.ndarray]:
    """What a module gives for arrays."""
    import torch

    def answer(rows: Any) -> np.ndarray:
        arrays = list(rows.values()) if isinstance(rows, dict) else [rows]
        model.eval()
        with torch.no_grad():
            given = model(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))
        if not isinstance(given, torch.Tensor):
            raise ConversionError(
                f"the module answers with {type(given).__name__}, and a package with one tensor: wrap it in a module that "
                "returns the one to serve"
            )
        return np.asarray(given.numpy())

    return answer


def candidates(model: Any, signature: Signature, example: Any) -> Iterator[Callable[[], Converted]]:
    """The traced module. The first axis of every input is that of the rows; others are free where the signature says so."""
    if signature.columns:
        raise ConversionError(
            "a PyTorch module takes tensors, and the signature has columns: save it with an input example that is an array, "
            "or a dict of arrays in the order of forward's parameters"
        )
    yield lambda: Converted(export(model, signature, example))


def export(model: Any, signature: Signature, example: Any, free_axes: Mapping[int, str] | None = None) -> onnx.ModelProto:
    """Traces a module with an example of its inputs. ``free_axes`` are those of the output beside the rows.

    Raises:
        ConversionError: for what the exporter cannot trace.
    """
    import torch

    names = [tensor.name or "input" for tensor in signature.tensors]
    arrays = list(example.values()) if isinstance(example, dict) else [example]
    free = {
        name: {axis: "rows" if axis == 0 else f"{name}_axis{axis}" for axis, size in enumerate(tensor.shape) if size < 0}
        for name, tensor in zip(names, signature.tensors)
    }
    model.eval()
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        path = Path(scratch) / "model.onnx"
        try:
            torch.onnx.export(
                model,
                tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays),
                str(path),
                input_names=names,
                output_names=[OUTPUT],
                dynamic_axes={**free, OUTPUT: {0: "rows", **(free_axes or {})}},
                opset_version=OPSETS[""],
                # By tracing: the other exporter needs onnxscript and names axes by itself.
                **({"dynamo": False} if _knows_dynamo() else {}),
            )
        except Exception as error:
            raise ConversionError(
                f"torch.onnx cannot export {type(model).__name__} ({type(error).__name__}: {str(error)[:600]}). Left are: "
                "rewrite the part that it names, export the model yourself and package the file, or write a component (see "
                "sdk/rust)"
            ) from error
        # With weights that a large model has beside it.
        return onnx.load(path)


def _knows_dynamo() -> bool:
    import inspect

    import torch

    return "dynamo" in inspect.signature(torch.onnx.export).parameters
