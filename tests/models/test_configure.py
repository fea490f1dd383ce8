"""config.json under all names becomes PaddleNLP's configuration; what PaddleNLP does not support is refused."""

from __future__ import annotations

import json

import numpy as np
import paddle
import pytest

from paddle_llm.core.errors import UserError
from tests.helpers.models import tiny
from tests.helpers.models.networks import build


def logits(folder, **fields):
    return build(folder, **fields)(paddle.to_tensor(np.arange(24).reshape(1, 24)))[0].numpy()


def test_rope_parameters_of_transformers_5_are_honoured(tmp_path):
    old = tiny.write_llama(tmp_path / "old", rope_theta=500.0)
    new = tiny.write_llama_hf5(tmp_path / "new", {"rope_type": "default", "rope_theta": 500.0})
    other = tiny.write_llama(tmp_path / "other", rope_theta=10000.0)
    np.testing.assert_array_equal(logits(old), logits(new))
    assert np.abs(logits(old) - logits(other)).max() > 1e-4


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8,
        },
    ],
)
def test_rope_scaling_is_honoured_under_both_names(tmp_path, scaling):
    # Dynamic scaling begins beyond the positions of the model; the other methods must not be evaluated there.
    sizes = {"max_position_embeddings": 16 if scaling["rope_type"] == "dynamic" else 64}
    old = tiny.write_llama(tmp_path / "old", rope_scaling=scaling, **sizes)
    new = tiny.write_llama_hf5(tmp_path / "new", {**scaling, "rope_theta": 10000.0}, **sizes)
    plain = tiny.write_llama(tmp_path / "plain", max_position_embeddings=64)
    np.testing.assert_array_equal(logits(old), logits(new))
    assert np.abs(logits(old) - logits(plain)).max() > 1e-5


