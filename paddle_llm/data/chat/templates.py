"""Prompt templates: how a conversation becomes text and special tokens, and which of it is the answer.

Sources of the formats (what is between marks is tokenised as one text, as there):
    llama2    facebookresearch/llama, llama/generation.py, chat_completion: "[INST] <<SYS>>..", contents stripped, each pair in <s> </s>
    llama3    meta-llama/llama3, llama/tokenizer.py, ChatFormat
    chatglm   THUDM/ChatGLM-6B, modeling_chatglm.py, chat: rounds from 0; one question alone stands without marks
    chatglm2  THUDM/ChatGLM2-6B, tokenization_chatglm.py, build_prompt: rounds from 1
    chatglm3  THUDM/ChatGLM3, tokenization_chatglm.py, build_single_message; finetune_demo: "\\n" behind the role is part of the message
    bloomz    Muennighoff et al. 2022 (xP3): inputs, a space, targets, </s>
    alpaca    tatsu-lab/stanford_alpaca, train.py, PROMPT_DICT
    chatml    openai/openai-python, chatml.md, as Qwen uses it
    default   PaddleNLP without a chat template (llm/utils/data.py, tokenize_example): the question, the answer, EOS

Where a format has no place for a system text or for a second round, what is done is ours, and stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from paddle_llm.data.chat.rendering import RowRefused
from paddle_llm.data.instructions.formats import TOOL, Conversation, Round, Turn
from paddle_llm.data.instructions.messages import irregular

PREFIX, BOS, EOS = "<prefix>", "<bos>", "<eos>"  # the tokenizer's own, whatever they are called there


class Piece(NamedTuple):
    """Text, or the name of a special token. Neighbouring texts are tokenised together, unless one `starts` anew. `question`: what
    the user typed, which may be cut; `spelled`: special tokens are meant where the text spells them (Jinja)."""

    text: str
    mark: bool = False
    starts: bool = False
    question: bool = False
    spelled: bool = False


@dataclass(frozen=True)
class Spoken:
    """A round as pieces. `answer` with its end is what the model writes itself, None where it is to be generated. turn: the
    answer's. learnt_end: what is learnt behind the answer although the conversation goes on otherwise."""

    prompt: list[Piece]
    answer: list[Piece] | None
    turn: Turn | None
    learnt_end: Piece | None = None


@dataclass(frozen=True)
class Template:
    """A format. ask: the pieces of a question up to where the model writes; answer: an answer's text as pieces; end: what ends
    it; after: what stands between it and the next question."""

    name: str
    ask: Callable[[Conversation, Round, int], list[Piece]]
    answer: Callable[[str], list[Piece]]
    end: tuple[Piece, ...] = (Piece(EOS, mark=True),)
    after: tuple[Piece, ...] = ()
    learnt_end: Piece | None = None  # of answers that are not the last, where the format ends them with nothing
    tools: bool = False

    @property
    def stops(self) -> tuple[Piece, ...]:
        """What the model writes when it is done."""
        return self.end or (self.learnt_end or Piece(EOS, mark=True),)

    def speak(self, conversation: Conversation) -> list[Spoken]:
        """Every round as pieces.

        Raises:
            RowRefused: If it has a tool's turn, which this format cannot write.
        """
        spoken: list[Spoken] = []
        rounds = conversation.rounds()
        if reason := irregular(conversation.turns):
            raise RowRefused(f"{reason}, which the template {self.name} cannot write", conversation.where)
        for number, part in enumerate(rounds):
            if not self.tools and any(turn.role == TOOL for turn in part.asked):
                raise RowRefused(
                    f"the template {self.name} has no tool turns; chatglm3 and chatml have.", conversation.where
                )
            last = number == len(rounds) - 1
            prompt = [*(self.after if number else ()), *self.ask(conversation, part, number)]
            answer = (
                None if part.answer is None else [*self.answer(part.answer.text), *(self.stops if last else self.end)]
            )
            spoken.append(Spoken(prompt, answer, part.answer, None if last else self.learnt_end))
        return spoken


def _mark(name: str) -> Piece:
    return Piece(name, mark=True)


def _question(text: str) -> Piece:
    return Piece(text, question=True)


def _plain(text: str) -> list[Piece]:
    return [Piece(text, starts=True)]


def _asked(part: Round) -> str:
    return "\n".join(turn.text for turn in part.asked)


def _ask_default(conversation: Conversation, part: Round, number: int) -> list[Piece]:
    # A system text stands before the first question, on lines of its own; further rounds follow behind EOS.
    system = f"{conversation.system}\n\n" if conversation.system and number == 0 else ""
    return [*([] if number else [_mark(PREFIX)]), Piece(system, starts=True), _question(_asked(part))]


def _ask_llama2(conversation: Conversation, part: Round, number: int) -> list[Piece]:
    system = conversation.system if number == 0 else ""
    head = f"[INST] <<SYS>>\n{system}\n<</SYS>>\n\n" if system else "[INST] "
    content = _asked(part)
    # Meta strips what comes out: the system block together with the question.
    question = content.rstrip() if system else content.strip()
    return [_mark(BOS), Piece(head, starts=True), _question(question), Piece(" [/INST]")]


