"""Data in a job of several ranks: one rank builds it, all see the same samples, an error reaches all ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from paddle_llm.config.run_config import RunConfig
from paddle_llm.core.errors import UserError
from paddle_llm.rehearse.ranks import run_ranks
from tests.helpers.corpus import numbered_documents, write_corpus


def open_and_read(prefix: str, vocab_size: int) -> list[int] | str:
    """Return, on one rank, the first ids of some samples or the message of the error."""
    import paddle.distributed as dist

    dist.init_parallel_env()
    try:
        return _read(prefix, vocab_size)
    finally:
        dist.barrier()  # rank 0 owns the store that the others read


def _read(prefix: str, vocab_size: int) -> list[int] | str:
    import paddle_llm.data.corpus.order as order
    from paddle_llm.data.corpus.dataset import build_pretrain_datasets

    order.CACHE_ABOVE_ENTRIES = 0
    config = RunConfig(input_dir=prefix, split="1,0,0")
    try:
        train = build_pretrain_datasets(
            config,
            train_samples=60,
            eval_samples=0,
            predict_samples=0,
            seq_length=16,
            eos_id=None,
            vocab_size=vocab_size,
        ).train
    except UserError as error:
        return str(error)
    assert train is not None
    return [int(train.tokens(i)[0]) for i in range(60)]


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return write_corpus(tmp_path / "c", numbered_documents(40))


def test_ranks_share_one_cache_and_one_order(prefix: str) -> None:
    first, second = run_ranks(open_and_read, 2, prefix, 65536, timeout=120)
    assert first == second and len(first) == 60
    assert len(list(Path(prefix).parent.glob("index-cache/order-*.npy"))) == 2
    assert not list(Path(prefix).parent.glob("index-cache/*.tmp"))


def test_a_mistake_is_reported_on_every_rank(prefix: str) -> None:
    messages = run_ranks(open_and_read, 2, prefix, 10, timeout=120)
    assert messages[0] == messages[1]
    assert "the model's vocabulary of 10" in messages[0]
