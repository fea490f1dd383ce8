"""The options of decoding and of `paddle-llm generate`. Importing this module does not import Paddle."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from paddle_llm.config.rules.decoding import beams_with_sampling
from paddle_llm.core.errors import UserError
from paddle_llm.parallel.mesh import Axis


@dataclass(frozen=True)
class DecodeStrategy:
    """How tokens are chosen: greedily, by sampling, or by beam search.

    Setting `temperature`, `top_k` or `top_p` selects sampling. `num_beams` above 1 selects beam search and excludes
    sampling. The default is greedy decoding.

    Attributes:
        temperature: Divisor of the logits; None: 1.
        top_k: Number of most likely tokens to sample from; None or 0: all.
        top_p: Probability mass of the most likely tokens to sample from (Holtzman et al. 2020); None: 1.
        repetition_penalty: Factor that makes tokens of the prompt and the answer less likely: positive logits are
            divided by it, negative ones multiplied (Keskar et al. 2019, section 4.1). 1: no penalty.
        num_beams: Number of beams; 1: no beam search.
        length_penalty: Exponent of the length by which a beam's log-probability is divided, as in transformers. Values
            above 0 favour longer texts.
        seed: Seed of the sampling.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    num_beams: int = 1
    length_penalty: float = 1.0
    seed: int = 0

    @property
    def samples(self) -> bool:
        """Whether decoding draws random numbers."""
        requested = self.temperature is not None or self.top_p is not None or bool(self.top_k)
        return requested and self.top_k != 1 and self.num_beams == 1

    @property
    def is_greedy(self) -> bool:
        """Whether each token is the most likely one."""
        return not self.samples and self.num_beams == 1


@dataclass(frozen=True)
class DecodeOptions:
    """Arguments of `decode` besides the network and the prompts.

    Attributes:
        family: Name of the model family.
        stop_ids: Token ids that end a text. They are not part of the text.
        strategy: How tokens are chosen.
        tensor: Mesh axis of the tensor-parallel ranks, which all call `decode` and get the same tokens; None: one
            process.
        stop_on_repetition: Whether a text ends when it repeats one sequence of tokens exactly
            (`decoding/repetition.py`); not for beam search.
    """

    family: str
    stop_ids: Collection[int] = ()
    strategy: DecodeStrategy = DecodeStrategy()
    tensor: Axis | None = None
    stop_on_repetition: bool = False


@dataclass(frozen=True)
class GenerateOptions:
    """The options of `generate` and of `paddle-llm generate`.

    Attributes:
        adapter: Folder of an adapter that was trained on the model.
        tokenizer: Folder of the tokenizer; None: the adapter's folder if it has one, else the model folder.
        chat_template: "none" to continue prompts as plain text, "auto", the name of a template, "jinja" or a file.
            None: plain text for prompts, "auto" for conversations.
        chat_template_date: Date (YYYY-MM-DD) for a template that writes the current date.
        system: System message for conversations that have none. Requires a template.
        max_new_tokens: Maximum length of an answer, in tokens; None: 64 for plain text, 512 with a template.
        batch_size: Number of prompts decoded together.
        temperature, top_k, top_p, repetition_penalty, num_beams, length_penalty, seed: See `DecodeStrategy`.
        stop_on_repetition: Whether an answer ends when it repeats one sequence of tokens exactly: at most 32 tokens, at
            least 8 times and 64 tokens in all. For greedy decoding.
        allow_pickle: Whether pickle files may be read where no safetensors exist.
        device: "cpu" or "gpu"; None: the GPU if one is available.
        static: Whether the model folder is a static export.
    """

    adapter: Path | None = None
    tokenizer: Path | None = None
    chat_template: str | None = None
    chat_template_date: str | None = None
    system: str = ""
    max_new_tokens: int | None = None
    batch_size: int = 8
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    num_beams: int = 1
    length_penalty: float = 1.0
    seed: int = 0
    stop_on_repetition: bool = False
    allow_pickle: bool = False
    device: str | None = None
    static: bool = False

    @property
    def strategy(self) -> DecodeStrategy:
        """The decoding strategy."""
        return DecodeStrategy(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
            num_beams=self.num_beams,
            length_penalty=self.length_penalty,
            seed=self.seed,
        )

    def check(self) -> None:
        """Check the values and their combination.

        Raises:
            UserError: If a value is out of range, or beam search is combined with sampling.
        """
        for name in ("max_new_tokens", "batch_size", "num_beams"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} {value} is not positive. Use 1 or more.")
        for name in ("temperature", "top_p", "repetition_penalty"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"--{name} {value} is not positive. Use a number above 0.")
        if self.top_p is not None and self.top_p > 1:
            raise UserError(f"--top_p {self.top_p} is above 1. Use a number above 0 and at most 1.")
        if self.top_k is not None and self.top_k < 0:
            raise UserError(f"--top_k {self.top_k} is negative. Use 0 or more.")
        sampling = [name for name in ("temperature", "top_p", "top_k") if getattr(self, name)]
        if problem := beams_with_sampling(self.num_beams, sampling):
            raise UserError(problem)
        if self.stop_on_repetition and not self.strategy.is_greedy:
            raise UserError(
                "--stop_on_repetition is for greedy decoding, and another strategy was selected. Drop one of the two."
            )
