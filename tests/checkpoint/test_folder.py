"""Checkpoint folders: complete or absent; the newest complete one is used; the output folder is protected."""

from __future__ import annotations

import os

import pytest

from paddle_llm.checkpoint import folder as checkpoints
from paddle_llm.checkpoint.output_folder import choose_start, open_output_folder
from paddle_llm.config.layout import Layout
from paddle_llm.core.errors import UserError
from tests.helpers.checkpoints import RANK_FILE, save_checkpoint, write_old_manifest

_save = save_checkpoint


def _save_old(output, step, layout=None):
    """Write a checkpoint of version 0.2."""
    folder = output / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model_state.pdparams").write_bytes(b"x" * 100)
    (folder / "optimizer.pdopt").write_bytes(b"y" * 50)
    write_old_manifest(folder, step, layout)


def test_the_newest_complete_checkpoint_is_chosen_by_number(tmp_path):
    for step in (5, 10, 100):
        _save(tmp_path, step)
    assert checkpoints.newest_complete(tmp_path)[0].name == "checkpoint-100"


@pytest.mark.parametrize(
    "harm, message",
    [
        (lambda f: os.truncate(f / RANK_FILE, 10), f"{RANK_FILE} has 10 bytes, not"),
        (lambda f: (f / RANK_FILE).unlink(), f"{RANK_FILE} is missing"),
        (lambda f: (f / "notes.txt").touch(), "notes.txt is not in manifest.json"),
        (lambda f: (f / "index.json").write_text("{}"), "index.json has 2 bytes"),
        (lambda f: (f / "manifest.json").unlink(), "has no manifest.json"),
        (lambda f: (f / "manifest.json").write_text("{"), "manifest.json cannot be read"),
        (lambda f: (f / "manifest.json").write_text("[" * 100_000), "manifest.json cannot be read"),
        (lambda f: (f / "manifest.json").write_text("[]"), "manifest.json was not written by paddle_llm"),
        (lambda f: (f / "manifest.json").write_text('{"files": {}}'), "manifest.json was not written by paddle_llm"),
    ],
)
def test_a_broken_checkpoint_is_skipped_and_reported(tmp_path, harm, message):
    _save(tmp_path, 5)
    _save(tmp_path, 10)
    harm(tmp_path / "checkpoint-10")
    newest, lines = checkpoints.newest_complete(tmp_path)
    assert newest.name == "checkpoint-5" and message in lines[0]
    with pytest.raises(UserError, match=message):
        checkpoints.read_manifest(tmp_path / "checkpoint-10")


@pytest.mark.parametrize(
    "harm, message",
    [
        (lambda f: os.truncate(f / "optimizer.pdopt", 10), "optimizer.pdopt has 10 bytes, not 50"),
        (lambda f: (f / "optimizer.pdopt").unlink(), "optimizer.pdopt is missing"),
    ],
)
def test_a_broken_old_checkpoint_is_skipped_and_reported(tmp_path, harm, message):
    _save_old(tmp_path, 5)
    _save(tmp_path, 10)
    harm(tmp_path / "checkpoint-5")
    assert message in checkpoints.newest_complete(tmp_path, {tmp_path / "checkpoint-10": "it is damaged"})[1][1]


def test_weights_of_an_old_checkpoint_are_readable_without_the_optimizer_state(tmp_path):
    _save_old(tmp_path, 5)
    folder = tmp_path / "checkpoint-5"
    (folder / "optimizer.pdopt").unlink()
    assert checkpoints.read_weights_manifest(folder)["step"] == 5
    os.truncate(folder / "model_state.pdparams", 10)
    with pytest.raises(UserError, match=r"model_state\.pdparams has 10 bytes, not 100\. Choose another checkpoint\.$"):
        checkpoints.read_weights_manifest(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"it has no manifest\.json\. Choose another checkpoint\.$"):
        checkpoints.read_weights_manifest(folder)


@pytest.mark.parametrize(
    ("names", "remedy"),
    [
        (["checkpoint-5/manifest.json", "metrics.jsonl"], "Choose one of its checkpoints: checkpoint-5."),
        (["adapter_config.json", "adapter_model.safetensors"], "--lora_path"),
        (["model.safetensors", "trainer_state.json", "optimizer.pt"], "Checkpoints of other trainers"),
        (["model_state.pdparams", "optimizer.pdopt", "config.json"], "Checkpoints of other trainers"),
        (["notes.txt"], "Choose another checkpoint, or drop --resume_from_checkpoint."),
    ],
)
def test_a_folder_that_is_not_a_checkpoint_is_rejected_with_the_remedy(tmp_path, names, remedy):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="has no manifest.json") as refusal:
        checkpoints.read_manifest(tmp_path)
    assert remedy in str(refusal.value)


