"""What cannot be packaged is refused with the reason and the choices that are left, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
import xgboost
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

import tessera
from models import houses
from tessera.__main__ import main


def _cases() -> dict[str, tuple[Any, Any, str]]:
    table, price = houses()
    numbers = table[["rooms", "living area"]]
    codes = table[["city"]].apply(lambda c: c.astype("category").cat.codes.astype("int64")).assign(area=table["living area"])
    gaps = table[["city"]].where(np.arange(len(table))[:, None] % 3 != 0, None)
    text = make_pipeline(ColumnTransformer([("t", TfidfVectorizer(), "city")]), LogisticRegression())
    with_gaps = make_pipeline(ColumnTransformer([("c", OneHotEncoder(), ["city"])]), Ridge())
    return {
        "free text": (text.fit(table[["city"]], price > 1000), table[["city"]], "reads free text"),
        "gaps as a category": (with_gaps.fit(gaps, price), gaps, "column 'city' has gaps among its categories"),
        "categories of lightgbm": (
            lightgbm.LGBMRegressor(n_jobs=1, verbose=-1).fit(codes, price, categorical_feature=["city"]),
            codes,
            "by categories, which is not converted: encode the column",
        ),
        "linear trees": (lightgbm.LGBMRegressor(n_jobs=1, linear_tree=True, verbose=-1).fit(numbers, price), numbers, "linear_tree=False"),
        "linear xgboost": (xgboost.XGBRegressor(n_jobs=1, booster="gblinear").fit(numbers, price), numbers, "use gbtree"),
        "zeros as gaps": (xgboost.XGBRegressor(n_jobs=1, missing=0.0).fit(numbers, price), numbers, "train with missing=NaN"),
        "histogram categories": (
            HistGradientBoostingRegressor(categorical_features=[0]).fit(codes, price),
            codes,
            "categorical_features=None",
        ),
        "no model": (object(), numbers, "no model of a framework that can be packaged"),
        "a pipeline of another task": (
            type("Pipeline", (), {"__module__": "transformers.pipelines.base", "task": "translation", "model": object()})(),
            numbers,
            "the pipeline's task is 'translation', and the server's components for text classify .*Left are",
        ),
        "a ranker of pairs": (
            type("CrossEncoder", (), {"__module__": "sentence_transformers.cross_encoder"})(),
            numbers,
            "CrossEncoder makes no embeddings of texts",
        ),
        "an estimator that predicts nothing": (OneHotEncoder().fit(table[["city"]]), table[["city"]], "has no 'predict'"),
    }


@pytest.mark.parametrize("name", list(_cases()))
def test_it_is_refused(name: str, tmp_path: Path) -> None:
    model, example, reason = _cases()[name]
    with pytest.raises(tessera.ConversionError, match="(?s)" + reason):
        tessera.package(model, tmp_path / "package", input_example=example[:20], rows=50)
    assert not list(tmp_path.iterdir())


def test_arguments_that_do_not_fit_are_named(tmp_path: Path) -> None:
    table, price = houses()
    model = Ridge().fit(table[["rooms", "living area"]], price)
    with pytest.raises(tessera.TesseraError, match=r"lacks the columns \['living area'\]"):
        signature = tessera.Signature.of_example(table[["rooms", "living area"]])
        tessera.package(model, tmp_path / "package", input_example=table[["rooms"]], signature=signature)
    with pytest.raises(tessera.TesseraError, match="exists: choose another place"):
        tessera.package(model, tmp_path)
    with pytest.raises(tessera.TesseraError, match="does not exist: give a directory"):
        tessera.package(str(tmp_path / "nowhere"), tmp_path / "package")
    with pytest.raises(tessera.TesseraError, match="has the type 'datetime'"):
        tessera.Signature.parse('[{"type": "datetime", "name": "when"}]')


def test_the_command_line_reports_errors_without_a_stack_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["package", str(tmp_path / "nowhere"), str(tmp_path / "package")]) == 1
    assert capsys.readouterr().err.startswith("error: '")


def test_a_server_that_is_not_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TESSERA_HOST", "TESSERA_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TESSERA_HOME", str(tmp_path))
    with pytest.raises(tessera.TesseraError, match="no server has its home in"):
        tessera.Client()
    # The administrator's token of this machine is not sent elsewhere.
    (tmp_path / "address").write_text("127.0.0.1:9")
    (tmp_path / "admin.token").write_text("secret")
    with pytest.raises(tessera.TesseraError, match="no token for http://models.example.com"):
        tessera.Client("models.example.com")
    with pytest.raises(tessera.ServerError, match="no answer from http://127.0.0.1:9"):
        tessera.Client().endpoints()


def test_text_of_a_table_is_kept_as_it_is() -> None:
    table = pd.DataFrame({"a": ["x", "y"], "b": [1, 2]})
    signature = tessera.Signature.of_example(table)
    assert [(c.name, c.type) for c in signature.columns] == [("a", "string"), ("b", "long")]
    assert tessera.Signature.parse(signature.inputs_json()) == signature
