"""PaddleNLP's network in this process, with the tensors of the source or of an exported folder."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

from paddle_llm.config.layout import Layout
from paddle_llm.config.run_config import RunConfig
from paddle_llm.export.source.dtypes import widened
from paddle_llm.export.source.source import Source
from paddle_llm.export.verification.engines.question import Answers, Question, continue_greedily
from paddle_llm.models.build import build_model, build_network
from paddle_llm.models.configuration.switches import apply_switches
from paddle_llm.models.weights.names import canonical_parameters

if TYPE_CHECKING:
    from paddle_llm.models.protocols import LanguageModel


def answer_of_source(source: Source, question: Question, dtypes: dict[str, str]) -> Answers:
    """Run the source. Its tensors are copied into the network without any code that writes exports.

    Args:
        source: The source.
        question: Prompts.
        dtypes: Type of each weight in the export. The source's weights are rounded to it; the arithmetic is fp32.
    """
    import paddle

    config = copy.deepcopy(source.config)
    run = _run_config(source.folder)
    apply_switches(config, run, Layout(), source.family)
    model = build_network(config, Layout(), source.family, dtype="float32")
    for name, parameter in canonical_parameters(model, source.family.name):
        values = paddle.to_tensor(widened(source.read(name)))
        with paddle.no_grad():
            parameter.set_value(values.astype(dtypes[name]).astype("float32"))
    return _answer(model, question, "source")


def answer(question: Question) -> Answers:
    """Run the exported folder as `paddle-llm generate` and continued training load it.

    Raises:
        UserError: If the folder cannot be loaded.
    """
    import paddle

    run = _run_config(question.folder)
    model = build_model(run, Layout(), dtype="float32")
    return _answer(model, question, f"paddle {paddle.__version__}")


def _answer(model: LanguageModel, question: Question, engine: str) -> Answers:
    import paddle

    from paddle_llm.generation.eval_mode import generating
    from paddle_llm.models.incremental import IncrementalNetwork

    with generating(model), paddle.no_grad():
        network = IncrementalNetwork(model, question.family, question.prompts, question.new_tokens)
        return Answers(engine, *continue_greedily(network, question.new_tokens))


def _run_config(folder: Path) -> RunConfig:
    return RunConfig.model_validate({"model_name_or_path": str(folder), "continue_training": True, "device": _device()})


def _device() -> str:
    import paddle

    return str(paddle.device.get_device()).split(":")[0]
