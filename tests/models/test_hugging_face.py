"""What Hugging Face saves gives the same logits here. Needs the extra `hf` (torch, transformers)."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from tests.models.building import build

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


def compare(model, folder):
    with torch.no_grad():
        expected = model(torch.tensor(IDS)).logits.numpy()
    loaded = build(folder, load=True, length=24)
    loaded.eval()
    found = loaded(paddle.to_tensor(IDS))[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("name", LLAMAS)
def test_llama(tmp_path, name):
    model = llama(**LLAMAS[name])
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    compare(model, tmp_path)


def test_llama_as_transformers_5_writes_it(tmp_path):
    """transformers 4 stands in: its weights, and its config.json in the later spelling."""
    import json

    model = llama(rope_theta=5e5, rope_scaling=LLAMA3)
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config["rope_parameters"] = {**config.pop("rope_scaling"), "rope_theta": config.pop("rope_theta")}
    file.write_text(json.dumps(config))
    compare(model, tmp_path)


def test_bloom(tmp_path):
    torch.manual_seed(0)
    config = transformers.BloomConfig(vocab_size=128, hidden_size=64, n_layer=2, n_head=4, initializer_range=0.2)
    model = transformers.BloomForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    compare(model, tmp_path)
