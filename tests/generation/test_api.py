"""`from paddle_llm import generate`: the texts of the command, from Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import paddle_llm
from paddle_llm.cli.generate import generate as command
from paddle_llm.core.errors import UserError
from paddle_llm.generation.options import GenerateOptions
from tests.generation.test_command import save_trained

PROMPTS = ["The class statement defines", "An object"]


def printed(*arguments: str | Path) -> str:
    return CliRunner().invoke(command, [*map(str, arguments), "--device", "cpu"], catch_exceptions=False).stdout


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 6},
        {"max_new_tokens": 6, "temperature": 2.0, "seed": 3},
        {"max_new_tokens": 6, "num_beams": 3, "batch_size": 1},
        {"max_new_tokens": 6, "chat_template": "alpaca", "system": "Be kind."},
    ],
    ids=lambda options: " ".join(options),
)
def test_texts_equal_those_of_the_command(llama, options):
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    expected = printed(llama, *(word for prompt in PROMPTS for word in ("--prompt", prompt)), *flags)
    texts = paddle_llm.generate(llama, PROMPTS, device="cpu", **options)
    before = PROMPTS if "chat_template" not in options else ["", ""]
    assert "\n---\n".join(prompt + text for prompt, text in zip(before, texts, strict=True)) + "\n" == expected


def test_one_prompt_and_an_adapter(llama, tmp_path):
    adapter = save_trained("lora", llama, tmp_path)
    (text,) = paddle_llm.generate(str(llama), PROMPTS[0], adapter=str(adapter), max_new_tokens=4, device="cpu")
    expected = printed(llama, "--prompt", PROMPTS[0], "--adapter", adapter, "--max_new_tokens", 4)
    assert PROMPTS[0] + text + "\n" == expected
    assert paddle_llm.generate(llama, [], device="cpu") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "--max_new_tokens 0 is not positive. Use 1 or more."),
        ({"batch_size": 0}, "--batch_size 0 is not positive. Use 1 or more."),
        ({"temperature": 0.0}, "--temperature 0.0 is not positive. Use a number above 0."),
        ({"top_p": 1.5}, "--top_p 1.5 is above 1. Use a number above 0 and at most 1."),
        ({"top_k": -1}, "--top_k -1 is negative. Use 0 or more."),
        (
            {"num_beams": 2, "top_p": 0.5},
            "--num_beams 2 selects beam search and --top_p selects sampling. Use only one of them.",
        ),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UserError) as refusal:
        GenerateOptions(**options).check()
    assert str(refusal.value) == message


def test_other_mistakes_are_refused(llama, tmp_path):
    with pytest.raises(TypeError, match="temprature"):
        paddle_llm.generate(llama, PROMPTS, temprature=1.0)
    with pytest.raises(UserError, match="is not a folder"):
        paddle_llm.generate(tmp_path / "none", PROMPTS)
    with pytest.raises(UserError, match="exceeds the model's 128 positions"):
        paddle_llm.generate(llama, PROMPTS, max_new_tokens=126, device="cpu")


def test_importing_the_function_does_not_import_paddle():
    code = "import sys; from paddle_llm import generate; print('paddle' in sys.modules, 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False False\n"
