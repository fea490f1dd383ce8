"""Tokenizes the pieces of a rendered conversation."""

from __future__ import annotations

from paddle_llm.core.errors import UserError
from paddle_llm.data.chat.templates import BOS, EOS, PREFIX, Piece
from paddle_llm.data.tokenizers.text_codec import TextCodec


class PieceEncoder:
    """Encodes pieces of text and special tokens as ids.

    Args:
        codec: Codec of the tokenizer.
        template_name: Name of the chat template, for messages.
        protect: Whether the text of special tokens in content stays text.
    """

    def __init__(self, codec: TextCodec, template_name: str, protect: bool) -> None:
        self.codec, self._template_name, self.protect = codec, template_name, protect

    def encode(
        self, pieces: list[Piece], follows_text: bool, separate_questions: bool = False
    ) -> list[tuple[list[int], bool]]:
        """Encode pieces; adjacent texts are tokenized together.

        Args:
            pieces: Texts and special tokens.
            follows_text: Whether the pieces continue a text.
            separate_questions: Whether questions are tokenized separately from the text around them.

        Returns:
            Runs of (ids, whether they are a question).
        """
        runs: list[tuple[list[int], bool]] = []
        pending, follows = "", follows_text
        parses_specials = False

        def flush(is_question: bool = False) -> None:
            nonlocal pending, follows
            if pending:
                if parses_specials:
                    ids = self.codec.encode_with_specials(pending, start=not follows)
                else:
                    ids = self.codec.encode_continuation(pending) if follows else self.codec.encode(pending)
                runs.append((ids, is_question))
                follows = not (parses_specials and self.codec.ends_in_special(pending))
            pending = ""

        for piece in pieces:
            if piece.is_special:
                flush()
                runs.append((self._special_ids(piece), False))
                follows = self._continues_after(piece)
                continue
            if piece.is_separate and (piece.text or pending):
                flush()
                follows = False
            parses = piece.parses_specials or not self.protect
            if parses != parses_specials or (separate_questions and piece.is_question):
                flush()
            parses_specials = parses
            pending += piece.text
            if separate_questions and piece.is_question:
                flush(is_question=True)
        flush()
        return runs

    def ends_in_text(self, pieces: list[Piece]) -> bool:
        """Return whether text after the pieces continues their text."""
        last = next((piece for piece in reversed(pieces) if piece.text), None)
        if last is None or (last.parses_specials and self.codec.ends_in_special(last.text)):
            return False
        return not last.is_special or self._continues_after(last)

    def special_id(self, piece: Piece) -> int:
        """Return the id of a special token.

        Raises:
            UserError: If the tokenizer does not have it.
        """
        known = {BOS: self.codec.bos_id, EOS: self.codec.eos_id}
        number = known[piece.text] if piece.text in known else self.codec.special_id(piece.text)
        if number is None:
            raise UserError(
                f"tokenizer {self.codec.name}: it lacks {piece.text}, which the chat template {self._template_name} "
                "needs. Use another --chat_template."
            )
        return number

    def _special_ids(self, piece: Piece) -> list[int]:
        return self.codec.prefix_ids if piece.text == PREFIX else [self.special_id(piece)]

    def _continues_after(self, special: Piece) -> bool:
        """Return whether the tokenizer treats text after a special token as continued text (`legacy: false`).

        The tokens before a whole text are not part of it.
        """
        return not self.codec.starts_after_specials and special.text not in (PREFIX, BOS)
