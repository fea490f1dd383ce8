"""A static export in paddle.inference, with the interface of `models/incremental.py` that `decode` uses.

The buffers of keys and values belong to this process, and the program reads and writes them in place: only new tokens
are copied into the program, and only their logits out of it.

Shapes: B rows, S tokens of the longest prompt, s tokens read in this step, C capacity of the buffers in tokens, L
layers, K key-value heads, D head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Union

import numpy as np

from paddle_llm.core.artifacts import STATIC_PROGRAM, STATIC_STEP, STATIC_WEIGHTS
from paddle_llm.core.errors import UserError
from paddle_llm.core.json_files import parse_json
from paddle_llm.generation.static.predictor import open_program
from paddle_llm.models.prompt import Prompt
from paddle_llm.models.token_positions import PaddedPrompts

if TYPE_CHECKING:
    import paddle

MASKED = -1e30  # added to the scores of masked positions
_INDEX_INPUT = "places"  # the name in the file of the input with the buffer indices of the new keys and values
Buffers = Union["np.ndarray", "list[paddle.Tensor]"]  # of keys and values
_GROWTH = 128  # tokens by which a full buffer is extended


@dataclass(frozen=True)
class ProgramDescription:
    """The contents of step.json, which describe a program.

    Attributes:
        family: Name of the model family.
        dtype: Type of weights and arithmetic.
        vocab_size: V.
        layers: L. The cache has the shape [2 L, B, K, C, D].
        kv_heads: K.
        head_width: D.
        max_position_embeddings: Maximum number of tokens of a text; None: unlimited.
        position_rows: Number of rows of `position_ids`; 0 if the program does not take them.
        key_places: Whether the program takes the positions of the keys (ALiBi).
        end_ids: Token ids that end a text.
        template: Name or file of the chat template of fine-tuning; None: unknown.
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
    """Return whether a folder is a static export."""
    return (folder / STATIC_STEP).is_file()


