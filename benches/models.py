"""Makes the models of the benches: multilayer perceptrons with random weights, each as a package to push.

    models.py OUT_DIR

Writes OUT_DIR/NAME/{tessera.toml, model.onnx, example.json} for each NAME below. The weights and the example are drawn
from fixed seeds: every machine measures the same computation. Needs the Python packages onnx and numpy.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# Units per layer, the input's first. `mlp` takes a few microseconds of a core, `mlpbig` (35 MB) about a millisecond.
MODELS = {
    "mlp": [128, 256, 256, 10],
    "mlpbig": [128, 2048, 2048, 2048, 10],
}

OPSET = 17
IR_VERSION = 8  # what goes with opset 17; older runtimes refuse newer files

MANIFEST = """\
# {name}: fp32 multilayer perceptron {layers} with random weights, for the benches.
component = "stock:scoring"

[graphs.model]
file = "model.onnx"

[golden]
request = "example.json"
"""


def main(out):
    for name, units in MODELS.items():
        package = out / name
        package.mkdir(parents=True, exist_ok=True)
        onnx.save(perceptron(name, units), package / "model.onnx")
        (package / "tessera.toml").write_text(MANIFEST.format(name=name, layers="-".join(map(str, units))))
        row = np.random.default_rng(1).standard_normal(units[0])
        (package / "example.json").write_text(json.dumps({"inputs": [[round(value, 4) for value in row.tolist()]]}) + "\n")


def perceptron(name, units):
    """X [rows, units[0]] -> Gemm, Relu, ..., Gemm -> Y [rows, units[-1]]."""
    random = np.random.default_rng(0)
    nodes, weights, value = [], [], "X"
    for layer, (width, height) in enumerate(zip(units, units[1:])):
        # He initialisation: with it the values neither vanish nor explode from layer to layer.
        matrix = random.standard_normal((width, height)) * np.sqrt(2 / width)
        weights.append(numpy_helper.from_array(matrix.astype(np.float32), f"W{layer}"))
        weights.append(numpy_helper.from_array(np.zeros(height, np.float32), f"B{layer}"))
        last = layer == len(units) - 2
        sums = "Y" if last else f"sums{layer}"
        nodes.append(helper.make_node("Gemm", [value, f"W{layer}", f"B{layer}"], [sums]))
        if not last:
            value = f"hidden{layer}"
            nodes.append(helper.make_node("Relu", [sums], [value]))
    tensor = lambda name, width: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", width])
    graph = helper.make_graph(nodes, name, [tensor("X", units[0])], [tensor("Y", units[-1])], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return model


if __name__ == "__main__":
    main(Path(sys.argv[1]))
