"""What a package holds beside its graph: the manifest, and a request whose answer every deploy compares."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write(made: Path, component: str, settings: dict[str, str], golden: float | None, assets: Sequence[str] = ()) -> None:
    """Writes ``tessera.toml`` for the graph ``model.onnx``; ``golden`` is what :func:`write_golden` gave."""
    # A JSON string without control characters is a TOML string, and a list of them a list.
    lines = [f"component = {json.dumps(component)}"]
    lines += [f"assets = {json.dumps(list(assets))}"] if assets else []
    lines += ["", "[graphs.model]", 'file = "model.onnx"', "", "[settings]"]
    lines += [f"{json.dumps(key)} = {json.dumps(value)}" for key, value in settings.items()]
    if golden is not None:
        lines += ["", "[golden]", 'request = "golden_request.json"', 'response = "golden_response.json"']
        lines.append(f"tolerance = {golden!r}")
    (made / "tessera.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_golden(made: Path, request: Any, answer: Any, tolerance: float) -> float | None:
    """Writes a request and what the model itself answers.

    Returns:
        How far a number of the answer may be off; ``None`` if there is no request that can be written.
    """
    try:
        texts = [json.dumps(value, allow_nan=False) for value in (request, answer)]
    except ValueError:
        # JSON has no NaN, and a deploy reads JSON.
        return None
    for name, text in zip(("golden_request.json", "golden_response.json"), texts):
        (made / name).write_text(text, encoding="utf-8")
    return float(tolerance * max([1.0, *map(abs, _floats(answer))]))


def _floats(value: Any) -> list[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for inner in value for number in _floats(inner)]
    return [value] if isinstance(value, float) else []
