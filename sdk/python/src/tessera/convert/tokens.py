"""Texts as the server's components for text make tensors of them: tokenized, cut, and filled up to one length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ConversionError

#: What encoders take that do not say how much.
_MAX_TOKENS = 512


class Tokens:
    """A tokenizer of transformers as the server has it: the file ``tokenizer.json``, and where it cuts."""

    def __init__(self, tokenizer: Any, max_tokens: int, pad_id: int) -> None:
        """Copies a tokenizer.

        Raises:
            ConversionError: when it is not one of the tokenizers library, or cuts where the server does not.
        """
        import tokenizers

        if not getattr(tokenizer, "is_fast", False):
            raise ConversionError(
                f"the tokenizer ({type(tokenizer).__name__}) is written in Python alone: save the model with a fast one, which "
                "writes tokenizer.json (use_fast=True). Left are: package the network alone with torch (inputs are token ids, "
                "the client tokenizes), or write a component with a tokenizer of its own (see sdk/rust)"
            )
        if tokenizer.truncation_side != "right":
            raise ConversionError(
                "the tokenizer cuts long texts on the left, and the server on the right: set truncation_side='right', or write "
                "a component with the tokenizer in it (see sdk/rust)"
            )
        self.max_tokens = max_tokens
        self._pad_id = pad_id
        self._names = [n for n in ("input_ids", "attention_mask", "token_type_ids") if n in tokenizer.model_input_names]
        # What is left of an earlier use is not the model's: the file is to be the same every time.
        self.file = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self.file.no_padding()
        self.file.no_truncation()
        self._cutting = tokenizers.Tokenizer.from_str(self.file.to_str())
        self._cutting.enable_truncation(max_tokens)

    def tensors(self, texts: Sequence[Any]) -> dict[str, np.ndarray]:
        """The tensors of texts, or of pairs as ``{"text": …, "text_pair": …}``, that share a run."""
        given = [self._cutting.encode(t["text"], t.get("text_pair")) if isinstance(t, dict) else self._cutting.encode(t) for t in texts]
        width = max(len(encoding.ids) for encoding in given)

        def filled(rows: list[list[int]], fill: int) -> np.ndarray:
            return np.array([row + [fill] * (width - len(row)) for row in rows], dtype=np.int64)

        tensors = {
            "input_ids": filled([encoding.ids for encoding in given], self._pad_id),
            "attention_mask": filled([encoding.attention_mask for encoding in given], 0),
            "token_type_ids": filled([encoding.type_ids for encoding in given], 0),
        }
        return {name: tensors[name] for name in self._names}


def max_tokens(tokenizer: Any, network: Any) -> int:
    """Where texts are cut: what the tokenizer says, or without it the network."""
    # A tokenizer that does not know says so with a number beyond all measure.
    if tokenizer.model_max_length is not None and tokenizer.model_max_length < 1_000_000:
        return int(tokenizer.model_max_length)
    limit = getattr(network.config, "max_position_embeddings", None) or _MAX_TOKENS
    # RoBERTa and its kin count positions from behind that of the padding.
    tables = [module for name, module in network.named_modules() if name.endswith("position_embeddings")]
    reserved = max((table.padding_idx + 1 for table in tables if getattr(table, "padding_idx", None) is not None), default=0)
    return int(limit) - reserved
