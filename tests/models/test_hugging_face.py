"""Models saved by Hugging Face give the same logits here. Needs the extra `hf` (torch, transformers)."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from paddle_llm.core.errors import UserError
from tests.helpers.models.networks import build

torch = pytest.importorskip("torch", reason="parity with Hugging Face needs the extra hf (torch, transformers)")
transformers = pytest.importorskip("transformers", reason="parity with Hugging Face needs the extra hf")
pytestmark = pytest.mark.hf

IDS = np.random.default_rng(0).integers(0, 128, (2, 24))
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LLAMAS = {
    "plain": {},
    "grouped": {"num_key_value_heads": 2},
    "tied": {"tie_word_embeddings": True},
    "theta": {"rope_theta": 5e5},
    "llama3": {"rope_theta": 5e5, "rope_scaling": LLAMA3},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}, "max_position_embeddings": 16},
}


def llama(**overrides):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,  # so that attention is far from uniform and positions matter
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**sizes, **overrides})).eval()


def compare(model, folder, **fields):
    with torch.no_grad():
        expected = model(torch.tensor(IDS)).logits.numpy()
    loaded = build(folder, load=True, length=24, **fields)
    loaded.eval()
    found = loaded(paddle.to_tensor(IDS))[0].numpy()
    assert_alike(found, expected)


@pytest.mark.parametrize("name", LLAMAS)
def test_llama(tmp_path, name):
    model = llama(**LLAMAS[name])
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    compare(model, tmp_path)


def test_llama_as_transformers_5_writes_it(tmp_path):
    """The weights are of transformers 4, the fields in config.json of transformers 5."""
    import json

    model = llama(rope_theta=5e5, rope_scaling=LLAMA3)
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config["rope_parameters"] = {**config.pop("rope_scaling"), "rope_theta": config.pop("rope_theta")}
    file.write_text(json.dumps(config))
    compare(model, tmp_path)


SIZES = {"vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
OPTS = {
    "plain": {},
    "350m": {"word_embed_proj_dim": 32, "do_layer_norm_before": False},
}
QWENS = {"plain": {}, "grouped": {"num_key_value_heads": 2}, "tied": {"tie_word_embeddings": True}}


def bloom():
    torch.manual_seed(0)
    config = transformers.BloomConfig(vocab_size=128, hidden_size=64, n_layer=2, n_head=4, initializer_range=0.2)
    return transformers.BloomForCausalLM(config).eval()


def opt(**overrides):
    torch.manual_seed(0)
    sizes = {**SIZES, "ffn_dim": 96, "max_position_embeddings": 64, "word_embed_proj_dim": 64, "init_std": 0.2}
    model = transformers.OPTForCausalLM(transformers.OPTConfig(**{**sizes, **overrides})).eval()
    return give_biases(model)


def qwen2(**overrides):
    torch.manual_seed(0)
    sizes = {**SIZES, "intermediate_size": 96, "num_key_value_heads": 4, "max_position_embeddings": 64}
    config = transformers.Qwen2Config(**{**sizes, "initializer_range": 0.2, "rope_theta": 1e6, **overrides})
    return give_biases(transformers.Qwen2ForCausalLM(config).eval())


def mistral(**overrides):
    """Return a model whose window is shorter than the sequences of these tests."""
    torch.manual_seed(0)
    sizes = {**SIZES, "intermediate_size": 96, "num_key_value_heads": 2, "max_position_embeddings": 64}
    config = transformers.MistralConfig(**{**sizes, "initializer_range": 0.2, "sliding_window": 7, **overrides})
    return transformers.MistralForCausalLM(config).eval()


def give_biases(model):
    """Set random biases: zeros would hide a bias in the wrong position."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.2)
    return model


def test_bloom(tmp_path):
    model = bloom()
    model.save_pretrained(tmp_path)
    compare(model, tmp_path)


