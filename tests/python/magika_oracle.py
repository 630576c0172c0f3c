"""Tells what files are with the Python package magika: a JSON object `{name: base64 of the content}` comes on stdin,
`{name: {label, score}}` goes to stdout."""

import base64
import json
import sys

from magika import Magika

magika = Magika()
answers = {}
for name, content in json.load(sys.stdin).items():
    result = magika.identify_bytes(base64.b64decode(content))
    answers[name] = {"label": str(result.output.label), "score": result.score}
print(json.dumps(answers))
