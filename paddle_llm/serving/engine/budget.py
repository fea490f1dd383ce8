"""The memory budget of the cache: how many tokens it holds, and whether that is enough. Does not import Paddle."""

from __future__ import annotations

from pathlib import Path

from paddle_llm.core.errors import UserError
from paddle_llm.generation.static.program import ProgramDescription

GIGABYTE = 10**9
DEFAULT_LENGTH = 2048  # tokens; for models without a limit of positions
_SHARE_OF_FREE_MEMORY = 0.5
_CGROUP = Path("/sys/fs/cgroup")


def bytes_per_token(description: ProgramDescription) -> int:
    """Return the size of the fp32 keys and values of one token in all layers."""
    return 2 * description.layers * description.kv_heads * description.head_width * 4


def longest_text(description: ProgramDescription, max_length: int | None) -> int:
    """Return the maximum number of tokens of a prompt and its answer.

    Args:
        description: Description of the program.
        max_length: --max_length; None: the positions of the model.

    Raises:
        UserError: If the model has fewer positions.
    """
    limit = description.max_position_embeddings
    if max_length is None:
        return limit or DEFAULT_LENGTH
    if limit is not None and max_length > limit:
        raise UserError(f"--max_length {max_length} exceeds the model's {limit} positions. Use {limit} or less.")
    return max_length


def tokens_in_budget(description: ProgramDescription, length: int, texts: int, gigabytes: float | None) -> int:
    """Return the number of tokens that the cache holds.

    Args:
        description: Description of the program.
        length: Maximum number of tokens of a text.
        texts: Maximum number of texts that are computed together. A larger cache has no use.
        gigabytes: --kv_cache_gb; None: half of the free memory.

    Raises:
        UserError: If the budget cannot hold one text of `length` tokens.
    """
    size = bytes_per_token(description)
    budget = available_bytes() * _SHARE_OF_FREE_MEMORY if gigabytes is None else gigabytes * GIGABYTE
    tokens = int(budget // size)
    if tokens < length:
        given = f"--kv_cache_gb {gigabytes:g}" if gigabytes is not None else "Half of the free memory"
        raise UserError(
            f"{given} holds the keys and values of {tokens} tokens, and one full sequence has {length}: "
            f"{_rounded_up(length * size)} GB. Use --kv_cache_gb {_rounded_up(length * size)} or more, "
            f"or --max_length {max(tokens, 1)} or less."
        )
    return min(tokens, length * texts)


def available_bytes() -> int:
    """Return the memory that this process can still allocate: the least of the system's and its cgroup's."""
    free = []
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            free.append(int(line.split()[1]) * 1024)
    try:
        limit = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
        if limit != "max":
            free.append(max(int(limit) - used, 0))
    except (OSError, ValueError):  # no cgroup of version 2, or no limit
        pass
    return min(free)


def _rounded_up(size: int) -> str:
    """Return gigabytes with two significant digits, rounded up, so that the number is enough."""
    digits = 1
    while digits < 12 and size > 0 and round(size / GIGABYTE, digits) * 10**digits < 10:
        digits += 1
    return f"{-(-size * 10**digits // GIGABYTE) / 10**digits:.{digits}f}"
