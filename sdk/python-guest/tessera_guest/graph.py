"""Compute: a graph of the package runs on the host, together with the requests of other instances."""

import struct
from collections.abc import Iterator, Mapping, Sequence

from . import host
from .errors import Error, InvalidInput, ModelError, TimedOut, TooLarge
from .tensor import Tensor

# An invalid argument is a tensor the graph does not take, hence the caller's input. All others mean that the model failed,
# which repeating the call does not mend.
_ERRORS: dict[str, type[Error]] = {"INVALID_ARGUMENT": InvalidInput, "TIMEOUT": TimedOut, "TOO_LARGE": TooLarge}

# The values of each output begin at a multiple of it.
_ALIGNMENT = 16


class Graph:
    """A graph of the package, by its name in the manifest.

    Whether there is such a graph is known when it runs.
    """

    def __init__(self, name: str):
        self.name = name

    def run(self, inputs: Mapping[str, Tensor] | None = None, /, **more: Tensor) -> "Outputs":
        """Runs the graph on inputs given by name. Only during `predict`; may be called again."""
        given = {**(inputs or {}), **more}
        tensors = [
            host.compute.Input(name, tensor.dims, host.TensorType[tensor.dtype.upper()], tensor.data)
            for name, tensor in given.items()
        ]
        try:
            outputs = host.compute.run(self.name, tensors)
        except host.Err as error:
            raised = _ERRORS.get(error.value.code.name, ModelError)
            raise raised(f"failed to compute graph `{self.name}`: {error.value.message}") from None
        return Outputs(self.name, dict(_unpacked(outputs.heads, outputs.data)))


def _unpacked(heads: Sequence[int], data: bytes) -> Iterator[tuple[str, Tensor]]:
    """All outputs, which the host packs in two lists (interface `compute` in wit/endpoint.wit)."""
    at = end = 0
    while at < len(heads):
        kind, size, axes = heads[at : at + 3]
        dims = heads[at + 3 : at + 3 + axes]
        at += 4 + axes
        length = heads[at - 1]
        numbers = heads[at : at + -(-length // 4)]
        at += len(numbers)
        name = struct.pack(f"<{len(numbers)}I", *numbers)[:length].decode()
        begin = -(-end // _ALIGNMENT) * _ALIGNMENT
        end = begin + size
        yield name, Tensor(dims, data[begin:end], host.TensorType(kind).name.lower())


class Outputs(Mapping):
    """What a graph gave, by name, in the order of the model file."""

    def __init__(self, graph: str, tensors: dict[str, Tensor]):
        self._graph = graph
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self._tensors[name]
        except KeyError:
            known = ", ".join(self._tensors)
            raise ModelError(f"graph `{self._graph}` has no output `{name}`; it gives: {known}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
