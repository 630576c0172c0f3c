"""Keras and TensorFlow: Keras exports its models itself."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ..errors import ConversionError
from ..signature import Signature
from . import Converted


def predict(model: Any) -> Callable[[Any], np.ndarray]:
    """What a model gives for arrays."""

    def answer(rows: Any) -> np.ndarray:
        given = model(rows)
        if isinstance(given, (list, tuple, dict)):
            raise ConversionError(
                f"the model has {len(given)} outputs, and a package answers with one: make a model of the one to serve"
            )
        return np.asarray(given)

    return answer


def candidates(model: Any, signature: Signature, example: Any) -> Iterator[Callable[[], Converted]]:
    """The exported model."""
    if signature.columns:
        raise ConversionError(
            "a Keras model takes tensors, and the signature has columns: save it with an input example that is an array"
        )
    yield lambda: Converted(_export(model, example))


def _export(model: Any, example: Any) -> onnx.ModelProto:
    if not hasattr(model, "export"):
        raise ConversionError(
            f"{type(model).__name__} has no export to ONNX. Left are: load it as a Keras 3 model, or convert the SavedModel "
            "with tf2onnx and package the .onnx file"
        )
    # Keras exports only what was called before, which a model that was loaded was not.
    model(example)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        try:
            model.export(str(path), format="onnx", verbose=False)
        except Exception as error:
            raise ConversionError(
                f"Keras cannot export the model to ONNX ({type(error).__name__}: {str(error)[:600]}). Left are: install what "
                "it asks for (tensorflow and tf2onnx), or convert the SavedModel and package the .onnx file"
            ) from error
        return onnx.load(path)
