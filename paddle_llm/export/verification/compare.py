"""Compares the answers of two engines.

**Limit.** Logits are compared at the last position of the prompt and at each generated token, as long as both sides
choose the same tokens. The unit is the standard deviation of the source's logits over the vocabulary at that position.
Another engine sums in another order, which in fp32 changes logits by at most 0.00007 in the small networks of
benchmarks/export_agreement.py, and more in deep ones. Swapped layers or heads, a matrix that is not transposed or
another RoPE change them by 2 or more, weights that lost half their bits by 0.02. `LIMIT` lies between these values.
(Changes that may stay below it, such as another epsilon of the norms, are found in the configuration by files.py.) The
limit is the same for 16-bit exports: the source's weights are rounded to the export's dtype first, and both sides
compute in fp32.

**Ties.** If the tokens differ and the source's logits of the two are no further apart than twice the limit (each may
have changed by the limit), rounding decided between them. The tie is reported, and the rest of that prompt is not
compared, since the texts differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from paddle_llm.export.verification.engines.question import Answers

LIMIT = 1e-3
LOGITS_AND_TOKENS = "logits and greedy tokens"
_SHOWN = 3


@dataclass(frozen=True)
class Finding:
    """The result of one comparison.

    Attributes:
        engine: Name and version of the engine.
        what: Quantity that is compared.
        prompts: Number of prompts.
        tokens_equal: Number of equal tokens of all prompts.
        tokens: Number of compared tokens; a tie and the tokens after it are not compared.
        largest_logit_difference: Largest difference in standard deviations of the source's logits; None: not compared.
        limit: Maximum allowed difference.
        passed: Whether the comparison passed; None: not run.
        note: Reason why it failed, ended or did not run; ties.
        ended: Whether the engine ended without an answer (`passed` is False, but nothing is known about the export).
    """

    engine: str
    what: str
    prompts: int = 0
    tokens_equal: int = 0
    tokens: int = 0
    largest_logit_difference: float | None = None
    limit: float | None = None
    passed: bool | None = True
    note: str = ""
    ended: bool = False


@dataclass
class _Tally:
    equal: int = 0
    compared: int = 0
    largest: float = 0.0
    ties: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def compare(expected: Answers, found: Answers) -> Finding:
    """Compare the answers of an engine with those of the source.

    Args:
        expected: Answers of the source.
        found: Answers of the engine.
    """
    tally = _Tally()
    for number, (tokens, logits_NV) in enumerate(zip(expected.tokens, expected.logits_NV, strict=True), 1):
        others, others_NV = found.tokens[number - 1], found.logits_NV[number - 1]
        if others_NV.shape != logits_NV.shape:
            tally.wrong.append(
                f"prompt {number}: the logits have shape {others_NV.shape}, those of the source {logits_NV.shape}"
            )
        else:
            _compare_prompt(f"prompt {number}", tokens, logits_NV, others, others_NV, tally)
    if not tally.largest <= LIMIT:
        tally.wrong.insert(0, f"logits differ by {tally.largest:.1e} deviations")
    return Finding(
        found.engine,
        LOGITS_AND_TOKENS,
        len(expected.tokens),
        tally.equal,
        tally.compared,
        tally.largest,
        LIMIT,
        not tally.wrong,
        "; ".join([*_shortened(tally.wrong), *_shortened(tally.ties), *([found.note] if found.note else [])]),
    )


def _compare_prompt(
    where: str,
    tokens: Sequence[int],
    logits_NV: np.ndarray,
    others: Sequence[int],
    others_NV: np.ndarray,
    tally: _Tally,
) -> None:
    for step, (token, other) in enumerate(zip(tokens, others, strict=True)):
        logits_V, spread = logits_NV[step], max(float(logits_NV[step].std()), float(np.finfo(np.float32).tiny))
        difference = float(np.abs(logits_V - others_NV[step]).max()) / spread
        tally.largest = max(tally.largest, difference if np.isfinite(difference) else np.inf)
        if token == other:
            tally.equal += 1
            tally.compared += 1
            continue
        margin = float(logits_V[token] - logits_V[other]) / spread
        difference_text = f"{where}, token {step + 1}: {other} instead of {token}"
        if margin <= 2 * LIMIT:
            tally.ties.append(f"{difference_text}, a tie ({margin:.0e} deviations apart)")
        else:
            tally.wrong.append(difference_text)
            tally.compared += len(tokens) - step
        return


def _shortened(lines: list[str]) -> list[str]:
    return [*lines[:_SHOWN], *([f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else [])]
