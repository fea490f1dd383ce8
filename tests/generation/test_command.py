"""`paddle-llm generate` as it is typed: texts, files, a chat; adapters; what it refuses."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from paddle_llm.cli.generate import _write, generate
from paddle_llm.core.errors import UserError
from paddle_llm.generation.chat import Streamed
from paddle_llm.rehearse.ranks import run_ranks
from tests.helpers.launcher_output import launcher_report
from tests.helpers.models.folders import VOCABULARY, write_folder
from tests.peft.disk import no_room

TEXT = "The class statement defines"


def run(*arguments: str | Path):
    """(stdout, stderr) of the command in this process."""
    result = CliRunner().invoke(generate, [*map(str, arguments), "--device", "cpu"], catch_exceptions=False)
    return result.stdout, result.stderr


def refused(*arguments: str | Path) -> str:
    with pytest.raises(UserError) as refusal:
        run(*arguments)
    return str(refusal.value)


def rows(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


# ---- texts ----------------------------------------------------------------------------------------------------------


def test_a_text_is_continued_as_it_stands(llama):
    command = [sys.executable, "-m", "paddle_llm.cli", "generate", str(llama), "--prompt", TEXT, "--device", "cpu"]
    done = subprocess.run([*command, "--max_new_tokens", "8"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == run(llama, "--prompt", TEXT, "--max_new_tokens", "8")[0]
    assert done.stdout.startswith(TEXT) and done.stdout.count("\n") == done.stdout.strip().count("\n") + 1
    (told,) = done.stderr.splitlines()  # paddle, imported when the machine has been prepared, has nothing to say
    assert "no prompt template" in told


def test_prompts_that_are_cut_are_counted(llama, tmp_path):
    long = " ".join([TEXT] * 60)
    (tmp_path / "q.jsonl").write_text("".join(json.dumps({"instruction": q}) + "\n" for q in ("Why?", long, long)))
    _, told = run(llama, "--chat_template", "default", "--input", tmp_path / "q.jsonl", "--max_new_tokens", 2)
    assert "2 of 3 prompts were truncated: the beginning of the question was cut off (first: " in told
    assert "q.jsonl, line 2)" in told and "positions, 2 are kept for an answer" in told
    _, told = run(llama, "--chat_template", "default", "--prompt", "Why?", "--max_new_tokens", 2)
    assert "truncated" not in told
    assert "are more than the model's" in refused(llama, "--prompt", long)


def test_sampling_follows_its_seed_and_not_the_batch(llama):
    choice = ("--temperature", "2", "--max_new_tokens", "9")
    one, again, other = (run(llama, "--prompt", TEXT, *choice, "--seed", seed)[0] for seed in "112")
    assert one == again != other
    more = ("--prompt", TEXT, "--prompt", "An object", "--prompt", TEXT)
    together, apart = (run(llama, *more, *choice, "--seed", "1", "--batch_size", size)[0] for size in "31")
    assert together == apart and together.startswith(f"{one}---\nAn object") and together.count("\n---\n") == 2
    assert run(llama, "--prompt", TEXT, *choice, "--top_k", "1") == run(
        llama, "--prompt", TEXT, "--max_new_tokens", "9"
    )


def test_a_template_asks(llama):
    asked, told = run(llama, "--prompt", TEXT, "--max_new_tokens", "8", "--template", "alpaca")
    assert not asked.startswith(TEXT) and "prompt template: alpaca" in told
    with_system = run(llama, "--prompt", TEXT, "--max_new_tokens", "8", "--template", "alpaca", "--system", "Be kind.")
    assert with_system[0] != asked


def test_a_system_text_is_put_before_rows_that_have_none(llama, tmp_path):
    bare, own = {"role": "user", "content": "Why?"}, {"role": "system", "content": "Be short."}
    file = tmp_path / "q.jsonl"
    file.write_text("".join(json.dumps({"messages": one}) + "\n" for one in ([bare], [own, bare])))
    asked = rows(run(llama, "--input", file, "--max_new_tokens", 1, "--template", "alpaca", "--system", "Be kind.")[0])
    assert "Be kind." in asked[0]["prompt"]
    assert "Be short." in asked[1]["prompt"] and "Be kind." not in asked[1]["prompt"]


def test_what_cannot_be_is_told(llama, tmp_path, monkeypatch):
    assert "128 positions; at most" in refused(llama, "--prompt", TEXT, "--max_new_tokens", "126")
    assert "empty" in refused(llama, "--prompt", "")
    assert "no folder" in refused(tmp_path / "none", "--prompt", "x")
    assert "--prompt and --chat" in refused(llama, "--prompt", "x", "--chat")
    assert "nothing to do" in refused(llama)
    assert "keep one" in refused(llama, "--prompt", "x", "--num_beams", "2", "--top_p", "0.5")
    assert "leave --num_beams out" in refused(llama, "--chat", "--num_beams", "2")
    assert "does not exist" in refused(llama, "--input", tmp_path / "none.jsonl")
    (tmp_path / "lines.txt").write_text("the old house\n")
    assert refused(llama, "--input", tmp_path / "line.txt").endswith("Did you mean lines.txt?")
    both = ("--input", tmp_path / "lines.txt", "--output", tmp_path / "lines.txt", "--overwrite")
    assert "would be lost" in refused(llama, *both)
    assert "needs a template" in refused(llama, "--prompt", "x", "--system", "y")
    assert "none of auto" in refused(llama, "--prompt", "x", "--chat_template", "lama")
    monkeypatch.setattr("paddle_llm.cli.generate._load", None)
    assert "Did you mean llama2?" in refused(llama, "--prompt", "x", "--chat_template", "lama2")
    assert "paddle-llm generate output" in CliRunner().invoke(generate, ["--help"]).output


# ---- files ----------------------------------------------------------------------------------------------------------


def test_instructions_are_answered_beside_their_references(llama, tmp_path):
    file, output = tmp_path / "dev.jsonl", tmp_path / "answers.jsonl"
    asked = [{"src": "An object", "tgt": "is a thing"}, {"src": TEXT}, {"src": ["a", "b"], "tgt": ["c"]}]
    file.write_text("".join(json.dumps(row) + "\n" for row in asked))
    command = (llama, "--input", file, "--output", output, "--max_new_tokens", "6", "--batch_size", "2")
    out, told = run(*command)
    found = rows(output.read_text())
    assert "is there" in refused(*command) and run(*command, "--overwrite")[0] == ""
    assert out == "" and [row.get("reference") for row in found] == ["is a thing", None, None]
    assert [row["where"] for row in found] == [f"{file}, line {number}" for number in (1, 2, 3)]
    assert found[2]["prompt"] == "<s>a c</s>b"
    assert "1 of 3 answers have a reference" in told and "exact_match" in told and "prompt template: default" in told
    alone = run(llama, "--prompt", TEXT, "--max_new_tokens", "6", "--template", "default")[0]
    assert found[1]["generated"] == alone.removesuffix("\n")


def test_the_folder_of_a_run_and_what_is_no_model(llama, tmp_path, monkeypatch):
    run_folder = tmp_path / "run"
    shutil.copytree(llama, run_folder / "model")
    out, told = run(run_folder, "--prompt", TEXT, "--max_new_tokens", "3")
    assert out.startswith(TEXT) and f"{run_folder / 'model'} is taken" in told
    monkeypatch.setattr("paddle_llm.cli.generate._load", None)  # all else is told before that
    (run_folder / "model").rename(tmp_path / "model")
    assert "no config.json" in refused(run_folder, "--prompt", TEXT)
    (run_folder / "adapter").mkdir()
    (run_folder / "adapter" / "adapter_config.json").write_text('{"base": "models/x"}')
    for folder in (run_folder, run_folder / "adapter"):
        assert f"generate models/x --adapter {run_folder / 'adapter'}" in refused(folder, "--prompt", TEXT)
    assert "no tokenizer's folder" in refused(llama, "--prompt", TEXT, "--tokenizer", run_folder)
    (tmp_path / "model" / "model.safetensors").unlink()
    assert "holds no weights" in refused(tmp_path / "model", "--prompt", TEXT)
    (tmp_path / "model" / "model.safetensors").touch()
    (tmp_path / "model" / "tokenizer_config.json").unlink()
    assert "with --tokenizer" in refused(tmp_path / "model", "--prompt", TEXT)
    assert "no such folder" in refused(llama, "--prompt", TEXT, "--tokenizer", tmp_path / "nowhere")


def test_an_output_that_cannot_be_written_is_told_first(llama, tmp_path, monkeypatch):
    file = tmp_path / "prompts.txt"
    file.write_text(TEXT)
    monkeypatch.setattr("paddle_llm.cli.generate._load", None)  # what would take long is not begun
    assert "x.jsonl cannot be written" in refused(llama, "--input", file, "--output", file / "x.jsonl")


def test_answers_that_find_no_room_are_not_lost(tmp_path, capsys):
    with no_room(), pytest.raises(UserError, match="on stdout instead"):
        _write([{"prompt": "a", "generated": "b"}], tmp_path / "x.jsonl")
    assert rows(capsys.readouterr().out) == [{"prompt": "a", "generated": "b"}] and not list(tmp_path.iterdir())


def test_rows_without_answers_in_every_format(llama, tmp_path):
    formats = [
        {"content": "An object"},
        {"instruction": "An object", "input": ""},
        {"inputs": "An object"},
        {"query": "An object", "response": ""},
        {"messages": [{"role": "user", "content": "An object"}]},
        {"conversations": [{"from": "human", "value": "An object"}]},
    ]
    found = []
    for number, row in enumerate(formats):
        file = tmp_path / f"{number}.json"
        file.write_text(json.dumps([row]))
        found += rows(run(llama, "--input", file, "--max_new_tokens", "4")[0])
    assert {row["prompt"] for row in found} == {"<s>An object"}
    assert len({row["generated"] for row in found}) == 1 and not any("reference" in row for row in found)


def test_lines_are_continued_and_bad_rows_refused(llama, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text(f"{TEXT}\n\nAn object\n")
    found = rows(run(llama, "--input", file, "--max_new_tokens", "5")[0])
    assert [row["prompt"] for row in found] == [TEXT, "An object"]
    assert TEXT + found[0]["generated"] + "\n" == run(llama, "--prompt", TEXT, "--max_new_tokens", "5")[0]
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"src": "x"}\n{"src": 3}\n')
    good = tmp_path / "good.jsonl"
    good.write_text('{"src": "x"}\n')
    assert "line 2: 'src' holds int" in refused(llama, "--input", bad)
    assert "a conversation needs a template" in refused(llama, "--input", good, "--template", "none")


# ---- adapters and trained folders -----------------------------------------------------------------------------------


def save_trained(name: str, base: Path, folder: Path) -> Path:
    """An adapter over a model folder, as if it had been trained."""
    from paddle_llm.config.layout import Layout
    from paddle_llm.peft.save import save_adapter
    from tests.helpers.models.adapters import METHODS, attached, set_trained
    from tests.helpers.models.networks import build

    model = attached(build(base, load=True), METHODS[name])
    set_trained(model)
    save_adapter(model, Layout(), folder / name / "adapter", base="elsewhere")
    return folder / name / "adapter"


def test_an_adapter_over_its_base(llama, tmp_path, pieces):
    plain = run(llama, "--prompt", TEXT, "--max_new_tokens", "8")[0]
    adapters = [save_trained(name, llama, tmp_path) for name in ("lora", "prefix", "prompt")]
    for adapter in adapters:
        adapted, told = run(llama, "--prompt", TEXT, "--max_new_tokens", "8", "--adapter", adapter)
        assert adapted != plain and "trained over elsewhere" in told
    other = write_folder("llama", pieces, tmp_path / "other", num_hidden_layers=1)
    assert "another base" in refused(other, "--prompt", TEXT, "--adapter", adapters[0])
    assert "no adapter" in refused(llama, "--prompt", TEXT, "--adapter", tmp_path)


def test_the_template_of_the_training_is_taken(llama, tmp_path):
    copied = tmp_path / "output" / "model"
    shutil.copytree(llama, copied)
    record = {"arguments": {"chat_template": {"value": "alpaca", "origin": "flag"}}}
    (tmp_path / "output" / "config.resolved.json").write_text(json.dumps(record))
    file = tmp_path / "x.jsonl"
    file.write_text('{"src": "Hello"}')
    out, told = run(copied, "--input", file, "--max_new_tokens", "4")
    assert "### Instruction: Hello" in rows(out)[0]["prompt"]
    assert "alpaca (as in the model's training)" in told
    assert "alpaca (as in" in run(copied, "--prompt", "Hello", "--max_new_tokens", "4", "--template", "auto")[1]
    assert "default (as asked for)" in run(copied, "--input", file, "--max_new_tokens", "4", "--template", "default")[1]


# ---- chat -----------------------------------------------------------------------------------------------------------


def chat(llama: Path, said: str, *options: str):
    arguments = [str(llama), "--chat", "--device", "cpu", "--template", "default", *options]
    return CliRunner().invoke(generate, arguments, input=said, catch_exceptions=False)


def test_a_chat_remembers_until_it_is_cleared(llama):
    talk = chat(llama, "An object\nAn object\n/clear\nAn object\n/help\n\n/exit\nnever\n", "--max_new_tokens", "5")
    first, second, third = talk.stdout.splitlines()
    assert first == third != second
    assert "/help is no command" in talk.stderr
    single = run(llama, "--prompt", "An object", "--template", "default", "--max_new_tokens", "5")[0]
    assert first == single.removesuffix("\n")
    assert chat(llama, "An object\n", "--max_new_tokens", "5").stdout == single  # ended by the end of the input


def test_ctrl_c_stops_the_answer_alone(tmp_path, pieces, monkeypatch):
    """An answer of ninety thousand words, of which twenty are written when the signal comes."""
    longest = {"max_position_embeddings": 100_000, "eos_token_id": VOCABULARY - 1}
    folder = write_folder("llama", pieces, tmp_path, num_hidden_layers=1, **longest)
    add, count = Streamed.add, []

    def add_and_interrupt(self: Streamed, token: int) -> None:
        add(self, token)
        count.append(token)
        if len(count) == 20:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Streamed, "add", add_and_interrupt)
    talk = chat(folder, "An object\n/exit\n", "--max_new_tokens", "90000")
    assert talk.exit_code == 0 and "[stopped]" in talk.stderr
    assert len(count) == 20 and talk.stdout.strip()


def test_half_a_character_waits(capsys):
    class Bytes:
        """A tokenizer of bytes."""

        def decode(self, ids):
            return bytes(ids).decode(errors="replace")

    shown, seen = Streamed(Bytes()), []
    for byte in "a月".encode():
        shown.add(byte)
        seen.append(capsys.readouterr().out)
    assert seen == ["a", "", "", "月"] and shown.end() == "a月"


# ---- ranks ----------------------------------------------------------------------------------------------------------


def on_rank(commands: list[tuple[str, ...]]) -> list[str]:
    return [run(*command)[0] for command in commands]


def test_tensor_ranks_print_what_one_process_does(llama, tmp_path):
    """With 401 words, which two ranks cannot divide."""
    prompts = (str(llama), "--prompt", TEXT, "--prompt", "An object", "--max_new_tokens", "8")
    adapters = [("--adapter", str(save_trained(name, llama, tmp_path))) for name in ("lora", "prefix")]
    choices = [(), ("--temperature", "2", "--seed", "3"), ("--num_beams", "3"), *adapters]
    commands = [(*prompts, *choice) for choice in choices]
    first, second = run_ranks(on_rank, 2, commands, quiet=True)
    assert first == on_rank(commands) and len(set(first)) == len(first)
    assert not any(second)


def test_a_chat_is_for_one_process(llama, monkeypatch):
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "2")
    assert "one process" in refused(llama, "--chat")


@pytest.mark.slow
def test_under_paddles_launch(llama, tmp_path):
    command = ["generate", str(llama), "--prompt", TEXT, "--max_new_tokens", "8"]
    script = str(Path(sys.executable).with_name("paddle-llm"))
    launch = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", str(tmp_path)]
    done = subprocess.run([*launch, script, *command, "--device", "cpu"], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, launcher_report(done, tmp_path)
    assert run(*command[1:])[0] in done.stdout
