"""Embeds sentences with Python's tokenizers and onnxruntime, one at a time: the first argument is the package's folder;
a JSON list of sentences comes on stdin, a list of vectors goes to stdout."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

folder = Path(sys.argv[1])
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
tokenizer.no_padding()
tokenizer.enable_truncation(256)  # what the model was trained for; the file says what its last training run used
session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
vectors = []
for sentence in json.load(sys.stdin):
    encoding = tokenizer.encode(sentence)
    feed = {"input_ids": encoding.ids, "attention_mask": encoding.attention_mask, "token_type_ids": encoding.type_ids}
    (vector,) = session.run(["sentence_embedding"], {name: np.array([ids], np.int64) for name, ids in feed.items()})
    vectors.append(vector[0].tolist())
print(json.dumps(vectors))
