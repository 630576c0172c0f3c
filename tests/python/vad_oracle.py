"""Listens with onnxruntime: the first argument is the package's folder; a JSON object `{name: base64 of a WAV file}`, all of
16 kHz and one channel, comes on stdin, `{name: [probability of each window]}` goes to stdout."""

import base64
import io
import json
import sys
import wave
from pathlib import Path

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(str(Path(sys.argv[1]) / "model.onnx"), providers=["CPUExecutionProvider"])
answers = {}
for name, content in json.load(sys.stdin).items():
    with wave.open(io.BytesIO(base64.b64decode(content))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16_000, 1, 2)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
    windows = np.pad(samples, (64, -len(samples) % 512))
    state, answers[name] = np.zeros((2, 1, 128), np.float32), []
    for start in range(0, len(windows) - 64, 512):
        feed = {"input": windows[None, start : start + 576], "state": state, "sr": np.array(16_000)}
        probability, state = session.run(["output", "stateN"], feed)
        answers[name].append(float(probability[0, 0]))
print(json.dumps(answers))
