"""The registry through MLflow's Unity Catalog client and the Databricks SDK's native classes, as they are.

    python registry_unity.py HOST TOKEN MODEL_FOLDER

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
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

mlflow.set_registry_uri("databricks-uc")
client = MlflowClient()
name = "main.default.first"
seen = {}


def refused(call):
    try:
        call()
    except (MlflowException, NotFound) as error:
        return str(error)
    return None


# The files once by the Files API, once by signed addresses.
mlflow.register_model(folder, name, tags={"made": "here"})
os.environ["MLFLOW_USE_DATABRICKS_SDK_MODEL_ARTIFACTS_REPO_FOR_UC"] = "false"
mlflow.register_model(folder, name)
seen["signed_download"] = sorted(os.listdir(mlflow.artifacts.download_artifacts(f"models:/{name}/2")))
os.environ["MLFLOW_USE_DATABRICKS_SDK_MODEL_ARTIFACTS_REPO_FOR_UC"] = "true"

client.set_registered_model_alias(name, "champion", 1)
client.set_registered_model_alias(name, "challenger", 2)
client.set_registered_model_alias(name, "champion", 2)
client.set_registered_model_tag(name, "team", "flowers")
client.set_registered_model_tag(name, "gone", "x")
client.delete_registered_model_tag(name, "gone")
client.set_model_version_tag(name, "2", "checked", "yes")
client.delete_model_version_tag(name, "1", "made")
client.update_registered_model(name, description="irises")
client.update_model_version(name, "2", description="the second")
model, version = client.get_registered_model(name), client.get_model_version_by_alias(name, "champion")
seen["model"] = {"aliases": model.aliases, "tags": model.tags, "description": model.description}
seen["version"] = {"version": version.version, "aliases": sorted(version.aliases), "tags": version.tags,
                   "description": version.description, "status": version.status}
seen["by_alias"] = sorted(os.listdir(mlflow.artifacts.download_artifacts(f"models:/{name}@champion")))
seen["bad_alias"] = refused(lambda: client.set_registered_model_alias(name, "v1", 1))
seen["alias_of_nothing"] = refused(lambda: client.set_registered_model_alias(name, "x", 9))
client.delete_registered_model_alias(name, "challenger")
seen["no_alias"] = refused(lambda: client.get_model_version_by_alias(name, "challenger"))
client.rename_registered_model(name, "main.other.renamed")
seen["renamed"] = [v.version for v in client.search_model_versions("name = 'main.other.renamed'")]
seen["old_name"] = refused(lambda: client.get_registered_model(name))
client.delete_model_version("main.other.renamed", "2")
seen["aliases_left"] = client.get_registered_model("main.other.renamed").aliases
pages, page = [], None
for number in range(3):
    client.create_registered_model(f"main.pages.m{number}")
while page is None or page.token:
    page = client.search_registered_models(max_results=2, page_token=page.token if page else None)
    pages.append([model.name for model in page])
seen["pages"] = pages

# Unity Catalog's own REST API.
workspace = WorkspaceClient()
models, versions = workspace.registered_models, workspace.model_versions
native = models.create(catalog_name="lab", schema_name="plants", name="iris", comment="native")
mlflow.register_model(folder, native.full_name)
alias = models.set_alias(native.full_name, "best", 1)
updated = models.update(native.full_name, comment="changed")
by_alias = versions.get_by_alias(native.full_name, "best")
versions.update(native.full_name, 1, comment="one")
seen["native"] = {
    "alias": [alias.alias_name, alias.version_num],
    "comment": updated.comment,
    "aliases": [[a.alias_name, a.version_num] for a in models.get(native.full_name, include_aliases=True).aliases],
    "by_alias": [by_alias.version, by_alias.status.value, by_alias.catalog_name, by_alias.model_name],
    "versions": [[v.version, v.comment] for v in versions.list(native.full_name)],
    "models": [m.full_name for m in models.list(catalog_name="lab", schema_name="plants")],
    "all": len(list(models.list(max_results=2))),
    "catalogs": [c.name for c in workspace.catalogs.list()],
    "schemas": [s.full_name for s in workspace.schemas.list("lab")],
    "schema": workspace.schemas.get("main.default").catalog_name,
    "no_catalog": refused(lambda: workspace.catalogs.get("nothing")),
}
models.delete_alias(native.full_name, "best")
versions.delete(native.full_name, 1)
seen["native"]["left"] = [v.version for v in versions.list(native.full_name)]
models.delete(native.full_name)
seen["native"]["deleted"] = refused(lambda: models.get(native.full_name))

# MLflow on that API.
os.environ["MLFLOW_ENABLE_UC_NATIVE_MODEL_REGISTRY"] = "true"
mlflow.set_registry_uri("databricks-uc")
again = mlflow.register_model(folder, "main.default.by_native")
seen["mlflow_native"] = [again.version, again.status]

print(json.dumps(seen))
