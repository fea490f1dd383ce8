"""docs/adapters.md: its tables match the code, and its commands run."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from paddle_llm.peft.hugging_face.fields import HARMLESS, HONOURED, REFUSED, table
from tests.export.test_merged import base_folder
from tests.helpers.finetune_jobs import VOCABULARY, make_instructions
from tests.helpers.forked import run_forked

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("group", [HONOURED, HARMLESS, REFUSED])
def test_the_tables_of_the_page_match_the_code(group):
    assert PAGE.split(f"<!-- {group} -->")[1].split(f"<!-- /{group} -->")[0].strip() == table(group)


def test_the_commands_train_convert_and_merge_dora(tmp_path):
    make_instructions(tmp_path, train=8)
    base_folder(tmp_path / "llama", "llama", vocab_size=VOCABULARY, num_key_value_heads=2)
    (block,) = re.findall(r"```bash\n(.*?)```", PAGE, re.S)
    for command in block.splitlines():
        program, *words = shlex.split(command)
        start = [str(ROOT / words.pop(0))] if program == "python" else ["-m", "paddle_llm.cli"]
        done = run_forked(*start, *words, cwd=tmp_path, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "peft_adapter" / "adapter_config.json").read_text())["use_dora"] is True
    key = "model.layers.0.self_attn.q_proj"
    tensors = load_file(tmp_path / "peft_adapter" / "adapter_model.safetensors")
    magnitude = tensors[f"base_model.model.{key}.lora_magnitude_vector"]
    merged = load_file(tmp_path / "merged" / "model.safetensors")[f"{key}.weight"]
    np.testing.assert_allclose(np.linalg.norm(merged, axis=1), magnitude, rtol=1e-5)  # DoRA's definition
