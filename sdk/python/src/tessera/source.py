"""Where a model comes from: an object of a framework, an ONNX file, a directory or URI of MLflow."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pandas as pd

from .errors import ConversionError, MissingDependencyError, TesseraError
from .signature import Signature

#: MLflow's flavours that hold a model of a framework this package knows, in the order in which they are looked for.
FLAVOURS = ("onnx", "sklearn", "xgboost", "lightgbm", "pytorch", "tensorflow", "keras", "transformers", "sentence_transformers")
_HOW_TO_GET_MLFLOW = "models of MLflow need it installed: uv pip install 'tessera-serving[mlflow]'"


@dataclass
class Source:
    """A model as it was trained."""

    #: The framework: one of :data:`FLAVOURS`.
    flavour: str
    model: Any
    #: What it answers to rows: what ``mlflow models serve`` would.
    predict: Callable[[Any], Any]
    predict_fn: str = "predict"
    signature: Signature | None = None
    example: Any = None
    #: The directory of a model that MLflow saved.
    directory: Path | None = None


def open_source(model: Any, predict_fn: str | None) -> Source:
    """Finds out what ``model`` is.

    Raises:
        TesseraError: when it is nothing that can be packaged.
    """
    if isinstance(model, (str, os.PathLike)):
        return _of_path(os.fspath(model), predict_fn)
    flavour = flavour_of(model)
    return Source(flavour, model, native_predict(flavour, model, predict_fn or "predict"), predict_fn or "predict")


def flavour_of(model: Any) -> str:
    """The framework of an object, by the packages that its classes come from."""
    if isinstance(model, onnx.ModelProto):
        return "onnx"
    packages = [base.__module__.split(".")[0] for base in type(model).__mro__]
    if any(base.__name__ == "Pipeline" and base.__module__.startswith("transformers") for base in type(model).__mro__):
        return "transformers"
    for package, flavour in (
        ("xgboost", "xgboost"),
        ("lightgbm", "lightgbm"),
        ("sklearn", "sklearn"),
        ("sentence_transformers", "sentence_transformers"),
        ("transformers", "transformers"),
        ("keras", "keras"),
        ("tensorflow", "tensorflow"),
        ("torch", "pytorch"),
    ):
        if package in packages:
            return flavour
    name = f"{type(model).__module__}.{type(model).__qualname__}"
    raise ConversionError(
        f"{name} is no model of a framework that can be packaged ({', '.join(FLAVOURS)}). Left are: export it to ONNX with "
        "its own tools and package the file, or write a component for it (see sdk/rust)"
    )


def native_predict(flavour: str, model: Any, predict_fn: str) -> Callable[[Any], Any]:
    """What the model answers, as the model of MLflow's ``pyfunc`` answers."""
    if flavour == "onnx":
        return lambda rows: rows
    if flavour == "xgboost" and type(model).__name__ == "Booster":
        import xgboost

        return lambda rows: model.predict(xgboost.DMatrix(rows))
    if flavour in ("sklearn", "xgboost", "lightgbm"):
        if not hasattr(model, predict_fn):
            raise ConversionError(f"{type(model).__name__} has no '{predict_fn}', so that there is nothing to serve")
        return lambda rows: getattr(model, predict_fn)(_for_estimator(model, rows))
    if flavour == "pytorch":
        from .convert import pytorch

        return pytorch.predict(model)
    if flavour in ("keras", "tensorflow"):
        from .convert import keras

        return keras.predict(model)
    if flavour == "transformers":
        from .convert import classification

        return classification.predict(model)
    from .convert import sentences

    return sentences.predict(model)


def _for_estimator(model: Any, rows: Any) -> Any:
    """An estimator that was fitted without names warns of them."""
    return rows.to_numpy() if isinstance(rows, pd.DataFrame) and not _has_names(model) else rows


def _has_names(model: Any) -> bool:
    return getattr(model, "feature_names_in_", None) is not None


def fitted_signature(model: Any) -> Signature | None:
    """What a fitted model of numbers knows of its inputs."""
    names = getattr(model, "feature_names_in_", None)
    count = getattr(model, "n_features_in_", None)
    if type(model).__name__ == "Booster" and hasattr(model, "num_features"):
        names, count = model.feature_names, model.num_features()
    elif type(model).__name__ == "Booster":
        names, count = None, model.num_feature()
    if any(hasattr(step, "transformers_") for _, step in getattr(model, "steps", [("", model)])):
        # Some of its columns may be text.
        return None
    return None if count is None else Signature.of_features(None if names is None else [str(n) for n in names], int(count))


def _of_path(path: str, predict_fn: str | None) -> Source:
    if "://" in path or path.startswith(("models:/", "runs:/", "mlflow-artifacts:/")):
        return _of_mlflow(_download(path), predict_fn)
    if (Path(path) / "MLmodel").is_file():
        return _of_mlflow(Path(path), predict_fn)
    if path.endswith(".onnx") and Path(path).is_file():
        # With the weights that lie beside it.
        return Source("onnx", onnx.load(path), lambda rows: rows, "predict")
    what = "holds no MLmodel file" if Path(path).is_dir() else "does not exist" if not Path(path).exists() else "is no model"
    raise TesseraError(
        f"'{path}' {what}: give a directory that MLflow's save_model wrote, a URI like models:/NAME/VERSION, an .onnx file, "
        "or the model itself"
    )


def _download(uri: str) -> Path:
    try:
        import mlflow
    except ImportError as error:
        raise MissingDependencyError(_HOW_TO_GET_MLFLOW) from error
    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    except Exception as error:
        raise TesseraError(f"failed to fetch {uri}: {error}") from error


def _of_mlflow(directory: Path, predict_fn: str | None) -> Source:
    try:
        import mlflow
        from mlflow.models import Model
    except ImportError as error:
        raise MissingDependencyError(_HOW_TO_GET_MLFLOW) from error
    described = Model.load(str(directory))
    flavour = next((name for name in FLAVOURS if name in described.flavors), None)
    if flavour is None:
        found = ", ".join(name for name in described.flavors if name != "python_function") or "python_function"
        raise ConversionError(
            f"the model has the flavour [{found}], which is code and not a graph. Left are: log the model inside it with its "
            f"own flavour ({', '.join(FLAVOURS)}), export it to ONNX, or write a component for it (see sdk/rust)"
        )
    saved_fn = described.flavors.get("python_function", {}).get("predict_fn")
    if predict_fn is not None and saved_fn is not None and predict_fn != saved_fn:
        raise TesseraError(f"the model was saved to answer with '{saved_fn}', not '{predict_fn}': save it with pyfunc_predict_fn")
    chosen = saved_fn or predict_fn or "predict"
    example = described.load_input_example(str(directory)) if described.saved_input_example_info else None
    try:
        # The pipelines' own answers are served, and not what MLflow's `pyfunc` makes of them.
        if flavour in ("transformers", "sentence_transformers"):
            text_model = getattr(mlflow, flavour).load_model(str(directory))
            return Source(flavour, text_model, native_predict(flavour, text_model, chosen), chosen, None, example, directory)
        signature = None if described.signature is None else Signature.of(described.signature)
        if flavour == "onnx":
            return Source(flavour, None, lambda rows: rows, "predict", signature, example, directory)
        pyfunc = mlflow.pyfunc.load_model(str(directory))
        model = getattr(mlflow, "tensorflow" if flavour == "keras" else flavour).load_model(str(directory))
    except ImportError as error:
        raise MissingDependencyError(f"failed to load the model: {error}. Install what its requirements.txt lists") from error
    return Source(flavour, model, pyfunc.predict, chosen, signature, example, directory)
