"""Tiny tokenizers of the kinds whose chat formats are tested: LLaMA's with added marks, ChatGLM-6B's, ChatGLM2's and 3's."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import sentencepiece

from tests.helpers.corpus import english_and_chinese

LLAMA3_MARKS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
CHATML_MARKS = ["<|im_start|>", "<|im_end|>"]


def sentencepiece_bytes(vocab_size: int = 700, symbols: tuple[str, ...] = ()) -> bytes:
    """A sentencepiece model as ChatGLM's are: byte fallback, no padding piece."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("\n".join(english_and_chinese(300)).splitlines()),
        model_writer=model,
        vocab_size=vocab_size,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=list(symbols),
        minloglevel=2,
    )
    return model.getvalue()


def chatglm_folder(folder: Path) -> str:
    """ChatGLM-6B's: marks are pieces of the model, ids are moved up by the image tokens."""
    folder.mkdir(parents=True)
    (folder / "ice_text.model").write_bytes(
        sentencepiece_bytes(symbols=("<n>", "[MASK]", "[gMASK]", "<sop>", "<eop>", "<pad>"))
    )
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "ChatGLMTokenizer", "num_image_tokens": 100})
    )
    return str(folder)


def chatglm3_folder(folder: Path) -> str:
    """ChatGLM2-6B's and ChatGLM3-6B's: marks are ids behind the vocabulary."""
    folder.mkdir(parents=True)
    (folder / "tokenizer.model").write_bytes(sentencepiece_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ChatGLMv2Tokenizer"}))
    return str(folder)


def llama3_folder(folder: Path) -> str:
    """LLaMA 3's: byte pairs by tiktoken, here the 256 bytes alone, and the marks behind them."""
    folder.mkdir(parents=True)
    ranks = (f"{base64.b64encode(bytes([i])).decode()} {i}" for i in range(256))
    (folder / "tokenizer.model").write_text("\n".join(ranks))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Llama3Tokenizer"}))
    return str(folder)
