"""Jinja forms of the built-in templates (templates.py), for servers: they render the same text with special tokens.

The renderer provides `{{ bos_token }}` and `{{ eos_token }}`. Placeholders in «» are filled in here: «prefix», the
special tokens that the tokenizer puts before a text; «suffix», those that ChatGLM-6B's tokenizer puts after one;
«blank», a blank if the tokenizer puts one before a text that training tokenizes separately.
"""

from paddle_llm.data.tokenizers.text_codec import TextCodec

_TURNS = (
    "{{ raise_exception('user and assistant must take turns, the user first; a system message only before them') }}"
)
_NO_TOOLS = "{{ raise_exception('this template has no tool messages') }}"
_SYSTEM = "{% set system = messages[0]['content'] if messages and messages[0]['role'] == 'system' else '' %}"
_COUNT = "{% set rounds = messages | selectattr('role', 'equalto', 'user') | list | length %}"


def _loop(user: str, assistant: str, tool: str = _NO_TOOLS) -> str:
    """Return a loop over all messages; `first` and `number` of the round are set for a user's message."""
    return (
        "{% set state = namespace(number=0, last='system') %}"
        "{% for message in messages %}"
        "{% set role = message['role'] %}{% set content = message['content'] %}"
        "{% set number = state.number %}{% set first = number == 0 %}"
        "{% if role == 'system' and loop.first %}"
        "{% elif role == 'user' and state.last in ('system', 'assistant') %}"
        + user
        + "{% set state.number = state.number + 1 %}"
        + "{% elif role == 'tool' and state.last in ('assistant', 'tool') %}"
        + tool
        + "{% elif role == 'assistant' and state.last in ('user', 'tool') %}"
        + assistant
        + "{% else %}"
        + _TURNS
        + "{% endif %}{% set state.last = role %}{% endfor %}"
    )


_EOS = "{{ eos_token }}"
_EOS_IF_LAST = "{% if loop.last %}{{ eos_token }}{% endif %}"
_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
)


def _generation(text: str) -> str:
    return "{% if add_generation_prompt %}" + text + "{% endif %}" if text else ""


def _default() -> str:
    user = "{% if first %}«prefix»{% if system %}{{ system + '\\n\\n' }}{% endif %}{% endif %}{{ content }}"
    return _SYSTEM + _loop(user, "«blank»{{ content }}" + _EOS) + _generation("«suffix»")


def _llama2() -> str:
    head = "{{ bos_token }}[INST] "
    with_system = "{{ '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + content.rstrip() }}"
    user = head + "{% if first and system %}" + with_system + "{% else %}{{ content.strip() }}{% endif %} [/INST]"
    return _SYSTEM + _loop(user, "{{ ' ' + content.strip() + ' ' }}" + _EOS)


def _llama3() -> str:
    def head(role: str) -> str:
        return "{{ '<|start_header_id|>" + role + "<|end_header_id|>\\n\\n' }}"

    system = "{% if system %}" + head("system") + "{{ system.strip() }}<|eot_id|>{% endif %}"
    user = "{% if first %}<|begin_of_text|>" + system + "{% endif %}" + head("user") + "{{ content.strip() }}<|eot_id|>"
    assistant = head("assistant") + "{{ content.strip() }}<|eot_id|>"
    return _SYSTEM + _loop(user, assistant) + _generation(head("assistant"))


def _chatglm() -> str:
    system = "{% if first and system %}{{ system + '\\n' }}{% endif %}"
    several = "{{ '[Round ' ~ number ~ ']\\n问：' + content + '\\n答：' }}"
    user = (
        "{% if not first %}{{ '\\n' }}{% endif %}"
        + system
        + "{% if rounds == 1 %}{{ content }}{% else %}"
        + several
        + "{% endif %}"
    )
    return _SYSTEM + _COUNT + _loop(user, "«blank»{{ content }}" + _EOS_IF_LAST) + _generation("«suffix»")


