"""Interfaces of tokenizers loaded by PaddleNLP or transformers, and of the folders they come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as FastTokenizer


class Tokenizer(Protocol):
    """Common interface of the tokenizers of PaddleNLP and transformers.

    Attributes:
        eos_token: EOS as text; None if the tokenizer has none.
        unk_token: Token for unknown text; None if the tokenizer has none.
        bos_token_id: BOS id; None if the tokenizer has none.
        eos_token_id: EOS id; None if the tokenizer has none.
        pad_token_id: Id for padding; None if the tokenizer has none.
        unk_token_id: Id of unknown text; None if the tokenizer has none.
        all_special_tokens: Special tokens as text.
        all_special_ids: Ids of the special tokens.
    """

    eos_token: str | None
    unk_token: str | None
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

    def __call__(self, text: str | list[str], **options: Any) -> Any:
        """Encode a text or a list of texts; the result has `input_ids`."""
        ...

    def tokenize(self, text: str, **options: Any) -> list[str]:
        """Split a text into tokens."""
        ...

    def convert_tokens_to_ids(self, tokens: str | list[str]) -> Any:
        """Return the id of a token, or the ids of a list of tokens."""
        ...

    def decode(self, ids: Sequence[int], **options: Any) -> str:
        """Return ids as text."""
        ...

    def get_vocab(self) -> dict[str, int]:
        """Return the ids by token."""
        ...

    def save_pretrained(self, save_directory: str, **options: Any) -> Any:
        """Write the tokenizer to a folder."""
        ...


class PaddleNLPTokenizer(Tokenizer, Protocol):
    """A tokenizer that PaddleNLP loaded."""

    def build_inputs_with_special_tokens(self, ids: list[int]) -> list[int]:
        """Return the ids of a text with the special tokens around it."""
        ...

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str | None]:
        """Return the token of each id."""
        ...

    def convert_tokens_to_string(self, tokens: list[str | None]) -> str:
        """Return tokens as text."""
        ...


class TransformersTokenizer(Tokenizer, Protocol):
    """A tokenizer that transformers loaded.

    Attributes:
        is_fast: Whether the `tokenizers` library does the work.
        backend_tokenizer: Tokenizer of that library.
        added_tokens_decoder: Added tokens by id.
        name_or_path: Folder that it was loaded from.
        special_tokens_map: Special tokens by name.
        init_kwargs: Arguments of its constructor.
        vocab_file: Vocabulary file; absent in classes that read none.
        vocab_files_names: Names of the vocabulary files by argument of the constructor.
        source_config: Content of tokenizer_config.json with which it was loaded; set by `saving.copy_when_saved`.
        save_pretrained: Method that writes the tokenizer to a folder; replaced by `saving.copy_when_saved`.
    """

    is_fast: bool
    backend_tokenizer: FastTokenizer
    added_tokens_decoder: dict[int, AddedToken]
    name_or_path: str
    special_tokens_map: dict[str, Any]
    init_kwargs: dict[str, Any]
    vocab_file: str | None
    vocab_files_names: dict[str, str]
    source_config: dict[str, Any]
    save_pretrained: Callable[..., Any]

    def apply_chat_template(self, conversation: list[dict[str, Any]], **options: Any) -> Any:
        """Render messages with the tokenizer's chat template; the ids of the text by default."""
        ...


def is_from_transformers(tokenizer: object) -> TypeGuard[TransformersTokenizer]:
    """Return whether transformers loaded a tokenizer; else PaddleNLP did."""
    return type(tokenizer).__module__.partition(".")[0] == "transformers"


class TokenizerSource(Protocol):
    """Folders of a model whose tokenizer is exported."""

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
