"""TorchServe: the handler, and as a program what writes its files and becomes TorchServe.

usage: app_torchserve.py INFERENCE_PORT MANAGEMENT_PORT METRICS_PORT GRPC_PORT GRPC_MANAGEMENT_PORT SCRATCH
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

LOG4J = '<Configuration status="off"><Loggers><Root level="off"/></Loggers></Configuration>\n'

model: Any = None


def handle(requests: list[dict[str, Any]] | None, context: Any) -> list[Any]:
    """TorchServe calls this once without requests, to load the model; then with batches."""
    global model
    if model is None:
        from iris import Iris

        model = Iris()
    bodies = [request["body"] for request in requests or []]
    return [{"predictions": model.predictions(body["inputs"])} for body in bodies]


def main() -> None:
    *ports, folder = sys.argv[1:]
    inference, management, metrics, grpc, grpc_management = ports
    scratch = Path(folder)
    manifest = {
        "runtime": "python",
        "model": {"modelName": "iris", "modelVersion": "1.0", "handler": "app_torchserve.py:handle"},
    }
    made = scratch / "store" / "iris" / "MAR-INF"
    made.mkdir(parents=True, exist_ok=True)
    (made / "MANIFEST.json").write_text(json.dumps(manifest))
    (made.parent / "app_torchserve.py").write_text(Path(__file__).read_text())
    models = {"iris": {"1.0": {"defaultVersion": True, "marName": "iris", "batchSize": 1, "maxBatchDelay": 1}}}
    workers = int(os.environ["WORKERS"])
    models["iris"]["1.0"] |= {"minWorkers": workers, "maxWorkers": workers, "responseTimeout": 60}
    settings = {
        "inference_address": f"http://127.0.0.1:{inference}",
        "management_address": f"http://127.0.0.1:{management}",
        "metrics_address": f"http://127.0.0.1:{metrics}",
        "grpc_inference_port": grpc,
        "grpc_management_port": grpc_management,
        "disable_token_authorization": "true",
        "disable_system_metrics": "true",
        "job_queue_size": 1000,
        "vmargs": f"-Djava.io.tmpdir={scratch}",
        "default_workers_per_model": workers,
        "load_models": "iris",
        "models": json.dumps(models),
    }
    config = scratch / "config.properties"
    config.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
    log = scratch / "log4j2.xml"
    log.write_text(LOG4J)
    os.chdir(scratch)
    os.environ["LOG_LOCATION"] = os.environ["METRICS_LOCATION"] = str(scratch / "logs")
    program = str(Path(sys.executable).with_name("torchserve"))
    files = ["--model-store", str(scratch / "store"), "--ts-config", str(config), "--log-config", str(log)]
    os.execv(program, [program, "--start", "--foreground", "--ncs", *files])


if __name__ == "__main__":
    main()