def test_an_output_folder_that_is_a_file_or_a_broken_link_is_rejected(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    for name in ("file", "file/below", "link"):
        with pytest.raises(UserError, match="a file or a broken link"):
            choose_start(str(tmp_path / name), do_train=True, overwrite=False, resume=None)


def test_skipped_checkpoints_are_reported_when_none_is_complete(tmp_path):
    _save(tmp_path, 5)
    (tmp_path / "checkpoint-5" / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="skipped checkpoint .*checkpoint-5: its manifest.json cannot be read"):
        choose_start(str(tmp_path), do_train=True, overwrite=False, resume=None)


def test_another_layout_is_reported_and_one_of_an_old_checkpoint_is_rejected(tmp_path):
    folder = _save(tmp_path, 5, Layout(tensor=2))
    (line,) = checkpoints.check_layout(folder, Layout(pipeline=2), 8)
    assert "was saved on layout tp2 and is resumed on layout pp2" in line
    (line,) = checkpoints.check_layout(folder, Layout(tensor=2), 12)
    assert "global batch of 8 samples, and this job has 12: it continues at the next sample" in line
    _save_old(tmp_path, 10, Layout(tensor=2))
    with pytest.raises(UserError, match="saved with layout tp2, but this job has layout pp2"):
        checkpoints.check_layout(tmp_path / "checkpoint-10", Layout(pipeline=2), 8)


def test_a_damaged_checkpoint_is_passed_over_unless_it_is_named(tmp_path):
    _save(tmp_path, 5)
    damaged = {_save(tmp_path, 10): "rank-00000.safetensors has the digest 1, not 2"}
    settings = {"do_train": True, "overwrite": False, "damaged": damaged}
    start, lines = choose_start(str(tmp_path), resume=None, **settings)
    assert start.name == "checkpoint-5" and "skipped checkpoint" in lines[0] and "has the digest 1, not 2" in lines[0]
    with pytest.raises(UserError, match="checkpoint-10 is damaged: rank-00000.safetensors has the digest 1, not 2"):
        choose_start(str(tmp_path), resume=str(tmp_path / "checkpoint-10"), **settings)


def test_rotation_never_deletes_the_last_complete_checkpoint(tmp_path):
    for step in (1, 2, 3, 4):
        _save(tmp_path, step)
    for step in (3, 4):
        os.truncate(tmp_path / f"checkpoint-{step}" / RANK_FILE, 10)
    checkpoints.rotate(tmp_path, keep=1, best=None)
    assert [step for step, _ in checkpoints.list_checkpoints(tmp_path)] == [2, 4]


def test_rotation_keeps_the_newest_and_the_best(tmp_path):
    for step in (1, 2, 3, 4):
        _save(tmp_path, step)
    checkpoints.rotate(tmp_path, keep=2, best=str(tmp_path / "checkpoint-1"))
    assert [step for step, _ in checkpoints.list_checkpoints(tmp_path)] == [1, 4]


def _prepare(output, **changes):
    settings = {"do_train": True, "overwrite": False} | changes
    resume = settings.pop("resume", None)
    start, printed = choose_start(str(output), resume=resume, **settings)
    return start, printed + open_output_folder(str(output), start=start, **settings)


def test_choosing_changes_nothing(tmp_path):
    """Another mistake may still end the run, which must not have cost an older run its checkpoints."""
    _save(tmp_path, 5)
    before = sorted(tmp_path.rglob("*"))
    assert choose_start(str(tmp_path), do_train=True, overwrite=True, resume=None) == (None, [])
    assert choose_start(str(tmp_path / "a" / "b"), do_train=True, overwrite=False, resume=None) == (None, [])
    assert sorted(tmp_path.rglob("*")) == before


def test_resuming_from_an_older_checkpoint_renames_the_newer_ones(tmp_path):
    for step in (5, 10, 15):
        _save(tmp_path, step)
    start, printed = _prepare(tmp_path, resume=str(tmp_path / "checkpoint-5"))
    assert start.name == "checkpoint-5" and len(printed) == 2 and "left-checkpoint-15" in printed[1]
    assert checkpoints.newest_complete(tmp_path)[0].name == "checkpoint-5"
    assert (tmp_path / "left-checkpoint-15" / RANK_FILE).exists()
    assert _prepare(tmp_path, overwrite=True) == (None, [])
    assert list(tmp_path.iterdir()) == []


def test_a_killed_save_is_removed_when_a_checkpoint_is_chosen(tmp_path):
    _save(tmp_path, 5)
    half = checkpoints.staging_folder(tmp_path, 10)
    half.mkdir(parents=True)
    _prepare(tmp_path, resume=str(tmp_path / "checkpoint-5"))
    assert not half.exists()


def test_an_empty_or_absent_folder_starts_at_the_first_step(tmp_path):
    assert _prepare(tmp_path / "new") == (None, [])


def test_a_run_resumes_and_reports_it(tmp_path):
    _save(tmp_path, 5)
    start, printed = _prepare(tmp_path)
    assert start.name == "checkpoint-5" and "resuming from" in printed[0]


def test_a_killed_save_is_removed_and_the_older_checkpoint_used(tmp_path):
    _save(tmp_path, 5)
    half = checkpoints.staging_folder(tmp_path, 10)
    half.mkdir(parents=True)
    (half / "model_state.pdparams").write_bytes(b"half")
    assert _prepare(tmp_path)[0].name == "checkpoint-5"
    assert not half.exists()


def test_a_run_that_ended_before_its_first_checkpoint_starts_again_and_reports_it(tmp_path):
    for name in ("metrics.jsonl", "config.resolved.json", "generated-1.jsonl"):
        (tmp_path / name).write_text("{}")
    (tmp_path / ".saving-5").mkdir()
    start, printed = _prepare(tmp_path)
    assert start is None and "before its first checkpoint" in printed[0]
    (tmp_path / "model").mkdir()  # a finished run is not thrown away
    with pytest.raises(UserError, match="--overwrite_output_dir"):
        _prepare(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        *(".writable-4711", "metrics.jsonl.kept", "rollbacks.json.4711.tmp", "config.resolved.json.47.tmp"),
        *(".model.new-0123/mark", ".adapter.new-0123/mark"),
    ],
)
def test_a_temporary_file_of_a_killed_process_is_removed(tmp_path, name):
    """It did not keep the run from starting again, and does not stay."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    assert _prepare(tmp_path)[0] is None
    assert list(tmp_path.iterdir()) == []
    _save(tmp_path, 5)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    assert _prepare(tmp_path)[0].name == "checkpoint-5"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


def test_a_folder_with_foreign_files_is_rejected_and_unchanged(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"not empty \(thesis.tex\).*--overwrite_output_dir"):
        _prepare(tmp_path)
    assert _prepare(tmp_path, overwrite=True) == (None, [])
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_overwriting_removes_the_files_of_a_run_only(tmp_path):
    _save(tmp_path, 5)
    for name in ("metrics.jsonl", "generated-5.jsonl", "generated-test-5.jsonl"):
        (tmp_path / name).write_text("{}\n")
    for name in ("adapter", "model", "visualdl"):
        (tmp_path / name).mkdir()
    assert _prepare(tmp_path, overwrite=True) == (None, [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["model", "checkpoint-5", "adapter/"])
def test_a_folder_that_the_run_reads_is_not_overwritten(name, tmp_path, monkeypatch):
    """Otherwise a job that fails early would have removed the model that it starts from."""
    _save(tmp_path / "run", 5)
    for folder in ("model", "adapter"):
        (tmp_path / "run" / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"would remove .*, but this run reads run/{name}"):
        choose_start("run", do_train=True, overwrite=True, resume=None, inputs=("elsewhere", None, f"run/{name}"))
    read = ("run", "running", "facebook/llama-7b")
    assert choose_start("run", do_train=True, overwrite=True, resume=None, inputs=read) == (None, [])


def test_the_log_folder_of_the_launcher_is_allowed(tmp_path):
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "workerlog.0").touch()
    assert _prepare(tmp_path) == (None, [])


def test_a_file_instead_of_the_folder_is_rejected(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file or a broken link, or is below one"):
        _prepare(tmp_path / "file")


def test_resuming_without_a_checkpoint_is_rejected(tmp_path):
    with pytest.raises(UserError, match="has no complete checkpoint"):
        _prepare(tmp_path, resume=True)
