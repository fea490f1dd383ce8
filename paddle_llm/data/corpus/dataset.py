"""Pretraining datasets over .bin/.idx corpora: train, valid and test, each with one global order of samples.

Does not import Paddle.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from paddle_llm.config.run_config import RunConfig
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.data.corpus.blend import Blend, parse_input_dir, split_bounds
from paddle_llm.data.corpus.cache_key import data_key
from paddle_llm.data.corpus.checks import check_corpus, verify_index
from paddle_llm.data.corpus.indexed import open_corpus
from paddle_llm.data.corpus.order import Origin, SampleOrder
from paddle_llm.data.identity import DataIdentity
from paddle_llm.data.tokenizer import find_fingerprint

SPLIT_NAMES = ("train", "valid", "test")
T = TypeVar("T")
Transform = Callable[[np.ndarray], dict[str, np.ndarray]]


class PretrainDataset:
    """A map-style dataset over the global order of one split of a blend of corpora.

    Item i is a dict of int64 arrays: `input_ids` [S] and `labels` [S], where labels[t] is the token after input_ids[t]
    (PaddleNLP's models do not shift labels). With a `transform`, item i is its result for the S + 1 tokens.

    Item i depends on the content of the corpora, the split, the seed, S and the weights. It does not depend on the
    length, the layout, or the rank that reads it. After one epoch the next one follows, in another order.

    Attributes:
        samples_per_epoch: Number of samples of all corpora of the split, each counted once.
    """

    def __init__(
        self, orders: list[SampleOrder], weights: list[float], length: int, transform: Transform | None = None
    ) -> None:
        self._orders, self._blend, self._length, self._transform = orders, Blend(weights), length, transform
        self._contents: list[tuple[str, str]] | None = None
        self.samples_per_epoch = sum(order.samples_per_epoch for order in orders)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        tokens_S1 = self.tokens(index)
        if self._transform is not None:
            return self._transform(tokens_S1)
        return {"input_ids": tokens_S1[:-1].copy(), "labels": tokens_S1[1:].copy()}

    def tokens(self, index: int) -> np.ndarray:
        """Return the S + 1 tokens of item `index`, int64."""
        order, position = self._locate(index)
        return order.tokens(position)

    def sample_ids(self, index: int) -> Origin:
        """Return the origin of item `index`; its `str` is readable: corpus, epoch, sample, documents."""
        order, position = self._locate(index)
        return order.origin(position)

    def contents(self) -> list[tuple[str, str]]:
        """Return the digests of the tokens and the index of each corpus. One rank calls this: it may read the files."""
        return [order.content_digests() for order in self._orders]

    def set_contents(self, contents: list[tuple[str, str]]) -> None:
        """Set what `contents` returned on one rank."""
        self._contents = contents

    def identity(self) -> DataIdentity:
        """Return digests of the corpora's whole content, their splits, weights and order."""
        contents = self.contents() if self._contents is None else self._contents
        corpora = [
            {"tokens": tokens, "index": index, "documents": [order.first, order.stop], "share": float(share)}
            for (tokens, index), order, share in zip(contents, self._orders, self._blend.shares, strict=True)
        ]
        first = self._orders[0]
        parts = {"corpora": corpora, "tokens per sample": first.seq_length, "seed of the order": first.seed}
        return DataIdentity(parts, lambda number: self._orders[number].corpus.prefix)

    def digest(self) -> str:
        """Return a hash of blocks of each file, splits and weights, as checkpoints without an identity of all data have it."""
        found = hashlib.sha256(repr(list(self._blend.shares)).encode())
        for order in self._orders:
            paths = (order.corpus.data_path, order.corpus.index_path)
            keys = (data_key(path) for path in paths if path.is_file())
            found.update(f"{order.first} {order.stop} {' '.join(keys)}\n".encode())
        return found.hexdigest()

    def prepare(self) -> None:
        """Build the sample orders of this length that are too large to compute on demand. One rank calls this."""
        for order, count in zip(self._orders, self._blend.counts(self._length), strict=True):
            order.prepare(-(-count // order.samples_per_epoch))

    def _locate(self, index: int) -> tuple[SampleOrder, int]:
        if not 0 <= index < self._length:
            raise IndexError(f"sample {index} of {self._length}")
        corpus, position = self._blend.locate(int(index))
        return self._orders[corpus], position


@dataclass(frozen=True)
class Splits:
    """The three datasets; None if no sample was requested."""

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
    """Open and check the corpora of `config.input_dir` and order their samples.

    Every rank of a job calls this. The first rank checks and builds; the others wait for it.

    Args:
        config: Configuration of the run.
        train_samples: Length of the train dataset; may span several epochs.
        eval_samples: Requested length of valid, limited to one epoch, since evaluating a sample twice adds nothing. 0
            omits the dataset.
        predict_samples: The same for test.
        seq_length: S, tokens per sample that the model sees.
        eos_id: EOS id of the tokenizer, compared with that of the corpus; None skips the comparison.
        vocab_size: Rows of the model's embedding; all ids of the corpora must be smaller.
        transform: Function from S + 1 tokens (int64) to a sample; None gives inputs and shifted labels.

    Raises:
        UserError: If a corpus is missing, broken or of another tokenizer, or a split is too small for one sample.
    """
    requested = (train_samples, eval_samples, predict_samples)
    splits = _open_splits(config, seq_length)
    datasets: list[PretrainDataset | None] = []
    for split, (name, samples) in enumerate(zip(SPLIT_NAMES, requested, strict=True)):
        if samples <= 0:
            datasets.append(None)
            continue
        orders, weights = _nonempty_orders(splits[split], name, config, seq_length)
        one_epoch = sum(order.samples_per_epoch for order in orders)
        length = samples if name == "train" else min(samples, one_epoch)
        datasets.append(PretrainDataset(orders, weights, length, transform))
    contents = _on_first_rank(lambda: _check_and_build(config, splits[0], datasets, vocab_size, eos_id))
    if datasets[0] is not None:
        datasets[0].set_contents(contents)
    return Splits(*datasets)


def samples_per_epoch(config: RunConfig, seq_length: int) -> int:
    """Return the number of samples of `seq_length` tokens in one epoch of the train split; reads only file headers.

    Raises:
        UserError: As in `build_pretrain_datasets`.
    """
    orders, _ = _nonempty_orders(_open_splits(config, seq_length)[0], "train", config, seq_length)
    return sum(order.samples_per_epoch for order in orders)


def training_samples(config: RunConfig, global_batch: int) -> int:
    """Return the number of samples of the whole training, a multiple of `global_batch`.

    It follows from --max_steps, or else from --num_train_epochs.

    Raises:
        UserError: If the epochs have fewer samples than one global batch; and as in `build_pretrain_datasets`.
    """
    if config.max_steps > 0:
        return config.max_steps * global_batch
    available = int(config.num_train_epochs * samples_per_epoch(config, config.max_seq_length))
    if available < global_batch:
        raise UserError(
            f"--num_train_epochs {config.num_train_epochs:g}: {available} samples of {config.max_seq_length} tokens are "
            f"fewer than one global batch of {global_batch}. Use --max_steps, more text, or a smaller batch."
        )
    return available // global_batch * global_batch


WeightedOrders = list[tuple["float | None", SampleOrder]]


def _open_splits(config: RunConfig, seq_length: int) -> list[WeightedOrders]:
    """Open all corpora; return their (weight, order) pairs for train, valid and test."""
    if not config.input_dir:
        raise UserError("--input_dir is not set. Set it to a folder of corpora, a prefix, or a weighted blend.")
    seed = config.seed if config.data_seed is None else config.data_seed
    splits: list[WeightedOrders] = [[], [], []]
    for weight, prefix in parse_input_dir(config.input_dir):
        corpus = open_corpus(prefix)
        cache_dir = Path(config.data_cache or os.path.join(os.path.dirname(prefix) or ".", "index-cache"))
        for split, (first, stop) in enumerate(split_bounds(config.split, corpus.n_documents)):
            order = SampleOrder(corpus, first, stop, seq_length=seq_length, seed=seed, split=split, cache_dir=cache_dir)
            splits[split].append((weight, order))
    return splits


def _nonempty_orders(
    weighted_orders: WeightedOrders, name: str, config: RunConfig, seq_length: int
) -> tuple[list[SampleOrder], list[float]]:
    """Return the orders and weights of one split.

    Corpora of a folder are weighted by their number of samples, and some of them may have none in a small split.
    """
    weighted = weighted_orders[0][0] is not None
    filled = [(w, order) for w, order in weighted_orders if order.samples_per_epoch]
    if not filled or (weighted and len(filled) < len(weighted_orders)):
        short = next(order for _, order in weighted_orders if not order.samples_per_epoch)
        raise UserError(
            f"--split {config.split}: the {name} part of {short.corpus.prefix} is too small: {short.stop - short.first} of "
            f"{short.corpus.n_documents} documents, {short.n_tokens} tokens; one sample of --max_seq_length {seq_length} "
            f"needs {seq_length + 1}. Give {name} a larger share, or use more text or a shorter sequence."
        )
    return [order for _, order in filled], [float(order.samples_per_epoch) if w is None else w for w, order in filled]


def _check_and_build(
    config: RunConfig,
    weighted_orders: WeightedOrders,
    datasets: list[PretrainDataset | None],
    vocab_size: int,
    eos_id: int | None,
) -> list[tuple[str, str]]:
    """Check the corpora, build large orders, and return the digests of the content of the training data."""
    tokenizer = config.tokenizer_name_or_path or config.model_name_or_path
    fingerprint = find_fingerprint(tokenizer)
    if fingerprint is None and any("tokenizer_fingerprint" in order.corpus.meta for _, order in weighted_orders):
        say(f"data: the tokenizer is not compared with that of the corpus: {tokenizer} is not a local tokenizer folder")
    if len(weighted_orders) > 1 and weighted_orders[0][0] is None:
        say(f"data: {len(weighted_orders)} corpora in {config.input_dir}, sampled in proportion to their size")
    for _, order in weighted_orders:
        verify_index(order.corpus)
        check_corpus(
            order.corpus, vocab_size=vocab_size, eos_id=eos_id, fingerprint=fingerprint, cache_dir=order.cache_dir
        )
        say(f"data: {order.corpus.prefix}: {order.corpus.n_documents} documents, {order.corpus.n_tokens} tokens")
    for name, dataset in zip(SPLIT_NAMES, datasets, strict=True):
        if dataset is not None:
            dataset.prepare()
            say(f"data: {name}: {len(dataset)} samples, {dataset.samples_per_epoch} per epoch")
    return [] if datasets[0] is None else datasets[0].contents()


def _on_first_rank(build: Callable[[], T]) -> T:
    """Run `build` on the first rank while the others wait. One process needs neither a process group nor Paddle."""
    if int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) > 1:
        from paddle_llm.parallel.process.first_rank import on_first_rank

        return on_first_rank(build)
    return build()
