"""Networks from a config.json alone: they learn, and the same seed gives the same weights."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.config.run_config import RunConfig
from paddle_llm.core.errors import UserError
from paddle_llm.families import FAMILIES
from paddle_llm.models.build import build_model
from tests.helpers.models import tiny
from tests.helpers.models.networks import WRITERS, batch, build, weights


@pytest.mark.parametrize("family", FAMILIES)
def test_random_weights_learn(tmp_path, family):
    model = build(WRITERS[family](tmp_path))
    model.train()
    optimizer = paddle.optimizer.AdamW(learning_rate=3e-3, parameters=model.parameters())
    losses = []
    for _ in range(8):
        loss = model(**batch(family))[0]
        loss.backward()
        unmoved = [name for name, p in model.named_parameters() if p.grad is None or float(p.grad.abs().max()) == 0]
        optimizer.step()
        optimizer.clear_grad()
        losses.append(float(loss))
    assert losses[0] == pytest.approx(np.log(128), rel=0.05), "random weights should not have learned anything"
    assert losses[-1] < losses[0] - 0.8
    assert not unmoved


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seed_determines_the_weights(tmp_path, family):
    folder = WRITERS[family](tmp_path)
    first, same, other = (weights(build(folder, seed=seed), family) for seed in (3, 3, 4))
    for name, value in first.items():
        np.testing.assert_array_equal(value, same[name], err_msg=name)
        if value.ndim == 2:
            assert value.std() > 0.005, f"{name} is not random"
            assert abs(np.corrcoef(value.ravel(), other[name].ravel())[0, 1]) < 0.2
    matrices = [value for value in first.values() if value.ndim == 2]
    assert len({value.tobytes() for value in matrices}) == len(matrices), "two layers have equal initial weights"


def test_weights_do_not_depend_on_the_global_random_state(tmp_path):
    folder = tiny.write_llama(tmp_path)
    paddle.seed(1)
    first = weights(build(folder), "llama")
    paddle.seed(2)
    np.random.seed(5)
    assert all((value == first[name]).all() for name, value in weights(build(folder), "llama").items())


@pytest.mark.parametrize("granularity", ["full", "full_attn", "core_attn"])
@pytest.mark.parametrize("family", FAMILIES)
def test_recompute_changes_nothing(tmp_path, family, granularity):
    folder = WRITERS[family](tmp_path)
    plain = build(folder)
    loss = plain(**batch(family))[0]
    loss.backward()
    again = build(folder, recompute=True, recompute_granularity=granularity)
    again.recompute_enable()
    again.train()
    loss_again = again(**batch(family))[0]
    loss_again.backward()
    assert float(loss) == float(loss_again)
    for (name, one), (_, two) in zip(plain.named_parameters(), again.named_parameters(), strict=True):
        np.testing.assert_array_equal(one.grad.numpy(), two.grad.numpy(), err_msg=name)


def test_fewer_layers_can_be_built(tmp_path):
    for family, writer in WRITERS.items():
        model = build(writer(tmp_path / family), num_hidden_layers=2)
        assert not any(".2." in name for name in model.state_dict())


@pytest.mark.parametrize(
    ("family", "layout", "message"),
    [
        ("chatglm", Layout(pipeline=2), "no pipeline for"),
        ("bloom", Layout(tensor=2, sequence_parallel=True), "sequence_parallel is not supported for BLOOM"),
    ],
)
def test_layouts_that_a_family_does_not_have_are_refused(tmp_path, family, layout, message):
    with pytest.raises(UserError, match=message):
        build(WRITERS[family](tmp_path), layout=layout)


@pytest.mark.parametrize(
    ("family", "layout", "model", "message"),
    [
        ("llama", Layout(pipeline=5), {}, "has 4 layers: a stage would be empty"),
        ("llama", Layout(pipeline=4, virtual_stages=2), {}, "does not divide the 4 layers of the model"),
        ("llama", Layout(tensor=3), {}, "does not divide the 4 attention heads of the model"),
        (
            "llama",
            Layout(tensor=2),
            {"num_key_value_heads": 1, "fuse_attention_qkv": True},
            "cannot be in one matrix",
        ),
        ("chatglm_v2", Layout(tensor=4), {}, "PaddleNLP cannot split them for ChatGLM2/3. Use one of 1, 2."),
    ],
)
def test_layouts_that_a_shape_does_not_allow_are_refused(tmp_path, family, layout, model, message):
    """The checks of the reader also run if a model is built from Python."""
    with pytest.raises(UserError, match=message):
        build(WRITERS[family](tmp_path, **model), layout=layout)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_every_class_that_a_family_names_can_be_imported(family):
    assert issubclass(family.load("model_class"), paddle.nn.Layer)
    assert family.load("config_class").__name__.endswith("Config")
    if family.pipeline_class:
        assert issubclass(family.load("pipeline_class"), paddle.nn.Layer)


def test_other_families_are_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="'mamba'.*LLaMA"):
        build(tiny.write_llama(tmp_path, model_type="mamba"))


def test_kernels_that_a_cpu_lacks_are_reported(tmp_path, capsys):
    model = build(tiny.write_llama(tmp_path), use_flash_attention=True, use_fused_rope=True)
    reported = capsys.readouterr().err
    assert "--use_flash_attention is off" in reported and "--use_fused_rope is off" in reported
    assert not model.config.use_flash_attention and not model.config.use_fused_rope


def test_dropout_is_set_or_refused(tmp_path):
    model = build(tiny.write_bloom(tmp_path / "bloom"), hidden_dropout_prob=0.25, attention_probs_dropout_prob=0.5)
    assert (model.config.hidden_dropout, model.config.attention_dropout) == (0.25, 0.5)
    with pytest.raises(UserError, match="LLaMA has no dropout"):
        build(tiny.write_llama(tmp_path / "llama"), hidden_dropout_prob=0.1)


def test_a_name_that_cannot_be_downloaded_is_reported(tmp_path, monkeypatch):
    import paddlenlp.utils.download as download

    def no_network(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(download, "resolve_file_path", no_network)
    with pytest.raises(UserError, match="somebody/some-model.*no route to host.*local folder"):
        build("somebody/some-model")
    with pytest.raises(UserError, match="no such folder"):
        build(tmp_path / "missing")


def test_switches_that_a_family_does_not_have_are_reported(tmp_path, capsys):
    fields = {"recompute": True, "recompute_granularity": "core_attn", "no_recompute_layers": [0]}
    build(tiny.write_bloom(tmp_path / "bloom"), fuse_attention_qkv=True, **fields)
    reported = capsys.readouterr().err
    for name in (
        "recompute_granularity core_attn is replaced by full",
        "no_recompute_layers is ignored",
        "fuse_attention_qkv is ignored",
    ):
        assert reported.count(name) == 1
    build(tiny.write_llama(tmp_path / "llama"), fuse_attention_qkv=True, **fields)
    assert "--" not in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "family", ["llama", "chatglm", "bloom"]
)  # the rotary table of ChatGLM2 cannot have 16 bits on a CPU
def test_weights_of_16_bits_are_those_of_32_rounded(tmp_path, family, dtype):
    folder = WRITERS[family](tmp_path)
    run = RunConfig(model_name_or_path=str(folder), max_seq_length=16, device="cpu")
    short, full = (build_model(run, Layout(), dtype=name) for name in (dtype, "float32"))
    assert paddle.get_default_dtype() == "float32"
    for (name, one), (_, two) in zip(short.named_parameters(), full.named_parameters(), strict=True):
        assert str(one.dtype) == f"paddle.{dtype}"
        np.testing.assert_array_equal(one.astype("float32").numpy(), two.astype(dtype).astype("float32").numpy(), name)
