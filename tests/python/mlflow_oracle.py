"""Compares a Tessera endpoint with the real MLflow scoring server, request by request.

    python mlflow_models.py MODELS
    python mlflow_oracle.py MODELS --ours 'http://127.0.0.1:8080/serving-endpoints/{model}/invocations' --token TOKEN
    python mlflow_oracle.py MODELS --goldens ../../sdk/stock/scoring/tests/goldens.jsonl      (no endpoint needed)

The models must be deployed under their own names (`{model}` in the URL). MLflow's side is `--mlflow URL`, again with
`{model}` where servers differ, or, when that is left out, MLflow's own application run in this process, which answers
the same and needs no server. Equal means: the same status; on success the same structure, numbers within 1e-5; on an
error the same `error_code` and `error_class`. One line is printed per case that differs (every case with `-v`), and the
exit status says whether any did. The requests are in `mlflow_cases.py`.

`--goldens` writes MLflow's answers, with the tensors that its ONNX wrapper fed and got, for the crate's native tests.
"""

import argparse
import base64
import contextlib
import json
import logging
import math
import sys
import warnings
from pathlib import Path

import mlflow_cases
import requests
import yaml


class InProcess:
    """MLflow's scoring application for one model, and a record of what it asked of ONNX Runtime."""

    def __init__(self, folder):
        import mlflow.pyfunc
        from fastapi.testclient import TestClient
        from mlflow.pyfunc import scoring_server

        model = mlflow.pyfunc.load_model(str(folder))
        self.session, self.last_run = model._model_impl.rt, None
        model._model_impl.rt = self
        self.client = TestClient(scoring_server.init(model), raise_server_exceptions=False)

    def post(self, body, content_type):
        self.last_run = None
        return self.client.post("/invocations", content=body, headers={"content-type": content_type})

    def run(self, output_names, feeds):
        """Stands in for the session's `run`, the one call that MLflow's wrapper makes per request."""
        outputs = self.session.run(output_names, feeds)
        self.last_run = {
            "feeds": {name: tensor(value) for name, value in feeds.items()},
            "outputs": {name: tensor(value) for name, value in zip(output_names, outputs)},
        }
        return outputs


def tensor(value):
    import numpy as np

    value = np.ascontiguousarray(value) if np.ndim(value) else np.asarray(value)
    return {"dtype": str(value.dtype), "shape": list(value.shape), "data": base64.b64encode(value.tobytes()).decode()}


class Remote:
    def __init__(self, url, token=None):
        self.url, self.headers = url, {"Authorization": f"Bearer {token}"} if token else {}

    def post(self, body, content_type):
        return requests.post(self.url, data=body, headers={**self.headers, "Content-Type": content_type}, timeout=60)


def encoded(body):
    if isinstance(body, bytes):
        return body
    return (body if isinstance(body, str) else json.dumps(body)).encode()


def same(ours, theirs, path="predictions"):
    """None, or where the two values part."""
    if isinstance(theirs, bool) or isinstance(ours, bool) or theirs is None or isinstance(theirs, str):
        return None if type(ours) is type(theirs) and ours == theirs else f"{path}: {ours!r} != {theirs!r}"
    if isinstance(theirs, (int, float)):
        if not isinstance(ours, (int, float)) or isinstance(ours, float) != isinstance(theirs, float):
            return f"{path}: {ours!r} != {theirs!r}"
        if math.isnan(theirs) or math.isnan(ours) or math.isinf(theirs) or math.isinf(ours):
            return None if repr(float(ours)) == repr(float(theirs)) else f"{path}: {ours!r} != {theirs!r}"
        return None if abs(ours - theirs) <= 1e-5 * max(1.0, abs(theirs)) else f"{path}: {ours!r} != {theirs!r}"
    if isinstance(theirs, list):
        if not isinstance(ours, list) or len(ours) != len(theirs):
            return f"{path}: {ours!r} != {theirs!r}"
        return next(filter(None, (same(a, b, f"{path}[{i}]") for i, (a, b) in enumerate(zip(ours, theirs)))), None)
    if not isinstance(ours, dict) or ours.keys() != theirs.keys():
        return f"{path}: {ours!r} != {theirs!r}"
    return next(filter(None, (same(ours[k], theirs[k], f"{path}.{k}") for k in theirs)), None)


def parsed(response):
    with contextlib.suppress(ValueError):
        return json.loads(response.text)
    return response.text


