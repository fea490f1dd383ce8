"""What this package needs of a tokenizer, whether PaddleNLP or transformers loaded it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol


class Tokenizer(Protocol):
    """Common interface of the tokenizers of PaddleNLP and transformers.

    Attributes:
        bos_token_id: BOS id; None if the tokenizer has none.
        eos_token_id: EOS id; None if the tokenizer has none.
        pad_token_id: Id for padding; None if the tokenizer has none.
        unk_token_id: Id of unknown text; None if the tokenizer has none.
        vocab_size: Number of ids without added tokens.
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
    def vocab_size(self) -> int: ...

    def __len__(self) -> int: ...

    def __call__(self, text: Any, **options: Any) -> Any: ...

    def tokenize(self, text: str, **options: Any) -> list[str]: ...

    def convert_tokens_to_ids(self, tokens: Any) -> Any: ...

    def decode(self, ids: Any, **options: Any) -> str: ...

    def get_vocab(self) -> dict[str, int]: ...

    def save_pretrained(self, save_directory: str, **options: Any) -> Any: ...
