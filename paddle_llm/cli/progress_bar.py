"""Progress of a command that processes a known number of items."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from paddle_llm.core.console import say
from paddle_llm.core.errors import is_first_rank


@contextmanager
def show_progress(noun: str, total: int, *, shown: bool = True) -> Iterator[Callable[[int], None] | None]:
    """Show a progress bar on a terminal, otherwise a line every 30 seconds.

    Args:
        noun: What is counted, in the plural.
        total: Number of items.
        shown: Whether to show anything; default True.

    Yields:
        Function to call with the number of finished items; None if nothing is shown.
    """
    if not shown or not is_first_rank():
        yield None
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _progress_lines(noun, total)
        return
    columns = (TextColumn(noun), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(noun, total=total)
        yield lambda done: bar.update(task, completed=done)


def _progress_lines(noun: str, total: int, every: float = 30.0) -> Callable[[int], None]:
    """Return a function that prints the progress, at most once in `every` seconds."""
    started = last = time.monotonic()

    def on_batch(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > every:
            last = now
            say(f"{done} of {total} {noun}, {(total - done) * (now - started) / done:.0f} s left")

    return on_batch
