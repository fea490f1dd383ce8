"""docs/reference/adapters.md: its tables match the code, and its commands run."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from paddle_llm.models.weights.files import WeightFiles
from paddle_llm.peft.hugging_face.fields import HARMLESS, HONOURED, REFUSED, table
from paddle_llm.peft.method import Method
from tests.export.test_merged import base_folder, trained_adapter
from tests.helpers import doc_pages
from tests.helpers.finetune_jobs import VOCABULARY, make_instructions
from tests.helpers.forked import run_forked
from tests.helpers.models.folders import train_pieces, write_folder

ROOT = Path(__file__).parents[2]
FILE = doc_pages.DOCS / "reference/adapters.md"
PAGE = FILE.read_text(encoding="utf-8")


@pytest.mark.parametrize("group", [HONOURED, HARMLESS, REFUSED])
def test_the_tables_of_the_page_match_the_code(group):
    assert PAGE.split(f"<!-- {group} -->")[1].split(f"<!-- /{group} -->")[0].strip() == table(group)


def run_block(number: int, folder: Path) -> str:
    """Run the commands of a block of the page in a folder, and return what they print."""
    printed = ""
    for command in [block for block in doc_pages.blocks(FILE) if block.commands][number].commands:
        program, *words = shlex.split(command)
        start = [str(ROOT / words.pop(0))] if program == "python" else ["-m", "paddle_llm.cli"]
        done = run_forked(*start, *words, cwd=folder, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        printed += done.stdout + done.stderr
    return printed


def test_the_commands_train_convert_and_merge_dora(tmp_path):
    make_instructions(tmp_path, train=8)
    base_folder(tmp_path / "llama", "llama", vocab_size=VOCABULARY, num_key_value_heads=2)
    run_block(0, tmp_path)
    assert json.loads((tmp_path / "peft_adapter" / "adapter_config.json").read_text())["use_dora"] is True
    key = "model.layers.0.self_attn.q_proj"
    tensors = load_file(tmp_path / "peft_adapter" / "adapter_model.safetensors")
    magnitude = tensors[f"base_model.model.{key}.lora_magnitude_vector"]
    merged = load_file(tmp_path / "merged" / "model.safetensors")[f"{key}.weight"]
    np.testing.assert_allclose(np.linalg.norm(merged, axis=1), magnitude, rtol=1e-5)  # DoRA's definition


def test_the_commands_merge_adapters_into_one_and_into_the_base(tmp_path):
    base = write_folder("llama", train_pieces(tmp_path), tmp_path / "llama")
    for name, rank in (("law", 8), ("chat", 4)):
        trained_adapter(tmp_path / name, base, Method("lora", rank=rank, targets=("q_proj",)))
    printed = run_block(1, tmp_path)
    assert "both: LoRA adapter in the format of this library, rank 12" in printed
    assert "small: LoRA adapter in the format of Hugging Face's PEFT, rank 4" in printed
    assert "relative error of the sum" in printed
    read = {name: WeightFiles(tmp_path / name, file="adapter_model.safetensors") for name in ("law", "chat")}
    layer = "llama.layers.0.self_attn.q_proj"
    added = sum(
        factor * 2 * read[name].view(f"{layer}.lora_A") @ read[name].view(f"{layer}.lora_B")  # alpha is twice the rank
        for name, factor in (("law", 0.7), ("chat", 0.3))
    )
    key = "model.layers.0.self_attn.q_proj.weight"
    before, after = (WeightFiles(tmp_path / name).view(key) for name in ("llama", "exported"))
    np.testing.assert_allclose(after, before + added.T, atol=1e-6)