@pytest.mark.parametrize("name", OPTS)
def test_opt(tmp_path, name):
    model = opt(**OPTS[name])
    model.save_pretrained(tmp_path)
    compare(model, tmp_path)


@pytest.mark.parametrize("name", QWENS)
def test_qwen2(tmp_path, name):
    model = qwen2(**QWENS[name])
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    compare(model, tmp_path)


MISTRALS = {
    "window": {},
    "no window": {"sliding_window": None},
    "window as long as the text": {"sliding_window": 24},
    "padding token": {"pad_token_id": int(IDS[0, 3]), "rope_theta": 1e6},
}


@pytest.mark.parametrize("name", MISTRALS)
def test_mistral(tmp_path, name):
    model = mistral(**MISTRALS[name])
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    compare(model, tmp_path)


def test_mistral_generates_beyond_its_window_as_transformers_does(tmp_path):
    from paddle_llm.generation.decoding.decode import decode
    from paddle_llm.generation.options import DecodeOptions
    from paddle_llm.models.prompt import Prompt

    model = mistral()
    model.save_pretrained(tmp_path)
    network = build(tmp_path, load=True, length=64)
    network.eval()
    with torch.no_grad():
        expected = model.generate(torch.tensor(IDS), max_new_tokens=12, do_sample=False, eos_token_id=None)
    prompts = [Prompt(row.tolist()) for row in IDS]
    assert decode(network, prompts, [12, 12], DecodeOptions("mistral")) == expected[:, IDS.shape[1] :].tolist()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, "scaled RoPE"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings = True"),
        ({"sliding_window": 0}, "sliding_window = 0"),
    ],
)
def test_settings_that_paddlenlps_mistral_lacks_are_refused(tmp_path, fields, message):
    import json

    mistral().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    with pytest.raises(UserError, match=message):
        build(tmp_path, load=True)


@pytest.mark.parametrize("shards", ["one file", "sharded"])
def test_torch_pickles_are_read_if_allowed(tmp_path, shards):
    model = opt()
    size = "50KB" if shards == "sharded" else "1GB"
    model.save_pretrained(tmp_path, safe_serialization=False, max_shard_size=size)
    assert (len(list(tmp_path.glob("*.bin"))) > 1) == (shards == "sharded")
    with pytest.raises(UserError, match="--allow_pickle"):
        build(tmp_path, load=True)
    compare(model, tmp_path, allow_pickle=True)


def test_settings_that_paddlenlps_qwen2_lacks_are_refused(tmp_path):
    qwen2(rope_scaling={"rope_type": "linear", "factor": 4.0}).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="scaled RoPE"):
        build(tmp_path, load=True)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("make", [llama, bloom, opt, qwen2, mistral], ids=lambda make: make.__name__)
def test_padding_changes_nothing(tmp_path, make, side):
    """The second of two rows has 17 tokens and 7 of padding. The logits equal those of Hugging Face and those without padding."""
    model = make()
    model.save_pretrained(tmp_path)
    network = build(tmp_path, load=True, length=24)
    network.eval()
    mask = np.ones_like(IDS)
    mask[1, slice(0, 7) if side == "left" else slice(17, 24)] = 0
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    inputs = {"input_ids": IDS, "attention_mask": mask}
    # BLOOM and OPT compute positions from the mask; the others receive them, as in generation.
    given = {} if make in (bloom, opt) else {"position_ids": positions}
    with torch.no_grad():
        expected = model(**{name: torch.tensor(value) for name, value in (inputs | given).items()}).logits.numpy()
    found = network(**{name: paddle.to_tensor(value) for name, value in (inputs | given).items()})[0].numpy()
    assert_alike(found[mask == 1], expected[mask == 1])
    alone = network(paddle.to_tensor(IDS[1:][:, mask[1] == 1]))[0].numpy()
    assert_alike(found[1][mask[1] == 1], alone[0])


def assert_alike(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-5 * max(1.0, np.abs(expected).max()))
