"""Interface of a language model, for annotations. PaddleNLP's classes have no types."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import paddle
    from paddlenlp.transformers import PretrainedConfig


class LanguageModel(Protocol):
    """A `PretrainedModel` of PaddleNLP, or one with an adapter attached.

    Attributes:
        config: Configuration of the model.
        training: Whether dropout is active.
    """

    config: PretrainedConfig
    training: bool

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Run the model; the result depends on the arguments and the class."""
        ...

    def parameters(self) -> list[paddle.Tensor]:
        """Return all parameters, each once."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, paddle.Tensor]]:
        """Return all parameters with their names, each once."""
        ...

    def sublayers(self, include_self: bool = False) -> list[paddle.nn.Layer]:
        """Return all layers in the model."""
        ...

    def named_sublayers(self, include_self: bool = False) -> Iterator[tuple[str, paddle.nn.Layer]]:
        """Return all layers in the model with their names."""
        ...

    def state_dict(self, *, use_hook: bool = True) -> dict[str, paddle.Tensor]:
        """Return parameters and persistent buffers by name.

        Args:
            use_hook: Whether to call the hooks of `state_dict`; default True.
        """
        ...

    def set_state_dict(self, state_dict: dict[str, paddle.Tensor]) -> Any:
        """Copy values into parameters and buffers; return missing and unexpected names."""
        ...

    def train(self) -> None:
        """Enable dropout."""
        ...

    def eval(self) -> None:
        """Disable dropout."""
        ...
