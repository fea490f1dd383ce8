"""Pretraining datasets over .bin/.idx corpora: train, valid and test, each one global order of samples. Free of paddle."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.data.corpus.blend import Blend, parse_input_dir, split_bounds
from paddle_llm.data.corpus.cache_key import data_key
from paddle_llm.data.corpus.checks import check_corpus, verify_index
from paddle_llm.data.corpus.indexed import open_corpus
from paddle_llm.data.corpus.order import Origin, SampleOrder
from paddle_llm.data.tokenizer import find_fingerprint

if TYPE_CHECKING:
    from paddle_llm.config.run_config import RunConfig

SPLIT_NAMES = ("train", "valid", "test")
Transform = Callable[[np.ndarray], dict[str, np.ndarray]]


class PretrainDataset:
    """A map-style dataset over the global order of one split of a blend of corpora.

    Item i is a dict of int64 arrays: `input_ids` [S] and `labels` [S], where labels[t] is the token after input_ids[t]
    (no model of PaddleNLP shifts labels). With a `transform`, item i is what that makes of the S + 1 tokens.

    Item i depends on the corpora's content, the split, the seed, S and the weights; not on the length asked for, the
    layout, or who reads it. A length beyond one epoch goes on into the next one, which has its own order.

    Attributes:
        samples_per_epoch: samples of all corpora of the split, each counted once.
    """

    def __init__(
        self, orders: list[SampleOrder], weights: list[float], length: int, transform: Transform | None = None
    ):
        self._orders, self._blend, self._length, self._transform = orders, Blend(weights), length, transform
        self.samples_per_epoch = sum(order.samples_per_epoch for order in orders)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        tokens_S1 = self.tokens(index)
        if self._transform is not None:
            return self._transform(tokens_S1)
        return {"input_ids": tokens_S1[:-1].copy(), "labels": tokens_S1[1:].copy()}

    def tokens(self, index: int) -> np.ndarray:
        """The S + 1 tokens behind item `index`, int64."""
        order, position = self._locate(index)
        return order.tokens(position)

    def sample_ids(self, index: int) -> Origin:
        """Where item `index` came from; `str` of it is readable: corpus, epoch, sample, documents."""
        order, position = self._locate(index)
        return order.origin(position)

    def digest(self) -> str:
        """Return a key of the corpora's content, their parts and weights; blocks of each file are read, not all of it."""
        found = hashlib.sha256(repr(list(self._blend.shares)).encode())
        for order in self._orders:
            paths = (order.corpus.data_path, order.corpus.index_path)
            keys = (data_key(path) for path in paths if path.is_file())
            found.update(f"{order.first} {order.stop} {' '.join(keys)}\n".encode())
        return found.hexdigest()

    def prepare(self) -> None:
        """Build the orders that this length needs and that are too large to be made on the fly; one rank does it."""
        for order, count in zip(self._orders, self._blend.counts(self._length), strict=True):
            order.prepare(-(-count // order.samples_per_epoch))

    def _locate(self, index: int) -> tuple[SampleOrder, int]:
        if not 0 <= index < self._length:
            raise IndexError(f"sample {index} of {self._length}")
        corpus, position = self._blend.locate(int(index))
        return self._orders[corpus], position


@dataclass(frozen=True)
class Splits:
    """The three datasets; None where no sample was asked for."""

    train: PretrainDataset | None
    valid: PretrainDataset | None
    test: PretrainDataset | None


def build_pretrain_datasets(
    config: RunConfig,
    *,
    train_samples: int,
    eval_samples: int,
    predict_samples: int,
    seq_length: int,
    eos_id: int | None,
    vocab_size: int,
    transform: Transform | None = None,
) -> Splits:
    """Open the corpora of `config.input_dir`, check them, and lay out their samples. Called by every rank of a job; the
    first one checks and builds, the others wait for it.

    Args:
        train_samples: length of the train dataset; may span several epochs.
        eval_samples, predict_samples: wanted length of valid and test; at most one epoch of them is given, since a
            sample evaluated twice tells nothing. 0 leaves a split out.
        seq_length: S, tokens that the model sees per sample.
        eos_id: the tokenizer's end of sentence, compared with the corpus's; None skips it.
        vocab_size: rows of the model's embedding; every id of the corpora must be below.
        transform: makes a sample of its S + 1 tokens (int64), in place of inputs and shifted labels.

    Raises:
        UserError: a corpus missing, broken or of another tokenizer; a split too small for one sample.
    """
    wanted = (train_samples, eval_samples, predict_samples)
    layouts = _lay_out(config, seq_length)
    datasets: list[PretrainDataset | None] = []
    for split, (name, samples) in enumerate(zip(SPLIT_NAMES, wanted, strict=True)):
        if samples <= 0:
            datasets.append(None)
            continue
        orders, weights = _usable(layouts[split], name, config, seq_length)
        one_epoch = sum(order.samples_per_epoch for order in orders)
        length = samples if name == "train" else min(samples, one_epoch)
        datasets.append(PretrainDataset(orders, weights, length, transform))
    _on_first_rank(lambda: _check_and_build(config, layouts[0], datasets, vocab_size, eos_id))
    return Splits(*datasets)


def samples_per_epoch(config: RunConfig, seq_length: int) -> int:
    """Samples of seq_length tokens in one epoch of the train split; reads no more than the heads of the files.

    Raises:
        UserError: as `build_pretrain_datasets`.
    """
    orders, _ = _usable(_lay_out(config, seq_length)[0], "train", config, seq_length)
    return sum(order.samples_per_epoch for order in orders)


def training_samples(config: RunConfig, global_batch: int) -> int:
    """Samples of the whole training, a multiple of `global_batch`: of --max_steps, else of --num_train_epochs.

    Raises:
        UserError: the epochs hold less than one global batch; and as `build_pretrain_datasets`.
    """
    if config.max_steps > 0:
        return config.max_steps * global_batch
    available = int(config.num_train_epochs * samples_per_epoch(config, config.max_seq_length))
    if available < global_batch:
        raise UserError(
            f"--num_train_epochs {config.num_train_epochs:g} of this corpus are {available} samples of {config.max_seq_length} "
            f"tokens, fewer than one global batch of {global_batch}: give --max_steps, more text, or a smaller batch."
        )
    return available // global_batch * global_batch


Weighted = list[tuple["float | None", SampleOrder]]


def _lay_out(config: RunConfig, seq_length: int) -> list[Weighted]:
    """(weight, order) of every corpus, for train, valid and test."""
    if not config.input_dir:
        raise UserError("no data: give --input_dir a folder of corpora, a prefix, or a weighted blend.")
    seed = config.seed if config.data_seed is None else config.data_seed
    layouts: list[Weighted] = [[], [], []]
    for weight, prefix in parse_input_dir(config.input_dir):
        corpus = open_corpus(prefix)
        cache_dir = Path(config.data_cache or os.path.join(os.path.dirname(prefix) or ".", "index-cache"))
        for split, (first, stop) in enumerate(split_bounds(config.split, corpus.n_documents)):
            order = SampleOrder(corpus, first, stop, seq_length=seq_length, seed=seed, split=split, cache_dir=cache_dir)
            layouts[split].append((weight, order))
    return layouts


def _usable(layout: Weighted, name: str, config: RunConfig, seq_length: int) -> tuple[list[SampleOrder], list[float]]:
    """Orders and weights of one split. Corpora of a folder weigh what they hold, and may hold nothing for a small split."""
    weighted = layout[0][0] is not None
    filled = [(w, order) for w, order in layout if order.samples_per_epoch]
    if not filled or (weighted and len(filled) < len(layout)):
        short = next(order for _, order in layout if not order.samples_per_epoch)
        raise UserError(
            f"--split {config.split}: the {name} part of {short.corpus.prefix} has {short.stop - short.first} of "
            f"{short.corpus.n_documents} documents, {short.n_tokens} tokens; one sample of --max_seq_length {seq_length} "
            f"needs {seq_length + 1}. Give {name} a larger share, use more text, or a shorter sequence."
        )
    return [order for _, order in filled], [float(order.samples_per_epoch) if w is None else w for w, order in filled]


def _check_and_build(
    config: RunConfig, layout: Weighted, datasets: list[PretrainDataset | None], vocab_size: int, eos_id: int | None
) -> None:
    tokenizer = config.tokenizer_name_or_path or config.model_name_or_path
    fingerprint = find_fingerprint(tokenizer)
    if fingerprint is None and any("tokenizer_fingerprint" in order.corpus.meta for _, order in layout):
        say(f"data: not compared with the tokenizer of the corpus: {tokenizer} is no folder with a tokenizer")
    if len(layout) > 1 and layout[0][0] is None:
        say(f"data: {len(layout)} corpora in {config.input_dir}, drawn from in proportion to their size")
    for _, order in layout:
        verify_index(order.corpus)
        check_corpus(
            order.corpus, vocab_size=vocab_size, eos_id=eos_id, fingerprint=fingerprint, cache_dir=order.cache_dir
        )
        say(f"data: {order.corpus.prefix}: {order.corpus.n_documents} documents, {order.corpus.n_tokens} tokens")
    for name, dataset in zip(SPLIT_NAMES, datasets, strict=True):
        if dataset is not None:
            dataset.prepare()
            say(f"data: {name}: {len(dataset)} samples, {dataset.samples_per_epoch} in an epoch")


def _on_first_rank(build: Callable[[], None]) -> None:
    """Other ranks of a job wait; in one process no process group is needed, nor paddle."""
    if int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) > 1:
        from paddle_llm.parallel.process.first_rank import on_first_rank

        on_first_rank(build)
    else:
        build()
