"""LitServe: the API server and the inference worker are processes of their own, joined by a queue."""

import os
import sys
from typing import Any

import litserve
from iris import Iris


class IrisAPI(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = Iris()

    def predict(self, x: dict[str, Any]) -> dict[str, Any]:
        return {"predictions": self.model.predictions(x["inputs"])}


if __name__ == "__main__":
    server = litserve.LitServer(
        IrisAPI(),
        accelerator="cpu",
        workers_per_device=int(os.environ["WORKERS"]),
        disable_openapi_url=True,
    )
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        log_level="error",
        access_log=False,
        generate_client_file=False,
    )
