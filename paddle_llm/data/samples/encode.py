"""From a conversation to one sample: token ids, shifted labels, and what had to be cut.

`src_length`, `max_length` and `tgt_length` mean what they mean in PaddleNLP (llm/utils/data.py): tokens before an answer, tokens
of the whole sample, tokens of an answer with its end. A question is cut from the left, an answer from the right; an answer that
is cut is not ended by EOS; rounds that do not fit are left out, the oldest first.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from paddle_llm.core.artifacts import IGNORE_INDEX
from paddle_llm.core.errors import UserError
from paddle_llm.data.chat.jinja_templates import JinjaTemplate
from paddle_llm.data.chat.notes import has_tool_calls, is_about_the_prompt, notes_of_built_in
from paddle_llm.data.chat.rendering import RowRefused
from paddle_llm.data.chat.special_text import pattern_of
from paddle_llm.data.chat.templates import BOS, EOS, PREFIX, Piece, Spoken, Template
from paddle_llm.data.chat.tokens import encode_rendered
from paddle_llm.data.instructions.conversation import calls_as_text
from paddle_llm.data.instructions.formats import ASSISTANT, Conversation, Turn
from paddle_llm.data.tokenizers.text_codec import TextCodec

LOSS_ON = ("answers", "last", "all")
SPECIAL_TEXT_AS = ("text", "tokens")


class DoesNotFit(Exception):
    """What stands around the question alone is longer than `src_length`; the message says how long."""


@dataclass
class EncodedSample:
    """One sample of L tokens.

    input_ids: int32 [L]; labels: int32 [L], labels[i] is the target behind input_ids[i], -100 where there is no loss;
    prefix: for a prefix LM the number of positions that see each other, else 0; cut_question, cut_answer: whether one was;
    dropped_rounds: oldest rounds left out; notes: kinds of what is to be reported (data/chat/notes.py).
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
        """Targets that bear loss."""
        return int((self.labels != IGNORE_INDEX).sum())


@dataclass
class _Round:
    prompt: list[int]
    answer: list[int]
    bears: bool
    learnt_end: int | None
    cut_question: bool
    cut_answer: bool = field(default=False)

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


