"""Files for a server: end ids, chat templates with the text of training, serve.sh, README.md."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from paddle_llm.core.errors import UserError
from paddle_llm.data.chat.built_in_jinja import jinja_form
from paddle_llm.data.chat.renderer import Renderer
from paddle_llm.data.chat.selection import choose_template
from paddle_llm.data.chat.templates import BOS, EOS, PREFIX, TEMPLATES
from paddle_llm.data.instructions.conversation import Conversation, Turn
from paddle_llm.data.samples.encode import InstructionEncoder
from paddle_llm.data.tokenizers.conversion.tokenizer_json import write_tokenizer
from paddle_llm.data.tokenizers.text_codec import open_codec
from paddle_llm.export.source.folder_tensors import FolderTensors
from paddle_llm.export.source.source import Source
from paddle_llm.export.targets.serving_files import (
    write_chat_template,
    write_generation_config,
    write_readme,
    write_serving,
)
from paddle_llm.export.verification.compare import Finding
from paddle_llm.families import FAMILIES
from tests.helpers.skips import needs

TEXT_OF = {PREFIX: "<P>", BOS: "<B>", EOS: "<E>"}
TALK = (
    Turn("user", " What is it?\n"),
    Turn("assistant", "A tree. "),
    Turn("user", "Où ça {{ 1 }} 'x' \"y\"?"),
    Turn("assistant", "这里\n\n"),
    Turn("user", "谢谢"),
    Turn("assistant", "不客气"),
)
SYSTEM = Turn("system", " Be kind.\nAlways. ")
TOOLS = (
    Turn("user", "2+2?"),
    Turn("assistant", "add(2, 2)"),
    Turn("tool", "4"),
    Turn("tool", "ok"),
    Turn("assistant", "4"),
)


def training_text(name: str, turns: tuple[Turn, ...], blank: str) -> str:
    """Return the text of the training template, with special tokens as text and `blank` between separately tokenized texts."""
    text, behind_text = "", False
    for rendered in TEMPLATES[name].render(Conversation(turns)):
        for piece in [*rendered.prompt, *(rendered.answer or [])]:
            if piece.is_separate and behind_text and not piece.is_special:
                text += blank
            text += TEXT_OF.get(piece.text, piece.text) if piece.is_special else piece.text
            behind_text = not piece.is_special and (behind_text or bool(piece.text))
    return text


def rendered(source: str, turns: tuple[Turn, ...], **values: str) -> str:
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    values = {"bos_token": "<B>", "eos_token": "<E>", **values}
    asked = turns[-1].role != "assistant"
    return Renderer(source, "test", values)(messages, add_generation_prompt=asked).text


@pytest.mark.parametrize("blank", ["", " "])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_jinja_form_renders_the_text_of_training(name, blank):
    form = jinja_form(name, prefix="<P>", blank=bool(blank))
    talks = [talk[:length] for talk in (TALK, (SYSTEM, *TALK)) for length in range(1, len(talk) + 1)]
    talks = [talk for talk in talks if talk[-1].role != "system"]
    if TEMPLATES[name].tools:
        talks += [TOOLS, TOOLS[:3], TOOLS[:4], (SYSTEM, *TOOLS)]
    for talk in talks:
        assert rendered(form, talk) == training_text(name, talk, blank), talk


@pytest.mark.parametrize("name", TEMPLATES)
def test_turns_out_of_order_are_refused(name):
    form = jinja_form(name)
    for talk in [(TALK[0], TALK[2]), TALK[1:], (TALK[0], SYSTEM), *([] if TEMPLATES[name].tools else [TOOLS])]:
        with pytest.raises(UserError, match="turns|tool"):
            rendered(form, talk)


@pytest.fixture(scope="module")
def bpe(tmp_path_factory) -> Path:
    import pydoc_data.topics

    from paddle_llm.data.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("bpe")
    train_tokenizer(pydoc_data.topics.topics.values(), str(folder), 700, model_type="bpe")
    return folder


def a_source(tokenizer: Path, template: str | None = None, generation: dict | None = None, **config) -> Source:
    values = {"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": None, "max_position_embeddings": 2048, **config}
    return Source(
        folder=tokenizer,
        family=FAMILIES["llama"],
        facts=SimpleNamespace(vocab_size=700),
        config=SimpleNamespace(**values),
        tokenizer=tokenizer,
        generation=generation or {},
        template=template,
        shapes={},
        tensors=FolderTensors.__new__(FolderTensors),  # not read here
    )


@pytest.mark.parametrize("name", ["default", "llama2", "alpaca", "bloomz", "chatglm2"])
def test_a_server_feeds_the_ids_of_training(name, bpe, tmp_path):
    import tokenizers

    source = a_source(bpe, name)
    write_tokenizer(source, tmp_path, "fastdeploy")
    write_chat_template(source, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    encoder = InstructionEncoder(open_codec(str(bpe)), TEMPLATES[name], max_length=4000)
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    plain = tuple(replace(turn, content=turn.content.strip()) for turn in TALK)
    for talk in (plain[:1], plain[:3], plain[:5], (replace(SYSTEM, content="Be kind."), *plain[:3])):
        text = rendered(config["chat_template"], talk, bos_token=config["bos_token"], eos_token=config["eos_token"])
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == encoder.prompt(Conversation(talk)).input_ids.tolist()


@pytest.mark.parametrize("name", ["default", "llama2"])
def test_transformers_feeds_the_ids_of_training(name, bpe, tmp_path):
    import transformers

    write_tokenizer(a_source(bpe, name), tmp_path, "fastdeploy")
    write_chat_template(a_source(bpe, name), tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    encoder = InstructionEncoder(open_codec(str(bpe)), TEMPLATES[name], max_length=4000)
    talk = tuple(replace(turn, content=turn.content.strip()) for turn in (SYSTEM, *TALK[:3]))
    messages = [{"role": turn.role, "content": turn.content} for turn in talk]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert ids == encoder.prompt(Conversation(talk)).input_ids.tolist()


def chat_template(folder: Path) -> str | None:
    return json.loads((folder / "tokenizer_config.json").read_text()).get("chat_template")


def test_the_tokenizers_own_template_is_carried_over(bpe, tmp_path):
    folder = tmp_path / "tokenizer"
    shutil.copytree(bpe, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    own = [{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": own}))
    found = []
    for _ in range(2):
        staged = tmp_path / f"out{len(found)}"
        staged.mkdir()
        write_tokenizer(a_source(folder), staged, "hf")
        write_chat_template(a_source(folder), staged)
        found.append(chat_template(staged))
        (folder / "chat_template.jinja").write_text("J")  # the second time
    assert found == [own, "J"]


def test_a_missing_template_is_reported(bpe, tmp_path, capsys):
    write_tokenizer(a_source(bpe), tmp_path, "hf")
    write_chat_template(a_source(bpe), tmp_path)
    assert chat_template(tmp_path) is None and "no chat template" in capsys.readouterr().err
    write_chat_template(a_source(bpe, "auto"), tmp_path)
    assert chat_template(tmp_path) == jinja_form("default", prefix="{{ bos_token }}", blank=True)
    write_chat_template(a_source(bpe, str(tmp_path / "gone.jinja")), tmp_path)
    assert chat_template(tmp_path) is None and "gone.jinja, which does not exist" in capsys.readouterr().err
    (tmp_path / "mine.jinja").write_text("{{ messages[0].content }}")
    write_chat_template(a_source(bpe, str(tmp_path / "mine.jinja")), tmp_path)
    assert chat_template(tmp_path) == "{{ messages[0].content }}"


def test_generation_config(bpe, tmp_path):
    given = {
        "eos_token_id": [5, 2],
        "decode_strategy": "sampling",
        "top_p": 0.7,
        "trunc_input": True,
        "paddlenlp_version": "3",
    }
    write_generation_config(a_source(bpe, generation=given), tmp_path)
    found = json.loads((tmp_path / "generation_config.json").read_text())
    expected = {"eos_token_id": [5, 2], "do_sample": True, "top_p": 0.7, "bos_token_id": 1, "pad_token_id": 5}
    assert found == expected
    given = {"decode_strategy": "greedy_search", "max_length": 40, "min_length": 0, "min_new_tokens": 0}  # PaddleNLP's
    write_generation_config(a_source(bpe, generation=given, pad_token_id=3), tmp_path)
    found = json.loads((tmp_path / "generation_config.json").read_text())
    ids = {"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 3}
    assert found == {"max_new_tokens": 40, "do_sample": False, **ids}
    write_generation_config(a_source(bpe, generation={"max_length": 40}, pad_token_id=3), tmp_path)  # transformers'
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {"max_length": 40, **ids}
    write_generation_config(a_source(bpe, eos_token_id=9999, pad_token_id=3), tmp_path)
    found = json.loads((tmp_path / "generation_config.json").read_text())
    assert found == {"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 3}  # the tokenizer's own end


@pytest.fixture
def with_marks(bpe, tmp_path) -> Source:
    """A source whose tokenizer has ChatML's marks behind its vocabulary, trained with that template."""
    folder = tmp_path / "tokenizer"
    shutil.copytree(bpe, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    marks = ["<|im_start|>", "<|im_end|>"]
    (folder / "added_tokens.json").write_text(json.dumps({mark: 700 + i for i, mark in enumerate(marks)}))
    config["additional_special_tokens"] = marks
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    source = a_source(folder, "chatml")
    source.facts.vocab_size = 702
    return source


def test_end_tokens_of_answers_end_texts(with_marks, tmp_path):
    """LLaMA 3 and ChatML end answers and texts with different tokens."""
    write_tokenizer(with_marks, tmp_path, "fastdeploy")
    write_generation_config(with_marks, tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [2, 701]


def test_chatml_feeds_the_ids_of_training(with_marks, tmp_path):
    """Text after a special token starts like a new text, with a blank."""
    import tokenizers

    write_tokenizer(with_marks, tmp_path, "fastdeploy")
    write_chat_template(with_marks, tmp_path)
    encoder = InstructionEncoder(open_codec(str(with_marks.tokenizer)), TEMPLATES["chatml"], max_length=4000)
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for talk in (TALK[:1], TALK[:5], (SYSTEM, *TALK[:3]), TOOLS[:4]):
        ids = tokenizer.encode(rendered(chat_template(tmp_path), talk), add_special_tokens=False).ids
        assert ids == encoder.prompt(Conversation(talk)).input_ids.tolist()


@pytest.fixture
def script(bpe, tmp_path) -> Path:
    folder = tmp_path / "a folder's name"
    folder.mkdir()
    write_serving(a_source(bpe), folder)
    return folder / "serve.sh"


def test_serve_sh_starts_the_server_on_its_own_folder(script, tmp_path):
    fake_python = tmp_path / "bin" / "python"  # prints its arguments, because the server cannot run here
    fake_python.parent.mkdir()
    asked = '[ "$1" != -c ] || exit "${ABSENT:-0}"'  # whether FastDeploy is installed
    fake_python.write_text(f'#!/bin/sh\n{asked}\nfor a in "$@"; do echo "$a"; done\n')
    fake_python.chmod(0o755)

    def run(*arguments: str, absent: int = 0) -> subprocess.CompletedProcess:
        environment = {"PATH": f"{fake_python.parent}:/usr/bin:/bin", "ABSENT": str(absent)}
        return subprocess.run(["sh", str(script), *arguments], env=environment, capture_output=True, text=True, cwd="/")

    server = ["-m", "fastdeploy.entrypoints.openai.api_server"]
    rest = ["--max-model-len", "2048", "--load-choices", "default_v1"]
    assert run().stdout.splitlines() == [*server, "--model", str(script.parent), "--port", "8180", *rest]
    given = run("9000", "--quantization", "wint8").stdout.splitlines()
    assert given == [*server, "--model", str(script.parent), "--port", "9000", *rest, "--quantization", "wint8"]
    refused = run("--help")
    assert refused.returncode == 2 and "usage" in refused.stderr
    lacking = run(absent=1)
    assert lacking.returncode == 1 and lacking.stdout == "" and len(lacking.stderr.splitlines()) == 1
    assert f"FastDeploy 2.x is not installed for {fake_python}" in lacking.stderr


def test_serve_sh_is_clean(script):
    assert subprocess.run(["sh", "-n", str(script)], capture_output=True).returncode == 0
    needs("shellcheck", shutil.which("shellcheck") is not None)
    assert subprocess.run(["shellcheck", str(script)], capture_output=True, text=True).stdout == ""


def test_the_readme_lists_what_was_and_was_not_verified(tmp_path):
    described = {"source": "/models/a", "adapter": None, "family": "llama", "dtype": "as stored", "paddle_llm": "0"}
    findings = [
        Finding("transformers 4", "logits and greedy tokens", 5, 80, 80, 2e-6, 1e-3),
        Finding("paddleformers", "logits", passed=None, note="not run: it is not installed"),
    ]
    write_readme(tmp_path, "fastdeploy", findings, described)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    write_readme(tmp_path, "fastdeploy", findings, described)
    text = (tmp_path / "README.md").read_text()
    assert "It has no chat template" in text
    verified, not_verified = text.split("## What was not verified")
    assert "| transformers 4 | logits and greedy tokens | 5 | 80 of 80 | 2.0e-06 | 1.0e-03 | passed" in verified
    assert (
        "FastDeploy 2.x itself was not run: it needs a GPU" in not_verified
        and "- paddleformers: not run: it is not installed\n" in not_verified
    )
    write_readme(tmp_path, "hf", [], {**described, "adapter": "/adapters/b"})
    text = (tmp_path / "README.md").read_text()
    assert "Nothing: the export was not compared" in text and "/adapters/b" in text and "No engine was run" in text
    assert "table" not in text


def test_end_tokens_of_the_tokenizers_own_template_end_texts(bpe, tmp_path):
    """--chat_template auto is what most trainings use: the template is the tokenizer's, and `generate` stops at its end."""
    folder = tmp_path / "own"
    shutil.copytree(bpe, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    codec = open_codec(str(folder))
    encoder = InstructionEncoder(codec, choose_template("auto", codec, str(folder)).template, max_length=100)
    source = a_source(folder, "auto", eos_token_id=7)
    assert source.stop_ids() == [7, *dict.fromkeys([*encoder.stop_ids, codec.eos_id])]
