"""The host's interfaces, as componentize-py generates them from `wit/`. Outside a component there are none."""

try:
    from componentize_py_types import Err
    from wit_world.imports import (
        assets,
        compute,
        graph_info,
        logging,
        request_headers,
        settings,
        streaming,
        types,
    )
    from wit_world.imports.tensor import TensorType
except ModuleNotFoundError:

    class Err(Exception):
        """Never raised: nothing answers."""

    class _Absent:
        def __init__(self, interface):
            self._interface = interface

        def __getattr__(self, name):
            raise RuntimeError(f"{self._interface}.{name} asks the host, which is there only in a deployed component")

    assets = _Absent("assets")
    compute = _Absent("compute")
    graph_info = _Absent("graph_info")
    logging = _Absent("logging")
    request_headers = _Absent("request_headers")
    settings = _Absent("settings")
    streaming = _Absent("streaming")
    types = _Absent("types")
    TensorType = _Absent("TensorType")

__all__ = [
    "Err",
    "TensorType",
    "assets",
    "compute",
    "graph_info",
    "logging",
    "request_headers",
    "settings",
    "streaming",
    "types",
]
