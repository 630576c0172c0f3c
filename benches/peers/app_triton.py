"""Triton, started by nvidia-pytriton: its Python backend calls the function below with whole batches."""

import os
import sys

import numpy as np
from iris import OUTPUTS, Iris
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

model = Iris()


@batch
def infer(X: np.ndarray) -> list[np.ndarray]:
    return [column.reshape(-1, 1) for column in model.run(X)]


if __name__ == "__main__":
    http_port, grpc_port = (int(port) for port in sys.argv[1:3])
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=http_port,
        grpc_address="127.0.0.1",
        grpc_port=grpc_port,
        allow_metrics=False,
        log_verbose=0,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="iris",
            infer_func=[infer] * int(os.environ["WORKERS"]),
            inputs=[Tensor(name="X", dtype=np.float32, shape=(4,))],
            outputs=[
                Tensor(name=name, dtype=np.int64 if name == "label" else np.float32, shape=(1,)) for name in OUTPUTS
            ],
            config=ModelConfig(max_batch_size=64, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
        )
        triton.serve()
