"""Pipelines of transformers and encoders of sentence-transformers, where they are installed: `setup.sh torch` does it.

What the packages made here answer over HTTP is compared by `tests/integration/text.rs`.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import tessera
from tessera.convert import classification, pytorch

for needed in ("torch", "transformers"):
    pytest.importorskip(needed, reason=f"{needed} is not installed: with PyTorch's wheel it is 6 GB (sdk/python/setup.sh torch)")

import torch
import transformers

from pipelines import MAX_TOKENS, byte_pairs, pipeline, sentence_encoder, texts, unigram

NAMES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
GRADES = ["bad", "good", "so"]
PIPELINES: dict[str, Any] = {
    "one label of several": lambda: pipeline("text-classification", GRADES),
    "several labels": lambda: pipeline(
        "text-classification", GRADES, made_with={"top_k": None}, problem_type="multi_label_classification"
    ),
    "a number": lambda: pipeline("text-classification", ["grade"], problem_type="regression"),
    "bytes": lambda: pipeline("text-classification", GRADES, byte_pairs(), {"top_k": 2, "function_to_apply": "sigmoid"}),
    "cut early": lambda: pipeline("text-classification", GRADES, made_with={"truncation": True, "max_length": 9}),
    "tokens": lambda: pipeline("token-classification", NAMES),
    "tokens in groups": lambda: pipeline("token-classification", NAMES, made_with={"aggregation_strategy": "simple"}),
    "words of bytes": lambda: pipeline("token-classification", NAMES, byte_pairs(), {"aggregation_strategy": "first"}),
    "words of pieces": lambda: pipeline("token-classification", NAMES, unigram(), {"aggregation_strategy": "average"}),
}


def _manifest(package: Path) -> dict[str, Any]:
    return tomllib.loads((package / "tessera.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_is_packaged_with_what_it_was_told(name: str, tmp_path: Path) -> None:
    made = tessera.package(PIPELINES[name](), tmp_path / "package", input_example=texts(20))
    assert made.flavour == "transformers" and made.parity is not None
    assert made.parity.rows == 20 + len(classification.TEXTS) and made.parity.max_difference < 1e-5
    manifest = _manifest(made.path)
    assert manifest["component"] == "stock:classification" and manifest["assets"] == ["config.json", "tokenizer.json"]
    told = {
        "several labels": {"top_k": "null"},
        "bytes": {"top_k": "2", "function_to_apply": "sigmoid"},
        "cut early": {"max_tokens": "9"},
        "tokens": {"unk_token": "[UNK]"},
        "tokens in groups": {"unk_token": "[UNK]", "aggregation_strategy": "simple"},
        "words of bytes": {"unk_token": "<unk>", "aggregation_strategy": "first"},
        "words of pieces": {"unk_token": "<unk>", "aggregation_strategy": "average"},
    }
    assert manifest["settings"] == {"max_tokens": str(MAX_TOKENS), **told.get(name, {})}
    asked, answered = (json.loads((made.path / manifest["golden"][part]).read_text()) for part in ("request", "response"))
    assert asked["inputs"] == texts(20)[:5] and len(answered["predictions"]) == 5


def test_the_same_pipeline_makes_the_same_package(tmp_path: Path) -> None:
    of_pipeline = PIPELINES["tokens"]()
    first, second = (tessera.package(of_pipeline, tmp_path / name).path for name in ("first", "second"))
    for file in sorted(path.name for path in first.iterdir()):
        assert (first / file).read_bytes() == (second / file).read_bytes(), file


def test_pairs_of_texts_are_compared_as_pairs(tmp_path: Path) -> None:
    pairs = pd.DataFrame({"text": texts(12)[1:], "text_pair": texts(24)[13:]})
    made = tessera.package(PIPELINES["one label of several"](), tmp_path / "package", input_example=pairs)
    assert made.parity is not None and made.parity.rows == 11
    with pytest.raises(tessera.TesseraError, match="the input example holds 7: give texts"):
        tessera.package(PIPELINES["tokens"](), tmp_path / "other", input_example=["a", 7])


def test_a_pipeline_that_mlflow_saved_is_packaged(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    saved = str(tmp_path / "saved")
    of_pipeline = PIPELINES["one label of several"]()
    mlflow.transformers.save_model(of_pipeline, saved, input_example=["a good film"], pip_requirements=["mlflow"])
    made = tessera.package(saved, tmp_path / "package")
    assert made.parity is not None and made.parity.max_difference < 1e-5
    answered = json.loads((made.path / "golden_response.json").read_text())["predictions"]
    assert [answer["label"] for answer in answered] == [of_pipeline("a good film")[0]["label"]]


def test_a_wrong_graph_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given an exporter that gives the graph of another network
    real = pytorch.export

    def other(module: Any, *rest: Any) -> Any:
        with torch.no_grad():
            module.model.classifier.bias += 1.0 if rest[1]["input_ids"].ndim else 0.0
            module.model.classifier.weight *= -1
            graph = real(module, *rest)
            module.model.classifier.weight *= -1
        return graph

    monkeypatch.setattr(pytorch, "export", other)
    with pytest.raises(tessera.ParityError, match="the pipeline answers .*, the converted one "):
        tessera.package(PIPELINES["one label of several"](), tmp_path / "package")
    assert not (tmp_path / "package").exists()


def test_what_has_no_component_is_refused_with_the_reason(tmp_path: Path) -> None:
    class Own(transformers.TextClassificationPipeline):  # type: ignore[misc]
        """A pipeline with code of its own."""

    usual = PIPELINES["one label of several"]()
    own = Own(model=usual.model, tokenizer=usual.tokenizer, task="text-classification")
    left = pipeline("text-classification", GRADES)
    left.tokenizer.truncation_side = "left"
    half = pipeline("text-classification", GRADES)
    half.model.half()
    features = transformers.pipeline("feature-extraction", model=usual.model.bert, tokenizer=usual.tokenizer)
    slow = pipeline("text-classification", GRADES)
    slow.tokenizer = type("SlowTokenizer", (), {"is_fast": False, "model_max_length": 8})()
    strided = pipeline("token-classification", NAMES, made_with={"aggregation_strategy": "simple", "stride": 4})
    for model, reason in (
        (usual.model, "is a network without its tokenizer, and the server takes texts"),
        (features, "the pipeline's task is 'feature-extraction', and the server's components for text classify"),
        (own, "has code of its own"),
        (left, "cuts long texts on the left"),
        (half, "the model is float16 on cpu"),
        (slow, r"the tokenizer \(SlowTokenizer\) is written in Python alone"),
        (strided, "was made with tokenizer_params, which the server's component has not"),
    ):
        with pytest.raises(tessera.ConversionError, match=reason):
            tessera.package(model, tmp_path / "package")
    assert not list(tmp_path.iterdir())


def test_a_sentence_encoder_is_packaged(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    encoder = sentence_encoder(tmp_path / "network")
    made = tessera.package(encoder, tmp_path / "package", input_example=["a good film", "Zürich"])
    assert made.flavour == "sentence_transformers" and made.parity is not None and made.parity.max_difference < 1e-5
    manifest = _manifest(made.path)
    assert manifest["component"] == "stock:embeddings" and manifest["settings"] == {"max_tokens": "20"}
    golden = json.loads((made.path / "golden_response.json").read_text())
    assert len(golden["data"]) == 4 and golden["usage"]["prompt_tokens"] > 20
    # and one that puts words in front of texts is not
    encoder.prompts, encoder.default_prompt_name = {"query": "query: "}, "query"
    with pytest.raises(tessera.ConversionError, match="puts the prompt 'query' in front of texts"):
        tessera.package(encoder, tmp_path / "other")
