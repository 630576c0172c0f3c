"""Guest library of Tessera: a model endpoint in Python.

    import tessera_guest as tessera

    @tessera.endpoint
    class Doubler:
        def init(self, package):
            self.label = package.asset_text("label.txt").strip()

        def predict(self, request):
            values = request.json()["values"]
            outputs = tessera.Graph("model").run(x=tessera.Tensor([1, len(values)], values))
            return {self.label: outputs["y"].values()}

Life of a guest. `tessera build` runs the interpreter once and imports your module; what can be imported is imported then,
because the component has no files. At deploy `init` runs once. The memory it leaves is frozen: every request gets a fresh
interpreter that starts from this image, runs `predict` once and is gone. Nothing that a request writes, global variables
included, is seen by another.

- `endpoint`: marks the class.
- `Package`: what `init` may read: assets, settings, what the graphs take and give.
- `Request`: path, content type, headers, body.
- `Tensor`, `Graph`: compute on the host; shapes and types are checked before the call. No numpy needed.
- `Response`: an answer that is not JSON, has another status, or comes in chunks. Anything else is returned as JSON.
- `Error` and its kinds: what went wrong, in words for the caller; the class decides the HTTP status. Any other exception
  ends the request too: the caller learns its type, the endpoint's log has the traceback.

`print` and the module `logging` write to the endpoint's log. There are no files, no network and no environment. What
`random` draws is decided when the component is built, and the same in every request; `random.SystemRandom` and `secrets`
draw anew. Outside Tessera the library can be imported, so that the logic of an endpoint has ordinary unit tests; only what
asks the host raises there.
"""

from .errors import (
    Error,
    InvalidInput,
    ModelError,
    NotFound,
    TimedOut,
    TooLarge,
    Unavailable,
    UnsupportedMediaType,
)
from .graph import Graph, Outputs
from .marking import endpoint
from .package import GraphInfo, Package, TensorInfo
from .request import Request
from .response import Response
from .tensor import Tensor

__all__ = [
    "Error",
    "Graph",
    "GraphInfo",
    "InvalidInput",
    "ModelError",
    "NotFound",
    "Outputs",
    "Package",
    "Request",
    "Response",
    "Tensor",
    "TensorInfo",
    "TimedOut",
    "TooLarge",
    "Unavailable",
    "UnsupportedMediaType",
    "endpoint",
]
