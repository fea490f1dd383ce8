"""A greedy text that repeats the same tokens exactly ends, with the same tokens in both engines, and that is reported."""

from __future__ import annotations

import json
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

import paddle_llm
from paddle_llm.cli.generate import generate
from paddle_llm.core.errors import UserError
from paddle_llm.generation.decoding.repetition import ends_in_cycle
from paddle_llm.generation.options import DecodeOptions
from paddle_llm.models.prompt import Prompt
from tests.export.static_folders import export_static
from tests.helpers.models.folders import VOCABULARY, write_folder
from tests.helpers.models.networks import build

TEXT = "The class statement defines"
# What follows each token of these sequences: its successor, and the first token after the last one.
CYCLES = [[50], [60, 61, 62], list(range(100, 132)), list(range(200, 240))]
ENDS_AT = [64, 64, 256, None]  # tokens after which a text that consists of the cycle ends


def write_cycles(pieces: Path, folder: Path, cycles: list[list[int]]) -> Path:
    """Write a model without attention and MLP whose next token depends on the last one only: itself outside of `cycles`."""
    write_folder("llama", pieces, folder, num_hidden_layers=1, max_position_embeddings=1024, tie_word_embeddings=False)
    follower = np.arange(VOCABULARY)
    for tokens in cycles:
        follower[tokens] = np.roll(tokens, -1)
    tensors = load_file(folder / "model.safetensors")
    rows = tensors["model.embed_tokens.weight"]
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    head = np.empty_like(rows)
    head[follower] = rows
    silent = ("o_proj.weight", "down_proj.weight")
    tensors |= {name: np.zeros_like(values) for name, values in tensors.items() if name.endswith(silent)}
    tensors |= {"model.embed_tokens.weight": rows, "lm_head.weight": head}
    tensors["model.norm.weight"] = np.ones_like(tensors["model.norm.weight"])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def cycles(pieces, tmp_path_factory) -> Path:
    return write_cycles(pieces, tmp_path_factory.mktemp("cycles") / "model", CYCLES)


@pytest.fixture(scope="module")
def parrot(pieces, tmp_path_factory) -> Path:
    """A model that repeats the last token of its prompt."""
    return write_cycles(pieces, tmp_path_factory.mktemp("parrot") / "model", [])


def repeated(sequence: list[int], length: int) -> list[int]:
    return list(islice(cycle(sequence), length))


@pytest.mark.parametrize(
    ("sequence", "shortest"),
    [([7], 64), ([1, 2, 3], 64), (list(range(8)), 64), (list(range(9)), 72), (list(range(32)), 256)],
    ids=lambda value: str(len(value)) if isinstance(value, list) else str(value),
)
def test_the_shortest_text_that_ends(sequence, shortest):
    prefix = [999] * 10
    assert ends_in_cycle([*prefix, *repeated(sequence, shortest)])
    assert not ends_in_cycle([*prefix, *repeated(sequence, shortest - 1)])
    lengths = [n for n in range(600) if ends_in_cycle(repeated(sequence, n))]
    assert lengths == list(range(shortest, 600))


def test_texts_that_do_not_end():
    assert not ends_in_cycle(repeated(list(range(33)), 1000))  # a longer sequence
    for place in range(1, 65):  # one different token among the last 64
        tokens = [7] * 100
        tokens[-place] = 8
        assert not ends_in_cycle(tokens)
    counting = [number for value in range(100) for number in (1, 2, value)]  # a table whose last column differs
    assert not any(ends_in_cycle(counting[:length]) for length in range(len(counting) + 1))


