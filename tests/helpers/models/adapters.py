"""Builds tiny networks with adapters and reads their weights and logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from paddle_llm.config.layout import Layout
from paddle_llm.peft.method import Method
from tests.helpers.models.networks import WRITERS, batch, build

METHODS = {
    "lora": Method("lora", rank=4),
    "adalora": Method("adalora", rank=2, initial_rank=3),
    "prefix": Method("prefix", num_prefix_tokens=5),
    "projected prefix": Method("prefix", num_prefix_tokens=5, prefix_projection=True),
    "adapter": Method("adapter", adapter_size=4),
    "prompt": Method("prompt", num_prompt_tokens=3),
    "freeze": Method("freeze", last_layers=1),
}


def network(folder: Path, family: str = "llama", layout: Layout | None = None, **overrides: Any) -> Any:
    """Build the network of a family with random weights, in evaluation mode."""
    model_folder = WRITERS[family](folder / family, **overrides)
    model = build(model_folder, layout=layout)
    model.eval()
    return model


def attached(model: Any, method: Method, layout: Layout | None = None, **others: Any) -> Any:
    from paddle_llm.peft.attach import attach

    return attach(model, method, layout or Layout(), seed=1, quiet=True, **others)


def set_trained(model: Any, seed: int = 0) -> None:
    """Set trained parameters to values of some size, as training would."""
    import paddle

    from paddle_llm.peft.attach import trainable_tensors

    numbers = np.random.default_rng(seed)
    for _, parameter, _ in trainable_tensors(model):
        values = parameter.astype("float32").numpy() + 0.1 * numbers.standard_normal(parameter.shape)
        parameter.set_value(paddle.to_tensor(values.astype(np.float32)).astype(parameter.dtype))


def logits(model: Any, family: str = "llama", inputs: dict[str, Any] | None = None) -> np.ndarray:
    """Return the logits [B, S, V] in fp32 of two fixed samples."""
    import paddle

    inputs = dict(inputs or batch(family))
    inputs.pop("labels", None)
    with paddle.no_grad():
        output = model(**inputs)
    output = output[0] if isinstance(output, tuple) else output
    return output.astype("float32").numpy()


def trained_values(model: Any) -> dict[str, np.ndarray]:
    """Return this rank's part of the trained parameters, by canonical name."""
    from paddle_llm.peft.attach import trainable_tensors

    return {name: parameter.numpy() for name, parameter, _ in trainable_tensors(model)}


def base_values(model: Any) -> dict[str, np.ndarray]:
    """Return this rank's part of the base weights, by canonical name."""
    from paddle_llm.models.weights.names import canonical_parameters
    from paddle_llm.peft.attach import family_of

    return {name: parameter.numpy() for name, parameter in canonical_parameters(model, family_of(model).name)}
