"""The static program in paddle.inference, in this process."""

from __future__ import annotations

from paddle_llm.export.verification.engines.question import Answers, Question, continue_greedily


def answer(question: Question) -> Answers:
    """The program that a static export is, by the loop that it is used with."""
    import paddle

    from paddle_llm.generation.static.program import StaticBatch, StaticProgram

    model = StaticProgram(question.folder)
    network = StaticBatch(model, question.prompts, question.new_tokens)
    return Answers(f"paddle.inference {paddle.__version__}", *continue_greedily(network, question.new_tokens))
