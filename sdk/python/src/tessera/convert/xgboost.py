"""XGBoost: its own JSON form of the model. It compares in single precision, and so does the graph."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from ..errors import ConversionError
from .trees import Ensemble, Tree, TreeModel

#: What ``Booster.predict`` makes of the sums.
_LINKS = {
    "binary:logistic": "sigmoid",
    "reg:logistic": "sigmoid",
    "binary:hinge": "step",
    "multi:softmax": "argmax",
    "multi:softprob": "softmax",
    "count:poisson": "exp",
    "reg:gamma": "exp",
    "reg:tweedie": "exp",
    "survival:cox": "exp",
    "survival:aft": "exp",
}
_IDENTITIES = ("reg:", "rank:", "binary:logitraw")


def read(model: Any) -> TreeModel:
    """Reads a ``Booster`` or one of the scikit-learn estimators."""
    booster = model.get_booster() if hasattr(model, "get_booster") else model
    missing = getattr(model, "missing", np.nan)
    if missing is not None and not np.isnan(missing):
        raise ConversionError(f"the model takes {missing} for a missing value, which ONNX cannot: train with missing=NaN")
    # The estimators predict with the best iteration of an early stop, a Booster with all.
    best = booster.attributes().get("best_iteration") if booster is not model else None
    if best is not None:
        booster = booster[: int(best) + 1]
    learner = json.loads(bytes(booster.save_raw(raw_format="json")))["learner"]
    objective = learner["objective"]["name"]
    link = _LINKS.get(objective)
    if link is None and not objective.startswith(_IDENTITIES):
        raise ConversionError(f"XGBoost's objective '{objective}' is not known: package a model with another objective")
    link = link or "identity"
    classes = getattr(model, "classes_", None) if link in ("sigmoid", "softmax", "argmax") else None
    return TreeModel(_ensemble(learner, link), link, classes=None if classes is None else list(classes))


def _ensemble(learner: dict[str, Any], link: str) -> Ensemble:
    gbm = learner["gradient_booster"]
    weights = gbm.get("weight_drop")
    gbm = gbm.get("gbtree", gbm)
    if "model" not in gbm or "trees" not in gbm["model"]:
        raise ConversionError(f"XGBoost's booster '{learner['gradient_booster']['name']}' is not converted: use gbtree")
    model = gbm["model"]
    trees = [_tree(tree) for tree in model["trees"]]
    for tree, weight in zip(trees, weights or ()):
        tree.value = tree.value * weight
    parameters = learner["learner_model_param"]
    targets = max(1, int(parameters["num_class"]), int(parameters.get("num_target", 1)))
    return Ensemble(
        trees=trees,
        targets=[int(target) for target in model["tree_info"]],
        base=np.broadcast_to(_margin(parameters["base_score"], link), (targets,)),
        comparison="BRANCH_LT",
        precision=np.float32,
        features=int(parameters["num_feature"]),
    )


def _margin(base_score: str, link: str) -> np.ndarray:
    """The base score is written as a prediction (one, or one per target), and added as a sum."""
    value = np.atleast_1d(np.array(json.loads(base_score), dtype=np.float64))
    if link == "sigmoid":
        return np.log(value) - np.log1p(-value)
    return np.log(value) if link == "exp" else value


def _tree(tree: dict[str, Any]) -> Tree:
    if int(tree["tree_param"].get("size_leaf_vector", 0)) > 1:
        raise ConversionError("XGBoost's trees with vectors in their leaves are not converted: use one_output_per_tree")
    left = np.array(tree["left_children"])
    is_leaf = left < 0
    if np.any(np.array(tree.get("split_type", [0] * len(left)))[~is_leaf] != 0):
        raise ConversionError(
            "XGBoost splits by categories, which is not converted: encode the columns as numbers before (OneHotEncoder or "
            "OrdinalEncoder in a scikit-learn pipeline), and train without enable_categorical"
        )
    conditions = np.array(tree["split_conditions"], dtype=np.float32)
    return Tree(
        feature=np.array(tree["split_indices"]),
        threshold=conditions,
        left=left,
        right=np.array(tree["right_children"]),
        missing_left=np.array(tree["default_left"]) != 0,
        is_leaf=is_leaf,
        value=conditions,
    )
