"""MLflow's deployment target `tessera`, through MLflow's command line and its client.

    python mlflow_deployments.py TARGET

TESSERA_HOST and TESSERA_TOKEN say where the server is. Models are saved with MLflow in their own flavours, deployed, asked
1,000 rows, and compared with what `mlflow models serve` would answer: MLflow's own scoring function over the same model.
"""

import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "sdk/python/tests"))
scratch = tempfile.mkdtemp()
os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{scratch}/mlflow.db"
# Where MLflow leaves its artifacts.
os.chdir(scratch)

import lightgbm
import mlflow
import numpy as np
import tessera.deployments
import xgboost
from mlflow.deployments import get_deploy_client
from mlflow.models import infer_signature
from mlflow.pyfunc.scoring_server import predictions_to_json
from models import TABULAR, fresh, houses
from tessera.packaging import request_of

target = sys.argv[1]
table, price = houses()
numbers = table[["rooms", "living area", "new"]]


def saved(flavour, model, rows):
    path = f"{scratch}/{flavour.__name__}-{len(os.listdir(scratch))}"
    # Without the requirements MLflow finds out what the model imports, in a process of its own.
    signature = infer_signature(rows)
    flavour.save_model(model, path, signature=signature, input_example=rows[:10], pip_requirements=["mlflow"])
    return path


def boosters():
    """Models that are no estimators: their own form of prediction."""
    x, y = numbers.astype(float), (price > 1000).astype(int)
    yield mlflow.xgboost, xgboost.train({"objective": "binary:logistic", "nthread": 1}, xgboost.DMatrix(x, y), 20), fresh(x)
    yield mlflow.lightgbm, lightgbm.train(
        {"objective": "binary", "verbose": -1, "num_threads": 1}, lightgbm.Dataset(x, y), 20
    ), fresh(x)


def models():
    for flavour, name in (
        (mlflow.sklearn, "mixed_logistic"),
        (mlflow.sklearn, "logistic_text"),
        (mlflow.xgboost, "xgboost_classes"),
        (mlflow.lightgbm, "lightgbm_text"),
    ):
        trained = TABULAR[name]()
        yield flavour, trained.model, trained.rows
    yield from boosters()


def as_served(path, rows):
    """The answer of MLflow's scoring server: its own parser, model and writer."""
    answer = io.StringIO()
    predictions_to_json(mlflow.pyfunc.load_model(path).predict(rows), answer)
    return json.loads(answer.getvalue())["predictions"]


def agree(got, expected):
    got, expected = np.asarray(got), np.asarray(expected)
    if expected.dtype.kind == "f":
        return bool(got.shape == expected.shape and np.allclose(got.astype(float), expected, rtol=1e-4, atol=1e-4))
    return got.tolist() == expected.tolist()


def cli(*arguments):
    command = [str(Path(sys.executable).parent / "mlflow"), "deployments", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


client = get_deploy_client(target)
seen = {"agree": {}}
paths = []
for number, (flavour, model, rows) in enumerate(models()):
    path = saved(flavour, model, rows)
    paths.append((path, rows))
    name = f"deployed-{number}"
    created = client.create_deployment(name, path, config={"model_name": f"main.default.deployed{number}"})
    got = client.predict(name, rows)["predictions"]
    seen["agree"][f"{flavour.__name__} {type(model).__name__}"] = agree(got, as_served(path, rows))
    seen["flavour"] = created["flavor"]

seen["listed"] = sorted(found["name"] for found in client.list_deployments())
# The first is given the model of the second.
path, rows = paths[1]
client.update_deployment("deployed-0", path)
seen["updated"] = agree(client.predict("deployed-0", rows)["predictions"], as_served(path, rows))
seen["got"] = client.get_deployment("deployed-0")["state"]["ready"]
for name in seen["listed"]:
    client.delete_deployment(name)
client.delete_deployment("deployed-0")
seen["left"] = client.list_deployments()
try:
    client.get_deployment("deployed-0")
except mlflow.MlflowException as error:
    seen["missing"] = str(error)

# A registered model, by MLflow's command line alone.
mlflow.sklearn.log_model(TABULAR["logistic"]().model, name="model", registered_model_name="flowers", input_example=rows[:5], pip_requirements=["mlflow"])
body = f"{scratch}/request.json"
Path(body).write_text(json.dumps(request_of(rows[:3])))
seen["cli"] = [
    cli("create", "-t", target, "-m", "models:/flowers/1", "--name", "flowers"),
    cli("predict", "-t", target, "--name", "flowers", "-I", body),
]
try:
    client.create_deployment("flowers", "models:/flowers/1")
except mlflow.MlflowException as error:
    seen["exists"] = str(error)
seen["cli"].append(cli("delete", "-t", target, "--name", "flowers"))
seen["help"] = tessera.deployments.target_help()
seen["cli_expected"] = TABULAR["logistic"]().model.predict(rows[:3]).tolist()
print(json.dumps(seen))
