"""Samples, packed rows and batches: complete, with correct positions and segments, deterministic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paddle_llm.core.artifacts import IGNORE_INDEX
from paddle_llm.core.errors import UserError
from paddle_llm.data.chat.templates import TEMPLATES
from paddle_llm.data.collate import PadAndStack
from paddle_llm.data.epochs import ShuffledEpochs
from paddle_llm.data.instructions.conversation import Conversation, Turn
from paddle_llm.data.samples.dataset import InstructionDataset, PackedDataset
from paddle_llm.data.samples.encode import InstructionEncoder
from paddle_llm.data.samples.encoded_samples import EncodedSamples, encode_all
from paddle_llm.data.tokenizers.text_codec import open_codec
from paddle_llm.models.chatglm_pretrain import ChatGLMPretrainTransform
from tests.helpers.chat_tokenizers import chatglm_folder
from tests.helpers.corpus import english_and_chinese


def talks(count: int) -> list[Conversation]:
    texts = english_and_chinese(2 * count)
    return [
        Conversation(
            (Turn("user", texts[2 * i][:80]), Turn("assistant", texts[2 * i + 1][:200])), where=f"f, line {i + 1}"
        )
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def encoder(tokenizer_folder: str) -> InstructionEncoder:
    return InstructionEncoder(open_codec(tokenizer_folder), TEMPLATES["default"], max_length=129)


@pytest.fixture(scope="module")
def samples(encoder: InstructionEncoder) -> EncodedSamples:
    return encode_all(talks(60), encoder)


def test_lazy_and_cached_datasets_are_equal(encoder: InstructionEncoder, samples: EncodedSamples) -> None:
    cached, lazy = InstructionDataset(samples), InstructionDataset(talks(60), encoder)
    assert len(cached) == len(lazy) == 60
    for i in (0, 17, 59, 17):
        assert all((cached[i][name] == lazy[i][name]).all() for name in ("input_ids", "labels"))
        assert cached[i]["input_ids"].dtype == np.int64
        assert cached.sample_ids(i) == lazy.sample_ids(i) == f"f, line {i + 1}"
    with pytest.raises(IndexError, match="sample 60 of 60"):
        cached[60]
    epochs = ShuffledEpochs(cached, 150, seed=1)
    assert sorted(len(epochs[i]["labels"]) for i in range(60)) == sorted(samples.lengths)


def test_packed_rows_contain_every_sample_once_and_restart_positions(samples: EncodedSamples) -> None:
    packed, plain = PackedDataset(samples, 256, seed=5), InstructionDataset(samples)
    seen = []
    for i in range(len(packed)):
        row = packed[i]
        assert row["segment_lengths"].sum() == len(row["input_ids"]) == len(row["position_ids"]) <= 256
        ends = np.cumsum(row["segment_lengths"])
        places = packed.sample_ids(i).split(" + ")
        assert len(places) == len(ends)
        for place, begin, end in zip(places, ends - row["segment_lengths"], ends, strict=True):
            item = plain[int(place.rsplit(" ", 1)[1]) - 1]
            assert (row["input_ids"][begin:end] == item["input_ids"]).all()
            assert (row["labels"][begin:end] == item["labels"]).all()
            assert row["position_ids"][begin:end].tolist() == list(range(end - begin))
            seen.append(place)
    assert sorted(seen) == sorted(samples.origins)
    again = PackedDataset(samples, 256, seed=5)
    assert [again.sample_ids(i) for i in range(len(again))] == [packed.sample_ids(i) for i in range(len(packed))]
    assert [again.sample_ids(i) for i in range(len(again))] != [
        PackedDataset(samples, 256, 6).sample_ids(i) for i in range(len(packed))
    ]
    share = 1 - samples.lengths.sum() / (256 * len(packed))
    assert (
        f"60 samples of up to {samples.lengths.max()} tokens in {len(packed)} rows of 256; padding {100 * share:.2f}%"
        in packed.describe()
    )
    with pytest.raises(UserError, match="packing: f, line .* tokens, more than a row of 32"):
        PackedDataset(samples, 32, seed=0)


def test_batches_are_padded_on_the_right(samples: EncodedSamples) -> None:
    plain, packed = InstructionDataset(samples), PackedDataset(samples, 256, seed=5)
    items = [plain[i] for i in range(3)]
    longest = max(len(item["labels"]) for item in items)
    for collate, width in (
        (PadAndStack(3), longest), (PadAndStack(3, length=140), 140), (PadAndStack(3, multiple_of=64), -(-longest // 64) * 64),
    ):  # fmt: skip
        batch = collate(items)
        assert batch["input_ids"].shape == batch["labels"].shape == (3, width)
        for row, item in enumerate(items):
            size = len(item["input_ids"])
            assert (batch["input_ids"][row, :size] == item["input_ids"]).all() and (
                batch["input_ids"][row, size:] == 3
            ).all()
            assert (batch["labels"][row, :size] == item["labels"]).all() and (
                batch["labels"][row, size:] == IGNORE_INDEX
            ).all()
    rows = [packed[i] for i in range(4)]
    batch = PadAndStack(3, length=256)(rows)
    assert batch["position_ids"].shape == (4, 256) and batch["position_ids"].max() < 256
    assert batch["segment_lengths"].shape == (4, max(len(row["segment_lengths"]) for row in rows))
    assert batch["segment_lengths"].sum(1).tolist() == [len(row["input_ids"]) for row in rows]
    with pytest.raises(ValueError, match="does not fit into rows of 16 tokens"):
        PadAndStack(3, length=16)(items)


def test_chatglm_6b_samples_have_a_prefix_and_2d_positions(tmp_path: Path) -> None:
    codec = open_codec(chatglm_folder(tmp_path / "glm"))
    encoder = InstructionEncoder(codec, TEMPLATES["chatglm"], max_length=129)
    samples = encode_all(talks(4), encoder)
    item = InstructionDataset(samples)[0]
    size, prefix = len(item["input_ids"]), int(item["attention_mask"][0])
    gmask, sop = codec.prefix_lm
    assert item["input_ids"][prefix - 1 : prefix + 1].tolist() == [gmask, sop]
    assert (item["labels"][:prefix] == IGNORE_INDEX).all() and (item["labels"][prefix:] != IGNORE_INDEX).all()
    # The same context and continuation as in pretraining.
    transform = ChatGLMPretrainTransform(gmask, sop)
    window = np.concatenate([item["input_ids"][: prefix - 1], item["input_ids"][prefix + 1 :], [5, 5, 5]])
    expected = next(m for i in range(400) if (m := transform(np.append(window[:-1], i)))["attention_mask"][0] == prefix)
    assert (expected["position_ids"][:, :size] == item["position_ids"]).all()
    # The same as by PaddleNLP's own tokenizer when it pads.
    theirs = codec.tokenizer.pad({"input_ids": [item["input_ids"].tolist()]}, padding="max_length", max_length=size)
    assert np.array(theirs["position_ids"][0]).tolist() == item["position_ids"].tolist()
    assert np.array(theirs["attention_mask"][0])[0, 0].sum() == prefix
    batch = PadAndStack(0)([InstructionDataset(samples)[i] for i in range(4)])
    assert batch["position_ids"].shape[:2] == (4, 2) and batch["attention_mask"].shape == (4, 1)
    row = PackedDataset(samples, 512, seed=0)[0]
    assert row["position_ids"].shape == (2, len(row["input_ids"])) and len(row["prefix_lengths"]) == len(
        row["segment_lengths"]
    )
