"""Whether the converted model predicts what the model predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from .errors import ParityError

#: Two classes this close are a tie, which the order of additions decides.
_TIE = 1e-5
#: More ties than this share of the rows are no accident.
_TIES_MAX = 0.05


@dataclass(frozen=True)
class Parity:
    """What was compared, and how far apart the two were."""

    rows: int
    #: Largest difference of two numbers, relative for numbers above 1; 0 for labels.
    max_difference: float
    #: Rows of which the model itself gives two classes the same probability, and the copy names the other one.
    ties: int = 0


def row_of(rows: Any, place: int) -> Any:
    """One row as a person writes it."""
    if isinstance(rows, pd.DataFrame):
        return rows.iloc[place].to_dict()
    if isinstance(rows, dict):
        return {name: np.asarray(value)[place].tolist() for name, value in rows.items()}
    return np.asarray(rows)[place].tolist()


def count_of(rows: Any) -> int:
    return len(next(iter(rows.values()))) if isinstance(rows, dict) else len(rows)


def check(rows: Any, expected: Any, got: Any, tolerance: float, probabilities: Any = None) -> Parity:
    """Compares predictions row by row.

    Args:
        probabilities: a function of rows that gives the model's own probabilities, to tell ties from mistakes.

    Raises:
        ParityError: shows the row with the largest difference.
    """
    expected, got = np.asarray(expected), np.asarray(got)
    if expected.shape != got.shape:
        raise ParityError(f"the model answers with the shape {expected.shape}, the converted one with {got.shape}")
    if expected.dtype.kind != "f":
        return _check_labels(rows, expected, got, probabilities)
    got = got.astype(np.float64)
    wide = expected.astype(np.float64)
    with np.errstate(invalid="ignore"):
        differences = np.abs(wide - got) / np.maximum(1.0, np.abs(wide))
    same = (wide == got) | (np.isnan(wide) & np.isnan(got))
    differences = np.where(same, 0.0, np.where(np.isnan(differences), np.inf, differences))
    by_row = differences.reshape(len(differences), -1).max(axis=1, initial=0.0) if differences.ndim else differences.reshape(1)
    largest = float(by_row.max(initial=0.0))
    if largest > tolerance:
        worst = int(by_row.argmax())
        wrong = int((by_row > tolerance).sum())
        raise ParityError(
            f"{wrong} of {len(by_row)} rows differ by more than {tolerance:g}. The worst, by {largest:.3g}: the model "
            f"predicts {expected[worst]}, the converted one {got[worst]}, for {row_of(rows, worst)}"
        )
    return Parity(len(by_row), largest)


def _check_labels(rows: Any, expected: np.ndarray, got: np.ndarray, probabilities: Any) -> Parity:
    wrong = np.flatnonzero((expected.astype(object) != got.astype(object)).reshape(len(expected), -1).any(axis=1))
    if len(wrong) and probabilities is not None:
        top = np.sort(np.asarray(probabilities(rows), dtype=np.float64), axis=1)
        tied = top[:, -1] - top[:, -2] < _TIE
        ties = int(tied[wrong].sum())
        wrong = wrong[~tied[wrong]] if ties <= max(1, _TIES_MAX * len(expected)) else wrong
        if not len(wrong):
            return Parity(len(expected), 0.0, ties)
    if len(wrong):
        worst = int(wrong[0])
        raise ParityError(
            f"{len(wrong)} of {len(expected)} rows get another label. The first: the model predicts {expected[worst]!r}, "
            f"the converted one {got[worst]!r}, for {row_of(rows, worst)}"
        )
    return Parity(len(expected), 0.0)
