"""`paddle-llm generate --chat`: a conversation in the terminal, printed token by token."""

from __future__ import annotations

import sys

from paddle_llm.core.console import say
from paddle_llm.core.counts import counted
from paddle_llm.core.errors import UserError
from paddle_llm.data.instructions.conversation import ASSISTANT, SYSTEM, USER, Conversation, Turn
from paddle_llm.data.tokenizers.text_codec import TextCodec
from paddle_llm.generation.prompts import check_text
from paddle_llm.generation.requests import PromptReader, Request
from paddle_llm.generation.texts import Generator, with_learned_prompt

_HELP = "/clear starts a new conversation, /exit or Ctrl-D quits, Ctrl-C stops an answer"
_REPETITION = " [stopped: the same tokens were repeated; --no_stop_on_repetition continues such an answer]"
_INCOMPLETE = "\ufffd"  # what a decoder returns for the first bytes of a character


class Chat:
    """A chat that reads questions from stdin and prints answers to stdout; everything else goes to stderr.

    An interrupted answer stays in the conversation as far as it was printed. If nothing was printed, its question is
    removed too.
    """

    def __init__(self, generator: Generator, reader: PromptReader) -> None:
        self._generator, self._reader = generator, reader
        self._turns: tuple[Turn, ...] = ()
        self._answers = 0

    def run(self) -> None:
        """Chat until the user quits."""
        say(_HELP)
        self._clear()
        while True:
            try:
                line = self._read_line()
            except (EOFError, KeyboardInterrupt):
                print(file=sys.stderr)
                return
            except UnicodeDecodeError as error:
                say(f"error: the line is not {error.encoding} text: {error.reason}. Write it in {error.encoding}.")
                continue
            if line == "/exit":
                return
            if line == "/clear":
                self._clear()
            elif line.startswith("/"):
                say(f"unknown command: {line}. {_HELP}.")
            elif line:
                self._take_turn(line)

    def _read_line(self) -> str:
        if sys.stdin.isatty():
            return input("> ").strip()
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.strip()

    def _clear(self) -> None:
        system = self._reader.system
        self._turns = (Turn(SYSTEM, system),) if system else ()

    def _take_turn(self, line: str) -> None:
        turns = (*self._turns, Turn(USER, line))
        try:
            check_text(line, "this question")
            answer = self._answer(Conversation(turns, where="this question"))
        except UserError as error:
            say(f"error: {error}")
            return
        if answer:
            self._turns = (*turns, Turn(ASSISTANT, answer))

    def _answer(self, conversation: Conversation) -> str:
        """Generate an answer, print it token by token and return it."""
        from paddle_llm.generation.decoding.decode import decode  # imports Paddle

        generator = self._generator
        encoded = self._reader(Request(conversation=conversation))
        prompt = with_learned_prompt(encoded, generator.model)
        if encoded.is_cut or encoded.dropped_rounds:
            rounds = encoded.dropped_rounds
            action = (
                "the beginning of the question was cut off"
                if encoded.is_cut
                else f"dropped {counted(rounds, 'oldest round')}"
            )
            say(f"The conversation is longer than the model's positions: {action}. Start a new one with /clear.")
        printer, limit = StreamPrinter(generator.codec), generator.limit_for(prompt)
        try:
            tokens = decode(
                generator.model,
                [prompt],
                [limit],
                generator.options,
                keys=[self._answers],
                on_token=lambda _, token: printer.add(token),
            )[0]
            if generator.stopped_by_repetition(tokens, limit):
                print(_REPETITION, end="", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            print(" [stopped]", end="", file=sys.stderr, flush=True)
        self._answers += 1
        return printer.finish().strip()


class StreamPrinter:
    """Prints a text whose tokens arrive one by one."""

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec
        self._tokens: list[int] = []
        self._printed = ""

    def add(self, token: int) -> None:
        """Add a token and print the new text, except for an incomplete character."""
        self._tokens.append(token)
        text = self._codec.decode(self._tokens)
        if not text.endswith(_INCOMPLETE):
            self._print(text)

    def finish(self) -> str:
        """Print the rest and return the whole text."""
        self._print(self._codec.decode(self._tokens))
        print(flush=True)
        return self._printed

    def _print(self, text: str) -> None:
        if text.startswith(self._printed):
            print(text[len(self._printed) :], end="", flush=True)
            self._printed = text