class InstructionEncoder:
    """Encodes conversations for training (call it) and prompts for generation (`prompt`).

    Args:
        max_length: most tokens of a sample, the last target with them: a row that the model sees is at most one shorter.
        src_length: most tokens before an answer; None: max_length - 1.
        tgt_length: most tokens of an answer with its end; None: what is left.
        loss_on: answers, the last answer only, or all tokens. What a turn says itself (`Turn.bears_loss`) goes first.
        special_text_as: Whether special-token text in content stays text ("text") or becomes special tokens ("tokens").

    Raises:
        UserError: lengths that leave no room, an unknown loss_on.
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
    ):
        if special_text_as not in SPECIAL_TEXT_AS:
            raise UserError(f"--special_tokens_in_content {special_text_as}: is none of {', '.join(SPECIAL_TEXT_AS)}.")
        if loss_on not in LOSS_ON:
            raise UserError(f"--loss_on {loss_on}: is none of {', '.join(LOSS_ON)}.")
        if max_length < 2:
            raise UserError(f"--max_length {max_length}: a sample needs at least 2 tokens.")
        if src_length is not None and not 0 < src_length < max_length:
            raise UserError(f"--src_length {src_length} leaves no room for an answer within --max_length {max_length}.")
        if codec.prefix_lm and loss_on == "all":
            raise UserError("--loss_on all: ChatGLM-6B reads its context both ways, so only the answer can be learnt.")
        self.codec, self.template, self.loss_on = codec, template, loss_on
        self.max_length, self.tgt_length = max_length, tgt_length
        self.src_length = max_length - 1 if src_length is None else src_length
        self.protects = special_text_as == "text"
        specials = template.specials if isinstance(template, JinjaTemplate) else pattern_of(codec.specials)
        self._specials = specials
        self.stop_ids = [self._mark(piece) for piece in template.stops]

    def __call__(self, conversation: Conversation) -> EncodedSample:
        """Encode for training.

        Raises:
            DoesNotFit: src_length has no room for the template around an empty question.
            RowRefused: If the template cannot write the conversation.
        """
        rounds, notes, dropped = self._fitting_rounds(conversation)
        ids, bears, ends = self._lay_out(rounds)
        if self.loss_on == "all":
            bears = [True] * len(ids)
        full = np.array(ids, np.int32)
        labels = np.where(bears, full, IGNORE_INDEX)[1:].astype(np.int32)
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
        """What stands before the last answer, as in training, at most src_length tokens (rounds are left out first); no labels."""
        asked = conversation.prompt()
        dropped = 0
        while True:
            rounds, notes = self._rounds(asked)
            ids = [i for r in rounds for i in (*r.prompt, *r.answer)]
            shorter = asked.without_first_round()
            if len(ids) <= self.src_length or shorter is asked:
                break
            asked, dropped = shorter, dropped + 1
        prefix = len(ids) - 1 if self.codec.prefix_lm else 0
        cut = any(r.cut_question for r in rounds)
        about = tuple(filter(is_about_the_prompt, notes))
        return EncodedSample(np.array(ids, np.int32), np.empty(0, np.int32), prefix, cut, False, dropped, about)

    def _fitting_rounds(self, conversation: Conversation) -> tuple[list[_Round], tuple[str, ...], int]:
        """The newest rounds that fit, what is to be reported, and how many older rounds do not fit; the last one is cut where it
        must be."""
        dropped = 0
        while True:
            rounds, notes = self._rounds(conversation)
            shorter = conversation.without_first_round()
            if sum(map(len, rounds)) <= self.max_length or shorter is conversation:
                break
            dropped += len(conversation.rounds()) - len(shorter.rounds())
            conversation = shorter
        room = self.max_length - sum(map(len, rounds)) + len(rounds[-1].answer)
        self._cut_answer(rounds[-1], room)
        return [r for r in rounds if len(r)], notes, dropped

    def _rounds(self, conversation: Conversation) -> tuple[list[_Round], tuple[str, ...]]:
        """The rounds of a conversation, and what is to be reported about it."""
        if isinstance(self.template, JinjaTemplate):
            return self._written_rounds(self.template, conversation)
        conversation = calls_as_text(conversation)
        if has_tool_calls(conversation):
            raise RowRefused(f"the template {self.template.name} does not write tool_calls", conversation.where)
        spoken = self.template.speak(conversation)
        made = [self._encode_round(part, number, spoken) for number, part in enumerate(spoken)]
        if any(len(r.prompt) > self.src_length for r in made):
            for number, part in enumerate(spoken):
                if len(made[number].prompt) > self.src_length:
                    pieces = self._pieces(part.prompt, self._behind_text(spoken, number), apart=True)
                    self._cut_question(made[number], pieces, number == len(spoken) - 1)
        return made, tuple(notes_of_built_in(conversation, self._specials, self.protects))

    def _written_rounds(
        self, template: JinjaTemplate, conversation: Conversation
    ) -> tuple[list[_Round], tuple[str, ...]]:
        """The same for a Jinja template: the text is tokenized as a whole, and cut where its answers begin and end."""
        written = template.write(conversation, self.protects)
        spans = [(answer.begin, answer.end) for answer in written.answers]
        ids, bounds = encode_rendered(self.codec, written.text, written.cuts, spans)
        turns = conversation.turns
        last_turn = max((n for n, turn in enumerate(turns) if turn.role == ASSISTANT), default=-1)
        made: list[_Round] = []
        at = 0
        for number, answer in enumerate(written.answers):
            begin, end = max(bounds[number][0], at), max(bounds[number][1], at)
            is_last = number == len(written.answers) - 1 and not written.is_open
            eos = None if answer.is_ended else self._mark(Piece(EOS, mark=True))
            own = [*ids[begin:end], *([eos] if is_last and eos is not None else [])]
            bears = self._bears(turns[answer.message], answer.message == last_turn)
            made.append(_Round(ids[at:begin], own, bears, None if is_last else eos, False))
            at = end
        if written.is_open or not made:
            made.append(_Round(ids[at:], [], False, None, False))
        made[-1].prompt += self.codec.prefix_lm or ()
        if self.tgt_length is not None:
            for part in made:
                self._cut_answer(part, self.tgt_length)
        if any(len(part.prompt) > self.src_length for part in made):
            self._cut_prompts(template, conversation, made)
        return made, written.notes

    def _cut_prompts(self, template: JinjaTemplate, conversation: Conversation, made: list[_Round]) -> None:
        prompts = template.cuttable_prompts(conversation)
        if prompts is None or len(prompts) != len(made):
            longest = max(len(part.prompt) for part in made)
            raise DoesNotFit(f"needs {longest} tokens before an answer (--src_length {self.src_length})")
        for number, (part, prompt) in enumerate(zip(made, prompts, strict=True)):
            if len(part.prompt) > self.src_length:
                self._cut_question(part, self._pieces(prompt, number > 0, apart=True), number == len(made) - 1)

    def _encode_round(self, part: Spoken, number: int, spoken: list[Spoken]) -> _Round:
        last = number == len(spoken) - 1
        prompt = [i for ids, _ in self._pieces(part.prompt, self._behind_text(spoken, number)) for i in ids]
        if last and self.codec.prefix_lm:
            prompt += self.codec.prefix_lm
        answer: list[int] = []
        if part.answer is not None:
            answer = [i for ids, _ in self._pieces(part.answer, self._is_text(part.prompt)) for i in ids]
        end = self._mark(part.learnt_end) if part.learnt_end else None
        made = _Round(prompt, answer, self._bears(part.turn, last), end, False)
        if self.tgt_length is not None:
            self._cut_answer(made, self.tgt_length)
        return made

    def _bears(self, turn: Turn | None, last: bool) -> bool:
        if self.codec.prefix_lm and not last:
            return False
        if turn is not None and turn.bears_loss is not None:
            return turn.bears_loss
        return last or self.loss_on != "last"

    def _cut_question(self, made: _Round, pieces: list[tuple[list[int], bool]], is_last: bool) -> None:
        """Take the beginning of the question away, token by token; what the template puts around it stays.

        Args:
            pieces: (ids, whether they are a question's) of what is before the answer.
        """
        marks = list(self.codec.prefix_lm or ()) if is_last else []
        excess = sum(len(ids) for ids, _ in pieces) + len(marks) - self.src_length
        prompt: list[int] = []
        for ids, question in pieces:
            take = min(max(excess, 0), len(ids)) if question else 0
            excess -= take
            prompt += ids[take:]
        if excess > 0:
            around = self.src_length + excess
            raise DoesNotFit(
                f"needs {around} tokens before the answer without its question (--src_length {self.src_length})"
            )
        made.prompt, made.cut_question = prompt + marks, True

    @staticmethod
    def _cut_answer(made: _Round, room: int) -> None:
        if len(made.answer) > room:
            made.answer, made.cut_answer, made.learnt_end = made.answer[:room], True, None

    def _pieces(self, pieces: list[Piece], behind_text: bool, apart: bool = False) -> list[tuple[list[int], bool]]:
        """(ids, whether they are a question's) of runs of pieces; apart: questions are runs of their own."""
        runs: list[tuple[list[int], bool]] = []
        pending, follows = "", behind_text
        spelled = False

        def flush(question: bool = False) -> None:
            nonlocal pending, follows
            if pending:
                if spelled:
                    ids = self.codec.encode_with_marks(pending, start=not follows)
                else:
                    ids = self.codec.follow(pending) if follows else self.codec.encode(pending)
                runs.append((ids, question))
                follows = not (spelled and self.codec.ends_in_mark(pending))
            pending = ""

        for piece in pieces:
            if piece.mark:
                flush()
                runs.append((self._marks(piece), False))
                follows = self._continues_behind(piece)
                continue
            if piece.starts and (piece.text or pending):
                flush()
                follows = False
            is_spelled = piece.spelled or not self.protects
            if is_spelled != spelled or (apart and piece.question):
                flush()
            spelled = is_spelled
            pending += piece.text
            if apart and piece.question:
                flush(question=True)
        flush()
        return runs

    def _behind_text(self, spoken: list[Spoken], number: int) -> bool:
        return number > 0 and self._is_text(spoken[number - 1].answer or [])

    def _is_text(self, pieces: list[Piece]) -> bool:
        """Whether text behind the pieces continues them."""
        last = next((piece for piece in reversed(pieces) if piece.text), None)
        if last is None or (last.spelled and self.codec.ends_in_mark(last.text)):
            return False
        return not last.mark or self._continues_behind(last)

    def _continues_behind(self, mark: Piece) -> bool:
        """Whether the tokenizer takes text behind a special token for more of the same text (`legacy: false`). What is put in front
        of a text is not a part of it."""
        return not self.codec.starts_after_specials and mark.text not in (PREFIX, BOS)

    def _marks(self, piece: Piece) -> list[int]:
        return self.codec.prefix_ids if piece.text == PREFIX else [self._mark(piece)]

    def _mark(self, piece: Piece) -> int:
        known = {BOS: self.codec.bos_id, EOS: self.codec.eos_id}
        number = known[piece.text] if piece.text in known else self.codec.mark(piece.text)
        if number is None:
            raise UserError(
                f"the tokenizer {self.codec.name} has no {piece.text}, which the template {self.template.name} needs."
            )
        return number

    def _lay_out(self, rounds: list[_Round]) -> tuple[list[int], list[bool], list[tuple[int, int]]]:
        """All ids, which of them bear loss as targets, and (position, target) where an end is learnt that is not written."""
        ids: list[int] = []
        bears: list[bool] = []
        ends: list[tuple[int, int]] = []
        for made in rounds:
            ids += made.prompt + made.answer
            bears += [False] * len(made.prompt) + [made.bears] * len(made.answer)
            if made.learnt_end is not None and made.bears and made.answer:
                ends.append((len(ids) - 1, made.learnt_end))
        return ids, bears, ends
