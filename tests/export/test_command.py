"""`paddle-llm export`: the output appears only when it is complete and verified; until then an old one stays."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from paddle_llm.core.errors import UserError
from paddle_llm.export import Exported, api, export, size_in_bytes
from paddle_llm.export.targets.output_folder import check_space, human
from paddle_llm.export.verification.report import ExportFailed
from tests.export.folders import stored_in, write_native
from tests.helpers.processes import wait_until


@pytest.fixture
def model(tmp_path) -> Path:
    """A family that no engine in another process can load, so that verification takes a second."""
    write_native(tmp_path / "model", "chatglm_v2")
    return tmp_path / "model"


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def beside(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["model", pytest.param("llama", marks=pytest.mark.slow)])
def test_an_export_is_verified_and_recorded(kind, tmp_path, request):
    from paddle_llm.cli.main import paddle_llm

    source = request.getfixturevalue(kind)

    out = tmp_path / "exports" / "mine"
    result = CliRunner().invoke(paddle_llm, ["export", str(source), str(out), "--target", "hf"], catch_exceptions=False)
    assert result.exit_code == 0
    record = json.loads((out / "export.json").read_text())
    assert (
        record["target"] == "hf"
        and record["source"] == f"{source.parent.name}/{source.name}"
        and record["adapter"] is None
    )
    compared = [one for one in record["verified"] if one["largest_logit_difference"] is not None]
    assert compared and all(one["passed"] and one["tokens_equal"] == one["tokens"] > 0 for one in compared)
    assert result.stdout.startswith(f"{out}: Hugging Face's folder, ") and "1 file of weights" in result.stdout
    assert "paddle" in result.stderr and "passed" in result.stderr
    assert "greedy tokens equal" in (out / "README.md").read_text()
    assert beside(out.parent) == {"mine"}


def test_a_missing_verification_is_reported(model, tmp_path):
    from paddle_llm.cli.main import paddle_llm

    words = ["export", str(model), str(tmp_path / "out"), "--target", "hf", "--no_verify", "--max_shard_size", "100KB"]
    result = CliRunner().invoke(paddle_llm, words, catch_exceptions=False)
    assert result.exit_code == 0 and "not compared with its source" in result.stderr
    assert json.loads((tmp_path / "out" / "export.json").read_text())["verified"] == []
    assert "files of weights" in result.stdout
    assert "weights, to " in result.stderr and "checking the files" in result.stderr  # a log shows the current stage
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "weights: float32. " in readme and "table" not in readme


def test_progress_is_logged_without_a_terminal(tmp_path, monkeypatch, capsys):
    from paddle_llm.export.targets import shard_writer

    monkeypatch.setattr(shard_writer, "_LOG_INTERVAL", 0)
    write_native(tmp_path / "model", "llama")
    export(tmp_path / "model", "hf", tmp_path / "out", verify=False)
    assert "(100%)" in capsys.readouterr().err


# ---- existing folders -----------------------------------------------------------------------------------------------


def test_an_existing_export_is_replaced_with_overwrite(model, tmp_path):
    out = tmp_path / "out"
    export(model, "hf", out, verify=False)
    (out / "old").write_text("of the first export")
    with pytest.raises(UserError, match="exists and is not empty.*--overwrite"):
        export(model, "hf", out, verify=False)
    assert (out / "old").is_file()
    done = export(model, "hf", out, verify=False, overwrite=True)
    assert isinstance(done, Exported) and "model.safetensors" in done.files and not (out / "old").exists()
    assert beside(tmp_path) == {"model", "out"}


def test_a_folder_that_is_not_an_export_is_never_replaced(model, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    for out, message in (
        (tmp_path / "thesis", "is not an export"),
        (model, "is or contains the input"),
        (tmp_path, "is or contains the input"),
        (model / "sub", "is inside .*, which the export reads. Choose a folder outside"),
        (tmp_path / "thesis" / "chapter1.tex", "is a file"),
    ):
        with pytest.raises(UserError, match=message):
            export(model, "hf", out, verify=False, overwrite=True)
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "years of work"
    assert beside(tmp_path) == {"model", "thesis"}


# ---- failures -------------------------------------------------------------------------------------------------------


def spoiled(source, staged, options) -> None:
    """A writer with a mistake: one matrix is not transposed."""
    from safetensors.numpy import load_file, save_file

    from paddle_llm.export.targets.hugging_face import write_hf

    write_hf(source, staged, options)
    tensors = load_file(staged / "model.safetensors")
    name = "transformer.encoder.layers.0.self_attention.dense.weight"
    tensors[name] = np.ascontiguousarray(tensors[name].T)
    save_file(tensors, staged / "model.safetensors", metadata={"format": "pt"})


def full_disk(source, staged, options) -> None:
    (staged / "model.safetensors").write_bytes(b"half of it")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def broken(source, staged, options) -> None:
    (staged / "model.safetensors").write_bytes(b"half of it")
    raise ZeroDivisionError


@pytest.mark.parametrize(
    "writer, error, message",
    [
        (spoiled, ExportFailed, r"differs from its source, .*:\n(?s:.*)logits and greedy tokens"),
        (full_disk, UserError, "the disk is full"),
        (broken, ZeroDivisionError, ""),
    ],
)
def test_a_failed_export_leaves_the_old_one(model, tmp_path, monkeypatch, writer, error, message):
    out = tmp_path / "out"
    export(model, "hf", out, verify=False)
    before = tree(out)
    monkeypatch.setitem(api.TARGETS, "hf", (f"{__name__}:{writer.__name__}", "a folder"))
    with pytest.raises(error, match=message):
        export(model, "hf", out, overwrite=True)
    assert tree(out) == before and beside(tmp_path) == {"model", "out"}


def test_a_failed_verification_ends_with_1_and_a_mistake_with_2(model, tmp_path, monkeypatch):
    from paddle_llm.cli.main import paddle_llm

    monkeypatch.setitem(api.TARGETS, "hf", (f"{__name__}:spoiled", "a folder"))
    result = CliRunner().invoke(paddle_llm, ["export", str(model), str(tmp_path / "out"), "--target", "hf"])
    assert result.exit_code == 1 and "FAILED" in result.stderr and "was not written" in result.stderr
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "paddle_llm.cli",
            "export",
            str(tmp_path / "absent"),
            str(tmp_path / "out"),
            "--target",
            "hf",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "absent is not a folder" in done.stderr and "Traceback" not in done.stderr
    assert beside(tmp_path) == {"model"}


# `paddle-llm`, which waits for a signal once it has written the header of the weights, when it starts a thread to convert them.
WAIT_WHILE_WRITING = """
import pathlib, sys, time

