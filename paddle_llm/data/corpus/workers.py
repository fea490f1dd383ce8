"""Runs the encoder of `data build` over blocks, in order, in one process or many. Workers never import paddle unless the
tokenizer needs PaddleNLP; what is under way is bounded, so memory does not grow with the input."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from paddle_llm.core.errors import UserError
from paddle_llm.data.corpus.encode import BlockEncoder, Encoded
from paddle_llm.data.corpus.sources import Block, ReadOptions
from paddle_llm.parallel.process.parent import end_with_creator

_BLOCKS_PER_WORKER = 3

_encoder: BlockEncoder | None = None  # one per worker process


def encode_blocks(blocks: Iterable[Block], folder: str, options: ReadOptions, workers: int) -> Iterator[Encoded]:
    """Encode blocks with the tokenizer in `folder`; results come in the order of the blocks.

    Raises:
        UserError: a worker was killed.
    """
    if workers == 1:
        yield from map(BlockEncoder(folder, options), blocks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, (folder, options)) as pool:
        under_way: deque[Future[Encoded]] = deque()
        try:
            for block in blocks:
                under_way.append(pool.submit(_encode, block))
                if len(under_way) >= _BLOCKS_PER_WORKER * workers:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker of the build was killed, most often because memory ran out. Give fewer --workers."
            ) from error
        finally:
            for future in under_way:
                future.cancel()


def _start_worker(folder: str, options: ReadOptions) -> None:
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are the threads
    end_with_creator()  # a worker waits on a queue that it keeps open itself
    _encoder = BlockEncoder(folder, options)


def _encode(block: Block) -> Encoded:
    assert _encoder is not None
    return _encoder(block)
