"""HCFormerInferencer: from images to panoptic, instance and semantic results."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from mmengine.structures import BaseDataElement
from numpy.typing import NDArray

from ..structures.data_samples import SCORE_THR
from ..visualization import draw_panoptic
from .base_inferencer import Predictor
from .inputs import InputImage, Inputs, open_images
from .result_writer import ResultWriter, segments_of


class HCFormerInferencer(Predictor):
    """Segment images, as data samples of the hosts and as files.

    Works for every detector of mmdet that predicts segments or masks and every segmentor of mmseg;
    mmdet's ``DetInferencer`` and mmseg's ``MMSegInferencer`` read the same configs and checkpoints
    and predict the same, to the bit if ``fast=False``. Arguments and attributes are those of
    :class:`~hcformer_mm.apis.base_inferencer.Predictor`: a config by name or path, a checkpoint, a
    device, a precision.

    ::

        inferencer = HCFormerInferencer("hcformer_r18_shapes-panoptic", "iter_3000.pth")
        (sample,) = inferencer("image.jpg")
        sample.pred_panoptic_seg.sem_seg  # (1, H, W): class + 1000 · number of the object
    """

    def __call__(
        self,
        inputs: Inputs,
        *,
        batch_size: int = 1,
        out_dir: str | Path | None = None,
        ann_file: str | Path | None = None,
        draw: bool = True,
        score_thr: float = SCORE_THR,
        logits: bool = False,
        progress: bool = False,
    ) -> list[BaseDataElement]:
        """Segment images.

        Args:
            inputs: An image, folder or video, or several of them; see
                :func:`~hcformer_mm.apis.inputs.open_images`.
            batch_size: Images that go through the network together.
            out_dir: Folder to which results are written as well; which files these are, and what
                ``ann_file``, ``draw`` and ``score_thr`` mean for them, says
                :class:`~hcformer_mm.apis.result_writer.ResultWriter`.
            ann_file: Annotations whose ids the files use.
            draw: Whether there are images among the files.
            score_thr: Least score of instances that are drawn.
            logits: Whether data samples of mmseg keep ``seg_logits``, a float for every pixel and
                class.
            progress: Whether a progress bar is shown.

        Returns:
            The data sample of the host for each image, in their order, on the CPU:
            ``DetDataSample`` with those of ``pred_panoptic_seg``, ``pred_instances`` and
            ``pred_sem_seg`` that the config's ``test_cfg`` asks for, ``SegDataSample`` with
            ``pred_sem_seg``; all of the size of the image.

        Raises:
            ValueError: An input is no image, two images would be written under the same name,
                or the results cannot be written for another reason that the message names.
            FileNotFoundError: There is no such file.
        """
        return list(
            self.iterate(
                inputs,
                batch_size=batch_size,
                out_dir=out_dir,
                ann_file=ann_file,
                draw=draw,
                score_thr=score_thr,
                logits=logits,
                progress=progress,
            )
        )

    def iterate(
        self,
        inputs: Inputs,
        *,
        batch_size: int = 1,
        out_dir: str | Path | None = None,
        ann_file: str | Path | None = None,
        draw: bool = True,
        score_thr: float = SCORE_THR,
        logits: bool = False,
        progress: bool = False,
    ) -> Iterator[BaseDataElement]:
        """The same, a batch at a time, for more images than memory holds.

        Arguments and errors are those of a call. The model runs when results are asked for, and the
        JSON files are written after the last image.
        """
        images = open_images(inputs)
        writer = None
        if out_dir is not None:
            writer = ResultWriter(
                out_dir, self.classes, ann_file=ann_file, draw=draw, score_thr=score_thr
            )
            images = writer.accept(images)
        elif ann_file is not None:
            raise ValueError(f"expected out_dir for results with the ids of {ann_file}, got none")
        results = self.predict(images, batch_size=batch_size, progress=progress)
        if not logits:
            results = map(_without_logits, results)
        return (sample for _, sample in (results if writer is None else _written(results, writer)))

    def draw(
        self, image: NDArray[np.uint8], sample: BaseDataElement, *, score_thr: float = SCORE_THR
    ) -> NDArray[np.uint8]:
        """An image with what was predicted of it: things and stuff, colored and named.

        Args:
            image: The image, ``(H, W, 3)`` uint8, RGB.
            sample: What a call returned for it.
            score_thr: Least score of instances, of models that predict only these.

        Returns:
            ``(H, W, 3)`` uint8, RGB.

        Raises:
            ValueError: There is nothing to be drawn in the data sample, or it is of another size.
        """
        segments = segments_of(sample, self.classes, score_thr=score_thr)
        return draw_panoptic(image, segments, self.classes)


Result = tuple[InputImage, BaseDataElement]


def _without_logits(result: Result) -> Result:
    sample = result[1]
    if "seg_logits" in sample:
        del sample.seg_logits
    return result


def _written(results: Iterator[Result], writer: ResultWriter) -> Iterator[Result]:
    """The same results, each of which is written before it is handed on."""
    with writer:
        for image, sample in results:
            writer.add(image, sample)
            yield image, sample
