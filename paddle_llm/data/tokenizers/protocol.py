"""Interfaces of tokenizers loaded by PaddleNLP or transformers, and of the folders they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol


class Tokenizer(Protocol):
    """Common interface of the tokenizers of PaddleNLP and transformers.

    Attributes:
        bos_token_id: BOS id; None if the tokenizer has none.
        eos_token_id: EOS id; None if the tokenizer has none.
        pad_token_id: Id for padding; None if the tokenizer has none.
        unk_token_id: Id of unknown text; None if the tokenizer has none.
        all_special_tokens: Special tokens as text.
        all_special_ids: Ids of the special tokens.
    """

    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None
    unk_token_id: int | None
    all_special_tokens: list[str]
    all_special_ids: list[int]

    @property
    def vocab_size(self) -> int:
        """Number of ids without added tokens."""
        ...

    def __len__(self) -> int: ...

    def __call__(self, text: Any, **options: Any) -> Any:
        """Encode a text or a list of texts; the result has `input_ids`."""
        ...

    def tokenize(self, text: str, **options: Any) -> list[str]:
        """Split a text into tokens."""
        ...

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Return the id of a token, or the ids of a list of tokens."""
        ...

    def decode(self, ids: Any, **options: Any) -> str:
        """Return ids as text."""
        ...

    def get_vocab(self) -> dict[str, int]:
        """Return the ids by token."""
        ...

    def save_pretrained(self, save_directory: str, **options: Any) -> Any:
        """Write the tokenizer to a folder."""
        ...


class TransformersTokenizer(Tokenizer, Protocol):
    """A tokenizer that transformers loaded.

    Attributes:
        is_fast: Whether the `tokenizers` library does the work.
        backend_tokenizer: Tokenizer of that library.
        added_tokens_decoder: Added tokens by id.
        name_or_path: Folder that it was loaded from.
        unk_token: Token for unknown text; None if there is none.
        special_tokens_map: Special tokens by name.
    """

    is_fast: bool
    backend_tokenizer: Any
    added_tokens_decoder: dict[int, Any]
    name_or_path: str
    unk_token: str | None
    special_tokens_map: dict[str, Any]


class TokenizerSource(Protocol):
    """Source of a tokenizer."""

    @property
    def folder(self) -> Path:
        """Folder of the model."""
        ...

    @property
    def tokenizer(self) -> Path | None:
        """Folder with tokenizer_config.json; None if there is none."""
        ...

    @property
    def template(self) -> str | None:
        """--chat_template of the model's training; None if it is not recorded."""
        ...
