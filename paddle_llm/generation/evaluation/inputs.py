"""Reads the files of `paddle-llm evaluate`: plain texts, documents, or rows of instructions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paddle_llm.config.local_files.instruction_data import did_you_mean
from paddle_llm.config.local_files.split_names import kind_of_file
from paddle_llm.core.counts import counted
from paddle_llm.core.errors import UserError
from paddle_llm.data.chat.selection import AUTO
from paddle_llm.data.instructions.formats import matching_formats
from paddle_llm.data.instructions.rows import read_rows
from paddle_llm.data.text_files import read_text
from paddle_llm.generation.requests import Request, read_requests

_DOCUMENT = "text"  # key of a row that is a document
_BETWEEN_DOCUMENTS = "\n\n"  # as in the tables of GPTQ


@dataclass(frozen=True)
class Inputs:
    """The contents of all files: either texts or rows.

    Attributes:
        texts: Text of each file.
        requests: Rows of instructions of all files.
    """

    texts: tuple[str, ...] = ()
    requests: tuple[Request, ...] = ()


def read_inputs(files: Sequence[Path], data_format: str = AUTO) -> Inputs:
    """Read files as texts or as rows of instructions.

    A file with the suffix of instruction data contains rows; if they have the key `text` and no format of instructions, they are
    documents, which are joined with an empty line. Every other file is one text.

    Args:
        files: The files, all of one kind.
        data_format: Format of the rows (--data_format).

    Raises:
        UserError: If a file cannot be read or is empty, or the files are of both kinds.
    """
    texts: list[str] = []
    requests: list[Request] = []
    for file in files:
        text = None if data_format != AUTO else _text_of(file)
        if text is None:
            requests += read_requests(file, data_format)
        elif not text.strip():
            raise UserError(f"--input {file} is empty. Name a file with text.")
        else:
            texts.append(text)
    if texts and requests:
        raise UserError(
            f"--input has {counted(len(texts), 'file')} of plain text and {counted(len(requests), 'row')} of instructions. "
            "Evaluate the two kinds separately, because their perplexities are averages over different tokens."
        )
    return Inputs(tuple(texts), tuple(requests))


def _text_of(file: Path) -> str | None:
    """Return the text of a file; None if it contains rows of instructions.

    Raises:
        UserError: If the file cannot be read.
    """
    if not file.is_file():
        why = "is not a file" if file.exists() else f"does not exist.{did_you_mean(str(file))}"
        raise UserError(f"--input {file} {why.rstrip('.')}. Correct the path.")
    if kind_of_file(str(file)) is None:
        return read_text(file)
    documents = []
    for row in read_rows(str(file)):
        value = row.value
        if not isinstance(value, dict) or not isinstance(value.get(_DOCUMENT), str) or matching_formats(value):
            return None
        documents.append(value[_DOCUMENT])
    return _BETWEEN_DOCUMENTS.join(documents)
