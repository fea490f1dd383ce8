"""A tokenizer of the `tokenizers` library in the two ways that training needs: special tokens recognised, or kept as text."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from typing import Any


class FastBackend:
    """A `tokenizers.Tokenizer` without truncation, padding and added BOS or EOS.

    Attributes:
        prepends: whether a text gets a blank in front of its first word.
        starts_after_specials: whether text behind a special token gets that blank, too.
    """

    def __init__(self, backend: Any):
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
        """Ids of a text in which special tokens are recognised."""
        return self._encode(self._backend, text, literal=False)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids as of `encode`, and the characters of each token: first, and behind the last."""
        with self._lock:
            self._backend.encode_special_tokens = False
            found = self._backend.encode(text, add_special_tokens=False)
        return found.ids, found.offsets

    def encode_literal(self, text: str, continuing: bool = False) -> list[int]:
        """Ids of a text in which special tokens are only text.

        Args:
            continuing: the text goes on behind other text, so no blank is put before it.
        """
        return self._encode(self._continuing if continuing else self._backend, text, literal=True)

    def encode_batch(self, texts: list[str], literal: bool = False) -> list[list[int]]:
        """Ids of texts, with all threads of the library.

        Args:
            literal: special tokens are only text; else they are recognised.
        """
        with self._lock:
            self._backend.encode_special_tokens = literal
            try:
                return [one.ids for one in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
            finally:
                self._backend.encode_special_tokens = False

    def has(self, number: int) -> bool:
        """Whether an id has a token."""
        return 0 <= number < 2**32 and self._backend.id_to_token(number) is not None

    def id_of(self, token: str) -> int | None:
        """The id of a token; None where the vocabulary lacks it."""
        return self._backend.token_to_id(token)

    def _encode(self, backend: Any, text: str, literal: bool) -> list[int]:
        with self._lock:  # the setting belongs to the tokenizer, not to the call
            backend.encode_special_tokens = literal
            try:
                return backend.encode(text, add_special_tokens=False).ids
            finally:
                backend.encode_special_tokens = False


def _parts(step: Any) -> Iterable[dict[str, Any]]:
    """A normaliser or pre-tokeniser and the steps in it."""
    if not isinstance(step, dict):
        return
    yield step
    for name in ("normalizers", "pretokenizers"):
        for part in step.get(name) or []:
            yield from _parts(part)


def _prepending(step: Any) -> set[str]:
    """Which texts get a blank in front: "always", "first" (the beginning of the input only)."""
    kinds = set()
    for part in _parts(step):
        if part["type"] == "Prepend" or (part["type"] == "ByteLevel" and part.get("add_prefix_space")):
            kinds.add("always")
        if part["type"] == "Metaspace" and part.get("prepend_scheme", "always") != "never":
            kinds.add(part.get("prepend_scheme", "always"))
    return kinds


def _without_prepending(content: dict[str, Any]) -> Any:
    import tokenizers

    for part in [*_parts(content["normalizer"]), *_parts(content["pre_tokenizer"])]:
        if part["type"] == "ByteLevel":
            part["add_prefix_space"] = False
        elif part["type"] == "Metaspace":
            part["prepend_scheme"] = "never"
        elif part["type"] == "Prepend":
            # A replacement that never matches: an empty list of normalisers would not be the same object.
            part.clear()
            part.update({"type": "Replace", "pattern": {"Regex": r"(?!)"}, "content": ""})
    return tokenizers.Tokenizer.from_str(json.dumps(content))
