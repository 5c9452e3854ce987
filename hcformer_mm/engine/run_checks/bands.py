"""Bands of images: whether they reach the network in their number and order."""

from collections.abc import Iterator
from typing import Any

from mmengine.config import Config

from .lookup import is_named


def band_faults(config: Config, pipeline: Any, key: str) -> Iterator[str]:
    """Yield a sentence if a pipeline loads other bands than three, and the model takes BGR.

    MMEngine's data preprocessor turns BGR into RGB by taking the first three bands of any image.

    Args:
        config: Config with the model.
        pipeline: Config of the pipeline.
        key: Its key in the config.
    """
    loaders = [step for step in pipeline or () if is_named(step, "LoadImageFromFile")]
    bands = loaders[0].get("bands") if loaders else None
    if bands in (None, 3):
        return
    given = config.model.get("data_preprocessor") or {}
    wrong = [name for name in ("bgr_to_rgb", "rgb_to_bgr") if given.get(name)]
    if len(given.get("mean") or ()) > 1:
        wrong += ["mean", "std"]
    if wrong:
        yield (
            f"expected no {', '.join(wrong)} in model.data_preprocessor, which is made for BGR, "
            f"because {key} loads {bands} bands; set bgr_to_rgb=False, mean=None and std=None "
            "there, and normalize by the step mmcv.Normalize with to_rgb=False"
        )
