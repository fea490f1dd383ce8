"""Prints a table with the times of the CUDA kernels, of other libraries and of a copy of the same number of bytes."""

from __future__ import annotations

import statistics

import torch
from device import NAMES, Device, free_bytes
from peers import MOVED, Given, Run, of_liger, of_torch, ours

SHAPES = [(16384, 1024), (16384, 2048), (16384, 4096), (16384, 8192), (16384, 16384), (4096, 4096)]
QUICK = [(16384, 4096), (16384, 8192)]
RUNS, REPLAYS = 10, 30  # runs in one graph; replays of it, each timed
MATRICES = 16  # maximum number of matrices of the size of x in memory at once


def graph_of(run: Run) -> torch.cuda.CUDAGraph:
    """Return a CUDA graph of RUNS runs, so that launches take no time and the events take little."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(RUNS):
            run()
    return graph


def milliseconds(run: Run, before: Run) -> float:
    """Return the median time of one run over the replays. `before` runs before each replay and is not timed."""
    graph = graph_of(run)
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(3 + REPLAYS)]
    for begin, end in pairs:
        before()
        begin.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in pairs[3:]) / RUNS


def milliseconds_of_a_copy(bytes_moved: int, before: Run) -> float:
    """Return the time of a copy on the device that reads and writes `bytes_moved` bytes in total."""
    source = torch.empty(bytes_moved // 2, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return milliseconds(lambda: target.copy_(source), before)


def table(device: Device, quick: bool, with_liger: bool) -> bool:
    """Print the table and return whether all of our kernels ran. A failure of another library is a line of the table."""
    peers = {"ours": ours(device), "torch": of_torch}
    if with_liger:
        peers["Liger"] = of_liger
    print(
        f"\n| type | shape | operation | library | ms | GB/s | share of the copy's speed | time relative to ours |\n|{'---|' * 8}"
    )
    skipped, fine = [], True
    for name in ("bf16", "fp32"):
        for rows, hidden in QUICK if quick else SHAPES:
            if rows * hidden * (MATRICES * NAMES[name].itemsize + 4) > free_bytes():
                skipped.append(f"{name} {rows}x{hidden}")
                continue
            fine &= rows_of(peers, name, rows, hidden)
            torch.cuda.empty_cache()
    if skipped:
        print(f"\nNot timed, because the card has too little memory: {', '.join(skipped)}")
    return fine


def rows_of(peers: dict, name: str, rows: int, hidden: int) -> bool:
    """Print the rows of one shape."""
    matrices = [torch.randn(rows, hidden, device="cuda").to(NAMES[name]) for _ in range(4)]
    given = Given(*matrices, torch.randn(hidden, device="cuda").to(NAMES[name]))
    dy_RH = given.dy_RH.clone()
    fine = True
    for what, moved in MOVED.items():
        size = moved * given.x_RH.numel() * given.x_RH.element_size()
        # Liger overwrites dy, so it is restored before each replay.
        restore = lambda: given.dy_RH.copy_(dy_RH)  # noqa: E731
        copy_ms, our_ms = milliseconds_of_a_copy(size, restore), None
        for who, peer in peers.items():
            begin = f"| {name} | {rows}x{hidden} | {what} | {who} |"
            try:
                run = peer(given, what)
                if run is None:
                    continue
                ms = milliseconds(run, restore)
            except Exception as error:
                print(f"{begin} failed: {type(error).__name__}: {' '.join(str(error).split())[:150]} | | | |")
                fine &= who != "ours"
                continue
            our_ms = ms if who == "ours" else our_ms
            times_ours = f"{ms / our_ms:.2f}" if our_ms else ""
            print(f"{begin} {ms:.4f} | {size / ms / 1e6:.0f} | {copy_ms / ms:.0%} | {times_ours} |")
    return fine
