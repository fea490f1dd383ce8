"""Speed of saving and loading a checkpoint of 1 GB on one rank, digests included, beside a plain write and read, and peers.

    python benchmarks/checkpoint_io.py [--rounds 6] [--folder DIR] [--peers safetensors,torch,paddle] > benchmarks/results/checkpoint_io.md

The state is that of mixed precision with AdamW: weights in bfloat16, and master weights and two moments in float32. In each
round all operations run in turn, in reverse order in every second round. The disks of virtual machines are often limited to a
speed that they may exceed for a short time, so that the first of two operations is faster: the number of rounds is even, each
operation waits for --pause seconds, and ratios are also averaged over all rounds.

- save: everything from arrays in memory to the renamed folder, flushed to disk;
- plain write: the bytes of the file with the tensors with `write` into one file, and `fsync`;
- save in the background (`--async_save`): the time for which the caller is blocked, and the whole time;
- load: manifest, index and every tensor, with the digest of every file and the check that weights are finite;
- plain read: the same bytes with `read` from one file.

Peers, whose files are flushed as well (none of them has digests, or a name that appears only when the files are complete):
`save_file` and `load_file` of safetensors, `save` and `load` of torch's distributed checkpoints, `paddle.save` and `paddle.load`.

Ours and plain operations use blocks of 1 MB at the same positions: Linux is several times slower at some positions than at
others. Both of their reads fill memory that exists already. Before each read, the files are dropped from the page cache
(`fsync`, `posix_fadvise` with DONTNEED); `mincore` then counts what is still cached.
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
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from peers_of_checkpoint_io import PEERS, Peer  # noqa: E402

from paddle_llm.checkpoint.format.manifest import Manifest  # noqa: E402
from paddle_llm.checkpoint.format.reader import Reader  # noqa: E402
from paddle_llm.checkpoint.format.writer import LocalTensor  # noqa: E402
from paddle_llm.checkpoint.saving.background import BackgroundWriter  # noqa: E402
from paddle_llm.checkpoint.saving.protocol import Content, Member, save_checkpoint, stage  # noqa: E402

HIDDEN, INNER, WORDS, LAYERS = 1024, 2752, 12000, 4
BLOCK_BYTES = 1 << 20
BLOCKED, BACKGROUND = "blocked by a save in the background", "save in the background"


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


def alone(value: Any) -> list[Any]:
    """Return the value of every rank of a job of one rank."""
    return [value]


def staged_content(output: Path) -> Content:
    """Return what a job of one rank saves beside tensors, after the staging folder was created."""
    member = Member(rank=0, disk=0, first_on_disk=True, shares_disk=True)
    content = Content(output / ".saving-1", output / "checkpoint-1", member, {}, {"step": 1}, Manifest(1, {}, 1))
    stage(content.staged, member, alone, lambda folder: None, None)
    return content


def save(tensors: dict[str, LocalTensor], output: Path) -> None:
    """Save a checkpoint as a job of one rank does."""
    save_checkpoint(staged_content(output), tensors, alone)


def begin_save(tensors: dict[str, LocalTensor], output: Path, writer: BackgroundWriter) -> None:
    """Begin to save a checkpoint as a job of one rank with `--async_save` does."""
    filled = writer.fill(tensors)
    writer.submit(filled, staged_content(output))


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


@dataclass
class Measurement:
    """What was measured.

    Attributes:
        nbytes: Bytes of the tensors.
        cached: Most bytes of the files that were cached before a read.
        first: Seconds for which the first save in the background blocked, which allocates its memory.
        seconds: Seconds of the clock and of this process's processor time for each operation and round.
    """

    nbytes: int
    cached: int = 0
    first: float = 0.0
    seconds: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def ratios(self, one: str, other: str) -> list[float]:
        """Return the time of an operation divided by that of another one, by round."""
        return [a / b for (a, _), (b, _) in zip(self.seconds[one], self.seconds[other], strict=True)]

    def ratio_of_medians(self, one: str, other: str) -> float:
        """Return the median time of an operation divided by that of another one."""
        first, second = (statistics.median(clock for clock, _ in self.seconds[name]) for name in (one, other))
        return first / second


class Rounds:
    """Runs all operations.

    Args:
        place: Folder on the disk to be measured.
        peers: Peers to compare with.
    """

    def __init__(self, place: Path, peers: list[Peer]) -> None:
        self._place, self._peers = place, peers
        self._tensors = state_of_a_network()
        self._local = {key: LocalTensor.of(values) for key, values in self._tensors.items()}
        self._folder, self._plain = place / "checkpoint-1", place / "plain"
        self.result = Measurement(sum(values.nbytes for values in self._tensors.values()))
        save(self._local, place)
        with Reader(self._folder) as reader:
            order = reader.in_file_order(self._tensors)
            first = reader.index.tensors[order[0]].parts[0]
        header = (self._folder / first.file).read_bytes()[: first.offset]
        self._pieces = [memoryview(header), *(_bytes_of(self._tensors[key]) for key in order)]
        self._out = {key: np.ones_like(values) for key, values in self._tensors.items()}  # pages that exist
        self._plain_out = [np.empty(len(header), np.uint8).data, *(_bytes_of(self._out[key]) for key in order)]
        for peer in peers:
            peer.take(self._tensors)
        self._writer = BackgroundWriter(0)
        self._writer.start(alone)

    def run(self, rounds: int, pause: float) -> Measurement:
        """Measure all operations in each round; a round before them is not counted."""
        writes: dict[str, Callable[[], None]] = {
            "save": lambda: save(self._local, self._place),
            "plain write": lambda: write_plainly(self._pieces, self._plain),
            BACKGROUND: lambda: begin_save(self._local, self._place / "background", self._writer),
        }
        reads: dict[str, Callable[[], None]] = {
            "load": lambda: load(self._folder, self._out),
            "plain read": lambda: read_plainly(self._plain, self._plain_out),
        }
        for peer in self._peers:
            writes[f"save of {peer.name}"] = lambda peer=peer: peer.save(self._place / peer.name)  # type: ignore[misc]
            reads[f"load of {peer.name}"] = lambda peer=peer: peer.load(self._place / peer.name)  # type: ignore[misc]
        for number in range(rounds + 1):
            for leftover in self._place.iterdir():
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            for folder in ("background", *(peer.name for peer in self._peers)):
                (self._place / folder).mkdir()
            os.sync()
            for actions in (writes, reads):
                for name, action in list(actions.items())[:: 1 if number % 2 else -1]:
                    self._measure(name, action, pause, counted=number > 0)
        self._writer.close()
        return self.result

    def _measure(self, name: str, action: Callable[[], None], pause: float, counted: bool) -> None:
        is_read = name in ("load", "plain read")
        if is_read:
            for values in self._out.values():
                values.fill(1)
        if is_read or name.startswith("load of"):
            cached = drop_from_cache([path for path in self._place.rglob("*") if path.is_file()])
            self.result.cached = max(self.result.cached, cached)
        time.sleep(pause)
        began, processor = time.perf_counter(), time.process_time()
        action()
        taken = {name: (time.perf_counter() - began, time.process_time() - processor)}
        if name == BACKGROUND:
            taken = {BLOCKED: taken[name]}
            if self._writer.wait().problem is not None:
                sys.exit("the save in the background failed")
            taken[name] = time.perf_counter() - began, time.process_time() - processor
            if not counted:
                self.result.first = taken[BLOCKED][0]
        if is_read:
            assert all(np.array_equal(self._out[key], self._tensors[key]) for key in self._tensors)
        if counted:
            for key, value in taken.items():
                self.result.seconds.setdefault(key, []).append(value)


def report(found: Measurement, comparisons: list[tuple[str, str]]) -> None:
    """Print a table of all operations and the comparisons."""
    print("| operation | seconds | MB/s | range of MB/s | processor seconds |")
    print("|---|---|---|---|---|")
    for name, taken in found.seconds.items():
        speeds = [found.nbytes / one / 1e6 for one, _ in taken]
        clock, processor = (statistics.median(one) for one in zip(*taken, strict=True))
        speed = f"{statistics.median(speeds):.0f} | {min(speeds):.0f} to {max(speeds):.0f}"
        print(f"| {name} | {clock:.2f} | {speed if name != BLOCKED else '- | -'} | {processor:.2f} |")
    print()
    for ours, other in comparisons:
        speeds = [1 / one for one in found.ratios(ours, other)]
        print(
            f"- speed of {ours} beside {other}: {statistics.median(speeds):.0%} (median of the rounds), "
            f"{statistics.geometric_mean(speeds):.0%} (geometric mean), {1 / found.ratio_of_medians(ours, other):.0%} (ratio of "
            f"the medians); by round {', '.join(f'{one:.0%}' for one in speeds)}"
        )
    blocked = found.ratios(BLOCKED, "save")
    print(
        f"- a save in the background blocks for {statistics.median(blocked):.1%} of the time of a save (median of the rounds), "
        f"{found.ratio_of_medians(BLOCKED, 'save'):.1%} (ratio of the medians); by round "
        f"{', '.join(f'{one:.1%}' for one in blocked)}; the first one, which allocates the memory, for {found.first:.2f} s"
    )


def main() -> None:
    """Measure and print a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6, help="an even number")
    parser.add_argument("--pause", type=float, default=5.0, help="seconds before each operation")
    parser.add_argument("--folder", help="on the disk to be measured [default: the temporary folder]")
    parser.add_argument("--peers", default="safetensors,torch,paddle", help="to compare with, or none")
    options = parser.parse_args()
    names = [] if options.peers == "none" else options.peers.split(",")
    peers = [PEERS[name]() for name in names]
    busy = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        found = Rounds(Path(place), peers).run(options.rounds, options.pause)
    print(f"# Saving and loading a checkpoint of 1 GB on one rank, {date.today()}\n")
    machine = describe("numpy", "xxhash", *(peer.package for peer in peers))
    print(f"{machine}; medians of {options.rounds} alternating rounds.")
    print(f"Load average of the machine: {busy:.1f} before, {os.getloadavg()[0]:.1f} after the measurement.\n")
    print(
        f"Tensors: {found.nbytes / 1e9:.2f} GB. At most {found.cached / 1e6:.1f} MB of the files were cached before a read.\n"
    )
    report(
        found,
        [
            ("save", "plain write"),
            ("load", "plain read"),
            *(("save", f"save of {peer.name}") for peer in peers),
            *(("load", f"load of {peer.name}") for peer in peers),
        ],
    )


if __name__ == "__main__":
    main()
