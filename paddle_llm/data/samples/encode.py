"""Encodes a conversation as one sample: token ids and shifted labels, truncated if necessary.

`src_length`, `max_length` and `tgt_length` have PaddleNLP's meaning (llm/utils/data.py): maximum numbers of tokens before
an answer, of the whole sample, and of an answer with its end. Questions are truncated on the left, answers on the
right; a truncated answer has no EOS. Rounds that do not fit are dropped, the oldest first.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from paddle_llm.core.artifacts import IGNORE_INDEX
from paddle_llm.core.errors import UserError
from paddle_llm.data.chat.jinja_template import JinjaTemplate
from paddle_llm.data.chat.notes import concerns_prompt, has_tool_calls, notes_for_built_in
from paddle_llm.data.chat.renderer import RowRejected
from paddle_llm.data.chat.span_tokens import encode_with_spans
from paddle_llm.data.chat.special_text import special_pattern
from paddle_llm.data.chat.templates import EOS, Piece, RenderedRound, Template
from paddle_llm.data.instructions.conversation import ASSISTANT, Conversation, Turn, calls_as_text
from paddle_llm.data.samples.pieces import PieceEncoder
from paddle_llm.data.tokenizers.text_codec import TextCodec

LOSS_ON = ("answers", "last", "all")
SPECIAL_TEXT_AS = ("text", "tokens")


class PromptTooLong(Exception):
    """The template's text around a question is longer than `src_length`; the message gives its length."""


@dataclass
class EncodedSample:
    """One sample of L tokens.

    Attributes:
        input_ids: Token ids, int32 [L].
        labels: Targets, int32 [L]: labels[i] follows input_ids[i]; IGNORE_INDEX if it has no loss.
        prefix: Number of positions that see each other in a prefix LM; else 0.
        cut_question: Whether a question was truncated.
        cut_answer: Whether an answer was truncated.
        dropped_rounds: Number of oldest rounds that were dropped.
        notes: Kinds of notes about the row (data/chat/notes.py).
    """

    input_ids: np.ndarray
    labels: np.ndarray
    prefix: int = 0
    cut_question: bool = False
    cut_answer: bool = False
    dropped_rounds: int = 0
    notes: tuple[str, ...] = ()

    @property
    def answer_tokens(self) -> int:
        """Number of targets with loss."""
        return int((self.labels != IGNORE_INDEX).sum())


@dataclass
class _Round:
    """One encoded round.

    Attributes:
        prompt: Ids before the answer.
        answer: Ids of the answer, including its end.
        has_loss: Whether the answer is trained.
        trained_end: Id that is trained after the answer although another token follows; None if there is none.
        cut_question: Whether a question was truncated.
        cut_answer: Whether the answer was truncated.
    """

    prompt: list[int]
    answer: list[int]
    has_loss: bool
    trained_end: int | None
    cut_question: bool
    cut_answer: bool = field(default=False)

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


