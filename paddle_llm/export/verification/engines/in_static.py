"""The static program in paddle.inference, in this process."""

from __future__ import annotations

from paddle_llm.export.verification.engines.question import Answers, Question, continue_greedily
from paddle_llm.generation.static.program import StaticBatch, StaticProgram


def answer(question: Question) -> Answers:
    """Run the program of a static export with the same batch class as `decode`."""
    import paddle

    program = StaticProgram(question.folder)
    batch = StaticBatch(program, question.prompts, question.new_tokens)
    return Answers(f"paddle.inference {paddle.__version__}", *continue_greedily(batch, question.new_tokens))
