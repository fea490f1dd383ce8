"""docs/reference/metrics.md describes exactly the keys that runs write to metrics.jsonl."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.helpers.pretrain_jobs import Toy, checkpoint_rows, config, make_trainer, rows

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"


def keys_of_page() -> dict[str, set[str]]:
    """Return the keys of the page by the heading of their table."""
    keys: dict[str, set[str]] = {}
    heading = ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            heading = line.removeprefix("## ")
        elif line.startswith("| `"):
            keys.setdefault(heading, set()).update(re.findall(r"`(\w+)`", line.split("|")[1]))
    return keys


@pytest.fixture(scope="module")
def described() -> dict[str, set[str]]:
    return keys_of_page()


def test_every_row_of_the_page_has_a_unit_and_a_meaning():
    cells = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert all(len(row) == 3 and all(row) for row in cells)


def test_the_page_describes_the_keys_of_training_and_evaluation(tmp_path, described):
    trainer = make_trainer(config(tmp_path))
    trainer.train()
    trainer.evaluate(Toy(8), metric_key_prefix="test")
    written = rows(tmp_path / "output")
    training = {key for row in written if "loss" in row for key in row}
    evaluation = {key for row in written if "loss" not in row for key in row}
    assert training == described["Training rows"]
    assert evaluation == {key for key in described["Evaluation rows"] if key.endswith(("step", "_loss", "_ppl"))}


@pytest.mark.parametrize("async_save", [False, True])
def test_the_page_describes_the_keys_of_saves_and_loads(tmp_path, described, async_save):
    run = config(tmp_path, do_eval=False)
    make_trainer(run, async_save=async_save).train()
    make_trainer(run, async_save=async_save).train(str(tmp_path / "output" / "checkpoint-5"))
    found = checkpoint_rows(tmp_path / "output")
    saves, loads = ([row for row in found if key in row] for key in ("save_seconds", "load_seconds"))
    assert saves[0].keys() | loads[0].keys() == described["Checkpoint rows"] and len(saves) + len(loads) == len(found)
    assert sorted(row["step"] for row in saves) == [5, 10, 12] and [row["step"] for row in loads] == [5]
    for row in saves:
        assert 0 < row["save_blocking_seconds"] <= row["save_seconds"]
        folder = tmp_path / "output" / f"checkpoint-{row['step']}"
        files = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        assert row["save_bytes"] == files - (folder / "manifest.json").stat().st_size
    assert loads[0]["load_seconds"] > 0


def test_the_page_describes_the_scores_of_generated_answers(described):
    from paddle_llm.config.run_config import SCORES

    names = (*SCORES, "generated")
    expected = {"step", *(f"{prefix}_{name}" for prefix in ("eval", "test") for name in ("loss", "ppl", *names))}
    assert described["Evaluation rows"] == expected
