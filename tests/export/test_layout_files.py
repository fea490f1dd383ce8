"""Tensors of a checkpoint equal, bit for bit, those that the run itself gathered into its model folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from paddle_llm.config.layout import Layout
from paddle_llm.core.errors import UserError
from paddle_llm.models.weights.files import WeightFiles
from paddle_llm.rehearse.ranks import run_ranks
from tests.helpers.finetune_jobs import finetune, make_instructions
from tests.helpers.models.networks import WRITERS
from tests.helpers.pretrain_jobs import Toy, config, make_trainer

STEPS = 2
ODD = 129  # a vocabulary that no tensor-parallel degree here divides


class Masked(Toy):
    """Samples in the form that ChatGLM-6B reads."""

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        from paddle_llm.models.chatglm_pretrain import ChatGLMPretrainTransform

        sample = super().__getitem__(index)
        return ChatGLMPretrainTransform(125, 126)(np.append(sample["input_ids"], sample["labels"][-1]))


def train(folder: Path, layout: Layout, flags: dict[str, Any]) -> None:
    """Two steps through the real trainer, a checkpoint, and the gathered model folder. Runs inside ranks."""
    from paddle_llm.checkpoint.merged_model import save_merged_model
    from paddle_llm.parallel.process.start import start_process

    start_process("cpu", layout.world_size)
    run = config(folder, max_steps=STEPS, save_steps=STEPS, do_eval=False, **flags)
    trainer = make_trainer(run, layout, train=Masked(64) if flags.get("model_type") == "chatglm" else None)
    trainer.train()
    save_merged_model(trainer.model, layout, folder / "output/model")


def trained(folder: Path, layout: Layout, family: str = "llama", flags: Any = None, **shape: Any) -> Path:
    """Return the output folder of such a run."""
    size = "padded_vocab_size" if family == "chatglm_v2" else "vocab_size"
    WRITERS[family](folder / "llama", **{size: ODD, **shape})
    degrees: dict[str, Any] = {
        "tensor_parallel_degree": layout.tensor,
        "pipeline_parallel_degree": layout.pipeline,
        "virtual_pp_degree": layout.virtual_stages,
        "sequence_parallel": layout.sequence_parallel,
    }
    if layout.sharding > 1:
        degrees |= {"sharding": f"stage{layout.sharding_stage}", "sharding_parallel_degree": layout.sharding}
    run_ranks(train, layout.world_size, folder, layout, degrees | (flags or {}), quiet=True, timeout=240)
    return folder / "output"


def tensors_in(folder: Path) -> dict[str, np.ndarray]:
    """Return the tensors of all safetensors files."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="np") as opened:
            names = opened.keys()
            found |= {name: opened.get_tensor(name) for name in names}
    return found


def same(files: Any, names: list[str], wanted: dict[str, np.ndarray]) -> None:
    assert set(names) == set(wanted)
    for name in names:
        read = files.read(name)
        assert read.shape == files.shape(name) == wanted[name].shape, name
        assert files.dtype(name) == wanted[name].dtype.name == "float32" and np.array_equal(read, wanted[name]), name


FAST: dict[str, tuple] = {
    "tensor x pipeline, tied": (Layout(tensor=2, pipeline=2), "llama", None, {"tie_word_embeddings": True}),
    "stage 3": (Layout(sharding=2, sharding_stage=3), "llama", None, {}),
}
SLOW: dict[str, tuple] = {
    "one process": (Layout(), "llama", None, {"tie_word_embeddings": True}),
    "data": (Layout(data=2), "llama", None, {}),
    "stage 1": (Layout(sharding=2, sharding_stage=1), "llama", None, {}),
    "stage 2 x pipeline": (Layout(sharding=2, sharding_stage=2, pipeline=2), "llama", None, {}),
    "stage 3 x tensor": (Layout(sharding=2, sharding_stage=3, tensor=2), "llama", None, {"num_key_value_heads": 2}),
    "shared key-value heads": (Layout(tensor=4), "llama", None, {"num_key_value_heads": 2}),
    "sequence parallel": (Layout(tensor=2, sequence_parallel=True), "llama", None, {}),
    "virtual stages": (
        Layout(pipeline=4, virtual_stages=2),
        "llama",
        {"gradient_accumulation_steps": 4},
        {"num_hidden_layers": 8, "tie_word_embeddings": True},
    ),
    "fused": (
        Layout(tensor=2),
        "llama",
        {"fuse_attention_qkv": True, "fuse_attention_ffn": True},
        {"num_key_value_heads": 2},
    ),
    "ChatGLM2 tensor x pipeline": (Layout(tensor=2, pipeline=2), "chatglm_v2", None, {}),
    "BLOOM tensor x pipeline": (Layout(tensor=2, pipeline=2), "bloom", None, {}),
    "Qwen2 tensor x pipeline": (Layout(tensor=2, pipeline=2), "qwen2", None, {"num_key_value_heads": 2}),
    "Qwen2 pipeline, tied": (Layout(pipeline=2), "qwen2", None, {"tie_word_embeddings": True}),
    "ChatGLM-6B": (Layout(tensor=2), "chatglm", {"model_type": "chatglm"}, {}),
    "OPT": (Layout(tensor=2), "opt", None, {}),
    "GLM": (Layout(tensor=2), "glm", None, {}),
}


