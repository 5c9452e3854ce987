"""HCFormerInferencer: panoptic, instance and semantic segmentation of images."""

from collections.abc import Collection, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from mmengine.structures import BaseDataElement
from numpy.typing import NDArray
from typing_extensions import Unpack

from ..structures.data_samples import SCORE_THR
from ..visualization import PLAIN, FigureStyle, draw_figure
from .base_inferencer import BaseInferencer, listed
from .inference import ResultOptions
from .inputs import InputImage, Inputs, open_images
from .result_writer import ResultWriter, segments_of
from .tiles import TILE_IOU_THR, TILE_OVERLAP, Tiling


class HCFormerInferencer(BaseInferencer):
    """Segments images; returns data samples and writes files.

    Works with every detector of mmdet that predicts segments or masks and every segmentor of mmseg.
    mmdet's ``DetInferencer`` and mmseg's ``MMSegInferencer`` read the same configs and checkpoints
    and give the same predictions, bit for bit if ``fast=False``. For arguments and attributes, see
    :class:`~hcformer_mm.apis.base_inferencer.BaseInferencer`.

    ::

        inferencer = HCFormerInferencer("hcformer_r18_shapes-panoptic", "iter_3000.pth")
        (sample,) = inferencer("image.jpg")
        sample.pred_panoptic_seg.sem_seg  # (1, H, W): class + 1000 · instance number
    """

    def iterate(
        self,
        inputs: Inputs,
        *,
        batch_size: int = 1,
        out_dir: str | Path | None = None,
        ann_file: str | Path | None = None,
        draw: bool = True,
        draw_scores: bool = False,
        style: FigureStyle = PLAIN,
        tables: Collection[str] = (),
        score_thr: float = SCORE_THR,
        logits: bool = False,
        progress: bool = False,
        strict: bool = False,
        tile_size: int | tuple[int, int] | None = None,
        tile_overlap: int = TILE_OVERLAP,
        tile_iou_thr: float = TILE_IOU_THR,
        **options: Unpack[ResultOptions],
    ) -> Iterator[BaseDataElement]:
        """Segment images one by one; a call of the inferencer returns all results as a list.

        The model runs only when the next result is requested, so that any number of images fits in
        memory. The JSON files are written after the last image.

        Args:
            inputs: One or more images, folders or videos; see
                :func:`~hcformer_mm.apis.inputs.open_images`.
            batch_size: Images per forward pass.
            out_dir: Folder for result files, which
                :class:`~hcformer_mm.apis.result_writer.ResultWriter` describes; None writes none.
            ann_file: COCO annotations from which the files take image and category ids.
            draw: Whether the files include drawings.
            draw_scores: Whether the drawings show the scores of panoptic segments or instances.
            style: How to draw.
            tables: Tables of segments that the files include: ``'csv'``, ``'geojson'`` or both.
            score_thr: Minimum score of instances in drawings and tables, if there is no panoptic
                result; as in mmdet, all instances are returned and written to ``instances.json``.
            logits: Whether mmseg's samples keep ``seg_logits``, one float per pixel and class.
            progress: Whether to show a progress bar.
            strict: Whether a file that is not a whole image is an error. By default it is skipped
                with a warning and listed in ``images.json``, unless it is the only one.
            tile_size: Side, or height and width, of the tiles into which larger images are cut, in
                pixels; None cuts none. See :class:`~hcformer_mm.apis.tiles.Tiling`.
            tile_overlap: Minimum number of pixels that neighboring tiles share.
            tile_iou_thr: Minimum IoU of two parts of one object in the strip between two tiles.
            options: :class:`~hcformer_mm.apis.inference.ResultOptions`: thresholds that override
                the config's, and ``confidence``.

        Returns:
            One data sample per image that can be read, in order, on the CPU, at the image's size;
            ``img_path`` says which file it is of. A ``DetDataSample`` has ``pred_panoptic_seg``,
            ``pred_instances`` and ``pred_sem_seg``, as far as the model's ``test_cfg`` enables
            them, and ``pred_segments`` with the score of every panoptic segment; a
            ``SegDataSample`` has ``pred_sem_seg``. With ``confidence=True`` both have
            ``pred_confidence``. For images cut into tiles, see
            :func:`~hcformer_mm.apis.tiling.predict_tiled`.

        Raises:
            ValueError: An input is not an image, no file is, two images would be written to the
                same file, or the results cannot be written as requested.
            FileNotFoundError: No such file.
        """
        images = open_images(inputs)
        tiling = None if tile_size is None else Tiling(tile_size, tile_overlap, tile_iou_thr)
        if tiling is not None and logits:
            raise ValueError(
                "expected logits=False with tile_size, as logits of a large image would not fit "
                "in memory, got logits=True"
            )
        writer = None
        if out_dir is not None:
            writer = ResultWriter(
                out_dir,
                self.classes,
                ann_file=ann_file,
                draw=draw,
                draw_scores=draw_scores,
                style=style,
                tables=tables,
                score_thr=score_thr,
            )
            images = writer.accept(images)
        elif ann_file is not None:
            raise ValueError(f"expected out_dir for results with the ids of {ann_file}, got none")
        elif tables:
            raise ValueError(f"expected out_dir for tables, got tables={tables} without it")
        results = self.predict(
            images,
            batch_size=batch_size,
            progress=progress,
            strict=strict,
            tiling=tiling,
            **({} if writer is None else dict(on_failure=writer.add_failure)),
            **options,
        )
        return _finished(results, writer, logits=logits)

    __call__ = listed(iterate)

    def draw(
        self,
        image: NDArray[np.uint8],
        sample: BaseDataElement,
        *,
        scores: bool = False,
        style: FigureStyle = PLAIN,
        score_thr: float = SCORE_THR,
    ) -> NDArray[np.uint8]:
        """Draw the colored, named segments of a prediction over its image.

        Args:
            image: The image, ``(H, W, 3)`` uint8, RGB.
            sample: The data sample that a call returned for this image.
            scores: Whether to write the score of a panoptic segment or an instance after its name.
            style: How to draw.
            score_thr: Minimum score of instances, if the model predicts nothing else.

        Returns:
            uint8 RGB, of the image's size ``(H, W, 3)``, or larger as ``style`` says.

        Raises:
            ValueError: The sample has no segmentation, its size differs from the image's, or
                ``score_thr`` is not from 0 to 1.
        """
        segments = segments_of(sample, self.classes, score_thr=score_thr)
        return draw_figure(image, segments, self.classes, style, scores=scores)


def _finished(
    results: Iterator[tuple[InputImage, BaseDataElement]],
    writer: ResultWriter | None,
    *,
    logits: bool,
) -> Iterator[BaseDataElement]:
    """Drop logits unless wanted, and write each result before it is yielded."""
    with writer or nullcontext():
        for image, sample in results:
            if not logits and "seg_logits" in sample:
                del sample.seg_logits  # pop() would leave the data behind this property
            if writer is not None:
                writer.add(image, sample)
            yield sample
