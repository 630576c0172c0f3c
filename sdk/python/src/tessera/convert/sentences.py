"""Sentence encoders of sentence-transformers: the encoder as a graph, its tokenizer for the component `embeddings`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from .. import manifest, parity
from ..errors import ConversionError
from ..parity import Parity
from ..signature import Signature, Tensor
from . import pytorch
from .tokens import Tokens, max_tokens

#: Compared besides the example: short, long, several alphabets, and one that is cut.
_TEXTS = ["How do I reset my password?", "a", "Zürich — 2,000 m über dem Meer", "天気はどうですか", "word " * 600]
#: Texts of the golden request, which every deploy asks.
_GOLDEN_TEXTS = 4


def predict(model: Any) -> Callable[[Any], Any]:
    """Embeddings of texts."""
    if not any(base.__name__ == "SentenceTransformer" for base in type(model).__mro__):
        raise ConversionError(
            f"{type(model).__name__} makes no embeddings of texts, and no component of the server does what it does. Left is: "
            "write one with the tokenizer in it (sdk/stock/embeddings and guest-examples/rerank are examples)"
        )
    return lambda texts: np.asarray(model.encode(list(texts), convert_to_numpy=True))


def fill(made: Path, model: Any, texts: list[Any], tolerance: float) -> Parity:
    """Writes the package of a SentenceTransformer. ``texts`` are compared besides those that always are."""
    if model.default_prompt_name is not None:
        raise ConversionError(
            f"the model puts the prompt '{model.default_prompt_name}' in front of texts, which the server does not: set "
            "default_prompt_name to None, and let clients put it there"
        )
    transformer = next(model.children())
    network = getattr(transformer, "auto_model", transformer)
    tokens = Tokens(model.tokenizer, model.max_seq_length or max_tokens(model.tokenizer, network), 0)
    batch = tokens.tensors(_TEXTS[:2])
    signature = Signature(tensors=tuple(Tensor(name, np.dtype(np.int64), (-1, -1)) for name in batch))
    onnx.save(pytorch.export(_network(model, list(batch)), signature, batch), made / "model.onnx")
    tokens.file.save(str(made / "tokenizer.json"))
    compared = [*texts, *_TEXTS]
    result = _parity(made, model, tokens, compared, tolerance)
    golden = _golden(made, model, tokens, compared[:_GOLDEN_TEXTS], tolerance)
    manifest.write(made, "stock:embeddings", {"max_tokens": str(tokens.max_tokens)}, golden, ["tokenizer.json"])
    return result


def _network(model: Any, names: list[str]) -> Any:
    """The model as a module of tensors: pooling and normalisation included."""
    import torch

    class Network(torch.nn.Module):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.model = model.cpu()

        def forward(self, *tensors: Any) -> Any:
            return self.model(dict(zip(names, tensors)))["sentence_embedding"]

    return Network()


def _parity(made: Path, model: Any, tokens: Tokens, texts: list[Any], tolerance: float) -> Parity:
    session = onnxruntime.InferenceSession(str(made / "model.onnx"), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, tokens.tensors(texts))
    return parity.check(texts, predict(model)(texts), got, tolerance)


def _golden(made: Path, model: Any, tokens: Tokens, texts: list[Any], tolerance: float) -> float | None:
    vectors = predict(model)(texts).tolist()
    data = [{"object": "embedding", "index": place, "embedding": vector} for place, vector in enumerate(vectors)]
    count = int(tokens.tensors(texts)["attention_mask"].sum())
    usage = {"prompt_tokens": count, "total_tokens": count}
    return manifest.write_golden(
        made, {"input": texts}, {"object": "list", "data": data, "model": "model", "usage": usage}, tolerance
    )
