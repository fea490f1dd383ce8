"""The reader accepts every shipped configuration, and the figures in configs/README.md are correct."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.config.local_files.model_folder import read_model_facts
from paddle_llm.config.methods import CHOICES, chosen
from paddle_llm.config.reader import resolve
from paddle_llm.planner.flops import parameter_count

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "configs" / "pretrain").glob("*.json"))
GPU_FILES = [path for path in FILES if path.stem != "quickstart"]


FINETUNE = sorted((ROOT / "configs" / "finetune").glob("*.json"))


def _load_memory_script():
    spec = importlib.util.spec_from_file_location("configs_memory", ROOT / "configs" / "memory.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


memory = _load_memory_script()


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in the folder that the commands of configs/README.md assume."""
    monkeypatch.chdir(ROOT)


def read(path: Path, device: str = "gpu"):
    world_size = memory.world_size(json.loads(path.read_text()))
    entry = "finetune" if path in FINETUNE else "pretrain"
    return resolve([str(path)], world_size=world_size, entry=entry, device=device)


@pytest.mark.parametrize("path", [*FILES, *FINETUNE], ids=lambda path: path.stem)
def test_the_reader_accepts_a_configuration(path: Path) -> None:
    resolved = read(path, device="cpu" if path.stem == "quickstart" else "gpu")
    raw = json.loads(path.read_text())
    for key, value in raw.items():  # the reader changes no value
        assert getattr(resolved.config, key) == value, key
        assert resolved.origins[key] == f"file {path}"
    assert resolved.layout.world_size == memory.world_size(raw)
    assert resolved.config.output_dir.endswith(path.stem) or path.stem == "quickstart"


@pytest.mark.parametrize("path", GPU_FILES, ids=lambda path: path.stem)
def test_the_name_of_a_configuration_contains_its_layout(path: Path) -> None:
    layout = read(path).layout
    parts = [("dp", layout.data), ("tp", layout.tensor), ("pp", layout.pipeline), ("sharding", layout.sharding)]
    words = [f"{name}{degree}" for name, degree in parts if degree > 1]
    if layout.virtual_stages > 1:
        words[words.index(f"pp{layout.pipeline}")] += f"v{layout.virtual_stages}"
    if layout.sharding > 1:
        words.append(f"stage{layout.sharding_stage}")
    assert ("_" + "_".join(words or ["one_card"])) in path.stem.removesuffix("_h200")


@pytest.mark.parametrize("path", GPU_FILES, ids=lambda path: path.stem)
def test_a_configuration_fits_its_card(path: Path) -> None:
    resolved = read(path)
    assert resolved.facts is not None
    total = memory.memory_per_rank(resolved.config, resolved.facts, resolved.layout).total
    assert total < memory.USABLE * memory.CARDS[memory.card_of(path)]


def test_the_table_in_the_readme_is_current() -> None:
    readme = (ROOT / "configs" / "README.md").read_text(encoding="utf-8")
    assert readme == memory.with_table(readme), "run: python configs/memory.py --write"


def test_memory_equals_a_computation_by_hand() -> None:
    """LLaMA-7B, tp2 x sharding4 stage 2: N = (6738415616 / 2), 2N + 4N/4 + 12N/4 = 6N; 16 of 224 matrices in flight."""
    resolved = read(ROOT / "configs" / "pretrain" / "llama_7b_tp2_sharding4_stage2.json")
    assert resolved.facts is not None
    rank = memory.memory_per_rank(resolved.config, resolved.facts, resolved.layout)
    n = 6_738_415_616 // 2
    assert rank.parameters == n
    assert rank.weights + rank.gradients + rank.optimizer == pytest.approx(6 * n + 4 * n * 16 / (7 * 32), rel=1e-12)
    s_b, h, f = 2048 * 4, 4096, 11008
    by_hand = 2 * s_b * h * 32 + 2 * s_b * (8 * h + (12 * h + 6 * f) / 2) + 14 * s_b * 32000 / 2
    assert rank.activations == pytest.approx(by_hand, rel=1e-12)


def test_the_shares_of_all_ranks_add_up_to_the_model() -> None:
    """Without embedding and head, the shares of all stages and tensor ranks add up to the model; no share is lost by rounding."""
    facts = read_model_facts(ROOT / "configs" / "models" / "llama-2-70b")
    whole = memory.parameters_per_rank(facts, Layout())
    assert whole == parameter_count(facts)
    share = memory.parameters_per_rank(facts, Layout(tensor=8, pipeline=4))
    ends = 2 * 32000 * 8192 + 8192
    assert share * 32 == pytest.approx(whole - ends + 4 * (ends / 2), rel=1e-4)


def test_every_model_of_the_list_has_a_configuration() -> None:
    wanted = {path.parent.name for path in (ROOT / "configs" / "models").glob("*/config.json")}
    used = {Path(json.loads(path.read_text())["model_name_or_path"]).name.lower() for path in (*FILES, *FINETUNE)}
    assert used == wanted
    sizes = {memory.world_size(json.loads(path.read_text())) for path in GPU_FILES}
    assert min(sizes) == 1 and max(sizes) == 64


@pytest.mark.parametrize("path", FINETUNE, ids=lambda path: path.stem)
def test_the_name_of_a_configuration_contains_its_method(path: Path) -> None:
    config = read(path).config
    methods = list(chosen({name: getattr(config, name) for name in CHOICES})) or ["full"]
    assert methods == [path.stem.rpartition("_")[2]]
    assert not read(path).config.early_stopping_patience
    strange = [line for line in read(path).notices if "is not a folder on this machine" not in line]
    assert strange == [], "a shipped config has no setting without effect"


@pytest.mark.parametrize("path", [path for path in FINETUNE if path.stem.endswith("_full")], ids=lambda path: path.stem)
def test_fine_tuning_of_all_weights_fits_its_card(path: Path) -> None:
    resolved = read(path)
    total = memory.memory_per_rank(resolved.config, resolved.facts, resolved.layout).total
    assert total < memory.USABLE * memory.CARDS["80 GB"]


def test_the_readme_has_the_learning_rates_of_the_files() -> None:
    rows = {}
    for line in (ROOT / "configs" / "README.md").read_text().split("### Learning rates")[1].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            rows[cells[0].strip("`")] = cells[1:4]
    shown = {
        (model, method): cell for model, cells in rows.items() for method, cell in zip(_METHODS, cells, strict=True)
    }
    for path in FINETUNE:
        model, _, method = path.stem.rpartition("_")
        if method in _METHODS:
            assert float(shown.pop((model, method))) == json.loads(path.read_text())["learning_rate"], path.stem
    assert set(shown.values()) <= {"-"}


_METHODS = ("full", "lora", "prefix")


def test_every_family_and_every_method_has_a_configuration() -> None:
    models = {path.stem.rpartition("_")[0] for path in FINETUNE}
    for family in ("llama", "chatglm_6b", "chatglm2", "chatglm3", "bloom", "opt", "glm", "qwen2", "mistral"):
        assert any(model.startswith(family) for model in models), family
    assert {path.stem.rpartition("_")[2] for path in FINETUNE} == {*CHOICES.values(), "full"}