waited = []

def wait(event, arguments):
    if event == "_thread.start_new_thread" and not waited:
        weights = pathlib.Path(sys.argv[3] + ".saving", "model.safetensors")
        if weights.exists() and weights.stat().st_size:
            waited.append(True)
            time.sleep(200)

sys.addaudithook(wait)
from paddle_llm.cli.main import main
main()
"""


@pytest.mark.parametrize(
    "numbers",
    [(signal.SIGINT, signal.SIGINT, signal.SIGINT), pytest.param((signal.SIGTERM,), marks=pytest.mark.slow)],
)
def test_an_interrupted_export_leaves_nothing(tmp_path, numbers):
    """A signal arrives while weights are written, followed by more of them."""
    write_native(tmp_path / "model", "llama")
    command = [sys.executable, "-c", WAIT_WHILE_WRITING, "export", str(tmp_path / "model"), str(tmp_path / "out")]
    weights = tmp_path / "out.saving" / "model.safetensors"
    with subprocess.Popen([*command, "--target", "hf"], stderr=subprocess.PIPE, text=True) as job:
        wait_until(lambda: (weights.exists() and weights.stat().st_size) or job.poll() is not None, 200, "weights")
        for number in numbers:
            job.send_signal(number)
            time.sleep(0.02)
        _, printed = job.communicate(timeout=120)
    assert job.returncode == 130 and "interrupted" in printed and "was not written" in printed, printed
    assert "Traceback" not in printed
    assert beside(tmp_path) == {"model"}


def test_a_full_disk_is_reported_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match=r"the weights need 9000000.0 TB .* free. Free some space"):
        check_space(tmp_path / "a" / "out", 9 * 10**18)
    assert not any(tmp_path.iterdir())


# ---- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, size",
    [("5GB", 5 * 10**9), ("500MB", 5 * 10**8), ("1.5 GiB", 3 * 2**29), ("4096000", 4096000), (7, 7), ("2kb", 2000)],
)
def test_sizes(text, size):
    assert size_in_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "5 apples", "-1GB", "0", "0.0001B"])
def test_an_invalid_size_is_refused(text):
    with pytest.raises(UserError, match="is not a size. Write it as 5GB or 500MB."):
        size_in_bytes(text)


def test_a_small_size_without_a_unit_is_refused():
    with pytest.raises(UserError, match="5 would be 5 bytes. Write it as 5GB"):
        size_in_bytes("5")


def test_human_sizes():
    assert [human(n) for n in (12, 1500, 5 * 10**9, 3 * 10**13)] == ["12 bytes", "1.5 kB", "5.0 GB", "30.0 TB"]


@pytest.mark.parametrize(
    "write, message",
    [
        (
            lambda folder: (folder / "step.json").write_text("{}"),
            "is a static export: .* Export the original model again",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights .*model.safetensors"),
    ],
)
def test_a_wrong_folder_is_refused_before_paddle_is_imported(model, tmp_path, write, message):
    """Importing Paddle takes seconds."""
    write(model)
    code = (
        "import sys\nfrom paddle_llm.export import export\n"
        "try:\n    export(*sys.argv[1:])\nexcept Exception as error:\n    print(type(error).__name__, error)\n"
        "print('paddle' in sys.modules)"
    )
    words = [sys.executable, "-c", code, str(model), "hf", str(tmp_path / "out")]
    printed = subprocess.run(words, capture_output=True, text=True, timeout=60).stdout
    assert re.search(f"UserError .*{message}", printed) and printed.endswith("False\n"), printed
    with pytest.raises(UserError, match="CHECKPOINT or OUT is empty"):
        export("", "hf", tmp_path / "out")


def test_an_unknown_target_is_refused(model, tmp_path):
    with pytest.raises(UserError, match="hf, fastdeploy, static"):
        export(model, "onnx", tmp_path / "out")


def test_dtype_applies_to_every_weight(model, tmp_path):
    export(model, "hf", tmp_path / "out", verify=False, dtype="bfloat16")
    assert {dtype for dtype, _ in stored_in(tmp_path / "out").values()} == {"BF16"}


def test_fastdeploy_without_a_tokenizer_is_refused_before_anything_is_written(tmp_path):
    write_native(tmp_path / "llama", "llama")
    with pytest.raises(UserError, match="needs a tokenizer, and .*llama has none. Give one with --tokenizer"):
        export(tmp_path / "llama", "fastdeploy", tmp_path / "out")
    assert beside(tmp_path) == {"llama"}


@pytest.mark.parametrize("what", ["adapter", "tokenizer"])
def test_a_source_folder_is_never_replaced(what, model, tmp_path):
    """The output of an export may be the tokenizer or adapter folder of the next one."""
    (tmp_path / "read").mkdir()
    (tmp_path / "read" / "export.json").write_text("{}")
    (tmp_path / "read" / "tokenizer_config.json").write_text("{}")
    before = tree(tmp_path / "read")
    with pytest.raises(UserError):
        export(model, "hf", tmp_path / "read", overwrite=True, verify=False, **{what: tmp_path / "read"})
    assert tree(tmp_path / "read") == before and beside(tmp_path) == {"model", "read"}


def test_replacing_an_export_leaves_no_temporary_files_and_removes_no_others(model, tmp_path):
    (tmp_path / "out.replaced").mkdir()
    (tmp_path / "out.replaced" / "mine").touch()
    for _ in range(2):
        export(model, "hf", tmp_path / "out", overwrite=True, verify=False)
    assert beside(tmp_path) == {"model", "out", "out.replaced"} and (tmp_path / "out.replaced" / "mine").exists()


def test_options_without_an_effect_are_reported(model, tmp_path, capsys):
    def stderr_of(target: str, **options) -> str:
        with pytest.raises(UserError):  # raised after they are checked
            export(model, target, tmp_path / "out", tokenizer=tmp_path / "none", **options)
        return capsys.readouterr().err

    python = {"paddleformers_python": sys.executable}
    printed = stderr_of("static", max_shard_size="10MB", **python)
    assert "--max_shard_size has no effect" in printed and "--paddleformers_python has no effect: PaddleF" in printed
    printed = stderr_of("hf", verify=False, engines=["paddle"], **python)
    assert "--engines has no effect" in printed and "--paddleformers_python has no effect: nothing" in printed
    assert "paddleformers is not among --engines" in stderr_of("hf", engines=["paddle"], **python)
    assert "no effect" not in stderr_of("hf", engines=["paddle", "paddleformers"], **python)


def test_a_missing_python_is_refused_before_anything_is_written(model, tmp_path):
    with pytest.raises(UserError, match="--paddleformers_python .* /nowhere is not a program"):
        export(model, "hf", tmp_path / "out", paddleformers_python="/nowhere")
    assert beside(tmp_path) == {"model"}
