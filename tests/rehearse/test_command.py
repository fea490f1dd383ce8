"""`paddle-llm rehearse` on real ranks, and its messages about mistakes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil
import pytest
from click.testing import CliRunner, Result

from paddle_llm.cli.main import paddle_llm
from paddle_llm.config.layout import Layout
from paddle_llm.config.local_files.model_folder import read_model_facts
from paddle_llm.core.errors import UserError
from paddle_llm.data.samples.encode import EncodedSample
from paddle_llm.rehearse.rehearsal import SubLayoutResult, cases_of, run_sub_layouts
from paddle_llm.rehearse.shrink.config import read_cluster_config, shrink
from paddle_llm.rehearse.shrink.instruction_samples import _shortened
from paddle_llm.rehearse.shrink.samples import own_samples, sample_counts, synthetic_samples
from paddle_llm.rehearse.shrink.small_model import small_model
from tests.helpers.corpus import VOCABULARY, make_corpus
from tests.helpers.finetune_jobs import make_instructions
from tests.helpers.models.tiny import write_chatglm, write_llama

ROOT = Path(__file__).parents[2]
QUANTITIES = {"loss", "grad_norm", "gradient", "weight", "moment1", "moment2", "eval_loss"}
SETTINGS: dict[str, Any] = {
    "output_dir": "output",
    "do_train": True,
    "do_eval": True,
    "split": "900,80,20",
    "max_seq_length": 64,
    "max_steps": 100,
    "gradient_accumulation_steps": 8,
    "bf16": True,
    "device": "gpu",
    "recompute": True,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def write_config(folder: Path, corpus: Path | None, **settings: Any) -> str:
    values = {"input_dir": "nowhere", **SETTINGS}
    if corpus is not None:
        paths = {"model_name_or_path": "llama", "tokenizer_name_or_path": "tokenizer", "input_dir": "data"}
        values |= {name: str(corpus / path) for name, path in paths.items()}
    file = folder / "config.json"
    file.write_text(json.dumps(values | settings))
    return str(file)


def command(*words: str, cwd: Path, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    line = [str(Path(sys.executable).parent / "paddle-llm"), "rehearse", *words]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, check=False, timeout=timeout)


def rehearsed(*words: str, cwd: Path) -> Result:
    """Run the command in this process, whose fork server has imported Paddle already; variables that it sets are reset."""
    with mock.patch.dict(os.environ), pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        return CliRunner().invoke(paddle_llm, ["rehearse", *words])


def files_in(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_a_config_for_a_cluster_is_rehearsed_with_its_own_data(tmp_path: Path, corpus: Path) -> None:
    config = write_config(tmp_path, corpus, tensor_parallel_degree=8, sharding_parallel_degree=4)
    words = ("--sharding", "stage2", "--world_size", "32", "--ranks", "4", "--steps", "2", "--json", "verdict.json")
    before = files_in(corpus) | files_in(tmp_path)
    # Four attention heads do not divide by 8.
    refused = command(config, *words, cwd=tmp_path)
    assert refused.returncode == 2
    assert "attention heads" in refused.stderr
    done = rehearsed(config, *words[:3], "16", "--tensor_parallel_degree", "4", *words[4:], cwd=tmp_path)
    assert done.exit_code == 0, done.output
    assert files_in(corpus) | files_in(tmp_path) == before | {tmp_path / "verdict.json"}

    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert verdict["passed"] is True
    assert verdict["layout"] == "sharding4(stage2) x tp4"
    assert verdict["data"] == str(corpus / "data")
    (result,) = verdict["faces"]
    assert (result["layout"], result["ranks"], result["steps"], result["failures"]) == (
        "sharding2(stage2) x tp2",
        4,
        2,
        [],
    )
    assert result["worst"].keys() == QUANTITIES
    assert all(one["value"] <= one["limit"] for one in result["worst"].values())
    assert any(one["value"] > 0 for one in result["worst"].values())  # rounding: two trainings were compared
    assert {"what": "bf16", "real": "true", "rehearsed": "false"} in verdict["changes"]

    assert "sharding2(stage2) x tp2: 4 ranks" in done.stdout
    assert "gradient norm" in done.stdout
    assert re.search(r"max_seq_length +│ 64 +│ 32 ", done.stdout)
    assert done.stdout.splitlines()[-1].startswith("PASSED: sharding2(stage2) x tp2 (for sharding4(stage2) x tp4)")
    assert "Traceback" not in done.stderr
    assert re.search(r"^ +\d+ s  sharding2\(stage2\) x tp2: 4 ranks$", done.stderr, re.M)


def test_an_internal_failure_has_its_own_exit_code(tmp_path: Path, monkeypatch) -> None:
    """Exit code 1 means that something differs, which a crash does not show."""
    from paddle_llm.cli import rehearse as module

    def fail(*_: Any) -> None:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(module, "_samples", fail)
    config = write_config(tmp_path, None, model_name_or_path=str(write_llama(tmp_path / "model")))
    ended = CliRunner().invoke(module.rehearse, [config, "--world_size", "2", "--ranks", "2", "--synthetic"])
    assert ended.exit_code == 4 and "on purpose" in ended.output


def test_fine_tuning_is_rehearsed_with_its_method_and_instructions(tmp_path: Path) -> None:
    """It is recognised by its keys. The rows are packed from the config's own instructions, whose lengths stay unequal."""
    folder = make_instructions(tmp_path / "instructions")
    values = {"model_name_or_path": str(folder / "llama"), "dataset_name_or_path": str(folder / "data")}
    method = {"lora": True, "lora_rank": 16, "lora_target_modules": ["q_proj", "v_proj"], "zero_padding": True}
    run = {"do_train": True, "do_eval": True, "output_dir": "o", "max_length": 64, "max_seq_length": 128, "bf16": True}
    layout = {"tensor_parallel_degree": 4, "sharding": "stage2", "continue_training": False}
    (tmp_path / "tune.json").write_text(json.dumps(values | method | run | layout))
    words = ("--world_size", "8", "--ranks", "4", "--steps", "2", "--json", "verdict.json")
    done = rehearsed("tune.json", *words, cwd=tmp_path)
    assert done.exit_code == 0, done.output
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    (result,) = verdict["faces"]
    assert result["layout"] == "sharding2(stage2) x tp2" and result["failures"] == []
    assert {"what": "lora_rank", "real": "16", "rehearsed": "4"} in verdict["changes"]
    assert verdict["data"] == str(folder / "data") and "lora_" in result["worst"]["gradient"]["tensor"]
    (folder / "data/train.json").write_text('{"src": "a", "tgt": "b"}\n{"src": "a"}\n')
    refused = command("tune.json", *words, cwd=tmp_path)
    assert refused.returncode == 2 and "line 2: no key 'tgt'" in refused.stderr and "--synthetic" in refused.stderr


