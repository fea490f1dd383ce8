"""A simulated step as an SVG picture, and in the trace format that Chrome and Perfetto open."""

from __future__ import annotations

import json

from paddle_llm.planner.pipeline.events import Timeline

_WIDTH, _ROW, _LEFT, _TOP = 1200, 26, 70, 48
_SMALLEST_LABEL = 14  # width of an operation, below which its number is not written
_COLORS = {"forward": "#4c78a8", "backward": "#f58518", "weight": "#54a24b"}
_CHUNK_OPACITY = (1.0, 0.72, 0.5, 0.35)


def svg(timeline: Timeline, title: str) -> str:
    """Return a picture of a step: one row per pipeline rank, one box per operation with the number of its micro-batch.

    Args:
        timeline: Step of one pipeline.
        title: Line above the picture.
    """
    schedule, total = timeline.schedule, float(timeline.seconds)
    scale = (_WIDTH - _LEFT - 10) / total
    height = _TOP + schedule.ranks * _ROW + 34
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{_LEFT}" y="18" font-size="13">{_escaped(title)}</text>',
    ]
    kinds = [kind for kind in _COLORS if any(operation.kind == kind for operation in schedule.operations)]
    for number, kind in enumerate(kinds):
        left = _LEFT + 110 * number
        lines.append(f'<rect x="{left}" y="27" width="10" height="10" fill="{_COLORS[kind]}"/>')
        lines.append(f'<text x="{left + 15}" y="36">{kind}</text>')
    for rank in range(schedule.ranks):
        y = _TOP + rank * _ROW
        lines.append(f'<text x="8" y="{y + 16}">stage {rank}</text>')
        lines.append(f'<rect x="{_LEFT}" y="{y}" width="{total * scale:.2f}" height="{_ROW - 4}" fill="#eeeeee"/>')
    for operation, begin, end in zip(schedule.operations, timeline.start, timeline.end, strict=True):
        x, width = _LEFT + float(begin) * scale, float(end - begin) * scale
        y = _TOP + operation.rank * _ROW
        opacity = _CHUNK_OPACITY[min(operation.chunk, len(_CHUNK_OPACITY) - 1)]
        lines.append(
            f'<rect x="{x:.2f}" y="{y}" width="{max(width - 0.5, 0.2):.2f}" height="{_ROW - 4}" '
            f'fill="{_COLORS[operation.kind]}" fill-opacity="{opacity}"/>'
        )
        if width >= _SMALLEST_LABEL:
            lines.append(
                f'<text x="{x + width / 2:.2f}" y="{y + 15}" text-anchor="middle" fill="white">{operation.micro_batch}</text>'
            )
    lines.append(f'<text x="{_LEFT}" y="{height - 12}">0</text>')
    lines.append(f'<text x="{_WIDTH - 10}" y="{height - 12}" text-anchor="end">{total * 1e3:.1f} ms</text>')
    return "\n".join([*lines, "</svg>", ""])


def chrome_trace(timeline: Timeline, pipeline: int) -> str:
    """Return a step as JSON in Chrome's trace event format: one thread per pipeline rank. Times are microseconds.

    Args:
        timeline: Step of one pipeline.
        pipeline: Number of the pipeline, the process of the trace.
    """
    schedule = timeline.schedule
    events: list[dict[str, object]] = [
        {"name": "process_name", "ph": "M", "pid": pipeline, "args": {"name": f"pipeline {pipeline}"}}
    ]
    for rank in range(schedule.ranks):
        name = {"name": f"stage {rank}"}
        events.append({"name": "thread_name", "ph": "M", "pid": pipeline, "tid": rank, "args": name})
    for operation, begin, end in zip(schedule.operations, timeline.start, timeline.end, strict=True):
        events.append(
            {
                "name": f"{operation.kind} {operation.micro_batch}",
                "cat": operation.kind,
                "ph": "X",
                "ts": round(float(begin) * 1e6, 3),
                "dur": round(float(end - begin) * 1e6, 3),
                "pid": pipeline,
                "tid": operation.rank,
                "args": {"micro_batch": operation.micro_batch, "virtual_stage": operation.chunk},
            }
        )
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}, indent=0) + "\n"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
