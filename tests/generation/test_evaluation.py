"""`paddle-llm evaluate`: perplexity compared with transformers and with the loss of training, scores, sizes, the table."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from paddle_llm.cli.evaluate import evaluate
from paddle_llm.core.artifacts import IGNORE_INDEX
from paddle_llm.core.errors import UserError
from paddle_llm.data.tokenizers.text_codec import open_codec
from paddle_llm.generation.evaluation.windows import ScoredSample, sliding_windows
from paddle_llm.generation.scores import final_number, numeric_accuracy
from paddle_llm.models.prompt import Prompt
from tests.helpers.models.folders import write_folder
from tests.helpers.models.networks import WRITERS, build

TEXT = "The class statement defines a name. An object has a type, and a module has a list of names.\n\n" * 8
ROWS = [
    {"instruction": "How many apples are 3 apples and 4 apples?", "output": "3 + 4 = 7 apples.\n#### 7"},
    {"instruction": "Name a list.", "output": "The names of a module."},
    {"instruction": "How many?", "output": ""},
]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    (folder / "text.txt").write_text(TEXT)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "documents.jsonl").write_text(
        "".join(json.dumps({"text": part, "id": 1}) + "\n" for part in TEXT.split("\n\n"))
    )
    return folder


def run(*words) -> tuple[str, str]:
    """Run the command in this process and return (stdout, stderr)."""
    result = CliRunner().invoke(evaluate, [*map(str, words), "--device", "cpu"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def row(*words) -> dict:
    (found,) = json.loads(run(*words, "--format", "json")[0])["models"]
    return found


def refused(*words) -> str:
    with pytest.raises(UserError) as refusal:
        run(*words)
    return str(refusal.value)


# ---- windows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "context", "stride"), [(100, 16, 16), (100, 16, 4), (97, 16, 5), (10, 16, 8), (17, 16, 16)]
)
def test_every_token_is_scored_once_with_the_most_context(length, context, stride):
    ids = list(range(1000, 1000 + length))
    scored = []
    for sample in sliding_windows(ids, context, stride):
        targets = sample.targets_S[sample.targets_S != IGNORE_INDEX]
        assert len(sample.prompt) < context and (np.diff(targets) == 1).all()
        # A target is the token after the one at its position.
        assert all(t in (IGNORE_INDEX, i + 1) for i, t in zip(sample.prompt.ids, sample.targets_S, strict=True))
        scored += targets.tolist()
    begins = range(0, length, context) if stride == context else [0]
    assert scored == [token for token in ids if token - 1000 not in begins]


@pytest.mark.hf
@pytest.mark.parametrize("stride", [24, 7])
def test_perplexity_is_that_of_transformers(llama, files, stride):
    import torch
    from transformers import AutoModelForCausalLM

    found = row(llama, "--input", files / "text.txt", "--context_length", 24, "--stride", stride)
    network = AutoModelForCausalLM.from_pretrained(llama, torch_dtype=torch.float32).eval()
    codec = open_codec(str(llama))
    ids = torch.tensor([[*codec.prefix_ids, *codec.encode(TEXT)]])
    # The loop of "Perplexity of fixed-length models" in the documentation of transformers.
    total, count, before = 0.0, 0, 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + 24, ids.shape[1])
        labels = ids[:, begin:end].clone()
        labels[:, : -(end - before)] = -100
        number = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            total += network(ids[:, begin:end], labels=labels).loss.item() * number if number else 0
        count, before = count + number, end
        if end == ids.shape[1]:
            break
    assert found["count"] == count > 300
    assert found["scores"]["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)
    assert found["settings"] == {"context_length": 24, "stride": stride}


def test_the_batch_does_not_change_the_perplexity(llama, files):
    words = (llama, "--input", files / "text.txt", "--context_length", 24)
    one, many = row(*words), row(*words, "--batch_size", 5)
    assert many["scores"]["perplexity"] == pytest.approx(one["scores"]["perplexity"], rel=1e-5)


def test_documents_are_joined_with_an_empty_line(llama, files):
    text, documents = (
        row(llama, "--input", files / name, "--context_length", 64) for name in ("text.txt", "documents.jsonl")
    )
    # The last document is empty, so both inputs are the same text.
    assert documents["scores"] == text["scores"] and documents["count"] == text["count"]


@pytest.mark.parametrize("family", WRITERS)
def test_the_perplexity_of_samples_is_the_loss_of_training(family, tmp_path):
    import paddle

    from paddle_llm.data.samples.dataset import prefix_positions
    from paddle_llm.generation.eval_mode import generating
    from paddle_llm.generation.evaluation.perplexity import measure_perplexity

    WRITERS[family](tmp_path, **{"init_std" if family == "opt" else "initializer_range": 0.3})
    model, samples, total = build(tmp_path), [], 0.0
    model.eval()
    for length in (9, 14, 11):
        ids = np.random.default_rng(length).integers(5, 100, length + 1)
        prefix = 0
        if family == "chatglm":
            ids[4:6], prefix = (125, 126), 5
        targets = np.where(np.arange(length) >= 5, ids[1:], IGNORE_INDEX)
        samples.append(ScoredSample(Prompt(ids[:-1].tolist(), prefix), targets))
        inputs = {"input_ids": ids[None, :-1], "labels": targets[None]}
        if family == "chatglm":
            inputs |= {"position_ids": prefix_positions(length, prefix)[None], "attention_mask": np.array([[prefix]])}
        with paddle.no_grad():
            loss = model(**{name: paddle.to_tensor(value) for name, value in inputs.items()})
        total += float(loss[0] if isinstance(loss, tuple) else loss) * (length - 5)
    scored = sum(sample.scored for sample in samples)
    for batch in (1, 3):
        with generating(model):
            found = measure_perplexity(model, family, samples, batch)
        assert found.scored == scored
        assert found.value == pytest.approx(math.exp(total / scored), rel=1e-4)


def test_only_answers_of_rows_are_scored(llama, files):
    words = (llama, "--input", files / "rows.jsonl", "--chat_template", "default")
    printed = run(*words)[1]
    assert "1 row of 3 skipped: no answer within the context" in printed and "prompt template: default" in printed
    found = row(*words)
    codec = open_codec(str(llama))
    answers = sum(len(codec.encode(one["output"])) for one in ROWS if one["output"])
    assert answers <= found["count"] <= answers + 2 * 2  # and the ends of two answers
    assert found["settings"]["rows"] == 2
    assert "1 row of 3 shortened to the context" in run(*words, "--context_length", 40)[1]


def test_a_model_of_nan_is_refused(llama, files, tmp_path):
    import paddle

    from paddle_llm.generation.evaluation.perplexity import measure_perplexity

    model = build(llama, load=True)
    model.eval()
    model.llama.norm.weight.set_value(paddle.full_like(model.llama.norm.weight, float("nan")))
    with pytest.raises(UserError, match="is not finite: the model computes NaN or infinity"):
        measure_perplexity(model, "llama", [ScoredSample(Prompt([5, 6, 7]), np.array([6, 7, 8]))], 1)


# ---- answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3 + 4 = <<3+4=7>>7 apples.\n#### 7", "7"),
        ("#### 1,200", "1200"),
        ("The total is $1,317.50.", "1317.5"),
        ("She has 3,4 or 5 of 10-2", "2"),
        ("It falls to -12 degrees", "-12"),
        ("#### $18 of 20", "18"),
        ("a .5 share", "0.5"),
        ("1,2000", "2000"),
        ("答案是42。", "42"),
        ("no number", None),
        ("#### none, but 7 before", "7"),
        ("7\n#### ", None),
    ],
)
def test_the_final_number_of_a_text(text, number):
    assert final_number(text) == (None if number is None else Decimal(number))


def test_numeric_accuracy_counts_references_with_a_number():
    assert numeric_accuracy(["so 7.0", "8", "none", "x"], ["#### 7", "9", "3", "no number"]) == (
        pytest.approx(1 / 3),
        3,
    )
    assert numeric_accuracy(["7"], ["none"]) == (None, 0)


def test_generated_answers_are_scored(llama, files):
    from paddle_llm.generation.api import generate
    from paddle_llm.generation.scores import score

    found = row(
        llama,
        "--input",
        files / "rows.jsonl",
        "--metric",
        "generation",
        "--max_new_tokens",
        6,
        "--chat_template",
        "alpaca",
    )
    rows = ROWS[:2]
    texts = generate(
        llama, [one["instruction"] for one in rows], chat_template="alpaca", max_new_tokens=6, device="cpu"
    )
    expected = score(texts, [one["output"] for one in rows])
    assert found["scores"] == pytest.approx({**expected, "numeric_accuracy": 0.0}) and found["count"] == 2


# ---- the table ------------------------------------------------------------------------------------------------------


def test_several_models_are_rows_of_one_table(llama, files, pieces, tmp_path):
    other = write_folder("qwen2", pieces, tmp_path / "other", num_hidden_layers=2)
    words = ("--input", files / "text.txt", "--context_length", 32, "--stride", 16)
    out, printed = run(llama, other, *words)
    first, _, head, _, *lines = out.splitlines()
    assert first.startswith(f"Perplexity of {files / 'text.txt'}: scored tokens ")
    assert first.endswith("; context length 32; stride 16")
    assert head == "| model | weights | perplexity | size on disk | peak memory | tokens/s |"
    assert f"1 of 2: {llama}" in printed and f"2 of 2: {other}" in printed
    for folder, line in zip((llama, other), lines, strict=True):
        name, weights, perplexity, disk, memory, speed = line.strip("| ").split(" | ")
        assert (name, weights) == (str(folder), "float32")
        assert perplexity == f"{row(folder, *words)['scores']['perplexity']:.4f}"
        assert disk == f"{(folder / 'model.safetensors').stat().st_size / 1e6:.1f} MB"
        assert float(memory.removesuffix(" MB").replace(",", "")) > 50 and float(speed.replace(",", "")) > 0


def test_mistakes_are_reported_before_a_model_is_loaded(llama, files, tmp_path):
    text, rows = files / "text.txt", files / "rows.jsonl"
    assert "does not exist" in refused(llama, "--input", tmp_path / "none.txt")
    assert "apply to --metric perplexity" in refused(llama, "--input", rows, "--metric", "generation", "--stride", 4)
    assert "needs rows of instructions" in refused(llama, "--input", text, "--metric", "generation")
    assert "--stride applies to plain text" in refused(llama, "--input", rows, "--stride", 4)
    assert "would not be scored" in refused(llama, "--input", text, "--context_length", 8, "--stride", 9)
    assert "exceeds the model's" in refused(llama, "--input", text, "--context_length", 100_000)
    assert "--max_new_tokens applies" in refused(llama, "--input", text, "--max_new_tokens", 9)
    assert "separately" in refused(llama, "--input", text, "--input", rows)
    missing = tmp_path / "missing"
    assert str(missing) in refused(llama, missing, "--input", text)
    (tmp_path / "empty.txt").write_text("\n")
    assert "is empty" in refused(llama, "--input", tmp_path / "empty.txt")
