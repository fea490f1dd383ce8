"""The identity of a training's data: what is compared when it resumes, and how a difference is named."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from paddle_llm.checkpoint.identity import RunIdentity, check_identity, has_old_data
from paddle_llm.core.errors import UserError
from paddle_llm.data.epochs import ShuffledEpochs
from paddle_llm.data.identity import DataIdentity, block_size
from paddle_llm.data.samples.dataset import InstructionDataset, PackedDataset
from paddle_llm.data.samples.encode import EncodedSample
from paddle_llm.data.samples.encoded_samples import EncodedSamples, EncodingReport
from tests.helpers.checkpoints import write_checkpoint

MODEL = {"hidden_size": 8}


def samples(count: int = 100, **changed) -> EncodedSamples:
    """Return samples of 3 tokens; `changed` has the number of a sample whose last token id or label is another."""
    found = []
    for number in range(count):
        ids = np.array([number, 5, 6 + (number == changed.get("ids"))], np.int32)
        labels = np.array([-100, 6, 7 + (number == changed.get("labels"))], np.int32)
        found.append((EncodedSample(ids, labels), f"rows.jsonl:{number + 1}"))
    return EncodedSamples(found, EncodingReport())


def saved(folder, data: DataIdentity, **further) -> RunIdentity:
    """Write a checkpoint of a job and return the job's identity."""
    found = RunIdentity(MODEL, data, further=further)
    write_checkpoint(folder, identity=json.loads(json.dumps(found.as_json())))
    return found


def refused(folder, data: DataIdentity, changed=()) -> str:
    with pytest.raises(UserError, match="was saved with different data: ") as error:
        check_identity(folder, RunIdentity(MODEL, data), changed)
    return str(error.value).split("different data: ")[1].split(". The run would")[0]


def test_every_sample_belongs_to_the_identity(tmp_path):
    data = InstructionDataset(samples()).identity()
    assert data is not None and check_identity(tmp_path, saved(tmp_path, data)) == []
    for number in range(100):  # blocks of two
        where = f"of samples {number // 2 * 2} to {number // 2 * 2 + 1} (rows.jsonl:{number // 2 * 2 + 1})"
        assert refused(tmp_path, samples(ids=number).identity()) == f"token ids {where}"
        assert refused(tmp_path, samples(labels=number).identity()) == f"labels {where}"


def test_a_difference_is_named(tmp_path):
    saved(tmp_path, samples(20).identity())
    assert refused(tmp_path, samples(20, ids=19).identity()) == "token ids of sample 19 (rows.jsonl:20)"
    assert refused(tmp_path, samples(20, ids=3, labels=7).identity()) == (
        "token ids and labels of sample 3 (rows.jsonl:4) and others"
    )
    assert refused(tmp_path, samples(21).identity()) == "20 samples -> 21; token ids and labels"
    assert refused(tmp_path, PackedDataset(samples(20), 8, seed=1).identity()) == "packed rows"
    named = refused(tmp_path, samples(20, ids=19).identity(), ["chat_template auto -> alpaca"])
    assert named.startswith("chat_template auto -> alpaca; token ids of")


def test_packing_and_the_seeds_of_orders_belong_to_the_identity(tmp_path):
    saved(tmp_path, PackedDataset(samples(20), 9, seed=1).identity())
    for other in (PackedDataset(samples(20), 9, seed=2), PackedDataset(samples(20), 12, seed=1)):
        assert refused(tmp_path, other.identity()) == "packed rows"
    assert "token ids" in refused(tmp_path, PackedDataset(samples(20, ids=19), 9, seed=1).identity())
    shuffled = tmp_path / "shuffled"
    saved(shuffled, ShuffledEpochs(InstructionDataset(samples(20)), 50, seed=1).identity())
    check_identity(shuffled, RunIdentity(MODEL, ShuffledEpochs(InstructionDataset(samples(20)), 90, seed=1).identity()))
    other = ShuffledEpochs(InstructionDataset(samples(20)), 50, seed=2)
    assert refused(shuffled, other.identity()) == "seed of the order"


def test_the_tokenizer_and_the_corpora_are_named(tmp_path):
    corpus = {"tokens": "a", "index": "b", "documents": [0, 9], "share": 1 / 3}
    data = DataIdentity({"tokenizer": "1a", "corpora": [corpus, corpus]}, ["first", "second"].__getitem__)
    assert check_identity(tmp_path, saved(tmp_path, data)) == []
    other = replace(
        data, parts={"tokenizer": "2b", "corpora": [corpus, {**corpus, "tokens": "c", "documents": [0, 8]}]}
    )
    expected = "the tokenizer (1a -> 2b); tokens and documents of the corpus second"
    assert refused(tmp_path, other) == expected
    assert refused(tmp_path, replace(data, parts={**data.parts, "corpora": [corpus]})) == "2 corpora -> 1"


def test_a_part_that_was_added_later_is_not_compared(tmp_path):
    data = samples(20).identity()
    saved(tmp_path, data)
    check_identity(tmp_path, RunIdentity(MODEL, replace(data, parts={**data.parts, "tokenizer": "1a"})))


def test_method_and_base_are_compared(tmp_path):
    data = samples(2).identity()
    mine = saved(tmp_path, data, method={"name": "lora", "rank": 8}, base="x")
    with pytest.raises(UserError, match="different fine-tuning method: rank 8 -> 4"):
        check_identity(tmp_path, replace(mine, further={"method": {"name": "lora", "rank": 4}, "base": "x"}))
    with pytest.raises(UserError, match="different base model"):
        check_identity(tmp_path, replace(mine, further={**mine.further, "base": "y"}))


@pytest.mark.parametrize("count", [1, 64, 65, 1000, 4097, 10**6])
def test_there_are_at_most_64_blocks(count):
    assert 1 <= -(-count // block_size(count)) <= 64


# ---- checkpoints without an identity of all data


def old(folder, **identity):
    write_checkpoint(folder, identity={"model": MODEL, **identity})
    return lambda **data: check_identity(folder, RunIdentity(MODEL, DataIdentity({}), data), ["chat_template a -> b"])


def test_an_old_identity_is_compared_as_it_was_and_reported(tmp_path):
    check = old(tmp_path, data="two", samples=["a", "b"], rows="all")
    assert has_old_data(tmp_path)
    (line,) = check(data="four", samples=["a", "b", "c", "d"], rows="all")  # of a longer training
    assert "digests of a part of its data only, which are the same" in line
    for other in ({"samples": ["a", "c", "b", "d"], "rows": "all"}, {"samples": ["a", "b"], "rows": "others"}):
        with pytest.raises(UserError, match="saved with different data: chat_template a -> b"):
            check(data="four", **other)


def test_the_oldest_identity_is_one_digest(tmp_path):
    check = old(tmp_path, data="first")
    assert len(check(data="first", samples=["a"], rows="any")) == 1
    with pytest.raises(UserError, match="different data"):
        check(data="second", samples=["a"], rows="any")
