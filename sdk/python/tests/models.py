"""Models trained from the data sets that scikit-learn ships, and 1,000 rows that none of them was trained on.

Each is a function, so that a test trains only what it asks for. Rows lie in the ranges of the data, shuffled column by
column, so that they meet other branches than the data itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import xgboost
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine
from sklearn.ensemble import (
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

ROWS = 1000


@dataclass(frozen=True)
class Trained:
    """A fitted model, rows to ask it, and how it was asked to be packaged."""

    model: Any
    rows: Any
    predict_fn: str = "predict"

    @property
    def expected(self) -> np.ndarray:
        return np.asarray(getattr(self.model, self.predict_fn)(self.rows))


def fresh(data: Any, count: int = ROWS) -> Any:
    """Rows whose every value occurs in its column, or lies between two that do."""
    random = np.random.default_rng(7)
    if isinstance(data, pd.DataFrame):
        return pd.DataFrame({name: random.choice(data[name].to_numpy(), count) for name in data.columns})
    a, b = (np.stack([random.choice(column, count) for column in data.T], axis=1) for _ in range(2))
    return a + (b - a) * random.random(a.shape)


def _of(load: Callable[..., Any], model: Any, target: Callable[[np.ndarray], Any] = lambda y: y, **of: Any) -> Trained:
    x, y = load(return_X_y=True)
    return Trained(model.fit(x, target(y)), fresh(x), **of)


def houses() -> tuple[pd.DataFrame, np.ndarray]:
    """A table of text, whole numbers, fractions and booleans, and prices."""
    random = np.random.default_rng(3)
    count = 600
    table = pd.DataFrame(
        {
            "city": random.choice(["Bonn", "Köln", "Ulm"], count),
            "heating": random.choice(["gas", 'wood "dry"'], count),
            "rooms": random.integers(1, 9, count),
            "living area": random.normal(80, 20, count),
            "new": random.random(count) < 0.5,
        }
    )
    price = table["living area"] * 10 + table["rooms"] * 50 + (table["city"] == "Ulm") * 300 + table["new"] * 40
    return table, price.to_numpy()


def _mixed(last: Any, target: Callable[[np.ndarray], Any], encoder: Any = None, numbers: Any = None) -> Trained:
    table, price = houses()
    encoder = encoder or OneHotEncoder(handle_unknown="ignore")
    columns = ColumnTransformer(
        [("text", encoder, ["city", "heating"]), ("numbers", numbers or StandardScaler(), ["rooms", "living area"])],
        remainder="passthrough",
    )
    return Trained(make_pipeline(columns, last).fit(table, target(price)), fresh(table))


def _dear(price: np.ndarray) -> np.ndarray:
    return np.where(price > np.median(price), "dear", "cheap")


def _with_gaps(model: Any) -> Trained:
    x, y = load_diabetes(return_X_y=True)
    random = np.random.default_rng(5)
    gaps = lambda values: np.where(random.random(values.shape) < 0.1, np.nan, values)  # noqa: E731
    return Trained(model.fit(gaps(x), y), gaps(fresh(x)))


def _named(model: Any) -> Trained:
    table, price = houses()
    table = table[["rooms", "living area", "new"]]
    return Trained(model.fit(table, price), fresh(table))


_species = load_iris().target_names

TABULAR: dict[str, Callable[[], Trained]] = {
    "logistic": lambda: _of(load_iris, make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))),
    "logistic_text": lambda: _of(load_iris, LogisticRegression(max_iter=500), lambda y: _species[y]),
    "logistic_booleans": lambda: _of(load_iris, LogisticRegression(max_iter=500), lambda y: y == 1),
    "logistic_fives": lambda: _of(load_iris, LogisticRegression(max_iter=500), lambda y: y * 5),
    "logistic_proba": lambda: _of(load_iris, LogisticRegression(max_iter=500), predict_fn="predict_proba"),
    "ridge": lambda: _of(load_diabetes, make_pipeline(StandardScaler(), Ridge())),
    "svc": lambda: _of(load_wine, make_pipeline(StandardScaler(), SVC())),
    "neighbours": lambda: _of(load_iris, KNeighborsClassifier()),
    "perceptron": lambda: _of(load_wine, make_pipeline(StandardScaler(), MLPClassifier((16,), max_iter=200, random_state=0))),
    "imputed": lambda: _with_gaps(make_pipeline(SimpleImputer(), Ridge())),
    "forest": lambda: _of(load_wine, RandomForestClassifier(30, random_state=0)),
    "isolation": lambda: _of(load_iris, IsolationForest(n_estimators=20, random_state=0)),
    "gradient_boosting": lambda: _of(load_diabetes, GradientBoostingRegressor(n_estimators=50, random_state=0)),
    "histogram": lambda: _of(load_diabetes, HistGradientBoostingRegressor(max_iter=30)),
    "histogram_poisson": lambda: _of(load_diabetes, HistGradientBoostingRegressor(max_iter=30, loss="poisson")),
    "histogram_classes": lambda: _of(load_wine, HistGradientBoostingClassifier(max_iter=20)),
    "histogram_gaps": lambda: _with_gaps(HistGradientBoostingRegressor(max_iter=30)),
    "xgboost": lambda: _of(load_diabetes, xgboost.XGBRegressor(n_jobs=1, n_estimators=50, max_depth=4)),
    "xgboost_classes": lambda: _of(load_wine, xgboost.XGBClassifier(n_jobs=1, n_estimators=30)),
    "xgboost_two_classes": lambda: _of(load_breast_cancer, xgboost.XGBClassifier(n_jobs=1, n_estimators=30)),
    "xgboost_proba": lambda: _of(load_breast_cancer, xgboost.XGBClassifier(n_jobs=1, n_estimators=30), predict_fn="predict_proba"),
    "xgboost_poisson": lambda: _of(load_diabetes, xgboost.XGBRegressor(n_jobs=1, n_estimators=30, objective="count:poisson")),
    "xgboost_dart": lambda: _of(load_diabetes, xgboost.XGBRegressor(n_jobs=1, n_estimators=20, booster="dart", rate_drop=0.1)),
    "xgboost_gaps": lambda: _with_gaps(xgboost.XGBRegressor(n_jobs=1, n_estimators=30)),
    "xgboost_named": lambda: _named(xgboost.XGBRegressor(n_jobs=1, n_estimators=30)),
    "lightgbm": lambda: _of(load_diabetes, lightgbm.LGBMRegressor(n_jobs=1, num_leaves=15, verbose=-1)),
    "lightgbm_classes": lambda: _of(load_wine, lightgbm.LGBMClassifier(n_jobs=1, n_estimators=30, verbose=-1)),
    "lightgbm_text": lambda: _of(load_iris, lightgbm.LGBMClassifier(n_jobs=1, n_estimators=30, verbose=-1), lambda y: _species[y]),
    "lightgbm_proba": lambda: _of(
        load_wine, lightgbm.LGBMClassifier(n_jobs=1, n_estimators=30, verbose=-1), predict_fn="predict_proba"
    ),
    "lightgbm_tweedie": lambda: _of(load_diabetes, lightgbm.LGBMRegressor(n_jobs=1, objective="tweedie", verbose=-1)),
    "lightgbm_forest": lambda: _of(
        load_wine,
        lightgbm.LGBMClassifier(n_jobs=1, n_estimators=20, boosting_type="rf", bagging_freq=1, bagging_fraction=0.8, verbose=-1),
    ),
    "lightgbm_gaps": lambda: _with_gaps(lightgbm.LGBMRegressor(n_jobs=1, n_estimators=30, verbose=-1)),
    "lightgbm_named": lambda: _named(lightgbm.LGBMRegressor(n_jobs=1, n_estimators=30, verbose=-1)),
    "mixed_ridge": lambda: _mixed(Ridge(), lambda price: price),
    "mixed_logistic": lambda: _mixed(LogisticRegression(max_iter=500), _dear, OneHotEncoder()),
    "mixed_imputed": lambda: _mixed(LogisticRegression(max_iter=500), _dear, numbers=make_pipeline(SimpleImputer(), StandardScaler())),
    "mixed_forest": lambda: _mixed(RandomForestClassifier(30, random_state=0), _dear),
    "forest_proba": lambda: _of(load_wine, RandomForestClassifier(30, random_state=0), predict_fn="predict_proba"),
    "forest_numbers": lambda: _of(load_diabetes, RandomForestRegressor(30, random_state=0)),
    "tree": lambda: _of(load_wine, DecisionTreeClassifier(max_depth=3, random_state=0), lambda y: y * 5),
    "mixed_lightgbm": lambda: _mixed(lightgbm.LGBMClassifier(n_jobs=1, n_estimators=20, verbose=-1), _dear),
    "mixed_xgboost": lambda: _mixed(xgboost.XGBRegressor(n_jobs=1, n_estimators=20), lambda price: price),
    "mixed_histogram": lambda: _mixed(
        HistGradientBoostingClassifier(max_iter=20),
        _dear,
        OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1),
    ),
}
