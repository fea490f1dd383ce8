"""Static exports generate the tokens of their network, by decode, from Python and by `paddle-llm generate --static`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from paddle_llm.cli.generate import generate
from paddle_llm.core.errors import UserError
from paddle_llm.generation.options import DecodeOptions, DecodeStrategy
from paddle_llm.models.prompt import Prompt
from tests.export.static_folders import export_static
from tests.generation.test_command import TEXT, rows
from tests.helpers.models.folders import write_folder
from tests.helpers.models.networks import build

GREEDY = DecodeStrategy()
PROMPTS = [np.random.default_rng(length).integers(10, 390, length).tolist() for length in (7, 2, 19)]


def run(*arguments, **options):
    """Run the command in this process and return (stdout, stderr)."""
    result = CliRunner().invoke(generate, [*map(str, arguments)], catch_exceptions=False, **options)
    return result.stdout, result.stderr


def refused(*arguments) -> str:
    with pytest.raises(UserError) as refusal:
        run(*arguments)
    return str(refusal.value)


@pytest.fixture(scope="module")
def program(llama, tmp_path_factory):
    return export_static(llama, tmp_path_factory.mktemp("static") / "program")


@pytest.fixture(scope="module")
def static(program):
    from paddle_llm.generation.static_network import StaticModel

    return StaticModel(program)


@pytest.fixture(scope="module")
def network(llama):
    model = build(llama, load=True)
    model.eval()
    return model


@pytest.mark.parametrize(("name", "rest"), [("model.pdiparams", -1), ("model.pdiparams", 1000), ("model.json", -9)])
def test_a_truncated_file_is_refused(program, tmp_path, name, rest):
    folder = shutil.copytree(program, tmp_path / "cut")
    (folder / name).write_bytes((program / name).read_bytes()[:rest])
    assert f"{name} is truncated" in refused(folder, "--static", "--prompt", "x")


def tokens(model, prompts=PROMPTS, limits=None, strategy=GREEDY, stop_ids=(), **callbacks):
    from paddle_llm.generation.decoding.decode import decode

    batch = [Prompt(ids) for ids in prompts]
    options = DecodeOptions("llama", stop_ids, strategy)
    return decode(model, batch, limits or [24] * len(batch), options, **callbacks)


def test_prompts_of_unequal_lengths_and_limits_form_a_batch(network, static):
    limits = [24, 100, 3]
    found = tokens(static, limits=limits)
    assert found == tokens(network, limits=limits)
    assert [len(text) for text in found] == limits
    assert found == [tokens(static, [ids], [limit])[0] for ids, limit in zip(PROMPTS, limits, strict=True)]


@pytest.mark.parametrize(
    "strategy",
    [
        DecodeStrategy(temperature=1.3, seed=3),
        DecodeStrategy(top_k=5, seed=4),
        DecodeStrategy(temperature=0.9, top_p=0.8, seed=5),
        DecodeStrategy(repetition_penalty=1.4),
        DecodeStrategy(repetition_penalty=1.2, top_p=0.9, top_k=20, seed=6),
        DecodeStrategy(num_beams=3),
    ],
    ids=str,
)
def test_every_strategy_gives_the_tokens_of_the_network(network, static, strategy):
    found = tokens(static, strategy=strategy)
    assert found == tokens(network, strategy=strategy)
    assert found != tokens(static)


def test_several_end_tokens(network, static):
    free = tokens(static)
    ends = [free[0][5], free[1][2]]
    found = tokens(static, stop_ids=ends)
    assert found == tokens(network, stop_ids=ends)
    assert found[0] == free[0][: min(free[0].index(end) for end in ends if end in free[0])] and len(found[1]) <= 2


def test_on_token_is_called_for_each_token(network, static):
    received, of_network = [], []
    found = tokens(static, on_token=lambda *token: received.append(token))
    tokens(network, on_token=lambda *token: of_network.append(token))
    assert received == of_network and [number for number, _ in received[:4]] == [0, 1, 2, 0]
    assert [[token for number, token in received if number == row] for row in range(3)] == found


def test_two_open_batches_do_not_interfere(static):
    from paddle_llm.generation.static.program import StaticBatch

    def step(network, logits):
        return network.read(logits.argmax(axis=-1))

    batches = [StaticBatch(static, [Prompt(ids)], 8) for ids in PROMPTS[:2]]
    together = [network.read_prompts() for network in batches]
    for _ in range(4):
        together = [step(network, logits) for network, logits in zip(batches, together, strict=True)]
    for ids, logits in zip(PROMPTS, together, strict=False):
        network = StaticBatch(static, [Prompt(ids)], 8)
        alone = network.read_prompts()
        for _ in range(4):
            alone = step(network, alone)
        np.testing.assert_array_equal(alone.numpy(), logits.numpy())


# ---- from Python, and by the command --------------------------------------------------------------------------------


def test_the_example_of_the_docstring_runs_in_a_fresh_process(program):
    from paddle_llm.generation import static_network

    example = [line[8:] for line in static_network.__doc__.splitlines() if line.startswith("    >>> ")]
    assert len(example) == 3
    script = "\n".join(example).replace("exports/program", str(program)).replace("temperature=0.8", "top_k=1")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    by_command = run(program, "--static", "--prompt", "The old house", "--max_new_tokens", "40")[0]
    assert "The old house" + done.stdout == by_command


def test_text_is_streamed_in_pieces(static):
    pieces: list[str] = []
    whole = static.generate(TEXT, max_new_tokens=12, on_text=pieces.append)
    assert "".join(pieces) == whole and len(pieces) > 3
    assert static.generate(TEXT, max_new_tokens=12, temperature=1.0, seed=2) != whole


def test_the_command_gives_the_same_answers_for_a_static_export(llama, program, tmp_path):
    same = ("--prompt", TEXT, "--max_new_tokens", "12")
    assert run(program, "--static", *same)[0] == run(llama, *same)[0]
    sampled = (*same, "--temperature", "0.7", "--seed", "5", "--repetition_penalty", "1.3")
    assert run(program, "--static", *sampled)[0] == run(llama, *sampled)[0] != run(llama, *same)[0]
    file = tmp_path / "dev.jsonl"
    file.write_text("".join(json.dumps({"src": text}) + "\n" for text in ("An object", TEXT, "b")))
    asked = ("--input", file, "--max_new_tokens", "6", "--batch_size", "2")
    assert rows(run(program, "--static", *asked)[0]) == rows(run(llama, *asked)[0])


def test_chat_streams(llama, program):
    def talk(*command):
        return run(
            *command, "--chat", "--max_new_tokens", "8", "--template", "default", input="An object\nand\n/exit\n"
        )

    assert talk(program, "--static")[0] == talk(llama)[0] != ""


def test_options_that_do_not_apply_are_refused(llama, program, tmp_path):
    asked = ("--prompt", "x")
    assert "is a static export. Add --static" in refused(program, *asked)
    assert "is not a static export" in refused(llama, "--static", *asked)
    assert "Export the model with its --adapter" in refused(program, "--static", *asked, "--adapter", tmp_path)
    assert "it runs on the CPU" in refused(program, "--static", *asked, "--device", "gpu")
    assert "no pickles" in refused(program, "--static", *asked, "--allow_pickle")
    assert "exceeds the model's 128 positions. Use --max_new_tokens" in refused(
        program, "--static", *asked, "--max_new_tokens", "127"
    )
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "step.json").write_text("{}")
    assert "it has no model.json" in refused(broken, "--static", *asked)
    for name in ("model.json", "model.pdiparams"):
        (broken / name).write_text("")
    assert "Export the model again" in refused(broken, "--static", *asked)


def test_buffers_grow_with_the_text(pieces, tmp_path):
    """The buffers of keys and values are extended when they are full."""
    from paddle_llm.generation.static_network import StaticModel

    folder = write_folder("llama", pieces, tmp_path / "long", num_hidden_layers=1, max_position_embeddings=512)
    model = build(folder, load=True)
    model.eval()
    static = StaticModel(export_static(folder, tmp_path / "program"))
    assert tokens(static, limits=[400, 10, 300]) == tokens(model, limits=[400, 10, 300])
