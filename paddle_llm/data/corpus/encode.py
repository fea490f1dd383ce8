"""Encodes blocks of documents as token ids, in the workers of `data build`.

The ids are those of the library that reads the tokenizer folder (tokenizers/folder.py). For PaddleNLP's LlamaTokenizer
they come from sentencepiece directly, which is ten times faster; for transformers' fast tokenizers they come from the
`tokenizers` library in batches.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from paddle_llm.core.errors import UserError
from paddle_llm.data.corpus.mmap_format import token_dtype
from paddle_llm.data.corpus.sources import Block, Document, ReadOptions, describe_bad_row, parse_block
from paddle_llm.data.tokenizer import load_tokenizer
from paddle_llm.data.tokenizers.equal_sentencepiece import equal_sentencepiece
from paddle_llm.data.tokenizers.fast_backend import FastBackend
from paddle_llm.data.tokenizers.folder import Reader, read_sentencepiece, reader_of, sentencepiece_model, special_tokens
from paddle_llm.data.tokenizers.protocol import is_from_transformers


class TextEncoder(Protocol):
    """Encodes texts as ids without EOS.

    `encode` raises RuntimeError, TypeError or UnicodeEncodeError if a string is not valid text (a lone surrogate).

    Attributes:
        vocab_size: Size of the vocabulary.
        eos_id: EOS id; None if the tokenizer has none.
        special_ids: Ids of special tokens, which a text contains if the token's text occurs in it.
    """

    vocab_size: int
    eos_id: int | None
    special_ids: list[int]

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Return the ids of each text, int32 [length]."""
        ...


class SentencePieceEncoder:
    """Gives the ids of PaddleNLP's LlamaTokenizer.

    As in PaddleNLP, the text of a special token becomes that token and absorbs the blanks around it.
    """

    def __init__(self, model_path: str, specials: list[str]) -> None:
        self._processor = read_sentencepiece(model_path)
        self.vocab_size = self._processor.get_piece_size()
        self.eos_id: int | None = self._processor.eos_id()
        self._specials = {token: self._processor.piece_to_id(token) for token in specials}
        self.special_ids = sorted({*self._specials.values()} - {self._processor.unk_id()})
        longest_first = sorted(map(re.escape, specials), key=len, reverse=True)
        self._pattern = re.compile(f"({'|'.join(longest_first)})")

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Return the ids of each text, int32 [length]."""
        arrays = self._processor.encode_as_numpy(texts, num_threads=1)
        search = self._pattern.search
        for i, text in enumerate(texts):
            if search(text):
                arrays[i] = self._encode_around_specials(text)
        return arrays

    def _encode_around_specials(self, text: str) -> np.ndarray:
        parts = self._pattern.split(text)  # text, special, text, special, ..., text
        arrays = []
        for i, part in enumerate(parts):
            if i % 2:
                arrays.append(np.array([self._specials[part]], dtype=np.int32))
                continue
            if i > 0:
                part = part.lstrip()
            if i < len(parts) - 1:
                part = part.rstrip()
            if part:
                arrays.append(self._processor.encode_as_numpy(part))
        return np.concatenate(arrays)


class PaddleNLPEncoder:
    """Encodes with any other tokenizer, through PaddleNLP."""

    def __init__(self, folder: str) -> None:
        self._tokenizer = load_tokenizer(folder)
        self.vocab_size = len(self._tokenizer)
        self.eos_id = self._tokenizer.eos_token_id
        self.special_ids = sorted({*self._tokenizer.all_special_ids} - {self._tokenizer.unk_token_id})

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Return the ids of each text, int32 [length]."""
        tokenizer = self._tokenizer
        return [np.array(tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text)), dtype=np.int32) for text in texts]


