"""A static export in paddle.inference, behind the interface of `models/incremental.py`: `generation/decode.py` serves both.

    >>> from paddle_llm.generation.static_network import StaticModel
    >>> model = StaticModel("exports/program")
    >>> print(model.generate("The old house", max_new_tokens=40, temperature=0.8))

The keys and values are in buffers of this process, which the program reads and writes where they are: nothing is copied
into it but the new tokens, and nothing out of it but their logits.

Shapes: B rows, S tokens of the longest prompt, s tokens that are read now, C places of the buffers, L layers, K key-value
heads, D head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from paddle_llm.core.artifacts import STATIC_PROGRAM, STATIC_STEP, STATIC_WEIGHTS
from paddle_llm.core.errors import UserError
from paddle_llm.core.json_files import parse_json
from paddle_llm.generation.sampling import Choice
from paddle_llm.generation.whole_program import open_whole_program
from paddle_llm.models.prompt import Prompt
from paddle_llm.models.token_positions import Places

_HIDDEN = -1e30  # added to the score of what is not looked at
_PLACES = "places"  # the input that says where the new keys and values belong
_MORE_PLACES = 128  # that a buffer is lengthened by


@dataclass(frozen=True)
class Step:
    """What step.json says of a program.

    Attributes:
        family: the network's, by name. dtype: of its arithmetic.
        vocab_size: V; layers, kv_heads, head_width: L, K, D of the cache [2 L, B, K, C, D].
        max_position_embeddings: the most tokens of a text, None: as many as one likes.
        position_rows: of `position_ids`, 0 where the program takes none; key_places: whether it takes those (ALiBi).
        end_ids: what ends a text. template: what the network was fine-tuned with, if that is known: a name, or a file.
    """

    family: str
    dtype: str
    vocab_size: int
    layers: int
    kv_heads: int
    head_width: int
    max_position_embeddings: int | None
    position_rows: int
    key_places: bool
    end_ids: tuple[int, ...]
    template: str | None = None


def is_static(folder: Path) -> bool:
    """Whether a folder is a static export."""
    return (folder / STATIC_STEP).is_file()


def read_step(folder: Path) -> Step:
    """What a static export says of itself.

    Raises:
        UserError: it is none, or not complete.
    """
    missing = [name for name in (STATIC_STEP, STATIC_PROGRAM, STATIC_WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} is no static export (it has no {missing[0]}): make one with "
            f"paddle-llm export MODEL_FOLDER OUT --target static"
        )
    try:
        step = Step(**parse_json((folder / STATIC_STEP).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder / STATIC_STEP} cannot be read ({error}): export the model anew") from None
    template = step.template
    if template and (folder / template).is_file():
        template = str(folder / template)
    return Step(**{**vars(step), "end_ids": tuple(step.end_ids), "template": template})


class StaticModel:
    """A static export, open. One batch of prompts at a time.

    Args:
        folder: with model.json, model.pdiparams, step.json and a tokenizer.
        threads: of the arithmetic; None: the machine's cores, or OMP_NUM_THREADS.
        tokenizer: folder of another tokenizer than the export's.

    Attributes:
        config: a `Step`.

    Raises:
        UserError: it is no static export, or a file of it is cut off or cannot be read.
    """

    def __init__(self, folder: str | Path, threads: int | None = None, *, tokenizer: Path | None = None):
        self.folder = Path(folder)
        self.config = read_step(self.folder)
        self.family = self.config.family
        self._tokenizer = tokenizer or self.folder
        self._predictor = open_whole_program(self.folder / STATIC_PROGRAM, self.folder / STATIC_WEIGHTS, threads)
        names = [f"past_{which}_{layer}" for layer in range(self.config.layers) for which in ("k", "v")]
        self._inputs = {name: self._predictor.get_input_handle(name) for name in self._predictor.get_input_names()}
        if _PLACES not in self._inputs:
            raise UserError(f"{self.folder / STATIC_PROGRAM} is not of this version: export the model anew")
        self._past = [self._inputs[name] for name in names]
        self._logits = self._predictor.get_output_handle(self._predictor.get_output_names()[0])
        self._given: Any = None

    @cached_property
    def codec(self) -> Any:
        """The tokenizer, a `TextCodec`."""
        from paddle_llm.data.tokenizers.text_codec import open_codec

        return open_codec(str(self._tokenizer))

    def open(self, prompts: Sequence[Prompt], room: int) -> StaticNetwork:
        """One batch of prompts; see `StaticNetwork`."""
        return StaticNetwork(self, prompts, room)

    def run(self, inputs: dict[str, np.ndarray], past_2LBKCD: np.ndarray) -> np.ndarray:
        """Logits [B, V] of the last token; the keys and values of the new ones are put into the buffers."""
        for name, values in inputs.items():
            self._inputs[name].copy_from_cpu(values)
        if self._given is not past_2LBKCD:
            self._share(past_2LBKCD)
        self._predictor.run()
        return self._logits.copy_to_cpu()

    def generate(
        self,
        text: str,
        max_new_tokens: int = 64,
        *,
        on_text: Callable[[str], None] | None = None,
        **choice: Any,
    ) -> str:
        """Continue a text as it stands; returns what follows it.

        Args:
            max_new_tokens: fewer where the model has no positions for them.
            on_text: told each piece of the text when it is there.
            choice: temperature, top_k, top_p, repetition_penalty, seed, ...: see `generation/sampling.py`.
        """
        from paddle_llm.generation.decode import decode
        from paddle_llm.generation.prompts import encode_text

        prompt = encode_text(self.codec, text)
        most = self.config.max_position_embeddings
        room = max_new_tokens if most is None else max(min(max_new_tokens, most - len(prompt)), 0)
        stream = _Pieces(self.codec, prompt.ids, on_text)
        found = decode(self, self.family, [prompt], [room], self.end_ids, Choice(**choice), on_token=stream)
        return stream.end(found[0])

    @property
    def end_ids(self) -> frozenset[int]:
        """What ends a text, as the model's files and its tokenizer say."""
        own = self.codec.eos_id
        return frozenset(self.config.end_ids) | (frozenset() if own is None else frozenset([own]))

    def _share(self, past_2LBKCD: np.ndarray) -> None:
        """Let the program read and write the buffers where they are."""
        import paddle

        self._given = past_2LBKCD
        self._tensors = [paddle.from_dlpack(buffer) for buffer in past_2LBKCD]
        for handle, tensor in zip(self._past, self._tensors, strict=True):
            handle.share_external_data(tensor)