def difference(ours, theirs, expected):
    """None, or how the endpoint's answer differs from MLflow's, or from the one that `DIFFERENCES` promises."""
    if expected:
        status, code, _ = expected
        body = parsed(ours)
        got = body.get("error_code") if isinstance(body, dict) else None
        return None if (ours.status_code, got) == (status, code) else f"{ours.status_code} {got}, promised {status} {code}"
    if ours.status_code != theirs.status_code:
        return f"status {ours.status_code} != {theirs.status_code}: {ours.text[:300]} != {theirs.text[:300]}"
    mine, real = parsed(ours), parsed(theirs)
    if theirs.status_code == 200:
        return same(mine, real)
    if isinstance(real, str) or not isinstance(mine, dict):
        # The list of content types is shorter without parquet.
        start = str(real).split(" Types:")[0]
        return None if isinstance(mine, str) and mine.startswith(start) else f"{mine!r} != {real!r}"
    for key in ("error_code", "error_class", "sqlstate"):
        if mine.get(key) != real.get(key):
            return f"{key} {mine.get(key)} != {real.get(key)}: {mine.get('message')!r:.300} != {real.get('message')!r:.300}"
    return None


def signature(folder):
    found = yaml.safe_load((folder / "MLmodel").read_text()).get("signature") or {}
    return {key: found[key] for key in ("inputs", "outputs", "params") if found.get(key)}


def description(server):
    """The graph's inputs and outputs, as the host describes them to a guest."""
    def parts(infos):
        return [{"name": i.name, "type": i.type, "dims": [d if isinstance(d, int) else None for d in i.shape]}
                for i in infos]

    return {"inputs": parts(server.session.get_inputs()), "outputs": parts(server.session.get_outputs())}


def write_goldens(models, path):
    servers, cases = {}, []
    for model, name, body, content_type in mlflow_cases.CASES:
        server = servers.get(model) or servers.setdefault(model, InProcess(models / model))
        answer = server.post(encoded(body), content_type)
        case = {"model": model, "name": name, "content_type": content_type, **body_text(encoded(body)),
                "status": answer.status_code, "answer": shortened(answer.text)}
        if server.last_run:
            case["run"] = server.last_run
        if expected := mlflow_cases.DIFFERENCES.get((model, name)):
            case["instead"] = {"status": expected[0], "error_code": expected[1], "why": expected[2]}
        cases.append(case)
    described = [{"name": name, "signature": signature(models / name), "graph": description(server)}
                 for name, server in servers.items()]
    with open(path, "w") as file:
        file.writelines(json.dumps(line) + "\n" for line in described + cases)
    print(f"{len(cases)} cases over {len(servers)} models: {path}")


def body_text(body):
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        return {"body_base64": base64.b64encode(body).decode()}


def shortened(answer):
    """An error without its stack trace, and no more of its message than shows what is meant."""
    body = json.loads(answer) if answer.startswith("{") else None
    if not isinstance(body, dict) or "error_code" not in body:
        return answer
    body.pop("stack_trace", None)
    if len(body["message"]) > 600:
        body["message"] = body["message"][:300] + " ... " + body["message"][-300:]
    return json.dumps(body)


def compare(cases, models, ours_url, token, mlflow_url, verbose):
    differing, theirs_by_model = 0, {}
    for model, name, body, content_type in cases:
        theirs = theirs_by_model.get(model)
        if theirs is None:
            theirs = Remote(mlflow_url.format(model=model)) if mlflow_url else InProcess(models / model)
            theirs_by_model[model] = theirs
        ours = Remote(ours_url.format(model=model), token)
        expected = mlflow_cases.DIFFERENCES.get((model, name))
        found = difference(ours.post(encoded(body), content_type), theirs.post(encoded(body), content_type), expected)
        differing += found is not None
        if found or verbose:
            print(f"{'DIFFERS' if found else 'ok     '} {model}: {name}{': ' + found if found else ''}")
    print(f"{len(cases)} cases, {differing} differ")
    return differing


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, help="the folder that mlflow_models.py wrote")
    parser.add_argument("--ours", help="invocations URL of our endpoint, with {model} for its name")
    parser.add_argument("--token", help="bearer token for our endpoint")
    parser.add_argument("--mlflow", help="invocations URL of the real scoring server; default: in this process")
    parser.add_argument("--goldens", help="write MLflow's answers to this file instead of comparing")
    parser.add_argument("--only", metavar="MODEL", help="ask this model only")
    parser.add_argument("-v", "--verbose", action="store_true", help="print the cases that agree, too")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    if arguments.goldens:
        write_goldens(arguments.models, arguments.goldens)
        return 0
    if not arguments.ours:
        parser.error("--ours or --goldens is needed")
    cases = [case for case in mlflow_cases.CASES if arguments.only in (None, case[0])]
    differing = compare(cases, arguments.models, arguments.ours, arguments.token, arguments.mlflow, arguments.verbose)
    return 1 if differing or not cases else 0


if __name__ == "__main__":
    sys.exit(main())
