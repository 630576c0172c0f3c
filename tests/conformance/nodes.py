"""Runs the ONNX project's backend cases through a server: each case is deployed with a guest that hands its tensors to
wasi:nn and back, asked over HTTP, and compared with the outputs that the case says.

    nodes.py --url URL --token TOKEN --guest FILE --backend onnxruntime|tract [--supported FILE] [--every N]

A case counts if the types of all its inputs and outputs can cross wasi:nn (`bool` and `int8` as `u8`) and if ONNX Runtime,
called directly, passes it. With the backend onnxruntime each of these must pass. With tract none may give a wrong answer,
and those in the list `--supported` must pass; `--write` makes the list anew. Each computation is made twice: by calls of
wasi:nn, and by the SDK's single call. The last line is `onnx nodes: N of M passed`; the exit code says whether all is well.
"""

import argparse
import http.client
import io
import json
import os
import queue
import struct
import sys
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, urlsplit

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, numpy_helper

GROUPS = ["node", "pytorch-converted", "pytorch-operator", "simple"]

# Types of wasi:nn, in the order that the guest counts them.
WASI_NN = ["fp16", "fp32", "fp64", "bf16", "u8", "i32", "i64"]

# Element types of ONNX: what they are in wasi:nn, and in numpy.
TYPES = {
    TensorProto.FLOAT16: ("fp16", np.float16),
    TensorProto.FLOAT: ("fp32", np.float32),
    TensorProto.DOUBLE: ("fp64", np.float64),
    TensorProto.BFLOAT16: ("bf16", ml_dtypes.bfloat16),
    TensorProto.UINT8: ("u8", np.uint8),
    TensorProto.INT32: ("i32", np.int32),
    TensorProto.INT64: ("i64", np.int64),
    TensorProto.BOOL: ("u8", np.bool_),
    TensorProto.INT8: ("u8", np.int8),
}

# As in the ONNX project's own runner, but for the smallest of numbers: other summation orders are allowed.
TOLERANCE = {"rtol": 1e-3, "atol": 1e-5}

MODEL = "main.default.{}"

MANIFEST = """\
component = "guest.wasm"

[graphs.model]
file = "model.onnx"
backend = "{backend}"
"""


