"""The samples of a rehearsal of pretraining: from the corpus of the config, or random tokens.

The corpus is read as in the real run, with the real length of samples, and token ids are checked with the real
vocabulary. Then each sample is cut to the small length, and its ids are mapped to the small vocabulary. No file is
written beside the corpus.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from paddle_llm.config.reader import Resolved
from paddle_llm.core.errors import ConfigError, UserError
from paddle_llm.data.corpus.dataset import build_pretrain_datasets, training_samples
from paddle_llm.data.tokenizer import load_tokenizer
from paddle_llm.data.tokenizers.protocol import Tokenizer
from paddle_llm.models.chatglm_pretrain import chatglm_transform, pretrains_prefix, sample_transform
from paddle_llm.rehearse.case import Sample
from paddle_llm.rehearse.shrink.small_model import SmallModel

USE_SYNTHETIC = "--synthetic rehearses the layout without data and tokenizer."
T = TypeVar("T")


@dataclass(frozen=True)
class SampleCounts:
    """Numbers of samples that a rehearsal needs.

    Attributes:
        train: Training samples.
        evaluation: Evaluation samples, at most.
    """

    train: int
    evaluation: int


@dataclass(frozen=True)
class Samples:
    """Samples in the trainer's global order.

    Attributes:
        train: Training samples.
        evaluation: Evaluation samples.
    """

    train: list[Sample]
    evaluation: list[Sample]


def sample_counts(configs: list[Resolved]) -> SampleCounts:
    """Return the numbers for the largest sub-layout, with half an evaluation batch more: the last batch is uneven."""
    train = max(one.config.max_steps * global_batch(one) for one in configs)
    batches = [one.config.per_device_eval_batch_size * one.layout.data_world_size for one in configs]
    evaluates = any(one.config.do_eval for one in configs)
    return SampleCounts(train, max(batches) + max(batches) // 2 + 1 if evaluates else 0)


def global_batch(resolved: Resolved) -> int:
    """Return the samples per optimizer step, over all ranks."""
    config = resolved.config
    return config.per_device_train_batch_size * config.gradient_accumulation_steps * resolved.layout.data_world_size


def synthetic_samples(model: SmallModel, counts: SampleCounts, seed: int) -> Samples:
    """Return samples of random tokens that are not special.

    Args:
        model: Small model.
        counts: Numbers of samples.
        seed: Seed of the tokens.
    """
    draw = np.random.default_rng(seed)
    count = counts.train + counts.evaluation
    windows = draw.choice(model.vocabulary_map.ordinary_ids, (count, model.sequence + 1))
    return _samples(model, list(windows[: counts.train]), list(windows[counts.train :]))


def own_samples(real: Resolved, model: SmallModel, counts: SampleCounts) -> Samples:
    """Return the first samples of the config's corpus.

    Args:
        real: Config of the cluster.
        model: Small model.
        counts: Numbers of samples.

    Raises:
        ConfigError: If the tokenizer or the corpus cannot be used; the message lists both.
    """
    problems: list[str] = []
    tokenizer = _attempt(lambda: checked_tokenizer(real), problems)
    windows = _attempt(lambda: _read_windows(real, counts, tokenizer), problems)
    if problems:
        raise ConfigError([*dict.fromkeys(problems[:-1]), f"{problems[-1]}\n     {USE_SYNTHETIC}"])
    assert windows is not None
    train, evaluation = ([model.vocabulary_map(window[: model.sequence + 1]) for window in part] for part in windows)
    return _samples(model, train, evaluation)


def _attempt(read: Callable[[], T], problems: list[str]) -> T | None:
    """Return the result of a function, or None if it raises a UserError, which is added to the problems."""
    try:
        return read()
    except UserError as error:
        problems.append(str(error))
        return None


def checked_tokenizer(real: Resolved) -> Tokenizer:
    """Return the config's tokenizer.

    Raises:
        UserError: If it cannot be loaded, or an id is not a row of the model's embedding.
    """
    assert real.facts is not None
    name = real.config.tokenizer_name_or_path or real.config.model_name_or_path
    tokenizer, rows = load_tokenizer(name), real.facts.vocab_size
    largest = max(tokenizer.vocab_size - 1, tokenizer.eos_token_id or 0)
    if largest >= rows:
        raise UserError(
            f"tokenizer {name}: its largest id is {largest}, but the vocabulary of the model has {rows} ids (0 to {rows - 1}). "
            "Use the model's own tokenizer or a config.json with a larger vocab_size."
        )
    return tokenizer


def _read_windows(
    real: Resolved, counts: SampleCounts, tokenizer: Tokenizer | None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return sequences of max_seq_length + 1 tokens, checked as in a training."""
    assert real.facts is not None
    with tempfile.TemporaryDirectory(prefix="rehearse-index-") as cache:
        config = real.config.model_copy(update={"data_cache": cache})
        training_samples(config, global_batch(real))  # checks that the epochs contain a batch
        splits = build_pretrain_datasets(
            config,
            train_samples=counts.train,
            eval_samples=counts.evaluation,
            predict_samples=1 if config.do_predict else 0,
            seq_length=config.max_seq_length,
            eos_id=tokenizer.eos_token_id if tokenizer is not None else None,
            vocab_size=real.facts.vocab_size,
        )
        parts = [[part.tokens(i) for i in range(len(part))] if part else [] for part in (splits.train, splits.valid)]
    for part, dataset in zip(parts, (splits.train, splits.valid), strict=True):
        for index, window in enumerate(part):
            assert dataset is not None
            if not 0 <= window.min() <= window.max() < real.facts.vocab_size:
                raise UserError(
                    f"{dataset.sample_ids(index)} contains the token id {window.max()}, but the vocabulary of the model has "
                    f"{real.facts.vocab_size} ids. Build the corpus again with the model's own tokenizer."
                )
    _check_special_tokens(real, tokenizer)
    return parts[0], parts[1]


def _check_special_tokens(real: Resolved, tokenizer: Tokenizer | None) -> None:
    """Raise UserError if the tokenizer lacks a special token of the family's samples (ChatGLM)."""
    if real.facts is not None and pretrains_prefix(real.facts):
        chatglm_transform(real.facts, tokenizer)


def _samples(model: SmallModel, train: list[np.ndarray], evaluation: list[np.ndarray]) -> Samples:
    """Return samples in the form of the model's family.

    Args:
        model: Small model.
        train: Training sequences of `model.sequence` + 1 ids of the small vocabulary.
        evaluation: Evaluation sequences of the same form.
    """
    to_sample = sample_transform(model.facts) or _next_token_sample
    return Samples([to_sample(window) for window in train], [to_sample(window) for window in evaluation])


def _next_token_sample(window: np.ndarray) -> Sample:
    return {"input_ids": window[:-1].copy(), "labels": window[1:].copy()}
