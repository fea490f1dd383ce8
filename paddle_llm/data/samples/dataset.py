"""Map-style datasets of instructions (one sample or one packed row per item) and blends of sources by weight.

An item depends only on the files, the encoder and the seed, not on the layout, the workers or the rank that reads it.
Does not import Paddle.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import overload

import numpy as np

from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.data.corpus.blend import Blend, parse_weighted_paths
from paddle_llm.data.identity import DataIdentity, digest_of
from paddle_llm.data.instructions.conversation import Conversation
from paddle_llm.data.instructions.data_files import find_files
from paddle_llm.data.instructions.files import load_conversations
from paddle_llm.data.samples.encode import EncodedSample, InstructionEncoder, PromptTooLong
from paddle_llm.data.samples.encoded_samples import EncodedSamples
from paddle_llm.data.samples.packing import Packing, pack

_FLAG = "--dataset_name_or_path"


class ConversationBlend(Sequence[Conversation]):
    """Sources mixed by weight, as one sequence.

    Its length is one epoch of all sources: each row of each source occurs at least once. Rows of a source that is small
    for its weight occur several times, in a different order each time. The row at a position follows from the weights,
    the sizes and the seed.

    Args:
        sources: Conversations of each source.
        weights: Weight of each source.
        seed: Seed of the orders.
    """

    def __init__(self, sources: list[list[Conversation]], weights: list[float], seed: int) -> None:
        self._sources, self._seed = sources, seed
        self._blend = Blend(weights)
        self._length = max(int(np.ceil(len(s) / w)) for s, w in zip(sources, self._blend.shares, strict=True))
        while any(given < len(s) for given, s in zip(self._blend.counts(self._length), sources, strict=True)):
            self._length += 1
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Conversation: ...

    @overload
    def __getitem__(self, index: slice) -> list[Conversation]: ...

    def __getitem__(self, index: int | slice) -> Conversation | list[Conversation]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._length))]
        if not 0 <= index < self._length:
            raise IndexError(f"sample {index} of {self._length}")
        source, given = self._blend.locate(int(index))
        repetition, position = divmod(given, len(self._sources[source]))
        if (source, repetition) not in self._orders:
            seed = [self._seed % 2**32, source, repetition]
            self._orders[source, repetition] = np.random.RandomState(seed).permutation(len(self._sources[source]))
        return self._sources[source][int(self._orders[source, repetition][position])]

    def counts(self) -> list[int]:
        """Return the number of samples of an epoch from each source."""
        return self._blend.counts(self._length)


def load_split(
    value: str | None,
    split: str = "train",
    *,
    data_format: str = "auto",
    prompt_templates: str | None = None,
    skip_bad_rows: bool = False,
    seed: int = 42,
    flag: str = _FLAG,
    report_files: bool = True,
) -> Sequence[Conversation]:
    """Load the conversations of a split from a file, a folder with train and dev, or a blend `"0.3 a.jsonl 0.7 b/"`.

    Args:
        value: Value of the flag; None: ./data. A blend mixes train only; its dev and test sets are concatenated.
        split: "train", "dev" or "test".
        data_format: Name of the format of all files; "auto" recognizes it by the keys of the rows.
        prompt_templates: File of templates that turn raw records into conversations, instead of a format.
        skip_bad_rows: Whether bad rows are skipped and counted.
        seed: Seed of a blend.
        flag: Name of the flag, for messages.
        report_files: Whether to print the number of conversations and the format of each file.

    Returns:
        The conversations; empty if there is no dev or test split.

    Raises:
        UserError: If there is no training data, the blend is malformed, the format is unknown, or rows are bad.
    """
    options = (data_format, prompt_templates, skip_bad_rows, report_files)
    weighted = parse_weighted_paths(value, flag) if value and not os.path.exists(value) else None
    if weighted is None:
        files = find_files(value, split, flag)
        return load_conversations(files, *options).conversations if files else []
    found = [(weight, path, find_files(path, split, flag)) for weight, path in weighted]
    loaded = [(w, path, load_conversations(files, *options).conversations) for w, path, files in found if files]
    if split != "train":
        return [conversation for _, _, part in loaded for conversation in part]
    blend = ConversationBlend([part for _, _, part in loaded], [w for w, _, _ in loaded], seed)
    for (weight, path, part), count in zip(loaded, blend.counts(), strict=True):
        say(f"{weight:g} {path}: {len(part)} conversations give {count} of {len(blend)} samples of an epoch")
    return blend


class InstructionDataset:
    """One sample per item: {input_ids [L], labels [L]}, int64.

    For ChatGLM-6B an item also has position_ids [2, L] and attention_mask [1].

    Args:
        samples: Encoded samples; or conversations, which are encoded at each access. The latter need `encoder`, and
            truncated samples or samples without loss are not counted.
        encoder: Encoder of the conversations.
    """

    def __init__(
        self, samples: EncodedSamples | Sequence[Conversation], encoder: InstructionEncoder | None = None
    ) -> None:
        self._samples, self._encoder = samples, encoder
        if encoder is None and not isinstance(samples, EncodedSamples):
            raise ValueError("conversations need an encoder")

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return as_item(self.sample(index))

    def sample(self, index: int) -> EncodedSample:
        """Return item `index`, encoded."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        found = self._samples[index]
        if isinstance(found, EncodedSample):
            return found
        assert self._encoder is not None
        try:
            return self._encoder(found)
        except PromptTooLong as error:
            raise UserError(f"{found.where}: {error}. Increase --src_length.") from error

    def identity(self) -> DataIdentity | None:
        """Return the identity of all samples; None if they are encoded at each access."""
        return self._samples.identity() if isinstance(self._samples, EncodedSamples) else None

    def digest(self) -> str | None:
        """Return the digest of the samples, as checkpoints without an identity of all data have it; None as in `identity`."""
        return self._samples.digest() if isinstance(self._samples, EncodedSamples) else None

    def sample_ids(self, index: int) -> str:
        """Return the file and line of item `index`."""
        if isinstance(self._samples, EncodedSamples):
            return self._samples.origins[index]
        return self._samples[index].where


