"""Uses a server through kserve's inference clients, unmodified, over REST and gRPC: `open_inference_kserve.py HOST:PORT
TOKEN`. The server has the endpoint `linear`. What is wrong ends the script."""

import asyncio
import sys

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

address, token = sys.argv[1:]
base = f"http://{address}"
headers = {"authorization": f"Bearer {token}"}
metadata = (("authorization", f"Bearer {token}"),)


def request(model="linear", binary=True):
    rows = np.array([[1, 2, 3, 4], [0, 0, 0, 0]], np.float32)
    tensor = InferInput("x", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows, binary_data=binary)
    parameters = {"binary_data_output": True} if binary else None
    return InferRequest(model_name=model, infer_inputs=[tensor], request_id="mine", parameters=parameters)


def right(response):
    assert response.id == "mine" and response.model_name == "linear", response
    assert response.outputs[0].as_numpy().tolist() == [[3, 5, 7, 9], [1, 1, 1, 1]], response


async def rest():
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        assert await client.is_server_live(base) and await client.is_server_ready(base)
        assert await client.is_model_ready(base, "linear", headers=headers)
        for binary in [False, True]:
            right(await client.infer(base, request(binary=binary), model_name="linear", headers=dict(headers)))
        try:
            await client.infer(base, request(), model_name="nowhere", headers=dict(headers))
            raise AssertionError("404 was expected")
        except httpx.HTTPStatusError as error:
            assert error.response.status_code == 404 and "nowhere" in str(error), error


async def over_grpc():
    async with InferenceGRPCClient(address) as client:
        assert await client.is_server_live() and await client.is_server_ready()
        assert await client.is_model_ready("linear", headers=metadata)
        # Typed contents, and raw ones.
        for binary in [False, True]:
            right(await client.infer(request(binary=binary), headers=metadata))
        try:
            await client.infer(request("nowhere"), headers=metadata)
            raise AssertionError("NOT_FOUND was expected")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.NOT_FOUND and "nowhere" in error.details(), error


async def main():
    await rest()
    await over_grpc()


asyncio.run(main())