class StaticNetwork:
    """One batch of prompts in a static program.

    Args:
        prompts: none of them empty; shorter ones are padded on the left.
        room: the most tokens that will follow.
        tensors: whether logits come as a paddle.Tensor. Else they are a numpy array, which has its largest element found at
            once; a tensor, and what is done with it, costs a thirtieth of a step of a small network.
    """

    def __init__(self, model: StaticModel, prompts: Sequence[Prompt], room: int, *, tensors: bool = True):
        self._model, self._step, self._tensors = model, model.config, tensors
        self._places = Places(prompts, room, blocks=self._step.position_rows == 2)
        self._read = 0
        self._past_2LBKCD = self._buffers(len(prompts), 0)
        self._mask_B11C = self._step_mask()

    def read_prompts(self) -> Any:
        """Logits [B, V] of the first token behind each prompt."""
        places = self._places
        self._make_room(places.length)
        mask_B1SC = np.full((len(places.ids_BS), 1, places.length, self._capacity), _HIDDEN, np.float32)
        seen_BSS = places.prompt_mask() & (places.tokens_BT[:, None, : places.length] == 1)
        mask_B1SC[:, 0, :, : places.length][seen_BSS] = 0
        logits_BV = self._forward(places.ids_BS, mask_B1SC)
        self._mask_B11C = self._step_mask()
        return logits_BV

    def read(self, tokens_B: Any) -> Any:
        """Logits [B, V] of the token behind one more token of each row."""
        self._make_room(self._read + 1)
        self._mask_B11C[..., self._read] = 0
        return self._forward(np.asarray(tokens_B).reshape(-1, 1), self._mask_B11C)

    def keep_rows(self, rows: Any) -> None:
        """Go on with these rows, in this order; one may be there several times."""
        rows = np.asarray(rows)
        self._places.keep_rows(rows)
        self._past_2LBKCD = np.ascontiguousarray(self._past_2LBKCD[:, rows])
        self._mask_B11C = self._mask_B11C[rows]

    # ---- one run ----------------------------------------------------------------------------------------------------

    @property
    def _capacity(self) -> int:
        """C."""
        return self._past_2LBKCD.shape[3]

    def _forward(self, ids_Bs: np.ndarray, mask_B1sC: np.ndarray) -> Any:
        start, end = self._read, self._read + ids_Bs.shape[1]
        inputs = {"input_ids": ids_Bs, _PLACES: np.array([start, end]), "mask": mask_B1sC}
        if self._step.position_rows:
            inputs["position_ids"] = self._places.positions[..., start:end].reshape(len(ids_Bs), -1, end - start)
        if self._step.key_places:
            inputs["key_places"] = self._key_places(end)
        logits_BV = self._model.run(inputs, self._past_2LBKCD)
        self._read = end
        if not self._tensors:
            return logits_BV
        import paddle

        return paddle.to_tensor(logits_BV)

    def _step_mask(self) -> np.ndarray:
        """[B, 1, 1, C]: what is added to the scores of the next token, but for its own."""
        tokens_BT = self._places.tokens_BT
        mask = np.full((len(tokens_BT), 1, 1, self._capacity), _HIDDEN, np.float32)
        mask[:, 0, 0, : self._read][tokens_BT[:, : self._read] == 1] = 0
        return mask

    def _key_places(self, end: int) -> np.ndarray:
        """[B, 1, 1, C]: how many tokens of its row stand before each one."""
        places_BT = self._places.positions
        found = np.zeros((len(places_BT), 1, 1, self._capacity), np.float32)
        found[:, 0, 0, :end] = places_BT[:, :end]
        return found

    def _make_room(self, end: int) -> None:
        """Longer buffers where they are full."""
        if end > self._capacity:
            rows, total = self._places.tokens_BT.shape
            longer = self._buffers(rows, end + min(_MORE_PLACES, total - end))
            longer[:, :, :, : self._read] = self._past_2LBKCD[:, :, :, : self._read]
            self._past_2LBKCD = longer
            self._mask_B11C = self._step_mask()

    def _buffers(self, rows: int, places: int) -> np.ndarray:
        step = self._step
        return np.zeros((2 * step.layers, rows, step.kv_heads, places, step.head_width), np.float32)


class _Pieces:
    """Turns tokens into pieces of the text behind a prompt as they come."""

    def __init__(self, codec: Any, before: Sequence[int], on_text: Callable[[str], None] | None):
        self._codec, self._before, self._on_text = codec, list(before), on_text
        self._prompt = codec.decode(self._before)
        self._tokens: list[int] = []
        self._told = ""

    def __call__(self, _: int, token: int) -> None:
        self._tokens.append(token)
        if self._on_text is not None:
            text = self._text(self._tokens)
            if not text.endswith("\ufffd"):
                self._tell(text)

    def end(self, tokens: Sequence[int]) -> str:
        text = self._text(tokens)
        self._tell(text)
        return text

    def _text(self, tokens: Sequence[int]) -> str:
        whole = self._codec.decode([*self._before, *tokens])
        return whole[len(self._prompt) :] if whole.startswith(self._prompt) else self._codec.decode(list(tokens))

    def _tell(self, text: str) -> None:
        if self._on_text is not None and text.startswith(self._told) and text != self._told:
            self._on_text(text[len(self._told) :])
            self._told = text
