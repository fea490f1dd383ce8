"""A chat template as `tokenizer_config.json` carries it (Jinja), and which template a run uses.

The answers are found by rendering the conversation up to each of them: what a longer rendering adds is the answer. A template
that marks them itself ({% generation %}) is believed.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, replace
from typing import Any

from paddle_llm.config.errors import UserError
from paddle_llm.config.instruction_paths import near
from paddle_llm.data.instruction_formats import ASSISTANT, Conversation, Round, Turn
from paddle_llm.data.jinja_sandbox import GENERATION_BEGINS, GENERATION_ENDS, compile_template, render
from paddle_llm.data.templates import TEMPLATES, Piece, Spoken, Template
from paddle_llm.data.text_codec import TextCodec
from paddle_llm.data.tokenizer import CONFIG_FILE

AUTO, JINJA = "auto", "jinja"
TEMPLATE_FILE = "chat_template.jinja"  # beside a tokenizer
_HOLE = "\ue0f2question\ue0f2"
_MARKS = re.compile(f"{GENERATION_BEGINS}(.*?){GENERATION_ENDS}", re.DOTALL)


class JinjaTemplate:
    """A Jinja chat template.

    Args:
        source: the template.
        values: what it may name beside the messages: bos_token, eos_token ...
        codec: whose special tokens end an answer.
        where: the file, for messages.
    """

    name = JINJA

    def __init__(self, source: str, values: dict[str, Any], codec: TextCodec, where: str):
        self._template = compile_template(source, where)
        self._values, self._codec, self._where = values, codec, where
        self._marks_answers = re.search(r"\{%-?\s*generation\s*-?%\}", source) is not None

    @property
    def stops(self) -> tuple[Piece, ...]:
        """What a rendered answer ends with; EOS where that is no special token."""
        asked = (Turn("user", "a"), Turn(ASSISTANT, "b"))
        _, spans = self._render(Conversation(asked))
        text, (begin, end) = _, spans[-1]
        marks = [mark for mark in self._codec.specials if text[begin:end].endswith(mark)]
        return (Piece(marks[0] if marks else "<eos>", mark=True),)

    def speak(self, conversation: Conversation) -> list[Spoken]:
        """Every round as pieces.

        Raises:
            UserError: the template refuses the conversation, or writes what was said differently when more follows.
        """
        text, spans = self._render(conversation)
        spoken, at = [], 0
        for part, (begin, end) in zip(conversation.rounds(), spans, strict=True):
            answer = None if part.answer is None else [Piece(text[begin:end], spelled=True)]
            spoken.append(Spoken([Piece(text[at:begin], spelled=True)], answer, part.answer))
            at = end
        return spoken

    def speak_cuttable(self, conversation: Conversation) -> list[Spoken]:
        """The same, with the questions in pieces of their own: tokenised apart, which is done only where one is too long."""
        holes = tuple(
            t if t.role in ("system", ASSISTANT) else replace(t, content=_HOLE, input="") for t in conversation.turns
        )
        made = []
        whole, hollow = self.speak(conversation), self.speak(replace(conversation, turns=holes))
        for full, spoken, part in zip(whole, hollow, conversation.rounds(), strict=True):
            texts = spoken.prompt[0].text.split(_HOLE)
            prompt = [Piece(texts[0], spelled=True)]
            for turn, text in zip(part.asked, texts[1:], strict=False):
                content = (
                    turn.text if turn.text in full.prompt[0].text else turn.text.strip()
                )  # some templates strip it
                prompt += [Piece(content, question=True), Piece(text, spelled=True)]
            made.append(replace(full, prompt=prompt))
        return made

    def _render(self, conversation: Conversation) -> tuple[str, list[tuple[int, int]]]:
        """The whole text, and from where to where each answer stands in it (for one to be generated: its end, twice)."""
        messages = [{"role": turn.role, "content": turn.text} for turn in conversation.turns]
        open_end = not messages or messages[-1]["role"] != ASSISTANT
        whole = self._text(messages, open_end, conversation)
        if self._marks_answers:
            text, spans = _unmark(whole)
        else:
            text, spans = whole, self._answers(messages, whole, conversation)
        rounds: list[Round] = conversation.rounds()
        if len(spans) != sum(part.answer is not None for part in rounds):
            raise UserError(
                f"{self._where}: marks {len(spans)} answers in the {len(rounds)} rounds of {conversation.where}."
            )
        return text, [*spans, *([(len(text),) * 2] if open_end else [])]  # type: ignore[list-item]

    def _text(self, messages: list[dict[str, str]], add_generation_prompt: bool, conversation: Conversation) -> str:
        try:
            return render(
                self._template, {"messages": messages, "add_generation_prompt": add_generation_prompt, **self._values}
            )
        except UserError as error:
            raise UserError(f"{conversation.where}: the chat template of {self._where} refuses it: {error}") from error

    def _answers(self, messages: list[dict[str, str]], whole: str, conversation: Conversation) -> list[tuple[int, int]]:
        spans = []
        for number, message in enumerate(messages):
            if message["role"] != ASSISTANT:
                continue
            before = self._text(messages[:number], True, conversation)
            upto = self._text(messages[: number + 1], False, conversation)
            if not upto.startswith(before) or not whole.startswith(upto.rstrip()):
                raise UserError(
                    f"{conversation.where}: the chat template of {self._where} writes earlier turns differently when more follow, so "
                    "that its answers cannot be told. Put {% generation %} ... {% endgeneration %} around the assistant's text in "
                    f"it, or choose another with --chat_template ({', '.join(TEMPLATES)})."
                )
            spans.append((len(before), len(before) + self._learnt(upto[len(before) :], message["content"])))
        return spans

    def _learnt(self, text: str, content: str) -> int:
        """How much of what an answer adds is the model's to write: up to the first special token behind the content."""
        at = max(text.find(content.strip()), 0) + len(content.strip())
        ends = [text.find(mark, at) + len(mark) for mark in self._codec.specials if mark in text[at:]]
        return min(ends) if ends else len(text)


