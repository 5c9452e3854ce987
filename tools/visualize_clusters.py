"""Draw what a model makes of pictures: the clusters of every level and the segments in the end."""

import argparse
import json
import os
import sys
from collections import Counter
from pathlib import Path

import mmcv
import numpy as np
import torch
from mmdet.structures import INSTANCE_OFFSET, DetDataSample
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.utils import track_iter_progress
from panopticapi.utils import rgb2id
from PIL import Image
from torch import Tensor, nn

from hcformer_mm.apis.checkpoint import load_checkpoint
from hcformer_mm.ops import hierarchical_clusters
from hcformer_mm.visualization import Classes, Panoptic, cluster_sheet, resize_labels


class UsageError(Exception):
    """What the one who typed the command can put right."""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path, help="config file")
    parser.add_argument("checkpoint", type=Path, help="checkpoint file")
    parser.add_argument("--img", type=Path, nargs="+", required=True, help="pictures to draw")
    parser.add_argument(
        "--gt",
        type=Path,
        help="COCO panoptic JSON with the ground truth of the pictures; its PNG files are in the "
        "folder of the same name beside it",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for <picture>.png")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:<index>")
    return parser.parse_args()


def check_files(args: argparse.Namespace) -> None:
    gt = [] if args.gt is None else [args.gt]
    missing = [p for p in (args.config, args.checkpoint, *args.img, *gt) if not p.is_file()]
    if missing:
        raise UsageError("no such file: " + ", ".join(map(str, missing)))
    twice = [stem for stem, count in Counter(path.stem for path in args.img).items() if count > 1]
    if twice:
        raise UsageError(
            f"several pictures would be drawn into {twice[0]}.png; draw them into different folders"
        )


def load_weights(model: nn.Module, path: Path) -> dict:
    """Load the weights of a checkpoint, all of them, without running code of the file.

    Returns:
        What the checkpoint says about itself, its ``meta``.
    """
    try:
        checkpoint = load_checkpoint(path)
    except ValueError as error:
        raise UsageError(str(error)) from None
    try:
        model.load_state_dict(checkpoint.get("state_dict", checkpoint))
    except RuntimeError as error:
        raise UsageError(f"{path} does not fit the config: {error}") from None
    return checkpoint.get("meta", {})


def read_classes(config: Config, meta: dict) -> Classes:
    """Classes as the checkpoint names them or else as the config's test set does."""
    dataset = meta.get("dataset_meta")
    if not dataset:
        # The type may be without a scope, and is then of the config's default one.
        with DATASETS.switch_scope_and_registry(None) as registry:
            dataset = registry.get(config.test_dataloader.dataset.type).METAINFO
    palette = dataset.get("palette")
    return Classes(
        names=dataset["classes"],
        things=frozenset(dataset.get("thing_classes", ())),
        palette=palette if isinstance(palette, list) else None,
    )


def make_pipeline(config: Config) -> Compose:
    """The test pipeline without what reads ground truth: pictures may have none."""
    steps = config.test_dataloader.dataset.pipeline
    return Compose([step for step in steps if "Annotations" not in step.type])


@torch.no_grad()
def segment(model: nn.Module, inputs: dict) -> tuple[DetDataSample, tuple[Tensor, ...]]:
    """Run the model on one picture.

    Returns:
        The results, at the picture's size, and the assignments of the backbone.
    """
    outputs: list = []
    hook = model.backbone.register_forward_hook(lambda *call: outputs.append(call[-1]))
    try:
        result = model.test_step(pseudo_collate([inputs]))[0].cpu()
    finally:
        hook.remove()
    assignments = getattr(outputs[0], "assignments", ())
    if not assignments:
        raise UsageError(
            f"the backbone {type(model.backbone).__name__} clusters nothing; expected "
            "hcformer_mm.HCBackbone with hierarchical_level >= 1"
        )
    return result, assignments


