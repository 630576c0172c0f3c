"""The package that the endpoint was deployed from."""

from dataclasses import dataclass

from . import host
from .errors import ModelError


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of a graph: `dims` has None where the size is free; `dtype` is the one in the model file."""

    name: str
    dtype: str
    dims: list[int | None]


@dataclass(frozen=True)
class GraphInfo:
    """What a graph takes and gives, in the order of the model file."""

    inputs: list[TensorInfo]
    outputs: list[TensorInfo]


class Package:
    """What `init` may read. Keep what a request needs in the endpoint, where it is frozen ready for use."""

    def asset(self, name: str) -> bytes:
        """The content of a file that the manifest lists under `assets`."""
        try:
            return host.assets.read(name)
        except host.Err as error:
            raise ModelError(f"failed to read asset `{name}`: {error.value}") from None

    def asset_text(self, name: str) -> str:
        """The same as text."""
        try:
            return self.asset(name).decode()
        except UnicodeDecodeError as error:
            raise ModelError(f"asset `{name}` is not UTF-8 text: invalid byte at offset {error.start}") from None

    def setting(self, name: str) -> str | None:
        """A setting of the manifest, or of the served entity's environment, which wins."""
        return host.settings.get(name)

    def graph(self, name: str) -> GraphInfo:
        """What a graph takes and gives."""
        found = host.graph_info.describe(name)
        if found is None:
            raise ModelError(f"the package has no graph `{name}`")
        return GraphInfo(*([_tensor(tensor) for tensor in side] for side in (found.inputs, found.outputs)))


def _tensor(info) -> TensorInfo:
    # An option inside a list is wrapped where it is there.
    dims = [getattr(size, "value", size) for size in info.dimensions]
    return TensorInfo(info.name, info.element.name.lower(), dims)
