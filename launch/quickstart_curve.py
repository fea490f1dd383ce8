"""The loss curve of a run as an SVG picture: training loss, evaluation loss, and a line to compare them with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 40, 44  # margins, for the labels of the axes and the legend
TRAINING, EVALUATION, BASELINE = "#2563eb", "#dc2626", "#6b7280"


def loss_curve(rows: Sequence[dict[str, Any]], baseline: float, baseline_name: str) -> str:
    """Return an SVG document with the losses of a run.

    Args:
        rows: Rows of metrics.jsonl.
        baseline: Loss of the dashed line, in nats per token.
        baseline_name: Name of the dashed line in the legend.
    """
    training = [(row["step"], row["loss"]) for row in rows if row.get("loss") is not None]
    evaluation = [(row["step"], row["eval_loss"]) for row in rows if row.get("eval_loss") is not None]
    losses = [loss for _, loss in training + evaluation] + [baseline]
    last_step, low, high = max(step for step, _ in training + evaluation), int(min(losses)), int(max(losses)) + 1

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / last_step

    def y(loss: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - loss) / (high - low)

    parts = [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']
    for loss in range(low, high + 1):
        parts.append(_line(LEFT, y(loss), WIDTH - RIGHT, y(loss), "#e5e7eb"))
        parts.append(_text(LEFT - 8, y(loss) + 4, str(loss), "end"))
    for step in (0, *(round(last_step * quarter / 4) for quarter in range(1, 5))):
        parts.append(_text(x(step), HEIGHT - BOTTOM + 18, str(step), "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "step", "middle"))
    parts.append(_text(LEFT, TOP - 24, "loss (nats per token)", "start"))
    parts.append(_line(LEFT, y(baseline), WIDTH - RIGHT, y(baseline), BASELINE, dashed=True))
    points = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in training)
    parts.append(f'<polyline points="{points}" fill="none" stroke="{TRAINING}" stroke-width="2"/>')
    parts += [f'<circle cx="{x(step):.1f}" cy="{y(loss):.1f}" r="4" fill="{EVALUATION}"/>' for step, loss in evaluation]
    legend = ((TRAINING, "training"), (EVALUATION, "evaluation"), (BASELINE, baseline_name))
    for number, (color, name) in enumerate(legend):
        parts.append(_text(WIDTH - RIGHT - 8, TOP + 16 + 18 * number, name, "end", color))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">'
    return "\n".join([head, *parts, "</svg>\n"])


def _line(x1: float, y1: float, x2: float, y2: float, color: str, dashed: bool = False) -> str:
    dashes = ' stroke-dasharray="6 4"' if dashed else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}"{dashes}/>'


def _text(x: float, y: float, text: str, anchor: str, color: str = "#374151") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{text}</text>'