class Case:
    """A model, and inputs with the outputs that they must give."""

    def __init__(self, number, folder):
        self.folder = folder
        self.name = f"{folder.parent.name}/{folder.name}"
        # Some names are too long for an endpoint.
        self.slug = f"case-{number}"
        self.files = [path for path in folder.iterdir() if path.is_file()]
        graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
        weights = {weight.name for weight in graph.initializer}
        self.inputs = [(value.name, element(value)) for value in graph.input if value.name not in weights]
        self.outputs = [(value.name, element(value)) for value in graph.output]

    def is_expressible(self):
        """Whether all that goes in and out can cross wasi:nn."""
        return all(type_ in TYPES for _, type_ in self.inputs + self.outputs)

    def sets(self):
        """(inputs by name, expected outputs in order), for each set of data."""
        for data in sorted(self.folder.glob("test_data_set_*")):
            given = zip(self.inputs, tensors(data, "input"))
            yield {name: value for (name, _), value in given if value is not None}, tensors(data, "output")

    def passes_directly(self):
        """Whether ONNX Runtime by itself gives the expected outputs."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        try:
            session = onnxruntime.InferenceSession(
                self.folder / "model.onnx", options, providers=["CPUExecutionProvider"]
            )
            names = [name for name, _ in self.outputs]
            return all(
                differs(session.run(names, feed), expected) is None for feed, expected in self.sets()
            )
        except Exception:  # whatever it says, it is not a case that it passes
            return False


def element(value):
    """The element type of an input or output; None for what is not a tensor."""
    return value.type.tensor_type.elem_type if value.type.HasField("tensor_type") else None


def tensors(folder, kind):
    """The tensors input_0.pb, input_1.pb, ...; None for one that is left out."""
    files = sorted(folder.glob(f"{kind}_*.pb"), key=lambda path: int(path.stem.split("_")[1]))

    def tensor(path):
        content = path.read_bytes()
        return numpy_helper.to_array(TensorProto.FromString(content)) if content else None

    return [tensor(path) for path in files]


def differs(got, expected):
    """What is wrong with outputs, in words; None when nothing is."""
    if len(got) != len(expected):
        return f"{len(got)} outputs instead of {len(expected)}"
    for position, (value, want) in enumerate(zip(got, expected)):
        value = np.asarray(value)
        if value.dtype != want.dtype or value.shape != want.shape:
            return f"output {position}: {value.dtype}{list(value.shape)} instead of {want.dtype}{list(want.shape)}"
        exact = want.dtype.kind in "bui"
        wide = [value, want] if exact else [value.astype(np.float64), want.astype(np.float64)]
        if not (np.array_equal(*wide) if exact else np.allclose(*wide, equal_nan=True, **TOLERANCE)):
            return f"output {position}: other values"
    return None


class Refused(Exception):
    """The server did not do what it was asked for; says why."""


class Server:
    """A server's REST API over one connection."""

    def __init__(self, url, token):
        self.connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)
        self.headers = {"authorization": f"Bearer {token}"}

    def ask(self, method, path, body=None):
        """The body of the answer."""
        if isinstance(body, dict):
            body = json.dumps(body).encode()
        self.connection.request(method, path, body, self.headers)
        response = self.connection.getresponse()
        content = response.read()
        if response.status >= 400:
            raise Refused(f"{response.status} at {method} {path}: {content.decode(errors='replace')}")
        return content

    def ask_json(self, method, path, body=None):
        return json.loads(self.ask(method, path, body) or b"{}")

    def push(self, case, manifest, guest):
        """Registers the case as the version 1 of a model of its own."""
        model, registry = MODEL.format(case.slug), "/api/2.0/mlflow/unity-catalog"
        self.ask("POST", f"{registry}/registered-models/create", {"name": model})
        self.ask("POST", f"{registry}/model-versions/create", {"name": model, "source": "conformance"})
        files = {path.name: path.read_bytes() for path in case.files}
        for name, content in {"tessera.toml": manifest.encode(), "guest.wasm": guest, **files}.items():
            path = f"/api/2.0/fs/files/Models/{model.replace('.', '/')}/1/{quote(name)}?overwrite=true"
            self.ask("PUT", path, content)
        self.ask("POST", f"{registry}/model-versions/finalize", {"name": model, "version": "1"})
        return model

    def deploy(self, name, model):
        entity = {"entity_name": model, "entity_version": "1"}
        self.ask("POST", "/api/2.0/serving-endpoints", {"name": name, "config": {"served_entities": [entity]}})
        while True:
            state = self.ask_json("GET", f"/api/2.0/serving-endpoints/{name}")
            if state["state"]["config_update"] != "IN_PROGRESS":
                break
        if state["state"]["ready"] != "READY":
            entities = (state.get("pending_config") or state.get("config"))["served_entities"]
            raise Refused(entities[0]["state"].get("deployment_state_message", "not ready"))

    def compute(self, name, case, feed, way):
        """The outputs for inputs, as arrays of the types that the model says. tests/guests/passthrough has the form."""
        types = dict(case.inputs)
        request = bytes([way]) + b"".join(packed(name, types[name], value) for name, value in feed.items())
        answer = io.BytesIO(self.ask("POST", f"/serving-endpoints/{name}/invocations", request))
        types = dict(case.outputs)
        outputs = {}
        while answer.tell() < len(answer.getbuffer()):
            output, crossed, axes = sized(answer).decode(), *answer.read(2)
            dims = struct.unpack(f"<{axes}I", answer.read(4 * axes))
            as_in_wasi_nn, dtype = TYPES[types[output]]
            if crossed != WASI_NN.index(as_in_wasi_nn):
                raise Refused(f"output {output} came as type {crossed} of {WASI_NN}")
            outputs[output] = np.frombuffer(sized(answer), dtype).reshape(dims)
        return [outputs[name] for name, _ in case.outputs]


