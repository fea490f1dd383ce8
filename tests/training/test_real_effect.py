"""Fine-tuning learns a task that the base model cannot solve: benchmarks/real_effect.py and its data."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import arithmetic_and_identity as task  # noqa: E402


@pytest.fixture(scope="module")
def parts() -> dict[str, task.Part]:
    return task.make_parts(seed=0)


def test_the_data_is_small_and_each_part_has_both_languages_and_all_tasks(parts):
    assert len(parts["train"].rows) <= 2000
    for name in ("train", "test"):
        kinds = {(row["task"], row["language"]) for row in parts[name].rows}
        assert kinds == {(kind, language) for kind in ("sum", "self_cognition") for language in ("en", "zh")}


def test_a_question_has_one_answer(parts):
    rows = [row for part in parts.values() for row in part.rows]
    answers = {row["src"]: row["tgt"] for row in rows}
    assert all(answers[row["src"]] == row["tgt"] for row in rows)


def test_sums_are_sums(parts):
    for row in parts["train"].rows + parts["test"].rows:
        if row["task"] == "sum":
            a, b, total = map(int, re.findall(r"\d+", row["tgt"]))
            assert a + b == total and pair_of(row["src"]) == tuple(sorted((a, b))), row


def test_no_test_question_occurs_in_the_training_data(parts):
    """The words themselves are compared, not the lists from which they were drawn."""
    facts = [fact for line in parts["pretrain"].lines for fact in line.split(";")]
    read = [row["src"] for row in parts["train"].rows] + facts
    pairs = {pair_of(text) for text in read}
    everything = "\n".join(read)
    for row in parts["test"].rows:
        if row["task"] == "self_cognition":
            name = re.match(r"(?:Name: |名字：)(.+?)[.。]", row["src"])[1]
            assert name in row["tgt"] and name not in everything, row
        else:
            assert pair_of(row["src"]) is not None
            assert pair_of(row["src"]) not in pairs, row


def pair_of(text: str) -> tuple[int, ...] | None:
    """Return the first two numbers of a text, the smaller one first."""
    found = sorted(map(int, re.findall(r"\d+", text)[:2]))
    return tuple(found) if len(found) == 2 else None


@pytest.mark.parametrize("kind", ["pairs", "names"])
def test_what_two_parts_share_is_found(kind):
    mixed = task.make_parts(seed=0)
    first, second = (getattr(mixed[name], kind) for name in ("train", "test"))
    if kind == "pairs":
        first.append(second[0][::-1])
    else:
        first["zh"].append(second["zh"][0])
    with pytest.raises(ValueError, match=f"share {kind}"):
        task.check_apart(mixed)


def test_the_seed_determines_the_rows():
    rows = [task.make_parts(seed)["test"].rows for seed in (3, 3, 4)]
    assert rows[0] == rows[1] != rows[2]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_full_and_lora_answer_nine_of_ten_held_out_questions(tmp_path):
    """The base model answers none. Its pretraining takes most of the time."""
    figures = tmp_path / "figures.json"
    script = [sys.executable, BENCHMARKS / "real_effect.py", "--methods", "full,lora", "--json", figures]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads(figures.read_text())["results"]
    assert results["base"]["exact_match"] < 0.1
    assert results["full"]["exact_match"] >= 0.9, results["full"]
    assert results["lora"]["exact_match"] >= 0.9, results["lora"]
