"""PretrainTrainer: PaddleNLP's Trainer with one global order of samples, exact losses, atomic checkpoints and metrics.

The training loop is PaddleNLP's (3.0.0b4). This class overrides methods that the loop calls: samplers, the schedule,
the handling of a step's loss, rows of metrics, evaluation and saving.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paddle
from paddle.distributed import fleet
from paddle.distributed.fleet.meta_parallel import PipelineLayer
from paddlenlp.trainer import TrainingArguments
from paddlenlp.trainer.trainer_callback import DefaultFlowCallback, PrinterCallback, ProgressCallback

from paddle_llm.config.layout import Layout
from paddle_llm.core.artifacts import METRICS
from paddle_llm.core.console import say
from paddle_llm.data.collate import collate_numpy
from paddle_llm.data.counted_batches import LABEL_COUNT, TOKEN_COUNT, CountedBatches
from paddle_llm.data.epochs import ShuffledEpochs
from paddle_llm.data.loader import GLOBAL_BATCH_LABELS, GlobalBatchLoader
from paddle_llm.data.sampler import EvalBatchSampler, GlobalBatchSampler, PaddedView
from paddle_llm.parallel.process.parent import worker_initializer
from paddle_llm.parallel.process.stop_request import is_stop_requested
from paddle_llm.parallel.zero.stage2 import ShardedGradients
from paddle_llm.parallel.zero.stage3 import ShardedWeights
from paddle_llm.training.arguments import check_device, layout_of
from paddle_llm.training.callbacks import GradientObserver
from paddle_llm.training.epochs import global_batch_of, in_global_order, position_of
from paddle_llm.training.evaluation.mean_loss import mean_loss
from paddle_llm.training.metrics.grad_norm import GradNormReader
from paddle_llm.training.metrics.meter import Meter
from paddle_llm.training.metrics.reports import CurveWriter, MetricsFile, ProgressReport, close_reports
from paddle_llm.training.metrics.step_scalars import StepScalars
from paddle_llm.training.options import TrainerOptions
from paddle_llm.training.random_states import seed_random_states
from paddle_llm.training.sharding import apply_sharding
from paddle_llm.training.step.loss_normalization import LossNormalizer
from paddle_llm.training.step.loss_scaling import unscale_main_gradients
from paddle_llm.training.step.nan_guard import NanGuard
from paddle_llm.training.step.optimizer import build_schedule, correct_optimizer
from paddle_llm.training.trainers.checkpointed_trainer import CheckpointedTrainer
from paddle_llm.training.trainers.step_flow import RepeatedEvaluation, StepFlow, finish_step

if TYPE_CHECKING:
    from paddlenlp.trainer.trainer_utils import TrainOutput

    from paddle_llm.models.protocols import LanguageModel


class PretrainTrainer(CheckpointedTrainer):
    """Trains a causal language model; used like PaddleNLP's Trainer.

    Samples are dicts with the arrays `input_ids` [S] and `labels` [S], which are already shifted. A `train_dataset`
    with the attribute `samples_per_epoch` is in its global order: item i is the i-th sample of the whole training in
    every layout, and global batch g consists of the items [g*G, (g+1)*G). Any other map-style data set is shuffled for
    each epoch.

    Attributes:
        layout: Layout of the job.
        options: Settings beyond TrainingArguments.
        predict_dataset: Data set of the final evaluation (`--do_predict`); None without one.
        meter: Metrics since the last row.
        loss_normalizer: Divisor of the loss for each global batch.
        nan_guard: Guard against non-finite steps.
        scalars: Loss, gradient norm and number of labels of the current step.
        grad_norm_reader: Reader of the gradient norm; None before training.
        sharded_gradients: Sharded gradients of stages 2 and 3; None in other stages and before training.
        sharded_weights: Sharded weights of stage 3; None in other stages and before training.
        completes_evaluations: Whether an evaluation is completed although the training was asked to stop.

    Args:
        model: Network or PipelineLayer.
        args: Arguments from `training_arguments`.
        layout: Layout of the job; by default that of `args`.
        options: Settings beyond TrainingArguments; by default those of `TrainerOptions`.
        predict_dataset: See above.
        **kwargs: Arguments of `CheckpointedTrainer`.

    Raises:
        UserError: If the device of `args` is not Paddle's.
    """

    completes_evaluations = False

    def __init__(
        self,
        model: LanguageModel | None = None,
        args: TrainingArguments | None = None,
        *,
        layout: Layout | None = None,
        options: TrainerOptions | None = None,
        predict_dataset: paddle.io.Dataset | None = None,
        **kwargs: Any,
    ):
        check_device(args)
        self.layout = layout or layout_of(args)
        self.options = options or TrainerOptions()
        self.continue_without_save = self.options.continue_without_save
        self.saves_in_background = self.options.async_save
        self.predict_dataset = predict_dataset
        kwargs.setdefault("data_collator", collate_numpy)
        if kwargs.get("train_dataset") is not None:
            kwargs["train_dataset"] = in_global_order(kwargs["train_dataset"], args)
        super().__init__(model=model, args=args, **kwargs)
        seed_random_states(self.layout, self.args.seed, named=self.args.use_hybrid_parallel)
        self._replace_reports()
        model_ranks = self.layout.tensor * self.layout.pipeline
        self.meter = Meter(
            flops_per_token=self.options.flops_per_token,
            peak_flops=self.options.peak_flops,
            model_ranks=model_ranks,
        )
        self.loss_normalizer = LossNormalizer(
            self.model,
            micro_batches=self.global_batch // self.args.per_device_train_batch_size,
            data_ranks=self.layout.data_world_size,
            model_ranks=model_ranks,
        )
        self.nan_guard = NanGuard(self.options, self)
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
            self.add_callback(MetricsFile(output / METRICS, lambda: self.due_evaluation is not None))
            if self.options.curves:
                self.add_callback(CurveWriter(output))
            self.add_callback(ProgressReport(bar=not self.args.disable_tqdm))
        self.add_callback(RepeatedEvaluation(self))
        self.args.disable_tqdm = True  # turns PaddleNLP's own bars off

    def log(self, logs: dict[str, Any], **kwargs: Any) -> None:
        """Pass one row to the reports, without the keys that PaddleNLP adds.

        Args:
            logs: Row of metrics.
            **kwargs: Not used; arguments of PaddleNLP's Trainer.
        """
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    def _print_timer(self) -> None:
        """Print the timers. PaddleNLP's logger does not, as it reports errors only (`parallel/process/start.py`)."""
        if self.timers is not None:
            say(f"step {self.state.global_step}: {self.timers.log(self.timers.timers.keys(), reset=True)}")
        super()._print_timer()  # prints Paddle's own timers of a pipeline (enable_timer)

    def train(self, resume_from_checkpoint: str | Path | None = None, ignore_keys_for_eval: Any = None) -> TrainOutput:
        """Train as `CheckpointedTrainer.train` does, and close the reports also if the training does not end normally."""
        try:
            return super().train(resume_from_checkpoint, ignore_keys_for_eval)
        finally:
            close_reports(self.callback_handler.callbacks)

    # --- data --------------------------------------------------------------------------------------------------

    @property
    def global_batch(self) -> int:
        """Samples per optimizer step, over all ranks."""
        return global_batch_of(self.args)

    def get_train_dataloader(self) -> GlobalBatchLoader:
        """Return the loader of this rank's micro-batches."""
        return GlobalBatchLoader(
            self.train_dataset,
            batch_sampler=self._get_train_sampler(),
            collate_fn=self.counted_batches(self.data_collator),
            num_workers=self.args.dataloader_num_workers,
            accumulation=self.args.gradient_accumulation_steps,
        )

    def get_eval_dataloader(self, eval_dataset: paddle.io.Dataset | None = None) -> paddle.io.DataLoader:
        """Return the loader of this rank's evaluation batches."""
        loader = super().get_eval_dataloader(eval_dataset)
        loader.worker_init_fn = worker_initializer()
        loader.collate_fn = self.counted_batches(loader.collate_fn)
        return loader

    def counted_batches(self, collate: Callable[[list[Any]], dict[str, Any]]) -> CountedBatches:
        """Return a collator whose batches carry their numbers of labels and tokens."""
        return CountedBatches(collate)

    def _get_train_sampler(self) -> GlobalBatchSampler:
        args = self.args
        steps, position = args.max_steps, position_of(args)
        needed = position.samples_at(steps, self.global_batch)
        if isinstance(self.train_dataset, ShuffledEpochs):
            self.train_dataset.extend(needed)
        if len(self.train_dataset) < needed:
            raise ValueError(
                f"the training data has {len(self.train_dataset)} samples, but {steps} steps of {self.global_batch} samples need "
                f"{needed}. Reduce max_steps or add samples."
            )
        sampler = GlobalBatchSampler(
            steps * self.global_batch,
            args.per_device_train_batch_size,
            args.gradient_accumulation_steps,
            data_rank=args.dataset_rank,
            data_world_size=args.dataset_world_size,
        )
        sampler.skipped = needed - steps * self.global_batch
        return sampler

    def _get_eval_sampler(self, eval_dataset: paddle.io.Dataset) -> EvalBatchSampler:
        return EvalBatchSampler(
            len(eval_dataset),
            self.args.per_device_eval_batch_size,
            data_rank=self.args.dataset_rank,
            data_world_size=self.args.dataset_world_size,
        )

    def epoch_of(self, consumed_samples: int) -> float:
        """Return the number of epochs that a number of samples corresponds to."""
        return consumed_samples / self.train_dataset.samples_per_epoch

    def ends_epoch(self, step: int) -> bool:
        """Return whether an epoch of the training data ends within optimizer step `step` (1 for the first)."""
        now, before = (int(self.epoch_of(self.consumed_samples(s))) for s in (step, step - 1))
        return now > before

    def consumed_samples(self, step: int) -> int:
        """Return the number of samples of the global order that the steps up to `step` use, over all ranks."""
        return position_of(self.args).samples_at(step, self.global_batch)

    # --- optimizer ---------------------------------------------------------------------------------------------

    def create_scheduler(self, num_training_steps: int) -> paddle.optimizer.lr.LRScheduler:
        """Create the learning-rate schedule of `config/steps.py`.

        Args:
            num_training_steps: Optimizer steps of the whole training.
        """
        if self.lr_scheduler is None:
            self.lr_scheduler = build_schedule(self.args, self.options, num_training_steps)
        return self.lr_scheduler

    def create_optimizer(
        self, lr_scheduler: paddle.optimizer.lr.LRScheduler | None = None
    ) -> paddle.optimizer.Optimizer:
        """Create the optimizer, with a clip that reports the norm and weight decay for matrices only.

        Args:
            lr_scheduler: Learning-rate schedule; by default that of the trainer.
        """
        if self.optimizer is None:
            correct_optimizer(super().create_optimizer(lr_scheduler), self.model, self.args.max_grad_norm)
        return self.optimizer

    def _wrap_amp_model(self, args: TrainingArguments, model: paddle.nn.Layer) -> None:
        super()._wrap_amp_model(args, model)
        if args.amp_master_grad and "_unscale" not in vars(self.scaler):  # `_unscale` was not replaced by fleet
            unscale_main_gradients(self.scaler)

    def _wrap_model(self, model: paddle.nn.Layer, training: bool = True) -> paddle.nn.Layer:
        wrapped = super()._wrap_model(model, training)
        if training and self.grad_norm_reader is None:
            self.grad_norm_reader, self.sharded_gradients, self.sharded_weights = apply_sharding(
                self.model,
                self.optimizer,
                self.layout,
                guard=self.nan_guard,
                check_norm=self._check_gradients,
                bucket_mb=self.args.sharding_comm_buffer_size_MB,
                offload_weights=self.options.offload_weights,
            )
        return wrapped

    # --- one step ----------------------------------------------------------------------------------------------

    def training_step(self, model: paddle.nn.Layer, inputs: dict[str, Any], step_control: int = 0) -> paddle.Tensor:
        """Compute the loss and the gradients of one micro-batch.

        Args:
            model: Network inside fleet's wrapper.
            inputs: Micro-batch of `GlobalBatchLoader`.
            step_control: Number of the micro-batch, from 0.

        Returns:
            The loss, a scalar on the device; in a pipeline, that of the global batch with its last micro-batch, else 0.
        """
        self.meter.add_tokens(inputs.pop(TOKEN_COUNT), inputs.pop(LABEL_COUNT))
        labels = inputs.pop(GLOBAL_BATCH_LABELS, None)
        if labels is not None:  # the first micro-batch of a global batch
            self.loss_normalizer.start_global_batch(labels)
        with self.loss_normalizer.applied():
            loss = super().training_step(model, inputs)
        if self.sharded_gradients is not None and (step_control + 1) % self.args.gradient_accumulation_steps == 0:
            self.sharded_gradients.hand_over()  # the loss scaler reads gradients before the optimizer's step
        return loss

    def _check_loss_valid(self, loss: paddle.Tensor) -> None:
        """Keep the loss of a step. The loop calls this once per step with the loss summed since the last call."""
        ended = self.saver.has_ended()
        self.scalars.start(loss.clone(), self.loss_normalizer.labels, stop=is_stop_requested(), save_ended=ended)
        self.meter.learning_rate = float(self.optimizer.get_lr())
        # The loop keeps a running sum, which would remain NaN after one non-finite step.
        loss.zero_()

    def _check_gradients(self, norm: paddle.Tensor) -> None:
        """Check the gradient norm and call the gradient observers, before the update."""
        self.nan_guard.check(self.scalars.read(norm))
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, GradientObserver):
                callback.on_gradients(norm)

    def _maybe_log_save_evaluate(
        self, tr_loss: paddle.Tensor, model: paddle.nn.Layer, epoch: float, ignore_keys_for_eval: Any, **kwargs: Any
    ) -> None:
        finish_step(self, model)

    # --- evaluation --------------------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: paddle.io.Dataset | None = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, Any]:
        """Evaluate a data set and report the result as a row of metrics. Collective over all ranks.

        Args:
            eval_dataset: Data set; by default the trainer's own.
            ignore_keys: Not used; an argument of PaddleNLP's Trainer.
            metric_key_prefix: "eval" or "test".

        Returns:
            "step", "<prefix>_loss" (mean over all labels and ranks), "<prefix>_ppl" (its exponential), and the metrics
            of `additional_metrics`.

        Raises:
            EvaluationStopped: If a rank was asked to stop, within a training. Nothing is reported.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        loss = mean_loss(self, self._model_to_evaluate(), self.get_eval_dataloader(PaddedView(dataset)))
        row = {
            "step": self.state.global_step,
            f"{metric_key_prefix}_loss": loss,
            f"{metric_key_prefix}_ppl": math.exp(min(loss, 700.0)),
            **self.additional_metrics(metric_key_prefix),
        }
        self.log(row)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, row)
        return row

    def additional_metrics(self, metric_key_prefix: str) -> dict[str, float]:
        """Return metrics of an evaluation beside the loss. Collective over all ranks.

        Args:
            metric_key_prefix: Prefix of their names, "eval" or "test".
        """
        return {}

    def _model_to_evaluate(self) -> paddle.nn.Layer:
        if self.layout.pipeline == 1:
            return self.model
        if isinstance(self.model_wrapped, PipelineLayer):  # evaluation without training
            self.model_wrapped = fleet.distributed_model(self.model_wrapped)
        return self.model_wrapped
