"""Runs the encoder of `data build` over blocks, in order, in one or more processes.

Workers import Paddle only if the tokenizer needs PaddleNLP. The number of blocks in progress is bounded, so memory use
does not grow with the input.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from paddle_llm.core.errors import UserError
from paddle_llm.data.corpus.encode import BlockEncoder, Encoded
from paddle_llm.data.corpus.sources import Block, ReadOptions
from paddle_llm.parallel.process.parent import end_with_creator

_BLOCKS_PER_WORKER = 3

_encoder: BlockEncoder | None = None  # one per worker process


def encode_blocks(
    blocks: Iterable[Block], folder: str, options: ReadOptions, workers: int
) -> Generator[Encoded, None, None]:
    """Encode blocks with the tokenizer in `folder`. Results have the order of the blocks.

    Raises:
        UserError: If a worker is killed.
    """
    if workers == 1:
        yield from map(BlockEncoder(folder, options), blocks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, (folder, options)) as pool:
        pending: deque[Future[Encoded]] = deque()
        try:
            for block in blocks:
                pending.append(pool.submit(_encode, block))
                if len(pending) >= _BLOCKS_PER_WORKER * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker of the build was killed, most often because memory ran out. Use fewer --workers."
            ) from error
        finally:
            for future in pending:
                future.cancel()


def _start_worker(folder: str, options: ReadOptions) -> None:
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers provide the parallelism
    end_with_creator()  # a worker holds its queue open, so it would not notice the parent's end
    _encoder = BlockEncoder(folder, options)


def _encode(block: Block) -> Encoded:
    assert _encoder is not None
    return _encoder(block)
