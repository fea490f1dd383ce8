r"""Built-in chat templates: render a conversation as text and special tokens, with the answers separate.

Sources of the formats (text between special tokens is tokenized as one text, as in the source):
    llama2    facebookresearch/llama, llama/generation.py, chat_completion: "[INST] <<SYS>>...", content is stripped, each
              pair in <s> </s>
    llama3    meta-llama/llama3, llama/tokenizer.py, ChatFormat
    chatglm   THUDM/ChatGLM-6B, modeling_chatglm.py, chat: rounds from 0; a single question has no round markers
    chatglm2  THUDM/ChatGLM2-6B, tokenization_chatglm.py, build_prompt: rounds from 1
    chatglm3  THUDM/ChatGLM3, tokenization_chatglm.py, build_single_message; finetune_demo: the "\n" after the role is
              part of the message
    bloomz    Muennighoff et al. 2022 (xP3): inputs, a space, targets, </s>
    alpaca    tatsu-lab/stanford_alpaca, train.py, PROMPT_DICT
    chatml    openai/openai-python, chatml.md, as used by Qwen
    default   PaddleNLP without a chat template (llm/utils/data.py, tokenize_example): question, answer, EOS

If a format defines no system text or no second round, a comment describes what is done here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from paddle_llm.data.chat.renderer import RowRejected
from paddle_llm.data.instructions.conversation import TOOL, Conversation, Round, Turn
from paddle_llm.data.instructions.messages import irregular_order

PREFIX, BOS, EOS = "<prefix>", "<bos>", "<eos>"  # the tokenizer's own tokens, under any name


class Piece(NamedTuple):
    """A text or a special token of a rendered conversation.

    Attributes:
        text: Text, or name of the special token. Adjacent texts are tokenized together.
        is_special: Whether it is a special token.
        is_separate: Whether the text is tokenized separately from the text before it.
        is_question: Whether it is text of the user, which may be truncated.
        parses_specials: Whether names of special tokens in the text are special tokens (Jinja).
    """

    text: str
    is_special: bool = False
    is_separate: bool = False
    is_question: bool = False
    parses_specials: bool = False


@dataclass(frozen=True)
class RenderedRound:
    """One round as pieces.

    Attributes:
        prompt: Text before the answer.
        answer: What the model generates, including its end token; None if it is to be generated.
        turn: Turn of the answer.
        trained_end: Token that is trained after the answer although the conversation continues with other text.
    """

    prompt: list[Piece]
    answer: list[Piece] | None
    turn: Turn | None
    trained_end: Piece | None = None


@dataclass(frozen=True)
class Template:
    """A chat format.

    Attributes:
        name: Name of the template.
        render_prompt: Function from conversation, round and its number to the pieces before the answer.
        render_answer: Function from an answer's text to pieces.
        end: Pieces that end an answer.
        separator: Pieces between an answer's end and the next question.
        trained_end: Token trained after answers before the last one, if the format ends them without a token.
        tools: Whether the format has tool turns.
    """

    name: str
    render_prompt: Callable[[Conversation, Round, int], list[Piece]]
    render_answer: Callable[[str], list[Piece]]
    end: tuple[Piece, ...] = (Piece(EOS, is_special=True),)
    separator: tuple[Piece, ...] = ()
    trained_end: Piece | None = None
    tools: bool = False

    @property
    def stops(self) -> tuple[Piece, ...]:
        """Pieces that end the last answer."""
        return self.end or (self.trained_end or Piece(EOS, is_special=True),)

    def render(self, conversation: Conversation) -> list[RenderedRound]:
        """Render every round of a conversation.

        Raises:
            RowRejected: If this format cannot write the order of the turns, or has no tool turns.
        """
        rendered: list[RenderedRound] = []
        rounds = conversation.rounds()
        if reason := irregular_order(conversation.turns):
            raise RowRejected(f"{reason}, which the template {self.name} cannot write", conversation.where)
        for number, part in enumerate(rounds):
            if not self.tools and any(turn.role == TOOL for turn in part.questions):
                raise RowRejected(
                    f"the template {self.name} has no tool turns; chatglm3 and chatml have them", conversation.where
                )
            last = number == len(rounds) - 1
            prompt = [*(self.separator if number else ()), *self.render_prompt(conversation, part, number)]
            answer = None
            if part.answer is not None:
                answer = [*self.render_answer(part.answer.text), *(self.stops if last else self.end)]
            rendered.append(RenderedRound(prompt, answer, part.answer, None if last else self.trained_end))
        return rendered


def _special(name: str) -> Piece:
    return Piece(name, is_special=True)


def _question(text: str) -> Piece:
    return Piece(text, is_question=True)


def _separate_answer(text: str) -> list[Piece]:
    return [Piece(text, is_separate=True)]


def _question_text(part: Round) -> str:
    return "\n".join(turn.text for turn in part.questions)


def _prompt_default(conversation: Conversation, part: Round, number: int) -> list[Piece]:
    # A system text precedes the first question on separate lines; further rounds follow EOS.
    system = f"{conversation.system}\n\n" if conversation.system and number == 0 else ""
    return [*([] if number else [_special(PREFIX)]), Piece(system, is_separate=True), _question(_question_text(part))]


def _prompt_llama2(conversation: Conversation, part: Round, number: int) -> list[Piece]:
    system = conversation.system if number == 0 else ""
    head = f"[INST] <<SYS>>\n{system}\n<</SYS>>\n\n" if system else "[INST] "
    content = _question_text(part)
    # Meta's code strips the result, that is, the system block together with the question.
    question = content.rstrip() if system else content.strip()
    return [_special(BOS), Piece(head, is_separate=True), _question(question), Piece(" [/INST]")]


def _prompt_llama3(conversation: Conversation, part: Round, number: int) -> list[Piece]:
    pieces = [] if number else [_special("<|begin_of_text|>")]
    if conversation.system and number == 0:
        pieces += [*_header3("system"), Piece(conversation.system.strip()), _special("<|eot_id|>")]
    return [
        *pieces,
        *_header3("user"),
        _question(_question_text(part).strip()),
        _special("<|eot_id|>"),
        *_header3("assistant"),
    ]


def _header3(role: str) -> list[Piece]:
    return [_special("<|start_header_id|>"), Piece(role), _special("<|end_header_id|>"), Piece("\n\n")]


def _prompt_chatglm(conversation: Conversation, part: Round, number: int) -> list[Piece]:
    # This format has no system text: it precedes the first question.
    system = f"{conversation.system}\n" if conversation.system and number == 0 else ""
    if len(conversation.rounds()) == 1:
        return [Piece(system, is_separate=True), _question(_question_text(part))]
    return [
        Piece(f"{system}[Round {number}]\n问：", is_separate=number == 0),
        _question(_question_text(part)),
        Piece("\n答："),
    ]


def _prompt_chatglm2(conversation: Conversation, part: Round, number: int) -> list[Piece]:
    system = f"{conversation.system}\n\n" if conversation.system and number == 0 else ""
    head = [] if number else [_special(PREFIX)]
    text = f"{system}[Round {number + 1}]\n\n问："
    return [*head, Piece(text, is_separate=number == 0), _question(_question_text(part)), Piece("\n\n答：")]


def _prompt_chatglm3(conversation: Conversation, part: Round, number: int) -> list[Piece]:
    pieces = [] if number else [_special(PREFIX)]
    if conversation.system and number == 0:
        pieces += [_special("<|system|>"), Piece("\n", is_separate=True), Piece(conversation.system, is_separate=True)]
    for turn in part.questions:
        role = "<|observation|>" if turn.role == TOOL else "<|user|>"
        pieces += [_special(role), Piece("\n", is_separate=True), _question(turn.text)._replace(is_separate=True)]
    return [*pieces, _special("<|assistant|>")]


def _answer_chatglm3(text: str) -> list[Piece]:
    return [Piece("\n", is_separate=True), Piece(text, is_separate=True)]


def _prompt_bloomz(conversation: Conversation, part: Round, number: int) -> list[Piece]:
    # xP3 has neither system texts nor rounds: the system text precedes the question, and further rounds follow </s>.
    system = f"{conversation.system}\n" if conversation.system and number == 0 else ""
    return [*([] if number else [_special(PREFIX)]), Piece(system, is_separate=True), _question(_question_text(part))]


_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n",
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n",
)  # fmt: skip


def _prompt_alpaca(conversation: Conversation, part: Round, number: int) -> list[Piece]:
    # A system text replaces the preamble. The format has no further rounds: they begin with their instruction.
    turn = part.questions[0]
    preamble = f"{conversation.system}\n\n" if conversation.system else _ALPACA[bool(turn.input)]
    head = [_special(PREFIX), Piece(preamble, is_separate=True)] if number == 0 else [Piece("\n\n", is_separate=True)]
    middle = [Piece(f"\n\n### Input:\n{turn.input}")] if turn.input else []
    return [*head, Piece("### Instruction:\n"), _question(turn.content), *middle, Piece("\n\n### Response:")]


def _prompt_chatml(conversation: Conversation, part: Round, number: int) -> list[Piece]:
    pieces: list[Piece] = []
    if conversation.system and number == 0:
        pieces += [_special(_IM_START), Piece(f"system\n{conversation.system}"), _special(_IM_END), Piece("\n")]
    for turn in part.questions:
        role = "tool" if turn.role == TOOL else "user"
        pieces += [_special(_IM_START), Piece(f"{role}\n"), _question(turn.text), _special(_IM_END), Piece("\n")]
    return [*pieces, _special(_IM_START), Piece("assistant\n")]


_IM_START, _IM_END = "<|im_start|>", "<|im_end|>"

TEMPLATES = {
    template.name: template
    for template in (
        Template("default", _prompt_default, _separate_answer),
        # "{answer} " and </s>, as chat_completion encodes earlier rounds.
        Template("llama2", _prompt_llama2, lambda text: [Piece(f" {text.strip()} ")]),
        Template("llama3", _prompt_llama3, lambda text: [Piece(text.strip())], (_special("<|eot_id|>"),)),
        # In these, a line break or the next role ends earlier answers, not EOS. EOS is trained all the same.
        Template("chatglm", _prompt_chatglm, _separate_answer, (), (Piece("\n"),), _special(EOS)),
        Template("chatglm2", _prompt_chatglm2, _separate_answer, (), (Piece("\n\n"),), _special(EOS)),
        Template("chatglm3", _prompt_chatglm3, _answer_chatglm3, (), (), _special(EOS), tools=True),
        Template("bloomz", _prompt_bloomz, lambda text: [Piece(f" {text}")]),
        Template("alpaca", _prompt_alpaca, lambda text: [Piece(text)]),
        Template("chatml", _prompt_chatml, lambda text: [Piece(text)], (_special(_IM_END),), (Piece("\n"),), tools=True),
    )
}  # fmt: skip