class PackedDataset:
    """One packed row of T tokens per item, int64: input_ids, labels, position_ids [T]; segment_lengths [k].

    A row has k samples, its segments. Attention must not cross segments; position_ids restart in each of them. For
    ChatGLM-6B: position_ids [2, T] and prefix_lengths [k].

    Args:
        samples: Samples that are not longer than a row.
        row_length: T, number of tokens of a row.
        seed: Seed of the packing.

    Raises:
        UserError: If a sample is longer than a row.
    """

    def __init__(self, samples: EncodedSamples, row_length: int, seed: int) -> None:
        longest = int(samples.lengths.max())
        if longest > row_length:
            at = int(samples.lengths.argmax())
            raise UserError(
                f"packing: {samples.origins[at]} has {longest} tokens, more than a row of {row_length}. Increase "
                "--max_seq_length to at least the --max_length of the samples."
            )
        self._samples = samples
        self.packing: Packing = pack(samples.lengths, row_length, seed)

    def __len__(self) -> int:
        return len(self.packing.rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        parts = [as_item(self._samples[i]) for i in self.packing.rows[index]]
        lengths = np.array([len(part["input_ids"]) for part in parts], np.int64)
        row = {name: np.concatenate([part[name] for part in parts]) for name in ("input_ids", "labels")}
        if "attention_mask" in parts[0]:
            row["prefix_lengths"] = np.concatenate([part["attention_mask"] for part in parts])
            row["position_ids"] = np.concatenate([part["position_ids"] for part in parts], axis=-1)
        else:
            row["position_ids"] = np.concatenate([np.arange(length) for length in lengths])
        return {**row, "segment_lengths": lengths}

    def identity(self) -> DataIdentity:
        """Return the identity of all samples and of their distribution over rows."""
        found = self._samples.identity()
        lengths = np.array([len(row) for row in self.packing.rows], np.int64)
        rows = digest_of(lengths, np.concatenate([np.asarray(row, np.int64) for row in self.packing.rows]))
        return replace(found, parts={**found.parts, "packed rows": rows})

    def digest(self) -> str:
        """Return a digest of samples and rows, as checkpoints without an identity of all data have it."""
        rows = hashlib.sha256(self._samples.digest().encode())
        for row in self.packing.rows:
            rows.update(np.asarray(row, np.int64).tobytes() + b"|")
        return rows.hexdigest()

    def sample_ids(self, index: int) -> str:
        """Return the files and lines of the samples of row `index`."""
        return " + ".join(self._samples.origins[i] for i in self.packing.rows[index])

    def describe(self) -> str:
        """Return a line for the log with the share of padding, with and without packing."""
        found = self.packing
        return (
            f"packing: {found.samples} samples of up to {found.longest} tokens in {len(found.rows)} rows of "
            f"{found.row_length}; padding {100 * found.padding:.2f}% "
            f"(one sample per row: {100 * found.padding_unpacked:.2f}%)"
        )


def as_item(sample: EncodedSample) -> dict[str, np.ndarray]:
    """Return a sample as the arrays that a network takes.

    ChatGLM-6B's samples have a prefix of p positions and add position_ids [2, L] and attention_mask [1] = p
    (see `models/chatglm_pretrain.py`).
    """
    item = {"input_ids": sample.input_ids.astype(np.int64), "labels": sample.labels.astype(np.int64)}
    if sample.prefix:
        item["position_ids"] = prefix_positions(len(sample.input_ids), sample.prefix)
        item["attention_mask"] = np.array([sample.prefix], np.int64)
    return item


def prefix_positions(length: int, prefix: int) -> np.ndarray:
    """Return ChatGLM-6B's 2D positions [2, length] (GLM, Du et al. 2022, section 2.1) of a sample.

    The first `prefix` positions are the context and [gMASK]. The following tokens have the position of [gMASK] in the
    first row and count from 1 in the second.
    """
    positions = np.zeros((2, length), np.int64)
    positions[0] = np.minimum(np.arange(length), prefix - 1)
    positions[1, prefix:] = np.arange(1, length - prefix + 1)
    return positions
