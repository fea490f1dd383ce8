"""Texts longer than the trained positions: greedy decoding with scaled RoPE and a cache equals transformers."""

from __future__ import annotations

import numpy as np
import pytest

from paddle_llm.config.local_files.model_folder import read_model_facts
from paddle_llm.families.positions import position_limit
from paddle_llm.generation.decoding.decode import decode
from paddle_llm.generation.eval_mode import generating
from paddle_llm.generation.options import DecodeOptions
from paddle_llm.models.prompt import Prompt
from tests.helpers.models.networks import build

torch = pytest.importorskip("torch", reason="parity with Hugging Face needs the extra hf (torch, transformers)")
transformers = pytest.importorskip("transformers", reason="parity with Hugging Face needs the extra hf")
pytestmark = pytest.mark.hf

_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
# (config, the longest sequence)
_SCALINGS = {
    "linear": ({"max_position_embeddings": 16, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}, 64),
    "linear, older name": ({"max_position_embeddings": 16, "rope_scaling": {"type": "linear", "factor": 2.5}}, 40),
    "dynamic": ({"max_position_embeddings": 16, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, None),
    "llama3": (
        {"max_position_embeddings": 64, "rope_scaling": {"rope_type": "llama3", "factor": 4.0, **_LLAMA3}},
        64,
    ),
}


@pytest.mark.parametrize("name", _SCALINGS)
def test_a_long_prompt_is_continued_as_by_transformers(name, tmp_path):
    overrides, limit = _SCALINGS[name]
    torch.manual_seed(1)
    sizes = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**sizes, num_attention_heads=4, initializer_range=0.3, **overrides)
    ).eval()
    model.save_pretrained(tmp_path)
    prompt, count = np.random.default_rng(3).integers(5, 128, 28).tolist(), 12
    with torch.no_grad():
        expected = model.generate(
            torch.tensor([prompt]), max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0, len(prompt) :].tolist()
    ours = build(tmp_path, load=True, length=64)
    ours.eval()
    with generating(ours):
        found = decode(ours, [Prompt(prompt)], [count], DecodeOptions("llama"))
    assert found == [expected]
    assert read_model_facts(tmp_path).position_limit == limit
    assert position_limit(ours.config) == limit