class InstructionEncoder:
    """Encodes conversations for training (by calling it) and prompts for generation (`prompt`).

    Args:
        codec: Codec of the tokenizer.
        template: Chat template.
        max_length: Maximum number of tokens of a sample, including the last target: its input is at most one shorter.
        src_length: Maximum number of tokens before an answer; None: max_length - 1.
        tgt_length: Maximum number of tokens of an answer with its end; None: no limit besides max_length.
        loss_on: "answers", "last" (only the last answer) or "all" tokens. `Turn.has_loss` takes precedence.
        special_text_as: How special-token text in content is encoded: as "text", or as special "tokens".

    Raises:
        UserError: If the lengths leave no tokens for an answer, an option is unknown, or the tokenizer lacks a special
            token of the template.
    """

    def __init__(
        self,
        codec: TextCodec,
        template: Template | JinjaTemplate,
        *,
        max_length: int,
        src_length: int | None = None,
        tgt_length: int | None = None,
        loss_on: str = "answers",
        special_text_as: str = "text",
    ) -> None:
        if special_text_as not in SPECIAL_TEXT_AS:
            raise UserError(
                f"--special_tokens_in_content {special_text_as}: unknown. Use {' or '.join(SPECIAL_TEXT_AS)}."
            )
        if loss_on not in LOSS_ON:
            raise UserError(f"--loss_on {loss_on}: unknown. Use one of {', '.join(LOSS_ON)}.")
        if max_length < 2:
            raise UserError(f"--max_length {max_length}: too small. Use at least 2.")
        if src_length is not None and not 0 < src_length < max_length:
            raise UserError(
                f"--src_length {src_length}: outside 1 to {max_length - 1}. It must leave tokens for an answer within "
                f"--max_length {max_length}."
            )
        if codec.prefix_lm and loss_on == "all":
            raise UserError(
                "--loss_on all: not possible with ChatGLM-6B, whose context is bidirectional. Use answers or last."
            )
        self.codec, self.template, self.loss_on = codec, template, loss_on
        self.max_length, self.tgt_length = max_length, tgt_length
        self.src_length = max_length - 1 if src_length is None else src_length
        protect = special_text_as == "text"
        self.pieces = PieceEncoder(codec, template.name, protect)
        specials = template.specials if isinstance(template, JinjaTemplate) else special_pattern(codec.specials)
        self._specials = specials
        self.stop_ids = [self.pieces.special_id(piece) for piece in template.stops]

    def __call__(self, conversation: Conversation) -> EncodedSample:
        """Encode a conversation for training.

        Raises:
            PromptTooLong: If the template's text around the questions exceeds src_length.
            RowRejected: If the template cannot render the conversation.
        """
        rounds, notes, dropped = self._fitting_rounds(conversation)
        ids, has_loss, ends = self._concatenate(rounds)
        if self.loss_on == "all":
            has_loss = [True] * len(ids)
        full = np.array(ids, np.int32)
        labels = np.where(has_loss, full, IGNORE_INDEX)[1:].astype(np.int32)
        for position, token in ends:
            labels[position] = token
        return EncodedSample(
            full[:-1],
            labels,
            sum(len(r) for r in rounds[:-1]) + len(rounds[-1].prompt) - 1 if self.codec.prefix_lm else 0,
            any(r.cut_question for r in rounds),
            any(r.cut_answer for r in rounds),
            dropped,
            notes,
        )

    def prompt(self, conversation: Conversation) -> EncodedSample:
        """Encode the text before the last answer as in training, without labels.

        It has at most src_length tokens; the oldest rounds are dropped first.
        """
        shortened = conversation.prompt()
        dropped = 0
        while True:
            rounds, notes = self._rounds(shortened)
            ids = [i for r in rounds for i in (*r.prompt, *r.answer)]
            shorter = shortened.without_first_round()
            if len(ids) <= self.src_length or shorter is shortened:
                break
            shortened, dropped = shorter, dropped + 1
        prefix = len(ids) - 1 if self.codec.prefix_lm else 0
        cut = any(r.cut_question for r in rounds)
        prompt_notes = tuple(filter(concerns_prompt, notes))
        return EncodedSample(np.array(ids, np.int32), np.empty(0, np.int32), prefix, cut, False, dropped, prompt_notes)

    def _fitting_rounds(self, conversation: Conversation) -> tuple[list[_Round], tuple[str, ...], int]:
        """Return the newest rounds that fit, notes, and the number of dropped rounds; truncate the last answer."""
        dropped = 0
        while True:
            rounds, notes = self._rounds(conversation)
            shorter = conversation.without_first_round()
            if sum(map(len, rounds)) <= self.max_length or shorter is conversation:
                break
            dropped += len(conversation.rounds()) - len(shorter.rounds())
            conversation = shorter
        answer_length = self.max_length - sum(map(len, rounds)) + len(rounds[-1].answer)
        self._cut_answer(rounds[-1], answer_length)
        return [r for r in rounds if len(r)], notes, dropped

    def _rounds(self, conversation: Conversation) -> tuple[list[_Round], tuple[str, ...]]:
        """Return the encoded rounds of a conversation, and notes."""
        if isinstance(self.template, JinjaTemplate):
            return self._jinja_rounds(self.template, conversation)
        conversation = calls_as_text(conversation)
        if has_tool_calls(conversation):
            raise RowRejected(f"the template {self.template.name} does not write tool_calls", conversation.where)
        rendered = self.template.render(conversation)
        encoded = [self._encode_round(part, number, rendered) for number, part in enumerate(rendered)]
        for number, part in enumerate(rendered):
            if len(encoded[number].prompt) > self.src_length:
                runs = self.pieces.encode(part.prompt, self._follows_text(rendered, number), separate_questions=True)
                self._cut_question(encoded[number], runs, number == len(rendered) - 1)
        return encoded, tuple(notes_for_built_in(conversation, self._specials, self.pieces.protect))

    def _jinja_rounds(
        self, template: JinjaTemplate, conversation: Conversation
    ) -> tuple[list[_Round], tuple[str, ...]]:
        """Return the rounds of a Jinja template, whose text is tokenized as a whole and split at its answers."""
        rendered = template.render(conversation, self.pieces.protect)
        spans = [(answer.begin, answer.end) for answer in rendered.answers]
        ids, bounds = encode_with_spans(self.codec, rendered.text, rendered.cuts, spans)
        turns = conversation.turns
        last_turn = max((n for n, turn in enumerate(turns) if turn.role == ASSISTANT), default=-1)
        encoded: list[_Round] = []
        at = 0
        for number, answer in enumerate(rendered.answers):
            begin, end = max(bounds[number][0], at), max(bounds[number][1], at)
            is_last = number == len(rendered.answers) - 1 and not rendered.is_open
            eos = None if answer.is_ended else self.pieces.special_id(Piece(EOS, is_special=True))
            answer_ids = [*ids[begin:end], *([eos] if is_last and eos is not None else [])]
            has_loss = self._has_loss(turns[answer.message], answer.message == last_turn)
            encoded.append(_Round(ids[at:begin], answer_ids, has_loss, None if is_last else eos, False))
            at = end
        if rendered.is_open or not encoded:
            encoded.append(_Round(ids[at:], [], False, None, False))
        encoded[-1].prompt += self.codec.prefix_lm or ()
        if self.tgt_length is not None:
            for part in encoded:
                self._cut_answer(part, self.tgt_length)
        if any(len(part.prompt) > self.src_length for part in encoded):
            self._cut_jinja_prompts(template, conversation, encoded)
        return encoded, rendered.notes

    def _cut_jinja_prompts(self, template: JinjaTemplate, conversation: Conversation, encoded: list[_Round]) -> None:
        prompts = template.truncatable_prompts(conversation)
        if prompts is None or len(prompts) != len(encoded):
            longest = max(len(part.prompt) for part in encoded)
            raise PromptTooLong(f"{longest} tokens before an answer exceed --src_length {self.src_length}")
        for number, (part, prompt) in enumerate(zip(encoded, prompts, strict=True)):
            if len(part.prompt) > self.src_length:
                runs = self.pieces.encode(prompt, number > 0, separate_questions=True)
                self._cut_question(part, runs, number == len(encoded) - 1)

    def _encode_round(self, part: RenderedRound, number: int, rendered: list[RenderedRound]) -> _Round:
        last = number == len(rendered) - 1
        prompt = [i for ids, _ in self.pieces.encode(part.prompt, self._follows_text(rendered, number)) for i in ids]
        if last and self.codec.prefix_lm:
            prompt += self.codec.prefix_lm
        answer: list[int] = []
        if part.answer is not None:
            runs = self.pieces.encode(part.answer, self.pieces.ends_in_text(part.prompt))
            answer = [i for ids, _ in runs for i in ids]
        end = self.pieces.special_id(part.trained_end) if part.trained_end else None
        encoded = _Round(prompt, answer, self._has_loss(part.turn, last), end, False)
        if self.tgt_length is not None:
            self._cut_answer(encoded, self.tgt_length)
        return encoded

    def _has_loss(self, turn: Turn | None, last: bool) -> bool:
        if self.codec.prefix_lm and not last:
            return False
        if turn is not None and turn.has_loss is not None:
            return turn.has_loss
        return last or self.loss_on != "last"

    def _cut_question(self, encoded: _Round, runs: list[tuple[list[int], bool]], is_last: bool) -> None:
        """Truncate the questions of a round on the left and keep the template's text around them.

        Args:
            encoded: Round whose prompt is replaced.
            runs: (ids, whether they are a question) of the text before the answer.
            is_last: Whether it is the last round.

        Raises:
            PromptTooLong: If the template's text alone exceeds src_length.
        """
        specials = list(self.codec.prefix_lm or ()) if is_last else []
        excess = sum(len(ids) for ids, _ in runs) + len(specials) - self.src_length
        prompt: list[int] = []
        for ids, is_question in runs:
            cut = min(max(excess, 0), len(ids)) if is_question else 0
            excess -= cut
            prompt += ids[cut:]
        if excess > 0:
            around = self.src_length + excess
            raise PromptTooLong(
                f"the template's {around} tokens around the question exceed --src_length {self.src_length}"
            )
        encoded.prompt, encoded.cut_question = prompt + specials, True

    @staticmethod
    def _cut_answer(encoded: _Round, length: int) -> None:
        if len(encoded.answer) > length:
            encoded.answer, encoded.cut_answer, encoded.trained_end = encoded.answer[:length], True, None

    def _follows_text(self, rendered: list[RenderedRound], number: int) -> bool:
        return number > 0 and self.pieces.ends_in_text(rendered[number - 1].answer or [])

    @staticmethod
    def _concatenate(rounds: list[_Round]) -> tuple[list[int], list[bool], list[tuple[int, int]]]:
        """Return all ids, whether each has a loss as target, and (position, target) of trained ends without a token."""
        ids: list[int] = []
        has_loss: list[bool] = []
        ends: list[tuple[int, int]] = []
        for part in rounds:
            ids += part.prompt + part.answer
            has_loss += [False] * len(part.prompt) + [part.has_loss] * len(part.answer)
            if part.trained_end is not None and part.has_loss and part.answer:
                ends.append((len(ids) - 1, part.trained_end))
        return ids, has_loss, ends
