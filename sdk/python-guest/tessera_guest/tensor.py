"""Tensors: dimensions, element type and bytes, checked against each other when they are made."""

import array
import math
import struct
from collections.abc import Iterable, Sequence

from .errors import InvalidInput, ModelError

# By the names of wasi:nn: bytes of one element, and the type code of `array` or `struct`; bf16 has none.
_TYPES = {
    "fp16": (2, "e"),
    "fp32": (4, "f"),
    "fp64": (8, "d"),
    "bf16": (2, None),
    "u8": (1, "B"),
    "i32": (4, "i"),
    "i64": (8, "q"),
}


class Tensor:
    """A dense tensor in row-major order and little-endian bytes.

    `values` is a flat sequence of numbers, or bytes that are taken as they are. The element type is one of fp16, fp32,
    fp64, bf16 (bytes only), u8, i32 and i64; the model's `bool` and `int8` travel as u8.
    """

    __slots__ = ("data", "dims", "dtype")

    def __init__(self, dims: Sequence[int], values: Iterable[float] | bytes, dtype: str = "fp32"):
        size, code = _type(dtype)
        data = bytes(values) if isinstance(values, bytes | bytearray | memoryview) else _pack(values, dtype, code)
        wanted = math.prod(dims)
        if wanted * size != len(data):
            raise InvalidInput(
                f"a tensor of shape {list(dims)} needs {wanted} values, but {len(data) // size} values "
                f"({len(data)} bytes of {dtype}) were given"
            )
        self.dims = list(dims)
        self.dtype = dtype
        self.data = data

    @classmethod
    def of_rows(cls, rows: Sequence[Sequence[float]], dtype: str = "fp32") -> "Tensor":
        """A matrix of rows that are equally long."""
        width = len(rows[0]) if rows else 0
        for index, row in enumerate(rows):
            if len(row) != width:
                raise InvalidInput(f"row {index} has {len(row)} values, row 0 has {width}")
        return cls([len(rows), width], [value for row in rows for value in row], dtype)

    def values(self) -> list:
        """The elements, in row-major order."""
        _, code = _type(self.dtype)
        if code is None:
            raise ModelError(f"Python has no numbers of type {self.dtype}: use the bytes in `data`")
        if code == "e":
            return list(struct.unpack(f"<{len(self.data) // 2}e", self.data))
        return array.array(code, self.data).tolist()

    def rows(self) -> list[list]:
        """The elements of a matrix, row by row."""
        if len(self.dims) != 2:
            raise ModelError(f"a tensor of shape {self.dims} has no rows of numbers; use `values`")
        values, width = self.values(), self.dims[1]
        return [values[row * width : (row + 1) * width] for row in range(self.dims[0])]

    def __len__(self) -> int:
        return len(self.data) // _type(self.dtype)[0]

    def __repr__(self) -> str:
        # Without the values: they may be many, and are the caller's.
        return f"Tensor({self.dtype} {self.dims})"


def _type(dtype):
    try:
        return _TYPES[dtype]
    except KeyError:
        raise ModelError(f"there is no element type {dtype!r}; there are {', '.join(_TYPES)}") from None


def _pack(values, dtype, code):
    if code is None:
        raise ModelError(f"Python has no numbers of type {dtype}: give bytes")
    try:
        if code == "e":
            values = list(values)
            return struct.pack(f"<{len(values)}e", *values)
        return array.array(code, values).tobytes()
    except (TypeError, OverflowError, struct.error) as error:
        raise InvalidInput(f"not all values are numbers that fit {dtype}: {error}") from None
