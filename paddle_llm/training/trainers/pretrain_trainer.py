"""PretrainTrainer: PaddleNLP's Trainer with one global order of data, true losses, atomic checkpoints and curves.

The training loop stays upstream's (paddlenlp 3.0.0b4). What is replaced here are the methods that it calls: samplers,
schedule, what happens to a step's loss, the rows of metrics, evaluation and saving.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import paddle
from paddle.distributed import fleet
from paddle.distributed.fleet.meta_parallel import PipelineLayer
from paddlenlp.trainer.trainer_callback import DefaultFlowCallback, PrinterCallback, ProgressCallback

from paddle_llm.config.layout import Layout
from paddle_llm.config.steps import warmup_of
from paddle_llm.core.artifacts import METRICS
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.data.collate import collate_numpy
from paddle_llm.data.counted_batches import LABEL_COUNT, TOKEN_COUNT, CountedBatches
from paddle_llm.data.sampler import EvalBatchSampler, GlobalBatchSampler, PaddedView
from paddle_llm.parallel.process.parent import worker_initializer
from paddle_llm.parallel.zero.stage2 import ShardedGradients
from paddle_llm.parallel.zero.stage3 import ShardedWeights
from paddle_llm.training.epochs import global_batch_of, in_global_order
from paddle_llm.training.evaluation.mean_loss import mean_loss
from paddle_llm.training.metrics.grad_norm import GradNormReader, RecordingClip
from paddle_llm.training.metrics.meter import Meter
from paddle_llm.training.metrics.reports import CurveWriter, MetricsFile, ProgressReport, StepFlow
from paddle_llm.training.metrics.step_scalars import StepScalars
from paddle_llm.training.options import TrainerOptions
from paddle_llm.training.random_states import seed_random_states
from paddle_llm.training.schedule import learning_rate_factor
from paddle_llm.training.sharding import apply_sharding
from paddle_llm.training.step.loss_normalization import GLOBAL_BATCH_LABELS, GlobalBatchLoader, LossNormalizer
from paddle_llm.training.step.loss_scaling import unscale_main_gradients
from paddle_llm.training.step.nan_guard import NanGuard
from paddle_llm.training.trainers.checkpointed_trainer import CheckpointedTrainer


class PretrainTrainer(CheckpointedTrainer):
    """Trains a causal language model; a subclass of PaddleNLP's Trainer, and used like it.

    Samples are dicts of arrays `input_ids` [S] and `labels` [S], labels shifted already. A `train_dataset` that has
    `samples_per_epoch` is in its global order: item i is the i-th sample of the whole training, whatever the layout, and
    global batch g takes items [g*G, (g+1)*G). Any other map-style data set is shuffled anew for every epoch.
    """

    def __init__(
        self, model=None, args=None, *, layout: Layout | None = None, options: TrainerOptions | None = None, **kwargs
    ):
        _check_device(args)
        self.layout = layout or _layout_of(args)
        self.options = options or TrainerOptions()
        kwargs.setdefault("data_collator", collate_numpy)
        if kwargs.get("train_dataset") is not None:
            kwargs["train_dataset"] = in_global_order(kwargs["train_dataset"], args)
        super().__init__(model=model, args=args, **kwargs)
        seed_random_states(self.layout, self.args.seed, named=self.args.use_hybrid_parallel)
        self._replace_reports()
        self.meter = Meter(
            flops_per_token=self.options.flops_per_token,
            peak_flops=self.options.peak_flops,
            model_ranks=self.layout.tensor * self.layout.pipeline,
        )
        self.loss_normalizer = LossNormalizer(
            self.model,
            micro_batches=self.global_batch // self.args.per_device_train_batch_size,
            data_ranks=self.layout.data_world_size,
            model_ranks=self.layout.tensor * self.layout.pipeline,
        )
        self.nan_guard = NanGuard(self.options.nan_policy, self)
        self.scalars = StepScalars()
        self.grad_norm_reader: GradNormReader | None = None
        self.sharded_gradients: ShardedGradients | None = None
        self.sharded_weights: ShardedWeights | None = None

    # --- reports -----------------------------------------------------------------------------------------------

    def _replace_reports(self) -> None:
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        output = Path(self.args.output_dir)
        # DefaultFlowCallback comes first and sets the flags that StepFlow completes.
        assert any(isinstance(c, DefaultFlowCallback) for c in self.callback_handler.callbacks)
        self.add_callback(StepFlow(self))
        if self.args.process_index == 0:
            self.add_callback(MetricsFile(output / METRICS))
            if self.options.curves:
                self.add_callback(CurveWriter(output))
            self.add_callback(ProgressReport(bar=not self.args.disable_tqdm))
        self.args.disable_tqdm = True  # upstream's own bars

    def log(self, logs, **kwargs):
        """Hand one row to the reports; without upstream's extra keys."""
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    def _print_timer(self):
        """Upstream's goes to its logger, which is set to errors only (`parallel.process.start`)."""
        if self.timers is not None:
            say(f"step {self.state.global_step}: {self.timers.log(self.timers.timers.keys(), reset=True)}")
        super()._print_timer()  # paddle's own timers of a pipeline (enable_timer)

    # --- data --------------------------------------------------------------------------------------------------

    @property
    def global_batch(self) -> int:
        """Samples per optimizer step, over all ranks."""
        return global_batch_of(self.args)

    def get_train_dataloader(self):
        return GlobalBatchLoader(
            self.train_dataset,
            batch_sampler=self._get_train_sampler(),
            collate_fn=self.counted_batches(self.data_collator),
            num_workers=self.args.dataloader_num_workers,
            accumulation=self.args.gradient_accumulation_steps,
        )

    def get_eval_dataloader(self, eval_dataset=None):
        loader = super().get_eval_dataloader(eval_dataset)
        loader.worker_init_fn = worker_initializer()
        loader.collate_fn = self.counted_batches(loader.collate_fn)
        return loader

    def counted_batches(self, collate: Callable[[list], dict]) -> CountedBatches:
        """A collator whose batches carry what the loop must know of them on the host."""
        return CountedBatches(collate)

    def _get_train_sampler(self):
        args = self.args
        steps = args.max_steps
        if len(self.train_dataset) < steps * self.global_batch:
            raise ValueError(
                f"{len(self.train_dataset)} samples are fewer than {steps} global batches of {self.global_batch}"
            )
        return GlobalBatchSampler(
            steps * self.global_batch,
            args.per_device_train_batch_size,
            args.gradient_accumulation_steps,
            data_rank=args.dataset_rank,
            data_world_size=args.dataset_world_size,
        )

    def _get_eval_sampler(self, eval_dataset):
        return EvalBatchSampler(
            len(eval_dataset),
            self.args.per_device_eval_batch_size,
            data_rank=self.args.dataset_rank,
            data_world_size=self.args.dataset_world_size,
        )

    def epoch_of(self, consumed_samples: int) -> float:
        return consumed_samples / self.train_dataset.samples_per_epoch

    def ends_epoch(self, step: int) -> bool:
        """Does an epoch of the training data end within optimizer step `step` (1 for the first)?"""
        now, before = (int(self.epoch_of(s * self.global_batch)) for s in (step, step - 1))
        return now > before

    # --- optimizer ---------------------------------------------------------------------------------------------

    def create_scheduler(self, num_training_steps: int):
        if self.lr_scheduler is None:
            args = self.args
            peak = args.learning_rate
            settings = {
                "kind": args.lr_scheduler_type.value,
                "warmup_steps": warmup_of(args, num_training_steps),
                "decay_steps": self.options.decay_steps or num_training_steps,
                "min_ratio": self._schedule_end() / peak if peak else 0.0,
                "power": args.power,
            }
            self.lr_scheduler = paddle.optimizer.lr.LambdaDecay(
                peak, lambda step: learning_rate_factor(step, **settings)
            )
        return self.lr_scheduler

    def _schedule_end(self) -> float:
        return self.args.lr_end if self.args.lr_scheduler_type.value == "polynomial" else self.options.min_learning_rate

    def create_optimizer(self, lr_scheduler=None):
        if self.optimizer is None:
            super().create_optimizer(lr_scheduler)
            self.optimizer._grad_clip = RecordingClip(self.args.max_grad_norm)
            if self.optimizer._apply_decay_param_fun is not None:
                # Upstream looks for "norm" and "bias" in names, and decays BLOOM's ln_f and, in a pipeline, the final
                # norm of ChatGLM2, which has a number for a name there.
                matrices = {parameter.name for parameter in self.model.parameters() if parameter.ndim > 1}
                self.optimizer._apply_decay_param_fun = matrices.__contains__
        return self.optimizer

    def _wrap_amp_model(self, args, model):
        super()._wrap_amp_model(args, model)
        if args.amp_master_grad and "_unscale" not in vars(self.scaler):  # not one that fleet has replaced
            unscale_main_gradients(self.scaler)

    def _wrap_model(self, model, training=True):
        wrapped = super()._wrap_model(model, training)
        if training and self.grad_norm_reader is None:
            self.grad_norm_reader, self.sharded_gradients, self.sharded_weights = apply_sharding(
                self.model,
                self.optimizer,
                self.layout,
                guard=self.nan_guard,
                check_norm=self._check_norm,
                bucket_mb=self.args.sharding_comm_buffer_size_MB,
                offload_weights=self.options.offload_weights,
            )
        return wrapped

    # --- one step ----------------------------------------------------------------------------------------------

    def training_step(self, model, inputs, step_control=0):
        self.meter.add_tokens(inputs.pop(TOKEN_COUNT), inputs.pop(LABEL_COUNT))
        labels = inputs.pop(GLOBAL_BATCH_LABELS, None)
        if labels is not None:  # the first micro-batch of a global batch
            self.loss_normalizer.start_global_batch(labels)
        with self.loss_normalizer.applied():
            loss = super().training_step(model, inputs)
        if self.sharded_gradients is not None and (step_control + 1) % self.args.gradient_accumulation_steps == 0:
            self.sharded_gradients.hand_over()  # the loss scaler reads gradients before the optimizer's step
        return loss

    def _check_loss_valid(self, loss):
        """Called by the loop once per optimizer step with the loss summed since the last call: the step's mean."""
        self.scalars.start(loss.clone(), self.loss_normalizer.labels)
        self.meter.learning_rate = float(self.optimizer.get_lr())
        # Each step is accounted for here; the loop's own running sum would carry a NaN for ever.
        loss.zero_()

    def _check_norm(self, norm: paddle.Tensor) -> None:
        """Called with the norm before the update."""
        self.scalars.read(norm)
        self.nan_guard.check(self.scalars.grad_norm)

    def _maybe_log_save_evaluate(self, tr_loss, model, epoch, ignore_keys_for_eval, **kwargs):
        if self.state.global_step != self.meter.step:
            if not self.scalars.is_read:  # no gradient took part in a norm
                self.scalars.read(None)
            loss, skipped = self.scalars.loss, self.nan_guard.skipped
            self.meter.end_step(self.state.global_step, loss, labels=self.scalars.labels, skipped=skipped)
            self._total_loss_scalar += 0.0 if skipped else loss
        if self.control.should_log and self.meter.window.steps:
            consumed = self.state.global_step * self.global_batch
            row = self.meter.row(grad_norm=self.scalars.grad_norm, consumed_samples=consumed)
            self.log({**row, "epoch": self.epoch_of(consumed)})
        metrics = self.evaluate() if self.control.should_evaluate else None
        if self.control.should_save:
            self._save_checkpoint(model, metrics=metrics)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        self.meter.start_step()

    # --- evaluation --------------------------------------------------------------------------------------------

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict:
        """Mean loss over all tokens of a data set, over all ranks, and its exponential.

        Returns:
            {"step", "<prefix>_loss", "<prefix>_ppl"} and `further_metrics`.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        loss = mean_loss(self, self._model_to_evaluate(), self.get_eval_dataloader(PaddedView(dataset)))
        row = {
            "step": self.state.global_step,
            f"{metric_key_prefix}_loss": loss,
            f"{metric_key_prefix}_ppl": math.exp(min(loss, 700.0)),
            **self.further_metrics(metric_key_prefix),
        }
        self.log(row)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, row)
        return row

    def further_metrics(self, metric_key_prefix: str) -> dict[str, float]:
        """What an evaluation measures beside the loss. Collective over all ranks."""
        return {}

    def _model_to_evaluate(self):
        if self.layout.pipeline == 1:
            return self.model
        if isinstance(self.model_wrapped, PipelineLayer):  # evaluation without training
            self.model_wrapped = fleet.distributed_model(self.model_wrapped)
        return self.model_wrapped


def _check_device(args) -> None:
    """Refuse `device="cpu"` while Paddle is on a GPU. TrainingArguments (PaddleNLP 3.0.0b4) do not set the device.

    Raises:
        UserError: If Paddle's device is another one.
    """
    found = paddle.get_device()
    if args is not None and args.device == "cpu" and found != "cpu":
        raise UserError(
            f'TrainingArguments(device="cpu"), but Paddle is on {found}. Call paddle.set_device("cpu") before the model is built.'
        )


def _layout_of(args) -> Layout:
    """The layout of TrainingArguments that somebody built without us (in a notebook).

    Raises:
        UserError: sharding stages that PaddleNLP would run by itself.
    """
    if any(option.value in ("stage2", "stage3") for option in args.sharding):
        raise UserError(
            "PretrainTrainer shards gradients itself: build the arguments by paddle_llm.training.arguments.training_arguments"
        )
    return Layout(
        data=max(args.data_parallel_degree, 1),
        sharding=max(args.sharding_parallel_degree, 1),
        tensor=max(args.tensor_parallel_degree, 1),
        pipeline=max(args.pipeline_parallel_degree, 1),
        sharding_stage=1 if args.sharding else 0,
        sequence_parallel=args.sequence_parallel,
    )
