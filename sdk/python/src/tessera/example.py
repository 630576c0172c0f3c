"""Rows to ask the model and its copy: those of the example, and synthetic ones where mistakes would hide."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from .convert import Converted
from .errors import TesseraError
from .signature import Signature, Tensor

#: Chosen once; a check that fails must fail again.
_SEED = 20_240_229


def synthetic(signature: Signature, example: Any | None, converted: Converted, count: int) -> Any:
    """Rows in the ranges of the example, half of them at the values where the model changes its mind."""
    random = np.random.default_rng(_SEED)
    if signature.columns:
        return _table(signature, example, converted, count, random)
    if signature.is_matrix():
        return _matrix(signature.tensors[0], example, converted, count, random)
    if len(signature.tensors) == 1 and signature.tensors[0].name is None:
        return _array(signature.tensors[0], example, min(count, 16), random)
    count = min(count, 16)
    arrays = {t.name: _array(t, None if example is None else example[t.name], count, random) for t in signature.tensors}
    return arrays


def texts_of(example: Any) -> list[Any]:
    """The texts of an example, or pairs of them as objects with ``text`` and ``text_pair``.

    Raises:
        TesseraError: when it holds anything else.
    """
    if example is None:
        return []
    if isinstance(example, pd.DataFrame):
        records = example.to_dict("records")
        example = records if "text_pair" in example.columns else [text for row in records for text in row.values()]
    elif isinstance(example, (str, dict)):
        example = [example]
    texts = [str(text) if isinstance(text, np.str_) else text for text in np.ravel(np.array(example, dtype=object))]
    for text in texts:
        parts = list(text.values()) if isinstance(text, dict) and "text" in text and set(text) <= {"text", "text_pair"} else [text]
        if not all(isinstance(part, str) for part in parts):
            raise TesseraError(
                f"the input example holds {text!r}: give texts, or pairs of them as {{'text': ..., 'text_pair': ...}}"
            )
    return texts


def _table(signature: Signature, example: Any, converted: Converted, count: int, random: np.random.Generator) -> pd.DataFrame:
    columns = {}
    for place, column in enumerate(signature.columns):
        values = None if example is None else example[column.name].to_numpy()
        if column.type == "string":
            categories = converted.categories.get(column.name)
            texts = [] if values is None else [value for value in values if isinstance(value, str)]
            texts += [] if categories is None else categories.values
            if categories is not None and categories.allows_unknown:
                texts.append("a text that nobody has seen")
            columns[column.name] = pd.Series(random.choice(np.array(texts or [""], dtype=object), count), dtype=object)
        else:
            drawn = _with_probes(_numbers(values, column.dtype, count, random), converted.probes.get(place), random)
            columns[column.name] = pd.Series(drawn.astype(column.dtype))
    return pd.DataFrame(columns)


def _matrix(tensor: Tensor, example: Any, converted: Converted, count: int, random: np.random.Generator) -> np.ndarray:
    width = tensor.shape[1] if tensor.shape[1] > 0 or example is None else np.asarray(example).shape[1]
    values = None if example is None else np.asarray(example)
    drawn = (_numbers(None if values is None else values[:, j], tensor.dtype, count, random) for j in range(width))
    columns = [_with_probes(column, converted.probes.get(j), random) for j, column in enumerate(drawn)]
    return np.stack(columns, axis=1).astype(tensor.dtype)


def _array(tensor: Tensor, example: Any, count: int, random: np.random.Generator) -> np.ndarray:
    values = None if example is None else np.asarray(example)
    inner = [size if size > 0 else (values.shape[axis + 1] if values is not None else 4) for axis, size in enumerate(tensor.shape[1:])]
    drawn = _numbers(values, tensor.dtype, count * int(np.prod(inner, dtype=int)), random)
    return drawn.reshape([count, *inner]).astype(tensor.dtype)


def _numbers(values: np.ndarray | None, dtype: np.dtype[Any], count: int, random: np.random.Generator) -> np.ndarray:
    """Numbers in the range of ``values`` and half as far beyond it on both sides."""
    if dtype.kind == "b":
        return random.integers(0, 2, count)
    finite = np.array([], dtype=np.float64) if values is None else np.asarray(values, dtype=np.float64).ravel()
    finite = finite[np.isfinite(finite)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (-1.0, 1.0)
    if dtype.kind in "iu":
        # Whole numbers are often ids of something: none beyond those seen.
        return random.integers(int(low), int(high) + 1, count)
    margin = (high - low) / 2 or max(abs(high), 1.0) / 2
    return random.uniform(low - margin, high + margin, count)


def _with_probes(values: np.ndarray, probes: np.ndarray | None, random: np.random.Generator) -> np.ndarray:
    if probes is None or values.dtype.kind != "f":
        return values
    return np.where(random.random(len(values)) < 0.5, random.choice(probes, len(values)), values)