def _unmark(text: str) -> tuple[str, list[tuple[int, int]]]:
    spans, parts, at, length = [], [], 0, 0
    for match in _MARKS.finditer(text):
        parts += [text[at : match.start()], match[1]]
        length += match.start() - at
        spans.append((length, length + len(match[1])))
        length, at = length + len(match[1]), match.end()
    return "".join([*parts, text[at:]]), spans


@dataclass(frozen=True)
class Chosen:
    """A template and why it was taken."""

    template: Template | JinjaTemplate
    why: str


def choose_template(name: str | None, codec: TextCodec, folder: str | None) -> Chosen:
    """The template of a run.

    Args:
        name: of a built-in one; `jinja`: the tokenizer's own; a path: a file with Jinja in it; auto or None: the tokenizer's own
            where it has one, else default.
        folder: the tokenizer's.

    Raises:
        UserError: no such template, or the tokenizer lacks a special token that it needs.
    """
    if name in TEMPLATES:
        template = TEMPLATES[name]
        _require_marks(template, codec)
        return Chosen(template, "as asked for")
    config = _tokenizer_config(folder)
    if name in (None, AUTO, JINJA):
        source = own_template(folder)
        if source is not None:
            return Chosen(
                JinjaTemplate(source, _values(config), codec, f"{folder}"), "the tokenizer's own chat template"
            )
        if name == JINJA:
            raise UserError(f"--chat_template jinja: {folder} has no chat_template in its {CONFIG_FILE}.")
        return Chosen(TEMPLATES["default"], "the tokenizer brings no chat template")
    if os.path.isfile(name):
        with open(name, encoding="utf-8") as stream:
            return Chosen(JinjaTemplate(stream.read(), _values(config), codec, name), "as asked for")
    raise _unknown(name)


def _tokenizer_config(folder: str | None) -> dict[str, Any]:
    path = os.path.join(folder or "", CONFIG_FILE)
    if not folder or not os.path.isfile(path):
        return {}
    with open(path, encoding="utf-8") as stream:
        return json.load(stream)


def own_template(folder: str | None) -> str | None:
    """The template that a tokenizer brings, as transformers (4.50 and later) finds it: a file of its own before the one in
    tokenizer_config.json; None where it brings none."""
    file = os.path.join(folder or "", TEMPLATE_FILE)
    if folder and os.path.isfile(file):
        with open(file, encoding="utf-8") as stream:
            return stream.read()
    own = _tokenizer_config(folder).get("chat_template")
    if isinstance(own, list):  # several, by name
        own = next((entry.get("template") for entry in own if entry.get("name") == "default"), None)
    return own if isinstance(own, str) else None


def names_a_file(name: str | None) -> bool:
    """Whether a --chat_template is the path of a file with a template in it."""
    return name is not None and name not in (AUTO, JINJA, *TEMPLATES)


def check_template(name: str) -> None:
    """Raise UserError where a --chat_template is no template's name and no file; needs no tokenizer."""
    if names_a_file(name) and not os.path.isfile(name):
        raise _unknown(name)


def _unknown(name: str) -> UserError:
    known = (AUTO, JINJA, *TEMPLATES)
    return UserError(f"--chat_template {name}: is none of {', '.join(known)}, and no file.{near(name, *known)}")


def _values(config: dict[str, Any]) -> dict[str, Any]:
    tokens = {key: value for key, value in config.items() if key.endswith("_token") and not key.startswith("add_")}
    return {key: value.get("content") if isinstance(value, dict) else value for key, value in tokens.items()}


def _require_marks(template: Template, codec: TextCodec) -> None:
    turns = (Turn("system", "s"), Turn("user", "a"), Turn(ASSISTANT, "b"))
    needed = {p.text for s in template.speak(Conversation(turns)) for p in [*s.prompt, *(s.answer or [])] if p.mark}
    lacking = sorted(
        name for name in needed if not name.startswith(("<prefix>", "<bos>", "<eos>")) and codec.mark(name) is None
    )
    if "<eos>" in needed and codec.eos_id is None:
        lacking.append("an end of sentence")
    if "<bos>" in needed and codec.bos_id is None:
        lacking.append("a beginning of sentence")
    if lacking:
        raise UserError(
            f"--chat_template {template.name}: needs {', '.join(lacking)}, which the tokenizer {codec.name} does not have. Choose the "
            "template that the model was trained with, or `default`."
        )
