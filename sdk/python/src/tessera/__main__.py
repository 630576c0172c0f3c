"""``python -m tessera package MODEL OUTPUT``: the same as :func:`tessera.package`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from .errors import TesseraError
from .packaging import ROWS, TOLERANCE, package


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; the exit code is 1 when it failed."""
    given = _parser().parse_args(arguments)
    try:
        made = package(
            given.model,
            given.output,
            name=given.name,
            input_example=None if given.input_example is None else _example(given.input_example),
            predict_fn=given.predict_fn,
            tolerance=given.tolerance,
            rows=given.rows,
            overwrite=given.overwrite,
        )
        if given.push is not None:
            from .client import Client

            version = Client().push(made.path, given.push)
    except TesseraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    checked = "a graph, packaged as it is"
    if made.parity is not None:
        checked = f"{made.parity.rows} rows predict the same (largest difference {made.parity.max_difference:.2g})"
    print(f"{made.path}: {made.flavour}, {checked}")
    if given.push is not None:
        print(f"{given.push} version {version}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("tessera", description="Packages models for Tessera.")
    command = parser.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "package", help="make a package of a trained model, and check that it predicts the same"
    )
    command.add_argument("model", help="an MLflow model directory, a URI like models:/NAME/VERSION, or an .onnx file")
    command.add_argument("output", help="directory that does not exist, or archive (.tar.gz, .tar, .zip)")
    command.add_argument("--name", help="name of the graph")
    command.add_argument("--input-example", metavar="FILE", help="rows: CSV, or JSON as for dataframe_split or a list")
    command.add_argument("--predict-fn", metavar="NAME", help="predict or predict_proba")
    command.add_argument("--tolerance", type=float, default=TOLERANCE, help="allowed difference (%(default)g)")
    command.add_argument("--rows", type=int, default=ROWS, help="synthetic rows to compare (%(default)d)")
    command.add_argument("--overwrite", action="store_true", help="replace OUTPUT")
    command.add_argument("--push", metavar="CATALOG.SCHEMA.MODEL", help="register it with the server as well")
    return parser


def _example(path: str) -> Any:
    """Rows of a file."""
    import pandas as pd

    try:
        if path.endswith(".csv"):
            return pd.read_csv(path)
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TesseraError(f"failed to read the input example '{path}': {error}") from error
    if isinstance(content, dict) and "dataframe_split" in content:
        content = content["dataframe_split"]
    if isinstance(content, dict) and "data" in content:
        return pd.DataFrame(content["data"], columns=content.get("columns"))
    if isinstance(content, dict):
        return content.get("inputs", content)
    is_records = isinstance(content, list) and content and isinstance(content[0], dict)
    return pd.DataFrame(content) if is_records else content


if __name__ == "__main__":
    sys.exit(main())