def test_a_shortened_sample_keeps_its_structure(tmp_path: Path) -> None:
    """The shares of prompt and answer, the position of the first answer, and the bidirectional prefix are kept."""
    facts = read_model_facts(write_chatglm(tmp_path / "model", vocab_size=500))
    model = small_model(facts, Layout(), 64, 1, 1, 1)
    ids, labels = np.arange(3, 43, dtype=np.int32), np.full(40, -100, np.int32)
    labels[29:] = ids[29:] + 1
    short = _shortened(EncodedSample(ids, labels, prefix=29), 0.5, model)
    assert (len(short.input_ids), short.prefix) == (14 + 5, 14)
    assert (short.labels[:14] == -100).all() and (short.labels[14:] != -100).all()
    assert short.labels[14] == model.vocabulary_map(labels[29:30].astype(np.int64))[0]


def test_chatglm_is_rehearsed_without_data(tmp_path: Path) -> None:
    """The samples have marks, positions, a mask and unequal numbers of labels."""
    model = write_chatglm(tmp_path / "model", vocab_size=500, gmask_token_id=497, mask_token_id=498, bos_token_id=496)
    config = write_config(tmp_path, None, model_name_or_path=str(model), tensor_parallel_degree=2)
    done = rehearsed(config, "--world_size", "4", "--ranks", "2", "--synthetic", cwd=tmp_path)
    assert done.exit_code == 0, done.output
    last = done.stdout.splitlines()[-1]
    assert last.startswith("PASSED: tp2, dp2 (for dp2 x tp2)"), last
    assert "not covered with --ranks 2: dp with tp" in done.stdout


