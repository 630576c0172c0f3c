"""Models of scikit-learn, XGBoost and LightGBM on the way that a data scientist takes: package, push, deploy, ask.

    python packaged_models.py HOST TOKEN MODEL...

MODEL is a name of `sdk/python/tests/models.py`. Every model is asked 1,000 rows over HTTP and compared with itself, in all
forms that a table can be sent in. Prints what came of each.
"""

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "sdk/python/tests"))

import numpy as np
import pandas as pd
import tessera
from models import TABULAR
from tessera.packaging import request_of


def forms(rows):
    """The bodies that ask the same rows."""
    if isinstance(rows, pd.DataFrame):
        records = [dict(zip(rows.columns, row)) for row in rows.to_numpy(dtype=object).tolist()]
        columns = {name: rows[name].tolist() for name in rows.columns}
        return [request_of(rows), {"dataframe_records": records}, {"instances": records}, {"inputs": columns}]
    return [{"inputs": rows.tolist()}, {"instances": rows.tolist()}]


def differing(got, expected):
    """Rows whose answers are not the model's: another label, or a number that is more than 1e-4 away."""
    got = np.asarray(got)
    if got.shape != expected.shape:
        return len(expected)
    if expected.dtype.kind != "f":
        return int((got.astype(object) != expected.astype(object)).sum())
    return int((~np.isclose(got.astype(float), expected, rtol=1e-4, atol=1e-4)).reshape(len(expected), -1).any(axis=1).sum())


host, token, *names = sys.argv[1:]
client = tessera.Client(host, token)
seen = {}
for name in names:
    trained = TABULAR[name]()
    with tempfile.TemporaryDirectory() as folder:
        made = tessera.package(
            trained.model, f"{folder}/package", input_example=trained.rows[:20], predict_fn=trained.predict_fn, rows=100
        )
        version = client.push(made.path, f"main.default.{name}")
        endpoint = client.deploy(name, f"main.default.{name}", version)
    answers = [client.invoke(name, form)["predictions"] for form in forms(trained.rows)]
    seen[name] = {
        "ready": endpoint["state"]["ready"],
        "rows": len(trained.rows),
        "differ": [differing(answer, trained.expected) for answer in answers],
    }

# What the model itself refuses is refused, and names the column.
row = {"city": "Atlantis", "heating": "gas", "rooms": 2, "living area": 60.0, "new": True}
try:
    client.invoke("mixed_logistic", {"dataframe_records": [row]})
except tessera.ServerError as error:
    seen["unknown text"] = [error.status, str(error)]
print(json.dumps(seen))