def _ask_llama3(conversation: Conversation, part: Round, number: int) -> list[Piece]:
    pieces = [] if number else [_mark("<|begin_of_text|>")]
    if conversation.system and number == 0:
        pieces += [*_header3("system"), Piece(conversation.system.strip()), _mark("<|eot_id|>")]
    return [*pieces, *_header3("user"), _question(_asked(part).strip()), _mark("<|eot_id|>"), *_header3("assistant")]


def _header3(role: str) -> list[Piece]:
    return [_mark("<|start_header_id|>"), Piece(role), _mark("<|end_header_id|>"), Piece("\n\n")]


def _ask_chatglm(conversation: Conversation, part: Round, number: int) -> list[Piece]:
    # No system in this format: it stands before the first question.
    system = f"{conversation.system}\n" if conversation.system and number == 0 else ""
    if len(conversation.rounds()) == 1:
        return [Piece(system, starts=True), _question(_asked(part))]
    return [Piece(f"{system}[Round {number}]\n问：", starts=number == 0), _question(_asked(part)), Piece("\n答：")]


def _ask_chatglm2(conversation: Conversation, part: Round, number: int) -> list[Piece]:
    system = f"{conversation.system}\n\n" if conversation.system and number == 0 else ""
    head = [] if number else [_mark(PREFIX)]
    text = f"{system}[Round {number + 1}]\n\n问："
    return [*head, Piece(text, starts=number == 0), _question(_asked(part)), Piece("\n\n答：")]


def _ask_chatglm3(conversation: Conversation, part: Round, number: int) -> list[Piece]:
    pieces = [] if number else [_mark(PREFIX)]
    if conversation.system and number == 0:
        pieces += [_mark("<|system|>"), Piece("\n", starts=True), Piece(conversation.system, starts=True)]
    for turn in part.asked:
        role = "<|observation|>" if turn.role == TOOL else "<|user|>"
        pieces += [_mark(role), Piece("\n", starts=True), _question(turn.text)._replace(starts=True)]
    return [*pieces, _mark("<|assistant|>")]


def _answer_chatglm3(text: str) -> list[Piece]:
    return [Piece("\n", starts=True), Piece(text, starts=True)]


def _ask_bloomz(conversation: Conversation, part: Round, number: int) -> list[Piece]:
    # xP3 has neither system nor rounds: the system text stands before the question, further rounds follow behind </s>.
    system = f"{conversation.system}\n" if conversation.system and number == 0 else ""
    return [*([] if number else [_mark(PREFIX)]), Piece(system, starts=True), _question(_asked(part))]


_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n",
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n",
)  # fmt: skip


def _ask_alpaca(conversation: Conversation, part: Round, number: int) -> list[Piece]:
    # A system text replaces the preamble; further rounds, which the format has none of, start with their instruction.
    turn = part.asked[0]
    preamble = f"{conversation.system}\n\n" if conversation.system else _ALPACA[bool(turn.input)]
    head = [_mark(PREFIX), Piece(preamble, starts=True)] if number == 0 else [Piece("\n\n", starts=True)]
    middle = [Piece(f"\n\n### Input:\n{turn.input}")] if turn.input else []
    return [*head, Piece("### Instruction:\n"), _question(turn.content), *middle, Piece("\n\n### Response:")]


def _ask_chatml(conversation: Conversation, part: Round, number: int) -> list[Piece]:
    pieces: list[Piece] = []
    if conversation.system and number == 0:
        pieces += [_mark(_IM_START), Piece(f"system\n{conversation.system}"), _mark(_IM_END), Piece("\n")]
    for turn in part.asked:
        role = "tool" if turn.role == TOOL else "user"
        pieces += [_mark(_IM_START), Piece(f"{role}\n"), _question(turn.text), _mark(_IM_END), Piece("\n")]
    return [*pieces, _mark(_IM_START), Piece("assistant\n")]


_IM_START, _IM_END = "<|im_start|>", "<|im_end|>"

TEMPLATES = {
    template.name: template
    for template in (
        Template("default", _ask_default, _plain),
        # "{answer} " and </s>, as chat_completion encodes earlier rounds.
        Template("llama2", _ask_llama2, lambda text: [Piece(f" {text.strip()} ")]),
        Template("llama3", _ask_llama3, lambda text: [Piece(text.strip())], (_mark("<|eot_id|>"),)),
        # Earlier answers of these end in a line break, or the next role, not in EOS: that they end is learnt all the same.
        Template("chatglm", _ask_chatglm, _plain, (), (Piece("\n"),), _mark(EOS)),
        Template("chatglm2", _ask_chatglm2, _plain, (), (Piece("\n\n"),), _mark(EOS)),
        Template("chatglm3", _ask_chatglm3, _answer_chatglm3, (), (), _mark(EOS), tools=True),
        Template("bloomz", _ask_bloomz, lambda text: [Piece(f" {text}")]),
        Template("alpaca", _ask_alpaca, lambda text: [Piece(text)]),
        Template("chatml", _ask_chatml, lambda text: [Piece(text)], (_mark(_IM_END),), (Piece("\n"),), tools=True),
    )
}  # fmt: skip
