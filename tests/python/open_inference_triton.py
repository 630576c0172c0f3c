"""Uses a server through tritonclient, unmodified, over HTTP and gRPC: `open_inference_triton.py HOST:PORT TOKEN [CA]`.

The server has the endpoints `types`, whose outputs are its inputs, `text`, which makes embeddings, and `linear`. With the
file of a CA, both clients speak TLS, and only `linear` is asked. What is wrong ends the script; to stdout goes the
embedding of a text."""

import asyncio
import json
import queue
import ssl
import sys

import grpc
import ml_dtypes
import numpy as np
import tritonclient.grpc as over_grpc
import tritonclient.grpc.aio as over_grpc_aio
import tritonclient.http as over_http
import tritonclient.http.aio as over_http_aio
from tritonclient.utils import InferenceServerException

address, token, *ca = sys.argv[1:]


def auth():
    """Made for each call: the HTTP client writes its own headers into it."""
    return {"authorization": f"Bearer {token}"}


ARRAYS = {
    "FLOAT16": ("FP16", np.array([[1.5, -2.0], [65504.0, np.inf]], np.float16)),
    "BFLOAT16": ("BF16", np.array([[1.5, -2.0], [3e38, 1.0]], ml_dtypes.bfloat16)),
    "FLOAT": ("FP32", np.array([[1.5, np.nan], [-0.0, 3e38]], np.float32)),
    "DOUBLE": ("FP64", np.array([[1e300, np.nan], [5e-324, 2.0]], np.float64)),
    "UINT8": ("UINT8", np.array([[0, 255], [1, 2]], np.uint8)),
    "INT8": ("INT8", np.array([[-128, 127], [1, 2]], np.int8)),
    "INT32": ("INT32", np.array([[-(2**31), 2**31 - 1], [1, 2]], np.int32)),
    "INT64": ("INT64", np.array([[-(2**63), 2**63 - 1], [1, 2]], np.int64)),
    "BOOL": ("BOOL", np.array([[True, False], [False, True]])),
}


def inputs(api, arrays=ARRAYS, **how):
    made = []
    for kind, (datatype, array) in arrays.items():
        tensor = api.InferInput(f"in_{kind}", list(array.shape), datatype)
        made.append(tensor.set_data_from_numpy(array, **how))
    return made


def same(result, arrays=ARRAYS):
    for kind, (_, array) in arrays.items():
        got = result.as_numpy(f"out_{kind}")
        assert got.dtype == array.dtype and got.shape == array.shape, (kind, got)
        assert got.tobytes() == array.tobytes(), (kind, got, array)


def numbers(api, values=(1, 2, 3, 4)):
    array = np.array([values], np.float32)
    return [api.InferInput("x", list(array.shape), "FP32").set_data_from_numpy(array)]


def refused(call, status, *words):
    try:
        call()
    except InferenceServerException as error:
        assert status in str(error.status()), error
        assert all(word in str(error.message()) for word in words), error
        return
    raise AssertionError(f"{status} was expected")


def what_both_can(api, client, statuses):
    bad, missing, nobody = statuses
    assert client.is_server_live(headers=auth()) and client.is_server_ready()
    assert client.is_model_ready("types", headers=auth()) and client.is_model_ready("types", "1", headers=auth())

    # All types, there and back.
    result = client.infer("types", inputs(api), request_id="request 7", headers=auth())
    same(result)

    # Some outputs only, of a version.
    asked = [api.InferRequestedOutput(name) for name in ["out_INT64", "out_BOOL"]]
    result = client.infer("types", inputs(api), "1", outputs=asked, headers=auth())
    same(result, {kind: ARRAYS[kind] for kind in ["INT64", "BOOL"]})
    assert result.as_numpy("out_FLOAT") is None

    # No rows.
    empty = {kind: (datatype, array[:0]) for kind, (datatype, array) in ARRAYS.items()}
    same(client.infer("types", inputs(api, empty), headers=auth()), empty)

    # Parameters that mean nothing here are passed over.
    result = client.infer("linear", numbers(api), priority=3, parameters={"k": "v"}, timeout=10**6, headers=auth())
    assert result.as_numpy("y").tolist() == [[3, 5, 7, 9]]

    # Many rows.
    rows = np.arange(40_000, dtype=np.float32).reshape(-1, 4)
    tensor = api.InferInput("x", list(rows.shape), "FP32").set_data_from_numpy(rows)
    result = client.infer("linear", [tensor], headers=auth())
    assert np.array_equal(result.as_numpy("y"), rows * 2 + 1)

    # What is wrong is said.
    refused(lambda: client.infer("linear", numbers(api)), nobody)
    refused(lambda: client.infer("nowhere", numbers(api), headers=auth()), missing, "nowhere")
    refused(lambda: client.infer("linear", numbers(api), "9", headers=auth()), missing, "version '9'")
    refused(lambda: client.infer("linear", numbers(api, (1, 2)), headers=auth()), bad, "Expected [-1,4], got [1, 2]")
    words = api.InferInput("x", [1, 1], "BYTES").set_data_from_numpy(np.array([["a"]], object))
    refused(lambda: client.infer("linear", [words], headers=auth()), bad, "'BYTES'", "expects 'FP32'")
    refused(lambda: client.get_model_metadata("nowhere", headers=auth()), missing)