def _chatglm2() -> str:
    system = "{% if first and system %}{{ system + '\\n\\n' }}{% endif %}"
    start = "{% if first %}«prefix»{% else %}{{ '\\n\\n' }}{% endif %}"
    user = start + system + "{{ '[Round ' ~ (number + 1) ~ ']\\n\\n问：' + content + '\\n\\n答：' }}"
    return _SYSTEM + _loop(user, "«blank»{{ content }}" + _EOS_IF_LAST)


def _chatglm3() -> str:
    def turn(mark: str, text: str) -> str:
        return f"<|{mark}|>" + "{{ '\\n«blank»' + " + text + " }}"

    system = "{% if system %}" + turn("system", "system") + "{% endif %}"
    user = "{% if first %}«prefix»" + system + "{% endif %}" + turn("user", "content")
    answer = turn("assistant", "content") + _EOS_IF_LAST
    return _SYSTEM + _loop(user, answer, turn("observation", "content")) + _generation("<|assistant|>")


def _bloomz() -> str:
    user = "{% if first %}«prefix»{% if system %}{{ system + '\\n' }}{% endif %}{% endif %}{{ content }}"
    return _SYSTEM + _loop(user, "{{ ' ' + content }}" + _EOS)


def _alpaca() -> str:
    preamble = "{{ system + '\\n\\n' if system else '" + _ALPACA.replace("\n", "\\n") + "' }}"
    start = "{% if first %}«prefix»" + preamble + "{% else %}{{ '\\n\\n' }}{% endif %}"
    return _SYSTEM + _loop(
        start + "{{ '### Instruction:\\n' + content + '\\n\\n### Response:' }}", "{{ content }}" + _EOS
    )


def _chatml() -> str:
    def turn(role: str, text: str) -> str:
        return "{{ '<|im_start|>" + role + "\\n' + " + text + " + '<|im_end|>' }}"

    system = "{% if first and system %}" + turn("system", "system") + "{{ '\\n' }}{% endif %}"
    between = "{% if state.last == 'assistant' %}{{ '\\n' }}{% endif %}"
    user = between + system + turn("user", "content") + "{{ '\\n' }}"
    tool = between + turn("tool", "content") + "{{ '\\n' }}"
    return _SYSTEM + _loop(user, turn("assistant", "content"), tool) + _generation("{{ '<|im_start|>assistant\\n' }}")


_FORMS = {
    "default": _default,
    "llama2": _llama2,
    "llama3": _llama3,
    "chatglm": _chatglm,
    "chatglm2": _chatglm2,
    "chatglm3": _chatglm3,
    "bloomz": _bloomz,
    "alpaca": _alpaca,
    "chatml": _chatml,
}


def jinja_form(name: str, *, prefix: str = "", suffix: str = "", blank: bool = False) -> str:
    """Return a built-in template as Jinja, with the variables messages, add_generation_prompt, bos_token and eos_token.

    Args:
        name: Name of the template.
        prefix: Special tokens that the tokenizer puts before a text.
        suffix: Special tokens that the tokenizer puts after the prompt.
        blank: Whether the tokenizer puts a blank before a text, as sentencepiece does.
    """
    text = _FORMS[name]()
    text = text.replace("'\\n«blank»'", "'\\n '" if blank else "'\\n'")
    text = text.replace("«blank»", "{{ ' ' }}" if blank else "")
    return text.replace("«prefix»", prefix).replace("«suffix»", suffix)


def built_in_as_jinja(name: str, codec: TextCodec) -> str:
    """Return a built-in template as Jinja for a tokenizer, so that transformers renders the template's text."""
    blank = codec.encode("a") != codec.encode_continuation("a")
    prefix = "{{ bos_token }}" if codec.prefix_ids == [codec.bos_id] else codec.show(codec.prefix_ids)
    suffix = codec.show(codec.prefix_lm) if codec.prefix_lm else ""
    return jinja_form(name, prefix=prefix, suffix=suffix, blank=blank)
