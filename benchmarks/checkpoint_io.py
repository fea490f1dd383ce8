"""Speed of saving and loading a checkpoint of 1 GB on one rank, digests included, beside a plain write and read.

    python benchmarks/checkpoint_io.py [--rounds 10] [--folder DIR] > benchmarks/results/checkpoint_io.md

The state is that of mixed precision with AdamW: weights in bfloat16, and master weights and two moments in float32. In each
round the four operations run in turn, ours first in every second round. The disks of virtual machines are often limited to a
speed that they may exceed for a short time, so that the first of two operations is faster: the number of rounds is even, each
operation waits for --pause seconds, and ratios are also averaged over all rounds.

- save: everything from arrays in memory to the renamed folder, flushed to disk;
- plain write: the bytes of the file with the tensors with `write` into one file, and `fsync`;
- load: manifest, index and every tensor, with the digest of every file and the check that weights are finite;
- plain read: the same bytes with `read` from one file.

All write and read blocks of 1 MB at the same positions: Linux is several times slower at some positions than at others.

Both reads fill memory that exists already. Before each read, the files are dropped from the page cache (`fsync`,
`posix_fadvise` with DONTNEED); `mincore` then counts what is still cached.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
from machine import describe

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from paddle_llm.checkpoint.format.manifest import Manifest, write_json  # noqa: E402
from paddle_llm.checkpoint.format.reader import Reader  # noqa: E402
from paddle_llm.checkpoint.format.state import STATE  # noqa: E402
from paddle_llm.checkpoint.format.writer import LocalTensor, finish, write_rank_file  # noqa: E402
from paddle_llm.core.atomic_output import publish  # noqa: E402

HIDDEN, INNER, WORDS, LAYERS = 1024, 2752, 12000, 4
BLOCK_BYTES = 1 << 20
OPERATIONS = ("save", "plain write", "load", "plain read")


def state_of_a_network() -> dict[str, np.ndarray]:
    """Return random weights, master weights and moments of a LLaMA."""
    shapes = {"embed_tokens": (WORDS, HIDDEN), "lm_head": (HIDDEN, WORDS), "norm": (HIDDEN,)}
    for layer in range(LAYERS):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes[f"layers.{layer}.{name}"] = (HIDDEN, HIDDEN)
        shapes |= {f"layers.{layer}.{name}_proj": (HIDDEN, INNER) for name in ("gate", "up")}
        shapes[f"layers.{layer}.down_proj"] = (INNER, HIDDEN)
        shapes |= {f"layers.{layer}.{name}": (HIDDEN,) for name in ("input_layernorm", "post_attention_layernorm")}
    random = np.random.default_rng(0)
    tensors = {}
    for name, shape in shapes.items():
        values = random.standard_normal(shape, np.float32)
        tensors[f"weights/{name}.weight"] = (values.view(np.uint32) >> 16).astype(np.uint16)
        tensors[f"master_weights/{name}.weight"] = values
        for kind in ("moment1", "moment2"):
            tensors[f"{kind}/{name}.weight"] = random.standard_normal(shape, np.float32)
    return tensors


def save(tensors: dict[str, np.ndarray], output: Path) -> None:
    """Save a checkpoint as a job of one rank does."""
    staged = output / ".saving-1"
    staged.mkdir()
    own = write_rank_file(staged, 0, {key: LocalTensor.of(values) for key, values in tensors.items()})
    records = {STATE: write_json(staged, STATE, {"step": 1})}
    finish(staged, [own], Manifest(step=1, layout={}, global_batch=1), records)
    publish(staged, output / "checkpoint-1")


def load(folder: Path, out: dict[str, np.ndarray]) -> None:
    """Read and verify all tensors."""
    with Reader(folder, digests=True) as reader:
        for key in reader.in_file_order(reader.keys()):
            reader.tensor(key, out[key])
        reader.finish(reader.manifest.files)


def write_plainly(pieces: list[memoryview], file: Path) -> None:
    """Write the same bytes into one file and flush it."""
    with open(file, "wb", buffering=0) as stream:
        for piece in pieces:
            while piece:
                piece = piece[stream.write(piece[:BLOCK_BYTES]) :]
        os.fsync(stream.fileno())


def read_plainly(file: Path, pieces: list[memoryview]) -> None:
    """Read the same bytes from one file."""
    with open(file, "rb", buffering=0) as stream:
        for piece in pieces:
            while piece:
                piece = piece[stream.readinto(piece[:BLOCK_BYTES]) :]


def drop_from_cache(files: list[Path]) -> int:
    """Flush files, drop them from the page cache and return how many bytes are still in it."""
    cached = 0
    for file in files:
        with open(file, "r+b") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            cached += _cached_bytes(stream.fileno())
    return cached


def _cached_bytes(handle: int) -> int:
    size = os.fstat(handle).st_size
    pages = -(-size // mmap.PAGESIZE)
    with mmap.mmap(handle, size) as mapped:
        start = ctypes.c_char.from_buffer(mapped)
        resident = (ctypes.c_ubyte * pages)()
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), resident)
        del start  # it keeps the mapping open
    if failed:
        raise OSError(ctypes.get_errno(), "mincore")
    return int((np.frombuffer(resident, np.uint8) & 1).sum()) * mmap.PAGESIZE


def _bytes_of(values: np.ndarray) -> memoryview:
    return values.reshape(-1).view(np.uint8).data


def _seconds(action: Callable[[], None]) -> tuple[float, float]:
    """Return seconds of the clock and of the processor."""
    began, processor = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - began, time.process_time() - processor


def measure(place: Path, rounds: int, pause: float) -> tuple[int, int, dict[str, list[tuple[float, float]]]]:
    """Return bytes of the tensors, the most bytes that were cached before a read, and the seconds of each operation.

    Seconds are those of the clock and of the processor.
    """
    tensors = state_of_a_network()
    size = sum(values.nbytes for values in tensors.values())
    folder, plain = place / "checkpoint-1", place / "plain"
    save(tensors, place)
    with Reader(folder) as reader:
        order = reader.in_file_order(tensors)
        first = reader.index.tensors[order[0]].parts[0]
    header = (folder / first.file).read_bytes()[: first.offset]
    pieces = [memoryview(header), *(_bytes_of(tensors[key]) for key in order)]
    out = {key: np.ones_like(values) for key, values in tensors.items()}  # pages that exist
    plain_out = [np.empty(len(header), np.uint8).data, *(_bytes_of(out[key]) for key in order)]
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in OPERATIONS}
    cached = 0
    for number in range(rounds + 1):  # the first round is not counted
        shutil.rmtree(folder, ignore_errors=True)
        plain.unlink(missing_ok=True)
        os.sync()
        writes = {"save": lambda: save(tensors, place), "plain write": lambda: write_plainly(pieces, plain)}
        reads = {"load": lambda: load(folder, out), "plain read": lambda: read_plainly(plain, plain_out)}
        for actions in (writes, reads):
            for name, action in list(actions.items())[:: 1 if number % 2 else -1]:
                if actions is reads:
                    for values in out.values():
                        values.fill(1)
                    cached = max(cached, drop_from_cache([plain, *(p for p in folder.iterdir())]))
                time.sleep(pause)
                taken = _seconds(action)
                if actions is reads:
                    assert all(np.array_equal(out[key], tensors[key]) for key in tensors)
                if number:
                    seconds[name].append(taken)
    return size, cached, seconds


def main() -> None:
    """Measure and print a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="an even number")
    parser.add_argument("--pause", type=float, default=5.0, help="seconds before each operation")
    parser.add_argument("--folder", help="on the disk to be measured [default: the temporary folder]")
    options = parser.parse_args()
    busy = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        size, cached, seconds = measure(Path(place), options.rounds, options.pause)
    print(f"# Saving and loading a checkpoint of 1 GB on one rank, {date.today()}\n")
    print(describe("numpy", "xxhash", "safetensors") + f"; medians of {options.rounds} alternating rounds.")
    print(f"Load average of the machine: {busy:.1f} before, {os.getloadavg()[0]:.1f} after the measurement.\n")
    print(f"Tensors: {size / 1e9:.2f} GB. At most {cached / 1e6:.1f} MB of the files were cached before a read.\n")
    print("| operation | MB/s | range | processor seconds |")
    print("|---|---|---|---|")
    for name in OPERATIONS:
        speeds = [size / one / 1e6 for one, _ in seconds[name]]
        processor = statistics.median(one for _, one in seconds[name])
        print(
            f"| {name} | {statistics.median(speeds):.0f} | {min(speeds):.0f} to {max(speeds):.0f} | {processor:.2f} |"
        )
    print()
    for ours, plain in (OPERATIONS[:2], OPERATIONS[2:]):
        ratios = [b / a for (a, _), (b, _) in zip(seconds[ours], seconds[plain], strict=True)]
        of_medians = statistics.median(one for one, _ in seconds[plain]) / statistics.median(
            one for one, _ in seconds[ours]
        )
        mean = statistics.geometric_mean(ratios)
        print(
            f"- {ours} beside {plain}: {statistics.median(ratios):.0%} of its speed (median of the rounds), {mean:.0%} (geometric "
            f"mean), {of_medians:.0%} (ratio of the medians); by round {', '.join(f'{one:.0%}' for one in ratios)}"
        )


if __name__ == "__main__":
    main()
