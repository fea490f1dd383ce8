"""Copies from the device to the host in a training: after the first step, one per optimizer step besides logging.

Each copy makes the host wait for the device. The networks are those of a GPU: without the kernels for CPUs, with functions in
place of Paddle's flash attention. What Paddle and PaddleNLP copy is listed in UPSTREAM.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.rehearse.case import Case
from paddle_llm.rehearse.ranks import run_ranks
from tests.helpers.copies import Copy, counted_copies
from tests.rehearse.cases import make_case

STEPS, ONE_PROCESS = 3, Layout()

# Copies by Paddle 3.3.1 and PaddleNLP 3.0.0b4: place -> (when, what is read).
UPSTREAM = {
    "paddlenlp/trainer/trainer.py:750": ("start", "whether ranks resume"),
    "paddlenlp/trainer/trainer.py:883": ("start", "the number of parameters, summed over ranks"),
    "paddlenlp/trainer/trainer.py:1351": ("end", "the loss since the last row; the step's loss is taken out before"),
    # Stages 2 and 3 compare the order of gradients between ranks during the first step (parallel/zero/order_check.py).
    "paddle/distributed/communication/all_gather.py:132": ("start", "the lengths of pickled objects"),
    "paddle/distributed/communication/all_gather.py:136": ("start", "pickled objects"),
    "paddle/distributed/communication/serialization_utils.py:34": ("start", "pickled objects"),
    # A pipeline: stages agree on shapes once; then the last one reads losses (through PaddleNLP's `to_tensor`, from
    # pipeline_parallel.py:585, twice per micro-batch), the others the type of the loss.
    "paddle/distributed/fleet/meta_parallel/pp_utils/p2p_communication.py:88": ("start", "the size of a message"),
    "paddle/distributed/fleet/meta_parallel/pp_utils/p2p_communication.py:96": ("start", "shapes and types"),
    "paddlenlp/utils/paddle_patch.py:94": ("step", "the losses of all micro-batches"),
    "paddle/distributed/fleet/meta_parallel/pipeline_parallel.py:1781": ("step", "the type of the loss"),
    # ChatGLM-6B, twice in each micro-batch.
    "paddlenlp/transformers/chatglm/modeling.py:120": ("step", "whether a position is beyond the cached RoPE table"),
    "paddlenlp/transformers/chatglm/modeling.py:126": ("start", "the length of the RoPE table"),
    # fp16: each step reads whether a gradient overflows.
    "paddle/optimizer/optimizer.py:1362": ("step", "found_inf"),
}


def _copies(case: Case, folder: str, prepare=lambda trainer: None) -> list[Copy]:
    """Return the copies of one rank in a training of STEPS steps without rows in between."""
    from paddle_llm.parallel.process.start import start_process

    start_process("cpu", case.layout.world_size)
    from paddle_llm.models.patches.shared import cpu_switch
    from paddle_llm.rehearse.case_trainer import trainer_of
    from tests.helpers.gpu.kernels import Kernels, on_fake_gpu, without_cpu_kernels

    with ExitStack() as stack:
        stack.enter_context(without_cpu_kernels())
        stack.enter_context(mock.patch.object(cpu_switch, "enable", lambda: None))
        stack.enter_context(on_fake_gpu(Kernels()))
        settings = {"logging_steps": 100, "do_eval": False, "evaluation_strategy": "no"}
        trainer = trainer_of(case, folder, **settings)
        prepare(trainer)
        found = stack.enter_context(counted_copies(lambda: trainer.state.global_step))
        trainer.train()
    return [copy for copy in found if not copy.place.startswith("tests/")]


def _check(copies: list[Copy], ranks: int = 1) -> None:
    # Several ranks gather the loss of step 1 once, to report it; one rank has it on the host.
    reports = [copy for copy in copies if "mean_loss" in copy.callers]
    assert [copy.step for copy in reports] == [1] * (ranks > 1)
    for step in range(1, STEPS):
        ours = [copy for copy in copies if copy.ours and copy.step == step and copy not in reports]
        assert len(ours) == 1, "\n".join(map(str, ours))
    upstream = [copy for copy in copies if not copy.ours]
    assert {copy.place for copy in upstream} <= UPSTREAM.keys()
    whens = {copy.place: UPSTREAM[copy.place][0] for copy in upstream}
    for copy in upstream:
        first, last = {"start": (0, 0), "step": (0, STEPS - 1), "end": (STEPS, STEPS)}[whens[copy.place]]
        assert first <= copy.step <= last, copy


def _case(folder: Path, layout: Layout = ONE_PROCESS, family: str = "llama", **settings) -> Case:
    flash = family in ("llama", "qwen2")
    return make_case(folder, layout, family=family, max_steps=STEPS, use_flash_attention=flash, **settings)


@pytest.mark.parametrize("family", ["llama", "qwen2", "bloom", "chatglm_v2", "opt", "glm"])
def test_one_copy_per_step_of_a_pretraining(tmp_path, family):
    _check(_copies(_case(tmp_path, family=family), str(tmp_path / "output")))


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {}),
        ("llama", {"packed": True, "lora": True}),
        ("qwen2", {"packed": True}),
        ("bloom", {"packed": True}),
        ("chatglm_v2", {"packed": True}),
        ("chatglm", {}),
        ("llama", {"prefix_tuning": True}),
    ],
    ids=str,
)
def test_one_copy_per_step_of_a_fine_tuning(tmp_path, family, settings):
    _check(_copies(_case(tmp_path, family=family, entry="finetune", **settings), str(tmp_path / "output")))


def test_adalora_copies_the_importance_of_all_tensors_together(tmp_path):
    copies = _copies(_case(tmp_path, entry="finetune", adalora=True), str(tmp_path / "output"))
    for step in range(1, STEPS):
        assert len([copy for copy in copies if copy.ours and copy.step == step]) == 2


@pytest.mark.parametrize(
    "layout", [Layout(tensor=2), Layout(sharding=2, sharding_stage=2), Layout(pipeline=2)], ids=str
)
@pytest.mark.parametrize("entry", ["pretrain", pytest.param("finetune", marks=pytest.mark.slow)])
def test_one_copy_per_step_in_a_layout(tmp_path, layout, entry):
    for copies in run_ranks(_copies, 2, _case(tmp_path, layout, entry=entry), str(tmp_path / "output"), quiet=True):
        _check(copies, ranks=2)


def test_fp16_reads_besides_whether_a_gradient_overflows(tmp_path):
    import paddle

    def scale(trainer):
        place = SimpleNamespace(is_gpu_place=lambda: True)
        tracer = SimpleNamespace(_expected_place=place)
        with mock.patch.object(paddle.amp.grad_scaler, "_dygraph_tracer", lambda: tracer):
            trainer.scaler = paddle.amp.GradScaler(init_loss_scaling=1024.0)
        trainer.do_grad_scaling, trainer.amp_dtype = True, "float16"

    copies = _copies(_case(tmp_path), str(tmp_path / "output"), scale)
    _check(copies)
    assert "paddle/optimizer/optimizer.py:1362" in {copy.place for copy in copies}