def text(api, **how):
    texts = np.array(["a text", "ein Text in Köln", "€"], dtype=object)
    tensor = api.InferInput("text", [3], "BYTES")
    return [tensor.set_data_from_numpy(texts, **how)]


def http(client):
    what_both_can(over_http, client, ("400", "404", "401"))
    assert not client.is_model_ready("nowhere", headers=auth())
    assert client.get_server_metadata()["name"] == "tessera"
    metadata = client.get_model_metadata("linear", headers=auth())
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}], metadata
    config = client.get_model_config("linear", headers=auth())
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 4]}], config
    index = client.get_model_repository_index(headers=auth())
    assert {"name": "linear", "version": "1", "state": "READY", "reason": ""} in index, index
    result = client.infer("linear", numbers(over_http), request_id="mine", headers=auth())
    assert result.get_response()["id"] == "mine" and result.get_response()["model_name"] == "linear"

    # Numbers in the JSON, in one direction or both; those types that have a form there.
    spelled = {kind: ARRAYS[kind] for kind in ["UINT8", "INT8", "INT32", "INT64", "BOOL"]}
    asked = [over_http.InferRequestedOutput(f"out_{kind}", binary_data=False) for kind in spelled]
    mixed = [tensor for tensor in inputs(over_http) if tensor.name()[3:] not in spelled]
    mixed += inputs(over_http, spelled, binary_data=False)
    same(client.infer("types", mixed, outputs=asked, headers=auth()), spelled)

    # Compressed there and back.
    rows = np.zeros((500, 4), np.float32)
    zeros = [over_http.InferInput("x", [500, 4], "FP32").set_data_from_numpy(rows)]
    for request in [None, "gzip", "deflate"]:
        for response in [None, "gzip", "deflate"]:
            result = client.infer("linear", zeros, headers=auth(), request_compression_algorithm=request,
                                  response_compression_algorithm=response)
            assert np.array_equal(result.as_numpy("y"), rows + 1)

    waiting = [client.async_infer("linear", numbers(over_http), headers=auth()) for _ in range(8)]
    assert all(one.get_result().as_numpy("y").tolist() == [[3, 5, 7, 9]] for one in waiting)

    counted = client.get_inference_statistics("linear", headers=auth())["model_stats"][0]
    assert counted["inference_count"] >= 18 and counted["inference_stats"]["fail"]["count"] >= 2, counted
    assert counted["inference_stats"]["success"]["ns"] > 0, counted
    everything = client.get_inference_statistics(headers=auth())["model_stats"]
    assert {one["name"] for one in everything} == {"types", "text", "linear"}, everything


