"""Makes a package of a model: convert, prove that it predicts the same, write."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pandas as pd

from . import manifest, parity
from .convert import Converted
from .errors import ConversionError, ParityError, TesseraError
from .example import synthetic, texts_of
from .parity import Parity
from .signature import Signature
from .source import Source, fitted_signature, open_source

#: How far predictions may be from the model's: absolute below 1, relative above.
TOLERANCE = 1e-4
#: Synthetic rows that are compared besides the example.
ROWS = 1000
#: Rows of the golden request, which every deploy asks.
_GOLDEN_ROWS = 5
_SCORING = "stock:scoring"
_ARCHIVES = {".tar.gz": "gztar", ".tgz": "gztar", ".tar": "tar", ".zip": "zip"}


@dataclass(frozen=True)
class Packaged:
    """A package that was written."""

    path: Path
    #: MLflow's name of the framework.
    flavour: str
    #: What was compared; ``None`` for graphs that are packaged as they are.
    parity: Parity | None


def package(
    model: Any,
    output: str | os.PathLike[str],
    *,
    name: str | None = None,
    input_example: Any = None,
    signature: Any = None,
    predict_fn: str | None = None,
    tolerance: float = TOLERANCE,
    rows: int = ROWS,
    overwrite: bool = False,
) -> Packaged:
    """Makes a package of a trained model, for ``tessera model push``.

    Args:
        model: a model of scikit-learn, XGBoost, LightGBM, PyTorch, Keras or sentence-transformers, a pipeline of
            transformers that classifies texts or tokens, an ONNX model or file, a directory that MLflow saved, or a URI
            like ``models:/NAME/VERSION``.
        output: a directory that does not exist, or an archive (.tar.gz, .tar, .zip).
        name: name of the graph, for people who look at it.
        input_example: a DataFrame, an array, a dict of arrays or a list of texts, as clients will send them.
        signature: MLflow's; without it, it is that of the saved model, of the example or of the fitted model.
        predict_fn: ``predict``, or ``predict_proba`` for classifiers.
        tolerance: how far a prediction may be from the model's, absolute below 1 and relative above.
        rows: synthetic rows that are compared besides the example.
        overwrite: replaces ``output`` if it exists.

    Raises:
        ConversionError: the model cannot be converted; the message says why, and what is left.
        ParityError: the converted model predicts something else; the message shows the worst row.
        TesseraError: the output exists, the model or a library is missing, the example does not fit.
    """
    target = Path(output)
    if target.exists() and not overwrite:
        raise TesseraError(f"'{target}' exists: choose another place, or overwrite it (overwrite=True, --overwrite)")
    source = open_source(model, predict_fn)
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "package"
        made.mkdir()
        result = _fill(made, source, name, input_example, signature, tolerance, rows)
        _publish(made, target)
    return Packaged(target, source.flavour, result)


def _fill(
    made: Path, source: Source, name: str | None, input_example: Any, signature: Any, tolerance: float, rows: int
) -> Parity | None:
    if source.flavour == "onnx":
        _write_onnx(made, source, None if signature is None else Signature.of(signature))
        return None
    example = source.example if input_example is None else input_example
    if source.flavour == "sentence_transformers":
        from .convert import sentences

        return sentences.fill(made, source.model, texts_of(example), tolerance)
    if source.flavour == "transformers":
        from .convert import classification

        return classification.fill(made, source.model, texts_of(example), tolerance)
    known = _signature(source, signature, example)
    table = None if example is None else known.conform(example)
    converted, result = _converted(source, known, table, tolerance, rows)
    converted.graph.graph.name = name or type(source.model).__name__
    _write(made, source, converted, known, table, tolerance)
    return result


def _signature(source: Source, given: Any, example: Any) -> Signature:
    if given is not None:
        return Signature.of(given)
    if source.signature is not None:
        return source.signature
    if example is not None:
        return Signature.of_example(example)
    implied = fitted_signature(source.model)
    if implied is None:
        raise TesseraError(
            f"{type(source.model).__name__} does not say what it takes: give an input_example (a DataFrame or an array, as "
            "clients will send it) or a signature"
        )
    return implied


def _candidates(source: Source, signature: Signature, predicted: np.ndarray, table: Any) -> Iterator[Callable[[], Converted]]:
    if source.flavour in ("sklearn", "xgboost", "lightgbm"):
        from .convert import sklearn

        return sklearn.candidates(source.model, signature, source.predict_fn, predicted)
    if source.flavour == "pytorch":
        from .convert import pytorch

        return pytorch.candidates(source.model, signature, table)
    from .convert import keras

    return keras.candidates(source.model, signature, table)


def _converted(source: Source, signature: Signature, table: Any, tolerance: float, rows: int) -> tuple[Converted, Parity]:
    """The first way to convert the model that predicts what the model predicts."""
    first = table if table is not None else synthetic(signature, None, Converted(onnx.ModelProto()), 8)
    predicted = _predicted(source, first)
    failures: list[Exception] = []
    for convert in _candidates(source, signature, predicted, first):
        try:
            converted = convert()
            return converted, _parity(source, signature, converted, table, tolerance, rows)
        except (ConversionError, ParityError) as error:
            failures.append(error)
        # Converters raise whatever happens to them; another form of the same model may pass.
        except Exception as error:  # noqa: BLE001
            reason = f"{type(error).__name__}: {str(error).strip()[:600]}"
            failures.append(ConversionError(f"the {source.flavour} model cannot be converted to ONNX ({reason}). {_LEFT}"))
    # A graph that predicts something else says more of the model than one that could not be made.
    different = [failure for failure in failures if isinstance(failure, ParityError)]
    raise (different or failures)[0]


_LEFT = (
    "Left are: replace the part that it names by one that converts, export the model to ONNX yourself and package the file, "
    "or write a component (see sdk/rust)"
)


def _predicted(source: Source, rows: Any) -> np.ndarray:
    try:
        predicted = source.predict(rows)
    except ConversionError:
        raise
    except Exception as error:
        raise TesseraError(
            f"the model itself refuses rows of its signature ({type(error).__name__}: {error}): give an input_example or a "
            "signature as it was trained with, or draw no synthetic rows (rows=0, --rows 0)"
        ) from error
    if isinstance(predicted, pd.DataFrame):
        raise ConversionError(
            "the model answers with a table, and a package of it would answer with an array: save it with a signature of "
            "tensors (an input example that is an array)"
        )
    return np.asarray(predicted)


def _parity(source: Source, signature: Signature, converted: Converted, table: Any, tolerance: float, rows: int) -> Parity:
    session = _session(converted.graph)
    found = []
    for asked in (table, synthetic(signature, table, converted, rows) if rows else None):
        if asked is None:
            continue
        (output,) = session.run(None, converted.feeds(asked))
        expected = _predicted(source, asked)
        probabilities = _probabilities(source)
        found.append(parity.check(asked, expected, converted.answer(output), tolerance, probabilities))
    if not found:
        raise TesseraError("nothing was compared: give an input_example, or let synthetic rows be drawn (rows)")
    return Parity(sum(p.rows for p in found), max(p.max_difference for p in found), sum(p.ties for p in found))


def _probabilities(source: Source) -> Callable[[Any], Any] | None:
    if not hasattr(source.model, "predict_proba"):
        return None
    has_names = getattr(source.model, "feature_names_in_", None) is not None
    return lambda rows: source.model.predict_proba(rows if has_names or not hasattr(rows, "to_numpy") else rows.to_numpy())


def _session(graph: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _write(made: Path, source: Source, converted: Converted, signature: Signature, table: Any, tolerance: float) -> None:
    onnx.save(converted.graph, made / "model.onnx")
    settings = {"predictions": "array", "mlflow.signature.inputs": signature.inputs_json()}
    if signature.params is not None:
        settings["mlflow.signature.params"] = signature.params
    if converted.labels is not None:
        settings["labels"] = json.dumps(converted.labels)
    if converted.categories:
        settings["categories"] = json.dumps(
            {
                column: {"values": of.values, "unknown": "allow" if of.allows_unknown else "refuse"}
                for column, of in converted.categories.items()
            }
        )
    asked = table if table is not None else synthetic(signature, None, converted, _GOLDEN_ROWS)
    golden = _golden(made, source, signature, asked, tolerance)
    manifest.write(made, _SCORING, settings, golden)


def _golden(made: Path, source: Source, signature: Signature, rows: Any, tolerance: float) -> float | None:
    """Writes a request and what the model answers, which every deploy asks; the tolerance, if there is one."""
    if isinstance(rows, dict):
        rows = {name: value[:_GOLDEN_ROWS] for name, value in rows.items()}
    else:
        rows = rows[:_GOLDEN_ROWS]
    return manifest.write_golden(made, request_of(rows), {"predictions": _predicted(source, rows).tolist()}, tolerance)


def request_of(rows: Any) -> dict[str, Any]:
    """The body of a request that asks these rows."""
    if isinstance(rows, pd.DataFrame):
        return {"dataframe_split": {"columns": list(map(str, rows.columns)), "data": rows.to_numpy(dtype=object).tolist()}}
    if isinstance(rows, dict):
        return {"inputs": {name: np.asarray(value).tolist() for name, value in rows.items()}}
    return {"inputs": np.asarray(rows).tolist()}


def _write_onnx(made: Path, source: Source, signature: Signature | None) -> None:
    """A graph is packaged as it is; the server answers as MLflow's ONNX flavour does."""
    if source.directory is not None:
        shutil.copytree(source.directory, made, dirs_exist_ok=True)
        return
    onnx.checker.check_model(source.model)
    _session(source.model)
    onnx.save(source.model, made / "model.onnx")
    settings = {} if signature is None else {"mlflow.signature.inputs": signature.inputs_json()}
    manifest.write(made, _SCORING, settings, None)


def _publish(made: Path, target: Path) -> None:
    """Moves what was made to its place, so that nothing half-made is ever there."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    target.parent.mkdir(parents=True, exist_ok=True)
    for suffix, form in _ARCHIVES.items():
        if target.name.endswith(suffix):
            archive = shutil.make_archive(str(made.parent / "archive"), form, made)
            shutil.move(archive, target)
            return
    shutil.move(made, target)
