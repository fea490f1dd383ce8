"""`paddle-llm checkpoint list` and `verify`: checkpoints of this format and of version 0.2, valid and damaged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner

from paddle_llm.checkpoint import summary
from paddle_llm.cli.main import paddle_llm
from paddle_llm.core.errors import UserError
from tests.checkpoint.format import small

OLD_LAYOUT = {"data": 2, "sharding": 1, "tensor": 1, "pipeline": 1, "sharding_stage": 0, "virtual_stages": 1}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return an output folder with checkpoints of steps 10 and 20, and 5 in the format of version 0.2."""
    output = tmp_path_factory.mktemp("run")
    small.save(output, 10)
    small.save(output, 20, seed=1)
    old = output / "checkpoint-5"
    old.mkdir()
    (old / "model_state.pdparams").write_bytes(b"x" * 100)
    manifest = {"step": 5, "layout": {**OLD_LAYOUT, "sequence_parallel": False}, "global_batch": 8}
    (old / "manifest.json").write_text(json.dumps({**manifest, "files": {"model_state.pdparams": 100}}))
    return output


@pytest.fixture
def output(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "mine")


def run(*words):
    done = CliRunner().invoke(paddle_llm, ["checkpoint", *map(str, words)])
    if isinstance(done.exception, UserError):
        raise done.exception
    return done


def flip(file, position):
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


def rows(done):
    return [line.split() for line in done.stdout.splitlines()]


def size(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


def test_list_shows_step_size_layout_and_validity(output):
    os.truncate(output / "checkpoint-20" / "rank-00002.safetensors", 100)
    done = run("list", output)
    assert done.exit_code == 0
    layout = ["sharding2(stage1)", "x", "tp2"]
    assert rows(done) == [
        ["step", "size", "layout", "valid"],
        ["5", *_size(output / "checkpoint-5"), "dp2", "yes"],
        ["10", *_size(output / "checkpoint-10"), *layout, "yes"],
        ["20", *_size(output / "checkpoint-20"), *layout, "no"],
    ]
    old, damaged = done.stderr.splitlines()
    assert (
        old
        == f"{output}/checkpoint-5 was written by version 0.2 or earlier, which recorded the sizes of files but no digests."
    )
    assert damaged.startswith(f"{output}/checkpoint-20 is damaged: rank-00002.safetensors has 100 bytes, not ")


def _size(folder):
    nbytes = size(folder)
    return [f"{nbytes}" if nbytes < 1000 else f"{nbytes / 1000:.1f}", "bytes" if nbytes < 1000 else "kB"]


@pytest.mark.parametrize(
    "content", [None, "{", "[]", '{"layout": 3}', '{"format": "paddle_llm.checkpoint", "layout": {"x": 1}}']
)
def test_a_folder_without_a_valid_manifest_is_listed(output, content):
    (output / "checkpoint-10" / "manifest.json").unlink()
    if content is not None:
        (output / "checkpoint-10" / "manifest.json").write_text(content)
    done = run("list", output)
    assert rows(done)[2] == ["10", *_size(output / "checkpoint-10"), "-", "no"]
    assert "manifest.json" in done.stderr
    assert run("verify", output / "checkpoint-10").exit_code == 1


def test_a_checkpoint_that_is_deleted_meanwhile_is_listed(output, monkeypatch):
    def delete(folder, level, **_):
        shutil.rmtree(folder)
        return verify(folder, level)

    verify = summary.verify
    monkeypatch.setattr(summary, "verify", delete)
    done = run("list", output)
    assert done.exit_code == 0 and rows(done)[2:] == [["10", "0", "bytes", "-", "no"], ["20", "0", "bytes", "-", "no"]]


def test_list_of_a_run_without_checkpoints(tmp_path):
    done = run("list", tmp_path)
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", f"{tmp_path} has no checkpoint.\n")


def test_verify_of_a_valid_checkpoint(output):
    folder = output / "checkpoint-10"
    for words, compared in (([], "sizes; digests of files without tensors"), (["--full"], "sizes and digests")):
        done = run("verify", folder, *words)
        assert done.exit_code == 0 and done.stderr == ""
        assert done.stdout.startswith(f"{folder} is valid: step 10, ")
        assert done.stdout.endswith(f"layout sharding2(stage1) x tp2 ({compared})\n")


def test_a_flipped_byte_is_found_with_full(output):
    folder = output / "checkpoint-10"
    flip(folder / "rank-00001.safetensors", -1)
    assert run("verify", folder).exit_code == 0
    done = run("verify", folder, "--full")
    assert done.exit_code == 1
    assert done.stdout.startswith(f"{folder} is damaged: rank-00001.safetensors has the digest ")


def test_verify_of_a_checkpoint_of_version_0_2_compares_sizes(output):
    folder = output / "checkpoint-5"
    done = run("verify", folder, "--full")
    assert done.exit_code == 0
    assert "layout dp2 (sizes; it was written by version 0.2 or earlier, which recorded" in done.stdout
    os.truncate(folder / "model_state.pdparams", 99)
    done = run("verify", folder)
    assert done.exit_code == 1
    assert "model_state.pdparams has 99 bytes, not 100" in done.stdout


def test_other_folders_are_refused(output, tmp_path):
    (tmp_path / "file").touch()
    for command in ("list", "verify"):
        with pytest.raises(UserError, match="nowhere does not exist"):
            run(command, tmp_path / "nowhere")
        with pytest.raises(UserError, match="file is a file"):
            run(command, tmp_path / "file")
    message = "mine is not a checkpoint. Choose one of its checkpoints: checkpoint-5, checkpoint-10, checkpoint-20."
    with pytest.raises(UserError, match=message):
        run("verify", output)


def test_the_command_changes_nothing_and_ends_with_its_exit_code(output):
    flip(output / "checkpoint-20" / "index.json", 5)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    for words, code in ((["list", "."], 0), (["verify", "checkpoint-20"], 1), (["verify", "."], 2)):
        command = [sys.executable, "-m", "paddle_llm.cli", "checkpoint", *words]
        done = subprocess.run(command, cwd=output, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
