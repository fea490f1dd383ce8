"""Codecs of the tokenizers that this package reads: by sentencepiece, by PaddleNLP and by transformers."""

from __future__ import annotations

import os
import re
from typing import cast

from paddle_llm.data.tokenizer import load_tokenizer
from paddle_llm.data.tokenizers.codec_base import TextCodec
from paddle_llm.data.tokenizers.fast_backend import FastBackend
from paddle_llm.data.tokenizers.folder import (
    Reader,
    read_config,
    read_sentencepiece,
    reader_of,
    sentencepiece_model,
    special_tokens,
)
from paddle_llm.data.tokenizers.plain_text import require_text
from paddle_llm.data.tokenizers.protocol import (
    PaddleNLPTokenizer,
    Tokenizer,
    TransformersTokenizer,
    is_from_transformers,
)

__all__ = ["PaddleNLPCodec", "SentencePieceCodec", "TextCodec", "TransformersCodec", "open_codec"]

_TEXT = -1  # placeholder for the text among special tokens


class SentencePieceCodec(TextCodec):
    """Reads a LlamaTokenizer folder by sentencepiece alone: PaddleNLP's ids without importing it."""

    def __init__(self, folder: str, model_path: str) -> None:
        self._processor = read_sentencepiece(model_path)
        super().__init__(folder, special_tokens(folder))
        known = self._processor
        self.vocab_size = known.get_piece_size()
        self.bos_id, self.eos_id = (i if i >= 0 else None for i in (known.bos_id(), known.eos_id()))
        self.pad_id = known.pad_id() if known.pad_id() >= 0 else self.eos_id
        adds_bos = read_config(folder).get("add_bos_token", True)
        self.prefix_ids = [self.bos_id] if adds_bos and self.bos_id is not None else []
        self._detect_dummy_prefix()

    def _ids(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def special_id(self, name: str) -> int | None:
        """Return the id of a special token; None if the tokenizer does not have it."""
        number = self._processor.piece_to_id(name)
        return number if self._processor.id_to_piece(number) == name else None

    def _decode(self, ids: list[int]) -> str:
        return self._processor.decode(ids)

    def _has_token(self, number: int) -> bool:
        return 0 <= number < self._processor.get_piece_size()


class PaddleNLPCodec(TextCodec):
    """Wraps a loaded tokenizer of PaddleNLP."""

    def __init__(self, tokenizer: PaddleNLPTokenizer, name: str = "") -> None:
        self.tokenizer = tokenizer
        self._known: dict[int, bool] = {}
        added = getattr(tokenizer, "added_tokens_encoder", None) or {}
        # ChatGLM2, ChatGLM3, LLaMA 3 and Qwen keep their special tokens in a separate table.
        tables = (
            getattr(owner, "special_tokens", None) for owner in (getattr(tokenizer, "tokenizer", None), tokenizer)
        )
        named = [item for table in tables if isinstance(table, dict) for item in table.items()]
        self._commands = {name: number for name, number in named if not re.fullmatch(r"<\w+>", name)}
        # ChatGLM2's list of special tokens lacks EOS, which it does recognize in a text.
        more = [
            str(token) for token in (*tokenizer.all_special_tokens, tokenizer.eos_token, tokenizer.unk_token) if token
        ]
        super().__init__(name or type(tokenizer).__name__, [*more, *map(str, added), *self._commands])
        self.bos_id, self.eos_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.eos_id
        self.vocab_size = tokenizer.vocab_size
        # A placeholder for the text shows which ids go before it and which after it.
        around = [int(i) for i in tokenizer.build_inputs_with_special_tokens([_TEXT])]
        self.prefix_ids, after = around[: around.index(_TEXT)], around[around.index(_TEXT) + 1 :]
        gmask = getattr(tokenizer, "gmask_token_id", None)
        if gmask is not None and self.bos_id is not None and after == [gmask, self.bos_id]:
            self.prefix_lm = (gmask, self.bos_id)
        self._detect_dummy_prefix()

    def _ids(self, text: str) -> list[int]:
        return [int(i) for i in self.tokenizer(text, add_special_tokens=False)["input_ids"]]

    def special_id(self, name: str) -> int | None:
        """Return the id of a special token; None if the tokenizer does not have it."""
        if name in self._commands:
            return int(self._commands[name])
        number = self.tokenizer.convert_tokens_to_ids(name)
        if number is None or isinstance(number, list):
            return None
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        is_known = number != unknown or name == getattr(self.tokenizer, "unk_token", None)
        return int(number) if is_known else None

    def _decode(self, ids: list[int]) -> str:
        # Not `decode`: that of ChatGLM-6B subtracts the image tokens from the ids twice (paddlenlp 3.0.0b4).
        return self.tokenizer.convert_tokens_to_string(self.tokenizer.convert_ids_to_tokens(ids))

    def _has_token(self, number: int) -> bool:
        if number not in self._known:
            try:
                self._known[number] = number >= 0 and self.tokenizer.convert_ids_to_tokens([number]) != [None]
            except Exception:  # IndexError of sentencepiece or others, depending on the class
                self._known[number] = False
        return self._known[number]


class TransformersCodec(TextCodec):
    """Wraps a tokenizer loaded by transformers."""

    def __init__(self, tokenizer: TransformersTokenizer, name: str = "") -> None:
        self.tokenizer = tokenizer
        self._fast = FastBackend(tokenizer.backend_tokenizer) if tokenizer.is_fast else None
        added = {str(token): number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        super().__init__(name or tokenizer.name_or_path, [*added, *tokenizer.all_special_tokens])
        self.bos_id, self.eos_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.eos_id
        self.vocab_size = tokenizer.vocab_size
        self._protected = {self.special_id(token) for token in self.specials} - {None, tokenizer.unk_token_id}
        self.prefix_ids = self._added_prefix()
        self._detect_dummy_prefix()
        if self._fast is not None:
            self._has_dummy, self.starts_after_specials = self._fast.prepends, self._fast.starts_after_specials

    def _added_prefix(self) -> list[int]:
        """Return the ids that the tokenizer puts before a text when it is called."""
        text = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = self.tokenizer("a")["input_ids"]
        starts = range(len(whole) - len(text) + 1)
        return whole[: next((at for at in starts if whole[at : at + len(text)] == text), 0)]

    def _ids(self, text: str) -> list[int]:
        if self._fast is not None:
            return self._fast.encode_literal(text)
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def _encode_plain(self, text: str) -> list[int]:
        ids = self._ids(text)
        return ids if self._protected.isdisjoint(ids) else self._encode_split(text, continuing=False)

    def encode_continuation(self, text: str) -> list[int]:
        """Return the ids of a text after other text (see `TextCodec.encode_continuation`)."""
        if self._fast is None:
            return super().encode_continuation(text)
        ids = self._fast.encode_literal(require_text(text), continuing=True)
        return ids if self._protected.isdisjoint(ids) else self._encode_split(text, continuing=True)

    def _encode_split(self, text: str, continuing: bool) -> list[int]:
        """Encode a text with a special token that is also a piece: split the token in two, or the text into characters.

        A special token of one character cannot be split; such text keeps its id.
        """
        halves = self._split_specials(text) if self._pattern is not None and self._pattern.search(text) else [text]
        for parts in (halves, list(text)):
            ids: list[int] = []
            for number, part in enumerate(parts):
                ids += self._part_ids(part, continuing or number > 0)
            if self._protected.isdisjoint(ids):
                return ids
        return self._part_ids(text, continuing)

    def _part_ids(self, text: str, continuing: bool) -> list[int]:
        if self._fast is None:
            return self._continuation_ids(text) if continuing and self._has_dummy else self._ids(text)
        return self._fast.encode_literal(text, continuing)

    def encode_with_specials(self, text: str, start: bool = True) -> list[int]:
        """Return the ids of a text with special tokens (see `TextCodec.encode_with_specials`)."""
        if self._fast is None:
            return super().encode_with_specials(require_text(text), start)
        match = None if start or self._pattern is None else self._pattern.search(require_text(text))
        if start or not self._has_dummy:
            return self._fast.encode(require_text(text))
        at = match.start() if match else len(text)
        return [*self._fast.encode_literal(text[:at], continuing=True), *self._fast.encode(text[at:])]

    def encode_with_offsets(self, text: str, start: bool) -> tuple[list[int], list[tuple[int, int]]] | None:
        """Return ids and the characters of each token (see `TextCodec.encode_with_offsets`)."""
        if self._fast is None or not (start or not self._has_dummy):
            return None
        return self._fast.encode_with_offsets(require_text(text))

    def special_id(self, name: str) -> int | None:
        """Return the id of a special token; None if the tokenizer does not have it."""
        if self._fast is not None:
            return self._fast.id_of(name)
        number = self.tokenizer.convert_tokens_to_ids(name)
        return number if number != self.tokenizer.unk_token_id or name == self.tokenizer.unk_token else None

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def _has_token(self, number: int) -> bool:
        if self._fast is not None:
            return self._fast.has(number)
        return 0 <= number < len(self.tokenizer)


def open_codec(tokenizer: str | os.PathLike[str] | Tokenizer) -> TextCodec:
    """Open the codec of a tokenizer folder, or of a tokenizer loaded by `load_tokenizer`.

    Raises:
        UserError: If the folder has no tokenizer.
    """
    name = ""
    if isinstance(tokenizer, str | os.PathLike):
        name = os.fspath(tokenizer)
        path = sentencepiece_model(name)
        if path is not None and reader_of(name) is Reader.SENTENCEPIECE:
            return SentencePieceCodec(name, path)
        tokenizer = load_tokenizer(name)
    if is_from_transformers(tokenizer):
        return TransformersCodec(tokenizer, name)
    return PaddleNLPCodec(cast("PaddleNLPTokenizer", tokenizer), name)
