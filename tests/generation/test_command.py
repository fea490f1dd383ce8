"""`paddle-llm generate`: plain texts, files, chat, adapters, and refused options."""

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
from paddle_llm.generation.chat import StreamPrinter
from paddle_llm.rehearse.ranks import run_ranks
from tests.helpers.launcher_output import launcher_report
from tests.helpers.models.folders import VOCABULARY, write_folder
from tests.peft.disk import full_disk

TEXT = "The class statement defines"


def run(*arguments: str | Path):
    """Run the command in this process and return (stdout, stderr)."""
    result = CliRunner().invoke(generate, [*map(str, arguments), "--device", "cpu"], catch_exceptions=False)
    return result.stdout, result.stderr


def refused(*arguments: str | Path) -> str:
    with pytest.raises(UserError) as refusal:
        run(*arguments)
    return str(refusal.value)


def rows(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


# ---- texts ----------------------------------------------------------------------------------------------------------


def test_plain_text_is_continued(llama):
    command = [sys.executable, "-m", "paddle_llm.cli", "generate", str(llama), "--prompt", TEXT, "--device", "cpu"]
    done = subprocess.run([*command, "--max_new_tokens", "8"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == run(llama, "--prompt", TEXT, "--max_new_tokens", "8")[0]
    assert done.stdout.startswith(TEXT) and done.stdout.count("\n") == done.stdout.strip().count("\n") + 1
    (printed,) = done.stderr.splitlines()  # Paddle prints nothing, because it is imported after the process is set up
    assert "no prompt template" in printed


def test_truncated_prompts_are_counted(llama, tmp_path):
    long = " ".join([TEXT] * 60)
    (tmp_path / "q.jsonl").write_text("".join(json.dumps({"instruction": q}) + "\n" for q in ("Why?", long, long)))
    _, printed = run(llama, "--chat_template", "default", "--input", tmp_path / "q.jsonl", "--max_new_tokens", 2)
    assert "2 of 3 prompts were truncated: the beginning of the question was cut off (first: " in printed
    assert "q.jsonl, line 2)" in printed and "positions, of which 2 are reserved for an answer" in printed
    _, printed = run(llama, "--chat_template", "default", "--prompt", "Why?", "--max_new_tokens", 2)
    assert "truncated" not in printed
    assert "exceeds the model's" in refused(llama, "--prompt", long)


def test_sampling_depends_on_the_seed_and_not_on_the_batch(llama):
    choice = ("--temperature", "2", "--max_new_tokens", "9")
    one, again, other = (run(llama, "--prompt", TEXT, *choice, "--seed", seed)[0] for seed in "112")
    assert one == again != other
    more = ("--prompt", TEXT, "--prompt", "An object", "--prompt", TEXT)
    together, apart = (run(llama, *more, *choice, "--seed", "1", "--batch_size", size)[0] for size in "31")
    assert together == apart and together.startswith(f"{one}---\nAn object") and together.count("\n---\n") == 2
    assert run(llama, "--prompt", TEXT, *choice, "--top_k", "1") == run(
        llama, "--prompt", TEXT, "--max_new_tokens", "9"
    )


def test_a_template_turns_the_prompt_into_a_question(llama):
    asked, printed = run(llama, "--prompt", TEXT, "--max_new_tokens", "8", "--template", "alpaca")
    assert not asked.startswith(TEXT) and "prompt template: alpaca" in printed
    with_system = run(llama, "--prompt", TEXT, "--max_new_tokens", "8", "--template", "alpaca", "--system", "Be kind.")
    assert with_system[0] != asked


def test_the_system_message_is_added_to_rows_without_one(llama, tmp_path):
    bare, own = {"role": "user", "content": "Why?"}, {"role": "system", "content": "Be short."}
    file = tmp_path / "q.jsonl"
    file.write_text("".join(json.dumps({"messages": one}) + "\n" for one in ([bare], [own, bare])))
    asked = rows(run(llama, "--input", file, "--max_new_tokens", 1, "--template", "alpaca", "--system", "Be kind.")[0])
    assert "Be kind." in asked[0]["prompt"]
    assert "Be short." in asked[1]["prompt"] and "Be kind." not in asked[1]["prompt"]


def test_wrong_options_are_refused(llama, tmp_path, monkeypatch):
    assert "exceeds the model's 128 positions. Use --max_new_tokens" in refused(
        llama, "--prompt", TEXT, "--max_new_tokens", "126"
    )
    assert "The prompt is empty" in refused(llama, "--prompt", "")
    assert "is not a folder" in refused(tmp_path / "none", "--prompt", "x")
    assert "--prompt and --chat cannot be combined" in refused(llama, "--prompt", "x", "--chat")
    assert "nothing to do. Give one of" in refused(llama)
    assert "--num_beams 2 selects beam search and --top_p selects sampling" in refused(
        llama, "--prompt", "x", "--num_beams", "2", "--top_p", "0.5"
    )
    assert "Drop --num_beams" in refused(llama, "--chat", "--num_beams", "2")
    assert "does not exist" in refused(llama, "--input", tmp_path / "none.jsonl")
    (tmp_path / "lines.txt").write_text("the old house\n")
    assert refused(llama, "--input", tmp_path / "line.txt").endswith("Did you mean lines.txt?")
    both = ("--input", tmp_path / "lines.txt", "--output", tmp_path / "lines.txt", "--overwrite")
    assert "would be lost" in refused(llama, *both)
    assert "--system needs a chat template" in refused(llama, "--prompt", "x", "--system", "y")
    assert "not a file and not one of auto" in refused(llama, "--prompt", "x", "--chat_template", "lama")
    monkeypatch.setattr("paddle_llm.generation.api.load", None)
    assert "Did you mean llama2?" in refused(llama, "--prompt", "x", "--chat_template", "lama2")
    assert "paddle-llm generate output" in CliRunner().invoke(generate, ["--help"]).output


# ---- files ----------------------------------------------------------------------------------------------------------


def test_instructions_are_answered_and_scored(llama, tmp_path):
    file, output = tmp_path / "dev.jsonl", tmp_path / "answers.jsonl"
    asked = [{"src": "An object", "tgt": "is a thing"}, {"src": TEXT}, {"src": ["a", "b"], "tgt": ["c"]}]
    file.write_text("".join(json.dumps(row) + "\n" for row in asked))
    command = (llama, "--input", file, "--output", output, "--max_new_tokens", "6", "--batch_size", "2")
    out, printed = run(*command)
    found = rows(output.read_text())
    assert "already exists" in refused(*command) and run(*command, "--overwrite")[0] == ""
    assert out == "" and [row.get("reference") for row in found] == ["is a thing", None, None]
    assert [row["where"] for row in found] == [f"{file}, line {number}" for number in (1, 2, 3)]
    assert found[2]["prompt"] == "<s>a c</s>b"
    assert (
        "1 of 3 answers have a reference" in printed
        and "exact_match" in printed
        and "prompt template: default" in printed
    )
    alone = run(llama, "--prompt", TEXT, "--max_new_tokens", "6", "--template", "default")[0]
    assert found[1]["generated"] == alone.removesuffix("\n")


def test_the_output_folder_of_a_run_is_accepted_and_other_folders_are_refused(llama, tmp_path, monkeypatch):
    run_folder = tmp_path / "run"
    shutil.copytree(llama, run_folder / "model")
    out, printed = run(run_folder, "--prompt", TEXT, "--max_new_tokens", "3")
    assert out.startswith(TEXT) and f"using {run_folder / 'model'}." in printed
    monkeypatch.setattr(
        "paddle_llm.generation.api.load", None
    )  # everything else is reported before the model is loaded
    (run_folder / "model").rename(tmp_path / "model")
    assert "has no config.json" in refused(run_folder, "--prompt", TEXT)
    (run_folder / "adapter").mkdir()
    (run_folder / "adapter" / "adapter_config.json").write_text('{"base": "models/x"}')
    for folder in (run_folder, run_folder / "adapter"):
        assert f"Give its base model: models/x --adapter {run_folder / 'adapter'}." in refused(folder, "--prompt", TEXT)
    assert "has no tokenizer_config.json. Give a tokenizer folder" in refused(
        llama, "--prompt", TEXT, "--tokenizer", run_folder
    )
    (tmp_path / "model" / "model.safetensors").unlink()
    assert "has no weights" in refused(tmp_path / "model", "--prompt", TEXT)
    (tmp_path / "model" / "model.safetensors").touch()
    (tmp_path / "model" / "tokenizer_config.json").unlink()
    assert "with --tokenizer" in refused(tmp_path / "model", "--prompt", TEXT)
    assert "does not exist" in refused(llama, "--prompt", TEXT, "--tokenizer", tmp_path / "nowhere")


def test_an_output_that_cannot_be_written_is_refused_before_loading(llama, tmp_path, monkeypatch):
    file = tmp_path / "prompts.txt"
    file.write_text(TEXT)
    monkeypatch.setattr("paddle_llm.generation.api.load", None)
    assert "x.jsonl cannot be written" in refused(llama, "--input", file, "--output", file / "x.jsonl")


def test_answers_go_to_stdout_when_the_disk_is_full(tmp_path, capsys):
    with full_disk(), pytest.raises(UserError, match="The answers were written to stdout instead"):
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


def test_lines_are_continued_and_invalid_rows_refused(llama, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text(f"{TEXT}\n\nAn object\n")
    found = rows(run(llama, "--input", file, "--max_new_tokens", "5")[0])
    assert [row["prompt"] for row in found] == [TEXT, "An object"]
    assert TEXT + found[0]["generated"] + "\n" == run(llama, "--prompt", TEXT, "--max_new_tokens", "5")[0]
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"src": "x"}\n{"src": 3}\n')
    good = tmp_path / "good.jsonl"
    good.write_text('{"src": "x"}\n')
    assert "line 2: 'src' is a number, not text" in refused(llama, "--input", bad)
    assert "a conversation needs a template" in refused(llama, "--input", good, "--template", "none")


# ---- adapters and trained folders -----------------------------------------------------------------------------------


def save_trained(name: str, base: Path, folder: Path) -> Path:
    """Save an adapter of a model folder with weights like trained ones."""
    from paddle_llm.config.layout import Layout
    from paddle_llm.peft.save import save_adapter
    from tests.helpers.models.adapters import METHODS, attached, set_trained
    from tests.helpers.models.networks import build

    model = attached(build(base, load=True), METHODS[name])
    set_trained(model)
    save_adapter(model, Layout(), folder / name / "adapter", base="elsewhere")
    return folder / name / "adapter"


def test_adapters_are_added_to_their_base(llama, tmp_path, pieces):
    plain = run(llama, "--prompt", TEXT, "--max_new_tokens", "8")[0]
    adapters = [save_trained(name, llama, tmp_path) for name in ("lora", "prefix", "prompt")]
    for adapter in adapters:
        adapted, printed = run(llama, "--prompt", TEXT, "--max_new_tokens", "8", "--adapter", adapter)
        assert adapted != plain and "was trained with base model elsewhere" in printed
    other = write_folder("llama", pieces, tmp_path / "other", num_hidden_layers=1)
    assert "another base" in refused(other, "--prompt", TEXT, "--adapter", adapters[0])
    assert "no adapter" in refused(llama, "--prompt", TEXT, "--adapter", tmp_path)


def test_the_template_of_training_is_used(llama, tmp_path):
    copied = tmp_path / "output" / "model"
    shutil.copytree(llama, copied)
    record = {"arguments": {"chat_template": {"value": "alpaca", "origin": "flag"}}}
    (tmp_path / "output" / "config.resolved.json").write_text(json.dumps(record))
    file = tmp_path / "x.jsonl"
    file.write_text('{"src": "Hello"}')
    out, printed = run(copied, "--input", file, "--max_new_tokens", "4")
    assert "### Instruction: Hello" in rows(out)[0]["prompt"]
    assert "alpaca (as in the model's training)" in printed
    assert "alpaca (as in" in run(copied, "--prompt", "Hello", "--max_new_tokens", "4", "--template", "auto")[1]
    assert "default (as requested)" in run(copied, "--input", file, "--max_new_tokens", "4", "--template", "default")[1]


# ---- chat -----------------------------------------------------------------------------------------------------------


def chat(llama: Path, typed: str, *options: str):
    arguments = [str(llama), "--chat", "--device", "cpu", "--template", "default", *options]
    return CliRunner().invoke(generate, arguments, input=typed, catch_exceptions=False)


def test_a_chat_remembers_the_conversation_until_it_is_cleared(llama):
    talk = chat(llama, "An object\nAn object\n/clear\nAn object\n/help\n\n/exit\nnever\n", "--max_new_tokens", "5")
    first, second, third = talk.stdout.splitlines()
    assert first == third != second
    assert "unknown command: /help" in talk.stderr
    single = run(llama, "--prompt", "An object", "--template", "default", "--max_new_tokens", "5")[0]
    assert first == single.removesuffix("\n")
    assert chat(llama, "An object\n", "--max_new_tokens", "5").stdout == single  # the end of the input ends the chat


def test_ctrl_c_stops_the_answer_and_not_the_chat(tmp_path, pieces, monkeypatch):
    """The signal arrives after 20 of 90,000 tokens."""
    longest = {"max_position_embeddings": 100_000, "eos_token_id": VOCABULARY - 1}
    folder = write_folder("llama", pieces, tmp_path, num_hidden_layers=1, **longest)
    add, count = StreamPrinter.add, []

    def add_and_interrupt(self: StreamPrinter, token: int) -> None:
        add(self, token)
        count.append(token)
        if len(count) == 20:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(StreamPrinter, "add", add_and_interrupt)
    talk = chat(folder, "An object\n/exit\n", "--max_new_tokens", "90000")
    assert talk.exit_code == 0 and "[stopped]" in talk.stderr
    assert len(count) == 20 and talk.stdout.strip()


def test_an_incomplete_character_is_not_printed(capsys):
    class Bytes:
        """Tokenizer whose tokens are bytes."""

        def decode(self, ids):
            return bytes(ids).decode(errors="replace")

    shown, seen = StreamPrinter(Bytes()), []
    for byte in "a月".encode():
        shown.add(byte)
        seen.append(capsys.readouterr().out)
    assert seen == ["a", "", "", "月"] and shown.finish() == "a月"


# ---- ranks ----------------------------------------------------------------------------------------------------------


def on_rank(commands: list[tuple[str, ...]]) -> list[str]:
    return [run(*command)[0] for command in commands]


def test_tensor_parallel_ranks_print_what_one_process_prints(llama, tmp_path):
    """The vocabulary of 401 tokens is not divisible by two ranks."""
    prompts = (str(llama), "--prompt", TEXT, "--prompt", "An object", "--max_new_tokens", "8")
    adapters = [("--adapter", str(save_trained(name, llama, tmp_path))) for name in ("lora", "prefix")]
    choices = [(), ("--temperature", "2", "--seed", "3"), ("--num_beams", "3"), *adapters]
    commands = [(*prompts, *choice) for choice in choices]
    first, second = run_ranks(on_rank, 2, commands, quiet=True)
    assert first == on_rank(commands) and len(set(first)) == len(first)
    assert not any(second)


def test_a_chat_needs_one_process(llama, monkeypatch):
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "2")
    assert "Run it in one process" in refused(llama, "--chat")


@pytest.mark.slow
def test_under_paddle_distributed_launch(llama, tmp_path):
    command = ["generate", str(llama), "--prompt", TEXT, "--max_new_tokens", "8"]
    script = str(Path(sys.executable).with_name("paddle-llm"))
    launch = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", str(tmp_path)]
    done = subprocess.run([*launch, script, *command, "--device", "cpu"], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, launcher_report(done, tmp_path)
    assert run(*command[1:])[0] in done.stdout
