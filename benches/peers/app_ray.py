"""Ray Serve on a Ray of its own, on this machine, without the dashboard."""

import os
import sys
from typing import Any

import ray
from iris import Iris
from ray import serve
from starlette.requests import Request

QUIET = {"log_level": "ERROR", "enable_access_log": False}


@serve.deployment(
    num_replicas=int(os.environ["WORKERS"]),
    max_ongoing_requests=128,
    ray_actor_options={"num_cpus": 0.5},
    logging_config=QUIET,
)
class IrisDeployment:
    def __init__(self) -> None:
        self.model = Iris()

    async def __call__(self, request: Request) -> dict[str, Any]:
        body = await request.json()
        return {"predictions": self.model.predictions(body["inputs"])}


if __name__ == "__main__":
    ray.init(
        num_cpus=int(os.environ["WORKERS"]),
        include_dashboard=False,
        object_store_memory=100 << 20,
        log_to_driver=False,
        logging_level="ERROR",
        _node_ip_address="127.0.0.1",
        _temp_dir=sys.argv[2],
    )
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])}, logging_config=QUIET)
    serve.run(IrisDeployment.bind(), route_prefix="/predict", logging_config=QUIET, blocking=True)
