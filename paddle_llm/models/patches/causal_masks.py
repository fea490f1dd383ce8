"""LLaMA and Qwen2 with flash attention make no mask where rows are whole: the kernel's own causal one is enough.

PaddleNLP 3.0.0b4 builds the mask [B, 1, S, S] three times over in every micro batch, waits for the device to compare it with
its upper triangle, and drops it: 2 GB a tensor for one row of 32k tokens. Its switch against that, the environment variable
USE_CASUAL_MASK, drops masks of padding as well.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from paddle_llm.models.patches.replace_forward import replace_forward

_state = {"whole rows": False}


def leave_out_causal_masks(modeling: Any, network: Any) -> None:
    """Replace `network.forward` and the switch that it reads in its module.

    Args:
        modeling: PaddleNLP's module of LLaMA or Qwen2.
        network: Its base model, whose `forward` prepares masks for the layers.
    """
    forward = network.forward

    @wraps(forward)
    def with_switch(
        self: Any,
        input_ids: Any = None,
        position_ids: Any = None,
        attention_mask: Any = None,
        *args: Any,
        **inputs: Any,
    ) -> Any:
        cached = inputs.get("past_key_values") is not None
        before = _state["whole rows"]
        _state["whole rows"] = bool(self.config.use_flash_attention and attention_mask is None and not cached)
        try:
            return forward(self, input_ids, position_ids, attention_mask, *args, **inputs)
        finally:
            _state["whole rows"] = before

    modeling.get_use_casual_mask = lambda: _state["whole rows"]
    replace_forward(network, with_switch)
