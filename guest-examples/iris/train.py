"""Trains the iris classifier and saves it as an MLflow model directory: guest-examples/iris/model.

    make iris

A scaler and a logistic regression, converted to ONNX. The graph takes X float32 [N, 4] and gives, per row, `label`
(int64: 0 setosa, 1 versicolor, 2 virginica) and one probability for each species (float32). Each output is one number
per row, because MLflow makes a data frame of the outputs, one column per output, and refuses a matrix there.
The same inputs and library versions give the same files, byte for byte.
"""

import shutil
import tempfile
from pathlib import Path

import mlflow.onnx
import numpy as np
import onnx
import onnxruntime
import yaml
from mlflow.models import infer_signature
from onnx import helper, numpy_helper
from pandas import DataFrame
from skl2onnx import to_onnx
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

COLUMNS = ["sepal_length", "sepal_width", "petal_length", "petal_width"]  # in cm
KEPT = ["model.onnx", "requirements.txt", "python_env.yaml", "input_example.json", "serving_input_example.json"]
OUT = Path(__file__).parent / "model"


def main():
    data = load_iris()
    classifier = make_pipeline(StandardScaler(), LogisticRegression()).fit(data.data, data.target)
    model = finish(convert(classifier), data.target_names)

    features = DataFrame(data.data, columns=COLUMNS)
    answers = DataFrame(classifier.predict_proba(data.data).astype(np.float32), columns=data.target_names)
    answers.insert(0, "label", classifier.predict(data.data))
    check(model, features, answers)
    save(model, features, answers)
    print(f"accuracy on the training data {classifier.score(data.data, data.target):.3f}; wrote {OUT}")


def convert(classifier):
    """The pipeline up to the raw scores, in plain operators: not every backend has those of ai.onnx.ml."""
    model = to_onnx(
        classifier,
        np.zeros((1, len(COLUMNS)), np.float32),
        options={"zipmap": False},
        target_opset={"": 17, "ai.onnx.ml": 3},
        black_op={"Scaler", "LinearClassifier", "Normalizer"},
    )
    model = onnx.shape_inference.infer_shapes(model)
    return onnx.utils.Extractor(model).extract_model(["X"], ["raw_scores"])


def finish(model, species):
    """Adds what turns raw scores into the outputs: the best class, and the probability of each."""
    graph = model.graph
    graph.name = "iris"
    graph.node.append(helper.make_node("ArgMax", ["raw_scores"], ["label"], axis=1, keepdims=0))
    graph.node.append(helper.make_node("Softmax", ["raw_scores"], ["probabilities"], axis=1))
    del graph.output[:], graph.value_info[:]
    graph.output.append(helper.make_tensor_value_info("label", onnx.TensorProto.INT64, ["N"]))
    for index, name in enumerate(species):
        graph.initializer.append(numpy_helper.from_array(np.array(index, np.int64), f"{name}_index"))
        graph.node.append(helper.make_node("Gather", ["probabilities", f"{name}_index"], [name], axis=1))
        graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N"]))
    graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", 17))
    onnx.checker.check_model(model, full_check=True)
    return model


def check(model, features, answers):
    """The graph must say what scikit-learn says, on every flower."""
    session = onnxruntime.InferenceSession(model.SerializeToString())
    outputs = session.run(list(answers.columns), {"X": features.to_numpy(np.float32)})
    for name, column in zip(answers.columns, outputs, strict=True):
        np.testing.assert_allclose(column, answers[name], atol=1e-6, err_msg=name)


def save(model, features, answers):
    """Writes the directory through MLflow, then leaves out what differs from run to run or is of no use here."""
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "model"
        mlflow.onnx.save_model(
            model,
            made,
            signature=infer_signature(features, answers),
            input_example=features.iloc[[0, 75, 149]],  # one flower of each species
            onnx_execution_providers=["CPUExecutionProvider"],
            save_as_external_data=False,
        )
        manifest = yaml.safe_load((made / "MLmodel").read_text())
        shutil.rmtree(OUT, ignore_errors=True)
        OUT.mkdir()
        for name in KEPT:
            shutil.copy(made / name, OUT / name)

    del manifest["flavors"]["python_function"]["env"]["conda"]
    for volatile in ("model_uuid", "utc_time_created", "model_size_bytes"):
        del manifest[volatile]
    (OUT / "MLmodel").write_text(yaml.safe_dump(manifest))


if __name__ == "__main__":
    main()
