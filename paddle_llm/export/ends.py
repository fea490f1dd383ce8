"""What ends a text of a model, wherever that is written: its configurations, its tokenizer, the template of its training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paddle_llm.core.errors import UserError

if TYPE_CHECKING:
    from paddle_llm.export.source.source import Source


def end_ids(source: Source) -> list[int]:
    """Every id at which `paddle-llm generate` would end a text of the source, each once, those of the vocabulary alone."""
    found = [*ids_in(source.generation.get("eos_token_id")), *ids_in(source.config.eos_token_id), *_of_words(source)]
    return [number for number in dict.fromkeys(found) if 0 <= number < source.facts.vocab_size]


def ids_in(value: Any) -> list[int]:
    """Of an entry that may hold a number, several, or none."""
    return [number for number in (value if isinstance(value, list) else [value]) if isinstance(number, int)]


def _of_words(source: Source) -> list[int]:
    """What ends an answer in the training's template, and the tokenizer's own end."""
    from paddle_llm.data.chat.jinja_templates import AUTO, choose_template
    from paddle_llm.data.samples.encode import InstructionEncoder
    from paddle_llm.data.tokenizers.text_codec import open_codec

    if source.tokenizer is None:
        return []
    try:
        codec = open_codec(str(source.tokenizer))
        found = [] if codec.eos_id is None else [codec.eos_id]
        if source.trained is not None or source.template is not None:
            name = AUTO if source.trained is not None else source.template
            trained = str(source.trained) if source.trained is not None else None
            template = choose_template(name, codec, str(source.tokenizer), trained=trained).template
            found = [*InstructionEncoder(codec, template, max_length=2).stop_ids, *found]
        return found
    except UserError:  # a tokenizer or a template that is not here any more: whoever writes them says so
        return []
