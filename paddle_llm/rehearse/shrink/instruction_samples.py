"""The samples of a rehearsal of fine-tuning: shortened instructions of the config, or random ones.

Instructions are encoded as in the real run, with its tokenizer, template, lengths and checks. Then the prompt and the
answer of each are shortened in proportion, so that their lengths stay unequal, and the ids are mapped to the small
vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from paddle_llm.config.reader import Resolved
from paddle_llm.config.run_config import RunConfig
from paddle_llm.core.artifacts import IGNORE_INDEX
from paddle_llm.core.errors import ConfigError, UserError
from paddle_llm.data.samples.dataset import InstructionDataset, PackedDataset
from paddle_llm.data.samples.encode import EncodedSample
from paddle_llm.data.samples.encoded_samples import EncodedSamples, EncodingReport, encode_all
from paddle_llm.data.tokenizers.text_codec import open_codec
from paddle_llm.families import FAMILIES
from paddle_llm.rehearse.case import Sample
from paddle_llm.rehearse.shrink.samples import USE_SYNTHETIC, SampleCounts, Samples, checked_tokenizer
from paddle_llm.rehearse.shrink.small_model import SmallModel


def synthetic_instructions(model: SmallModel, small: RunConfig, counts: SampleCounts) -> Samples:
    """Return samples of random prompts without loss and random answers with loss, of all lengths that fit.

    Args:
        model: Small model.
        small: Config of a sub-layout.
        counts: Numbers of samples.
    """
    draw = np.random.default_rng(small.seed)
    longest = small.max_length - 1
    has_prefix = FAMILIES[model.facts.model_type].network.bidirectional_prefix

    def encoded(count: int) -> Iterator[EncodedSample]:
        for _ in range(count):
            prompt = int(draw.integers(2, longest // 2 + 1))
            answer = int(draw.integers(1, longest - prompt + 1))
            tokens = draw.choice(model.vocabulary_map.ordinary_ids, prompt + answer + 1).astype(np.int32)
            labels = np.where(np.arange(len(tokens)) < prompt, IGNORE_INDEX, tokens)[1:].astype(np.int32)
            yield EncodedSample(tokens[:-1], labels, prompt - 1 if has_prefix else 0)

    return _samples(small, counts, list(encoded(counts.train)), list(encoded(counts.evaluation)))


def own_instructions(real: Resolved, model: SmallModel, small: RunConfig, counts: SampleCounts) -> Samples:
    """Return the first instructions of the config's files.

    Args:
        real: Config of the cluster.
        model: Small model.
        small: Config of a sub-layout.
        counts: Numbers of samples.

    Raises:
        ConfigError: If tokenizer, template or instructions cannot be used.
    """
    try:
        splits = _read(real, counts)
    except UserError as error:
        raise ConfigError([f"{error}\n     {USE_SYNTHETIC}"]) from error
    longest = max(len(sample.input_ids) for part in splits for sample in part)
    scale = min((small.max_length - 1) / longest, 1.0)
    train, evaluation = ([_shortened(sample, scale, model) for sample in part] for part in splits)
    return _samples(small, counts, train, evaluation)


def _read(real: Resolved, counts: SampleCounts) -> tuple[list[EncodedSample], list[EncodedSample]]:
    # This module imports Paddle.
    from paddle_llm.training.instruction_splits import make_encoder, read_conversations

    config = real.config
    codec = open_codec(checked_tokenizer(real))
    encoder = make_encoder(config, codec, config.tokenizer_name_or_path or config.model_name_or_path)
    found: list[list[EncodedSample]] = []
    for split, count in (("train", counts.train), ("dev", counts.evaluation)):
        conversations = read_conversations(config, split)[:count] if count else []
        samples: list[EncodedSample] = []
        if conversations:
            encoded = encode_all(conversations, encoder, skip_untrainable=config.skip_bad_rows)
            samples = [encoded[i] for i in range(len(encoded))]
        found.append(samples)
    return found[0], found[1]


def _shortened(sample: EncodedSample, scale: float, model: SmallModel) -> EncodedSample:
    """Return the end of the prompt and the beginning of what follows, each shortened by the same factor.

    Args:
        sample: Encoded sample.
        scale: Share of both lengths to keep, 0 to 1.
        model: Small model.
    """
    first = int(np.argmax(sample.labels != IGNORE_INDEX))  # the token before the first answer
    prompt = max(round(first * scale), 1 if sample.prefix else 0)
    rest = max(int((len(sample.input_ids) - first) * scale), 1)
    part = slice(first - prompt, first + rest)
    labels = sample.labels[part].copy()
    trained = labels != IGNORE_INDEX
    labels[trained] = model.vocabulary_map(labels[trained].astype(np.int64))
    ids = model.vocabulary_map(sample.input_ids[part].astype(np.int64)).astype(np.int32)
    return EncodedSample(ids, labels, prompt if sample.prefix else 0)


def _samples(
    small: RunConfig, counts: SampleCounts, train: list[EncodedSample], evaluation: list[EncodedSample]
) -> Samples:
    return Samples(
        _rows(train, counts.train, small.max_seq_length if small.zero_padding else None, small.seed),
        _rows(evaluation, counts.evaluation, None, small.seed),
    )


def _rows(samples: list[EncodedSample], count: int, packed: int | None, seed: int) -> list[Sample]:
    """Return `count` items of a data set, repeated if there are fewer.

    Args:
        samples: Encoded samples.
        count: Number of items.
        packed: Length of packed rows; None for one sample per item.
        seed: Seed of the packing.
    """
    if not count:
        return []
    encoded = EncodedSamples(((sample, f"sample {i}") for i, sample in enumerate(samples)), EncodingReport())
    items = InstructionDataset(encoded) if packed is None else PackedDataset(encoded, packed, seed)
    return [items[i % len(items)] for i in range(count)]