def test_both_engines_end_at_the_same_token(cycles, tmp_path):
    from paddle_llm.generation.decoding.decode import decode
    from paddle_llm.generation.eval_mode import generating
    from paddle_llm.generation.static_network import StaticModel

    prompts = [Prompt([5, 9, tokens[-1]]) for tokens in CYCLES]
    whole = [repeated(tokens, 300) for tokens in CYCLES]
    network, program = build(cycles, load=True), StaticModel(export_static(cycles, tmp_path / "program"))
    for model in (network, program):
        for stops in (True, False):
            with generating(model):
                found = decode(model, prompts, [300] * 4, DecodeOptions("llama", stop_on_repetition=stops))
            assert found == ([text[:end] for text, end in zip(whole, ENDS_AT, strict=True)] if stops else whole)


# ---- the command, a chat, and Python --------------------------------------------------------------------------------


def run(*arguments: str | Path, typed: str | None = None):
    """Run the command in this process and return (stdout, stderr)."""
    words = [*map(str, arguments), "--device", "cpu"]
    result = CliRunner().invoke(generate, words, input=typed, catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return result.stdout, result.stderr


def test_the_command_ends_and_reports_once(parrot):
    free = ("--max_new_tokens", 100, "--no_stop_on_repetition")
    whole, quiet = run(parrot, "--prompt", TEXT, *free)
    shown, printed = run(parrot, "--prompt", TEXT, "--max_new_tokens", 100)
    assert whole.startswith(shown.rstrip("\n")) and len(shown) < len(whole)
    assert "repeated" not in quiet
    (line,) = [line for line in printed.splitlines() if "repeated" in line]
    assert line.startswith("1 answer of 1 ended early") and "--no_stop_on_repetition" in line
    two, printed = run(parrot, "--prompt", TEXT, "--prompt", "An object", "--max_new_tokens", 100)
    assert two.startswith(shown) and printed.count("2 answers of 2 ended early") == 1
    # The limit of the length is not a repetition.
    assert "repeated" not in run(parrot, "--prompt", TEXT, "--max_new_tokens", 64)[1]


def test_answers_to_a_file_are_complete_unless_it_is_requested(parrot, tmp_path):
    (tmp_path / "prompts.txt").write_text(TEXT + "\n")
    file = ("--input", tmp_path / "prompts.txt", "--max_new_tokens", 100)
    whole, quiet = run(parrot, *file)
    short, printed = run(parrot, *file, "--stop_on_repetition")
    one, other = (json.loads(text)["generated"] for text in (whole, short))
    assert one.startswith(other) and len(other) < len(one)
    assert "repeated" not in quiet and "prompts.txt, line 1" in printed


def test_other_strategies_do_not_end_and_refuse_the_option(parrot):
    drawn = ("--prompt", TEXT, "--max_new_tokens", 100, "--temperature", 0.001)
    whole, printed = run(parrot, *drawn)
    assert "repeated" not in printed
    assert whole == run(parrot, "--prompt", TEXT, "--max_new_tokens", 100, "--no_stop_on_repetition")[0]
    for other in (("--temperature", 0.5), ("--num_beams", 2)):
        with pytest.raises(UserError, match="--stop_on_repetition is for greedy decoding"):
            run(parrot, "--prompt", TEXT, "--stop_on_repetition", *other)


def test_a_chat_reports_each_answer_that_ends(parrot):
    options = ("--chat", "--template", "default", "--max_new_tokens", 100)
    answer, printed = run(parrot, *options, typed="An object\n/clear\nAn object\n/exit\n")
    assert printed.count("[stopped: the same tokens were repeated") == 2
    whole, quiet = run(parrot, *options, "--no_stop_on_repetition", typed="An object\n/exit\n")
    assert "repeated" not in quiet and whole.startswith(answer.splitlines()[0])


def test_python_gets_complete_texts_unless_it_is_requested(parrot, capsys):
    settings = {"max_new_tokens": 100, "device": "cpu"}
    (whole,) = paddle_llm.generate(parrot, TEXT, **settings)
    assert "repeated" not in capsys.readouterr().err
    (short,) = paddle_llm.generate(parrot, TEXT, stop_on_repetition=True, **settings)
    assert whole.startswith(short) and len(short) < len(whole)
    assert "1 answer of 1 ended early" in capsys.readouterr().err