def packed(name, type_, value):
    """A tensor as the guest takes it."""
    name, values = name.encode(), np.ascontiguousarray(value).tobytes()
    head = struct.pack(f"<I{len(name)}sBB", len(name), name, WASI_NN.index(TYPES[type_][0]), value.ndim)
    return head + struct.pack(f"<{value.ndim}II", *value.shape, len(values)) + values


def sized(stream):
    """Bytes after their length."""
    (length,) = struct.unpack("<I", stream.read(4))
    return stream.read(length)


def judge(server, case, manifest, guest):
    """("passed" | "refused" | "wrong", why)."""
    try:
        server.deploy(case.slug, server.push(case, manifest, guest))
        for feed, expected in case.sets():
            for way, what in enumerate(["calls of wasi:nn", "the SDK's call"]):
                difference = differs(server.compute(case.slug, case, feed, way), expected)
                if difference:
                    return "wrong", f"by {what}: {difference}"
        return "passed", ""
    except Refused as error:
        return "refused", str(error)
    finally:
        try:
            server.ask("DELETE", f"/api/2.0/serving-endpoints/{case.slug}")
        except Refused:
            pass  # it was never made


def judge_all(arguments, cases):
    """What became of each case, by its name."""
    guest = arguments.guest.read_bytes()
    manifest = MANIFEST.format(backend=arguments.backend)
    jobs = os.cpu_count() or 1
    servers = queue.SimpleQueue()
    for _ in range(jobs):
        servers.put(Server(arguments.url, arguments.token))

    def one(case):
        server = servers.get()
        try:
            return case.name, judge(server, case, manifest, guest)
        finally:
            servers.put(server)

    with ThreadPoolExecutor(jobs) as pool:
        return dict(pool.map(one, cases))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--token", required=True)
    parser.add_argument("--guest", type=Path, required=True)
    parser.add_argument("--backend", choices=["onnxruntime", "tract"], required=True)
    parser.add_argument("--supported", type=Path, help="names of the cases that must pass, one a line")
    parser.add_argument("--write", action="store_true", help="write that list instead of comparing with it")
    parser.add_argument("--every", type=int, default=1, help="only each Nth case")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # casts of the comparison, where infinities are expected

    data = Path(onnx.__file__).parent / "backend/test/data"
    folders = [folder for group in GROUPS for folder in sorted((data / group).iterdir()) if folder.is_dir()]
    cases = [case for case in map(Case, range(len(folders)), folders[:: arguments.every]) if case.is_expressible()]
    cases = [case for case in cases if case.passes_directly()]
    outcomes = judge_all(arguments, cases)

    passed = {name for name, (outcome, _) in outcomes.items() if outcome == "passed"}
    must = set(outcomes)
    if arguments.supported and arguments.write:
        arguments.supported.write_text("".join(f"{name}\n" for name in sorted(passed)))
    if arguments.supported:
        must &= set(arguments.supported.read_text().split())
        new = len(passed - must)
        if new:
            print(f"{new} cases pass that are not in {arguments.supported.name}: write it anew")
    bad = {name for name, (outcome, _) in outcomes.items() if outcome == "wrong"} | (must - passed)
    for name in sorted(bad):
        print(f"{name}: {': '.join(outcomes[name])}")
    counts = Counter(outcome for outcome, _ in outcomes.values())
    print(f"{arguments.backend}: {counts['passed']} passed, {counts['refused']} refused, {counts['wrong']} wrong")
    print(f"onnx nodes: {len(passed)} of {len(outcomes)} passed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
