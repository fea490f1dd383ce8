"""`paddle-llm generate --chat`: a conversation in the terminal, word by word."""

from __future__ import annotations

import sys

from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.data.instructions.formats import ASSISTANT, SYSTEM, USER, Conversation, Turn
from paddle_llm.data.tokenizers.text_codec import TextCodec
from paddle_llm.generation.prompts import check_text
from paddle_llm.generation.requests import Reader, Request
from paddle_llm.generation.texts import Generator, with_learnt_prompt

_HELP = "/clear starts anew, /exit or Ctrl-D ends, Ctrl-C stops an answer"
_BROKEN = "\ufffd"  # what a decoder makes of the first bytes of a character


class Chat:
    """Reads questions from stdin, prints answers to stdout; prompts and talk go to stderr.

    An answer that is stopped stays in the conversation as far as it went; one that is stopped before its first word
    takes its question with it.
    """

    def __init__(self, generator: Generator, reader: Reader):
        self._generator, self._reader = generator, reader
        self._turns: tuple[Turn, ...] = ()
        self._answers = 0

    def run(self) -> None:
        """Until the user ends it."""
        say(_HELP)
        self._clear()
        while True:
            try:
                line = self._ask()
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
                say(f"{line} is no command: {_HELP}")
            elif line:
                self._turn(line)

    def _ask(self) -> str:
        if sys.stdin.isatty():
            return input("> ").strip()
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.strip()

    def _clear(self) -> None:
        system = self._reader.system
        self._turns = (Turn(SYSTEM, system),) if system else ()

    def _turn(self, line: str) -> None:
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
        """Print the answer while it is made; returns it."""
        from paddle_llm.generation.decode import decode

        generator = self._generator
        read = self._reader(Request(conversation=conversation))
        prompt = with_learnt_prompt(read, generator.model)
        if read.is_cut or read.dropped_rounds:
            done = "its beginning was cut off" if read.is_cut else f"{read.dropped_rounds} oldest rounds were dropped"
            say(f"The conversation is longer than the model's positions: {done}. Use /clear to start again.")
        shown = Streamed(generator.codec)
        try:
            decode(
                generator.model,
                generator.family,
                [prompt],
                [generator.room_behind(prompt)],
                generator.stop_ids,
                generator.choice,
                keys=[self._answers],
                on_token=lambda _, token: shown.add(token),
            )
        except KeyboardInterrupt:
            print(" [stopped]", end="", file=sys.stderr, flush=True)
        self._answers += 1
        return shown.end().strip()


class Streamed:
    """Prints a text of which one token after the other becomes known."""

    def __init__(self, codec: TextCodec):
        self._codec = codec
        self._tokens: list[int] = []
        self._shown = ""

    def add(self, token: int) -> None:
        """One more token. What may still change, half a character, waits."""
        self._tokens.append(token)
        text = self._codec.decode(self._tokens)
        if not text.endswith(_BROKEN):
            self._print(text)

    def end(self) -> str:
        """Print what is left; returns the text."""
        self._print(self._codec.decode(self._tokens))
        print(flush=True)
        return self._shown

    def _print(self, text: str) -> None:
        if text.startswith(self._shown):
            print(text[len(self._shown) :], end="", flush=True)
            self._shown = text
