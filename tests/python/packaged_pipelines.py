"""Pipelines of transformers, and a sentence encoder, on the way that a data scientist takes: package, push, deploy, ask.

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
from pipelines import sentence_encoder, texts
from test_transformers import PIPELINES
from tessera.convert import classification

TOLERANCE = 1e-4

host, token = sys.argv[1:]
client = tessera.Client(host, token)
seen = {}


def deployed(model, name, folder):
    """The state of an endpoint that serves a model."""
    made = tessera.package(model, f"{folder}/package", input_example=texts()[1:10])
    version = client.push(made.path, f"main.default.{name}")
    return client.deploy(name, f"main.default.{name}", version)["state"]["ready"]


def compared(expected, got):
    """How many answers there are, and how many of them are not the model's."""
    apart = [classification.difference(one, other) for one, other in zip(expected, got, strict=True)]
    return {"texts": len(got), "differ": sum(one is None or one > TOLERANCE for one in apart)}


for place, (name, build) in enumerate(PIPELINES.items()):
    pipeline, endpoint = build(), f"pipeline_{place}"
    with tempfile.TemporaryDirectory() as folder:
        ready = deployed(pipeline, endpoint, folder)
    expected = classification.predict(pipeline)(texts())
    got = client.invoke(endpoint, {"inputs": texts()})["predictions"]
    seen[name] = {"ready": ready, **compared(expected, got)}

with tempfile.TemporaryDirectory() as folder:
    encoder = sentence_encoder(Path(folder) / "network")
    ready = deployed(encoder, "sentences", folder)
# That API takes no empty text.
asked = [text or "nothing" for text in texts()]
got = [datum["embedding"] for datum in client.invoke("sentences", {"input": asked})["data"]]
seen["sentence encoder"] = {"ready": ready, **compared(encoder.encode(asked).tolist(), got)}
print(json.dumps(seen))
