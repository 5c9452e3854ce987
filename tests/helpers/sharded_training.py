"""Training steps of sharded models and of the whole model, in the processes of torchrun.

As a script, ``sharded_training.py FOLDER`` trains each kind of model on one image per process, and
its first process writes the losses and the final parameters to ``<kind>.pth``.
"""

import sys
from pathlib import Path

import torch
from mmengine.registry import MODEL_WRAPPERS
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor

from hcformer_mm.engine.dist import wrap_blocks
from tests.helpers.models import SHAPES_CONFIG, data_sample, detector
from tests.helpers.tools import ROOT

# The neck gets ClusteredFeatures from the backbone and returns them.
UNITS = (
    "HCBackbone",
    "TransformerEncoderNeck",
    "BasicBlock",
    "DetrTransformerEncoderLayer",
    "Mask2FormerTransformerDecoderLayer",
)
STEPS = 2


def build():
    """A small HCFormer+ without dropout; its BatchNorm does not depend on the batch."""
    neck = dict(
        type="hcformer_mm.TransformerEncoderNeck",
        in_channels=512,
        out_channels=64,
        encoder=dict(
            num_layers=1,
            layer_cfg=dict(
                self_attn_cfg=dict(embed_dims=64, num_heads=4, dropout=0.0, batch_first=True),
                ffn_cfg=dict(embed_dims=64, feedforward_channels=64, ffn_drop=0.0),
            ),
        ),
        positional_encoding=dict(num_feats=32, normalize=True),
    )
    model = detector(
        ROOT / SHAPES_CONFIG,
        **{
            "neck": neck,
            "backbone.backbone.norm_eval": True,
            "panoptic_head.in_channels": 64,
            "panoptic_head.transformer_decoder.num_layers": 2,
            "panoptic_head.num_queries": 10,
            "train_cfg.num_points": 256,
        },
    )
    return model.train()


def losses_of(model, rank, step):
    """Losses of a process's image, with the same random points in every run."""
    torch.manual_seed(10 * step + rank)
    images = torch.rand(1, 3, 64, 96)
    # Losses are divided by the mean number of objects of all processes.
    return model(images, [data_sample((64, 96), stuff_label=6 + rank)], mode="loss")


def total(losses):
    return sum(sum(x) if isinstance(x, list) else x for x in losses.values())


def whole():
    return build()


def fsdp1():
    return MODEL_WRAPPERS.build(
        dict(
            type="MMFullyShardedDataParallel",
            module=build(),
            auto_wrap_policy=dict(type="hcformer_mm.engine.dist.wrap_blocks", types=UNITS),
            device_id="cpu",
            use_orig_params=True,
        )
    )


def fsdp2():
    model, mesh = build(), init_device_mesh("cpu", (distributed.get_world_size(),))
    # Inner modules come before those that contain them.
    for module in reversed(list(model.modules())):
        if wrap_blocks(module, recurse=False, nonwrapped_numel=0, types=UNITS):
            fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


KINDS = dict(whole=whole, fsdp1=fsdp1, fsdp2=fsdp2)


def train(kind):
    """Mean losses of the processes in each step, and the final parameters by name."""
    model = KINDS[kind]()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    world, own = distributed.get_world_size(), distributed.get_rank()
    curve = []
    for step in range(STEPS):
        optimizer.zero_grad()
        mean = 0.0
        # A sharded model averages the gradients of all processes.
        for rank in range(world) if kind == "whole" else [own]:
            loss = total(losses_of(model, rank, step))
            (loss / world if kind == "whole" else loss).backward()
            mean = mean + loss.detach()
        mean = torch.as_tensor(mean)
        if kind != "whole":
            distributed.all_reduce(mean)
        curve.append(float(mean) / world)
        optimizer.step()
    if kind == "fsdp1":
        with FullyShardedDataParallel.summon_full_params(model):
            return curve, {n: p.detach().clone() for n, p in model.module.named_parameters()}
    return curve, {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach()
        for name, p in model.named_parameters()
    }


def main():
    distributed.init_process_group("gloo")
    for kind in KINDS:
        curve, parameters = train(kind)
        if distributed.get_rank() == 0:
            parameters = {
                name.replace("_fsdp_wrapped_module.", ""): p for name, p in parameters.items()
            }
            torch.save((curve, parameters), Path(sys.argv[1], f"{kind}.pth"))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
