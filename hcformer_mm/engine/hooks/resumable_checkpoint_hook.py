"""ResumableCheckpointHook: checkpoints that survive kills and full disks, and resume exactly."""

from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather_object, broadcast_object_list, get_rank, is_main_process
from mmengine.fileio import LocalBackend, get_file_backend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner, find_latest_checkpoint

from ...checkpoints.io import force_weights_only, load_checkpoint
from ...registry import HOOKS
from ...utils.atomic_write import replacing
from ...utils.errors import InputError, some
from ..resumption import data_order, random_state, resume_data, set_random_state
from .finite_loss_hook import diverged

BACKEND = "hcformer_mm.checkpoints"
RESUMPTION = "resumption"
"""Key of a checkpoint's random states and data order."""


@register_backend(BACKEND, force=True)
class CheckpointBackend(LocalBackend):
    """Local files, written as a whole or not at all, and removed only when told a second time."""

    def __init__(self) -> None:
        self.outdated: list[Path] = []

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file.

        Raises:
            InputError: The file system refuses, for instance because it is full.
        """
        try:
            with replacing(Path(filepath)) as unfinished:
                super().put(obj, unfinished)
        except OSError as error:
            raise InputError(
                f"expected to write a checkpoint of {len(obj) / 1e6:.0f} MB to {filepath}, got "
                f"{error.strerror!r}; make that possible and go on with --resume: earlier "
                "checkpoints are still there"
            ) from error

    def remove(self, filepath: str | Path) -> None:
        """Note a file for :meth:`remove_outdated`."""
        self.outdated.append(Path(filepath))

    def remove_outdated(self) -> None:
        """Remove the noted files."""
        while self.outdated:
            self.outdated.pop().unlink(missing_ok=True)


@HOOKS.register_module()
class ResumableCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook``, whose checkpoints survive an interruption and resume exactly.

    A checkpoint appears under its name only when it is complete, and only then are older ones
    removed. It also holds the random states of all processes. A resumed run goes on with them, and
    with the image after the last one, without loading the images before it: on a CPU and without
    data workers, it ends with the parameters of an uninterrupted run. Workers go on with the same
    order of images, but with other random numbers. Validation does not change the random numbers of
    training.

    If the newest checkpoint does not load, a run with ``resume=True`` and without ``load_from``
    takes the newest one that does.

    Arguments are those of MMEngine's ``CheckpointHook``.

    Raises:
        InputError: No checkpoint loads; a checkpoint cannot be written; or weights that are to be
            saved are not finite.
    """

    backend_args: dict[str, Any] | None
    file_backend: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._loaded: dict[str, Any] | None = None
        self._to_save: dict[str, Any] | None = None
        self._of_training: dict[str, Any] | None = None
        self._starting = False

    def before_run(self, runner: Runner) -> None:
        """Choose the checkpoint of ``--resume``."""
        if not runner._resume or runner._has_loaded:  # as in MMEngine's FlexibleRunner
            return
        # PyTorch does not load the logs that the original releases of MMEngine save otherwise.
        force_weights_only()
        if runner._load_from is not None:
            return
        chosen = [self._newest_that_loads(runner) if is_main_process() else None]
        broadcast_object_list(chosen)
        runner._load_from = chosen[0]

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Keep the state that :meth:`before_train_epoch` sets."""
        self._loaded = checkpoint.get(RESUMPTION)

    def before_train(self, runner: Runner) -> None:
        """Prepare the folder of the checkpoints."""
        super().before_train(runner)
        self._starting = True
        self._of_training = None
        if runner.iter >= runner.max_iters:
            runner.logger.warning(
                f"Nothing is left to train: the checkpoint is of iteration {runner.iter}, and "
                f"train_cfg ends after {runner.max_iters}; raise it to train longer."
            )
        counts = getattr(runner.optim_wrapper, "_accumulative_counts", 1)
        if not self.by_epoch and self.interval > 0 and self.interval % counts:
            runner.logger.warning(
                "A resumed run starts without the gradients that were accumulated when its "
                "checkpoint was saved: expected an interval of checkpoints divisible by "
                f"accumulative_counts = {counts}, got {self.interval}."
            )
        if type(self.file_backend) is LocalBackend:
            self.backend_args = dict(backend=BACKEND)
            self.file_backend = get_file_backend(self.out_dir, backend_args=self.backend_args)
            if is_main_process():
                # Killed runs leave these.
                names = f".*{self.filename_tmpl.format('*')}.*.tmp"
                for unfinished in Path(self.out_dir).glob(names):
                    unfinished.unlink()

    def before_train_epoch(self, runner: Runner) -> None:
        """Go on with the images and random numbers of an interrupted run."""
        loop = runner.train_loop
        known = isinstance(loop, IterBasedTrainLoop | EpochBasedTrainLoop)
        resumed = self._starting and runner.iter > 0 and known
        self._starting = False
        if not resumed:
            return
        loaded = self._loaded
        if loaded is None:
            runner.logger.warning(
                "The checkpoint holds no random states, so training resumes with other random "
                "numbers than without the interruption."
            )
            # MMEngine gives samplers the run's seed, unless each process has its own.
            own = runner._randomness_cfg.get("diff_rank_seed")
            seed = dict(seed=None if own else runner.seed)
            loaded = dict(data=data_order(loop.dataloader) | seed, random=[])
        now = data_order(loop.dataloader)
        changed = [
            f"{name} was {before} and is {now[name]}"
            for name, before in loaded["data"].items()
            if name != "seed" and now[name] != before
        ]
        if changed:
            runner.logger.warning(
                "Training resumes with another order of images, or other random numbers, than "
                f"without the interruption: {', '.join(changed)}."
            )
        states = loaded["random"][get_rank() :]
        resume_data(loop, loaded["data"]["seed"], states[0] if states else None)

    def before_val(self, runner: Runner) -> None:
        """Keep the random state of training."""
        self._of_training = random_state()

    def after_val(self, runner: Runner) -> None:
        """Set the random state of training again."""
        if self._of_training is not None:
            set_random_state(self._of_training)
            self._of_training = None

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Add the random states and the data order."""
        if self._to_save is not None:
            checkpoint[RESUMPTION] = self._to_save

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        """Save a checkpoint, and then remove those that it replaces."""
        check_weights(runner)
        self._to_save = dict(
            random=all_gather_object(self._of_training or random_state()),
            data=data_order(runner.train_dataloader),
        )
        super()._save_checkpoint_with_step(runner, step, meta)
        self._to_save = None
        self._remove_outdated()

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        """Save the best checkpoint, if this is one, and then remove the one that it replaces."""
        if self.save_best:
            check_weights(runner)
            # mmdet's CocoMetric has none if nothing is predicted, and MMEngine stops then.
            if missing := set(self.key_indicators) - {"auto", *metrics}:
                runner.logger.warning(
                    f"No checkpoint is called best: expected {some(missing)}, as in "
                    "default_hooks.checkpoint.save_best, among the metrics of this validation, got "
                    f"{some(metrics, 20)}."
                )
                return
        super()._save_best_checkpoint(runner, metrics)
        self._remove_outdated()

    def _remove_outdated(self) -> None:
        backend = getattr(self, "file_backend", None)  # none in a validation without training
        if isinstance(backend, CheckpointBackend):
            backend.remove_outdated()

    def _newest_that_loads(self, runner: Runner) -> str | None:
        """Return the checkpoint that MMEngine saved last or, if it does not load, the newest."""
        named = find_latest_checkpoint(runner.work_dir)
        folder = Path(runner.work_dir)
        if self.out_dir is not None:
            folder = Path(self.out_dir, folder.name)
        prefix, suffix = self.filename_tmpl.split("{}")
        numbers = {
            path: path.name.removeprefix(prefix).removesuffix(suffix)
            for path in folder.glob(f"{prefix}*{suffix}")
        }
        saved = [path for path, number in numbers.items() if number.isdecimal()]
        newest = sorted(saved, key=lambda path: -int(numbers[path]))
        faults = []
        for path in dict.fromkeys([Path(named), *newest] if named else newest):
            try:
                load_checkpoint(path)
            except (OSError, ValueError) as error:
                faults.append(str(error))
                continue
            if faults or not named:
                reason = "; ".join(faults) or f"there is no {runner.work_dir}/last_checkpoint"
                runner.logger.warning(f"Training resumes from {path}, since {reason}.")
            return str(path)
        if faults:
            raise InputError(
                f"expected a checkpoint in {folder} to resume from, got: {'; '.join(faults)}; "
                "train without --resume to start from the beginning"
            )
        runner.logger.warning(f"No checkpoint in {folder}: training starts from the beginning.")
        return None


def check_weights(runner: Runner) -> None:
    """Check the weights of a model that is about to be saved.

    Raises:
        InputError: A parameter is NaN or infinite.
    """
    parameters = dict(runner.model.named_parameters())
    # All flags reach the CPU together.
    finite = torch.stack([values.isfinite().all() for values in parameters.values()]).tolist()
    bad = [name for name, good in zip(parameters, finite, strict=True) if not good]
    if bad:
        raise diverged(runner, f"NaN or infinity in {some(bad)}")
