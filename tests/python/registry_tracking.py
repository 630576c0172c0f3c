"""Logs models with this server as MLflow's tracking server, registers them as they are logged, and uses its older registry.

    python registry_tracking.py HOST TOKEN

Prints what the client made of the answers.
"""

import json
import os
import sys
import tempfile
import warnings

host, token = sys.argv[1:]
os.environ.update(MLFLOW_TRACKING_URI=host, MLFLOW_TRACKING_TOKEN=token, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
os.environ.pop("DATABRICKS_HOST", None)
warnings.simplefilter("ignore")

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature
from mlflow.tracking import MlflowClient
from skl2onnx import to_onnx
from sklearn.linear_model import LinearRegression

seen = {}


def refused(call):
    try:
        call()
    except MlflowException as error:
        return str(error)
    return None


rows = pd.DataFrame(np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32), columns=["a", "b"])
trained = LinearRegression().fit(rows.to_numpy(), (rows["a"] - rows["b"]).to_numpy())
signature = infer_signature(rows, trained.predict(rows.to_numpy()))

mlflow.set_experiment("flowers")
with mlflow.start_run() as run:
    mlflow.log_param("seed", 0)
    mlflow.log_metric("accuracy", 0.5)
    mlflow.log_metrics({"accuracy": 0.75, "loss": 0.25}, step=2)
    mlflow.set_tag("team", "botany")
    onnx = mlflow.onnx.log_model(
        to_onnx(trained, rows.to_numpy()), name="as_onnx", signature=signature,
        input_example=rows.head(2), registered_model_name="logged_onnx",
    )
    mlflow.sklearn.log_model(
        trained, name="as_sklearn", signature=signature, registered_model_name="main.default.logged_sklearn",
        serialization_format="cloudpickle",
    )
    mlflow.log_text("written", "notes/readme.txt")

client = MlflowClient()
found = client.get_run(run.info.run_id)
seen["run"] = {"status": found.info.status, "params": found.data.params, "metrics": found.data.metrics,
               "team": found.data.tags["team"], "experiment": client.get_experiment_by_name("flowers").experiment_id,
               "text": mlflow.artifacts.load_text(f"{run.info.artifact_uri}/notes/readme.txt"),
               "runs": len(client.search_runs([found.info.experiment_id]))}
seen["onnx"] = client.get_model_version("logged_onnx", 1).status
sklearn = client.get_model_version("main.default.logged_sklearn", 1)
seen["sklearn"] = [sklearn.status, sklearn.status_message]
seen["predicted"] = mlflow.sklearn.load_model("models:/main.default.logged_sklearn/1").predict(rows.to_numpy()).tolist()

again = mlflow.register_model(onnx.model_uri, "logged_onnx", tags={"made": "again"})
client.set_registered_model_alias("logged_onnx", "champion", 2)
with warnings.catch_warnings():
    client.transition_model_version_stage("logged_onnx", 1, "Production")
    client.transition_model_version_stage("logged_onnx", 2, "Production", archive_existing_versions=True)
    seen["stages"] = [[v.version, v.current_stage] for v in client.search_model_versions("name = 'logged_onnx'")]
    seen["latest"] = [[v.version, v.current_stage] for v in client.get_latest_versions("logged_onnx", ["Production"])]
for what in ["1", "Production", "latest"]:
    seen[f"files_{what}"] = sorted(os.listdir(mlflow.artifacts.download_artifacts(f"models:/logged_onnx/{what}")))
seen["files_alias"] = sorted(os.listdir(mlflow.artifacts.download_artifacts("models:/logged_onnx@champion")))
seen["tags"] = client.get_model_version("logged_onnx", "2").tags
seen["searched"] = [m.name for m in client.search_registered_models("name LIKE 'logged%'", order_by=["name DESC"])]
seen["copied"] = client.copy_model_version("models:/logged_onnx/1", "copy").status
client.rename_registered_model("copy", "renamed_copy")
seen["renamed"] = client.get_registered_model("renamed_copy").name
client.create_registered_model("elsewhere")
seen["elsewhere"] = refused(lambda: client.create_model_version("elsewhere", "s3://bucket/model"))
seen["nothing_left"] = [v.version for v in client.search_model_versions("name = 'elsewhere'")]
seen["filter"] = refused(lambda: client.search_registered_models("size = 1"))

print(json.dumps(seen))
