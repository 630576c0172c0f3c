"""Pipelines of transformers on the way that a data scientist takes: package, push, deploy, ask.

    python packaged_pipelines.py HOST TOKEN

Needs `sdk/python/setup.sh torch`. Every pipeline of `sdk/python/tests/test_transformers.py` is asked 200 texts over HTTP,
and compared with itself. Prints what came of each.
"""

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "sdk/python/tests"))

import tessera
from pipelines import texts
from test_transformers import PIPELINES
from tessera.convert import classification

TOLERANCE = 1e-4

host, token = sys.argv[1:]
client = tessera.Client(host, token)
seen = {}
for place, (name, build) in enumerate(PIPELINES.items()):
    pipeline, model = build(), f"main.default.pipeline_{place}"
    with tempfile.TemporaryDirectory() as folder:
        made = tessera.package(pipeline, f"{folder}/package", input_example=texts(10))
        endpoint = client.deploy(f"pipeline-{place}", model, client.push(made.path, model))
    expected = classification.predict(pipeline)(texts())
    got = client.invoke(f"pipeline-{place}", {"inputs": texts()})["predictions"]
    differences = [classification.difference(one, other) for one, other in zip(expected, got, strict=True)]
    seen[name] = {
        "ready": endpoint["state"]["ready"],
        "texts": len(got),
        "differ": sum(difference is None or difference > TOLERANCE for difference in differences),
    }
print(json.dumps(seen))
