"""Map-style datasets of instructions, one sample or one packed row to an item, and mixtures of sources by weight. Free of paddle.

An item depends on the files, the encoder and the seed alone: not on the layout, the workers or who reads it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.data.corpus.blend import Blend, parse_weighted_paths
from paddle_llm.data.instructions.files import find_files, load_conversations
from paddle_llm.data.instructions.formats import Conversation
from paddle_llm.data.samples.encode import DoesNotFit, EncodedSample, InstructionEncoder
from paddle_llm.data.samples.encoded_samples import EncodedSamples
from paddle_llm.data.samples.packing import Packing, pack

_FLAG = "--dataset_name_or_path"


class Mixture(Sequence[Conversation]):
    """Sources mixed by weight, as one sequence.

    Its length is one epoch of all sources: each row of each is in it at least once, those of a source that is small for its weight
    several times, each time in another order. Position i follows from the weights, the sizes and the seed.
    """

    def __init__(self, sources: list[list[Conversation]], weights: list[float], seed: int):
        self._sources, self._seed = sources, seed
        self._blend = Blend(weights)
        self._length = max(int(np.ceil(len(s) / w)) for s, w in zip(sources, self._blend.shares, strict=True))
        while any(given < len(s) for given, s in zip(self._blend.counts(self._length), sources, strict=True)):
            self._length += 1
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._length))]
        if not 0 <= index < self._length:
            raise IndexError(f"sample {index} of {self._length}")
        source, given = self._blend.locate(int(index))
        turn, place = divmod(given, len(self._sources[source]))
        if (source, turn) not in self._orders:
            order = np.random.RandomState([self._seed % 2**32, source, turn]).permutation(len(self._sources[source]))
            self._orders[source, turn] = order
        return self._sources[source][int(self._orders[source, turn][place])]

    def counts(self) -> list[int]:
        """How many samples of an epoch come from each source."""
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
) -> Sequence[Conversation]:
    """The conversations of a split: of a file, a folder with train and dev, or a mixture `"0.3 a.jsonl 0.7 b/"`.

    Args:
        value: as typed; None: ./data. A mixture is one for train; its dev and test sets are laid end to end.

    Returns:
        Empty where there is no dev or test split.

    Raises:
        UserError: nothing there, a malformed mixture, an unknown format, bad rows.
    """
    options = (data_format, prompt_templates, skip_bad_rows)
    mixed = parse_weighted_paths(value, flag) if value and not os.path.exists(value) else None
    if mixed is None:
        files = find_files(value, split, flag)
        return load_conversations(files, *options).conversations if files else []
    found = [(weight, path, find_files(path, split, flag)) for weight, path in mixed]
    loaded = [(w, path, load_conversations(files, *options).conversations) for w, path, files in found if files]
    if split != "train":
        return [conversation for _, _, part in loaded for conversation in part]
    mixture = Mixture([part for _, _, part in loaded], [w for w, _, _ in loaded], seed)
    for (weight, path, part), count in zip(loaded, mixture.counts(), strict=True):
        say(f"{weight:g} {path}: {len(part)} conversations, {count} samples of an epoch of {len(mixture)}")
    return mixture


class InstructionDataset:
    """One sample to an item: {input_ids [L], labels [L]}, int64; ChatGLM-6B's also position_ids [2, L] and attention_mask [1].

    Args:
        samples: encoded ones; or conversations, which are then encoded at each access (`encoder` is needed), and of which nothing
            is known beforehand: samples that are cut or bear no loss are not counted.
    """

    def __init__(self, samples: EncodedSamples | Sequence[Conversation], encoder: InstructionEncoder | None = None):
        self._samples, self._encoder = samples, encoder
        if encoder is None and not isinstance(samples, EncodedSamples):
            raise ValueError("conversations need an encoder")

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return as_item(self.sample(index))

    def sample(self, index: int) -> EncodedSample:
        """Item `index`, encoded."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        found = self._samples[index]
        if isinstance(found, EncodedSample):
            return found
        assert self._encoder is not None
        try:
            return self._encoder(found)
        except DoesNotFit as error:
            raise UserError(f"{found.where}: {error}. Raise --src_length.") from error

    def digest(self) -> str | None:
        """Return a digest of the content of all samples; None where they are encoded at each access."""
        return self._samples.digest() if isinstance(self._samples, EncodedSamples) else None

    def sample_ids(self, index: int) -> str:
        """Where item `index` came from: file and line."""
        if isinstance(self._samples, EncodedSamples):
            return self._samples.wheres[index]
        return self._samples[index].where


class PackedDataset:
    """One packed row of T tokens to an item: input_ids, labels and position_ids [T], segment_lengths [k] of its k samples, int64;
    ChatGLM-6B's: position_ids [2, T] and prefix_lengths [k].

    No attention may go from one segment to another; position_ids start anew in each.

    Args:
        samples: none longer than row_length.
    """

    def __init__(self, samples: EncodedSamples, row_length: int, seed: int):
        longest = int(samples.lengths.max())
        if longest > row_length:
            at = int(samples.lengths.argmax())
            raise UserError(
                f"packing: {samples.wheres[at]} has {longest} tokens, a row {row_length}. Raise --max_seq_length to the samples' "
                "--max_length at least."
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

    def digest(self) -> str:
        """Return a digest of all samples and of their rows."""
        rows = hashlib.sha256(self._samples.digest().encode())
        for row in self.packing.rows:
            rows.update(np.asarray(row, np.int64).tobytes() + b"|")
        return rows.hexdigest()

    def sample_ids(self, index: int) -> str:
        """Where the samples of row `index` came from."""
        return " + ".join(self._samples.wheres[i] for i in self.packing.rows[index])

    def describe(self) -> str:
        """One line for the log: how full rows are, with and without packing."""
        found = self.packing
        return (
            f"packing: {found.samples} samples of at most {found.longest} tokens in {len(found.rows)} rows of {found.row_length}; "
            f"padding {100 * found.padding:.2f}% (one sample to a row: {100 * found.padding_unpacked:.2f}%)"
        )


def as_item(sample: EncodedSample) -> dict[str, np.ndarray]:
    """A sample as the arrays that a network takes. With a prefix of p positions, as ChatGLM-6B wants it (see
    `models/chatglm_pretrain.py`): position_ids [2, L], attention_mask [1] = p."""
    item = {"input_ids": sample.input_ids.astype(np.int64), "labels": sample.labels.astype(np.int64)}
    if sample.prefix:
        item["position_ids"] = prefix_positions(len(sample.input_ids), sample.prefix)
        item["attention_mask"] = np.array([sample.prefix], np.int64)
    return item


def prefix_positions(length: int, prefix: int) -> np.ndarray:
    """ChatGLM-6B's 2D positions [2, length] (GLM, Du et al. 2022, section 2.1) of a sample whose first `prefix` positions are the
    context and [GMASK]: all that follows stands at [gMASK]'s place, and counts from 1 in the second row."""
    positions = np.zeros((2, length), np.int64)
    positions[0] = np.minimum(np.arange(length), prefix - 1)
    positions[1, prefix:] = np.arange(1, length - prefix + 1)
    return positions
