"""Sums of decision trees as ONNX, exact to the bit in every comparison.

Converters write thresholds of double precision as float32, rounded to the nearest: a threshold that was rounded up lets
rows pass that the model sends the other way. Here thresholds keep the precision in which the library compares, and rows
reach the comparison in the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import numpy_helper

from ..graph import Builder


@dataclass
class Tree:
    """Nodes as arrays; node 0 is the root. ``left`` is where a row goes for which the comparison holds.

    ``value`` is what a leaf adds: a number for the tree's target, or one for each target.
    """

    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    missing_left: np.ndarray
    is_leaf: np.ndarray
    value: np.ndarray


@dataclass
class Ensemble:
    """Trees, each of which adds to one target (a class, or the one value)."""

    trees: list[Tree]
    targets: list[int]
    #: Added to the sum of the trees, one per target.
    base: np.ndarray
    #: ``BRANCH_LEQ`` or ``BRANCH_LT``.
    comparison: str
    #: In which the library compares: float32 or float64.
    precision: Any
    features: int
    #: In which the library sees the rows, if it rounds them first.
    sees: Any = None

    def probes(self, limit: int = 200) -> dict[int, np.ndarray]:
        """For each feature the values at which rows change sides, and their neighbours: where conversions go wrong."""
        values: dict[int, list[float]] = {}
        for tree in self.trees:
            for place in np.flatnonzero(~tree.is_leaf):
                values.setdefault(int(tree.feature[place]), []).append(float(tree.threshold[place]))
        found = {}
        for feature, thresholds in values.items():
            chosen = np.unique(np.array(thresholds, dtype=self.precision))[:limit]
            # Of single precision: a client that sends doubles means the number that the model sees.
            near = [chosen, np.nextafter(chosen, -np.inf), np.nextafter(chosen, np.inf)]
            found[feature] = np.unique(np.concatenate(near).astype(np.float64))
        return found

    def add_to(self, builder: Builder, rows: str) -> str:
        """The sum per row and target, float32 [rows, targets]; ``rows`` holds floats of any precision."""
        columns: dict[str, list[Any]] = {name: [] for name in _NODE_COLUMNS}
        leaves: dict[str, list[Any]] = {name: [] for name in ("treeids", "nodeids", "ids", "weights")}
        for number, (tree, target) in enumerate(zip(self.trees, self.targets)):
            self._add_tree(columns, leaves, number, tree, target)
        attributes: dict[str, Any] = {f"nodes_{name}": values for name, values in columns.items() if name != "values"}
        attributes |= {f"target_{name}": values for name, values in leaves.items() if name != "weights"}
        doubles = self.precision == np.float64
        numbers: tuple[tuple[str, Any], ...] = (
            ("nodes_values", columns["values"]),
            ("target_weights", leaves["weights"]),
            ("base_values", self.base),
        )
        for name, values in numbers:
            exact = np.array(values, dtype=self.precision)
            if doubles:
                attributes[f"{name}_as_tensor"] = numpy_helper.from_array(exact, name)
            else:
                attributes[name] = exact.astype(float).tolist()
        return builder.add(
            "TreeEnsembleRegressor",
            builder.cast(rows if self.sees is None else builder.cast(rows, self.sees), self.precision),
            domain="ai.onnx.ml",
            n_targets=len(self.base),
            aggregate_function="SUM",
            post_transform="NONE",
            **attributes,
        )

    def _add_tree(
        self, columns: dict[str, list[Any]], leaves: dict[str, list[Any]], number: int, tree: Tree, target: int
    ) -> None:
        for node in range(len(tree.is_leaf)):
            leaf = bool(tree.is_leaf[node])
            columns["treeids"].append(number)
            columns["nodeids"].append(node)
            columns["featureids"].append(0 if leaf else int(tree.feature[node]))
            columns["values"].append(0.0 if leaf else float(tree.threshold[node]))
            columns["modes"].append("LEAF" if leaf else self.comparison)
            columns["truenodeids"].append(0 if leaf else int(tree.left[node]))
            columns["falsenodeids"].append(0 if leaf else int(tree.right[node]))
            columns["missing_value_tracks_true"].append(int(not leaf and bool(tree.missing_left[node])))
            if leaf:
                self._add_leaf(leaves, number, node, np.atleast_1d(tree.value[node]), target)

    def _add_leaf(self, leaves: dict[str, list[Any]], number: int, node: int, values: np.ndarray, target: int) -> None:
        for place, value in enumerate(values):
            # Most classes have no share in a leaf.
            if value == 0.0 and len(values) > 1:
                continue
            leaves["treeids"].append(number)
            leaves["nodeids"].append(node)
            leaves["ids"].append(target + place)
            leaves["weights"].append(float(value))


_NODE_COLUMNS = (
    "treeids",
    "nodeids",
    "featureids",
    "values",
    "modes",
    "truenodeids",
    "falsenodeids",
    "missing_value_tracks_true",
)


@dataclass
class TreeModel:
    """An ensemble, and what its library makes of the sums."""

    ensemble: Ensemble
    #: ``identity``, ``scaled``, ``sigmoid``, ``softmax``, ``exp``, ``signed_square``, ``log1p_exp``, ``step`` or ``argmax``.
    link: str
    #: Factor of ``scaled``, and before the sigmoid.
    scale: float = 1.0
    #: The classes, if ``predict`` returns one of them; their place is what the graph gives.
    classes: list[Any] | None = field(default=None)

    def add_to(self, builder: Builder, rows: str, predict_fn: str) -> tuple[str, Any, int]:
        """The model's answer: its name, type and number of axes."""
        sums = self.ensemble.add_to(builder, rows)
        targets = len(self.ensemble.base)
        if self.classes is not None and predict_fn == "predict":
            return self._label(builder, sums, targets), np.int64, 1
        values = self._linked(builder, sums)
        if self.classes is not None and targets == 1 and self.link == "sigmoid":
            one = builder.constant(np.array(1, dtype=np.float32))
            return builder.add("Concat", builder.add("Sub", one, values), values, axis=1), np.float32, 2
        if self.link == "argmax" or targets == 1:
            return builder.add("Reshape", values, builder.constant(np.array([-1], dtype=np.int64))), np.float32, 1
        return values, np.float32, 2

    def _label(self, builder: Builder, sums: str, targets: int) -> str:
        if targets > 1:
            return builder.add("ArgMax", sums, axis=1, keepdims=0)
        positive = builder.add("Greater", sums, builder.constant(np.array(0, dtype=np.float32)))
        return builder.add("Reshape", builder.cast(positive, np.int64), builder.constant(np.array([-1], dtype=np.int64)))

    def _linked(self, builder: Builder, sums: str) -> str:
        match self.link:
            case "sigmoid":
                scale = builder.constant(np.array(self.scale, dtype=np.float32))
                return builder.add("Sigmoid", sums if self.scale == 1.0 else builder.add("Mul", sums, scale))
            case "scaled":
                return builder.add("Mul", sums, builder.constant(np.array(self.scale, dtype=np.float32)))
            case "softmax":
                return builder.add("Softmax", sums, axis=1)
            case "exp":
                return builder.add("Exp", sums)
            case "signed_square":
                return builder.add("Mul", sums, builder.add("Abs", sums))
            case "log1p_exp":
                return builder.add("Softplus", sums)
            case "step":
                return builder.cast(
                    builder.add("Greater", sums, builder.constant(np.array(0, dtype=np.float32))), np.float32
                )
            case "argmax":
                return builder.cast(builder.add("ArgMax", sums, axis=1, keepdims=1), np.float32)
            case _:
                return sums
