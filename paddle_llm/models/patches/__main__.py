"""Print a Markdown table of every attribute of Paddle and PaddleNLP that is replaced, in the process of a CPU rank."""

from __future__ import annotations

from paddle_llm.core.upstream import REPLACEMENTS
from paddle_llm.families import FAMILIES
from paddle_llm.models.patches import apply
from paddle_llm.parallel.paddle_fixes import fix_fused_sequence_parallel_reduction
from paddle_llm.parallel.process.start import start_process


def table() -> str:
    """Return the table, sorted by file and attribute."""
    start_process("cpu", ranks=2)
    fix_fused_sequence_parallel_reduction()
    for family in FAMILIES:
        apply(family, "cpu")
    rows = sorted(REPLACEMENTS.values(), key=lambda one: (one.file, one.target))
    lines = [f"| `{one.target}` | `{one.file}` | {one.why} |" for one in rows]
    return "\n".join(["| attribute | replaced by | why |", "|---|---|---|", *lines])


if __name__ == "__main__":
    print(table())
