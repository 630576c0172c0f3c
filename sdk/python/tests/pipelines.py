"""Small pipelines of transformers with random weights, and texts to ask them. Needs torch and transformers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

#: Where the models cut.
MAX_TOKENS = 48

_WORDS = (
    "the film was is not very good bad boring great a an story of in by and but its actors play scene second half music long "
    "anna müller lives works berlin zürich paris new york acme company sent letter to monday yesterday never always"
).split()
_ODD = ["Zürich", "naïve", "isn't", "2,000", "€5", "天気", "😀", "e-mail", "O'Brien", "Straße", "(well)", "x" * 120]
_LETTERS = "abcdefghijklmnopqrstuvwxyzäöüß0123456789.,!?'-()"


def texts(count: int = 200) -> list[str]:
    """Sentences of known, unknown and odd words; some longer than the models take, one empty. The same every time."""
    drawn = random.Random(20_240_301)
    made = [""]
    while len(made) < count:
        length = drawn.choice([1, 3, 8, 8, 15, 25, 80])
        words = [drawn.choice(_ODD) if drawn.random() < 0.15 else drawn.choice(_WORDS) for _ in range(length)]
        made.append(" ".join(word.capitalize() if drawn.random() < 0.2 else word for word in words) + drawn.choice("  .!?"))
    return made


def wordpiece() -> Any:
    """A tokenizer as BERT's: lower case, parts of words marked with ##."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_LETTERS, *(f"##{c}" for c in _LETTERS), "##ing", "##s"]
    vocab = {name: place for place, name in enumerate(dict.fromkeys([*names, *_WORDS[:40]]))}
    return transformers.BertTokenizerFast(vocab=vocab, model_max_length=MAX_TOKENS)


def byte_pairs() -> Any:
    """A tokenizer as RoBERTa's: bytes, spaces at the beginning of words, padding with 1."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bytewise = Tokenizer(models.BPE())
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bytewise.train_from_iterator(texts(), trainer)
    bytewise.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), special))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bytewise, model_max_length=MAX_TOKENS, model_input_names=["input_ids", "attention_mask"], **names
    )


def unigram() -> Any:
    """A tokenizer as SentencePiece makes them."""
    pieces = Tokenizer(models.Unigram())
    pieces.normalizer = normalizers.NFKC()
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    pieces.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces.train_from_iterator(
        texts(), trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    pieces.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token"), special))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=pieces, model_max_length=MAX_TOKENS, model_input_names=["input_ids", "attention_mask"], **names
    )


def pipeline(task: str, labels: list[str], tokenizer: Any = None, made_with: dict[str, Any] | None = None, **config: Any) -> Any:
    """A pipeline around a network of two layers, each 32 wide, whose weights are random: large enough that answers differ.

    ``made_with`` goes to the pipeline, ``config`` to the network.
    """
    tokenizer = tokenizer or wordpiece()
    torch.manual_seed(5)
    is_bert = "token_type_ids" in tokenizer.model_input_names
    head = "Sequence" if task == "text-classification" else "Token"
    kind = "Bert" if is_bert else "Roberta"
    sizes = transformers.AutoConfig.for_model(
        kind.lower(),
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=MAX_TOKENS + (0 if is_bert else 2),
        initializer_range=0.4,
        pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(labels)),
        **config,
    )
    network = getattr(transformers, f"{kind}For{head}Classification")(sizes).eval()
    if head == "Token":
        # Most tokens are no name.
        network.classifier.bias.data[0] = 1.5
    return transformers.pipeline(task, model=network, tokenizer=tokenizer, **(made_with or {}))


def sentence_encoder(folder: Path) -> Any:
    """An encoder of sentence-transformers around such a network, which lies in ``folder`` as encoders are published."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    pipeline("text-classification", ["a", "b"]).model.bert.save_pretrained(folder)
    wordpiece().save_pretrained(folder)
    transformer = Transformer(str(folder), max_seq_length=20)
    return SentenceTransformer(modules=[transformer, Pooling(32), Normalize()], device="cpu")
