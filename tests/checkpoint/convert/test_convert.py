"""Checkpoints of PaddleNLP's own Trainer, converted: every bit is kept, and training continues in both libraries."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file

from paddle_llm.checkpoint.format.reader import Reader
from paddle_llm.checkpoint.format.verify import verify
from paddle_llm.core.errors import UserError
from paddle_llm.rehearse.ranks import run_ranks
from tests.checkpoint.convert.paddlenlp_runs import GLOBAL_BATCH, SAVED, train
from tests.helpers import doc_pages
from tests.helpers.checkpoints import write_old_manifest
from tests.helpers.finetune_jobs import finetune, make_instructions
from tests.helpers.forked import run_forked

CHECKPOINT = f"checkpoint-{SAVED}"


def command(*words: Any) -> Result:
    from paddle_llm.cli.main import paddle_llm

    return CliRunner().invoke(paddle_llm, ["checkpoint", "convert", *map(str, words)], catch_exceptions=False)


def ours(folder: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a checkpoint of this library, which is verified."""
    verify(folder)
    with Reader(folder) as reader:
        return {key: reader.tensor(key) for key in reader.index.tensors}


def unified(folder: Path, *, head_is_embedding: bool = False) -> dict[str, np.ndarray]:
    """Return the tensors of a unified checkpoint by kind and name, read with safetensors alone."""
    found = {}
    for file in folder.glob("*.safetensors"):
        kind = file.name.partition("-")[0]
        for key, value in load_file(file).items():
            name, _, state = key.partition("/")
            if not (head_is_embedding and name == "lm_head.weight"):
                found[f"{state.removesuffix('_0') or {'model': 'weights'}.get(kind, kind)}/{name}"] = value
    return found


def same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key].dtype == value.dtype and found[key].shape == value.shape, key
        assert found[key].tobytes() == value.tobytes(), key


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> tuple[Path, list[float], dict[str, np.ndarray]]:
    """Checkpoints of one process, its losses, and its tensors when it saved."""
    folder = tmp_path_factory.mktemp("one")
    losses, tensors = run_ranks(train, 1, str(folder), {}, {}, ["ranks", "unified"])[0]
    return folder, losses, tensors


# ---- to this library's format ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ranks", "unified"])
def test_the_tensors_of_one_process_keep_every_bit(name, one_process, tmp_path):
    folder, _, tensors = one_process
    source = folder / name / CHECKPOINT
    done = command(source, tmp_path / CHECKPOINT, "--allow_pickle")
    assert f"step {SAVED}" in done.stdout and "rng_state.pth is not converted" in done.stderr
    same(ours(tmp_path / CHECKPOINT), tensors)
    state = json.loads((tmp_path / CHECKPOINT / "state.json").read_text())
    assert state["consumed_samples"] == SAVED * GLOBAL_BATCH and state["scheduler"]["last_epoch"] == SAVED
    assert json.loads((tmp_path / CHECKPOINT / "manifest.json").read_text())["global_batch"] == GLOBAL_BATCH


# PaddleNLP's own code gathers a unified checkpoint, so that it is a reference for the other formats of the same training.
LAYOUTS = {
    "sharding2 x tp2": ({"sharding": 2, "tensor": 2, "sharding_stage": 1}, {}, ["ranks", "not merged", "sharding-io"]),
    "sharding2 x pp2": ({"sharding": 2, "pipeline": 2, "sharding_stage": 1}, {}, ["ranks", "sharding-io"]),
    "tp2 x pp2, tied": ({"tensor": 2, "pipeline": 2}, {"tie_word_embeddings": True}, ["ranks"]),
    "dp2": ({"data": 2}, {}, ["ranks"]),
}


@pytest.mark.parametrize(
    "case", [*list(LAYOUTS)[:1], *(pytest.param(case, marks=pytest.mark.slow) for case in list(LAYOUTS)[1:])]
)
def test_all_formats_of_a_layout_are_converted_to_the_same_bits(case, tmp_path):
    layout, model, formats = LAYOUTS[case]
    ranks = int(np.prod([layout.get(axis, 1) for axis in ("data", "sharding", "tensor", "pipeline")]))
    run_ranks(train, ranks, str(tmp_path), layout, model, ["unified", *formats])
    wanted = unified(tmp_path / "unified" / CHECKPOINT, head_is_embedding="tied" in case)
    for name in ("unified", *formats):
        out = tmp_path / "ours" / name / CHECKPOINT
        command(tmp_path / name / CHECKPOINT, out, "--allow_pickle")
        same(ours(out), wanted)


# ---- from this library's format -------------------------------------------------------------------------------------


def test_paddlenlp_continues_from_a_converted_checkpoint_bit_for_bit(one_process, tmp_path):
    folder, losses, tensors = one_process
    command(folder / "ranks" / CHECKPOINT, tmp_path / "ours" / CHECKPOINT, "--allow_pickle")
    done = command(tmp_path / "ours" / CHECKPOINT, tmp_path / CHECKPOINT, "--to", "unified")
    assert "a unified checkpoint of PaddleNLP" in done.stdout
    same(unified(tmp_path / CHECKPOINT), tensors)
    resume = str(tmp_path / CHECKPOINT)
    again, _ = run_ranks(train, 1, str(tmp_path / "again"), {}, {}, [], resume)[0]
    assert again == losses[SAVED:]
    two = run_ranks(train, 2, str(tmp_path / "two"), {"tensor": 2}, {}, [], resume)[0][0]
    np.testing.assert_allclose(two, losses[SAVED:], rtol=1e-5)


