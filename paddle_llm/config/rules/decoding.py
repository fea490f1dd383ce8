"""Rules of decoding that `paddle-llm generate` shares with the evaluation by generation of fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from paddle_llm.config.layout import Layout


def beams_with_sampling(num_beams: int, sampling: Sequence[str]) -> str:
    """Return a message if beam search is combined with sampling; else "".

    Args:
        num_beams: Number of beams; 1 for no beam search.
        sampling: Names of the given options that select sampling.
    """
    if num_beams == 1 or not sampling:
        return ""
    return f"--num_beams {num_beams} selects beam search and --{sampling[0]} selects sampling. Use only one of them."


def generation_problems(layout: Layout) -> Iterator[str]:
    """Yield a message for each dimension of the layout that cannot generate token by token."""
    if layout.pipeline > 1:
        yield (
            f"eval_with_do_generation with pipeline_parallel_degree = {layout.pipeline}: a pipeline cannot generate token by "
            "token. Drop it and evaluate the loss; generate later with `paddle-llm generate OUTPUT_DIR/model`, also on tensor "
            "parallel ranks."
        )
    if layout.sequence_parallel and layout.tensor > 1:
        yield (
            "eval_with_do_generation with sequence_parallel: a single token cannot be split along the sequence. "
            "Drop one of them."
        )
