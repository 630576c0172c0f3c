"""Models as MLflow saves them, ONNX files, archives, and the command line."""

from __future__ import annotations

import json
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
import pytest
from mlflow.models import infer_signature

import tessera
from models import TABULAR, Trained
from served import answers
from tessera.__main__ import main


def _saved(trained: Trained, path: Path, flavour: Any = mlflow.sklearn, **options: Any) -> str:
    flavour.save_model(
        trained.model,
        str(path),
        signature=infer_signature(trained.rows),
        input_example=trained.rows[:10],
        pip_requirements=["mlflow"],
        **options,
    )
    return str(path)


@pytest.mark.parametrize(
    ("flavour", "name"),
    [(mlflow.sklearn, "mixed_logistic"), (mlflow.xgboost, "xgboost_named"), (mlflow.lightgbm, "lightgbm_text")],
)
def test_a_saved_model_answers_as_mlflow_does(flavour: Any, name: str, tmp_path: Path) -> None:
    trained = TABULAR[name]()
    saved = _saved(trained, tmp_path / "saved", flavour)
    made = tessera.package(saved, tmp_path / "package", rows=100)
    expected = mlflow.pyfunc.load_model(saved).predict(trained.rows)
    got = answers(made.path, trained.rows)
    if np.asarray(expected).dtype.kind == "f":
        np.testing.assert_allclose(got, expected, rtol=1e-4)
    else:
        assert got.tolist() == list(expected)


def test_a_model_saved_to_answer_with_probabilities_does(tmp_path: Path) -> None:
    trained = TABULAR["logistic"]()
    saved = _saved(trained, tmp_path / "saved", pyfunc_predict_fn="predict_proba")
    made = tessera.package(saved, tmp_path / "package", rows=100)
    np.testing.assert_allclose(answers(made.path, trained.rows), trained.model.predict_proba(trained.rows), atol=1e-5)
    with pytest.raises(tessera.TesseraError, match="was saved to answer with 'predict_proba', not 'predict'"):
        tessera.package(saved, tmp_path / "other", predict_fn="predict")


def test_the_command_line_makes_an_archive_with_a_golden_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = TABULAR["logistic_text"]()
    saved = _saved(trained, tmp_path / "saved")
    archive = tmp_path / "flowers.tar.gz"
    assert main(["package", saved, str(archive), "--rows", "50"]) == 0
    assert "60 rows predict the same" in capsys.readouterr().out
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path / "package", filter="data")
    manifest = tomllib.loads((tmp_path / "package/tessera.toml").read_text())
    golden = {part: json.loads((tmp_path / "package" / manifest["golden"][part]).read_text()) for part in ("request", "response")}
    rows = np.array(golden["request"]["inputs"])
    assert len(rows) == 5 and golden["response"] == {"predictions": trained.model.predict(rows).tolist()}


def test_graphs_are_packaged_as_they_are(tmp_path: Path) -> None:
    made = tessera.package(TABULAR["ridge"]().model, tmp_path / "package", rows=50)
    again = tessera.package(str(made.path / "model.onnx"), tmp_path / "again")
    assert again.parity is None and again.flavour == "onnx"
    assert "predictions" not in tomllib.loads((again.path / "tessera.toml").read_text()).get("settings", {})
    graph = onnx.load(again.path / "model.onnx")
    mlflow.onnx.save_model(graph, str(tmp_path / "saved"), pip_requirements=["mlflow"])
    copied = tessera.package(str(tmp_path / "saved"), tmp_path / "copied")
    assert (copied.path / "MLmodel").is_file() and (copied.path / "model.onnx").is_file()


def test_code_is_no_model(tmp_path: Path) -> None:
    class Doubled(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
        def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
            return model_input

    mlflow.pyfunc.save_model(str(tmp_path / "saved"), python_model=Doubled(), pip_requirements=["mlflow"])
    with pytest.raises(tessera.ConversionError, match="which is code and not a graph. Left are"):
        tessera.package(str(tmp_path / "saved"), tmp_path / "package")