@pytest.mark.parametrize("case", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_every_layout_restores_the_trained_weights(case, tmp_path):
    from paddle_llm.export.source.sharded_checkpoint import CheckpointTensors

    layout, family, flags, shape = (FAST | SLOW)[case]
    output = trained(tmp_path, layout, family, flags, **shape)
    files = CheckpointTensors(output / f"checkpoint-{STEPS}")
    assert files.is_whole and not files.added and files.layout == layout and files.family.name == family
    wanted = tensors_in(output / "model")
    same(files, files.names(), wanted)
    assert files.config.vocab_size == ODD and files.config.tensor_parallel_degree == 1
    if case in FAST:
        read = WeightFiles(output / f"checkpoint-{STEPS}")  # what `generate` and --continue_training read
        assert set(read.names()) == set(wanted)
        assert all(np.array_equal(read.view(name), value) for name, value in wanted.items())
        _wants_all_of(output / f"checkpoint-{STEPS}")


def _wants_all_of(checkpoint: Path) -> None:
    """A checkpoint without one of its files or its manifest is refused."""
    from paddle_llm.export.source.sharded_checkpoint import CheckpointTensors

    weights = sorted(checkpoint.glob("rank-*.safetensors"))[-1]
    weights.rename(checkpoint.parent / "elsewhere")
    with pytest.raises(UserError, match=f"{weights.name} is missing"):
        CheckpointTensors(checkpoint)
    shutil.copy(checkpoint.parent / "elsewhere", weights)
    (checkpoint / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"no manifest\.json"):
        CheckpointTensors(checkpoint)


OLD = Path(__file__).parents[1] / "fixtures/version_0_2"


@pytest.mark.parametrize("form, layout", [("pickles", Layout(tensor=2, pipeline=2)), ("unified", Layout(tensor=2))])
def test_a_checkpoint_of_version_0_2_restores_the_trained_weights(form, layout, tmp_path):
    """A LLaMA with tied weights and a padded vocabulary, without the optimizer's files, and the model folder of its run."""
    from paddle_llm.export.source.sharded_checkpoint import CheckpointTensors

    checkpoint = Path(shutil.copytree(OLD / form / "checkpoint-2", tmp_path / "checkpoint-2"))
    files = CheckpointTensors(checkpoint)
    assert files.is_whole and not files.added and files.layout == layout
    same(files, files.names(), tensors_in(OLD / form / "model"))
    weights = sorted([*checkpoint.glob("model_state*"), *checkpoint.glob("model*.safetensors")])[-1]
    weights.unlink()
    with pytest.raises(UserError, match=f"{weights.name} is missing"):
        CheckpointTensors(checkpoint)


METHODS: dict[str, dict[str, Any]] = {
    "lora": {"lora": True, "modules_to_save": "embed_tokens"},
    "adalora": {"adalora": True},
    "prefix": {"prefix_tuning": True, "num_prefix_tokens": 5},
    "projected prefix": {"prefix_tuning": True, "num_prefix_tokens": 5, "prefix_projection": True},
    "adapter": {"adapter": True, "adapter_size": 4},
    "prompt": {"prompt_tuning": True, "num_prompt_tokens": 4},
    "freeze": {"freeze_layers": 1},
}


# (method, tensor-parallel degree, stages); AdaLoRA, prompts and projected prefixes have no pipeline
TUNED = [(method, tensor, 1) for method in METHODS for tensor in (1, 2)]
TUNED += [(method, 2, 2) for method in ("lora", "prefix", "adapter", "freeze")]
FAST_TUNED = ("lora", 2, 1)


@pytest.mark.parametrize(
    "method, tensor, pipeline",
    [FAST_TUNED, *(pytest.param(*case, marks=pytest.mark.slow) for case in TUNED if case != FAST_TUNED)],
)
def test_a_checkpoint_of_fine_tuning_holds_the_trained_tensors(method, tensor, pipeline, tmp_path):
    """The adapter folder of the same run is written by other code, directly from the network."""
    from paddle_llm.export.source.sharded_checkpoint import CheckpointTensors

    folder, flags = make_instructions(tmp_path), METHODS[method]
    degrees = {"tensor_parallel_degree": tensor, "pipeline_parallel_degree": pipeline}
    finetune(
        folder,
        tmp_path / "out",
        tensor * pipeline,
        max_steps=3,
        do_eval=False,
        evaluation_strategy="no",
        **degrees,
        **flags,
    )
    files = CheckpointTensors(tmp_path / "out/checkpoint-3")
    own = tmp_path / "out" / ("model" if method == "freeze" else "adapter")
    wanted = tensors_in(own)
    if method == "freeze":
        wanted = {name: value for name, value in wanted.items() if ".layers.3." in name}
    assert not files.is_whole and files.method is not None
    same(files, [*files.names(), *files.added], wanted)
