"""Weights that two pipeline stages share (tied embeddings) count once in the gradient norm.

Paddle 3.3.1 means to do so, but looks for the shared attribute's name ("embedding_weight") among the parameters' own
names ("embedding_0.w_0"), finds none, and adds the shared gradient's square once for each stage: clipping then uses a
norm that is too large. On GPUs as well; nothing is patched, the mark that Paddle forgets is set.
"""

from __future__ import annotations

from typing import Any


def count_shared_weights_once(pipeline: Any) -> list[str]:
    """Mark the shared parameters of a PipelineLayer, on every device; returns the names of those marked.

    To be called when the layer has been built, before its optimizer makes its first step.
    """
    marked = []
    for comm in pipeline.shared_comm.values():
        for attribute in comm["weight_attr"]:
            parameter = getattr(comm["layer"], attribute)
            parameter.is_firstly_shared = pipeline.global_rank == min(comm["ranks"])
            marked.append(parameter.name)
    return marked
