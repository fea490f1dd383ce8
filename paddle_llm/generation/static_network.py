"""`StaticModel`: a static export with its tokenizer, which generates text from Python.

Example:
    >>> from paddle_llm.generation.static_network import StaticModel
    >>> model = StaticModel("exports/program")
    >>> print(model.generate("The old house", max_new_tokens=40, temperature=0.8))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from paddle_llm.data.tokenizers.text_codec import TextCodec, open_codec
from paddle_llm.generation.options import DecodeOptions, DecodeStrategy
from paddle_llm.generation.prompts import encode_text
from paddle_llm.generation.static.program import StaticBatch, StaticProgram
from paddle_llm.models.prompt import Prompt


class StaticModel(StaticProgram):
    """A static export with its tokenizer. It runs one batch of prompts at a time.

    Args:
        folder: Folder with model.json, model.pdiparams, step.json and a tokenizer.
        threads: Number of threads; None: OMP_NUM_THREADS, or the number of cores.
        tokenizer: Folder of a tokenizer that replaces the export's.

    Raises:
        UserError: If the folder is not a static export, or a file is truncated or unreadable.
    """

    def __init__(self, folder: str | Path, threads: int | None = None, *, tokenizer: Path | None = None) -> None:
        super().__init__(folder, threads)
        self._tokenizer = tokenizer or self.folder

    @cached_property
    def codec(self) -> TextCodec:
        """The tokenizer."""
        return open_codec(str(self._tokenizer))

    def open(self, prompts: Sequence[Prompt], max_new_tokens: int) -> StaticBatch:
        """Open one batch of prompts; see `StaticBatch`."""
        return StaticBatch(self, prompts, max_new_tokens)

    def generate(
        self,
        text: str,
        max_new_tokens: int = 64,
        *,
        on_text: Callable[[str], None] | None = None,
        **strategy: Any,
    ) -> str:
        """Continue a plain text.

        Args:
            text: Text to continue, without a chat template.
            max_new_tokens: Maximum number of new tokens; the positions of the model limit it further.
            on_text: Function called with each new piece of the text.
            strategy: temperature, top_k, top_p, repetition_penalty, seed, ...: fields of `DecodeStrategy`.

        Returns:
            The new text, without the prompt.
        """
        from paddle_llm.generation.decoding.decode import decode  # imports Paddle

        prompt = encode_text(self.codec, text)
        limit = self.config.max_position_embeddings
        count = max_new_tokens if limit is None else max(min(max_new_tokens, limit - len(prompt)), 0)
        stream = _TextStream(self.codec, prompt.ids, on_text)
        options = DecodeOptions(self.family, self.end_ids, DecodeStrategy(**strategy))
        return stream.finish(decode(self, [prompt], [count], options, on_token=stream)[0])

    @property
    def end_ids(self) -> frozenset[int]:
        """Token ids that end a text, according to the export and its tokenizer."""
        eos_id = self.codec.eos_id
        return frozenset(self.config.end_ids) | (frozenset() if eos_id is None else frozenset([eos_id]))


class _TextStream:
    """Decodes the tokens after a prompt and passes each new piece of text to a function."""

    def __init__(self, codec: TextCodec, before: Sequence[int], on_text: Callable[[str], None] | None) -> None:
        self._codec, self._before, self._on_text = codec, list(before), on_text
        self._prompt = codec.decode(self._before)
        self._tokens: list[int] = []
        self._sent = ""

    def __call__(self, _: int, token: int) -> None:
        self._tokens.append(token)
        if self._on_text is not None:
            text = self._text(self._tokens)
            if not text.endswith("\ufffd"):  # the bytes of a character may be incomplete
                self._send(text)

    def finish(self, tokens: Sequence[int]) -> str:
        """Send the rest and return the whole text."""
        text = self._text(tokens)
        self._send(text)
        return text

    def _text(self, tokens: Sequence[int]) -> str:
        whole = self._codec.decode([*self._before, *tokens])
        return whole[len(self._prompt) :] if whole.startswith(self._prompt) else self._codec.decode(list(tokens))

    def _send(self, text: str) -> None:
        if self._on_text is not None and text.startswith(self._sent) and text != self._sent:
            self._on_text(text[len(self._sent) :])
            self._sent = text
