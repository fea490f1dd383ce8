"""What a template needs of a tokenizer: ids of a text at the beginning and behind other text, and ids of special tokens by name.

Text stays text: a document or a question in which `</s>` or `<|user|>` is written gets no id of a special token from `encode` and
`follow`. `encode_with_marks` is for text in which special tokens are meant where they are written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any

from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.data.corpus.encode import special_tokens
from paddle_llm.data.tokenizer import load_tokenizer, read_sentencepiece, sentencepiece_model
from paddle_llm.data.tokenizers.fast_backend import FastBackend
from paddle_llm.data.tokenizers.folder import Reader, read_config, reader_of
from paddle_llm.data.tokenizers.plain_text import require_text

_TEXT = -1
_ANCHOR = "\n"  # no piece of a vocabulary with a blank in front of words goes across it
_UNKNOWN = "\ufffd"


class TextCodec:
    """Base: subclasses give `_ids(text)`, `_decode(ids)`, `_has(id)`, `mark(name)` and the fields.

    Attributes:
        name: of the tokenizer, for messages.
        bos_id, eos_id, pad_id: None where the tokenizer has none; pad_id falls back to eos_id.
        prefix_ids: what the tokenizer itself puts before a text ([bos], [gMASK, sop], nothing).
        prefix_lm: (id of [gMASK], id of <sop>) for ChatGLM-6B, which puts these two behind the context; else None.
        specials: the special tokens as text.
        vocab_size: number of ids without added tokens.
        rows: rows of the model's embedding; None where no model is given (`fit_to_model`).
        starts_after_specials: whether text behind a special token gets the blank that a text's beginning gets.
    """

    starts_after_specials = True

    def __init__(self, name: str, specials: Iterable[str]):
        self.name = name
        self.bos_id: int | None = None
        self.eos_id: int | None = None
        self.pad_id: int | None = None
        self.prefix_ids: list[int] = []
        self.prefix_lm: tuple[int, int] | None = None
        self.vocab_size = 0
        self.rows: int | None = None
        self.specials = sorted({s for s in specials if s}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, self.specials))) if self.specials else None

    def fit_to_model(self, rows: int) -> None:
        """Compare the tokenizer with a model's embedding, and choose an id for padding that the model has.

        Tokens that the model lacks are reported; a text or template that needs one is refused by `require_rows`.

        Raises:
            UserError: If the vocabulary or the end of sentence does not fit.
        """
        self.rows = rows
        own = (
            "Use the model's own tokenizer, or a config.json with a larger vocab_size and a model that has these rows."
        )
        if self.vocab_size > rows or (self.eos_id is not None and self.eos_id >= rows):
            largest = max(self.vocab_size - 1, self.eos_id or 0)
            raise UserError(
                f"tokenizer {self.name}: its ids go up to {largest}, the model's vocabulary has {rows} (ids 0 to {rows - 1}). {own}"
            )
        outside = {name: self.mark(name) or 0 for name in self.specials if (self.mark(name) or 0) >= rows}
        if outside:
            named = ", ".join(
                f"{name} {number}" for name, number in sorted(outside.items(), key=lambda item: item[1])[:8]
            )
            say(
                f"tokenizer {self.name}: {len(outside)} special tokens have ids that the model's {rows} embeddings lack: {named}. "
                "Text that needs one is refused."
            )
        if self.pad_id is not None and self.pad_id >= rows:
            other = self.eos_id if self.eos_id is not None else 0
            say(
                f"tokenizer {self.name}: its pad id {self.pad_id} is outside the model. Rows are padded with {other}, without loss."
            )
            self.pad_id = other

    def require_rows(self, ids: Iterable[int], where: str) -> None:
        """Check the ids of a sample or prompt.

        Raises:
            UserError: If the model has no embedding for one of them.
        """
        largest = max((int(i) for i in ids), default=-1) if self.rows is not None else -1
        if self.rows is not None and largest >= self.rows:
            name = next((name for name in self.specials if self.mark(name) == largest), "")
            raise UserError(
                f"{where}: needs token id {largest} {name}, the model's vocabulary has {self.rows} (ids 0 to {self.rows - 1}). "
                "Use the model's own tokenizer, or a --chat_template without this token."
            )

    def _ids(self, text: str) -> list[int]:
        raise NotImplementedError

    def mark(self, name: str) -> int | None:
        """The id of a special token; None where the tokenizer has no such token."""
        raise NotImplementedError

    def decode(self, ids: Iterable[int]) -> str:
        """Text for people to read. An id without a token, which a padded vocabulary of a model has, becomes U+FFFD."""
        shown, run = "", []
        for number in map(int, ids):
            if self._has(number):
                run.append(number)
                continue
            shown += self._decode_behind(run, bool(shown)) + _UNKNOWN
            run = []
        return shown + self._decode_behind(run, bool(shown))

    def _decode(self, ids: list[int]) -> str:
        raise NotImplementedError

    def _has(self, number: int) -> bool:
        """Whether an id has a token."""
        raise NotImplementedError

    def _decode_behind(self, ids: list[int], continuing: bool) -> str:
        """Text of ids, with the blank in front of it where other text comes before."""
        if not ids or not continuing:
            return self._decode(ids) if ids else ""
        return self._decode([*self._anchor, *ids])[len(self._decode(self._anchor)) :]

    def show(self, ids: Iterable[int]) -> str:
        """Text for people to read, with special tokens by name and the blank at its start, where there is one."""
        names = {self.mark(name): name for name in self.specials}
        shown, run = [], []
        for token in [*map(int, ids), None]:
            if token is not None and token not in names:
                run.append(token)
                continue
            if run:
                shown.append(self.decode([*self._anchor, *run])[len(self.decode(self._anchor)) :])
            run = []
            shown.append("" if token is None else names[token])
        return "".join(shown)

    def _probe(self) -> None:
        """Find out whether a text's start gets a blank of its own (sentencepiece's dummy prefix)."""
        self._anchor = self._ids(_ANCHOR)
        joined = self._ids(_ANCHOR + "a")
        self._has_dummy = joined[: len(self._anchor)] == self._anchor and joined[len(self._anchor) :] != self._ids("a")

    def encode(self, text: str) -> list[int]:
        """Ids of a text at the beginning.

        Raises:
            NotText: If the text holds a lone surrogate.
        """
        return self._safe(require_text(text)) if text else []

    def follow(self, text: str) -> list[int]:
        """Ids of a text behind other text: without the blank that some tokenizers put before the first word.

        Raises:
            NotText: If the text holds a lone surrogate.
        """
        if not text or not self._has_dummy:
            return self.encode(text)
        require_text(text)
        joined = self._safe(_ANCHOR + text)
        return joined[len(self._anchor) :] if joined[: len(self._anchor)] == self._anchor else self.encode(text)

    def _safe(self, text: str) -> list[int]:
        """A special token that the text spells is cut in two, so that no tokenizer can take it for the token."""
        if self._pattern is None or not self._pattern.search(text):
            return self._ids(text)
        ids: list[int] = []
        for number, part in enumerate(self._harmless_parts(text)):
            ids += self._ids(part) if number == 0 or not self._has_dummy else self._behind(part)
        return ids

    def _behind(self, part: str) -> list[int]:
        joined = self._ids(_ANCHOR + part)
        return joined[len(self._anchor) :] if joined[: len(self._anchor)] == self._anchor else self._ids(part)

    def _harmless_parts(self, text: str) -> list[str]:
        assert self._pattern is not None
        cuts = [match.start() + 1 for match in self._pattern.finditer(text)]
        return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    def ends_in_mark(self, text: str) -> bool:
        """Whether a text ends in the spelling of a special token."""
        return text.endswith(tuple(self.specials))

    def encode_with_marks(self, text: str, start: bool = True) -> list[int]:
        """Ids of a text in which special tokens are meant where they are written, as in what a Jinja template renders.

        Args:
            start: whether the text is at the beginning, and not behind other text.

        Raises:
            NotText: If the text holds a lone surrogate.
        """
        if self._pattern is None:
            return self.encode(text) if start else self.follow(text)
        ids: list[int] = []
        at = 0
        for match in (*self._pattern.finditer(text), None):
            end = match.start() if match else len(text)
            # Behind a special token a text starts anew, as Meta's and PaddleNLP's tokenizers have it.
            ids += self.encode(text[at:end]) if start or at else self.follow(text[at:end])
            if match:
                ids.append(self.mark(match[0]))  # type: ignore[arg-type]
                at = match.end()
        return ids

    def encode_with_offsets(self, text: str, start: bool) -> tuple[list[int], list[tuple[int, int]]] | None:
        """Ids as of `encode_with_marks`, and the characters of each token; None if the tokenizer does not tell them."""
        return None


class SentencePieceCodec(TextCodec):
    """A LlamaTokenizer folder through sentencepiece alone: PaddleNLP's ids without importing it."""

    def __init__(self, folder: str, model_path: str):
        self._processor = read_sentencepiece(model_path)
        super().__init__(folder, special_tokens(folder))
        known = self._processor
        self.vocab_size = known.get_piece_size()
        self.bos_id, self.eos_id = (i if i >= 0 else None for i in (known.bos_id(), known.eos_id()))
        self.pad_id = known.pad_id() if known.pad_id() >= 0 else self.eos_id
        adds_bos = read_config(folder).get("add_bos_token", True)
        self.prefix_ids = [self.bos_id] if adds_bos and self.bos_id is not None else []
        self._probe()

    def _ids(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def mark(self, name: str) -> int | None:
        number = self._processor.piece_to_id(name)
        return number if self._processor.id_to_piece(number) == name else None

    def _decode(self, ids: list[int]) -> str:
        return self._processor.decode(ids)

    def _has(self, number: int) -> bool:
        return 0 <= number < self._processor.get_piece_size()


class PaddleNLPCodec(TextCodec):
    """Any tokenizer of PaddleNLP's, loaded."""

    def __init__(self, tokenizer: Any, name: str = ""):
        self.tokenizer = tokenizer
        self._known: dict[int, bool] = {}
        added = getattr(tokenizer, "added_tokens_encoder", None) or {}
        # The marks of ChatGLM2 and 3 stand in a table of their own, as do those of LLaMA 3 and Qwen.
        tables = (
            getattr(owner, "special_tokens", None) for owner in (getattr(tokenizer, "tokenizer", None), tokenizer)
        )
        named = [item for table in tables if isinstance(table, dict) for item in table.items()]
        self._commands = {name: number for name, number in named if not re.fullmatch(r"<\w+>", name)}
        # ChatGLM2's own list of special tokens lacks the end of sentence, which it does take out of a text.
        more = [
            str(token) for token in (*tokenizer.all_special_tokens, tokenizer.eos_token, tokenizer.unk_token) if token
        ]
        super().__init__(name or type(tokenizer).__name__, [*more, *map(str, added), *self._commands])
        self.bos_id, self.eos_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.eos_id
        self.vocab_size = tokenizer.vocab_size
        # Asked with a stand-in for the text: which ids go before it, and which behind.
        around = [int(i) for i in tokenizer.build_inputs_with_special_tokens([_TEXT])]
        self.prefix_ids, behind = around[: around.index(_TEXT)], around[around.index(_TEXT) + 1 :]
        gmask = getattr(tokenizer, "gmask_token_id", None)
        if gmask is not None and behind == [gmask, self.bos_id]:
            self.prefix_lm = (gmask, self.bos_id)
        self._probe()

    def _ids(self, text: str) -> list[int]:
        return [int(i) for i in self.tokenizer(text, add_special_tokens=False)["input_ids"]]

    def mark(self, name: str) -> int | None:
        if name in self._commands:
            return int(self._commands[name])
        number = self.tokenizer.convert_tokens_to_ids(name)
        if number is None or isinstance(number, list):
            return None
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        is_it = number != unknown or name == getattr(self.tokenizer, "unk_token", None)
        return int(number) if is_it else None

    def _decode(self, ids: list[int]) -> str:
        # Not `decode`: ChatGLM-6B's takes the image tokens off the ids twice (paddlenlp 3.0.0b4).
        return self.tokenizer.convert_tokens_to_string(self.tokenizer.convert_ids_to_tokens(ids))

    def _has(self, number: int) -> bool:
        if number not in self._known:
            try:
                self._known[number] = number >= 0 and self.tokenizer.convert_ids_to_tokens([number]) != [None]
            except Exception:  # sentencepiece's IndexError and others, which depend on the class
                self._known[number] = False
        return self._known[number]


class TransformersCodec(TextCodec):
    """A tokenizer that transformers reads."""

    def __init__(self, tokenizer: Any, name: str = ""):
        self.tokenizer = tokenizer
        self._fast = FastBackend(tokenizer.backend_tokenizer) if tokenizer.is_fast else None
        added = {str(token): number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        super().__init__(name or tokenizer.name_or_path, [*added, *tokenizer.all_special_tokens])
        self.bos_id, self.eos_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.eos_id
        self.vocab_size = tokenizer.vocab_size
        self._protected = {self.mark(token) for token in self.specials} - {None, tokenizer.unk_token_id}
        self.prefix_ids = self._added_before()
        self._probe()
        if self._fast is not None:
            self._has_dummy, self.starts_after_specials = self._fast.prepends, self._fast.starts_after_specials

    def _added_before(self) -> list[int]:
        """What the tokenizer puts before a text when a user calls it."""
        text = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = self.tokenizer("a")["input_ids"]
        starts = range(len(whole) - len(text) + 1)
        return whole[: next((at for at in starts if whole[at : at + len(text)] == text), 0)]

    def _ids(self, text: str) -> list[int]:
        if self._fast is not None:
            return self._fast.encode_literal(text)
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def _safe(self, text: str) -> list[int]:
        ids = self._ids(text)
        return ids if self._protected.isdisjoint(ids) else self._apart(text, continuing=False)

    def follow(self, text: str) -> list[int]:
        """Ids of a text behind other text (see `TextCodec.follow`)."""
        if self._fast is None:
            return super().follow(text)
        ids = self._fast.encode_literal(require_text(text), continuing=True)
        return ids if self._protected.isdisjoint(ids) else self._apart(text, continuing=True)

    def _apart(self, text: str, continuing: bool) -> list[int]:
        """Ids of a text whose special token is a piece of the vocabulary, too: the token is cut in two, or into characters.

        A special token of one character cannot be cut; such text keeps its id.
        """
        halves = self._harmless_parts(text) if self._pattern is not None and self._pattern.search(text) else [text]
        for parts in (halves, list(text)):
            ids: list[int] = []
            for number, part in enumerate(parts):
                ids += self._part(part, continuing or number > 0)
            if self._protected.isdisjoint(ids):
                return ids
        return self._part(text, continuing)

    def _part(self, text: str, continuing: bool) -> list[int]:
        if self._fast is None:
            return self._behind(text) if continuing and self._has_dummy else self._ids(text)
        return self._fast.encode_literal(text, continuing)

    def encode_with_marks(self, text: str, start: bool = True) -> list[int]:
        """Ids of a text in which special tokens are meant where they are written (see `TextCodec.encode_with_marks`)."""
        if self._fast is None:
            return super().encode_with_marks(require_text(text), start)
        match = None if start or self._pattern is None else self._pattern.search(require_text(text))
        if start or not self._has_dummy:
            return self._fast.encode(require_text(text))
        at = match.start() if match else len(text)
        return [*self._fast.encode_literal(text[:at], continuing=True), *self._fast.encode(text[at:])]

    def encode_with_offsets(self, text: str, start: bool) -> tuple[list[int], list[tuple[int, int]]] | None:
        """Ids and characters of each token (see `TextCodec.encode_with_offsets`)."""
        if self._fast is None or not (start or not self._has_dummy):
            return None
        return self._fast.encode_with_offsets(require_text(text))

    def mark(self, name: str) -> int | None:
        if self._fast is not None:
            return self._fast.id_of(name)
        number = self.tokenizer.convert_tokens_to_ids(name)
        return number if number != self.tokenizer.unk_token_id or name == self.tokenizer.unk_token else None

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def _has(self, number: int) -> bool:
        if self._fast is not None:
            return self._fast.has(number)
        return 0 <= number < len(self.tokenizer)


def open_codec(tokenizer: Any) -> TextCodec:
    """The codec of a tokenizer folder, or of a tokenizer that `load_tokenizer` loaded.

    Raises:
        UserError: If the folder holds no tokenizer.
    """
    name = ""
    if isinstance(tokenizer, str | os.PathLike):
        name = os.fspath(tokenizer)
        path = sentencepiece_model(name)
        if path is not None and reader_of(name) is Reader.SENTENCEPIECE:
            return SentencePieceCodec(name, path)
        tokenizer = load_tokenizer(name)
    if type(tokenizer).__module__.startswith("transformers."):
        return TransformersCodec(tokenizer, name)
    return PaddleNLPCodec(tokenizer, name)
