"""`--use_fused_rms_norm 1` in the networks: the operator is used, and nothing else changes."""

from __future__ import annotations

import json

import fused_ln
import numpy as np
import paddle
import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.models.patches.shared import rms_norm
from paddle_llm.rehearse.oracle import prove
from paddle_llm.rehearse.ranks import run_ranks
from tests.helpers.models import tiny
from tests.helpers.models.folders import train_pieces, write_folder
from tests.helpers.models.networks import WRITERS, batch, build
from tests.rehearse.cases import make_case

pytestmark = pytest.mark.usefixtures("own_operator")

FAMILIES = ("llama", "qwen2", "chatglm_v2")


@pytest.fixture
def calls(monkeypatch):
    """Return the list of calls of fused_ln.fused_rms_norm."""
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
def test_a_network_with_the_fused_norm_equals_the_unfused_one(tmp_path, calls, family, recompute):
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


def test_a_family_without_the_kernel_is_reported(tmp_path, capsys):
    build(tiny.write_bloom(tmp_path), use_fused_rms_norm=True)
    assert "--use_fused_rms_norm is off: BLOOM has no such kernel" in capsys.readouterr().err


def test_a_machine_without_the_operator_trains_with_the_plain_norm(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fused_ln, "why_not", lambda device: "no C++ compiler")
    model = build(tiny.write_llama(tmp_path), use_fused_rms_norm=True)
    assert "--use_fused_rms_norm is off: no C++ compiler; the plain RMSNorm" in capsys.readouterr().err
    assert not model.config.use_fused_rms_norm


def _reason_of_a_rank(lacking: list[int]) -> str:
    import paddle.distributed as dist

    from paddle_llm.parallel.process.start import start_process

    start_process("cpu", 2)
    dist.init_parallel_env()
    fused_ln.why_not = lambda device: "no C++ compiler" if dist.get_rank() in lacking else ""
    return rms_norm.why_not_fused()


@pytest.mark.parametrize(
    ("lacking", "reason"),
    [
        ([], ""),
        ([1], "1 of 2 ranks lack it (rank 1: no C++ compiler)"),
        ([0, 1], "no rank has it (rank 0: no C++ compiler)"),
    ],
)
def test_the_operator_is_used_on_all_ranks_or_none(lacking, reason):
    assert run_ranks(_reason_of_a_rank, 2, lacking) == [reason, reason]


@pytest.mark.parametrize(("paddles", "reason"), [(True, ""), (False, "no nvcc")])
def test_paddles_own_kernel_is_enough_on_a_gpu(monkeypatch, paddles, reason):
    monkeypatch.setattr(paddle.device, "get_device", lambda: "gpu:0")
    asked = []
    monkeypatch.setattr(fused_ln, "why_not", lambda device: asked.append(device) or "no nvcc")
    monkeypatch.setattr(fused_ln.fallback, "paddle_fused_runs", lambda: paddles)
    assert rms_norm.why_not_fused() == reason
    assert asked == ["gpu"], "it is built before a model is built"


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Gemma"])
def test_models_of_paddlenlp_call_the_operator(calls, family):
    """paddle_llm is not involved. The second switch is set because LLaMA reads it and it has no default."""
    import paddlenlp.transformers as nlp

    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 64,
    }
    shape |= {"num_key_value_heads": 2} | ({"head_dim": 16} if family == "Gemma" else {})
    config = getattr(nlp, f"{family}Config")(**shape)
    config.use_fused_rms_norm = config.use_fast_layer_norm = False
    model = getattr(nlp, f"{family}ForCausalLM")(config)
    tokens = paddle.to_tensor(np.random.default_rng(0).integers(0, 64, [2, 9]))

    def found() -> list[np.ndarray]:
        model.clear_gradients()
        loss = model(input_ids=tokens[:, :-1], labels=tokens[:, 1:])
        loss = loss[0] if isinstance(loss, tuple) else loss
        loss.backward()
        return [loss.numpy(), *(parameter.grad.numpy() for parameter in model.parameters())]

    plain = found()
    assert not calls
    config.use_fused_rms_norm = model.config.use_fused_rms_norm = True
    fused = found()
    assert len(calls) == 5
    for one, two in zip(fused, plain, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5 * np.abs(two).max(), rtol=0)


def test_another_module_of_that_name_is_not_used_on_a_cpu(tmp_path, monkeypatch):
    import sys
    from types import ModuleType

    monkeypatch.setitem(sys.modules, "fused_ln", ModuleType("fused_ln"))
    assert "is not the one of this project and runs on GPUs only" in rms_norm.why_not_fused()


def test_the_losses_of_fifty_steps_agree(tmp_path):
    """Every loss of LLaMA in fp32 agrees to 1e-5 with and without the flag."""
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
    assert on != off, "the operator was not used"


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
def test_layouts_equal_one_process(tmp_path, name):
    family, layout, settings = (LAYOUTS | MORE_LAYOUTS)[name]
    verdict = prove(make_case(tmp_path, layout, family=family, use_fused_rms_norm=True, evaluation=3, **settings))
    assert verdict.passed, verdict.failures[0]


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_equal_one_process_without_the_operator(tmp_path, name):
    """The matrix of tests/rehearse uses the operator, which is the default on a CPU."""
    family, layout, settings = LAYOUTS[name]
    verdict = prove(make_case(tmp_path, layout, family=family, use_fused_rms_norm=False, evaluation=3, **settings))
    assert verdict.passed, verdict.failures[0]


def test_saved_models_do_not_name_the_operator(tmp_path):
    """Users of a trained model may not have the operator: neither its folder nor an export may depend on it."""
    from paddle_llm.checkpoint.merged_model import save_merged_model
    from paddle_llm.export.options import Options
    from paddle_llm.export.source.open import open_source
    from paddle_llm.export.targets.hugging_face import write_hf
    from paddle_llm.export.targets.static.target import write_static

    trained = write_folder("llama", train_pieces(tmp_path), tmp_path / "llama")
    model = build(trained, use_fused_rms_norm=True)
    assert model.config.use_fused_rms_norm
    save_merged_model(model, Layout(), tmp_path / "model")
    for write in (write_hf, write_static):
        folder = tmp_path / write.__name__
        folder.mkdir()
        write(open_source(tmp_path / "model", tokenizer=trained), folder, Options())
    programs = [file.read_text() for file in tmp_path.rglob("model.json")]
    configs = [json.loads(file.read_text()) for file in tmp_path.rglob("config.json")]
    assert len(programs) == 1 and "matmul" in programs[0] and "pllm_rms_norm" not in programs[0]
    assert len(configs) == 4 and not any(config.get("use_fused_rms_norm") for config in configs)
    assert "use_fused_rms_norm" not in (tmp_path / "write_hf" / "config.json").read_text()
