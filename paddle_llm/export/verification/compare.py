"""When two engines' answers count as the same.

**The limit.** Logits are compared at the prompt's last position and at each token behind it, as long as both sides have
chosen the same tokens, in units of the standard deviation of the source's logits over the vocabulary there. The same
network in another engine sums in another order, which in fp32 moves them by at most 0.00007 of that in the small networks of
benchmarks/export_agreement.py, more in deep ones. Swapped layers or heads, a matrix that is not transposed or another RoPE
move them by 2 and more there, weights with half their bits cut off by 0.02: `LIMIT` stands between. (What may stay below
it, such as another epsilon of the norms, same_files.py finds in the configuration.) It is the same for 16-bit exports: the
source's weights are rounded to the export's dtype before it is asked, and the arithmetic is fp32 on both sides.

**Ties.** Where the tokens part because the source's logits of both are no further apart than twice the limit (each may
have moved by it), rounding has chosen: that is said, and the rest of that prompt, a text of its own, is not compared.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from paddle_llm.export.verification.engines.question import Answers

LIMIT = 1e-3
_SHOWN = 3


@dataclass(frozen=True)
class Finding:
    """What one comparison found.

    Attributes:
        engine: by name, with its version.
        what: that is compared.
        prompts: how many were asked.
        tokens_equal: of all prompts together.
        tokens: that were compared; a tie and what is behind it are not.
        largest_logit_difference: in standard deviations of the source's logits; None where none are compared.
        limit: of that.
        passed: None: not run.
        ended: the engine ended before it had answered (passed is False: nothing is known of the export).
        note: why it failed, ended or did not run; ties.
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
    """The source's answers and an engine's."""
    tally = _Tally()
    for number, (tokens, logits_NV) in enumerate(zip(expected.tokens, expected.logits_NV, strict=True), 1):
        others, others_NV = found.tokens[number - 1], found.logits_NV[number - 1]
        if others_NV.shape != logits_NV.shape:
            tally.wrong.append(f"prompt {number}: logits {others_NV.shape}, the source's are {logits_NV.shape}")
        else:
            _compare_prompt(f"prompt {number}", tokens, logits_NV, others, others_NV, tally)
    if not tally.largest <= LIMIT:
        tally.wrong.insert(0, f"logits differ by {tally.largest:.1e} deviations")
    return Finding(
        found.engine,
        "logits and greedy tokens",
        len(expected.tokens),
        tally.equal,
        tally.compared,
        tally.largest,
        LIMIT,
        not tally.wrong,
        "; ".join([*_shortened(tally.wrong), *_shortened(tally.ties), *([found.note] if found.note else [])]),
    )


def _compare_prompt(where, tokens, logits_NV, others, others_NV, tally: _Tally) -> None:  # type: ignore[no-untyped-def]
    for step, (token, other) in enumerate(zip(tokens, others, strict=True)):
        logits_V, spread = logits_NV[step], max(float(logits_NV[step].std()), np.finfo(np.float32).tiny)
        difference = float(np.abs(logits_V - others_NV[step]).max()) / spread
        tally.largest = max(tally.largest, difference if np.isfinite(difference) else np.inf)
        if token == other:
            tally.equal += 1
            tally.compared += 1
            continue
        margin = float(logits_V[token] - logits_V[other]) / spread
        place = f"{where}, token {step + 1}: {other}, the source's is {token}"
        if margin <= 2 * LIMIT:
            tally.ties.append(f"{place}, a tie ({margin:.0e} deviations apart)")
        else:
            tally.wrong.append(place)
            tally.compared += len(tokens) - step
        return


def _shortened(lines: list[str]) -> list[str]:
    return [*lines[:_SHOWN], *([f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else [])]
