"""What a model's config.json says about its shape, read without paddle, in Hugging Face's and PaddleNLP's spelling."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paddle_llm.config.local_files.adapters import adapters_below, instead_of_model
from paddle_llm.config.local_files.published_names import downloaded, folder_like, why_unknown
from paddle_llm.config.positions import LENGTH_KEYS, position_limit, rope_scaling
from paddle_llm.core.artifacts import MODEL_CONFIG
from paddle_llm.core.downloads import other_layout
from paddle_llm.core.errors import UserError
from paddle_llm.core.json_files import read_json_object

# Every name under which a family keeps the same number. The first one present counts.
_KEYS: dict[str, tuple[str, ...]] = {
    "hidden_size": ("hidden_size", "n_embed", "n_embd"),
    "num_hidden_layers": ("num_hidden_layers", "num_layers", "n_layer"),
    "num_attention_heads": ("num_attention_heads", "n_head"),
    "num_key_value_heads": ("num_key_value_heads", "multi_query_group_num"),
    "head_dim": ("head_dim", "kv_channels"),
    "intermediate_size": ("intermediate_size", "ffn_hidden_size", "inner_hidden_size", "ffn_dim", "n_inner"),
    "vocab_size": ("padded_vocab_size", "vocab_size"),
    "max_position_embeddings": LENGTH_KEYS,
    "tie_word_embeddings": ("tie_word_embeddings",),
}
# Families that have no such key: what their code builds.
_FOUR_TIMES_HIDDEN = ("bloom", "glm")
_ALWAYS_TIED = ("bloom", "chatglm", "glm")  # whatever config.json says: their head is given the embedding's weight
# configs/models/llama-7b is what PaddleNLP calls facebook/llama-7b; somebody else's llama-7b may be another.
_SHIPPED_OWNERS = ("facebook", "meta-llama", "THUDM", "bigscience", "Qwen")
_REQUIRED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")


@dataclass(frozen=True)
class ModelFacts:
    """Shape of one model.

    Attributes:
        model_type: PaddleNLP's family name: "llama", "chatglm", "chatglm_v2", "bloom", "opt", "glm", ...
        architectures: class names as written in the file.
        head_dim: width of one attention head.
        max_position_embeddings: longest sequence; None where positions have no end (BLOOM's ALiBi) or the file is silent.
        raw: the whole file.
    """

    model_type: str
    architectures: tuple[str, ...]
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int | None
    tie_word_embeddings: bool
    raw: dict[str, Any] = field(repr=False, hash=False, default_factory=dict)

    @property
    def rope_is_scaled(self) -> bool:
        """Positions beyond max_position_embeddings are meant to work (RoPE scaling is set up)."""
        return rope_scaling(self.raw)[0] is not None

    @property
    def position_limit(self) -> int | None:
        """Longest sequence, RoPE scaling included; None where any length works (BLOOM's ALiBi, dynamic NTK)."""
        if self.max_position_embeddings is None:
            return None
        return position_limit({**self.raw, "max_position_embeddings": self.max_position_embeddings})


def read_model_facts(folder: str | Path) -> ModelFacts:
    """Read `folder`/config.json.

    Raises:
        UserError: there is no such file, it cannot be read, or it lacks a number that every family needs.
    """
    path = Path(folder).expanduser() / MODEL_CONFIG
    if not path.parent.is_dir():
        name = Path(folder).name
        raise UserError(
            f"{folder} is not a folder here. A name built into PaddleNLP must be downloaded first, which needs a network; "
            f"without one give a local folder: --model_name_or_path /path/to/{name}"
        )
    if not path.is_file():
        problem = (
            instead_of_model(path.parent)
            or f"{path} does not exist: a model folder needs its config.json.{other_layout(path.parent)}"
        )
        raise UserError(problem + adapters_below(path.parent))
    raw = read_json_object(path)
    return facts_from_dict(raw, where=str(path))


def facts_from_dict(raw: dict[str, Any], *, where: str) -> ModelFacts:
    """The facts of a config.json already read; `where` names it in messages."""
    named = raw.get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise UserError(f"{where}: architectures must be a list of class names, not {named!r}.")
    family = _family(raw)
    numbers = {name: _number(raw, name, where) for name in _KEYS if name != "tie_word_embeddings"}
    if family == "chatglm_v2" and raw.get("multi_query_attention") is False:
        numbers["num_key_value_heads"] = None
    if numbers["intermediate_size"] is None and numbers["hidden_size"] and family in _FOUR_TIMES_HIDDEN:
        numbers["intermediate_size"] = 4 * numbers["hidden_size"]
    missing = [name for name in _REQUIRED if numbers[name] is None]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}: it is not the config.json of a language model.")
    heads, hidden = numbers["num_attention_heads"] or 0, numbers["hidden_size"] or 0
    return ModelFacts(
        model_type=family,
        architectures=tuple(named),
        hidden_size=hidden,
        num_hidden_layers=numbers["num_hidden_layers"] or 0,
        num_attention_heads=heads,
        num_key_value_heads=numbers["num_key_value_heads"] or heads,
        head_dim=numbers["head_dim"] or hidden // heads,
        intermediate_size=numbers["intermediate_size"] or 0,
        vocab_size=numbers["vocab_size"] or 0,
        max_position_embeddings=None if family == "bloom" else numbers["max_position_embeddings"],
        tie_word_embeddings=_tied(raw, family),
        raw=raw,
    )


def _family(raw: dict[str, Any]) -> str:
    """PaddleNLP's name of the family. Hugging Face calls ChatGLM 1, 2 and 3 all "chatglm"; their keys tell them apart."""
    name = str(raw.get("model_type") or "").lower()
    if not name:
        architecture = str((raw.get("architectures") or [""])[0]).lower()
        known = ("chatglmv2", "chatglm", "llama", "bloom", "opt", "glm", "gpt", "qwen2", "qwen", "gemma", "mistral")
        name = next((family for family in known if architecture.startswith(family)), "unknown")
    if name == "glm" and "rms_norm_eps" in raw:
        return "glm4"  # transformers' "glm" is another network than GLM (Du et al. 2022)
    if name in ("chatglm", "chatglmv2", "chatglm_v2"):
        second = name != "chatglm" or "multi_query_group_num" in raw or "padded_vocab_size" in raw
        return "chatglm_v2" if second else "chatglm"
    return name


def _tied(raw: dict[str, Any], family: str) -> bool:
    return family in _ALWAYS_TIED or bool(raw.get("tie_word_embeddings", family == "opt"))


_LARGEST = 100_000_000  # above every size of a published model; larger ones only exhaust the memory


def _number(raw: dict[str, Any], name: str, where: str) -> int | None:
    for key in _KEYS[name]:
        value = raw.get(key)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{where}: {key} must be a whole number of at least 1, not {value!r}.")
        if value > _LARGEST:
            raise UserError(f"{where}: {key} {value} is larger than that of any model. Correct it.")
        return value
    return None


def find_model_folder(name: str) -> Path | None:
    """The folder that holds `name`'s config.json, or None when it is a built-in name not downloaded yet.

    Looked for in this order: `name` itself, PaddleNLP's download cache, the shapes shipped in configs/models/.

    Raises:
        UserError: If no such folder exists, and PaddleNLP cannot know the name.
    """
    path = Path(name).expanduser()
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError) as error:
        raise UserError(
            f"model_name_or_path = {name[:80]!r} cannot be a folder: {error.args[-1]}. Name a folder."
        ) from None
    if is_folder:
        return path
    if is_file:
        raise UserError(f"model_name_or_path = {name} is a file: give the folder that holds config.json.")
    if looks_local(name):
        raise UserError(f"model_name_or_path = {name}: there is no such folder.{folder_like(name)}")
    if problem := why_unknown(name):
        raise UserError(f"model_name_or_path = {name}: {problem}")
    candidates = [downloaded(name)]
    owner, _, model = name.rpartition("/")
    if owner in _SHIPPED_OWNERS:
        candidates.append(Path(__file__).resolve().parents[2] / "configs" / "models" / model.lower())
    return next((folder for folder in candidates if (folder / MODEL_CONFIG).is_file()), None)


def looks_local(name: str) -> bool:
    """Whether a name is written like a path, or begins with a folder that is here; PaddleNLP's are `owner/name` or `name`."""
    if name.startswith(("/", "./", "../", "~")) or name.endswith("/") or name.count("/") > 1:
        return True
    owner = name.split("/")[0]
    return "/" in name and owner not in _SHIPPED_OWNERS and Path(owner).is_dir()


def with_numbers(raw: dict[str, Any], numbers: dict[str, int]) -> dict[str, Any]:
    """A config.json with other numbers, each under the spellings that it has there; those that it lacks stay absent.

    Args:
        numbers: by the names of `ModelFacts`.
    """
    return raw | {key: value for name, value in numbers.items() for key in _KEYS[name] if key in raw}