@pytest.mark.parametrize(
    ("writer", "override", "message"),
    [
        (tiny.write_llama, {"head_dim": 32}, "head_dim = 32"),
        (tiny.write_llama, {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "'yarn'"),
        (tiny.write_llama, {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor"),
        (tiny.write_llama, {"attention_bias": True}, "attention_bias"),
        (tiny.write_llama, {"hidden_act": "gelu"}, "hidden_act"),
        (
            tiny.write_llama,
            {"quantization_config": {"bits": 4, "quant_method": "awq"}},
            r"quantized \(quantization_config: awq",
        ),
        (tiny.write_llama, {"quantization_config": {"bits": 5, "quant_method": "gptq"}}, "gptq with bits = 5"),
        (tiny.write_llama, {"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        (tiny.write_llama, {"quantization_config": {"load_in_4bit": True}}, "bitsandbytes"),
        (tiny.write_llama, {"attention_dropout": 0.1}, "attention_dropout"),
        (tiny.write_llama, {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        (tiny.write_llama, {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        (tiny.write_llama, {"rope_scaling": {"type": "linear"}}, "factor = None"),
        (tiny.write_llama, {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "full_attention"),
        (
            tiny.write_llama,
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "yarn", "factor": 2}},
            "keep one of them",
        ),
        (tiny.write_llama, {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta_fast": 32}}, "beta_fast"),
        (tiny.write_llama, {"rope_theta": False}, "rope_theta False"),
        (tiny.write_llama, {"rope_theta": "10000.0"}, "rope_theta '10000.0'"),
        (tiny.write_llama, {"rms_norm_eps": "1e-5"}, "rms_norm_eps '1e-5'"),
        (tiny.write_llama, {"rope_parameters": {"rope_theta": 0}}, "rope_theta = 0 in the RoPE parameters"),
        (tiny.write_llama, {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}}, "contradicts 500000.0"),
        (
            tiny.write_llama,
            {"rope_scaling": {"type": "dynamic", "rope_type": "linear", "factor": 2.0}},
            "'linear' contradicts type = 'dynamic'",
        ),
        (
            tiny.write_llama,
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": "8.0",
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8,
                }
            },
            "'llama3' with factor = '8.0'",
        ),
        (tiny.write_qwen2, {"use_sliding_window": True}, "use_sliding_window"),
        (tiny.write_qwen2, {"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        (tiny.write_qwen2, {"use_mrope": True}, "use_mrope"),
        (tiny.write_qwen2, {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "yarn"),
        (tiny.write_bloom, {"tie_word_embeddings": False}, "tie_word_embeddings"),
        (tiny.write_bloom, {"num_attention_heads": 2}, "contradicts"),
        (tiny.write_opt, {"_remove_final_layer_norm": True}, "_remove_final_layer_norm"),
        (tiny.write_opt, {"activation_function": "gelu"}, "activation_function"),
        (tiny.write_chatglm2, {"kv_channels": 32}, "kv_channels = 32"),
        (tiny.write_chatglm2, {"rope_ratio": 50}, "rope_ratio"),
        (tiny.write_chatglm2, {"rmsnorm": False}, "rmsnorm"),
        (tiny.write_chatglm, {"position_encoding_2d": False}, "position_encoding_2d"),
        (tiny.write_chatglm, {"quantization_bit": 4}, "quantized"),
    ],
)
def test_what_paddlenlp_cannot_express_is_refused(tmp_path, writer, override, message):
    with pytest.raises(UserError, match=message):
        build(writer(tmp_path, **override))


@pytest.mark.parametrize("writer", [tiny.write_llama, tiny.write_qwen2, tiny.write_bloom, tiny.write_opt])
def test_every_default_of_transformers_is_known(tmp_path, writer, capsys):
    """Every field of the library's configuration class, at its default, is honoured or harmless."""
    import transformers

    raw = json.loads(writer(tmp_path).joinpath("config.json").read_text())
    transformers.AutoConfig.for_model(raw.pop("model_type"), **raw).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    everything = transformers.AutoConfig.from_pretrained(tmp_path).to_dict()
    (tmp_path / "config.json").write_text(json.dumps(everything | saved))
    capsys.readouterr()
    build(tmp_path)
    assert "unknown" not in capsys.readouterr().err


def test_null_counts_as_false_for_a_boolean(tmp_path):
    folder = tiny.write_llama(tmp_path)
    raw = json.loads((folder / "config.json").read_text())
    raw |= dict.fromkeys(
        ("attention_bias", "mlp_bias", "attention_dropout", "rope_scaling", "head_dim", "quantization_config")
    )
    (folder / "config.json").write_text(json.dumps(raw))
    build(folder)


def test_all_problems_are_reported_together(tmp_path):
    with pytest.raises(UserError) as error:
        build(tiny.write_llama(tmp_path, head_dim=32, mlp_bias=True, hidden_act="gelu"))
    assert all(word in str(error.value) for word in ("head_dim", "mlp_bias", "hidden_act"))


def test_chatglm2_keys_of_hugging_face_reach_the_network(tmp_path):
    config = build(tiny.write_chatglm2(tmp_path, padded_vocab_size=96, num_layers=3)).config
    assert (config.vocab_size, config.num_hidden_layers, config.max_sequence_length) == (96, 3, 128)
    config = build(tiny.write_chatglm2(tmp_path, multi_query_attention=False)).config
    assert config.multi_query_group_num == 4


def test_bloom_keys_under_both_names_reach_the_network(tmp_path):
    config = build(tiny.write_bloom(tmp_path, hidden_size=None, n_embed=32, n_head=None, num_attention_heads=2)).config
    assert (config.hidden_size, config.n_head, config.n_layer) == (32, 2, 4)
    config = build(tiny.write_bloom(tmp_path, n_layer=None, num_hidden_layers=3)).config
    assert config.n_layer == 3


def test_a_saved_config_builds_the_same_network(tmp_path):
    for writer in (tiny.write_llama, tiny.write_chatglm, tiny.write_chatglm2, tiny.write_bloom):
        model = build(writer(tmp_path / writer.__name__))
        model.config.save_pretrained(str(tmp_path / "saved"))
        again = build(tmp_path / "saved")
        assert {n: v.shape for n, v in model.state_dict().items()} == {
            n: v.shape for n, v in again.state_dict().items()
        }
