"""What a model takes: MLflow's signatures, and those that examples and fitted models imply."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from .errors import TesseraError

_COLUMN_TYPES = {"b": "boolean", "f": "double", "i": "long", "u": "long"}
_DTYPES = {
    "boolean": np.dtype(bool),
    "integer": np.dtype(np.int32),
    "long": np.dtype(np.int64),
    "float": np.dtype(np.float32),
    "double": np.dtype(np.float64),
    "string": np.dtype(object),
}


@dataclass(frozen=True)
class Column:
    """A column of a table, with MLflow's name for its type."""

    name: str
    type: str

    @property
    def dtype(self) -> np.dtype[Any]:
        return _DTYPES[self.type]


@dataclass(frozen=True)
class Tensor:
    """An array; ``-1`` is an axis of any length."""

    name: str | None
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """The inputs of a model: columns of a table, or arrays."""

    columns: tuple[Column, ...] = ()
    tensors: tuple[Tensor, ...] = ()
    #: The JSON that MLflow writes for the parameters of a model.
    params: str | None = None

    @classmethod
    def parse(cls, inputs: str, params: str | None = None) -> Signature:
        """Reads the JSON that MLflow writes.

        Raises:
            TesseraError: for types that no graph takes, such as dates and objects.
        """
        specs = json.loads(inputs)
        if any(spec["type"] == "tensor" for spec in specs):
            tensors = (
                Tensor(spec.get("name"), np.dtype(of["dtype"]), tuple(of["shape"]))
                for spec in specs
                for of in [spec["tensor-spec"]]
            )
            return cls(tensors=tuple(tensors), params=params)
        for spec in specs:
            if spec["type"] not in _DTYPES:
                raise TesseraError(
                    f"column '{spec.get('name')}' has the type '{spec['type']}', which no graph takes: make numbers or "
                    f"text of it before the model ({', '.join(_DTYPES)})"
                )
        return cls(columns=tuple(Column(spec.get("name") or str(i), spec["type"]) for i, spec in enumerate(specs)), params=params)

    @classmethod
    def of(cls, signature: Any) -> Signature:
        """From one of ours, MLflow's, or the JSON that it writes."""
        if isinstance(signature, cls):
            return signature
        if isinstance(signature, str):
            return cls.parse(signature)
        params = getattr(signature, "params", None)
        return cls.parse(json.dumps(signature.inputs.to_dict()), None if params is None else json.dumps(params.to_dict()))

    @classmethod
    def of_example(cls, example: Any) -> Signature:
        """What an example implies: the same as MLflow's ``infer_signature``."""
        if isinstance(example, pd.DataFrame):
            return cls(columns=tuple(Column(str(name), _column_type(example[name])) for name in example.columns))
        if isinstance(example, dict):
            return cls(tensors=tuple(_tensor(name, np.asarray(value)) for name, value in example.items()))
        return cls(tensors=(_tensor(None, np.asarray(example)),))

    @classmethod
    def of_features(cls, names: list[str] | None, count: int) -> Signature:
        """A table of numbers, or a matrix if the columns have no names."""
        if names is not None:
            return cls(columns=tuple(Column(name, "double") for name in names))
        return cls(tensors=(Tensor(None, np.dtype(np.float64), (-1, count)),))

    def inputs_json(self) -> str:
        """As MLflow writes it."""
        if self.columns:
            return json.dumps([{"type": c.type, "name": c.name, "required": True} for c in self.columns])
        specs = []
        for tensor in self.tensors:
            spec = {"type": "tensor", "tensor-spec": {"dtype": tensor.dtype.name, "shape": list(tensor.shape)}}
            specs.append(spec if tensor.name is None else {**spec, "name": tensor.name})
        return json.dumps(specs)

    def is_matrix(self) -> bool:
        """Rows of numbers without names."""
        return len(self.tensors) == 1 and len(self.tensors[0].shape) == 2

    def conform(self, example: Any) -> Any:
        """An example in the types of the signature, as the model gets what a client sends.

        Raises:
            TesseraError: when a column is missing or has values of another type.
        """
        if self.columns:
            return self._table(example)
        if isinstance(example, dict):
            return {t.name: np.asarray(example[t.name]).astype(t.dtype) for t in self.tensors if t.name in example}
        if isinstance(example, pd.DataFrame) and not self.is_matrix():
            return {t.name: np.stack(example[t.name].to_list()).astype(t.dtype) for t in self.tensors}
        array = np.asarray(example, dtype=self.tensors[0].dtype)
        return array if array.ndim == len(self.tensors[0].shape) else array.reshape((1, *array.shape))

    def _table(self, example: Any) -> pd.DataFrame:
        names = [column.name for column in self.columns]
        if not isinstance(example, pd.DataFrame):
            example = pd.DataFrame(example) if isinstance(example, dict) else pd.DataFrame(example, columns=names)
        example = example.rename(columns=str)
        missing = [name for name in names if name not in example.columns]
        if missing:
            raise TesseraError(f"the input example lacks the columns {missing} of the signature")
        table = {}
        for column in self.columns:
            values = example[column.name]
            try:
                table[column.name] = values.astype(object if column.type == "string" else column.dtype).reset_index(drop=True)
            except (TypeError, ValueError) as error:
                raise TesseraError(f"column '{column.name}' of the input example is not of type {column.type}: {error}") from error
        return pd.DataFrame(table)


def _column_type(column: pd.Series[Any]) -> str:
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in _COLUMN_TYPES:
        return {"float32": "float", "int32": "integer", "int16": "integer", "int8": "integer"}.get(
            column.dtype.name, _COLUMN_TYPES[column.dtype.kind]
        )
    return "string"


def _tensor(name: str | None, array: np.ndarray) -> Tensor:
    return Tensor(name, array.dtype, (-1, *array.shape[1:]))
