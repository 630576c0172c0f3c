"""Runs MLflow's own tracking server with one registered model in it: `models:/flowers/1`, also `@champion`.

    python mlflow_registry.py FOLDER MODEL_FOLDER

FOLDER keeps its state. The first line on stdout is the port. Ends when its stdin is closed, so that it never outlives the
test that started it.
"""

import logging
import os
import socket
import sys
import threading
import time
import warnings

folder, model = sys.argv[1:]
os.environ.update({
    "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{folder}/mlflow.db",
    "_MLFLOW_SERVER_REGISTRY_STORE": f"sqlite:///{folder}/mlflow.db",
    "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
    "_MLFLOW_SERVER_ARTIFACT_DESTINATION": f"{folder}/artifacts",
    "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
    "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE": "true",
})
logging.disable(logging.WARNING)
warnings.simplefilter("ignore")

import mlflow
import uvicorn
from mlflow.server.fastapi_app import app
from mlflow.tracking import MlflowClient


def end_with_stdin():
    sys.stdin.read()
    os._exit(0)


listening = socket.socket()
listening.bind(("127.0.0.1", 0))
listening.listen()
port = listening.getsockname()[1]
server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True).start()
while not server.started:
    time.sleep(0.01)

mlflow.set_tracking_uri(f"http://127.0.0.1:{port}")
client = MlflowClient()
run = client.create_run("0")
client.log_artifacts(run.info.run_id, model, "model")
client.create_registered_model("flowers")
client.create_model_version("flowers", f"{run.info.artifact_uri}/model", run.info.run_id)
client.set_registered_model_alias("flowers", "champion", "1")
print(port, flush=True)
end_with_stdin()
