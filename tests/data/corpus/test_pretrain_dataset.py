"""The global order of samples: compared with its definition; epochs, cache and errors."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from paddle_llm.config.run_config import RunConfig
from paddle_llm.core.errors import UserError
from paddle_llm.data.corpus.build import build_corpus
from paddle_llm.data.corpus.dataset import PretrainDataset, Splits, build_pretrain_datasets, samples_per_epoch
from paddle_llm.data.corpus.indexed import open_corpus
from paddle_llm.data.corpus.order import SampleOrder
from paddle_llm.data.tokenizer import train_tokenizer
from tests.helpers.corpus import english_and_chinese, numbered_documents, write_corpus

S = 16
FIRST_SAMPLES, FIRST_TOKENS = [27, 17, 9], [477, 522, 144]


def build(
    input_dir: object, train: int = 100, valid: int = 0, test: int = 0, *, vocab: int = 65536, transform=None, **config
) -> Splits:
    run = RunConfig(input_dir=str(input_dir), **{"split": "1,0,0", **config})
    return build_pretrain_datasets(
        run, train_samples=train, eval_samples=valid, predict_samples=test, seq_length=S, eos_id=None, vocab_size=vocab,
        transform=transform,
    )  # fmt: skip


def train_of(input_dir: object, train: int = 100, **config) -> PretrainDataset:
    dataset = build(input_dir, train, **config).train
    assert dataset is not None
    return dataset


@pytest.fixture
def documents() -> list[np.ndarray]:
    return numbered_documents(40)


@pytest.fixture
def prefix(tmp_path: Path, documents: list[np.ndarray]) -> str:
    return write_corpus(tmp_path / "c", documents)


def test_samples_are_slices_of_the_shuffled_documents(prefix: str, documents: list[np.ndarray]) -> None:
    per_epoch = samples_per_epoch(RunConfig(input_dir=prefix, split="1,0,0"), S)
    dataset = train_of(prefix, 2 * per_epoch)
    assert len(dataset) == 2 * per_epoch and dataset.samples_per_epoch == per_epoch
    assert per_epoch == (sum(map(len, documents)) - 1) // S
    texts = []
    for epoch in range(2):
        by_place = {}
        for i in range(epoch * per_epoch, (epoch + 1) * per_epoch):
            item, origin = dataset[i], dataset.sample_ids(i)
            assert item["input_ids"].shape == item["labels"].shape == (S,)
            assert item["input_ids"].dtype == item["labels"].dtype == np.int64
            assert (item["input_ids"][1:] == item["labels"][:-1]).all()
            assert origin.epoch == epoch
            by_place[origin.sample] = np.append(item["input_ids"], item["labels"][-1])
            touched = [d for d, ids in enumerate(documents) if np.isin(ids, by_place[origin.sample]).any()]
            assert sorted(origin.documents) == touched
        assert sorted(by_place) == list(range(per_epoch)), "each cut exactly once an epoch"
        text = np.concatenate([by_place[0][:1], *(by_place[k][1:] for k in range(per_epoch))])
        # Adjacent slices overlap by one token, and the text consists of all documents, each once.
        assert all(by_place[k][-1] == by_place[k + 1][0] for k in range(per_epoch - 1))
        assert len(set(text)) == len(text)
        starts = {int(d[0]) for d in documents}
        assert all(b == a + 1 or int(b) in starts for a, b in zip(text, text[1:], strict=False))
        texts.append(text)
    assert not np.array_equal(texts[0], texts[1]), "every epoch shuffles its documents differently"


def test_epochs_differ_and_are_reproducible(prefix: str) -> None:
    dataset = train_of(prefix, 200)
    n = dataset.samples_per_epoch
    epochs = [np.stack([dataset.tokens(e * n + i) for i in range(n)]) for e in range(3)]
    assert not np.array_equal(epochs[0], epochs[1]) and not np.array_equal(epochs[1], epochs[2])
    again = train_of(prefix, 200)
    backwards = [again.tokens(i) for i in reversed(range(3 * n))][::-1]
    assert np.array_equal(np.concatenate(epochs), np.stack(backwards)), "any order of asking gives the same"
    assert not np.array_equal(train_of(prefix, 9, seed=7).tokens(0), epochs[0][0])
    assert np.array_equal(train_of(prefix, 9, seed=7, data_seed=42).tokens(0), epochs[0][0])
    longer = train_of(prefix, 10_000)
    assert all(np.array_equal(longer.tokens(i), dataset.tokens(i)) for i in range(100)), "the length changes no sample"


def test_the_order_never_changes(prefix: str) -> None:
    """These numbers are part of the format: a change would break every resume."""
    dataset = train_of(prefix, 3)
    assert [dataset.sample_ids(i).sample for i in range(3)] == FIRST_SAMPLES
    assert [int(dataset.tokens(i)[0]) for i in range(3)] == FIRST_TOKENS


def test_splits_share_no_document(prefix: str, documents: list[np.ndarray]) -> None:
    splits = build(prefix, 50, 1000, 1000, split="6,2,2")
    seen = []
    for dataset in (splits.train, splits.valid, splits.test):
        assert dataset is not None
        seen.append({d for i in range(len(dataset)) for d in dataset.sample_ids(i).documents})
    assert seen[0] <= set(range(24)) and seen[1] <= set(range(24, 32)) and seen[2] <= set(range(32, 40))
    assert splits.valid is not None and len(splits.valid) == splits.valid.samples_per_epoch, (
        "no sample is evaluated twice"
    )
    assert build(prefix, 5).valid is None


def test_a_large_order_is_cached_by_content(tmp_path: Path, prefix: str, documents: list[np.ndarray]) -> None:
    def order(cache_above: int = 0) -> SampleOrder:
        corpus = open_corpus(prefix)
        return SampleOrder(
            corpus, 0, 40, seq_length=S, seed=1, split=0, cache_dir=tmp_path / "cache", cache_above=cache_above
        )

    plain, cached = order(1 << 20), order()
    cached.prepare(2)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    n = plain.samples_per_epoch
    assert all(np.array_equal(plain.tokens(i), cached.tokens(i)) for i in range(2 * n))
    assert isinstance(cached.epoch(0).documents.base, np.memmap) or isinstance(cached.epoch(0).documents, np.memmap)
    cached.tokens(5 * n)  # an epoch that was not prepared is built on demand
    assert len(list((tmp_path / "cache").iterdir())) == 3
    cached.cache_path(0).write_bytes(b"half a file")
    fresh = order()
    assert np.array_equal(fresh.tokens(0), plain.tokens(0)), "a broken cache file is built again"

    write_corpus(prefix, documents[::-1])  # the same numbers of documents and tokens
    rebuilt = order()
    assert rebuilt.cache_path(0) != cached.cache_path(0)
    assert np.array_equal(rebuilt.tokens(3), order(1 << 20).tokens(3))
    assert len({int(t) for i in range(n) for t in rebuilt.tokens(i)}) == n * S + 1


def test_a_rebuilt_corpus_gets_a_new_order_through_the_public_interface(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paddle_llm.data.corpus.order.CACHE_ABOVE_ENTRIES", 0)
    train_of(prefix, 30)
    longer = numbered_documents(50, seed=3)
    write_corpus(prefix, longer)
    dataset = train_of(prefix, 30)
    assert len(list(Path(prefix).parent.glob("index-cache/order-*"))) == 2
    everything = np.concatenate(longer)
    for i in range(30):
        assert all((everything[t] == t) for t in dataset.tokens(i))


def test_an_unwritable_cache_is_an_error(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paddle_llm.data.corpus.order.CACHE_ABOVE_ENTRIES", 0)
    with pytest.raises(UserError, match="order-.*cannot be written: .*--data_cache"):
        train_of(prefix, 30, data_cache=prefix + ".bin")


def test_a_small_corpus_writes_no_cache(prefix: str) -> None:
    before = sorted(Path(prefix).parent.iterdir())
    train_of(prefix, 30)[7]
    assert sorted(Path(prefix).parent.iterdir()) == before, "a read-only folder will do"


def test_a_blend_keeps_its_weights_and_each_corpus_its_order(tmp_path: Path) -> None:
    a = write_corpus(tmp_path / "a", numbered_documents(60))
    b = write_corpus(tmp_path / "b", numbered_documents(30, first_id=20_000, seed=1))
    blend = train_of(f"0.3 {a} 0.7 {b}", 400)
    origins = [blend.sample_ids(i).prefix for i in range(400)]
    assert Counter(origins) == {a: 120, b: 280}
    assert abs(Counter(origins[:50])[a] - 15) <= 1
    for prefix in (a, b):
        alone = train_of(prefix, 300)
        own = [blend.tokens(i) for i in range(400) if origins[i] == prefix]
        assert all(np.array_equal(t, alone.tokens(j)) for j, t in enumerate(own))


def test_corpora_of_a_folder_are_weighted_by_size(tmp_path: Path) -> None:
    for name, count in (("a", 90), ("b", 30)):
        write_corpus(tmp_path / name, numbered_documents(count))
    dataset = train_of(tmp_path, 1)
    n = dataset.samples_per_epoch
    dataset = train_of(tmp_path, n)
    seen = Counter((o.prefix, o.sample) for o in map(dataset.sample_ids, range(n)))
    assert len(seen) >= n - 1, "an epoch of the blend is an epoch of each"


def test_transform_replaces_inputs_and_labels(prefix: str) -> None:
    dataset = train_of(prefix, 3, transform=lambda tokens_S1: {"both": tokens_S1 * 2})
    assert np.array_equal(dataset[1]["both"], 2 * dataset.tokens(1))
    assert dataset.tokens(1).shape == (S + 1,)


def test_a_sample_outlives_its_dataset(prefix: str) -> None:
    sample = train_of(prefix, 3)[0]
    assert sample["input_ids"].flags.owndata and sample["labels"].flags.owndata


def test_positions_out_of_range_are_an_error(prefix: str) -> None:
    dataset = train_of(prefix, 3)
    for index in (-1, 3):
        with pytest.raises(IndexError):
            dataset[index]


def test_the_origin_of_a_sample_is_readable(prefix: str) -> None:
    text = str(train_of(prefix, 3).sample_ids(1))
    assert text.startswith(f"{prefix} epoch 0 sample ") and "documents, " in text


def test_a_split_too_small_for_one_sample_is_an_error_with_sizes(tmp_path: Path, prefix: str) -> None:
    with pytest.raises(UserError, match=r"the valid part of .*c is too small: 0 of 40 documents, 0 tokens.*needs 17"):
        build(prefix, 10, 10, split="1,0,0")
    tiny = write_corpus(tmp_path / "tiny", [np.arange(17)] + [np.arange(3)])
    assert len(train_of(tiny, 5, split="1,1,0")) == 5, "17 tokens are one sample"
    with pytest.raises(UserError, match="the valid part .* is too small: 1 of 2 documents, 3 tokens"):
        build(tiny, 5, 5, split="1,1,0")
    with pytest.raises(UserError, match=f"the valid part of {tiny} is too small"):
        build(f"0.5 {prefix} 0.5 {tiny}", 5, 5, split="1,1,0")
    assert build(tmp_path, 5, 5, split="1,1,0").valid is not None, "in a folder the larger corpora are used"


def test_bad_corpora_are_an_error_before_any_sample(tmp_path: Path, prefix: str) -> None:
    with pytest.raises(UserError, match="--input_dir is not set"):
        build("")
    with pytest.raises(UserError, match="corpus .*absent: not found"):
        build(tmp_path / "absent")
    with pytest.raises(UserError, match="the model's vocabulary of 100"):
        build(prefix, vocab=100)
    raw = bytearray(Path(prefix + ".idx").read_bytes())
    raw[34:38] = (7).to_bytes(4, "little")
    Path(prefix + ".idx").write_bytes(raw)
    with pytest.raises(UserError, match=r"c\.idx: corrupt: sequence 1"):
        build(prefix)


def test_the_tokenizer_of_the_run_is_compared_with_that_of_the_corpus(tmp_path: Path, tokenizer_folder: str) -> None:
    source = tmp_path / "a.txt"
    source.write_text("\n".join(english_and_chinese(40)), encoding="utf-8")
    build_corpus([str(source)], tokenizer_folder, str(tmp_path / "c"))
    assert len(train_of(tmp_path / "c", 5, tokenizer_name_or_path=tokenizer_folder, vocab=700)) == 5
    train_tokenizer(english_and_chinese(300, seed=9), str(tmp_path / "other"), 700)
    with pytest.raises(UserError, match="built with another tokenizer"):
        build(tmp_path / "c", 5, model_name_or_path=str(tmp_path / "other"))


def test_the_start_time_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    """With 100,000 documents, the start including the first sample takes tens of milliseconds."""
    lengths = np.random.RandomState(0).randint(1, 60, 100_000)
    prefix = write_corpus(tmp_path / "c", [np.zeros(n, dtype=np.uint16) for n in lengths])
    train_of(prefix, 1000)
    began = time.process_time()
    dataset = train_of(prefix, 100_000)
    assert dataset[99_999]["input_ids"].shape == (S,)
    assert time.process_time() - began < 1.0
