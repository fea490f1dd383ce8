"""Build a network of PaddleNLP from a folder and a layout, with random weights or the folder's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddle_llm.config.layout import Layout
from paddle_llm.config.local_files.model_folder import read_model_facts
from paddle_llm.config.rules.model_layout import check_layout
from paddle_llm.config.run_config import RunConfig
from paddle_llm.families import Family
from paddle_llm.families.shape import find_family
from paddle_llm.models.configuration.configure import translate
from paddle_llm.models.configuration.hub import model_folder
from paddle_llm.models.configuration.misspelled_fields import report_misspelled, report_unknown
from paddle_llm.models.configuration.switches import apply_switches, report_notices
from paddle_llm.models.patches import apply, apply_to_network
from paddle_llm.models.weights.initialization import initialize
from paddle_llm.models.weights.load import load_weights
from paddle_llm.models.weights.vocabulary import pad_config, plain_config
from paddle_llm.parallel.paddle_fixes import count_shared_weights_once, fix_fused_sequence_parallel_reduction

if TYPE_CHECKING:
    from paddlenlp.transformers import PretrainedConfig

    from paddle_llm.models.protocols import LanguageModel


def build_model(config: RunConfig, layout: Layout, *, dtype: str) -> LanguageModel:
    """Return the network of this rank: its tensor-parallel part of its pipeline stage.

    Fleet must be initialized if the layout has more than one rank. Random weights (`continue_training 0`) depend on
    `config.seed` only and are shards of the same full tensors in every layout. With `continue_training 1` each rank
    reads its part of the folder's weights.

    Args:
        config: Configuration of the run.
        layout: Degrees of parallelism.
        dtype: Type of the weights: "float32", or "bfloat16" or "float16" for O2.

    Returns:
        A PretrainedModel of PaddleNLP, or a PipelineLayer if the layout has pipeline stages. Its loss takes shifted
        labels and is the mean over the labels that are not -100.

    Raises:
        UserError: If PaddleNLP's model of this family does not support the folder's configuration or the layout.
    """
    folder = model_folder(config.model_name_or_path, weights=config.continue_training)
    facts = read_model_facts(folder)
    family = find_family(facts)
    if config.num_hidden_layers is not None:
        facts = replace(facts, num_hidden_layers=config.num_hidden_layers)
    check_layout(facts, layout, fuse_attention_qkv=config.fuse_attention_qkv)
    model_config = model_configuration(config, layout, family, facts.raw, where=str(folder))
    report_notices(config, family)
    pad_config(model_config, layout.tensor)  # the reader of the run's configuration reports the padding
    model = build_network(model_config, layout, family, dtype=dtype)
    if config.continue_training:
        load_weights(model, folder, family, allow_pickle=config.allow_pickle)
    else:
        initialize(model, family, config.seed)
    return model


def model_configuration(
    config: RunConfig, layout: Layout, family: Family, raw: dict[str, Any], *, where: str
) -> PretrainedConfig:
    """Return PaddleNLP's configuration of the model with the switches of this run, before the vocabulary is padded.

    Args:
        config: Configuration of the run.
        layout: Degrees of parallelism.
        family: Family of the model.
        raw: Fields of config.json.
        where: Folder of the model, which messages name.
    """
    values = translate(family, raw, where)
    report_misspelled(family, values, where)
    report_unknown(family, values, raw, where)
    model_config = family.load("config_class")(**values)
    apply_switches(model_config, config, layout, family)
    return model_config


def plain_configuration(folder: Path, family: Family, raw: dict[str, Any]) -> PretrainedConfig:
    """Return PaddleNLP's configuration of a folder's model in one process, with nothing fused and no padded vocabulary.

    Args:
        folder: Folder of the model.
        family: Its family.
        raw: Fields of its config.json.
    """
    fields = {"model_name_or_path": str(folder), "device": "cpu"}
    run = RunConfig.model_validate(fields | {"fuse_attention_qkv": False, "fuse_attention_ffn": False})
    return plain_config(model_configuration(run, Layout(), family, raw, where=str(folder)))


def build_network(model_config: PretrainedConfig, layout: Layout, family: Family, *, dtype: str) -> LanguageModel:
    """Return the network with allocated but unset weights.

    Args:
        model_config: PaddleNLP's configuration, with padded vocabulary.
        layout: Degrees of parallelism.
        family: Family of the model.
        dtype: Type of the weights.
    """
    import paddle

    from paddle_llm.models.loss import CausalLMLoss

    apply(family.name, paddle.device.get_device().split(":")[0])
    if layout.sequence_parallel:
        fix_fused_sequence_parallel_reduction()
    model_class = family.load("pipeline_class" if layout.pipeline > 1 else "model_class")
    model_config.architectures = [family.model_class.split(":")[1]]
    model_config.dtype = dtype
    before = paddle.get_default_dtype()
    paddle.set_default_dtype(dtype)
    try:
        with _random_weights_disabled(model_class), _tensor_parallel_random_state(layout):
            model = model_class(model_config)
    finally:
        paddle.set_default_dtype(before)
    loss = CausalLMLoss(model_config)
    if layout.pipeline > 1:
        model._loss_fn = [loss]
        count_shared_weights_once(model)
    else:
        model.criterion = loss
    apply_to_network(family.name, model)
    return model


@contextmanager
def _random_weights_disabled(model_class: type) -> Iterator[None]:
    """Keep PaddleNLP from drawing random weights, which are replaced anyway."""
    before = vars(model_class).get("_init_weights")
    model_class._init_weights = lambda self, layer: None  # type: ignore[attr-defined]
    try:
        yield
    finally:
        if before is None:
            del model_class._init_weights  # type: ignore[attr-defined]
        else:
            model_class._init_weights = before  # type: ignore[attr-defined]


@contextmanager
def _tensor_parallel_random_state(layout: Layout) -> Iterator[None]:
    """Create the named random state from which Paddle's parallel layers draw their first values, if fleet has not."""
    from paddle.distributed.fleet.meta_parallel import get_rng_state_tracker

    tracker = get_rng_state_tracker()
    if layout.tensor == 1 or "model_parallel_rng" in tracker.states_:
        yield
        return
    tracker.add("model_parallel_rng", max(tracker.seeds_, default=0) + 1)
    yield
