"""The table of an evaluation, in markdown or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from paddle_llm.generation.evaluation.evaluate import PERPLEXITY, Evaluation

FORMATS = ("markdown", "json")


def as_json(metric: str, files: Sequence[Path], rows: Sequence[Evaluation]) -> str:
    """Return the results as a JSON object: metric, input and one object per model. Sizes are bytes."""
    content = {"metric": metric, "input": [str(file) for file in files], "models": [asdict(row) for row in rows]}
    return json.dumps(content, indent=2, ensure_ascii=False)


def from_json(text: str) -> list[Evaluation]:
    """Return the rows of `as_json`."""
    return [Evaluation(**row) for row in json.loads(text)["models"]]


def as_markdown(metric: str, files: Sequence[Path], rows: Sequence[Evaluation]) -> str:
    """Return a line that describes the measurement, and a table with a row for each model."""
    names = list(dict.fromkeys(name for row in rows for name in row.scores))
    head = ["model", "weights", *names, "size on disk", "peak memory", "tokens/s"]
    lines = [_row(head), _row(["---", "---", *["---:"] * (len(head) - 2)])]
    for row in rows:
        scores = [_number(name, row.scores[name]) if name in row.scores else "" for name in names]
        sizes = [_megabytes(row.size_on_disk), _megabytes(row.peak_memory), f"{row.tokens_per_second:,.0f}"]
        lines.append(_row([row.model, row.weights, *scores, *sizes]))
    return "\n".join([_describe(metric, files, rows), "", *lines])


def _describe(metric: str, files: Sequence[Path], rows: Sequence[Evaluation]) -> str:
    """Return what was measured; values that differ between the models are all listed."""
    named = ", ".join(map(str, files))
    noun = "scored tokens" if metric == PERPLEXITY else "answers"
    what = "Scores of generated answers to" if metric != PERPLEXITY else "Perplexity of"
    if metric == PERPLEXITY and "rows" in rows[0].settings:
        what = "Perplexity of the answers in"
    values = {noun: [row.count for row in rows]}
    for name in rows[0].settings:
        values[name.replace("_", " ")] = [row.settings[name] for row in rows]
    return f"{what} {named}: " + "; ".join(f"{name} {_distinct(found)}" for name, found in values.items())


def _distinct(values: Sequence[Any]) -> str:
    return " / ".join(dict.fromkeys(f"{value:,}" for value in values))


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _number(name: str, value: float) -> str:
    return f"{value:.2f}" if name == "bleu" else f"{value:.4f}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
