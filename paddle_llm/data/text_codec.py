"""What a template needs of a tokenizer: ids of a text at the start of a line of thought and behind other text, ids of
special tokens by name, and never one for the other: a text that spells `</s>` or `<|user|>` stays text."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from typing import Any

from paddle_llm.data.encode import special_tokens
from paddle_llm.data.tokenizer import CONFIG_FILE, load_tokenizer, read_sentencepiece, sentencepiece_model

_TEXT = -1
_ANCHOR = "\n"  # no piece of any vocabulary goes across it


class TextCodec:
    """Base: subclasses give `_ids(text)`, `mark(name)` and the fields.

    Attributes:
        name: of the tokenizer, for messages.
        bos_id, eos_id, pad_id: None where the tokenizer has none; pad_id falls back to eos_id.
        prefix_ids: what the tokenizer itself puts before a text ([bos], [gMASK, sop], nothing).
        prefix_lm: (id of [gMASK], id of <sop>) for ChatGLM-6B, whose two marks stand behind the context; else None.
        specials: the special tokens as text.
    """

    def __init__(self, name: str, specials: Iterable[str]):
        self.name = name
        self.bos_id: int | None = None
        self.eos_id: int | None = None
        self.pad_id: int | None = None
        self.prefix_ids: list[int] = []
        self.prefix_lm: tuple[int, int] | None = None
        self.specials = sorted({s for s in specials if s}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, self.specials))) if self.specials else None

    def _ids(self, text: str) -> list[int]:
        raise NotImplementedError

    def mark(self, name: str) -> int | None:
        """The id of a special token; None where the tokenizer has no such token."""
        raise NotImplementedError

    def decode(self, ids: Iterable[int]) -> str:
        """Text for people to read."""
        raise NotImplementedError

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
        """Ids of a text that starts anew."""
        return self._safe(text) if text else []

    def follow(self, text: str) -> list[int]:
        """Ids of a text behind other text: without the blank that some tokenizers put before a start."""
        if not text or not self._has_dummy:
            return self.encode(text)
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
        """Ids of a text in which special tokens are meant where they are spelled, as in what a Jinja template renders."""
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


class SentencePieceCodec(TextCodec):
    """A LlamaTokenizer folder through sentencepiece alone: PaddleNLP's ids without importing it."""

    def __init__(self, folder: str, model_path: str):
        self._processor = read_sentencepiece(model_path)
        super().__init__(folder, special_tokens(folder))
        known = self._processor
        self.bos_id, self.eos_id = (i if i >= 0 else None for i in (known.bos_id(), known.eos_id()))
        self.pad_id = known.pad_id() if known.pad_id() >= 0 else self.eos_id
        with open(os.path.join(folder, CONFIG_FILE), encoding="utf-8") as stream:
            adds_bos = json.load(stream).get("add_bos_token", True)
        self.prefix_ids = [self.bos_id] if adds_bos and self.bos_id is not None else []
        self._probe()

    def _ids(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def mark(self, name: str) -> int | None:
        number = self._processor.piece_to_id(name)
        return number if self._processor.id_to_piece(number) == name else None

    def decode(self, ids: Iterable[int]) -> str:
        return self._processor.decode([int(i) for i in ids])


class PaddleNLPCodec(TextCodec):
    """Any tokenizer of PaddleNLP's, loaded."""

    def __init__(self, tokenizer: Any, name: str = ""):
        self.tokenizer = tokenizer
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

    def decode(self, ids: Iterable[int]) -> str:
        # Not `decode`: ChatGLM-6B's takes the image tokens off the ids twice (paddlenlp 3.0.0b4).
        tokens = self.tokenizer.convert_ids_to_tokens([int(i) for i in ids])
        # None: an id behind the tokenizer's own, which a padded vocabulary of a model has.
        return self.tokenizer.convert_tokens_to_string([token for token in tokens if token is not None])


def open_codec(tokenizer: Any) -> TextCodec:
    """The codec of a tokenizer folder, or of a PaddleNLP tokenizer that is loaded.

    Raises:
        UserError: no tokenizer there.
    """
    if not isinstance(tokenizer, str | os.PathLike):
        return PaddleNLPCodec(tokenizer)
    folder = os.fspath(tokenizer)
    path = sentencepiece_model(folder)
    if path and not os.path.isfile(os.path.join(folder, "added_tokens.json")):
        processor = read_sentencepiece(path)
        if all(processor.id_to_piece(processor.piece_to_id(token)) == token for token in special_tokens(folder)):
            return SentencePieceCodec(folder, path)
    return PaddleNLPCodec(load_tokenizer(folder), folder)
