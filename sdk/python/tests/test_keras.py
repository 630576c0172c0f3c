"""Models of Keras, where TensorFlow and tf2onnx are installed: Keras needs both to export them. `setup.sh` leaves them out,
for they are another gigabyte."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tessera
from served import answers

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
for needed in ("tensorflow", "tf2onnx"):
    pytest.importorskip(needed, reason=f"{needed} is not installed: Keras needs it to export its models")

import keras

LEFT, RIGHT = (np.random.default_rng(0).normal(size=(1000, width)).astype(np.float32) for width in (4, 2))


def _sequential() -> Any:
    keras.utils.set_random_seed(1)
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(16, "relu"), layers.BatchNormalization(), layers.Dense(3, "softmax")]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(LEFT, (LEFT[:, 0] > 0).astype(int) + (LEFT[:, 1] > 0), verbose=0)
    return model


def _of_two_inputs() -> Any:
    keras.utils.set_random_seed(1)
    left, right = keras.Input((4,), name="left"), keras.Input((2,), name="right")
    joined = keras.layers.Concatenate()([keras.layers.Dense(8, "tanh")(left), right])
    return keras.Model({"left": left, "right": right}, keras.layers.Dense(1)(joined))


MODELS = {"sequential": (_sequential, LEFT), "of two inputs": (_of_two_inputs, {"left": LEFT, "right": RIGHT})}


def _first(rows: Any, count: int) -> Any:
    return {name: of[:count] for name, of in rows.items()} if isinstance(rows, dict) else rows[:count]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("saved", [False, True], ids=["in memory", "saved by mlflow"])
def test_a_model_answers_as_keras_does(name: str, saved: bool, tmp_path: Path) -> None:
    build, rows = MODELS[name]
    model: Any = build()
    expected = np.asarray(model(rows))
    example = _first(rows, 10)
    given: Any = model
    if saved:
        mlflow = pytest.importorskip("mlflow")
        given = str(tmp_path / "saved")
        signature = mlflow.models.infer_signature(example)
        mlflow.tensorflow.save_model(model, given, signature=signature, input_example=example, pip_requirements=["mlflow"])
    made = tessera.package(given, tmp_path / "package", input_example=None if saved else example)
    assert made.flavour == ("tensorflow" if saved else "keras") and made.parity is not None
    np.testing.assert_allclose(answers(made.path, rows), expected, atol=1e-5)


def test_several_outputs_are_refused(tmp_path: Path) -> None:
    given = keras.Input((4,))
    model = keras.Model(given, [keras.layers.Dense(1)(given), keras.layers.Dense(2)(given)])
    with pytest.raises(tessera.ConversionError, match="the model has 2 outputs, and a package answers with one"):
        tessera.package(model, tmp_path / "package", input_example=LEFT[:10])
