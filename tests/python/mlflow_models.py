"""Makes the ONNX models of the MLflow comparison, as MLflow model directories.

    python mlflow_models.py FOLDER      writes FOLDER/<name>/MLmodel, FOLDER/<name>/model.onnx, ...

Each model shows one thing a signature or a graph can do; `mlflow_cases.py` holds the requests for each. The weights are
constants or a fit without randomness, so that two runs write graphs that compute the same.
"""

import shutil
import sys
from pathlib import Path

import mlflow.onnx
import numpy as np
import onnx
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import AnyType, Array, Map, Object, Property
from onnx import TensorProto, helper

FLOAT, DOUBLE, HALF, BOOL = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BOOL
INT8, UINT8, INT32, INT64 = TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64
N = None  # a free axis


def graph(inputs, outputs, nodes, constants=None):
    """An ONNX model from `{name: (element, shape)}`, `[(op, inputs, outputs, attributes)]` and `{name: array}`."""
    made = helper.make_graph(
        [helper.make_node(op, ins, outs, **attributes) for op, ins, outs, attributes in nodes],
        "g",
        [helper.make_tensor_value_info(name, element, shape) for name, (element, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, element, shape) for name, (element, shape) in outputs.items()],
        [onnx.numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def columns(*specs):
    return Schema([ColSpec(*spec) if isinstance(spec, tuple) else ColSpec(spec) for spec in specs])


def iris_regression():
    """Petal width from the other measures and the class: a real converter's graph, not a hand-made one."""
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LinearRegression

    iris = load_iris()
    fitted = LinearRegression().fit(iris.data, iris.target)
    return convert_sklearn(fitted, initial_types=[("X", FloatTensorType([None, 4]))], target_opset=17)


IRIS = columns(("double", "sl"), ("double", "sw"), ("double", "pl"), ("double", "pw"))
SCALE = np.array([2.0], np.float32)


def doubled(element=FLOAT, shape=(N, 2), constant=SCALE):
    """y = 2x."""
    return graph(
        {"x": (element, shape)}, {"y": (element, shape)}, [("Mul", ["x", "two"], ["y"], {})], {"two": constant}
    )


def pair():
    """Two inputs of different type and rank, two outputs."""
    return graph(
        {"a": (FLOAT, (N, 2)), "b": (INT64, (N,))},
        {"sum": (FLOAT, (N,)), "count": (INT64, (N,))},
        [
            ("ReduceSum", ["a", "axes"], ["row"], {"keepdims": 0}),
            ("Cast", ["b"], ["b_float"], {"to": FLOAT}),
            ("Add", ["row", "b_float"], ["sum"], {}),
            ("Add", ["b", "b"], ["count"], {}),
        ],
        {"axes": np.array([1], np.int64)},
    )


def pair_of_columns():
    return graph(
        {"a": (FLOAT, (N,)), "b": (INT64, (N,))},
        {"sum": (FLOAT, (N,)), "count": (INT64, (N,))},
        [
            ("Cast", ["b"], ["b_float"], {"to": FLOAT}),
            ("Add", ["a", "b_float"], ["sum"], {}),
            ("Add", ["b", "b"], ["count"], {}),
        ],
    )


def pair_of_rank_two():
    """What skl2onnx makes of a table: one [N, 1] input for each column."""
    return graph(
        {"a": (FLOAT, (N, 1)), "b": (FLOAT, (N, 1))},
        {"sum": (FLOAT, (N, 1))},
        [("Add", ["a", "b"], ["sum"], {})],
    )


def mixed():
    """One graph input per column type that a graph can take; strings, bytes and dates are checked but not fed."""
    return graph(
        {"flag": (BOOL, (N,)), "n": (INT32, (N,)), "big": (INT64, (N,)), "f": (FLOAT, (N,)), "d": (DOUBLE, (N,))},
        {
            "not_flag": (BOOL, (N,)), "n_out": (INT32, (N,)), "big_out": (INT64, (N,)),
            "f_out": (FLOAT, (N,)), "d_out": (DOUBLE, (N,)),
        },
        [
            ("Not", ["flag"], ["not_flag"], {}),
            ("Identity", ["n"], ["n_out"], {}),
            ("Identity", ["big"], ["big_out"], {}),
            ("Identity", ["f"], ["f_out"], {}),
            ("Identity", ["d"], ["d_out"], {}),
        ],
    )


def nested_columns():
    """`x` and `k` are fed; the structured columns are only checked."""
    return graph(
        {"x": (DOUBLE, (N,)), "k": (INT64, (N,))},
        {"y": (DOUBLE, (N,))},
        [("Cast", ["k"], ["k_double"], {"to": DOUBLE}), ("Add", ["x", "k_double"], ["y"], {})],
    )


def small_types():
    return graph(
        {"flag": (BOOL, (N,)), "tiny": (INT8, (N,)), "byte": (UINT8, (N, 2)), "half": (HALF, (N,))},
        {"not_flag": (BOOL, (N,)), "tiny_out": (INT8, (N,)), "byte_out": (UINT8, (N, 2)), "half_out": (HALF, (N,))},
        [
            ("Not", ["flag"], ["not_flag"], {}),
            ("Identity", ["tiny"], ["tiny_out"], {}),
            ("Identity", ["byte"], ["byte_out"], {}),
            ("Identity", ["half"], ["half_out"], {}),
        ],
    )


def labelled():
    """A classifier's shape: int64 label and a float score, one each per row."""
    return graph(
        {"x": (FLOAT, (N, 2))},
        {"label": (INT64, (N,)), "score": (FLOAT, (N, 1))},
        [("ArgMax", ["x"], ["label"], {"axis": 1, "keepdims": 0}), ("ReduceSum", ["x", "axes"], ["score"], {})],
        {"axes": np.array([1], np.int64)},
    )


def labelled_uneven():
    """One label and two probabilities per row: as a DataFrame, MLflow cannot put them into one table."""
    return graph(
        {"x": (FLOAT, (N, 2))},
        {"label": (INT64, (N,)), "probabilities": (FLOAT, (N, 2))},
        [("ArgMax", ["x"], ["label"], {"axis": 1, "keepdims": 0}), ("Softmax", ["x"], ["probabilities"], {"axis": 1})],
    )


def logarithm():
    return graph({"x": (FLOAT, (N, 1))}, {"y": (FLOAT, (N, 1))}, [("Log", ["x"], ["y"], {})])


def total():
    """One number for the whole batch: an output without axes."""
    return graph(
        {"x": (FLOAT, (N, 2))}, {"y": (FLOAT, ())}, [("ReduceSum", ["x"], ["y"], {"keepdims": 0})]
    )


def tensor(dtype, shape, name=None):
    return TensorSpec(np.dtype(dtype), shape, name)


PARAMS = ParamSchema([
    ParamSpec("n", "long", 1),
    ParamSpec("temperature", "float", 0.5),
    ParamSpec("ratio", "double", 0.25),
    ParamSpec("strict", "boolean", False),
    ParamSpec("mode", "string", "fast"),
    ParamSpec("small", "integer", 1),
    ParamSpec("stop", "string", ["a"], (-1,)),
    ParamSpec("since", "datetime", np.datetime64("2024-01-01").item()),
    ParamSpec("options", Object([Property("k", DataType.string), Property("v", DataType.double, required=False)]),
              {"k": "x"}),
])

NESTED = Schema([
    ColSpec("double", "x"),
    ColSpec("long", "k"),
    ColSpec(Array(DataType.double), "arr"),
    ColSpec(Object([Property("name", DataType.string), Property("age", DataType.long, required=False)]), "obj",
            required=False),
    ColSpec(Map(DataType.long), "counts", required=False),
    ColSpec(AnyType(), "anything", required=False),
    ColSpec(Array(Array(DataType.string)), "words", required=False),
])

MODELS = {
    "iris": lambda: (iris_regression(), ModelSignature(IRIS)),
    "unnamed": lambda: (doubled(), ModelSignature(columns("double", "double"))),
    "unnamed_mixed": lambda: (doubled(), ModelSignature(columns("long", "double"))),
    "single": lambda: (logarithm(), ModelSignature(columns(("double", "x")))),
    "floats": lambda: (doubled(), ModelSignature(columns(("float", "p"), ("float", "q")))),
    "longs": lambda: (
        doubled(INT64, (N, 2), np.array([2], np.int64)), ModelSignature(columns(("long", "p"), ("long", "q")))),
    "integers": lambda: (
        doubled(INT32, (N, 2), np.array([2], np.int32)), ModelSignature(columns(("integer", "p"), ("integer", "q")))),
    "flags": lambda: (
        graph({"x": (BOOL, (N, 2))}, {"y": (BOOL, (N, 2))}, [("Not", ["x"], ["y"], {})]),
        ModelSignature(columns(("boolean", "p"), ("boolean", "q")))),
    "flag_and_number": lambda: (doubled(), ModelSignature(columns(("boolean", "p"), ("double", "q")))),
    "optional": lambda: (
        doubled(), ModelSignature(Schema([ColSpec("double", "p"), ColSpec("double", "q", required=False)]))),
    "mixed": lambda: (mixed(), ModelSignature(Schema([
        ColSpec("boolean", "flag"), ColSpec("integer", "n"), ColSpec("long", "big"), ColSpec("float", "f"),
        ColSpec("double", "d"), ColSpec("string", "s", required=False), ColSpec("binary", "blob", required=False),
        ColSpec("datetime", "when", required=False)]))),
    "text": lambda: (doubled(), ModelSignature(columns(("double", "p"), ("string", "q")))),
    "nested": lambda: (nested_columns(), ModelSignature(NESTED)),
    "tensor": lambda: (
        doubled(FLOAT, (N, 2, 2)), ModelSignature(Schema([tensor("float32", (-1, 2, 2))]))),
    "tensor_rows": lambda: (doubled(), ModelSignature(Schema([tensor("float32", (-1, 2))]))),
    "tensor_double": lambda: (doubled(), ModelSignature(Schema([tensor("float64", (-1, 2))]))),
    "tensor_scalar": lambda: (
        graph({"x": (FLOAT, (N,))}, {"y": (FLOAT, (N,))}, [("Mul", ["x", "two"], ["y"], {})], {"two": SCALE}),
        ModelSignature(Schema([tensor("float32", (-1,))]))),
    "tensor_named": lambda: (doubled(), ModelSignature(Schema([tensor("float32", (-1, 2), "x")]))),
    "tensor_misnamed": lambda: (doubled(), ModelSignature(Schema([tensor("float32", (-1, 2), "not_x")]))),
    "tensor_pair": lambda: (
        pair(), ModelSignature(Schema([tensor("float32", (-1, 2), "a"), tensor("int64", (-1,), "b")]))),
    "tensor_pair_as_one": lambda: (pair(), ModelSignature(Schema([tensor("float32", (-1, 2))]))),
    "small_types": lambda: (small_types(), ModelSignature(Schema([
        tensor("bool", (-1,), "flag"), tensor("int8", (-1,), "tiny"), tensor("uint8", (-1, 2), "byte"),
        tensor("float16", (-1,), "half")]))),
    "params": lambda: (doubled(), ModelSignature(columns(("double", "p"), ("double", "q")), params=PARAMS)),
    "labelled": lambda: (labelled(), ModelSignature(columns(("double", "p"), ("double", "q")))),
    "labelled_uneven": lambda: (labelled_uneven(), ModelSignature(columns(("double", "p"), ("double", "q")))),
    "total": lambda: (total(), ModelSignature(columns(("double", "p"), ("double", "q")))),
    "bare": lambda: (doubled(), None),
    "bare_pair": lambda: (pair_of_columns(), None),
    "bare_double": lambda: (doubled(DOUBLE, (N, 2), np.array([2.0])), None),
    "column_pair": lambda: (pair_of_columns(), ModelSignature(columns(("double", "a"), ("long", "b")))),
    "column_pair_rank_two": lambda: (pair_of_rank_two(), ModelSignature(columns(("double", "a"), ("double", "b")))),
    "prompted": lambda: (pair_of_columns_named(), ModelSignature(columns(("double", "prompt"), ("long", "b")))),
}


def pair_of_columns_named():
    """A column with a name that MLflow reserves for language models."""
    return graph(
        {"prompt": (FLOAT, (N,)), "b": (INT64, (N,))},
        {"sum": (FLOAT, (N,))},
        [("Cast", ["b"], ["b_float"], {"to": FLOAT}), ("Add", ["prompt", "b_float"], ["sum"], {})],
    )


def make(folder):
    """Writes every model below `folder`; what was there under the same names is replaced."""
    for name, build in MODELS.items():
        target = Path(folder) / name
        shutil.rmtree(target, ignore_errors=True)
        onnx_model, signature = build()
        # Requirements are given because inferring them would run each model in a process of its own.
        mlflow.onnx.save_model(onnx_model, str(target), signature=signature, pip_requirements=["onnxruntime"],
                               save_as_external_data=False)


if __name__ == "__main__":
    make(sys.argv[1])
