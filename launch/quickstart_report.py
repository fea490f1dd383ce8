"""Report the result of the quickstart: losses, a picture of the curve, a sample, and commands to try next.

Exit code 1 if the evaluation loss is not at least 0.3 below the loss of a model that only learned token frequencies.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
from quickstart_curve import loss_curve

MARGIN = 0.3  # nats per token


def unigram_entropy(prefix: Path) -> float:
    """Return the entropy of the token frequencies in nats per token: the loss of a model that only learned frequencies."""
    counts = np.bincount(np.fromfile(f"{prefix}.bin", dtype=np.uint16)).astype(np.float64)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def known_words(text: str, corpus: Path) -> tuple[int, int]:
    """Return how many words of a text occur in a corpus of jsonl documents, and how many words it has."""
    words = re.findall(r"\w+", text.lower())
    with corpus.open(encoding="utf-8") as file:
        known = {word for line in file for word in re.findall(r"\w+", json.loads(line)["text"].lower())}
    return sum(word in known for word in words), len(words)


def command_name() -> str:
    """Return how to type `paddle-llm` of this interpreter in this shell."""
    script = Path(sys.executable).with_name("paddle-llm")
    found = shutil.which("paddle-llm")
    if found is not None and Path(found).samefile(script):
        return "paddle-llm"
    return str(script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script)


def main(run: Path, prompt: str) -> int:
    """Print the report and return the exit code.

    Args:
        run: Folder of the quickstart, with text.jsonl, data/python.bin, output/ and sample.txt.
        prompt: Beginning of the sample, which the model was given.
    """
    output = run / "output"
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row.get("loss") is not None]
    eval_loss = [row["eval_loss"] for row in rows if "eval_loss" in row][-1]
    entropy = unigram_entropy(run / "data" / "python")
    picture = output / "loss_curve.svg"
    picture.write_text(loss_curve(rows, entropy, "unigram entropy"))
    sample = (run / "sample.txt").read_text(encoding="utf-8").rstrip("\n")
    known, words = known_words(sample.removeprefix(prompt), run / "text.jsonl")
    is_learned = eval_loss <= entropy - MARGIN
    print(f"training loss    {losses[0]:.3f} -> {losses[-1]:.3f}")
    print(f"evaluation loss  {eval_loss:.3f}  (on text that the model was not trained on)")
    print(f"unigram entropy  {entropy:.3f}  (loss of a model that only learned token frequencies)")
    if not is_learned:
        print(
            f"NOT LEARNED: the evaluation loss is not {MARGIN} below the unigram entropy. Train for more --max_steps."
        )
    print(f"picture          {picture}")
    print(f"model            {output / 'model'}")
    print(f"sample           {sample}")
    print(f"                 {known} of {words} generated words occur in the corpus")
    name = command_name()
    print("\nNext, try:")
    print(f"  {name} board {output}")
    print(f'  {name} generate {output} --prompt "If the argument is" --temperature 0.5')
    print(f"  {name} rehearse configs/pretrain/llama_2_70b_tp8_pp4_sharding2_stage2.json --world_size 64 --synthetic")
    return 0 if is_learned else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
