"""Replace the `forward` of one of PaddleNLP's networks as it is."""

from __future__ import annotations

from typing import Any


def replace_forward(network: type, forward: Any) -> None:
    """Past PaddleNLP's metaclass, which takes `return_dict`, `output_attentions` and `output_hidden_states` away from every
    call of a replacement that does not name them itself, and warns."""
    type.__setattr__(network, "forward", forward)
