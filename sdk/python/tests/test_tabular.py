"""Packages of real models predict what the models predict, on 1,000 rows that neither saw before."""

from __future__ import annotations

from pathlib import Path

import lightgbm
import numpy as np
import pytest
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LogisticRegression, Ridge

import tessera
from models import TABULAR, fresh
from served import answers
from tessera.convert import sklearn


@pytest.mark.parametrize("name", TABULAR)
def test_a_package_predicts_what_the_model_predicts(name: str, tmp_path: Path) -> None:
    trained = TABULAR[name]()
    made = tessera.package(
        trained.model, tmp_path / "package", input_example=trained.rows[:20], predict_fn=trained.predict_fn, rows=300
    )
    assert made.parity is not None and made.parity.rows == 320
    got = answers(made.path, trained.rows)
    expected = trained.expected
    assert got.shape == expected.shape and len(got) == 1000
    if expected.dtype.kind == "f":
        np.testing.assert_allclose(got.astype(np.float64), expected, rtol=1e-4, atol=1e-4)
    else:
        assert got.tolist() == expected.tolist()


def test_rows_on_the_thresholds_of_lightgbm_go_the_same_way(tmp_path: Path) -> None:
    """The thresholds are doubles: a converter that rounds them sends these rows the other way."""
    x, y = load_diabetes(return_X_y=True)
    model = lightgbm.LGBMRegressor(n_jobs=1, num_leaves=15, verbose=-1).fit(x, y)
    made = tessera.package(model, tmp_path / "package", input_example=x[:20], rows=0)
    rows = fresh(x)
    thresholds: dict[int, list[float]] = {}
    pending = [tree["tree_structure"] for tree in model.booster_.dump_model()["tree_info"]]
    while pending:
        node = pending.pop()
        if "threshold" in node:
            thresholds.setdefault(node["split_feature"], []).append(node["threshold"])
            pending += [node["left_child"], node["right_child"]]
    random = np.random.default_rng(11)
    for feature, values in thresholds.items():
        exact = random.choice(values, len(rows))
        rows[:, feature] = np.choose(random.integers(0, 3, len(rows)), [exact, np.nextafter(exact, -9), np.nextafter(exact, 9)])
    # Rounded to single precision, many of these rows lie on the other side.
    moved = np.abs(model.predict(rows.astype(np.float32)) - model.predict(rows))
    assert (moved > 1e-3).sum() > 100
    np.testing.assert_allclose(answers(made.path, rows), model.predict(rows), rtol=1e-6)


def test_a_model_that_says_what_it_takes_needs_no_example(tmp_path: Path) -> None:
    trained = TABULAR["forest"]()
    made = tessera.package(trained.model, tmp_path / "package", rows=200)
    assert answers(made.path, trained.rows).tolist() == trained.expected.tolist()


@pytest.mark.parametrize("kind", ["labels", "numbers"])
def test_a_converter_that_is_wrong_is_found_out_and_the_worst_row_shown(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a converter that gives the graph of another model
    x, y = load_diabetes(return_X_y=True)
    if kind == "labels":
        model, other = (LogisticRegression().fit(x, y > limit) for limit in (100, 150))
        reason = r"rows get another label. The first: the model predicts .* for \["
    else:
        model, other = (Ridge().fit(x, y + shift) for shift in (0, 1))
        reason = r"rows differ by more than 0.0001. The worst, by .*: the model predicts .* for \["
    real = sklearn._skl2onnx
    monkeypatch.setattr(sklearn, "_skl2onnx", lambda _, types: real(other, types))
    # when the model is packaged, then that is an error with the row, and nothing is written
    with pytest.raises(tessera.ParityError, match=reason):
        tessera.package(model, tmp_path / "package", input_example=x[:20])
    assert not (tmp_path / "package").exists()
