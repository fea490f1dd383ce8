"""A published model from end to end: SmolLM2-135M-Instruct read, evaluated and tuned here and by transformers on torch."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.conftest import english_and_chinese
from tests.export.environments import ROOT, smollm2_folder

pytestmark = [pytest.mark.slow, pytest.mark.hf, pytest.mark.timeout(1800)]
NAMES = ("Ann", "Ben", "Chloe", "Dev")
THINGS = ("apples", "books", "coins", "tickets")


@pytest.fixture(scope="module")
def folder() -> Path:
    return smollm2_folder()


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(folder)


def word_problems(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows of the form of GSM8K: a word problem, its steps, `#### ` and the number."""
    draw, made = random.Random(seed), []
    for _ in range(count):
        name, thing, a, b, c = draw.choice(NAMES), draw.choice(THINGS), *(draw.randint(2, 90) for _ in range(3))
        question = (
            f"{name} has {a} {thing} and buys {b} boxes with {c} {thing} each. How many {thing} does {name} have now?"
        )
        steps = f"The boxes hold {b} * {c} = <<{b}*{c}={b * c}>>{b * c} {thing}.\n{a} + {b * c} = <<{a}+{b * c}={a + b * c}>>{a + b * c}"
        made.append({"question": question, "answer": f"{steps}\n#### {a + b * c}"})
    return made


def hard_texts(count: int) -> list[str]:
    """English, Chinese, code, emoji, combining marks and control characters."""
    draw = random.Random(1)
    ranges = (
        (0x20, 0x7F),
        (0x20, 0x7F),
        (0xA0, 0x250),
        (0x300, 0x36F),
        (0x4E00, 0x9FFF),
        (0x1F300, 0x1FAFF),
        (0, 0x20),
        (0x2000, 0x2070),
    )
    texts = english_and_chinese(count // 2)
    while len(texts) < count:
        low, high = draw.choice(ranges)
        texts.append(
            "".join(chr(draw.randrange(low, high)) for _ in range(draw.randint(1, 60))) + draw.choice(("", " ", "\n"))
        )
    return texts


def test_ten_thousand_texts_have_the_same_ids(folder, theirs):
    from paddle_llm.data.text_codec import open_codec

    codec, texts = open_codec(str(folder)), hard_texts(10_000)
    wanted = theirs(texts, add_special_tokens=False)["input_ids"]
    different = [text for text, ids in zip(texts, wanted, strict=True) if codec.encode(text) != ids]
    assert different == []


def encoded(folder: Path) -> Any:
    """(the sample, its messages) of 40 rows, by the template of the folder."""
    from paddle_llm.data.encode_instruction import InstructionEncoder
    from paddle_llm.data.instruction_formats import read_row
    from paddle_llm.data.jinja_templates import choose_template
    from paddle_llm.data.text_codec import open_codec

    codec = open_codec(str(folder))
    encoder = InstructionEncoder(codec, choose_template(None, codec, str(folder)).template, max_length=1024)
    for row in word_problems(40):
        conversation = read_row(row, _format_of(row), "row")
        messages = [{"role": turn.role, "content": turn.content} for turn in conversation.turns]
        yield encoder(conversation), messages


def _format_of(row: dict[str, str]) -> str:
    from paddle_llm.data.instruction_formats import recognise

    return recognise([row], "rows")


# Torch is in a process of its own: beside Paddle both would start threads for every core.
_REFERENCE = """
import sys
import numpy as np, torch, transformers
network = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
samples = np.load(sys.argv[2])
found = {}
for name in samples.files:
    with torch.no_grad():
        found[name] = network(torch.from_numpy(samples[name])[None]).logits[0].numpy()
np.savez(sys.argv[3], **found)
"""


def test_template_logits_and_evaluation_loss_are_the_same(folder, theirs, tmp_path):
    import paddle

    from tests.models.building import build

    samples = list(encoded(folder))
    for sample, messages in samples:
        ids = [*map(int, sample.input_ids), int(sample.labels[-1])]
        wanted = theirs.apply_chat_template(messages)
        assert ids == wanted[: len(ids)] and theirs.decode(wanted[len(ids) :]).strip() == ""
    np.savez(
        tmp_path / "ids.npz", **{str(n): sample.input_ids.astype(np.int64) for n, (sample, _) in enumerate(samples)}
    )
    words = [sys.executable, "-c", _REFERENCE, folder, tmp_path / "ids.npz", tmp_path / "logits.npz"]
    subprocess.run([str(word) for word in words], check=True, cwd=tmp_path)
    reference = np.load(tmp_path / "logits.npz")
    ours = build(folder, load=True, length=512)
    ours.eval()
    losses: dict[str, list[float]] = {"ours": [], "theirs": []}
    tokens, largest = 0, 0.0
    for number, (sample, _) in enumerate(samples):
        with paddle.no_grad():
            found = ours(input_ids=paddle.to_tensor(sample.input_ids.astype(np.int64)[None]))
        here = (found[0] if isinstance(found, tuple) else found)[0].numpy()
        there = reference[str(number)]
        largest = max(largest, float(np.abs(here - there).max()))
        kept = sample.labels >= 0
        tokens += int(kept.sum())
        for name, logits in (("ours", here), ("theirs", there)):
            losses[name].append(_cross_entropy(logits[kept], sample.labels[kept]))
    ours_mean, theirs_mean = (sum(losses[name]) / tokens for name in ("ours", "theirs"))
    print(
        f"{tokens} answer tokens: loss {ours_mean:.6f} beside {theirs_mean:.6f}; logits differ by at most {largest:.1e}"
    )
    assert tokens > 1000 and abs(ours_mean - theirs_mean) < 1e-4
    assert largest < 1e-3 and np.abs(there).max() > 10  # 1e-4 of the largest logits


def _cross_entropy(logits_TV: np.ndarray, labels_T: np.ndarray) -> float:
    shifted = logits_TV.astype(np.float64) - logits_TV.max(axis=1, keepdims=True)
    return float((np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels_T)), labels_T]).sum())


def test_a_merged_model_answers_as_base_and_adapter(folder, tmp_path):
    rows = tmp_path / "rows" / "train.jsonl"
    rows.parent.mkdir()
    rows.write_text("".join(json.dumps(row) + "\n" for row in word_problems(16)))
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps({"question": row["question"]}) + "\n" for row in word_problems(4, seed=1)))

    def run(*words: str | Path) -> None:
        done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]

    out = tmp_path / "tuned"
    run(
        "finetune_generation.py", "--model_name_or_path", folder, "--dataset_name_or_path", rows.parent, "--output_dir", out, "--lora",
        "--merge_weights", "--do_train", "--max_steps", "4", "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1",
        "--max_length", "256", "--learning_rate", "1e-3", "--device", "cpu",
    )  # fmt: skip
    answers = {}
    for name, words in {
        "merged": [out / "model"],
        "adapter": [folder, "--adapter", out / "adapter"],
        "base": [folder],
    }.items():
        file = tmp_path / f"{name}.jsonl"
        run(
            "-m", "paddle_llm.cli", "generate", *words, "--input", questions, "--output", file, "--max_new_tokens", "24"
        )
        answers[name] = [json.loads(line)["generated"] for line in file.read_text().splitlines()]
    assert answers["merged"] == answers["adapter"] != answers["base"]
    assert (out / "model" / "chat_template.jinja").read_text() == (folder / "chat_template.jinja").read_text()
