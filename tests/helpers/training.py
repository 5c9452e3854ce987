"""A small model and data set that need random numbers, and a runner to train them."""

import itertools

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

NUM_IMAGES = 7
RUN_NUMBERS = itertools.count()


class NoisyDataset(BaseDataset):
    """Images of one number each, with noise; their paths are 0.jpg, 1.jpg, ..."""

    METAINFO = dict(classes=("a",))

    def load_data_list(self):
        return [dict(img_path=f"{i}.jpg") for i in range(NUM_IMAGES)]

    def prepare_data(self, idx):
        value = idx + np.random.rand()
        return dict(inputs=torch.tensor([value, 1.0]), index=idx)


class NoisyModel(BaseModel):
    """A linear model with dropout; its loss is NaN at one call of ``loss``."""

    def __init__(self, nan_at=None):
        super().__init__()
        self.linear = nn.Linear(2, 1)
        self.dropout = nn.Dropout(0.3)
        self.nan_at = nan_at
        self.calls = 0

    def forward(self, inputs, index, mode="tensor"):
        out = self.linear(self.dropout(torch.stack(list(inputs)))) + torch.rand(1)
        if mode != "loss":
            torch.rand(3)
            return [float(value) for value in out]
        loss = (out - torch.rand_like(out)).square().mean() * 0.1
        self.calls += 1
        if self.calls == self.nan_at:
            loss = loss * torch.nan
        return dict(loss=loss)


class Mean(BaseMetric):
    """Mean of the predictions, which draws random numbers."""

    def process(self, data_batch, data_samples):
        self.results += list(data_samples)

    def compute_metrics(self, results):
        return dict(mean=np.mean(results) + np.random.rand())


class Killed(BaseException):
    """Stands in for SIGKILL: no handler of MMEngine catches it."""


class Watch(Hook):
    """Records the images of every iteration; may end the run after one."""

    priority = "LOWEST"  # after the checkpoint is saved

    def __init__(self, kill_after=None):
        self.kill_after = kill_after
        self.images = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.images.append([int(i) for i in data_batch["index"]])
        if runner.iter + 1 == self.kill_after:
            raise Killed


def noisy_runner(work_dir, *, steps=20, interval=4, by_epoch=False, resume=False, **options):
    """A runner of the small model.

    Args:
        work_dir: Folder of logs and checkpoints.
        steps: Number of iterations.
        interval: Iterations, or epochs, from one checkpoint to the next.
        by_epoch: Whether an epoch is the unit of ``steps`` and ``interval``.
        resume: Whether the newest checkpoint in ``work_dir`` is resumed.
        options: Options of the runner, which replace those here; ``loop`` updates ``train_cfg``,
            ``loader`` the training data loader and ``checkpoint`` the checkpoint hook.
    """
    torch.manual_seed(0)
    loader = dict(batch_size=2, num_workers=0, dataset=NoisyDataset(serialize_data=False))
    loop = dict(by_epoch=by_epoch, val_interval=3)
    loop |= dict(max_epochs=steps) if by_epoch else dict(max_iters=steps)
    checkpoint = dict(type="hcformer_mm.ResumableCheckpointHook", interval=interval)
    checkpoint |= dict(by_epoch=by_epoch)
    sampler = dict(type="DefaultSampler" if by_epoch else "InfiniteSampler", shuffle=True)
    defaults = dict(
        model=NoisyModel(),
        train_dataloader=dict(loader, sampler=sampler) | options.pop("loader", {}),
        val_dataloader=dict(loader, sampler=dict(type="DefaultSampler", shuffle=False)),
        val_evaluator=dict(type=Mean),
        train_cfg=loop | options.pop("loop", {}),
        val_cfg=dict(),
        optim_wrapper=dict(optimizer=dict(type="Adam", lr=0.05)),
        param_scheduler=dict(type="CosineAnnealingLR", T_max=20, by_epoch=False),
        default_hooks=dict(checkpoint=checkpoint | options.pop("checkpoint", {})),
        randomness=dict(seed=0),
        custom_hooks=[Watch()],
    )
    name = f"noisy-{next(RUN_NUMBERS)}"
    return Runner(work_dir=str(work_dir), resume=resume, experiment_name=name, **defaults | options)
