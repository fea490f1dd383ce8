"""Rank functions for tests of evaluation by generation: a few training steps with an evaluation between them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paddle_llm.config.layout import Layout
from paddle_llm.data.instructions.conversation import Conversation, Turn
from tests.helpers import pretrain_jobs as jobs

STEPS = 4


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        layout: Layout of the ranks.
        fields: Fields of RunConfig.
        evaluates: Whether answers are generated after the second step.
        stops: Whether the last rank gets SIGUSR1 before that.
    """

    layout: Layout = Layout()
    fields: dict[str, Any] = field(default_factory=dict)
    evaluates: bool = True
    stops: bool = False


def conversations() -> list[Conversation]:
    """Return nine conversations of unequal lengths (no batch or data degree divides 9), one with two rounds, one in Chinese."""
    questions = [
        "Who wrote it?",
        "Return the members of an object in a list.",
        "x",
        "Test for true, and for the rest",
        "床前明月光",
    ]
    talks = [(question, f"answer {number}") for number, question in enumerate(questions * 2)][:8]
    turns = [(Turn("user", question), Turn("assistant", answer)) for question, answer in talks]
    turns.append((*turns[0], Turn("user", "And when?"), Turn("assistant", "疑是地上霜")))
    return [Conversation(one, where=f"line {number}") for number, one in enumerate(turns)]


def train(runs: dict[str, Run], model: Path, tokenizer: str, output: Path) -> dict[str, dict[str, Any]]:
    """Return the result of `train_one` for each run of one layout, on one rank."""
    from paddle_llm.parallel.process.start import start_process

    (world_size,) = {run.layout.world_size for run in runs.values()}
    start_process("cpu", world_size)
    return {name: train_one(run, model, tokenizer, output / name) for name, run in runs.items()}


def train_one(run: Run, model: Path, tokenizer: str, output: Path) -> dict[str, Any]:
    """Train, and return {"scores", "weights": final weights of this rank unless sharded, "undisturbed": whether states are kept}.

    If the run stops, also "answers": number of answers that this rank has generated, and "code": exit code.
    """
    import os
    import signal
    from contextlib import nullcontext

    import paddle
    from paddlenlp.trainer import TrainerCallback

    from paddle_llm.core.errors import StopRequested
    from paddle_llm.generation.texts import Generator
    from paddle_llm.parallel.process.stop_request import stop_on_signals
    from paddle_llm.training.evaluation.interruption import EvaluationStopped

    found: dict[str, Any] = {}

    class Evaluate(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2 and run.evaluates:
                before = states(trainer)
                if run.stops and args.process_index == args.world_size - 1:
                    os.kill(os.getpid(), signal.SIGUSR1)
                try:
                    found["scores"] = evaluation(trainer, conversations())
                except EvaluationStopped:
                    found["answers"] = len(decoded)
                found["undisturbed"] = before == states(trainer)

    fields = {"do_eval": False, "max_steps": STEPS, "save_steps": 100, "generation_batch_size": 2, **run.fields}
    accumulation = 2 // run.layout.data_world_size
    config = jobs.config(model, output_dir=str(output), gradient_accumulation_steps=accumulation, **fields)
    with paddle.utils.unique_name.guard():
        trainer = jobs.make_trainer(config, run.layout)
    evaluation = evaluation_of(config, run.layout, tokenizer)
    trainer.add_callback(Evaluate())
    decoded: list[int] = []
    limit_for = Generator.limit_for

    def recording(generator, prompt):
        decoded.append(1)
        return limit_for(generator, prompt)

    Generator.limit_for = recording
    try:
        with stop_on_signals(True) if run.stops else nullcontext():
            trainer.train()
    except StopRequested as stop:
        found["code"] = stop.code
    finally:
        Generator.limit_for = limit_for
    if trainer.sharded_weights is None:
        found["weights"] = jobs.weights(trainer.model)
    return found


def evaluation_of(config: Any, layout: Layout, tokenizer: str) -> Any:
    from paddle_llm.data.chat.templates import TEMPLATES
    from paddle_llm.data.samples.encode import InstructionEncoder
    from paddle_llm.data.tokenizers.text_codec import open_codec
    from paddle_llm.families import FAMILIES
    from paddle_llm.training.evaluation.generation import GenerationEvaluation

    codec = open_codec(tokenizer)
    encoder = InstructionEncoder(codec, TEMPLATES["default"], max_length=120)
    return GenerationEvaluation(codec, encoder, config, layout, FAMILIES["llama"])


def states(trainer: Any) -> dict[str, Any]:
    """Return the state with which a training continues: random states, the mode of each layer, and which weights exist."""
    import random

    import numpy as np
    import paddle
    from paddle.distributed.fleet.meta_parallel import get_rng_state_tracker

    model = trainer.model
    named = get_rng_state_tracker().get_states_tracker()
    return {
        "random": [_without_address(state) for state in paddle.get_rng_state()],
        "named": {name: _without_address(state) for name, state in named.items()},
        "numpy": np.random.get_state()[1].tolist(),
        "python": hash(random.getstate()),
        "modes": [layer.training for layer in model.sublayers(include_self=True)],
        "split": model.config.tensor_parallel_output,
        "held": [parameter._is_initialized() for parameter in model.parameters()],
    }


def _without_address(state: Any) -> str:
    """Return the numbers of a random state without its address in memory."""
    return re.sub(r"0x[0-9a-f]+", "", str(state))
