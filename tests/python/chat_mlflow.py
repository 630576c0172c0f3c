"""Talks with a language model through MLflow's deployment clients, unmodified: `chat_mlflow.py ENDPOINT`. DATABRICKS_HOST
and DATABRICKS_TOKEN say where the server is."""

import json
import sys

from mlflow.deployments import get_deploy_client

endpoint = sys.argv[1]
client = get_deploy_client("databricks")
body = {
    "messages": [{"role": "user", "content": "Name a river in France."}],
    "temperature": 0,
    "max_tokens": 24,
}

answer = client.predict(endpoint=endpoint, inputs=body)
content = answer["choices"][0]["message"]["content"]
events = list(client.predict_stream(endpoint=endpoint, inputs=body))
told = "".join(event["choices"][0]["delta"].get("content") or "" for event in events)
assert told == content, (told, content)
assert events[-1]["choices"][0]["finish_reason"] in ("stop", "length")
counts = [[said["usage"][kind] for kind in ("prompt_tokens", "completion_tokens")] for said in (answer, events[-1])]
assert counts[0] == counts[1], "who does not ask for usage is told at the end"
completion = client.predict(endpoint=endpoint, inputs={"prompt": "One, two, three,", "max_tokens": 5, "temperature": 0})
try:
    client.predict(endpoint=endpoint, inputs={"messages": [], "prompt": "x"})
    refused = None
except Exception as error:
    refused = error.response.json()
print(json.dumps({"content": content, "completion": completion["choices"][0]["text"], "refused": refused}))
