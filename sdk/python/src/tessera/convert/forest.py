"""scikit-learn's decision trees and forests. It sees rows in single precision, compares them with thresholds of double, and
adds up in double: where trees are of two minds evenly, the first class wins, in the graph as well."""

from __future__ import annotations

from typing import Any

import numpy as np

from .trees import Ensemble, Tree, TreeModel

_TREES = ("DecisionTreeClassifier", "DecisionTreeRegressor", "ExtraTreeClassifier", "ExtraTreeRegressor")
_FORESTS = ("RandomForestClassifier", "RandomForestRegressor", "ExtraTreesClassifier", "ExtraTreesRegressor")


def is_forest(model: Any) -> bool:
    return type(model).__name__ in _TREES + _FORESTS and getattr(model, "n_outputs_", 0) == 1


def read(model: Any) -> TreeModel:
    """Reads a fitted estimator of one output."""
    members = getattr(model, "estimators_", [model])
    classes = getattr(model, "classes_", None)
    trees = [_tree(member.tree_, classes is not None) for member in members]
    ensemble = Ensemble(
        trees=trees,
        targets=[0] * len(trees),
        base=np.zeros(trees[0].value.shape[1]),
        comparison="BRANCH_LEQ",
        precision=np.float64,
        features=model.n_features_in_,
        sees=np.float32,
    )
    # Not divided before it is added up: that would break ties.
    return TreeModel(ensemble, "scaled", 1 / len(members), None if classes is None else list(classes))


def _tree(tree: Any, classifies: bool) -> Tree:
    value = tree.value[:, 0, :]
    if classifies:
        # Counts until scikit-learn 1.3, fractions since.
        value = value / value.sum(axis=1, keepdims=True)
    return Tree(
        feature=tree.feature,
        threshold=tree.threshold,
        left=tree.children_left,
        right=tree.children_right,
        missing_left=np.asarray(getattr(tree, "missing_go_to_left", np.zeros(tree.node_count))) != 0,
        is_leaf=tree.children_left < 0,
        value=value,
    )
