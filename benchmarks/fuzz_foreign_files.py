"""Give seeded hostile folders and files to the readers of the commands, and classify every outcome.

    python benchmarks/fuzz_foreign_files.py --count 5000 > benchmarks/results/fuzz_foreign_files.md

equal: the same as the owner's library. accepted: read, without a reference that is cheap to ask. reported: differs from the
reference, and a line says so. refused: `UserError`, exit code 2 in a command. Everything else is a fault: another exception, a
silent difference, a crash of the process, no answer in time. Exit code 1 if there is a fault. Items run in a worker process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

FINE = ("equal", "accepted", "reported", "refused")
FAULTS = ("traceback", "silent difference", "crash", "hang")
_MEMORY = 16 << 30


def outcome_of(kind: str, number: int, seed: int) -> dict[str, Any]:
    """Run one item in this process."""
    from foreign_files.readers import KINDS, Different

    from paddle_llm.core.console import collected
    from paddle_llm.core.errors import UserError

    rng = random.Random(f"{seed}/{kind}/{number}")
    with tempfile.TemporaryDirectory(prefix="foreign-") as folder, collected() as lines:
        try:
            return {"outcome": KINDS[kind](Path(folder), rng), "detail": ""}
        except UserError as error:
            text = str(error)
            if not text.strip() or "Traceback" in text:
                return {"outcome": "traceback", "detail": f"a refusal without a message: {text!r}"}
            return {"outcome": "refused", "detail": text.replace(folder, "FOLDER")[:300]}
        except Different as error:
            reported = " ".join(lines)
            outcome = "reported" if reported else "silent difference"
            return {"outcome": outcome, "detail": error.what, "message": f"{error} {reported}"[:600]}
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of a Rust library is a BaseException
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "paddle_llm/" in frame.filename]
            where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].name}" if frames else "outside"
            return {"outcome": "traceback", "detail": f"{type(error).__name__} at {where}", "message": str(error)[:200]}


def serve() -> None:
    """Answer items from stdin, one line of JSON each, on the original stdout."""
    import resource
    import warnings

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    for line in sys.stdin:
        print(json.dumps(outcome_of(*json.loads(line))), file=answers, flush=True)


class Worker:
    """A process that runs items, replaced when it crashes or does not answer."""

    def __init__(self, limit: float):
        self._limit = limit
        self._process: subprocess.Popen[str] | None = None

    def __call__(self, kind: str, number: int, seed: int) -> dict[str, Any]:
        first = self._process is None
        if self._process is None:
            command = [sys.executable, __file__, "--worker"]
            environment = {
                **os.environ,
                "GLOG_minloglevel": "3",
                "TOKENIZERS_PARALLELISM": "false",
                "HF_HUB_OFFLINE": "1",
            }
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment,
            )
        process = self._process
        process.stdin.write(json.dumps([kind, number, seed]) + "\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], self._limit + (120 if first else 0))
        line = process.stdout.readline() if ready else ""
        if line:
            return json.loads(line)
        self.close()
        if not ready:
            return {"outcome": "hang", "detail": f"no answer in {self._limit:.0f} s"}
        return {"outcome": "crash", "detail": f"the process ended with {process.returncode}"}

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def fuzz(count: int, seed: int, limit: float, kinds: list[str], workers: int = 1) -> list[dict[str, Any]]:
    """Run `count` items, the kinds in turn."""
    found: list[dict[str, Any]] = []
    lock = threading.Lock()
    items = iter([(kinds[number % len(kinds)], number // len(kinds)) for number in range(count)])

    def work() -> None:
        worker = Worker(limit)
        try:
            while True:
                with lock:
                    item = next(items, None)
                if item is None:
                    return
                started = time.perf_counter()
                result = worker(*item, seed)
                with lock:
                    found.append(
                        {"kind": item[0], "number": item[1], **result, "seconds": time.perf_counter() - started}
                    )
                    if len(found) % 500 == 0:
                        print(f"{len(found)} of {count}", file=sys.stderr, flush=True)
        finally:
            worker.close()

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(found, key=lambda one: (kinds.index(one["kind"]), one["number"]))


def page(found: list[dict[str, Any]], seed: int, seconds: float) -> str:
    """The result as Markdown."""
    from machine import describe

    from paddle_llm import __version__

    faults = [one for one in found if one["outcome"] in FAULTS]
    lines = [
        f"# Hostile folders and files of other people's tools, {date.today()}", "",
        f"paddle_llm {__version__}; {describe('paddlepaddle', 'paddlenlp', 'transformers', 'tokenizers', 'safetensors', 'pyarrow')}; seed {seed}",
        "", f"{len(found)} items in {seconds:.0f} s: {len(faults)} faults. [fuzz_foreign_files.py](../fuzz_foreign_files.py) explains the columns.",
        "", "| kind | items | " + " | ".join((*FINE, *FAULTS)) + " |", "|---" * (2 + len(FINE) + len(FAULTS)) + "|",
    ]  # fmt: skip
    for kind in dict.fromkeys(one["kind"] for one in found):
        counts = Counter(one["outcome"] for one in found if one["kind"] == kind)
        lines.append(
            f"| {kind} | {counts.total()} | " + " | ".join(str(counts[name]) for name in (*FINE, *FAULTS)) + " |"
        )
    if faults:
        lines += ["", "Faults:", ""]
        groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        for one in faults:
            groups.setdefault((one["kind"], one["outcome"], one["detail"]), []).append(one)
        for (kind, outcome, detail), members in sorted(groups.items(), key=lambda item: -len(item[1])):
            example = f"{kind} {members[0]['number']}: {members[0].get('message', '')}"
            lines.append(f"- {kind}, {len(members)} times: {outcome}: {detail}. Example: {example}")
    return "\n".join(lines) + "\n"


def main() -> int:
    from foreign_files.readers import KINDS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--limit", type=float, default=30.0, help="seconds for one item")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--only", type=int, help="run this number of each kind in this process and print the outcome")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        serve()
        return 0
    if given.only is not None:
        for kind in given.kinds:
            print(kind, json.dumps(outcome_of(kind, given.only, given.seed), ensure_ascii=False))
        return 0
    started = time.perf_counter()
    found = fuzz(given.count, given.seed, given.limit, given.kinds, given.workers)
    print(json.dumps(found) if given.json else page(found, given.seed, time.perf_counter() - started))
    return int(any(one["outcome"] in FAULTS for one in found))


if __name__ == "__main__":
    sys.exit(main())
