"""Writes complete model folders for generation: random weights in Hugging Face's files, and a tokenizer."""

from __future__ import annotations

import json
import pydoc_data.topics
from pathlib import Path
from typing import Any

import sentencepiece
from safetensors.numpy import save_file

from tests.helpers.models.networks import WRITERS, as_hugging_face, build, weights

VOCABULARY = 401  # no tensor-parallel degree divides it
MARKS = ["<sop>", "<eop>", "[MASK]", "[gMASK]", "<n>", "<|tab|>", "<|blank_2|>"]


def train_pieces(folder: Path) -> Path:
    """Train a small sentencepiece model on Python's documentation, with ChatGLM-6B's special tokens."""
    prefix = folder / "words"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("\n".join(pydoc_data.topics.topics.values()).splitlines()),
        model_prefix=str(prefix),
        vocab_size=VOCABULARY - 1,
        character_coverage=0.99,
        byte_fallback=True,
        pad_id=3,
        user_defined_symbols=MARKS,
        minloglevel=2,
    )
    return prefix.with_suffix(".model")


def write_folder(family: str, pieces: Path, folder: Path, seed: int = 5, **overrides: Any) -> Path:
    """Write a folder of a family that `paddle-llm generate` accepts."""
    words = sentencepiece.SentencePieceProcessor(model_file=str(pieces))
    size = "padded_vocab_size" if family == "chatglm_v2" else "vocab_size"
    spread = "init_std" if family == "opt" else "initializer_range"
    overrides = {size: VOCABULARY, spread: 0.3, **overrides}
    if family == "chatglm":
        names = {
            "bos_token_id": "<sop>",
            "eos_token_id": "<eop>",
            "gmask_token_id": "[gMASK]",
            "mask_token_id": "[MASK]",
        }
        overrides |= {key: words.piece_to_id(mark) for key, mark in names.items()}
    WRITERS[family](folder, **overrides)
    tensors = as_hugging_face(weights(build(folder, seed=seed), family), family)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    kind, name = ("ChatGLM", "ice_text.model") if family == "chatglm" else ("Llama", "sentencepiece.bpe.model")
    (folder / name).write_bytes(pieces.read_bytes())
    tokenizer: dict[str, Any] = {"tokenizer_class": f"{kind}Tokenizer"}
    tokenizer |= {"num_image_tokens": 0} if family == "chatglm" else {"pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder
