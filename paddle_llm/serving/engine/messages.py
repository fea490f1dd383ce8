"""Messages between the server and the process of the engine. Does not import Paddle.

Server to engine: `EngineOptions` with the folder of a program first, then `TextRequest`, `Cancel` and finally `Stop`.
Engine to server: `Ready` or `Failed` first, then `Step` after each step with events.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paddle_llm.serving.engine.texts import EngineState, Event
from paddle_llm.serving.options import EngineOptions


@dataclass(frozen=True)
class Load:
    """Load a model.

    Attributes:
        options: Options of the engine.
        work_folder: Empty folder in which a static program may be written.
    """

    options: EngineOptions
    work_folder: Path


@dataclass(frozen=True)
class Cancel:
    """End a text.

    Attributes:
        key: The text.
    """

    key: str


@dataclass(frozen=True)
class Stop:
    """End the process."""


@dataclass(frozen=True)
class Ready:
    """The engine accepts texts.

    Attributes:
        program: Folder of the static program, with its tokenizer.
        max_length: Maximum number of tokens of a prompt and its answer.
        cache_tokens: Number of tokens that the cache holds.
        cache_bytes: Size of the cache.
        threads: Number of threads.
    """

    program: Path
    max_length: int
    cache_tokens: int
    cache_bytes: int
    threads: int


@dataclass(frozen=True)
class Failed:
    """The model cannot be loaded.

    Attributes:
        message: Message for the user.
    """

    message: str


@dataclass(frozen=True)
class Step:
    """A step of the engine.

    Attributes:
        events: What happened.
        state: Load of the engine afterwards.
    """

    events: tuple[Event, ...]
    state: EngineState
