"""Base class of codecs: the interface of a tokenizer for chat templates.

A codec returns the ids of a text at the beginning or after other text, and the ids of special tokens by name. Text stays
text: if a document or a question contains `</s>` or `<|user|>`, `encode` and `encode_continuation` return no id of a
special token. `encode_with_specials` is for text in which such names are special tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from paddle_llm.core.console import say
from paddle_llm.core.counts import counted
from paddle_llm.core.errors import UserError
from paddle_llm.data.tokenizers.plain_text import require_text

_ANCHOR = "\n"  # in vocabularies with a blank before words, no piece crosses it
_REPLACEMENT = "\ufffd"


class TextCodec:
    """Base class. Subclasses define `_ids`, `_decode`, `_has_token`, `special_id` and the attributes.

    Attributes:
        name: Name of the tokenizer, for messages.
        bos_id: BOS id; None if the tokenizer has none.
        eos_id: EOS id; None if the tokenizer has none.
        pad_id: Id for padding, eos_id if the tokenizer has none.
        prefix_ids: Ids that the tokenizer puts before a text: [bos], [gMASK, sop] or none.
        prefix_lm: (id of [gMASK], id of <sop>), which ChatGLM-6B puts after the context; None for others.
        specials: Special tokens as text, longest first.
        vocab_size: Number of ids without added tokens.
        rows: Number of rows of the model's embedding; None if there is no model (see `fit_to_model`).
        starts_after_specials: Whether text after a special token gets the same blank as the beginning of a text.
    """

    starts_after_specials = True

    def __init__(self, name: str, specials: Iterable[str]) -> None:
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

    # ---- comparison with a model -------------------------------------------------------------------------------------

    def fit_to_model(self, rows: int) -> None:
        """Compare the tokenizer with a model's embedding and choose an id for padding that the model has.

        Special tokens that the model lacks are reported. `require_rows` raises an error if a text or template needs one.

        Args:
            rows: Number of rows of the embedding.

        Raises:
            UserError: If the vocabulary or the EOS id exceeds the embedding.
        """
        self.rows = rows
        if self.vocab_size > rows or (self.eos_id is not None and self.eos_id >= rows):
            largest = max(self.vocab_size - 1, self.eos_id or 0)
            raise UserError(
                f"tokenizer {self.name}: ids up to {largest} exceed the model's vocabulary of {rows} (ids 0 to {rows - 1}). "
                "Use the model's own tokenizer, or a model with a larger vocab_size."
            )
        outside = {name: number for name in self.specials if (number := self.special_id(name) or 0) >= rows}
        if outside:
            named = ", ".join(
                f"{name} {number}" for name, number in sorted(outside.items(), key=lambda item: item[1])[:8]
            )
            say(
                f"tokenizer {self.name}: {counted(len(outside), 'special token')} outside the model's {rows} embeddings: "
                f"{named}. Text that needs one is an error."
            )
        if self.pad_id is not None and self.pad_id >= rows:
            other = self.eos_id if self.eos_id is not None else 0
            say(
                f"tokenizer {self.name}: pad id {self.pad_id} is outside the model's {rows} embeddings; rows are padded with id {other}, which has no loss there"
            )
            self.pad_id = other

    def require_rows(self, ids: Iterable[int], where: str) -> None:
        """Check that the model has an embedding for all ids of a sample or prompt.

        Args:
            ids: The ids.
            where: Origin of the sample, for messages.

        Raises:
            UserError: If it lacks one.
        """
        largest = max((int(i) for i in ids), default=-1) if self.rows is not None else -1
        if self.rows is not None and largest >= self.rows:
            name = next((name for name in self.specials if self.special_id(name) == largest), "")
            raise UserError(
                f"{where}: token id {largest} {name} is outside the model's vocabulary of {self.rows} (ids 0 to "
                f"{self.rows - 1}). Use the model's own tokenizer, or a --chat_template without this token."
            )

    # ---- defined by subclasses ---------------------------------------------------------------------------------------

    def special_id(self, name: str) -> int | None:
        """Return the id of a special token; None if the tokenizer does not have it."""
        raise NotImplementedError

    def _ids(self, text: str) -> list[int]:
        raise NotImplementedError

    def _decode(self, ids: list[int]) -> str:
        raise NotImplementedError

    def _has_token(self, number: int) -> bool:
        """Return whether an id has a token."""
        raise NotImplementedError

    # ---- text -> ids -------------------------------------------------------------------------------------------------

    def _detect_dummy_prefix(self) -> None:
        """Detect whether the beginning of a text gets a blank (sentencepiece's dummy prefix)."""
        self._anchor = self._ids(_ANCHOR)
        joined = self._ids(_ANCHOR + "a")
        self._has_dummy = joined[: len(self._anchor)] == self._anchor and joined[len(self._anchor) :] != self._ids("a")

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text at the beginning.

        Raises:
            NotText: If the text contains a lone surrogate.
        """
        return self._encode_plain(require_text(text)) if text else []

    def encode_continuation(self, text: str) -> list[int]:
        """Return the ids of a text after other text: without the blank that some tokenizers put before the first word.

        Raises:
            NotText: If the text contains a lone surrogate.
        """
        if not text or not self._has_dummy:
            return self.encode(text)
        require_text(text)
        joined = self._encode_plain(_ANCHOR + text)
        return joined[len(self._anchor) :] if joined[: len(self._anchor)] == self._anchor else self.encode(text)

    def _encode_plain(self, text: str) -> list[int]:
        """Encode a text; the text of a special token is split, so that the tokenizer does not recognize it."""
        if self._pattern is None or not self._pattern.search(text):
            return self._ids(text)
        ids: list[int] = []
        for number, part in enumerate(self._split_specials(text)):
            ids += self._ids(part) if number == 0 or not self._has_dummy else self._continuation_ids(part)
        return ids

    def _continuation_ids(self, part: str) -> list[int]:
        joined = self._ids(_ANCHOR + part)
        return joined[len(self._anchor) :] if joined[: len(self._anchor)] == self._anchor else self._ids(part)

    def _split_specials(self, text: str) -> list[str]:
        """Split a text after the first character of each special token in it."""
        assert self._pattern is not None
        cuts = [match.start() + 1 for match in self._pattern.finditer(text)]
        return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    def ends_in_special(self, text: str) -> bool:
        """Return whether a text ends with the name of a special token."""
        return text.endswith(tuple(self.specials))

    def encode_with_specials(self, text: str, start: bool = True) -> list[int]:
        """Return the ids of a text in which names of special tokens are special tokens, as in a Jinja rendering.

        Args:
            text: The text.
            start: Whether the text is at the beginning, not after other text.

        Raises:
            NotText: If the text contains a lone surrogate.
        """
        if self._pattern is None:
            return self.encode(text) if start else self.encode_continuation(text)
        ids: list[int] = []
        at = 0
        for match in (*self._pattern.finditer(text), None):
            end = match.start() if match else len(text)
            # After a special token a new text begins, as in Meta's and PaddleNLP's tokenizers.
            ids += self.encode(text[at:end]) if start or at else self.encode_continuation(text[at:end])
            if match:
                ids.append(self.special_id(match[0]))  # type: ignore[arg-type]
                at = match.end()
        return ids

    def encode_with_offsets(self, text: str, start: bool) -> tuple[list[int], list[tuple[int, int]]] | None:
        """Return the ids of `encode_with_specials` and the characters of each token; None if these are unknown."""
        return None

    # ---- ids -> text -------------------------------------------------------------------------------------------------

    def decode(self, ids: Iterable[int]) -> str:
        """Return ids as text for display. An id without a token (in a padded vocabulary) becomes U+FFFD."""
        shown = ""
        run: list[int] = []
        for number in map(int, ids):
            if self._has_token(number):
                run.append(number)
                continue
            shown += self._decode_run(run, bool(shown)) + _REPLACEMENT
            run = []
        return shown + self._decode_run(run, bool(shown))

    def _decode_run(self, ids: list[int], continuing: bool) -> str:
        """Decode ids; after other text the blank before them is kept."""
        if not ids or not continuing:
            return self._decode(ids) if ids else ""
        return self._decode([*self._anchor, *ids])[len(self._decode(self._anchor)) :]

    def show(self, ids: Iterable[int]) -> str:
        """Return ids as text for display, with special tokens by name and a blank at its start, if any."""
        names = {self.special_id(name): name for name in self.specials}
        shown: list[str] = []
        run: list[int] = []
        for token in [*map(int, ids), None]:
            if token is not None and token not in names:
                run.append(token)
                continue
            if run:
                shown.append(self.decode([*self._anchor, *run])[len(self.decode(self._anchor)) :])
            run = []
            shown.append("" if token is None else names[token])
        return "".join(shown)
