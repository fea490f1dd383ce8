"""Print a Markdown table of every attribute of PaddleNLP that is replaced."""

from __future__ import annotations

from paddle_llm.families import FAMILIES
from paddle_llm.models.patches import apply
from paddle_llm.models.patches.replace import REPLACEMENTS


def table() -> str:
    """Return the table, sorted by file and attribute."""
    for family in FAMILIES:
        apply(family, "cpu")
    rows = sorted(REPLACEMENTS.values(), key=lambda one: (one.file, one.target))
    lines = [f"| `{one.target}` | `{one.file}` | {one.why} |" for one in rows]
    return "\n".join(["| attribute of PaddleNLP 3.0.0b4 | replaced by | why |", "|---|---|---|", *lines])


if __name__ == "__main__":
    print(table())
