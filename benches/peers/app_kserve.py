"""KServe's Python server with its first protocol, which costs it less than the Open Inference one."""

import logging
import sys
from typing import Any

import uvicorn
from iris import Iris
from kserve import Model, ModelServer


class Loopback(uvicorn.Config):
    """KServe has no setting for the address, all of the machine's, nor for the access log, a line per request."""

    def __init__(self, *positional: Any, **options: Any) -> None:
        logging.getLogger("uvicorn.access").handlers.clear()
        super().__init__(*positional, **options | {"host": "127.0.0.1"})


uvicorn.Config = Loopback  # type: ignore[misc]


class IrisModel(Model):
    def __init__(self) -> None:
        super().__init__("iris")
        self.load()

    def load(self) -> bool:
        self.model = Iris()
        self.ready = True
        return True

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> dict[str, Any]:
        return {"predictions": self.model.predictions(payload["instances"])}


if __name__ == "__main__":
    server = ModelServer(
        http_port=int(sys.argv[1]),
        enable_grpc=False,
        enable_latency_logging=False,
    )
    server.start([IrisModel()])