def read_description(folder: Path) -> ProgramDescription:
    """Read the description of a static export.

    Raises:
        UserError: If the folder is not a static export, or is incomplete.
    """
    missing = [name for name in (STATIC_STEP, STATIC_PROGRAM, STATIC_WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} is not a static export: it has no {missing[0]}. Create one with "
            f"paddle-llm export MODEL_FOLDER OUT --target static."
        )
    try:
        description = ProgramDescription(**parse_json((folder / STATIC_STEP).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder / STATIC_STEP} cannot be read: {error}. Export the model again.") from None
    template = description.template
    if template and (folder / template).is_file():
        template = str(folder / template)
    return ProgramDescription(**{**vars(description), "end_ids": tuple(description.end_ids), "template": template})


class StaticProgram:
    """The program of a static export. It runs one batch of prompts at a time.

    Args:
        folder: Folder with model.json, model.pdiparams and step.json.
        threads: Number of threads; None: OMP_NUM_THREADS, or the number of cores.

    Attributes:
        folder: Folder of the export.
        config: Description of the program.
        family: Name of the model family.

    Raises:
        UserError: If the folder is not a static export, or a file is truncated or unreadable.
    """

    def __init__(self, folder: str | Path, threads: int | None = None) -> None:
        self.folder = Path(folder)
        self.config = read_description(self.folder)
        self.family = self.config.family
        self._predictor = open_program(self.folder / STATIC_PROGRAM, self.folder / STATIC_WEIGHTS, threads)
        names = [f"past_{which}_{layer}" for layer in range(self.config.layers) for which in ("k", "v")]
        self._inputs = {name: self._predictor.get_input_handle(name) for name in self._predictor.get_input_names()}
        if _INDEX_INPUT not in self._inputs:
            raise UserError(f"{self.folder / STATIC_PROGRAM} was written by another version. Export the model again.")
        self._past = [self._inputs[name] for name in names]
        self._logits = self._predictor.get_output_handle(self._predictor.get_output_names()[0])
        self._shared_buffers: Buffers | None = None

    def run(self, inputs: dict[str, np.ndarray], past_2LBKCD: Buffers) -> np.ndarray:
        """Run the program once. It writes the new keys and values into the buffers.

        Args:
            inputs: Values of the inputs besides the buffers.
            past_2LBKCD: Buffers of keys and values of each layer: one array, or a list of tensors. If it is the object of
                the run before, it is not passed to the program again.

        Returns:
            Logits [B, V] of the last token.
        """
        for name, values in inputs.items():
            self._inputs[name].copy_from_cpu(values)
        if self._shared_buffers is not past_2LBKCD:
            self._share(past_2LBKCD)
        self._predictor.run()
        logits_BV: np.ndarray = self._logits.copy_to_cpu()
        return logits_BV

    def _share(self, past_2LBKCD: Buffers) -> None:
        """Let the program read and write the buffers in place."""
        import paddle

        self._shared_buffers = past_2LBKCD
        are_arrays = isinstance(past_2LBKCD, np.ndarray)
        self._tensors = [paddle.from_dlpack(buffer) for buffer in past_2LBKCD] if are_arrays else past_2LBKCD
        for handle, tensor in zip(self._past, self._tensors, strict=True):
            handle.share_external_data(tensor)


class StaticBatch:
    """One batch of prompts in a static program.

    Args:
        program: The program.
        prompts: Prompts, none of them empty; shorter ones are padded on the left.
        max_new_tokens: Maximum number of tokens appended to any row.
        as_tensors: Whether logits are returned as `paddle.Tensor`s. Numpy arrays are faster: creating a tensor and
            taking its argmax costs a thirtieth of a step of a small network.
    """

    def __init__(
        self, program: StaticProgram, prompts: Sequence[Prompt], max_new_tokens: int, *, as_tensors: bool = True
    ) -> None:
        self._program, self._description, self._as_tensors = program, program.config, as_tensors
        self._padded = PaddedPrompts(prompts, max_new_tokens, block_positions=self._description.position_rows == 2)
        self._length = 0
        self._past_2LBKCD = self._new_buffers(len(prompts), 0)
        self._mask_B11C = self._step_mask()

    def read_prompts(self) -> paddle.Tensor | np.ndarray:
        """Return the logits [B, V] of the first token after each prompt."""
        padded = self._padded
        self._reserve(padded.length)
        mask_B1SC = np.full((len(padded.ids_BS), 1, padded.length, self._capacity), MASKED, np.float32)
        visible_BSS = padded.prompt_mask() & (padded.tokens_BT[:, None, : padded.length] == 1)
        mask_B1SC[:, 0, :, : padded.length][visible_BSS] = 0
        logits_BV = self._forward(padded.ids_BS, mask_B1SC)
        self._mask_B11C = self._step_mask()
        return logits_BV

    def read(self, tokens_B: paddle.Tensor | np.ndarray) -> paddle.Tensor | np.ndarray:
        """Append one token to each row and return the logits [B, V] of the next one."""
        self._reserve(self._length + 1)
        self._mask_B11C[..., self._length] = 0
        return self._forward(np.asarray(tokens_B).reshape(-1, 1), self._mask_B11C)

    def keep_rows(self, rows: paddle.Tensor | np.ndarray) -> None:
        """Keep only these rows, in this order. A row may be repeated."""
        rows = np.asarray(rows)
        self._padded.keep_rows(rows)
        self._past_2LBKCD = np.ascontiguousarray(self._past_2LBKCD[:, rows])
        self._mask_B11C = self._mask_B11C[rows]

    # ---- one run ----------------------------------------------------------------------------------------------------

    @property
    def _capacity(self) -> int:
        """C."""
        return self._past_2LBKCD.shape[3]

    def _forward(self, ids_Bs: np.ndarray, mask_B1sC: np.ndarray) -> paddle.Tensor | np.ndarray:
        start, end = self._length, self._length + ids_Bs.shape[1]
        inputs = {"input_ids": ids_Bs, _INDEX_INPUT: np.array([start, end]), "mask": mask_B1sC}
        if self._description.position_rows:
            inputs["position_ids"] = self._padded.positions[..., start:end].reshape(len(ids_Bs), -1, end - start)
        if self._description.key_places:
            inputs["key_places"] = self._key_positions(end)
        logits_BV = self._program.run(inputs, self._past_2LBKCD)
        self._length = end
        if not self._as_tensors:
            return logits_BV
        import paddle

        return paddle.to_tensor(logits_BV)

    def _step_mask(self) -> np.ndarray:
        """Return the mask [B, 1, 1, C] added to the scores of the next token, before its own position is unmasked."""
        tokens_BT = self._padded.tokens_BT
        mask = np.full((len(tokens_BT), 1, 1, self._capacity), MASKED, np.float32)
        mask[:, 0, 0, : self._length][tokens_BT[:, : self._length] == 1] = 0
        return mask

    def _key_positions(self, end: int) -> np.ndarray:
        """Return the position of each key in its row, [B, 1, 1, C]."""
        positions_BT = self._padded.positions
        positions_B11C = np.zeros((len(positions_BT), 1, 1, self._capacity), np.float32)
        positions_B11C[:, 0, 0, :end] = positions_BT[:, :end]
        return positions_B11C

    def _reserve(self, end: int) -> None:
        """Extend the buffers if they hold fewer than `end` tokens."""
        if end > self._capacity:
            rows, total = self._padded.tokens_BT.shape
            extended = self._new_buffers(rows, end + min(_GROWTH, total - end))
            extended[:, :, :, : self._length] = self._past_2LBKCD[:, :, :, : self._length]
            self._past_2LBKCD = extended
            self._mask_B11C = self._step_mask()

    def _new_buffers(self, rows: int, capacity: int) -> np.ndarray:
        description = self._description
        shape = (2 * description.layers, rows, description.kv_heads, capacity, description.head_width)
        return np.zeros(shape, np.float32)