class TransformersEncoder:
    """Encodes with a tokenizer that transformers reads. As there, the text of a special token becomes that token."""

    def __init__(self, folder: str) -> None:
        tokenizer = load_tokenizer(folder)
        assert is_from_transformers(tokenizer), "checked by open_encoder"
        self._tokenizer = tokenizer
        self.vocab_size = len(self._tokenizer)
        self.eos_id = self._tokenizer.eos_token_id
        self._fast = FastBackend(self._tokenizer.backend_tokenizer) if self._tokenizer.is_fast else None
        added = self._tokenizer.added_tokens_decoder.items()
        specials = {*self._tokenizer.all_special_ids, *(number for number, token in added if token.special)}
        self.special_ids = sorted(specials - {self._tokenizer.unk_token_id})
        # A tokenizer with this setting reads special tokens as text everywhere, so also in documents.
        self._literal = bool(getattr(self._tokenizer, "split_special_tokens", False))
        plain = self._fast is not None and not self._literal
        self._pieces = equal_sentencepiece(folder, self._tokenizer) if plain else None

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Return the ids of each text, int32 [length]."""
        if self._pieces is not None:
            return self._encode_by_pieces(texts)
        if self._fast is not None:
            return [np.array(ids, dtype=np.int32) for ids in self._fast.encode_batch(texts, self._literal)]
        encoded = self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return [np.array(ids, dtype=np.int32) for ids in encoded]

    def _encode_by_pieces(self, texts: list[str]) -> list[np.ndarray]:
        """Encode texts without added tokens by sentencepiece, which is several times faster, and others as usual."""
        assert self._pieces is not None and self._fast is not None
        arrays = self._pieces.processor.encode_as_numpy(texts, num_threads=1)
        others = [number for number, text in enumerate(texts) if self._pieces.added.search(text)]
        encoded = self._fast.encode_batch([texts[number] for number in others])
        for number, ids in zip(others, encoded, strict=True):
            arrays[number] = np.array(ids, dtype=np.int32)
        return arrays


def open_encoder(folder: str) -> TextEncoder:
    """Open the fastest encoder that gives the ids of the folder's tokenizer.

    Raises:
        UserError: If the folder has no tokenizer.
    """
    path = sentencepiece_model(folder)
    reader = reader_of(folder)
    if path is not None and reader is Reader.SENTENCEPIECE:
        return SentencePieceEncoder(path, special_tokens(folder))
    return TransformersEncoder(folder) if reader is Reader.TRANSFORMERS else PaddleNLPEncoder(folder)


@dataclass(frozen=True)
class Encoded:
    """Ids of the documents of a block.

    Attributes:
        ids: Ids of all documents, each ended by EOS: [sum of sizes] in the dtype of the corpus.
        sizes: Number of tokens of each document, int32 [documents].
        max_id: Largest id.
        empty: Number of documents without a token, which are skipped.
        problems: One line per bad row.
        read_bytes: Number of bytes of the file that the block came from.
        special_tokens: Number of special tokens whose text occurs in documents.
    """

    ids: np.ndarray
    sizes: np.ndarray
    max_id: int
    empty: int
    problems: list[str]
    read_bytes: int
    special_tokens: int = 0


class BlockEncoder:
    """Encodes blocks; each worker process has one."""

    def __init__(self, folder: str, options: ReadOptions) -> None:
        self.encoder = open_encoder(folder)
        self._options = options
        self._dtype = token_dtype(self.encoder.vocab_size)
        self._specials = np.array(self.encoder.special_ids, dtype=np.int64)

    def __call__(self, block: Block) -> Encoded:
        """Parse and encode a block.

        Raises:
            UserError: If a document has too many tokens.
        """
        documents = list(parse_block(block, self._options))
        texts = [document.text for document in documents if document.text is not None]
        bad = [document for document in documents if document.text is None] if len(texts) < len(documents) else []
        try:
            arrays = self.encoder.encode(texts) if texts else []
        except (RuntimeError, TypeError, UnicodeEncodeError):  # the type depends on the tokenizer
            arrays, not_text = self._one_by_one(documents)
            bad = sorted([*bad, *not_text])
        sizes = np.fromiter(map(len, arrays), dtype=np.int64, count=len(arrays))
        flat = np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int32)
        filled = sizes[sizes > 0]
        if len(filled) and int(filled.max()) >= np.iinfo(np.int32).max:
            raise UserError(f"{block.source.path}: document too long: {int(filled.max())} tokens. Split it.")
        eos_id = self.encoder.eos_id
        assert eos_id is not None, "checked by build_corpus"
        ids = np.insert(flat, np.cumsum(filled), eos_id)
        top = int(ids.max()) if len(ids) else 0
        if top > np.iinfo(self._dtype).max:
            raise OverflowError(f"{block.source.path}: token id {top} does not fit {self._dtype}")
        return Encoded(
            ids.astype(self._dtype),
            (filled + 1).astype(np.int32),
            top,
            len(sizes) - len(filled),
            [describe_bad_row(block.source, document) for document in bad],
            block.read_bytes,
            int(np.isin(flat, self._specials).sum()),
        )

    def _one_by_one(self, documents: list[Document]) -> tuple[list[np.ndarray], list[Document]]:
        """Return the ids of documents that are valid text, and the others: JSON can contain a lone surrogate."""
        arrays, bad = [], []
        for document in documents:
            if document.text is None:
                continue
            try:
                document.text.encode("utf-8")
            except UnicodeEncodeError as error:
                bad.append(Document(document.row, None, f"not text: {error}"))
            else:
                arrays += self.encoder.encode([document.text])
        return arrays, bad
