"""Registers a model folder that has a large file, `large.bin`, with MLflow's client as it is, and downloads it again.

    python mlflow_large.py HOST TOKEN MODEL_FOLDER
"""

import filecmp
import json
import os
import sys
import tempfile

host, token, folder = sys.argv[1:]
os.environ.update(
    DATABRICKS_HOST=host, DATABRICKS_TOKEN=token, DATABRICKS_CONFIG_FILE="/dev/null",
    MLFLOW_TRACKING_URI=f"sqlite:///{tempfile.mkdtemp()}/mlflow.db", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
)

import mlflow

mlflow.set_registry_uri("databricks-uc")
version = mlflow.register_model(folder, "main.default.large")
downloaded = mlflow.artifacts.download_artifacts(f"models:/main.default.large/{version.version}")
large = os.path.join(downloaded, "large.bin")

print(json.dumps({
    "status": mlflow.MlflowClient().get_model_version("main.default.large", version.version).status,
    "bytes": os.path.getsize(large),
    "same": filecmp.cmp(large, os.path.join(folder, "large.bin"), shallow=False),
}))
