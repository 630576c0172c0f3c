"""Keras and TensorFlow: Keras exports its models itself."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx

from ..errors import ConversionError
from ..signature import Signature
from . import Converted


def candidates(model: Any, signature: Signature) -> Iterator[Callable[[], Converted]]:
    """The exported model."""
    if signature.columns:
        raise ConversionError(
            "a Keras model takes tensors, and the signature has columns: save it with an input example that is an array"
        )
    yield lambda: Converted(_export(model))


def _export(model: Any) -> onnx.ModelProto:
    if not hasattr(model, "export"):
        raise ConversionError(
            f"{type(model).__name__} has no export to ONNX. Left are: load it as a Keras 3 model, or convert the SavedModel "
            "with tf2onnx and package the .onnx file"
        )
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        try:
            model.export(str(path), format="onnx", verbose=False)
        except Exception as error:
            raise ConversionError(
                f"Keras cannot export the model to ONNX ({type(error).__name__}: {str(error)[:600]}). Left are: install what "
                "it asks for (tensorflow and tf2onnx), or convert the SavedModel and package the .onnx file"
            ) from error
        graph = onnx.load(path)
    if len(graph.graph.output) != 1:
        raise ConversionError(
            f"the model has {len(graph.graph.output)} outputs, and a package answers with one: export the one to serve"
        )
    return graph
