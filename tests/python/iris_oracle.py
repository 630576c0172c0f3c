"""Runs an ONNX model with Python's onnxruntime: the first argument is its file; rows come as JSON on stdin, and
`{output: [values]}` goes to stdout."""

import json
import sys

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
rows = np.array(json.load(sys.stdin), np.float32)
names = [output.name for output in session.get_outputs()]
values = session.run(names, {session.get_inputs()[0].name: rows})
print(json.dumps({name: value.tolist() for name, value in zip(names, values)}))
