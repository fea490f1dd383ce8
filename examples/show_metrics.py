"""Print steps, losses, gradient norms and speed of a run: python show_metrics.py OUTPUT_DIR."""

import json
import sys
from pathlib import Path

COLUMNS = ("step", "loss", "eval_loss", "grad_norm", "learning_rate", "tokens_per_second", "skipped_steps")


def shown(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4g}"


print(*(f"{name:>17}" for name in COLUMNS))
for line in (Path(sys.argv[1]) / "metrics.jsonl").read_text().splitlines():
    row = json.loads(line)
    print(*(f"{shown(row.get(name)):>17}" for name in COLUMNS))
