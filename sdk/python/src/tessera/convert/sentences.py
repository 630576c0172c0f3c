"""Sentence encoders of sentence-transformers: the encoder as a graph, its tokenizer for the component `embeddings`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from .. import parity
from ..errors import ConversionError
from ..parity import Parity
from ..signature import Signature, Tensor
from ..source import Source
from . import pytorch

#: Compared besides the example: short, long, several alphabets, and one that is cut.
_TEXTS = ["How do I reset my password?", "a", "Zürich — 2,000 m über dem Meer", "天気はどうですか", "word " * 400]
_NO_COMPONENT = (
    "the server's component for text makes embeddings: text and token classification have none yet. Left are: package the "
    "network alone with torch (inputs are token ids, the client tokenizes), or write a component with the tokenizer in it "
    "(sdk/stock/embeddings is an example)"
)


def predict(model: Any) -> Callable[[Any], Any]:
    """Embeddings of texts."""
    if not hasattr(model, "encode") or not hasattr(model, "tokenize"):
        raise ConversionError(_NO_COMPONENT)
    return lambda texts: np.asarray(model.encode(list(texts)))


def fill(made: Path, source: Source, tolerance: float) -> Parity:
    """Writes the package of a SentenceTransformer."""
    model = source.model
    if not hasattr(model, "encode") or not hasattr(model, "tokenize"):
        raise ConversionError(_NO_COMPONENT)
    tokenizer = model.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise ConversionError("the tokenizer is written in Python alone: save the model with a fast one (tokenizer.json)")
    module, names = _network(model)
    encoded = model.tokenize(_TEXTS)
    example = {name: encoded[name].cpu().numpy() for name in names}
    signature = Signature(tensors=tuple(Tensor(name, np.dtype(np.int64), (-1, -1)) for name in names))
    onnx.save(pytorch.export(module, signature, example), made / "model.onnx")
    tokenizer.backend_tokenizer.save(str(made / "tokenizer.json"))
    result = _parity(made, model, names, tolerance)
    lines = ['component = "stock:embeddings"', 'assets = ["tokenizer.json"]', "", "[graphs.model]", 'file = "model.onnx"']
    lines += ["", "[settings]", f"max_tokens = {json.dumps(str(model.max_seq_length))}"]
    (made / "tessera.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return result


def _network(model: Any) -> tuple[Any, list[str]]:
    """The model as a module of tensors: pooling and normalisation included."""
    import torch

    encoded = model.tokenize(["text"])
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in encoded]

    class Network(torch.nn.Module):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.model = model.cpu()

        def forward(self, *tensors: Any) -> Any:
            return self.model(dict(zip(names, tensors)))["sentence_embedding"]

    return Network(), names


def _parity(made: Path, model: Any, names: list[str], tolerance: float) -> Parity:
    session = onnxruntime.InferenceSession(str(made / "model.onnx"), providers=["CPUExecutionProvider"])
    found = []
    for text in _TEXTS:
        encoded = model.tokenize([text])
        (got,) = session.run(None, {name: encoded[name].cpu().numpy() for name in names})
        found.append(parity.check([text], np.asarray(model.encode([text])), got, tolerance))
    return Parity(len(found), max(p.max_difference for p in found))