@pytest.mark.slow
def test_a_70b_config_for_64_gpus_passes(tmp_path: Path, corpus: Path) -> None:
    config = ROOT / "configs" / "pretrain" / "llama_2_70b_tp8_pp4_sharding2_stage2.json"
    data = ("--input_dir", str(corpus / "data"), "--tokenizer_name_or_path", str(corpus / "tokenizer"))
    done = command(str(config), "--world_size", "64", *data, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sharding2(stage2) x tp2+sp x pp2: 8 ranks" in done.stdout


# --- mistakes ------------------------------------------------------------------------------------------------------


def test_missing_paths_are_reported_together_before_any_rank_starts(tmp_path: Path, corpus: Path) -> None:
    missing = {"input_dir": str(tmp_path / "no_data"), "tokenizer_name_or_path": str(tmp_path / "no_tokenizer")}
    done = command(write_config(tmp_path, corpus, **missing), "--world_size", "1", cwd=tmp_path)
    assert done.returncode == 2
    assert "no_data" in done.stderr
    assert "no_tokenizer: no such folder" in done.stderr
    assert "--synthetic" in done.stderr
    assert "one process" not in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--world_size", "2", "--tensor_parallel_degree", "2", "--ranks", "1"), "tp needs at least 2 ranks"),
        (("--world_size", "1", "--json", "no_folder/verdict.json"), "the folder no_folder does not exist"),
        (("--world_size", "1", "--json", "."), "--json . cannot be written: Is a directory"),
        (("--world_size", "1", "--stepps", "3"), "--stepps is unknown"),
        (("--world_size", "1", "--do_train", "false"), "do_train is false"),
        (("--ranks", "2"), "Missing option '--world_size'"),
    ],
)
def test_a_mistake_on_the_command_line_is_refused(
    tmp_path: Path, corpus: Path, words: tuple[str, ...], message: str
) -> None:
    done = command(write_config(tmp_path, corpus), *words, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def read_own_samples(folder: Path, corpus: Path, **settings: Any):
    real = read_cluster_config([write_config(folder, corpus, **settings)], 1)
    small = shrink(real, 1, 2, folder / "small")
    return real, small, own_samples(real, small.model, sample_counts(small.configs))


def test_own_samples_are_those_of_the_training(tmp_path: Path, corpus: Path) -> None:
    from paddle_llm.data.corpus.dataset import build_pretrain_datasets

    real, small, found = read_own_samples(tmp_path, corpus)
    wanted = {"train_samples": 8, "eval_samples": 1, "predict_samples": 0}
    parts = build_pretrain_datasets(real.config, **wanted, seq_length=64, eos_id=2, vocab_size=VOCABULARY)
    length = small.model.sequence
    for ours, theirs in ((found.train, parts.train), (found.evaluation, parts.valid)):
        tokens = theirs.tokens(0)
        np.testing.assert_array_equal(ours[0]["input_ids"], small.model.vocabulary_map(tokens[:length]))
        np.testing.assert_array_equal(ours[0]["labels"], small.model.vocabulary_map(tokens[1 : length + 1]))
    assert max(sample["input_ids"].max() for sample in found.train) < small.model.facts.vocab_size < VOCABULARY


def test_no_file_is_written_beside_a_large_corpus(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paddle_llm.data.corpus.order.CACHE_ABOVE_ENTRIES", 0)  # as if its order were worth keeping
    before = files_in(corpus)
    assert read_own_samples(tmp_path, corpus)[2].train
    assert files_in(corpus) == before


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tmp_path: Path, corpus: Path) -> None:
    model = write_llama(tmp_path / "model", vocab_size=VOCABULARY - 10)
    with pytest.raises(
        UserError, match=f"largest id is {VOCABULARY - 1}, but the vocabulary of the model has {VOCABULARY - 10} ids"
    ):
        read_own_samples(tmp_path, corpus, model_name_or_path=str(model))


def test_another_tokenizer_than_that_of_the_corpus_is_refused(tmp_path: Path, corpus: Path) -> None:
    from paddle_llm.data.tokenizer import train_tokenizer

    lines = (corpus / "text.jsonl").read_text().splitlines()[:20]
    train_tokenizer(iter(lines), str(tmp_path / "other"), VOCABULARY - 50)
    with pytest.raises(UserError, match="built with another tokenizer"):
        read_own_samples(tmp_path, corpus, tokenizer_name_or_path=str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_seq_length": 128, "split": "999,1,0", "do_eval": True}, "the valid part"),
        ({"max_steps": -1, "num_train_epochs": 0.001, "gradient_accumulation_steps": 64}, "fewer than one global batch"),
    ],
)  # fmt: skip
def test_too_little_data_is_refused(tmp_path: Path, corpus: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_own_samples(tmp_path, corpus, **settings)


def test_a_config_that_paddlenlp_does_not_support_is_a_users_mistake(tmp_path: Path) -> None:
    """A rank finds it when it builds the model."""
    model = write_llama(tmp_path / "model", hidden_act="gelu")
    config = write_config(tmp_path, None, model_name_or_path=str(model))
    done = command(config, "--world_size", "1", "--synthetic", cwd=tmp_path)
    assert done.returncode == 2
    assert "hidden_act = 'gelu'" in done.stderr
    assert "Traceback" not in done.stderr


# --- failed comparisons and interruptions ----------------------------------------------------------------------------------------


def rehearsed_with(tmp_path: Path, fault: str, layout: dict[str, Any]) -> SubLayoutResult:
    model = write_llama(tmp_path / "model", vocab_size=400)
    real = read_cluster_config([write_config(tmp_path, None, model_name_or_path=str(model), **layout)], 2)
    small = shrink(real, 2, 1, tmp_path / "small")
    samples = synthetic_samples(small.model, sample_counts(small.configs), seed=1)
    (case,) = cases_of(small, samples)
    (result,) = run_sub_layouts([replace(case, fault=fault)], lambda text: None)
    return result


def test_a_fault_is_reported_with_quantity_tensor_step_and_rank(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    from paddle_llm.config.layout import Layout
    from paddle_llm.rehearse.report import as_json, print_report
    from paddle_llm.rehearse.shrink.config import Shrunk

    result = rehearsed_with(tmp_path, "dropped_all_reduce", {"tensor_parallel_degree": 2})
    assert not result.passed
    small = Shrunk([], None, [], [])  # type: ignore[arg-type]
    print_report(small, [result], Layout(tensor=2), 1.0, Console(width=120))
    printed = capsys.readouterr().out
    assert "tp2: 2 ranks" in printed
    assert "NOT EQUAL" in printed
    assert re.search(r"the first difference is in the gradient of llama\.\S+, step 1, rank [01]: \d", printed)
    assert "A sum in the backward pass" in printed
    assert printed.splitlines()[-1].startswith("FAILED: tp2")
    verdict = as_json(small, [result], Layout(tensor=2), "random tokens", 1.0)
    assert verdict["passed"] is False
    assert {one["quantity"] for one in verdict["faces"][0]["failures"]} >= {"gradient"}
    json.dumps(verdict, allow_nan=False)


def a_rank_among(family: list[psutil.Process]) -> bool:
    """Return a child of the fork server."""
    pids = {one.pid for one in family}
    with contextlib.suppress(psutil.NoSuchProcess):
        return any(one.ppid() in pids for one in family)
    return False


@pytest.mark.parametrize("moment", ["the server imports", "the ranks run"])
def test_ctrl_c_ends_every_process(moment: str, tmp_path: Path) -> None:
    model = write_llama(tmp_path / "model", vocab_size=400)
    config = write_config(tmp_path, None, model_name_or_path=str(model), tensor_parallel_degree=2)
    line = [sys.executable, "-m", "paddle_llm.cli", "rehearse", config, "--world_size", "2", "--synthetic"]
    with subprocess.Popen(
        [*line, "--steps", "500"], cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stderr is not None
        for text in process.stderr:
            if "one process, twice" in text:
                break
        family: list[psutil.Process] = []
        deadline = time.monotonic() + 100
        while not (family if moment == "the server imports" else a_rank_among(family)) and time.monotonic() < deadline:
            time.sleep(0.02)
            family = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        rest = process.stderr.read()
        # Python ends by the signal itself, which is 130 for a shell, if Paddle was being imported.
        assert process.wait(60) in (130, -signal.SIGINT), rest
    assert "interrupted" in rest
    assert "Traceback" not in rest, rest
    _, alive = psutil.wait_procs(family, timeout=15)
    assert family
    assert not alive
