"""Writes the characters that a recognizer of PP-OCR knows, which are in its metadata, a line each.

    characters.py READ.onnx OUT.txt
"""

import sys
from pathlib import Path

import onnx

if len(sys.argv) != 3:
    sys.exit(__doc__)
model = onnx.load(sys.argv[1])
(characters,) = [entry.value for entry in model.metadata_props if entry.key == "character"]
# An ideographic space is among them: lines end at "\n" alone.
Path(sys.argv[2]).write_text("".join(f"{line}\n" for line in characters.split("\n")), encoding="utf-8", newline="\n")
