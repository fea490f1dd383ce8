"""Checkpoints with 16-bit weights and fp32 master weights. Paddle trains in 16 bits on GPUs only, so that the files are made here.

They have the names that PaddleNLP 3.0.0b4 gives them (`FP32_MASTER` in unified_checkpoint/utils.py) and are written by paddle.save.
"""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_llm.checkpoint.convert.rank_files import split_state_name
from paddle_llm.checkpoint.convert.unified_files import UnifiedFiles
from tests.checkpoint.convert.test_convert import CHECKPOINT, command, edit, ours
from tests.helpers.models.tiny import write_llama

SHAPE = {"num_hidden_layers": 1}


def write_source(folder: Path, *, hidden: int = 32) -> dict[str, np.ndarray]:
    """Write a checkpoint in bfloat16 with master weights, and return its tensors by kind and name."""
    import paddle

    from paddle_llm.config.local_files.model_folder import read_model_facts
    from paddle_llm.families.shape import find_family
    from paddle_llm.models.build import plain_configuration
    from paddle_llm.models.weights.weight_shapes import weight_shapes

    write_llama(folder, hidden_size=hidden, intermediate_size=2 * hidden, **SHAPE)
    edit(folder / "config.json", dtype="bfloat16")
    facts = read_model_facts(folder)
    family = find_family(facts)
    shapes = weight_shapes(plain_configuration(folder, family, facts.raw), family)
    numbers = np.random.default_rng(0)
    found: dict[str, np.ndarray] = {}
    weights: dict[str, Any] = {}
    states: dict[str, Any] = {"master_weights": {}, "LR_Scheduler": {"last_epoch": 2, "last_lr": 0.1}}
    for number, (name, shape) in enumerate(shapes.items()):
        generated = f"linear_{number}.w_0"
        master = paddle.to_tensor(numbers.standard_normal(shape).astype("float32"))
        master.name = f"{generated}_fp32_master_0"
        states["master_weights"][generated] = master
        weights[name] = master.astype("bfloat16")
        weights[name].name = generated
        found |= {f"weights/{name}": weights[name].numpy(), f"master_weights/{name}": master.numpy()}
        for kind, size in (("moment1", shape), ("moment2", shape), ("beta1_pow_acc", (1,)), ("beta2_pow_acc", (1,))):
            value = paddle.to_tensor(numbers.standard_normal(size).astype("float32"))
            states[f"{generated}_fp32_master_0_{kind}_0"] = value
            found[f"{kind}/{name}"] = value.numpy()
    paddle.save(weights, str(folder / "model_state.pdparams"))
    paddle.save(states, str(folder / "optimizer.pdopt"))
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 2, "consumed_samples": 16}))
    return found


def same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    assert all(found[key].tobytes() == value.tobytes() for key, value in wanted.items())


def test_weights_master_weights_and_states_keep_every_bit(tmp_path):
    wanted = write_source(tmp_path / "source")
    assert {value.dtype.name for value in wanted.values()} == {"uint16", "float32"}  # bits of bfloat16
    command(tmp_path / "source", tmp_path / CHECKPOINT, "--allow_pickle")
    same(ours(tmp_path / CHECKPOINT), wanted)


def test_paddlenlp_reads_the_unified_checkpoint_that_is_written(tmp_path):
    from paddlenlp.transformers.model_utils import load_state_dict

    wanted = write_source(tmp_path / "source")
    command(tmp_path / "source", tmp_path / "unified", "--allow_pickle", "--to", "unified")
    kinds = {"model": "weights/{}", "master_weights": "master_weights/{}", "optimizer": "{1}/{0}"}
    found = {}
    for file, key in kinds.items():
        state = load_state_dict(str(tmp_path / "unified" / f"{file}-00001-of-00001.safetensors"), None, None)
        for name, value in state.items():
            weight, _, kind = name.partition("/")
            found[key.format(weight, kind.removesuffix("_0"))] = value.numpy() if hasattr(value, "numpy") else value
    same(found, wanted)
    command(tmp_path / "unified", tmp_path / CHECKPOINT, "--allow_pickle")
    same(ours(tmp_path / CHECKPOINT), wanted)


def test_weights_that_are_only_saved_as_master_weights_are_rounded(tmp_path):
    """As in sharding-io with bfloat16, and in a unified checkpoint with skip_save_model_weight."""
    import paddle

    wanted = write_source(tmp_path / "source")
    table = paddle.load(str(tmp_path / "source" / "model_state.pdparams"), keep_name_table=True)
    names = table["StructuredToParameterName@@"]
    meta = {"sharding_metas": {"tp00_pp00": {"structure_name_mapping": names}}}
    (tmp_path / "source" / "model_meta.json").write_text(json.dumps(meta))
    kept = {"llama.norm.weight": table["llama.norm.weight"]}
    paddle.save(kept, str(tmp_path / "source" / "model_state.pdparams"))
    command(tmp_path / "source", tmp_path / CHECKPOINT, "--allow_pickle")
    same(ours(tmp_path / CHECKPOINT), wanted)
    command(tmp_path / CHECKPOINT, tmp_path / "unified", "--to", "unified")
    unified = tmp_path / "unified"
    (unified / "model-00001-of-00001.safetensors").unlink()
    for index in (
        "model",
        "master_weights",
    ):  # skip_save_model_weight: the master weights are in the files of the model
        (unified / f"{index}.safetensors.index.json").rename(unified / f"{index}.old")
    (unified / "master_weights-00001-of-00001.safetensors").rename(unified / "model-00001-of-00001.safetensors")
    text = (unified / "master_weights.old").read_text().replace("master_weights-0", "model-0")
    (unified / "model.safetensors.index.json").write_text(text)
    edit(unified / "config.json", dtype="bfloat16")
    assert UnifiedFiles(unified).weights_are_master_weights
    command(unified, tmp_path / "again" / CHECKPOINT, "--allow_pickle")
    same(ours(tmp_path / "again" / CHECKPOINT), wanted)


@pytest.mark.parametrize(
    "key, split",
    [
        ("linear_3.w_0_moment1_0", ("linear_3.w_0", "moment1")),
        ("linear_3.w_0_fp32_master_0_beta2_pow_acc_0", ("linear_3.w_0", "beta2_pow_acc")),
        ("linear_3.w_0_1_moment1_0", ("linear_3.w_0_1", "moment1")),
        ("moe_gate_1_moment1_0", ("moe_gate_1", "moment1")),
        ("other.w_0_moment1_0", ("other.w_0_moment1_0", "")),
    ],
)
def test_generated_names_of_states_are_split(key, split):
    assert (
        split_state_name(key, dict.fromkeys(["linear_3.w_0", "linear_3.w_0_1", "moe_gate_1", "moe_gate"], "")) == split
    )


def test_one_tensor_at_a_time_is_in_memory(tmp_path):
    wanted = write_source(tmp_path / "source", hidden=1024)
    largest = max(value.nbytes for value in wanted.values())
    words = {
        "paddle-llm": (tmp_path / "source", tmp_path / CHECKPOINT, "--allow_pickle"),
        "unified": (tmp_path / CHECKPOINT, tmp_path / "unified", "--to", "unified"),
    }
    for one in words.values():
        tracemalloc.start()
        command(*one)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # The reader of this library's format has up to four blocks of 4 MB in memory.
        assert peak < 2 * largest + (20 << 20) < sum(value.nbytes for value in wanted.values()) / 3
