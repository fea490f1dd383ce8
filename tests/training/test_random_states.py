"""Random states of a checkpoint do not depend on the number of visible GPUs and on the GPU that a rank uses.

No GPU is needed: the predicates by which Paddle and PaddleNLP recognise one are replaced, and generators of the CPU are
given in place of those of cards.
"""

from __future__ import annotations

from types import SimpleNamespace

import paddle
import pytest

from paddle_llm.training import random_states as states_module
from paddle_llm.training.random_states import random_states, restore_random_states
from tests.helpers.models.tiny import write_bloom
from tests.helpers.pretrain_jobs import VOCABULARY, config, make_trainer, numbers


def _gpu_build(core, count: int) -> SimpleNamespace:
    """Return Paddle's core as the trainer sees it in a GPU build with `count` visible cards."""
    return SimpleNamespace(
        is_compiled_with_cuda=lambda: True,
        get_cuda_device_count=lambda: count,
        is_compiled_with_xpu=lambda: False,
        default_cpu_generator=core.default_cpu_generator,
        default_cuda_generator=lambda index: core.Generator(),
    )


@pytest.mark.parametrize("visible", [0, 1, 8])
def test_a_cpu_training_resumes_with_a_gpu_build_and_any_number_of_visible_gpus(tmp_path, monkeypatch, visible):
    from paddlenlp.trainer import trainer as upstream

    write_bloom(tmp_path / "bloom", vocab_size=VOCABULARY, hidden_dropout=0.1, attention_dropout=0.1)
    run = config(tmp_path, model_name_or_path=str(tmp_path / "bloom"), max_steps=6, do_eval=False)
    make_trainer(run).train()
    expected = numbers(tmp_path / "output")
    monkeypatch.setattr(upstream, "core", _gpu_build(upstream.core, visible))
    make_trainer(run).train(str(tmp_path / "output" / "checkpoint-5"))
    assert numbers(tmp_path / "output") == expected


@pytest.fixture
def cards(monkeypatch):
    """Eight generators; `use(i)` selects the i-th as that of this rank's card."""
    generators = [paddle.base.core.Generator() for _ in range(8)]

    def use(card: int) -> paddle.base.core.Generator:
        monkeypatch.setattr(paddle, "Generator", lambda: generators[card])
        return generators[card]

    monkeypatch.setattr(paddle.device, "get_device", lambda: "gpu:0")
    return use


def test_another_gpu_continues_the_stream_of_the_first(cards, tmp_path):
    first = cards(0).manual_seed(7)
    first.random()
    paddle.save(random_states(), str(tmp_path / "states"))
    expected = [first.random() for _ in range(3)]
    second = cards(2).manual_seed(7)
    restore_random_states(paddle.load(str(tmp_path / "states"), return_numpy=True))
    assert [second.random() for _ in range(3)] == expected


def test_a_checkpoint_of_another_kind_of_device_is_reported(cards, monkeypatch, capsys):
    saved = random_states()
    monkeypatch.setattr(states_module, "_device_kind", lambda: "cpu")
    restore_random_states(saved)
    assert "saved on a gpu" in capsys.readouterr().err


def test_other_named_states_are_refused():
    saved = {**random_states(), "named": {"local_seed": None}}
    with pytest.raises(RuntimeError, match="local_seed"):
        restore_random_states(saved)
