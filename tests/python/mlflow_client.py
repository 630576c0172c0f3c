"""What a data scientist does, with MLflow's and Databricks' clients as they are: register a model, deploy it, predict.

    python mlflow_client.py HOST TOKEN MODEL_FOLDER

Prints what the clients made of the answers.
"""

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
from databricks.sdk import WorkspaceClient
from databricks.sdk.errors import NotFound
from mlflow.deployments import get_deploy_client

mlflow.set_registry_uri("databricks-uc")
version = mlflow.register_model(folder, "main.default.registered")
again = mlflow.register_model(folder, "main.default.registered")
downloaded = mlflow.artifacts.download_artifacts(f"models:/main.default.registered/{again.version}")

deployments = get_deploy_client("databricks")
config = {"served_entities": [{"entity_name": "main.default.registered", "entity_version": version.version,
                               "workload_size": "Small", "scale_to_zero_enabled": True}]}
deployments.create_endpoint(config={"name": "registered", "config": config})

workspace = WorkspaceClient()
endpoint = workspace.serving_endpoints.wait_get_serving_endpoint_not_updating("registered")
row = {"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}
predicted = deployments.predict(endpoint="registered", inputs={"dataframe_records": [row]})
queried = workspace.serving_endpoints.query("registered", dataframe_records=[row])
listed = [endpoint["name"] for endpoint in deployments.list_endpoints()]
try:
    workspace.serving_endpoints.query("no-such-endpoint", dataframe_records=[row])
    refused = None
except NotFound as error:
    refused = str(error)
user = workspace.current_user.me().user_name
deployments.delete_endpoint("registered")

print(json.dumps({
    "versions": [version.version, again.version],
    "downloaded": sorted(os.listdir(downloaded)),
    "ready": endpoint.state.ready.value,
    "entity": endpoint.config.served_entities[0].name,
    "predicted": predicted["predictions"],
    "queried": queried.predictions,
    "served_model_name": queried.served_model_name,
    "listed": listed,
    "refused": refused,
    "user": user,
    "left": [endpoint.name for endpoint in workspace.serving_endpoints.list()],
}))
