"""Tiny tokenizers for tests of chat formats: LLaMA with added special tokens, LLaMA 3, ChatGLM-6B, ChatGLM2 and ChatGLM3."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from tests.helpers.corpus import english_and_chinese

LLAMA3_MARKS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
CHATML_MARKS = ["<|im_start|>", "<|im_end|>"]
BEGIN, END, TURN = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"


def sentencepiece_bytes(vocab_size: int = 700, symbols: tuple[str, ...] = ()) -> bytes:
    """Return a sentencepiece model like ChatGLM's: byte fallback, no padding piece."""
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
    """Write a folder like ChatGLM-6B's: special tokens are pieces, ids are offset by the image tokens."""
    folder.mkdir(parents=True)
    (folder / "ice_text.model").write_bytes(
        sentencepiece_bytes(symbols=("<n>", "[MASK]", "[gMASK]", "<sop>", "<eop>", "<pad>"))
    )
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "ChatGLMTokenizer", "num_image_tokens": 100})
    )
    return str(folder)


def chatglm3_folder(folder: Path) -> str:
    """Write a folder like those of ChatGLM2-6B and ChatGLM3-6B: special tokens have ids after the vocabulary."""
    folder.mkdir(parents=True)
    (folder / "tokenizer.model").write_bytes(sentencepiece_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ChatGLMv2Tokenizer"}))
    return str(folder)


def llama3_folder(folder: Path) -> str:
    """Write a folder like LLaMA 3's: tiktoken ranks, here only the 256 bytes, with special tokens after them."""
    folder.mkdir(parents=True)
    ranks = (f"{base64.b64encode(bytes([i])).decode()} {i}" for i in range(256))
    (folder / "tokenizer.model").write_text("\n".join(ranks))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Llama3Tokenizer"}))
    return str(folder)


def like_llama3() -> tokenizers.Tokenizer:
    """Return a tokenizer with the parts of LLaMA 3's: bytes, a rule that splits words, special tokens after the pieces, BOS."""
    made = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    words = pre_tokenizers.Split(tokenizers.Regex(r"\p{N}{1,3}| ?\p{L}+|\s+|[^\s\p{L}\p{N}]+"), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(["The quick brown fox jumps over the lazy dog. 123"] * 20, trainer)
    made.add_special_tokens([tokenizers.AddedToken(name, special=True) for name in (BEGIN, END, TURN)])
    begin = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, made.token_to_id(BEGIN))]
    )
    made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), begin])
    return made


def write_bare(folder: Path, kind: str) -> tokenizers.Tokenizer:
    """Write a folder with only tokenizer.json and a config of class `kind`; return the tokenizer."""
    made = like_llama3()
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": kind, "bos_token": BEGIN, "eos_token": END, "model_max_length": 131072}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return made
