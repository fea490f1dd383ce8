"""Wraps a tokenizer of the `tokenizers` library, with special tokens recognized or kept as text."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer


class FastBackend:
    """A `tokenizers.Tokenizer` without truncation, padding and added BOS or EOS.

    Attributes:
        prepends: Whether a text gets a blank before its first word.
        starts_after_specials: Whether text after a special token gets that blank as well.
    """

    def __init__(self, backend: FastTokenizer) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        backend.no_truncation()
        backend.no_padding()
        content = json.loads(backend.to_str())
        kinds = _prepending(content["normalizer"]) | _prepending(content["pre_tokenizer"])
        self.prepends = bool(kinds)
        self.starts_after_specials = "first" not in kinds
        self._continuing = _without_prepending(content) if self.prepends else backend
        self._continuing.no_truncation()
        self._continuing.no_padding()

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text in which special tokens are recognized."""
        return self._encode(self._backend, text, literal=False)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of `encode`, and begin and end of each token in characters."""
        with self._lock:
            self._backend.encode_special_tokens = False
            found = self._backend.encode(text, add_special_tokens=False)
        return found.ids, found.offsets

    def encode_literal(self, text: str, continuing: bool = False) -> list[int]:
        """Return the ids of a text in which special tokens are only text.

        Args:
            text: The text.
            continuing: Whether the text continues other text, so that no blank is put before it.
        """
        return self._encode(self._continuing if continuing else self._backend, text, literal=True)

    def encode_batch(self, texts: list[str], literal: bool = False) -> list[list[int]]:
        """Return the ids of several texts, computed with all threads of the library.

        Args:
            texts: The texts.
            literal: Whether special tokens are only text; else they are recognized.
        """
        with self._lock:
            self._backend.encode_special_tokens = literal
            try:
                return [one.ids for one in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
            finally:
                self._backend.encode_special_tokens = False

    def has(self, number: int) -> bool:
        """Return whether an id has a token."""
        return 0 <= number < 2**32 and self._backend.id_to_token(number) is not None

    def id_of(self, token: str) -> int | None:
        """Return the id of a token; None if the vocabulary lacks it."""
        return self._backend.token_to_id(token)

    def _encode(self, backend: FastTokenizer, text: str, literal: bool) -> list[int]:
        with self._lock:  # the setting belongs to the tokenizer, not to a call
            backend.encode_special_tokens = literal
            try:
                return backend.encode(text, add_special_tokens=False).ids
            finally:
                backend.encode_special_tokens = False


def _parts(step: object) -> Iterable[dict[str, Any]]:
    """Yield a normalizer or pre-tokenizer and its nested steps."""
    if not isinstance(step, dict):
        return
    yield step
    for name in ("normalizers", "pretokenizers"):
        for part in step.get(name) or []:
            yield from _parts(part)


def _prepending(step: object) -> set[str]:
    """Return which texts get a blank before them: "always", or "first" (only the beginning of the input)."""
    kinds = set()
    for part in _parts(step):
        if part["type"] == "Prepend" or (part["type"] == "ByteLevel" and part.get("add_prefix_space")):
            kinds.add("always")
        if part["type"] == "Metaspace" and part.get("prepend_scheme", "always") != "never":
            kinds.add(part.get("prepend_scheme", "always"))
    return kinds


def _without_prepending(content: dict[str, Any]) -> FastTokenizer:
    import tokenizers

    for part in [*_parts(content["normalizer"]), *_parts(content["pre_tokenizer"])]:
        if part["type"] == "ByteLevel":
            part["add_prefix_space"] = False
        elif part["type"] == "Metaspace":
            part["prepend_scheme"] = "never"
        elif part["type"] == "Prepend":
            # A replacement that never matches, since removing the step would leave an invalid empty list.
            part.clear()
            part.update({"type": "Replace", "pattern": {"Regex": r"(?!)"}, "content": ""})
    return tokenizers.Tokenizer.from_str(json.dumps(content))
