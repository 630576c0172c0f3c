"""LightGBM: its own description of the trees, with their thresholds in double precision."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import ConversionError
from .trees import Ensemble, Tree, TreeModel

#: LightGBM takes what is as small as this, of either sign, for zero.
_ZERO = float(np.float32(1e-35))

_LINKS = {
    "regression": "identity",
    "regression_l1": "identity",
    "huber": "identity",
    "fair": "identity",
    "quantile": "identity",
    "mape": "identity",
    "lambdarank": "identity",
    "rank_xendcg": "identity",
    "custom": "identity",
    "poisson": "exp",
    "gamma": "exp",
    "tweedie": "exp",
    "binary": "sigmoid",
    "multiclass": "softmax",
    "multiclassova": "sigmoid",
    "cross_entropy": "sigmoid",
    "cross_entropy_lambda": "log1p_exp",
}


def read(model: Any) -> TreeModel:
    """Reads a ``Booster`` or one of the scikit-learn estimators."""
    booster = getattr(model, "booster_", model)
    dump = booster.dump_model()
    words = dump.get("objective", "custom").split()
    if words[0] not in _LINKS:
        raise ConversionError(f"LightGBM's objective '{words[0]}' is not known: package a model with another objective")
    link, scale = _LINKS[words[0]], 1.0
    for word in words[1:]:
        if word == "sqrt":
            link = "signed_square"
        elif word.startswith("sigmoid:"):
            scale = float(word.removeprefix("sigmoid:"))
    per_iteration = int(dump["num_tree_per_iteration"])
    trees = [_tree(info["tree_structure"]) for info in dump["tree_info"]]
    if dump.get("average_output"):
        for tree in trees:
            tree.value = tree.value * per_iteration / len(trees)
    ensemble = Ensemble(
        trees=trees,
        targets=[number % per_iteration for number in range(len(trees))],
        base=np.zeros(per_iteration),
        comparison="BRANCH_LEQ",
        precision=np.float64,
        features=booster.num_feature(),
    )
    classes = getattr(model, "classes_", None)
    return TreeModel(ensemble, link, scale, None if classes is None else list(classes))


def _tree(root: dict[str, Any]) -> Tree:
    """Numbers the nodes in the order in which they are met."""
    nodes: list[dict[str, Any]] = []
    children: list[tuple[int, int]] = []
    pending: list[tuple[dict[str, Any], int, int]] = [(root, -1, 0)]
    while pending:
        node, parent, side = pending.pop()
        number = len(nodes)
        nodes.append(node)
        children.append((0, 0))
        if parent >= 0:
            pair = list(children[parent])
            pair[side] = number
            children[parent] = (pair[0], pair[1])
        if "left_child" in node:
            pending += [(node["right_child"], number, 1), (node["left_child"], number, 0)]
    is_leaf = np.array(["left_child" not in node for node in nodes])
    for node in nodes:
        _check(node)
    return Tree(
        feature=np.array([node.get("split_feature", 0) for node in nodes]),
        threshold=np.array([_threshold(float(node.get("threshold", 0.0))) for node in nodes]),
        left=np.array([pair[0] for pair in children]),
        right=np.array([pair[1] for pair in children]),
        missing_left=np.array([_missing_left(node) for node in nodes]),
        is_leaf=is_leaf,
        value=np.array([float(node.get("leaf_value", 0.0)) for node in nodes]),
    )


def _check(node: dict[str, Any]) -> None:
    if "leaf_coeff" in node and node["leaf_coeff"]:
        raise ConversionError("LightGBM's linear trees have no counterpart in ONNX: train with linear_tree=False")
    if "left_child" not in node:
        return
    if node["decision_type"] != "<=":
        raise ConversionError(
            f"LightGBM splits feature {node['split_feature']} by categories, which is not converted: encode the column as "
            "numbers before (OneHotEncoder or OrdinalEncoder in a scikit-learn pipeline), and train without "
            "categorical_feature"
        )
    if node["missing_type"] == "Zero":
        raise ConversionError(
            "LightGBM takes zeros for missing values (zero_as_missing), which ONNX cannot: train without it"
        )


def _threshold(value: float) -> float:
    """A threshold near zero, moved so that all that counts as zero lies on the side of zero."""
    if 0.0 <= value < _ZERO:
        return _ZERO
    return float(np.nextafter(-_ZERO, -1.0)) if -_ZERO <= value < 0.0 else value


def _missing_left(node: dict[str, Any]) -> bool:
    """Where NaN goes. A split that has seen none takes it for zero."""
    if "left_child" not in node:
        return False
    if node["missing_type"] == "None":
        return bool(node["threshold"] >= 0.0)
    return bool(node["default_left"])
