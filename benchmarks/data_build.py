"""Speed and memory of `paddle-llm data build`, its peers measured in the same run.

    python benchmarks/data_build.py [--megabytes 10 100 1000] [--workers 1 2] [--rounds 3] > benchmarks/results/...md

Text: jsonl of real English and code (`pydoc_data.topics` and the sources of the standard library, in documents of about
2 KB), repeated to the size asked for. Each figure is the best of the rounds, each in a process of its own:

- PaddleNLP's preprocessing loop: LlamaTokenizer's ids, written through `MMapIndexedDatasetBuilder`; its import not counted.
- one process that does nothing but read, `sp.encode` and make an array: what a worker could reach.
- ours, start of the workers counted. Share of a worker: tokens/s per worker over those of that one process.
  Memory: the largest sum of resident memory of all its processes, which counts shared pages in each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from machine import describe

PEER_MEGABYTES = 10


def text_documents() -> list[str]:
    """Real text that every Python carries, in documents of about 2 KB."""
    import pydoc_data.topics

    texts = list(pydoc_data.topics.topics.values())
    texts += [p.read_text(encoding="utf-8", errors="ignore") for p in sorted(Path(os.__file__).parent.glob("*.py"))]
    return [text[i : i + 2000] for text in texts for i in range(0, len(text), 2000)]


def write_jsonl(path: Path, megabytes: int) -> None:
    rows = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in text_documents()).encode()
    with open(path, "wb") as stream:
        for _ in range(megabytes * 1_000_000 // len(rows)):
            stream.write(rows)
        rest = megabytes * 1_000_000 % len(rows)
        stream.write(rows[: rows.rfind(b"\n", 0, rest) + 1])


def paddlenlp_loop(source: str, tokenizer: str, prefix: str) -> None:
    import numpy as np
    from paddlenlp.data.indexed_dataset import make_builder
    from paddlenlp.transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    began, tokens = time.perf_counter(), 0
    builder = make_builder(prefix + ".bin", "mmap", np.uint16)
    with open(source, encoding="utf-8") as lines:
        for line in lines:
            ids = loaded.convert_tokens_to_ids(loaded.tokenize(json.loads(line)["text"]))
            ids.append(loaded.eos_token_id)
            builder.add_item(ids)
            builder.end_document()
            tokens += len(ids)
    builder.finalize(prefix + ".idx")
    report(time.perf_counter() - began, tokens)


def one_process(source: str, tokenizer: str, prefix: str) -> None:
    import numpy as np
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=f"{tokenizer}/sentencepiece.bpe.model")
    began, tokens = time.perf_counter(), 0
    with open(source, encoding="utf-8") as lines:
        for line in lines:
            tokens += len(np.array(processor.encode(json.loads(line)["text"]), dtype=np.uint16)) + 1
    report(time.perf_counter() - began, tokens)


def ours(source: str, tokenizer: str, prefix: str, workers: str) -> None:
    from paddle_llm.data.corpus.build import build_corpus

    began = time.perf_counter()
    made = build_corpus([source], tokenizer, prefix, workers=int(workers), overwrite=True)
    report(time.perf_counter() - began, made.n_tokens)


def report(seconds: float, tokens: int) -> None:
    print("RESULT", json.dumps({"seconds": seconds, "tokens": tokens}))


ROLES: dict[str, Callable[..., Any]] = {"paddlenlp": paddlenlp_loop, "single": one_process, "ours": ours}


def best_of(rounds: int, role: str, *arguments: str) -> dict[str, float]:
    """Fastest of some runs of a role, with the largest memory of any of them in MB."""
    runs = [measure(role, *arguments) for _ in range(rounds)]
    best = min(runs, key=lambda run: run["seconds"])
    return {**best, "megabytes": max(run["megabytes"] for run in runs), "speed": best["tokens"] / best["seconds"]}


def measure(role: str, *arguments: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--role", role, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    peak, over = [0.0], threading.Event()
    watcher = threading.Thread(target=watch_memory, args=(process.pid, peak, over))
    watcher.start()
    output, _ = process.communicate()
    over.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {process.returncode}")
    result = json.loads(next(line for line in output.splitlines() if line.startswith("RESULT"))[7:])
    return {**result, "megabytes": peak[0] / 1e6}


def watch_memory(pid: int, peak: list[float], over: threading.Event) -> None:
    import psutil

    root = psutil.Process(pid)
    while not over.wait(0.05):
        total = 0
        try:
            for process in [root, *root.children(recursive=True)]:
                total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
        peak[0] = max(peak[0], total)


def main(arguments: argparse.Namespace) -> None:
    from paddle_llm.data.tokenizer import train_tokenizer

    print(f"# paddle-llm data build, {date.today()}\n")
    print(f"{describe('sentencepiece', 'paddlenlp')}; best of {arguments.rounds}\n")
    print("| what | input MB | seconds | million tokens/s | of PaddleNLP's loop | share of a worker | peak memory MB |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        tokenizer, prefix = f"{folder}/tok", f"{folder}/corpus"
        train_tokenizer(text_documents(), tokenizer, 8000)
        small = Path(folder, "peer.jsonl")
        write_jsonl(small, PEER_MEGABYTES)
        loop = best_of(arguments.rounds, "paddlenlp", str(small), tokenizer, prefix)
        single = best_of(arguments.rounds, "single", str(small), tokenizer, prefix)
        row("PaddleNLP's loop", PEER_MEGABYTES, loop, loop)
        row("read + sp.encode + to-array", PEER_MEGABYTES, single, loop)
        for megabytes in arguments.megabytes:
            source = Path(folder, "text.jsonl")
            write_jsonl(source, megabytes)
            for workers in arguments.workers:
                made = best_of(arguments.rounds, "ours", str(source), tokenizer, prefix, str(workers))
                share = made["speed"] / workers / single["speed"]
                row(f"ours, {workers} worker{'s'[: workers - 1]}", megabytes, made, loop, f"{share:.2f}")


def row(what: str, megabytes: int, run: dict[str, float], loop: dict[str, float], share: str = "") -> None:
    figures = f"{run['seconds']:.2f} | {run['speed'] / 1e6:.2f} | {run['speed'] / loop['speed']:.1f}x"
    print(f"| {what} | {megabytes} | {figures} | {share} | {run['megabytes']:.0f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.role:
        ROLES[chosen.role[0]](*chosen.role[1:])
    else:
        main(chosen)
