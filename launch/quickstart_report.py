"""Compare the evaluation loss of the quickstart with the unigram entropy of its corpus. Exit code 1 if the loss is not lower."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np


def unigram_entropy(prefix: Path) -> float:
    """Return the entropy of the token frequencies in nats per token: the loss of a model that only learned frequencies."""
    counts = np.bincount(np.fromfile(f"{prefix}.bin", dtype=np.uint16)).astype(np.float64)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def main(output: Path, prefix: Path) -> int:
    """Print the losses and return the exit code."""
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    eval_loss = [row["eval_loss"] for row in rows if "eval_loss" in row][-1]
    entropy = unigram_entropy(prefix)
    print(f"training loss    {losses[0]:.3f} -> {losses[-1]:.3f}")
    print(f"evaluation loss  {eval_loss:.3f}")
    print(f"unigram entropy  {entropy:.3f}  (loss of a model that only learned token frequencies)")
    print(f"model            {output / 'model'}")
    return 0 if eval_loss < entropy else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
