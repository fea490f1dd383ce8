"""`TextStream`: turns the tokens of a text into text, piece by piece, and ends it before a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from paddle_llm.data.tokenizers.text_codec import TextCodec

_CONTEXT = 8  # tokens of the prompt that are decoded with the first token
_INCOMPLETE = "\ufffd"  # what a decoder returns for the first bytes of a character


class TextStream:
    """The text of tokens that arrive one by one.

    Only the newest tokens are decoded again at each token, so that a long text takes no more time per token than a short
    one. `finish` decodes all tokens, as `paddle-llm generate` does.

    Args:
        codec: The tokenizer.
        before: Tokens of a plain-text prompt, whose text decides about a blank before the first word; () for an answer.
        stops: Texts that end the text. They are not part of it.

    Attributes:
        stopped: Whether a stop string was found.
    """

    def __init__(self, codec: TextCodec, before: Sequence[int] = (), stops: Sequence[str] = ()) -> None:
        self._codec, self._stops = codec, [stop for stop in stops if stop]
        self._before, self._tokens = list(before), list[int]()
        self._window = self._context()  # tokens that are decoded at the next token
        self._known = len(self._window)  # number of them whose text was returned
        self._text = ""  # decoded text; `_sent` characters of it were returned
        self._sent = 0
        self.stopped = False

    def add(self, token: int) -> str:
        """Add a token and return the new text that is certain: without an incomplete character or stop string."""
        if self.stopped:
            return ""
        self._tokens.append(token)
        self._window.append(token)
        known, whole = self._window_texts()
        if whole.endswith(_INCOMPLETE) or len(whole) <= len(known):
            return ""
        new = whole[len(known) :]
        if new.strip():
            self._window = self._window[self._known :]
        self._known = len(self._window)
        return self._extend(new)

    def finish(self) -> str:
        """Return the rest of the text."""
        certain = ""
        if not self.stopped:
            whole = self._whole()
            new = whole[len(self._text) :] if whole.startswith(self._text) else self._rest_of_window()
            certain = self._extend(new)
        rest, self._sent = self._text[self._sent :], len(self._text)
        return certain + rest

    @property
    def text(self) -> str:
        """The text so far."""
        return self._text

    def _extend(self, new: str) -> str:
        """Append decoded text, look for stop strings, and return what is certain."""
        searched = len(self._text)
        self._text += new
        found = [
            at for stop in self._stops if (at := self._text.find(stop, max(searched - len(stop) + 1, self._sent))) >= 0
        ]
        if found:
            self._text, self.stopped = self._text[: min(found)], True
        certain = len(self._text) - (0 if self.stopped else self._possible_stop())
        piece, self._sent = self._text[self._sent : certain], max(self._sent, certain)
        return piece

    def _possible_stop(self) -> int:
        """Return the length of the end of the text with which a stop string may begin."""
        longest = max(map(len, self._stops), default=0)
        for length in range(min(longest - 1, len(self._text) - self._sent), 0, -1):
            end = self._text[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0

    def _whole(self) -> str:
        """Return the text of all tokens, as in `generation.api.continuation`."""
        if self._before:
            prompt, whole = self._codec.decode(self._before), self._codec.decode([*self._before, *self._tokens])
            if whole.startswith(prompt):
                return whole[len(prompt) :]
        return self._codec.decode(self._tokens)

    def _rest_of_window(self) -> str:
        known, whole = self._window_texts()
        return whole[len(known) :]

    def _window_texts(self) -> tuple[str, str]:
        """Return the text of the tokens in the window that are known, and of all of them."""
        return self._codec.decode(self._window[: self._known]), self._codec.decode(self._window)

    def _context(self) -> list[int]:
        """Return the end of the prompt. It has a word, because a tokenizer drops blanks at the beginning of a text."""
        count = _CONTEXT
        while count < len(self._before) and not self._codec.decode(self._before[-count:]).strip():
            count *= 2
        return self._before[-count:]