def picture_clusters(result: DetDataSample, assignments: tuple[Tensor, ...]) -> list[np.ndarray]:
    """Labels of every level at the picture's own size, before the pipeline's resize and padding."""
    padded, cells = result.batch_input_shape, assignments[0].shape[-2:]
    if padded[0] % cells[0] or padded[0] // cells[0] * cells[1] != padded[1]:
        raise UsageError(
            f"the finest map {tuple(cells)} does not divide the padded picture {tuple(padded)}; "
            "expected pad_size_divisor in the config's data_preprocessor to be the coarsest stride"
        )
    levels = hierarchical_clusters(
        assignments, image_size=result.img_shape[:2], stride=padded[0] // cells[0]
    )
    return [resize_labels(level[0].cpu().numpy(), result.ori_shape[:2]) for level in levels]


def predicted(result: DetDataSample, classes: Classes) -> Panoptic | None:
    """Panoptic prediction, or the semantic one of models that make no other."""
    number = len(classes.names)
    for key in ("pred_panoptic_seg", "pred_sem_seg"):
        if key in result:
            segments = result.get(key).sem_seg[0].numpy()
            labels = {int(i): int(i) % INSTANCE_OFFSET for i in np.unique(segments)}
            return Panoptic(segments, {i: label for i, label in labels.items() if label < number})
    return None


class GroundTruth:
    """Annotations of COCO's panoptic format, found by the name of the picture."""

    def __init__(self, path: Path, classes: Classes) -> None:
        content = json.loads(path.read_text())
        try:
            names = {category["id"]: category["name"] for category in content["categories"]}
            pictures = {image["id"]: image["file_name"] for image in content["images"]}
            self.annotations = {
                Path(pictures[annotation["image_id"]]).name: annotation
                for annotation in content["annotations"]
            }
            self.segments = {
                name: {segment["id"]: names[segment["category_id"]] for segment in info}
                for name, annotation in self.annotations.items()
                if (info := annotation["segments_info"])
            }
        except KeyError as error:
            raise UsageError(f"{path} is no COCO panoptic JSON: it lacks {error}") from None
        self.path = path
        self.indices = {name: index for index, name in enumerate(classes.names)}

    def read(self, picture: Path, size: tuple[int, int]) -> Panoptic:
        if picture.name not in self.annotations:
            raise UsageError(f"{self.path} has no ground truth of {picture.name}")
        file = self.path.with_suffix("") / self.annotations[picture.name]["file_name"]
        if not file.is_file():
            raise UsageError(f"the ground truth of {picture.name} is missing: {file}")
        segments = rgb2id(mmcv.imread(file, channel_order="rgb"))
        if segments.shape != size:
            raise UsageError(f"expected {file} of the picture's size {size}, got {segments.shape}")
        names = self.segments.get(picture.name, {})
        unknown = sorted(set(names.values()) - set(self.indices))
        if unknown:
            raise UsageError(f"the model has no class for {unknown} of {self.path}")
        return Panoptic(segments, {i: self.indices[name] for i, name in names.items()})


def save(picture: np.ndarray, path: Path) -> None:
    """Write a PNG file, the whole of it or nothing."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        Image.fromarray(picture).save(unfinished, format="PNG")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def draw(args: argparse.Namespace) -> None:
    check_files(args)
    config = Config.fromfile(args.config)
    init_default_scope(config.get("default_scope", "mmdet"))
    model = MODELS.build(config.model)
    classes = read_classes(config, load_weights(model, args.checkpoint))
    ground_truth = None if args.gt is None else GroundTruth(args.gt, classes)
    pipeline = make_pipeline(config)
    model.to(args.device).eval()

    args.out.mkdir(parents=True, exist_ok=True)
    for path in track_iter_progress(args.img):
        image = mmcv.imread(path, channel_order="rgb")
        result, assignments = segment(model, pipeline(dict(img_path=str(path), img_id=path.stem)))
        sheet = cluster_sheet(
            image,
            picture_clusters(result, assignments),
            classes=classes,
            prediction=predicted(result, classes),
            ground_truth=ground_truth and ground_truth.read(path, image.shape[:2]),
        )
        save(sheet, args.out / f"{path.stem}.png")
    print(f"{len(args.img)} pictures in {args.out}")


def main() -> None:
    try:
        draw(parse_args())
    except UsageError as error:
        sys.exit(f"visualize_clusters: {error}")


if __name__ == "__main__":
    main()
