"""HCFormerInferencer: from pictures to panoptic, instance and semantic results."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from mmengine.structures import BaseDataElement
from numpy.typing import NDArray

from ..visualization import SCORE_THR, draw_panoptic
from .pictures import Inputs, Picture, open_pictures
from .prediction import Predictor
from .result_writers import ResultWriter, segments_of


class HCFormerInferencer(Predictor):
    """Segment pictures, as data samples of the hosts and as files.

    Works for every detector of mmdet that predicts segments or masks and every segmentor of mmseg;
    mmdet's ``DetInferencer`` and mmseg's ``MMSegInferencer`` read the same configs and checkpoints
    and predict the same, to the bit if ``fast=False``. Arguments and attributes are those of
    :class:`~hcformer_mm.apis.prediction.Predictor`: a config by name or path, a checkpoint, a
    device, a precision.

    ::

        inferencer = HCFormerInferencer("hcformer_r18_shapes-panoptic", "iter_3000.pth")
        (sample,) = inferencer("picture.jpg")
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
        """Segment pictures.

        Args:
            inputs: A picture, folder or video, or several of them; see
                :func:`~hcformer_mm.apis.pictures.open_pictures`.
            batch_size: Pictures that go through the network together.
            out_dir: Folder to which results are written as well; which files these are, and what
                ``ann_file``, ``draw`` and ``score_thr`` mean for them, says
                :class:`~hcformer_mm.apis.result_writers.ResultWriter`.
            ann_file: Annotations whose ids the files use.
            draw: Whether there are pictures among the files.
            score_thr: Least score of instances that are drawn.
            logits: Whether data samples of mmseg keep ``seg_logits``, a float for every pixel and
                class.
            progress: Whether a progress bar is shown.

        Returns:
            The data sample of the host for each picture, in their order, on the CPU:
            ``DetDataSample`` with those of ``pred_panoptic_seg``, ``pred_instances`` and
            ``pred_sem_seg`` that the config's ``test_cfg`` asks for, ``SegDataSample`` with
            ``pred_sem_seg``; all of the size of the picture.

        Raises:
            ValueError: An input is no picture, two pictures would be written under the same name,
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
        """The same, a batch at a time, for more pictures than memory holds.

        Arguments and errors are those of a call. The model runs when results are asked for, and the
        JSON files are written after the last picture.
        """
        pictures = open_pictures(inputs)
        writer = None
        if out_dir is not None:
            writer = ResultWriter(
                out_dir, self.classes, ann_file=ann_file, draw=draw, score_thr=score_thr
            )
            pictures = writer.accept(pictures)
        elif ann_file is not None:
            raise ValueError(f"expected out_dir for results with the ids of {ann_file}, got none")
        results = self.predict(pictures, batch_size=batch_size, progress=progress)
        if not logits:
            results = map(_without_logits, results)
        return (sample for _, sample in (results if writer is None else _written(results, writer)))

    def draw(
        self, image: NDArray[np.uint8], sample: BaseDataElement, *, score_thr: float = SCORE_THR
    ) -> NDArray[np.uint8]:
        """A picture with what was predicted of it: things and stuff, coloured and named.

        Args:
            image: The picture, ``(H, W, 3)`` uint8, RGB.
            sample: What a call returned for it.
            score_thr: Least score of instances, of models that predict only these.

        Returns:
            ``(H, W, 3)`` uint8, RGB.

        Raises:
            ValueError: There is nothing to be drawn in the data sample, or it is of another size.
        """
        segments = segments_of(sample, self.classes, score_thr=score_thr)
        return draw_panoptic(image, segments, self.classes)


Result = tuple[Picture, BaseDataElement]


def _without_logits(result: Result) -> Result:
    sample = result[1]
    if "seg_logits" in sample:
        del sample.seg_logits
    return result


def _written(results: Iterator[Result], writer: ResultWriter) -> Iterator[Result]:
    """The same results, each of which is written before it is handed on."""
    with writer:
        for picture, sample in results:
            writer.add(picture, sample)
            yield picture, sample
