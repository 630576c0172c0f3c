"""Pipelines of transformers that classify texts or tokens: the network as a graph, its tokenizer and labels for the
component ``classification``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from .. import manifest
from ..errors import ConversionError, ParityError
from ..parity import Parity
from ..signature import Signature, Tensor
from . import pytorch
from .tokens import Tokens, max_tokens

#: Asked besides the example: short, long, several alphabets, and one that is cut.
TEXTS = [
    "How do I reset my password?",
    "a",
    "Zürich — 2,000 m über dem Meer, sagt Anna Müller.",
    "天気はどうですか",
    "An excellent film, though its second half isn't very exciting 😀",
    "word " * 600,
]
#: Texts of the golden request, which every deploy asks.
_GOLDEN_TEXTS = 5
_TASKS = {"text-classification": "TextClassificationPipeline", "token-classification": "TokenClassificationPipeline"}
_LEFT = (
    "Left are: package the network alone with torch (inputs are token ids, the client tokenizes), or write a component with "
    "the tokenizer in it (sdk/stock/classification is an example)"
)


def predict(pipeline: Any) -> Callable[[Any], Any]:
    """What a pipeline answers to a list of texts, each cut at what the model takes.

    Raises:
        ConversionError: for pipelines of other tasks, and what is no pipeline.
    """
    _check(pipeline)
    # The other task cuts by itself, and refuses to be told.
    cut = {"truncation": True, "max_length": _max_tokens(pipeline)} if pipeline.task == "text-classification" else {}
    return lambda texts: [_plain(pipeline([text], **cut)[0]) for text in texts]


def fill(made: Path, pipeline: Any, asked: list[Any], tolerance: float) -> Parity:
    """Writes the package of a pipeline. The texts of ``asked``, or pairs, are compared besides those that always are."""
    tokens = Tokens(pipeline.tokenizer, _max_tokens(pipeline), pipeline.model.config.pad_token_id or 0)
    settings = {"max_tokens": str(tokens.max_tokens), **_choices(pipeline)}
    pairs = any(isinstance(text, dict) for text in asked)
    batch = tokens.tensors(asked[:2] or TEXTS[:2])
    signature = Signature(tensors=tuple(Tensor(name, np.dtype(np.int64), (-1, -1)) for name in batch))
    per_token = pipeline.task == "token-classification"
    onnx.save(
        pytorch.export(_network(pipeline, list(batch)), signature, batch, {1: "tokens"} if per_token else None),
        made / "model.onnx",
    )
    tokens.file.save(str(made / "tokenizer.json"))
    (made / "config.json").write_text(json.dumps(_config(pipeline), indent=2) + "\n", encoding="utf-8")
    result = _parity(made, pipeline, tokens, asked if pairs else asked + _comparable(pipeline), tolerance)
    golden_texts = (asked or TEXTS)[:_GOLDEN_TEXTS]
    answer = {"predictions": predict(pipeline)(golden_texts)}
    golden = manifest.write_golden(made, {"inputs": golden_texts}, answer, tolerance)
    manifest.write(made, "stock:classification", settings, golden, ["config.json", "tokenizer.json"])
    return result


def _check(pipeline: Any) -> None:
    what = f"{type(pipeline).__module__}.{type(pipeline).__qualname__}"
    task = getattr(pipeline, "task", None)
    if getattr(pipeline, "model", None) is None or task is None:
        raise ConversionError(
            f"{what} is a network without its tokenizer, and the server takes texts: give the pipeline "
            "(transformers.pipeline(task, model=..., tokenizer=...)), of text-classification or token-classification"
        )
    if task not in _TASKS:
        raise ConversionError(
            f"the pipeline's task is '{task}', and the server's components for text classify ({', '.join(_TASKS)}) or make "
            f"embeddings (package the SentenceTransformer). {_LEFT}"
        )
    if type(pipeline).__name__ != _TASKS[task] or not what.startswith("transformers.pipelines."):
        raise ConversionError(f"the pipeline has code of its own ({what}), which no graph holds. {_LEFT}")
    kind = f"{str(pipeline.model.dtype).removeprefix('torch.')} on {pipeline.device.type}"
    if kind != "float32 on cpu":
        raise ConversionError(
            f"the model is {kind}, and what it predicts there is not what a graph of single precision does: load the pipeline "
            "with dtype=torch.float32 and device='cpu'"
        )


def _max_tokens(pipeline: Any) -> int:
    limit = max_tokens(pipeline.tokenizer, pipeline.model)
    return min(limit, pipeline._preprocess_params.get("max_length") or limit)


def _choices(pipeline: Any) -> dict[str, str]:
    """Settings for what the pipeline was told beside its model."""
    told = {**pipeline._preprocess_params, **pipeline._forward_params}
    taken = {"truncation", "max_length", "padding", "delimiter"}
    unknown = sorted(name for name, value in told.items() if value and name not in taken)
    if unknown:
        raise ConversionError(
            f"the pipeline was made with {', '.join(unknown)}, which the server's component has not: make it without. {_LEFT}"
        )
    settings = {}
    for name, value in pipeline._postprocess_params.items():
        if name == "_legacy":
            continue
        value = getattr(value, "value", value)
        settings[name] = value if isinstance(value, str) else json.dumps(value)
    if pipeline.task == "token-classification" and pipeline.tokenizer.unk_token is not None:
        settings["unk_token"] = str(pipeline.tokenizer.unk_token)
    return settings


def _config(pipeline: Any) -> dict[str, Any]:
    """Of the model's config what the component reads."""
    config = pipeline.model.config
    return {
        "model_type": config.model_type,
        "problem_type": config.problem_type,
        "pad_token_id": config.pad_token_id,
        "id2label": {str(place): config.id2label[place] for place in range(config.num_labels)},
    }


