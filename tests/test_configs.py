"""The reader accepts every shipped configuration, and the figures in configs/README.md are correct."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from docs.recipes_table import README, card_of, memory_of, with_table, world_size
from paddle_llm.config.methods import CHOICES, chosen
from paddle_llm.config.reader import resolve
from paddle_llm.planner.gpus import find_gpu

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "configs" / "pretrain").glob("*.json"))
USABLE = 0.9  # of a card; the rest is a margin
GPU_FILES = [path for path in FILES if path.stem != "quickstart"]


FINETUNE = sorted((ROOT / "configs" / "finetune").glob("*.json"))


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in the folder that the commands of configs/README.md assume."""
    monkeypatch.chdir(ROOT)


def read(path: Path, device: str = "gpu"):
    entry = "finetune" if path in FINETUNE else "pretrain"
    return resolve([str(path)], world_size=world_size(path), entry=entry, device=device)


@pytest.mark.parametrize("path", [*FILES, *FINETUNE], ids=lambda path: path.stem)
def test_the_reader_accepts_a_configuration(path: Path) -> None:
    resolved = read(path, device="cpu" if path.stem == "quickstart" else "gpu")
    raw = json.loads(path.read_text())
    for key, value in raw.items():  # the reader changes no value
        assert getattr(resolved.config, key) == value, key
        assert resolved.origins[key] == f"file {path}"
    assert resolved.layout.world_size == world_size(path)
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
    assert memory_of(path).total < USABLE * find_gpu(card_of(path)).memory_bytes


def test_the_table_in_the_readme_is_current() -> None:
    readme = README.read_text(encoding="utf-8")
    assert readme == with_table(readme), "run: python -m docs.generate"


def test_every_model_of_the_list_has_a_configuration() -> None:
    wanted = {path.parent.name for path in (ROOT / "configs" / "models").glob("*/config.json")}
    used = {Path(json.loads(path.read_text())["model_name_or_path"]).name.lower() for path in (*FILES, *FINETUNE)}
    assert used == wanted
    sizes = {world_size(path) for path in GPU_FILES}
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
    assert memory_of(path).total < USABLE * find_gpu("a100-80g").memory_bytes


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