def test_a_model_folder_has_the_weights(one_process, tmp_path):
    from tests.export.test_merged import network_of

    folder, _, tensors = one_process
    command(folder / "ranks" / CHECKPOINT, tmp_path / "direct", "--allow_pickle", "--to", "model")
    command(folder / "ranks" / CHECKPOINT, tmp_path / "ours" / CHECKPOINT, "--allow_pickle")
    command(tmp_path / "ours" / CHECKPOINT, tmp_path / "model", "--to", "model")
    wanted = {key.removeprefix("weights/"): value for key, value in tensors.items() if key.startswith("weights/")}
    for name in ("direct", "model"):
        same(load_file(tmp_path / name / "model.safetensors"), wanted)
    network = network_of(tmp_path / "model", "float32")
    assert all(np.array_equal(value.numpy(), wanted[name]) for name, value in network.state_dict().items())


def test_the_commands_of_the_page_run(one_process, tmp_path):
    shutil.copytree(one_process[0] / "ranks", tmp_path / "paddlenlp")
    (block,) = doc_pages.blocks(doc_pages.DOCS / "how-to" / "convert_checkpoints.md")
    for line in block.commands:
        done = run_forked("-m", "paddle_llm.cli", *line.split()[1:], cwd=tmp_path, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    for folder in ("output/checkpoint-2", "unified/checkpoint-2", "model_2"):
        assert (tmp_path / folder / "config.json").is_file()


# ---- refusals -------------------------------------------------------------------------------------------------------


def refused(message: str, *words: Any) -> None:
    out = next(Path(word) for word in reversed(words) if isinstance(word, Path))
    with pytest.raises(UserError, match=message):
        command(*words)
    assert not out.exists() and not list(out.parent.glob("*.saving*"))


def test_what_cannot_be_converted_is_refused(one_process, tmp_path):
    folder, out = one_process[0], tmp_path / "out"
    refused(
        r"contains pickles.*model_state.pdparams, scheduler.pdparams.*--allow_pickle",
        folder / "ranks" / CHECKPOINT,
        out,
    )
    refused(r"contains pickles.*: scheduler.pdparams. Add --allow_pickle", folder / "unified" / CHECKPOINT, out)
    refused("contains some: checkpoint-2. Name one", folder / "ranks", out)
    (tmp_path / "empty").mkdir()
    refused("is not a checkpoint: it has neither", tmp_path / "empty", out)
    copy = tmp_path / "copy"

    def changed(change: Any, message: str, name: str = "ranks") -> None:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder / name / CHECKPOINT, copy)
        change()
        refused(message, copy, "--allow_pickle", out)

    changed((copy / "trainer_state.json").unlink, "has no trainer_state.json")
    changed((copy / "optimizer.pdopt").unlink, "has weights but no optimizer states")
    changed(
        lambda: (copy / "trainer_state.json").write_text('{"global_step": 2}'),
        "does not show the global batch.*--global_batch",
    )
    changed(lambda: (copy / "lora_config.json").write_text("{}"), "an adapter of PaddleNLP")
    changed(lambda: (copy / "optimizer.pdopt").write_bytes(b"\x80\x04c__builtin__\neval\n."), "names __builtin__.eval")
    index = "optimizer.safetensors.index.json"
    changed(lambda: edit(copy / index, ckpt_quant_stage="O1"), "quantized optimizer states", "unified")
    changed((copy / "optimizer-00001-of-00001.safetensors").unlink, "is missing", "unified")
    changed(lambda: edit(copy / "config.json", hidden_size=64), "needs", "unified")
    changed(lambda: edit(copy / "config.json", num_hidden_layers=5), "lacks llama.layers.4", "unified")
    changed(lambda: edit(copy / "config.json", num_hidden_layers=3), "llama.layers.3.* is not a weight of the network")


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_damaged_checkpoint_is_not_converted(one_process, tmp_path):
    command(one_process[0] / "ranks" / CHECKPOINT, tmp_path / CHECKPOINT, "--allow_pickle")
    refused("already in this library's format", tmp_path / CHECKPOINT, tmp_path / "out")
    file = tmp_path / CHECKPOINT / "rank-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    for target in ("unified", "model"):
        refused("is damaged: rank-00000.safetensors", tmp_path / CHECKPOINT, "--to", target, tmp_path / "out")


def test_a_checkpoint_with_trained_weights_only_is_refused(tmp_path):
    data = make_instructions(tmp_path / "data")
    finetune(data, tmp_path / "run", lora=True, lora_rank=2, max_steps=2, save_steps=2)
    checkpoint = tmp_path / "run/checkpoint-2"
    for target in ("unified", "model"):
        refused(
            f"that fine-tuning with lora trained.*--adapter {checkpoint}", checkpoint, "--to", target, tmp_path / "out"
        )
    old = tmp_path / "old"  # of version 0.2, which has other files and the same record
    old.mkdir()
    (old / "model_state.pdparams").touch()
    write_old_manifest(old, identity={"model": {}, "method": {"name": "lora"}})
    refused("that fine-tuning with lora trained", old, "--allow_pickle", tmp_path / "out")
