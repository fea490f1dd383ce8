"""Rules about the method of fine-tuning: exactly one, its settings, and its combinations."""

from __future__ import annotations

from pathlib import Path

from paddle_llm.config.local_files.adapters import describe_folder
from paddle_llm.config.local_files.published_names import folder_like
from paddle_llm.config.methods import CHOICES, METHODS, SETTINGS, chosen, flags_of, method_problems
from paddle_llm.config.rules.engine import Findings, Notice, Problem, Rule, Run, Unknown, fine_tuning
from paddle_llm.core.artifacts import ADAPTER_CONFIG


def _method(run: Run) -> str:
    """Return the method.

    Raises:
        Unknown: If several are chosen, which `one_method` reports.
    """
    methods = _chosen(run)
    if len(methods) > 1:
        raise Unknown("method")
    return next(iter(methods), "full")


def _chosen(run: Run) -> dict[str, list[str]]:
    return chosen({name: getattr(run.config, name) for name in CHOICES})


@fine_tuning
def one_method(run: Run) -> Findings:
    """At most one method of fine-tuning is chosen."""
    methods = _chosen(run)
    if len(methods) > 1:
        flags = [f"--{field}" for fields in methods.values() for field in fields]
        yield Problem(
            f"{', '.join(flags[:-1])} and {flags[-1]} choose different methods of fine-tuning. Drop all but one method."
        )


@fine_tuning
def method_fits_the_run(run: Run) -> Findings:
    """The method supports the layout, the family and the other settings."""
    config, method = run.config, _method(run)
    family = run.known_facts.model_type if run.known_facts else None
    packed, projection = config.zero_padding, config.prefix_projection
    dora, dropout = config.dora, config.lora_dropout
    problems = method_problems(
        method, run.layout, family, packed=packed, prefix_projection=projection, dora=dora, lora_dropout=dropout
    )
    yield from map(Problem, problems)


@fine_tuning
def settings_of_methods(run: Run) -> Findings:
    """Settings of a method are given with that method."""
    method = _method(run)
    for name, methods in SETTINGS.items():
        value = getattr(run.config, name)
        if name not in run.requested or method in methods or value in (None, False):
            continue
        if name in ("lora_path", "prefix_path"):
            yield Problem(f"{name} = {value} needs {flags_of(methods)}. Add it, or drop {name}.")
        else:
            yield Notice(f"--{name} has no effect without {flags_of(methods)}.")


@fine_tuning
def ranks_of_adalora(run: Run) -> Findings:
    """AdaLoRA has steps in which it reduces ranks."""
    config = run.config
    if not config.adalora:
        return
    if config.adalora_init_rank is not None and config.adalora_init_rank < config.lora_rank:
        yield Problem(
            f"adalora_init_rank = {config.adalora_init_rank} is below lora_rank = {config.lora_rank}, but AdaLoRA only reduces ranks. "
            f"Use {config.lora_rank} or more."
        )
    if config.adalora_warmup_ratio + config.adalora_final_ratio >= 1:
        yield Problem(
            f"adalora_warmup_ratio = {config.adalora_warmup_ratio} and adalora_final_ratio = {config.adalora_final_ratio} leave "
            "no step in which ranks are reduced. Use values whose sum is below 1."
        )


@fine_tuning
def merging(run: Run) -> Findings:
    """The method can be merged into the weights in this layout."""
    method = _method(run)
    if not run.config.merge_weights:
        return
    if METHODS[method].mergeable:
        if run.layout.sharding > 1 and run.layout.sharding_stage == 3:
            yield Problem(
                "merge_weights with --sharding stage3: no rank has the complete weights. Use --sharding stage2, or drop "
                "--merge_weights and load the saved adapter with `paddle-llm generate --adapter`."
            )
    elif method in ("full", "freeze"):
        yield Notice("--merge_weights has no effect: this method trains and saves the whole model.")
    else:
        yield Problem(
            f"merge_weights: {METHODS[method].title} cannot be merged into the weights of the model. Drop --merge_weights; the "
            "adapter is saved and loaded separately."
        )


_ADAPTERS = {"lora_path": "an adapter of this library or of PEFT", "prefix_path": "an adapter of this library"}


@fine_tuning
def adapters_exist(run: Run) -> Findings:
    """The folders of adapters to continue from contain an adapter."""
    for name in ("lora_path", "prefix_path"):
        path = getattr(run.config, name)
        if run.is_local and path and not (Path(path) / ADAPTER_CONFIG).is_file():
            problem = f"it has no {ADAPTER_CONFIG}" if Path(path).is_dir() else "no such folder exists"
            hint = describe_folder(Path(path)) if Path(path).is_dir() else folder_like(path)
            yield Problem(f"{name} = {path}: {problem}.{hint} Give {_ADAPTERS[name]}.")


RULES: list[Rule] = [
    one_method,
    method_fits_the_run,
    settings_of_methods,
    ranks_of_adalora,
    merging,
    adapters_exist,
]
