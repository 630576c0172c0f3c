"""The model as every peer's server uses it: one ONNX Runtime session with one thread, on the file in $IRIS_ONNX."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime

OUTPUTS = ["label", "setosa", "versicolor", "virginica"]


class Iris:
    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            os.environ["IRIS_ONNX"], options, providers=["CPUExecutionProvider"]
        )

    def run(self, flowers: Any) -> list[Any]:
        """One array per output, one number per flower."""
        return self.session.run(OUTPUTS, {"X": np.asarray(flowers, np.float32)})

    def predictions(self, flowers: Sequence[Sequence[float]]) -> list[dict[str, float]]:
        """One dictionary per flower, as Tessera and MLflow answer."""
        columns = [column.tolist() for column in self.run(flowers)]
        return [dict(zip(OUTPUTS, row)) for row in zip(*columns)]