def _network(pipeline: Any, names: list[str]) -> Any:
    """The model as a module that takes tensors and gives the numbers of its head."""
    import torch

    class Network(torch.nn.Module):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.model = pipeline.model

        def forward(self, *tensors: Any) -> Any:
            return self.model(**dict(zip(names, tensors))).logits

    return Network()


def _comparable(pipeline: Any) -> list[Any]:
    """Texts that the pipeline itself takes: not those that are too long where it would not cut them."""
    cuts = pipeline.task == "text-classification" or _max_tokens(pipeline) == pipeline.tokenizer.model_max_length
    return TEXTS if cuts else TEXTS[:-1]


def _parity(made: Path, pipeline: Any, tokens: Tokens, texts: list[Any], tolerance: float) -> Parity:
    """Compares what the pipeline answers with what it makes of the graph's numbers for the tokens that the component has.
    What the component makes of them is compared by the golden request, at every deploy."""
    import torch

    session = onnxruntime.InferenceSession(str(made / "model.onnx"), providers=["CPUExecutionProvider"])
    per_token = pipeline.task == "token-classification"
    together = tokens.tensors(texts)
    (all_numbers,) = session.run(None, together)
    largest = 0.0
    for place, (text, expected) in enumerate(zip(texts, predict(pipeline)(texts))):
        length = int(together["attention_mask"][place].sum())
        numbers = torch.from_numpy(all_numbers[place])
        if per_token:
            (inputs,) = pipeline.preprocess(text, **pipeline._preprocess_params)
            if inputs["input_ids"][0].tolist() != together["input_ids"][place][:length].tolist():
                raise ParityError(f"the pipeline makes other tokens than its own tokenizer.json, of {text!r}")
            got = pipeline.postprocess([{**inputs, "logits": numbers[None, :length]}], **pipeline._postprocess_params)
        else:
            got = pipeline.postprocess({"logits": numbers[None]}, **pipeline._postprocess_params)
        apart = difference(expected, _plain(got))
        if apart is None or apart > tolerance:
            by = "" if apart is None else f": they differ by {apart:.3g}, more than {tolerance:g}"
            raise ParityError(f"the pipeline answers {expected}, the converted one {_plain(got)}, for {text!r}{by}")
        largest = max(largest, apart)
    return Parity(len(texts), largest)


def difference(expected: Any, got: Any) -> float | None:
    """How far numbers are apart, relative above 1; ``None`` when something else differs."""
    if isinstance(expected, float) and isinstance(got, float):
        return 0.0 if expected == got else abs(expected - got) / max(1.0, abs(expected))
    if isinstance(expected, dict) and isinstance(got, dict) and expected.keys() == got.keys():
        expected, got = list(expected.values()), [got[name] for name in expected]
    if isinstance(expected, list) and isinstance(got, list) and len(expected) == len(got):
        differences = [difference(one, other) for one, other in zip(expected, got)]
        return None if None in differences else max((d for d in differences if d is not None), default=0.0)
    return 0.0 if expected == got else None


def _plain(answer: Any) -> Any:
    """An answer in the types of JSON."""
    if isinstance(answer, dict):
        return {name: _plain(value) for name, value in answer.items()}
    if isinstance(answer, (list, tuple)):
        return [_plain(value) for value in answer]
    return answer.item() if isinstance(answer, np.generic) else answer
