"""What a server would answer, from a package's files alone: the settings that the scoring component reads."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tessera.convert import Categories, Converted
from tessera.packaging import _session


def answers(package: Path, rows: Any) -> np.ndarray:
    """Runs the graph of a package on rows."""
    manifest = tomllib.loads((package / "tessera.toml").read_text(encoding="utf-8"))
    assert manifest["component"] == "stock:scoring"
    settings = manifest["settings"]
    assert settings["predictions"] == "array"
    categories = {
        name: Categories(tuple(of["values"]), of["unknown"] == "allow")
        for name, of in json.loads(settings.get("categories", "{}")).items()
    }
    labels = json.loads(settings["labels"]) if "labels" in settings else None
    converted = Converted(onnx.load(package / manifest["graphs"]["model"]["file"]), labels, categories)
    (output,) = _session(converted.graph).run(None, converted.feeds(rows))
    return converted.answer(output)