def grpc_too(client):
    what_both_can(over_grpc, client, ("INVALID_ARGUMENT", "NOT_FOUND", "UNAUTHENTICATED"))
    refused(lambda: client.is_model_ready("nowhere", headers=auth()), "NOT_FOUND", "nowhere")
    assert client.get_server_metadata().name == "tessera"
    metadata = client.get_model_metadata("linear", headers=auth(), as_json=True)
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "4"]}], metadata
    config = client.get_model_config("linear", headers=auth(), as_json=True)["config"]
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": ["-1", "4"]}], config
    index = client.get_model_repository_index(headers=auth(), as_json=True)["models"]
    assert {"name": "linear", "version": "1", "state": "READY"} in index, index
    result = client.infer("linear", numbers(over_grpc), request_id="mine", headers=auth())
    assert result.get_response().id == "mine" and result.get_response().model_version == "1"
    for algorithm in ["gzip", "deflate"]:
        result = client.infer("linear", numbers(over_grpc), headers=auth(), compression_algorithm=algorithm)
        assert result.as_numpy("y").tolist() == [[3, 5, 7, 9]]

    # A caller that says how long it waits.
    client.infer("linear", numbers(over_grpc), headers=auth(), client_timeout=60)

    answers = queue.Queue()
    for _ in range(8):
        client.async_infer("linear", numbers(over_grpc), lambda result, error: answers.put((result, error)), headers=auth())
    for _ in range(8):
        result, error = answers.get(timeout=60)
        assert error is None and result.as_numpy("y").tolist() == [[3, 5, 7, 9]]

    # Many on one stream, in their order; one that is wrong does not end it.
    client.start_stream(lambda result, error: answers.put((result, error)), headers=auth())
    for first in range(20):
        client.async_stream_infer("linear", numbers(over_grpc, (first, 0, 0, 0)), request_id=str(first))
    client.async_stream_infer("nowhere", numbers(over_grpc))
    client.async_stream_infer("linear", numbers(over_grpc))
    for first in range(20):
        result, error = answers.get(timeout=60)
        assert error is None and result.get_response().id == str(first)
        assert result.as_numpy("y")[0, 0] == 2 * first + 1
    result, error = answers.get(timeout=60)
    assert result is None and "nowhere" in str(error)
    result, error = answers.get(timeout=60)
    assert error is None and result.as_numpy("y").tolist() == [[3, 5, 7, 9]]
    client.stop_stream()

    counted = client.get_inference_statistics("linear", headers=auth()).model_stats[0]
    assert counted.inference_count >= 40 and counted.inference_stats.success.ns > 0, counted


async def both_again():
    async with over_http_aio.InferenceServerClient(address) as client:
        result = await client.infer("linear", numbers(over_http_aio), headers=auth())
        assert result.as_numpy("y").tolist() == [[3, 5, 7, 9]]
    async with over_grpc_aio.InferenceServerClient(address) as client:
        result = await client.infer("linear", numbers(over_grpc_aio), headers=auth())
        assert result.as_numpy("y").tolist() == [[3, 5, 7, 9]]


def health():
    """gRPC's own health service, by hand: its client is another package."""
    with grpc.insecure_channel(address) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"") == b"\x08\x01"
        try:
            check(b"\x0a\x01x")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.NOT_FOUND, error
        try:
            channel.unary_unary("/inference.GRPCInferenceService/Nothing")(b"")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error


if ca:
    context = lambda: ssl.create_default_context(cafile=ca[0])
    with over_http.InferenceServerClient(address, ssl=True, ssl_context_factory=context) as client:
        assert client.infer("linear", numbers(over_http), headers=auth()).as_numpy("y").tolist() == [[3, 5, 7, 9]]
    with over_grpc.InferenceServerClient(address, ssl=True, root_certificates=ca[0]) as client:
        assert client.infer("linear", numbers(over_grpc), headers=auth()).as_numpy("y").tolist() == [[3, 5, 7, 9]]
else:
    with over_http.InferenceServerClient(address, concurrency=4) as client:
        http(client)
        embedded = client.infer("text", text(over_http), headers=auth()).as_numpy("embedding")
        spelled = client.infer("text", text(over_http, binary_data=False), headers=auth()).as_numpy("embedding")
        assert np.array_equal(embedded, spelled)
    with over_grpc.InferenceServerClient(address) as client:
        grpc_too(client)
        assert np.array_equal(embedded, client.infer("text", text(over_grpc), headers=auth()).as_numpy("embedding"))
        metadata = client.get_model_metadata("text", headers=auth())
        assert metadata.inputs[0].datatype == "BYTES" and list(metadata.outputs[0].shape) == [-1, embedded.shape[1]]
    asyncio.run(both_again())
    health()
    print(json.dumps(embedded.tolist()))
