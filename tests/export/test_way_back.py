"""An export to Hugging Face is where training starts from again: the same weights, bit by bit, and the same first steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.config.run_config import RunConfig
from paddle_llm.families import FAMILIES
from tests.export.folders import same_bits, stored_in, write_native
from tests.export.test_layout_files import trained
from tests.helpers.finetune_jobs import finetune, make_instructions
from tests.helpers.models.networks import weights
from tests.helpers.pretrain_jobs import config, make_trainer, numbers

LLAMAS: dict[str, dict[str, Any]] = {
    "tied": {"tie_word_embeddings": True},
    "one key-value head": {"num_key_value_heads": 1},
    "every head its own": {"num_key_value_heads": 4},
}


def exported(folder: Path, **options: Any) -> Path:
    from paddle_llm.export import export

    return export(folder, "hf", folder.with_name(folder.name + "-hf"), verify=False, **options).folder


def loaded(folder: Path, family: str, **flags: Any) -> dict[str, np.ndarray]:
    """Return the weights with which a run continues training in fp32 from a folder, by canonical name."""
    from paddle_llm.models.build import build_model

    run = RunConfig(model_name_or_path=str(folder), max_seq_length=16, continue_training=True, device="cpu", **flags)
    return weights(build_model(run, Layout(), dtype="float32"), family)


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    different = [name for name, value in expected.items() if not same_bits(found[name], value)]
    assert not different


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_comes_back(tmp_path, family, dtype):
    expected = write_native(tmp_path / "model", family, dtype)
    out = exported(tmp_path / "model", max_shard_size=60_000)
    assert len(list(out.glob("*.safetensors"))) > 1
    if dtype == "bfloat16":
        expected = {name: (bits.astype(np.uint32) << 16).view(np.float32) for name, bits in expected.items()}
    assert {code for code, _ in stored_in(out).values()} == {"F32" if dtype == "float32" else "BF16"}
    assert_same(loaded(out, family), expected)


@pytest.mark.parametrize("name", LLAMAS)
def test_llamas_come_back(tmp_path, name):
    expected = write_native(tmp_path / "model", "llama", **LLAMAS[name])
    assert ("lm_head.weight" in stored_in(exported(tmp_path / "model"))) == (name != "tied")
    assert_same(loaded(tmp_path / "model-hf", "llama"), expected)


CHECKPOINTS: dict[str, tuple] = {
    "llama, padded and fused": (
        "llama",
        Layout(tensor=2),
        {"fuse_attention_qkv": True, "fuse_attention_ffn": True},
        {"num_key_value_heads": 2, "tie_word_embeddings": True},
    ),
    "llama, padded, with stages": ("llama", Layout(tensor=2, pipeline=2), {}, {}),
    "chatglm2, padded": ("chatglm_v2", Layout(tensor=2), {}, {}),
    "bloom, padded": ("bloom", Layout(tensor=2), {}, {}),
    "opt, padded": ("opt", Layout(tensor=2), {}, {}),
    "glm, padded": ("glm", Layout(tensor=2), {}, {}),
    "qwen2, padded": ("qwen2", Layout(tensor=2), {}, {"num_key_value_heads": 2}),
}


@pytest.mark.slow  # the fast tests of layout_files.py read such a checkpoint, too
@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_checkpoint_of_several_ranks_comes_back(tmp_path, case):
    """Its vocabulary of 129 is padded to 130 in the checkpoint's files, and in no export."""
    family, layout, flags, shape = CHECKPOINTS[case]
    output = trained(tmp_path, layout, family, flags, **shape)
    out = exported(output / "checkpoint-2")
    # What the run gathered itself, in the fusion that it was trained in.
    assert_same(loaded(out, family, **flags), loaded(output / "model", family, **flags))
    tables = ("embed_tokens.weight", "word_embeddings.weight", "lm_head.weight", "output_layer.weight")
    assert {len(values) for name, (_, values) in stored_in(out).items() if name.endswith(tables)} == {129}


def test_pretraining_takes_the_same_steps(tmp_path):
    write_native(tmp_path / "model", "llama", vocab_size=128)
    steps = []
    for number, start in enumerate((tmp_path / "model", exported(tmp_path / "model"))):
        output = tmp_path / f"output{number}"
        run = config(
            tmp_path,
            model_name_or_path=str(start),
            continue_training=True,
            output_dir=str(output),
            max_steps=3,
            logging_steps=1,
            do_eval=False,
        )
        make_trainer(run).train()
        steps.append(numbers(output))
    assert len(steps[0]) == 3 and steps[0] == steps[1]


@pytest.mark.slow
def test_fine_tuning_takes_the_same_steps(tmp_path):
    """With the tokenizer of the export, too."""
    folder = make_instructions(tmp_path)
    finetune(folder, tmp_path / "first", max_steps=2)
    out = exported(tmp_path / "first" / "model")
    steps = []
    for number, start in enumerate((tmp_path / "first" / "model", out)):
        output = tmp_path / f"output{number}"
        finetune(folder, output, model_name_or_path=start, continue_training=True, max_steps=4)
        steps.append(numbers(output))
    assert len(steps[0]) > 2 and steps[0] == steps[1]
