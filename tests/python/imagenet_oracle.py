"""Classifies pictures with Pillow and onnxruntime: the first argument is the package's folder; a JSON object
`{name: base64 of the file}` comes on stdin, `{name: {label: probability}}` of all classes goes to stdout."""

import base64
import io
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

folder = Path(sys.argv[1])
labels = json.loads((folder / "labels.json").read_text())
session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
answers = {}
for name, content in json.load(sys.stdin).items():
    image = Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")
    side = min(image.size) * 0.875
    left, top = (image.width - side) / 2, (image.height - side) / 2
    image = image.resize((224, 224), Image.BILINEAR, box=(left, top, left + side, top + side))
    pixels = (np.asarray(image, np.float32) - 127) / 128
    (logits,) = session.run(["logits"], {"image": pixels.transpose(2, 0, 1)[None]})
    powers = np.exp(logits[0] - logits[0].max())
    # Two classes of ImageNet are called crane, two maillot: of each the likelier counts.
    answer = {}
    for label, probability in zip(labels, (powers / powers.sum()).tolist(), strict=True):
        answer[label] = max(probability, answer.get(label, 0))
    answers[name] = answer
print(json.dumps(answers))
