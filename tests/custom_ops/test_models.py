"""`--use_fused_rms_norm 1` in the networks: it is taken, and nothing else changes."""

from __future__ import annotations

import fused_ln
import numpy as np
import paddle
import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.models import rms_norm
from paddle_llm.rehearse.oracle import prove
from tests import tiny
from tests.models.building import WRITERS, batch, build
from tests.rehearse.cases import make_case

pytestmark = pytest.mark.usefixtures("own_operator")

FAMILIES = ("llama", "qwen2", "chatglm_v2")


@pytest.fixture
def calls(monkeypatch):
    """Number of calls of fused_ln.fused_rms_norm."""
    made = []
    original = fused_ln.fused_rms_norm

    def counted(*args):
        made.append(args)
        return original(*args)

    monkeypatch.setattr(fused_ln, "fused_rms_norm", counted)
    return made


def gradients(model, family) -> tuple[float, dict[str, np.ndarray]]:
    if model.config.recompute:
        model.recompute_enable()
    model.train()
    loss = model(**batch(family))[0]
    loss.backward()
    return float(loss), {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("recompute", [False, True], ids=["", "recompute"])
@pytest.mark.parametrize("family", FAMILIES)
def test_fused_is_unfused(tmp_path, calls, family, recompute):
    folder = WRITERS[family](tmp_path)
    loss, plain = gradients(build(folder), family)
    assert not calls
    model = build(folder, use_fused_rms_norm=True, recompute=recompute)
    fused_loss, fused = gradients(model, family)
    norms = sum("norm" in name for name, _ in model.named_parameters() if name.endswith("weight"))
    layers = norms - 1  # all but the last are computed again
    assert len(calls) == norms + (layers if recompute else 0)
    assert fused_loss == pytest.approx(loss, rel=1e-6)
    for name, gradient in plain.items():
        np.testing.assert_allclose(fused[name], gradient, atol=5e-6 * np.abs(gradient).max(), rtol=0, err_msg=name)


def test_families_without_one_say_so(tmp_path, capsys):
    build(tiny.write_bloom(tmp_path), use_fused_rms_norm=True)
    assert "--use_fused_rms_norm is off: BLOOM has no such kernel" in capsys.readouterr().err


def test_a_machine_that_cannot_build_it_trains_all_the_same(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fused_ln, "why_not", lambda device: "no C++ compiler")
    model = build(tiny.write_llama(tmp_path), use_fused_rms_norm=True)
    assert "--use_fused_rms_norm is off: no C++ compiler; the plain RMSNorm" in capsys.readouterr().err
    assert not model.config.use_fused_rms_norm


def test_somebody_elses_module_is_not_taken_on_a_cpu(tmp_path, monkeypatch):
    import sys
    from types import ModuleType

    monkeypatch.setitem(sys.modules, "fused_ln", ModuleType("fused_ln"))
    assert "somebody else's" in rms_norm.why_not_fused()


def test_fifty_steps_agree(tmp_path):
    """LLaMA in fp32, the flag on and off: every loss to 1e-5."""
    folder = tiny.write_llama(tmp_path)

    def losses(**fields) -> list[float]:
        model = build(folder, **fields)
        model.train()
        optimizer = paddle.optimizer.AdamW(learning_rate=1e-3, parameters=model.parameters())
        found, draw = [], np.random.default_rng(0)
        batches = [paddle.to_tensor(draw.integers(4, 120, (2, 17))) for _ in range(4)]
        for step in range(50):
            tokens = batches[step % 4]
            loss = model(input_ids=tokens[:, :-1], labels=tokens[:, 1:])[0]
            loss.backward()
            optimizer.step()
            optimizer.clear_grad()
            found.append(float(loss))
        return found

    off, on = losses(), losses(use_fused_rms_norm=True)
    assert off[-1] < off[0] - 1
    np.testing.assert_allclose(on, off, rtol=1e-5)
    assert on != off, "the operator was not taken"


LAYOUTS = {
    "llama-tp2-sp": ("llama", Layout(tensor=2, sequence_parallel=True), {}),
    "qwen2-pp2": ("qwen2", Layout(pipeline=2), {}),
    "chatglm_v2-sharding2-recompute": ("chatglm_v2", Layout(sharding=2, sharding_stage=2), {"recompute": True}),
}
MORE_LAYOUTS = {
    f"{family}-{name}": (family, layout, {"recompute": True})
    for family in FAMILIES
    for name, layout in {
        "tp2-sp-pp2": Layout(tensor=2, sequence_parallel=family != "chatglm_v2", pipeline=2),
        "tp2-sharding2": Layout(tensor=2, sharding=2, sharding_stage=2),
    }.items()
}


@pytest.mark.parametrize("name", [*LAYOUTS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE_LAYOUTS)])
def test_layouts_are_one_process(tmp_path, name):
    family, layout, settings = (LAYOUTS | MORE_LAYOUTS)[name]
    verdict = prove(make_case(tmp_path, layout, family=family, use_fused_rms_norm=True, evaluation=3, **settings))
    assert verdict.passed, verdict.failures[0]
