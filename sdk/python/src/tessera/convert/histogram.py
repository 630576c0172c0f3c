"""scikit-learn's histogram gradient boosting, which compares in double precision and which skl2onnx cannot convert."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import ConversionError
from .trees import Ensemble, Tree, TreeModel


def is_histogram(model: Any) -> bool:
    return type(model).__name__ in ("HistGradientBoostingClassifier", "HistGradientBoostingRegressor")


def read(model: Any) -> TreeModel:
    """Reads a fitted estimator."""
    if model.is_categorical_ is not None and np.any(model.is_categorical_):
        raise ConversionError(
            "histogram gradient boosting splits by categories here, which is not converted: encode the columns as numbers "
            "before (OneHotEncoder or OrdinalEncoder), and train with categorical_features=None"
        )
    base = np.ravel(model._baseline_prediction).astype(np.float64)
    iterations = model._predictors
    classes = getattr(model, "classes_", None)
    if classes is not None:
        link = "sigmoid" if len(base) == 1 else "softmax"
    else:
        link = "exp" if model.loss in ("poisson", "gamma") else "identity"
    ensemble = Ensemble(
        trees=[_tree(predictor.nodes) for iteration in iterations for predictor in iteration],
        targets=[target for iteration in iterations for target in range(len(iteration))],
        base=base,
        comparison="BRANCH_LEQ",
        precision=np.float64,
        features=model.n_features_in_,
    )
    return TreeModel(ensemble, link, classes=None if classes is None else list(classes))


def _tree(nodes: np.ndarray) -> Tree:
    return Tree(
        feature=nodes["feature_idx"],
        threshold=nodes["num_threshold"],
        left=nodes["left"],
        right=nodes["right"],
        missing_left=nodes["missing_go_to_left"] != 0,
        is_leaf=nodes["is_leaf"] != 0,
        value=nodes["value"],
    )
