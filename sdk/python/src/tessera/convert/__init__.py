"""From a model of a framework to a graph: one module per framework, each giving what it can, best first."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pandas as pd

#: The code of a text that is no category.
UNKNOWN_CODE = -1


@dataclass(frozen=True)
class Categories:
    """The texts that a column may hold; the graph takes their places."""

    values: tuple[str, ...]
    #: Whether the model takes other texts, too.
    allows_unknown: bool

    def encode(self, column: pd.Series[Any]) -> np.ndarray:
        places = {text: place for place, text in enumerate(self.values)}
        return np.array([places.get(text, UNKNOWN_CODE) for text in column], dtype=np.int64)


@dataclass
class Converted:
    """A graph, and what the server has to do around it."""

    graph: onnx.ModelProto
    #: What the whole numbers of the output stand for.
    labels: list[Any] | None = None
    categories: dict[str, Categories] = field(default_factory=dict)
    #: By feature: values at which the model changes its mind.
    probes: dict[int, np.ndarray] = field(default_factory=dict)

    def feeds(self, rows: Any) -> dict[str, np.ndarray]:
        """The tensors that the server makes of rows."""
        inputs = {value.name: value.type.tensor_type for value in self.graph.graph.input}
        dtypes = {name: onnx.helper.tensor_dtype_to_np_dtype(of.elem_type) for name, of in inputs.items()}
        if len(inputs) == 1 and not self.categories:
            (name,) = inputs
            if isinstance(rows, dict):
                (rows,) = rows.values()
            matrix = rows.to_numpy(dtype=dtypes[name]) if isinstance(rows, pd.DataFrame) else rows
            return {name: np.asarray(matrix).astype(dtypes[name])}
        feeds = {}
        for name, of in inputs.items():
            codes = self.categories.get(name)
            column = np.asarray(rows[name]) if codes is None else codes.encode(rows[name])
            wants_axis = len(of.shape.dim) == 2 and column.ndim == 1
            feeds[name] = column.reshape(-1, 1).astype(dtypes[name]) if wants_axis else column.astype(dtypes[name])
        return feeds

    def answer(self, output: np.ndarray) -> np.ndarray:
        """What the server answers for an output of the graph."""
        if self.labels is None:
            return output
        return np.asarray(np.array(self.labels, dtype=object)[output])
