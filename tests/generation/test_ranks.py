"""Tensor-parallel ranks generate the texts of one process, in every family."""

from __future__ import annotations

from pathlib import Path

from paddle_llm.config.layout import Layout
from paddle_llm.generation.options import DecodeOptions, DecodeStrategy
from paddle_llm.rehearse.ranks import run_ranks
from tests.generation.test_families import STEPS, prompts
from tests.helpers.models.networks import WRITERS, build

STRATEGIES = {
    "greedy": DecodeStrategy(),
    "drawn": DecodeStrategy(temperature=1.5, seed=2),
    "beams": DecodeStrategy(num_beams=3),
}
TWO = Layout(tensor=2)


def generated(folder: Path, layout: Layout) -> dict[tuple[str, str], list[list[int]]]:
    """Return the texts of one rank for each family and strategy, as in training, whose logits are split."""
    from paddle_llm.generation.decoding.decode import decode
    from paddle_llm.generation.eval_mode import generating
    from paddle_llm.parallel.mesh import current_mesh
    from tests.helpers.models.layout_steps import start_fleet

    if layout.tensor > 1:
        start_fleet(layout)
    found = {}
    for family in WRITERS:
        model = build(folder / family, layout=layout)
        model.train()
        with generating(model):
            for name, strategy in STRATEGIES.items():
                batch = prompts(family)
                options = DecodeOptions(family, (50, 60), strategy, current_mesh(layout).tensor)
                found[family, name] = decode(model, batch, [STEPS] * len(batch), options)
        assert model.training and model.config.tensor_parallel_output
    return found


def test_two_ranks_generate_the_texts_of_one_process(tmp_path):
    """The vocabulary of 127 is not divisible by two ranks (ChatGLM-6B's last tokens are special)."""
    for family, write in WRITERS.items():
        size = {} if family == "chatglm" else {"padded_vocab_size" if family == "chatglm_v2" else "vocab_size": 127}
        write(tmp_path / family, **{"init_std" if family == "opt" else "initializer_range": 0.3}, **size)
    alone = generated(tmp_path, Layout())
    first, second = run_ranks(generated, 2, tmp_path, TWO, quiet=True)
    for key, texts in alone.items():
        assert first[key] == second[key] == texts, key
