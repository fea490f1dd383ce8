"""The other engines: transformers on torch, PaddleFormers, the static program."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from tests.export.environments import ROOT, paddleformers_python
from tests.helpers.models.folders import write_folder
from tests.helpers.models.networks import WRITERS

WEIGHTS = "model.safetensors"
LOGITS, TOKENIZER = "logits and greedy tokens", "tokenizer"
GROUPED = {"num_key_value_heads": 2}


def exported(source: Path, folder: Path, target: str) -> Path:
    from paddle_llm.export import export

    export(source, target, folder, verify=False)
    return folder


def found_by(engine: str, source: Path, folder: Path, target: str, **options) -> dict[str, object]:
    """Return the findings of an engine, by the quantity compared."""
    from paddle_llm.export.source.open import open_source
    from paddle_llm.export.verification.verify import verify

    findings = verify(open_source(source), folder, target, engines=[engine], **options)
    return {finding.what: finding for finding in findings if finding.engine.startswith(engine)}


def passed(findings: dict, *what: str) -> bool:
    assert set(findings) == set(what), findings
    return all(findings[one].passed for one in what)


def damage(folder: Path, change) -> Path:
    tensors = change(load_file(folder / WEIGHTS))
    save_file(
        {name: np.ascontiguousarray(value) for name, value in tensors.items()}, folder / WEIGHTS, {"format": "pt"}
    )
    return folder


def with_paddlenlps_prefix(tensors):
    return {name.replace("model.", "llama.", 1): value for name, value in tensors.items()}


def not_transposed(tensors):
    square = {name for name, value in tensors.items() if value.ndim == 2 and value.shape[0] == value.shape[1]}
    assert square
    return {name: value.T if name in square else value for name, value in tensors.items()}


# ---- transformers on torch --------------------------------------------------------------------------------------------


@pytest.mark.hf
def test_transformers_gives_the_answers_of_the_source(tmp_path, llama):
    folder = exported(llama, tmp_path / "hf", "hf")
    findings = found_by("transformers", llama, folder, "hf")
    assert passed(findings, LOGITS, TOKENIZER)
    logits = findings[LOGITS]
    assert "torch" in logits.engine and logits.tokens_equal == logits.tokens == 16 * logits.prompts
    assert 0 < logits.largest_logit_difference < logits.limit / 10


@pytest.mark.slow
@pytest.mark.hf
@pytest.mark.parametrize("family", ["qwen2", "bloom", "opt", "mistral"])
def test_transformers_gives_the_answers_of_other_families(tmp_path, pieces, family):
    source = write_folder(family, pieces, tmp_path / family)
    folder = exported(source, tmp_path / "hf", "hf")
    assert passed(found_by("transformers", source, folder, "hf"), LOGITS, TOKENIZER)


@pytest.mark.slow
@pytest.mark.hf
@pytest.mark.parametrize("trap", [with_paddlenlps_prefix, not_transposed])
def test_transformers_detects_a_mistake(tmp_path, llama, trap):
    folder = damage(exported(llama, tmp_path / "fastdeploy", "fastdeploy"), trap)
    finding = found_by("transformers", llama, folder, "fastdeploy")[LOGITS]
    # Without any weight that it knows transformers gives up; the other layout it loads without a word.
    assert finding.passed is False and finding.ended == (trap is with_paddlenlps_prefix)


@pytest.mark.slow
@pytest.mark.hf
def test_transformers_detects_a_tokenizer_with_unsupported_outputs(tmp_path, llama):
    """PreTrainedTokenizerFast returns token_type_ids unless its config forbids them; `generate` refuses them."""
    folder = exported(llama, tmp_path / "hf", "hf")
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    del config["model_input_names"]
    file.write_text(json.dumps(config))
    finding = found_by("transformers", llama, folder, "hf")[TOKENIZER]
    assert finding.passed is False and "token_type_ids" in finding.note


def test_an_unsupported_family_is_reported(tmp_path, pieces):
    source = write_folder("chatglm_v2", pieces, tmp_path / "chatglm2")
    finding = found_by("transformers", source, source, "hf")[LOGITS]
    assert finding.passed is None and "remote code" in finding.note


def test_missing_torch_is_reported(llama, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else real(name))
    finding = found_by("transformers", llama, llama, "hf")[LOGITS]
    assert (
        finding.passed is None
        and "torch" in finding.note
        and "not installed. Install with: pip install" in finding.note
    )


# ---- PaddleFormers ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("target", ["fastdeploy", "hf"])
def test_paddleformers_gives_the_answers_of_the_source(tmp_path, llama, target):
    """The model that FastDeploy 2.x uses for LLaMA by default loads the export. Its environment is made the first time."""
    python = paddleformers_python()
    folder = exported(llama, tmp_path / "export", target)
    before = sorted(folder.iterdir())
    findings = found_by("paddleformers", llama, folder, target, paddleformers_python=python)
    assert passed(findings, LOGITS, TOKENIZER)
    logits = findings[LOGITS]
    assert logits.tokens_equal == logits.tokens == 16 * logits.prompts and logits.largest_logit_difference > 0
    assert "without pad_token_id 0" in logits.note
    assert sorted(folder.iterdir()) == before  # it writes a file into the folder that it loads


# How a program ends -> the message about it. Each is started instead of the Python of PaddleFormers.
ENDS = {
    "a signal": ("echo loading >&2; echo 'no memory left' >&2; kill -9 $$", "it was ended by SIGKILL .*no memory left"),
    "an exception": (
        "for i in 1 2 3 4 5 6 7 8 9; do echo \"  line $i\" >&2; done; echo 'KeyError: rope' >&2; exit 1",
        "it ended with exit code 1; its last output:.*line 9.*KeyError: rope",
    ),
    "no word": ("exit 7", "it ended with exit code 7, without output"),
    "no answer": ("exit 0", "it ended without an answer"),
    "never": ("echo waiting >&2; exec sleep 60", "it did not answer within 2 s; its last output:.*waiting"),
}


def program(folder: Path, text: str) -> Path:
    file = folder / "python"
    file.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exit 0  # asked whether it has PaddleFormers\n{text}\n')
    file.chmod(0o755)
    return file


@pytest.mark.parametrize("end", ENDS)
def test_the_end_of_an_engine_is_described(end, llama, tmp_path, monkeypatch):
    """A crash says nothing about the export, so it is not reported as a difference."""
    from paddle_llm.export.verification.engines import in_processes

    monkeypatch.setattr(in_processes, "_TIMEOUT", 2)
    python = program(tmp_path, ENDS[end][0])
    finding = found_by("paddleformers", llama, llama, "hf", paddleformers_python=python)[LOGITS]
    assert finding.passed is False and finding.ended
    assert re.match(ENDS[end][1], finding.note, re.DOTALL), finding.note
    assert "line 1\n" not in finding.note


@pytest.mark.parametrize("text", ["#!/nowhere/sh\n", f'#!/bin/sh\nexec {sys.executable} "$@"\n'])
def test_a_python_without_paddleformers_is_refused_before_anything_is_written(text, llama, tmp_path):
    (tmp_path / "python").write_text(text)
    (tmp_path / "python").chmod(0o755)
    from paddle_llm.core.errors import UserError

    with pytest.raises(UserError, match="is not a Python with PaddleFormers"):
        invoked("export", llama, tmp_path / "out", "--target", "hf", "--paddleformers_python", tmp_path / "python")
    assert {path.name for path in tmp_path.iterdir()} == {"python"}


def test_a_crashed_engine_is_not_reported_as_a_difference(llama, tmp_path):
    """The export is not published, and the message advises to exclude the engine."""
    words = ["export", llama, tmp_path / "out", "--target", "hf", "--paddleformers_python"]
    words.append(program(tmp_path, "echo 'no memory left' >&2; exit 1"))
    result = invoked(*words, "--engines", "paddle, paddleformers")
    assert result.exit_code == 1 and not (tmp_path / "out").exists()
    assert "not equal" not in result.stderr and "no memory left" in result.stderr
    assert (
        "could not be compared with its source" in result.stderr
        and "exclude it with --engines paddle." in result.stderr
    )
    result = invoked(*words[:-2], "--engines", "paddle")
    assert result.exit_code == 0
    engines = [one["engine"] for one in json.loads((tmp_path / "out" / "export.json").read_text())["verified"]]
    assert not any(engine.startswith("transformers") for engine in engines)


def test_unusable_engines_are_refused(llama, tmp_path, monkeypatch):
    from paddle_llm.core.errors import UserError

    monkeypatch.delenv("PADDLE_LLM_PADDLEFORMERS_PYTHON", raising=False)
    out = tmp_path / "out"
    for engines, target, printed in (
        ("torch", "hf", "'torch' is unknown"),
        ("transformers", "static", "cannot load the target static. Use some of paddle.inference"),
        ("", "hf", "'' is unknown"),
    ):
        with pytest.raises(UserError, match=printed):
            invoked("export", llama, out, "--target", target, "--engines", engines)
    result = invoked("export", llama, out, "--target", "hf", "--engines", "paddleformers")
    assert (
        result.exit_code == 1
        and "paddleformers did not run (see above). Install it, or remove it from --engines." in result.stderr
    )
    assert not out.exists()


def invoked(*words):
    from paddle_llm.cli.main import paddle_llm

    return CliRunner().invoke(paddle_llm, [*map(str, words)], catch_exceptions=False)


def test_the_environment_script_overwrites_nothing(tmp_path):
    script = ROOT / "launch" / "paddleformers_env.sh"
    (tmp_path / "thesis.txt").write_text("years of work")
    done = subprocess.run([script, tmp_path], capture_output=True, text=True)
    assert done.returncode == 2 and "is not a virtual environment" in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]
    done = subprocess.run([script], capture_output=True, text=True)
    assert done.returncode == 2 and "Usage: launch/paddleformers_env.sh DIR" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("trap", [with_paddlenlps_prefix, not_transposed])
def test_paddleformers_detects_a_mistake(tmp_path, llama, trap):
    python = paddleformers_python()
    folder = damage(exported(llama, tmp_path / "export", "fastdeploy"), trap)
    finding = found_by("paddleformers", llama, folder, "fastdeploy", paddleformers_python=python)[LOGITS]
    assert finding.passed is False
    # Weights that it does not find it refuses; the other layout it loads without a word.
    wanted = "model.embed_tokens.weight" if trap is with_paddlenlps_prefix else "logits differ"
    assert wanted in finding.note


# ---- the static program -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "chatglm_v2", "bloom"])
def test_the_static_program_gives_the_answers_of_the_source(tmp_path, pieces, family):
    source = write_folder(family, pieces, tmp_path / family)
    folder = exported(source, tmp_path / "static", "static")
    findings = found_by("paddle.inference", source, folder, "static")
    assert passed(findings, LOGITS) and findings[LOGITS].tokens_equal > 0


def test_a_static_program_with_other_weights_is_detected(tmp_path, pieces, llama):
    other = write_folder("llama", pieces, tmp_path / "other", seed=6, num_hidden_layers=2, **GROUPED)
    folder = exported(other, tmp_path / "static", "static")
    assert found_by("paddle.inference", llama, folder, "static")[LOGITS].passed is False


def test_a_static_program_without_weights_is_detected(tmp_path, llama):
    folder = exported(llama, tmp_path / "static", "static")
    (folder / "model.pdiparams").unlink()
    finding = found_by("paddle.inference", llama, folder, "static")[LOGITS]
    assert finding.passed is False and "model.pdiparams" in finding.note


def test_every_family_has_an_engine_for_each_target():
    """A target without an engine would be exported without a comparison."""
    from paddle_llm.export.verification import verify

    for target in ("hf", "fastdeploy", "static"):
        always = [engine for engine in verify._ENGINES if target in engine.targets and engine.families is None]
        assert always, target
    assert set(verify._IN_TRANSFORMERS) < set(WRITERS)
