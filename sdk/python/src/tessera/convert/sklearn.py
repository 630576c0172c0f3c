"""scikit-learn: skl2onnx, with what it lacks: exact gradient boosting, text columns, the answers of MLflow."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx.compose
from onnx import TensorProto, helper

from ..errors import ConversionError, MissingDependencyError
from ..graph import OPSETS, Builder, has_text_input, texts_of
from ..signature import Signature
from . import Categories, Converted, forest, histogram, lightgbm, xgboost
from .trees import TreeModel

#: Takes the place of a text that is no category; nobody's category is called so.
_UNKNOWN_TEXT = "\x1funknown"


def tree_reader(model: Any) -> Callable[[Any], TreeModel] | None:
    """How a model that is a sum of trees is read exactly, if it is one."""
    package = type(model).__module__.split(".")[0]
    if histogram.is_histogram(model):
        return histogram.read
    if forest.is_forest(model):
        return forest.read
    return {"xgboost": xgboost.read, "lightgbm": lightgbm.read}.get(package)


def candidates(model: Any, signature: Signature, predict_fn: str, example: np.ndarray) -> Iterator[Callable[[], Converted]]:
    """Ways to convert a fitted estimator, booster or pipeline, best first. ``example`` is what it answers.

    Double precision comes first, for that is how scikit-learn computes; not every operator has it.
    """
    model = getattr(model, "best_estimator_", model)
    reader = tree_reader(model)
    numeric = all(column.type != "string" for column in signature.columns)
    if reader is not None and numeric:
        yield lambda: _trees(reader(model), predict_fn)
        return
    for precision in (np.float64, np.float32):
        if numeric:
            yield partial(_convert, model, _matrix(signature, precision), signature, predict_fn, example)
        if signature.columns:
            yield partial(_convert, model, _columns(signature, precision), signature, predict_fn, example)
    if any(column.type in ("long", "integer", "boolean") for column in signature.columns):
        yield partial(_convert, model, _columns(signature, None), signature, predict_fn, example)


def _trees(model: TreeModel, predict_fn: str) -> Converted:
    """Trees that see the rows as they are."""
    builder = Builder()
    rows = builder.input("X", np.dtype(np.float64), [None, model.ensemble.features])
    converted = _finish_trees(builder, model, rows, predict_fn, {})
    converted.probes = model.ensemble.probes()
    return converted


def _finish_trees(
    builder: Builder, model: TreeModel, rows: str, predict_fn: str, categories: dict[str, Categories]
) -> Converted:
    output, dtype, axes = model.add_to(builder, rows, predict_fn)
    labels = None
    if model.classes is not None and predict_fn == "predict":
        labels = _python_values(model.classes)
        if all(type(label) is int for label in labels):
            if labels != list(range(len(labels))):
                output = builder.add("Gather", builder.constant(np.array(labels, dtype=np.int64)), output)
            labels = None
    return Converted(builder.finish(output, np.dtype(dtype), [None] * axes, "model"), labels, categories)


def _matrix(signature: Signature, precision: Any) -> list[tuple[str, Any]]:
    count = len(signature.columns) or signature.tensors[0].shape[-1]
    return [("X", _skl_type(np.dtype(precision))([None, count]))]


def _columns(signature: Signature, precision: Any) -> list[tuple[str, Any]]:
    """One input per column, numbers in one precision, or each as the signature says."""
    types = []
    for place, column in enumerate(signature.columns):
        dtype = column.dtype if column.type == "string" or precision is None else np.dtype(precision)
        types.append((f"column{place}", _skl_type(dtype)([None, 1])))
    return types


def _skl_type(dtype: np.dtype[Any]) -> Any:
    try:
        from skl2onnx.common import data_types
    except ImportError as error:
        raise MissingDependencyError("this model needs skl2onnx: uv pip install 'tessera-serving[sklearn]'") from error
    if dtype == object:
        return data_types.StringTensorType
    return {"f8": data_types.DoubleTensorType, "f4": data_types.FloatTensorType}.get(dtype.str[1:], data_types.Int64TensorType)


def _convert(
    model: Any, types: list[tuple[str, Any]], signature: Signature, predict_fn: str, example: np.ndarray
) -> Converted:
    trees = None
    steps = getattr(model, "steps", [])
    reader = tree_reader(steps[-1][1]) if steps else None
    names = [column.name for column in signature.columns]
    by_place = _by_place(model, names)
    if reader is not None:
        trees, by_place = reader(steps[-1][1]), by_place[:-1]
    # The names of columns may be any, those of a graph's own values among them.
    graph: onnx.ModelProto = onnx.compose.add_prefix(_skl2onnx(by_place, types), "model/")
    builder = Builder(graph)
    categories = _name_inputs(builder, graph, _encoded_columns(model, names), names)
    if trees is not None:
        return _finish_trees(builder, trees, graph.graph.output[0].name, predict_fn, categories)
    chosen = _output_of(graph, predict_fn)
    output, dtype = chosen.name, helper.tensor_dtype_to_np_dtype(chosen.type.tensor_type.elem_type)
    labels = _python_values(model.classes_) if predict_fn == "predict" and hasattr(model, "classes_") else None
    if labels is not None and all(type(label) is int for label in labels):
        labels = None
    if labels is not None:
        output, dtype = _places(builder, output, dtype, labels), np.dtype(np.int64)
    if example.ndim == 1:
        output = builder.add("Reshape", output, builder.constant(np.array([-1], dtype=np.int64)))
    return Converted(builder.finish(output, dtype, [None] * example.ndim, "model"), labels, categories)


def _python_values(classes: Any) -> list[Any]:
    return [label.item() if isinstance(label, np.generic) else label for label in classes]


def _skl2onnx(model: Any, types: list[tuple[str, Any]]) -> onnx.ModelProto:
    try:
        from skl2onnx import convert_sklearn
        from sklearn.base import is_classifier
    except ImportError as error:
        raise MissingDependencyError("this model needs skl2onnx: uv pip install 'tessera-serving[sklearn]'") from error
    options = {id(model): {"zipmap": False}} if is_classifier(model) else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph: onnx.ModelProto = convert_sklearn(model, initial_types=types, target_opset=OPSETS, options=options)
    return graph


def _output_of(graph: onnx.ModelProto, predict_fn: str) -> onnx.ValueInfoProto:
    outputs: list[onnx.ValueInfoProto] = list(graph.graph.output)
    if predict_fn == "predict":
        return outputs[0]
    if predict_fn == "predict_proba" and len(outputs) > 1:
        return outputs[1]
    raise ConversionError(
        f"'{predict_fn}' is not converted: a package answers with 'predict', or for classifiers with 'predict_proba'"
    )


def _places(builder: Builder, output: str, dtype: np.dtype[Any], labels: list[Any]) -> str:
    """Turns labels that are no whole numbers into their places among the classes."""
    if dtype == object:
        keys: dict[str, Any] = {"keys_strings": [str(label) for label in labels]}
    else:
        if any(label != int(label) for label in labels):
            raise ConversionError(f"the classes {labels} are fractions, which are not converted: give them as text")
        output = builder.cast(output, np.int64)
        keys = {"keys_int64s": [int(label) for label in labels]}
    places = list(range(len(labels)))
    return builder.add("LabelEncoder", output, domain="ai.onnx.ml", values_int64s=places, default_int64=-1, **keys)


def _by_place(model: Any, names: list[str]) -> Any:
    """The model with a first step that finds its columns by place: skl2onnx knows them by names that it makes up."""
    if hasattr(model, "transformers_"):
        twin = copy.copy(model)
        twin.transformers_ = [(name, part, _places_of(columns, names)) for name, part, columns in model.transformers_]
        return twin
    if getattr(model, "steps", None):
        twin = copy.copy(model)
        twin.steps = [(model.steps[0][0], _by_place(model.steps[0][1], names)), *model.steps[1:]]
        return twin
    return model


def _places_of(columns: Any, names: list[str]) -> Any:
    if not _are_names(columns):
        return columns
    return [names.index(name) for name in ([columns] if isinstance(columns, str) else columns)]


def _name_inputs(
    builder: Builder, graph: onnx.ModelProto, known: dict[str, Categories], names: list[str]
) -> dict[str, Categories]:
    """Gives inputs the names of their columns, and makes those of text take codes, which become text again inside."""
    texts = tuple(texts_of(graph)) if has_text_input(graph) else ()
    found = {}
    first = []
    for place, value in enumerate(builder.inputs):
        inner = value.name
        value.name = names[place] if len(builder.inputs) == len(names) else "X"
        if value.type.tensor_type.elem_type != TensorProto.STRING:
            first.append(helper.make_node("Identity", [value.name], [inner]))
            continue
        value.type.tensor_type.elem_type = TensorProto.INT64
        found[value.name] = of = known.get(value.name, Categories(texts, allows_unknown=True))
        decode = helper.make_node(
            "LabelEncoder",
            [value.name],
            [inner],
            domain="ai.onnx.ml",
            keys_int64s=list(range(len(of.values))),
            values_strings=of.values,
            default_string=_UNKNOWN_TEXT,
        )
        first.append(decode)
    builder.nodes[:0] = first
    return found


def _encoded_columns(model: Any, names: list[str]) -> dict[str, Categories]:
    """The columns that an encoder sees as they are, with its categories."""
    found = {}
    for step in [step for _, step in getattr(model, "steps", [("", model)])][:1]:
        for part, columns in _parts(step, names):
            for encoder in [inner for _, inner in getattr(part, "steps", [("", part)])]:
                if not hasattr(encoder, "categories_"):
                    continue
                allows = getattr(encoder, "handle_unknown", "error") != "error"
                for name, categories in zip(columns, encoder.categories_):
                    if all(isinstance(category, str) for category in categories):
                        found[name] = Categories(tuple(map(str, categories)), allows)
                    elif any(isinstance(category, str) for category in categories):
                        raise ConversionError(
                            f"column '{name}' has gaps among its categories, which are not converted: fill them with a "
                            "text before training and before asking"
                        )
    return found


def _parts(step: Any, names: list[str]) -> Iterator[tuple[Any, list[str]]]:
    """The parts of a ColumnTransformer with their columns; anything else sees all columns."""
    if not hasattr(step, "transformers_"):
        yield step, names
        return
    for _, part, columns in step.transformers_:
        chosen = np.array(names, dtype=object)[columns] if not _are_names(columns) else columns
        yield part, [chosen] if isinstance(chosen, str) else list(chosen)


def _are_names(columns: Any) -> bool:
    return isinstance(columns, str) or (isinstance(columns, (list, np.ndarray)) and all(isinstance(c, str) for c in columns))
