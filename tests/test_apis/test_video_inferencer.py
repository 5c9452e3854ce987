"""Videos: frames, ids of objects, and files."""

import json
import os
import re
import threading

import mmcv
import numpy as np
import pytest
import torch
from mmdet.evaluation.functional import YTVIS, YTVISeval
from pycocotools import mask as coco_mask

from hcformer_mm.apis import HCFormerInferencer, VideoInferencer
from hcformer_mm.apis.inputs import InputImage
from hcformer_mm.apis.track_writer import Track, mots_lines, write_tracks, youtube_vis
from hcformer_mm.models.utils.segment_tracker import SegmentTracker
from hcformer_mm.structures.data_samples import predicted_segments
from hcformer_mm.visualization import draw_panoptic
from tests.helpers.models import SEMANTIC_CONFIG
from tests.helpers.moving_shapes import kept_share, moving_shapes, sights, switches
from tests.helpers.predictions import CLASSES, outspoken_config, random_sample, write_video

SIZE = (64, 96)
FRAMES = 7


@pytest.fixture(scope="module")
def frames():
    return [frame.image for frame in moving_shapes(0, frames=FRAMES, things=2, size=SIZE)]


@pytest.fixture(scope="module")
def video(frames, tmp_path_factory):
    """The frames at 5 a second."""
    return write_video(tmp_path_factory.mktemp("video") / "street.avi", frames)


@pytest.fixture(scope="module")
def inferencer(model_files):
    return VideoInferencer(*model_files(), "cpu")


def test_samples_are_those_of_images_with_tracks(inferencer, model_files, frames):
    plain = HCFormerInferencer(*model_files(), "cpu")(frames, batch_size=3)
    samples = list(inferencer.track(frames, batch_size=3))
    assert len(samples) == FRAMES
    for sample, other in zip(samples, plain, strict=True):
        panoptic = sample.pred_panoptic_seg.sem_seg
        assert torch.equal(panoptic, other.pred_panoptic_seg.sem_seg)
        objects = sample.pred_track_instances
        assert len(objects) == (panoptic.unique() >= 1000).sum() > 0
        for i, mask in zip(objects.ids, objects.masks, strict=True):
            assert torch.equal(mask, panoptic[0] == i)
        assert (objects.labels == objects.ids % 1000).all()
        assert objects.instances_id.unique().numel() == len(objects)


def test_a_still_video_has_the_ids_of_its_first_frame(inferencer, frames):
    first, *others = inferencer.track(frames[:1] * 4)
    assert sorted(first.pred_track_instances.instances_id.tolist()) == [
        1 + i for i in range(len(first.pred_track_instances))
    ]
    for sample in others:
        for key in ("instances_id", "ids"):
            assert torch.equal(sample.pred_track_instances[key], first.pred_track_instances[key])


class Recorder(SegmentTracker):
    """A tracker that keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.given = []

    def update(self, *segments):
        self.given.append(segments)
        return super().update(*segments)


@pytest.mark.parametrize("decoder", ["masked", "standard"])
def test_embeddings_are_those_that_classes_come_from(inferencer, frames, decoder):
    if decoder == "standard":
        config = outspoken_config()
        config.model.panoptic_head.decoder = decoder
        with pytest.warns(UserWarning, match="its predictions are random"):
            inferencer = VideoInferencer(config, device="cpu")

    tracker = Recorder()
    list(inferencer.track(frames, batch_size=3, tracker=tracker))
    assert len(tracker.given) == FRAMES
    for _, labels, embeddings in tracker.given:
        with torch.no_grad():
            logits = inferencer.model.panoptic_head.cls_embed(embeddings)
        assert torch.equal(logits.argmax(1), labels)


@pytest.mark.parametrize(("fps", "numbers"), [(None, range(7)), (2, [0, 3, 5]), (5, range(7))])
def test_frames_per_second(inferencer, video, tmp_path, fps, numbers, capsys):
    samples = list(inferencer.track(video, fps=fps, out_dir=tmp_path, format="mots", progress=True))
    assert [sample.img_id for sample in samples] == list(numbers)
    assert f"{len(numbers)}/{len(numbers)}" in capsys.readouterr().err
    drawn = mmcv.VideoReader(str(tmp_path / "street.mp4"))
    assert (drawn.frame_cnt, drawn.fps) == (len(numbers), fps or 5)
    assert {int(line.split()[0]) for line in read(tmp_path / "street.txt")} == set(numbers)


def read(path):
    return path.read_text().splitlines()


def test_files_of_a_folder_of_frames(inferencer, frames, tmp_path):
    for i, frame in enumerate(frames):
        mmcv.imwrite(frame, str(tmp_path / "street.v2" / f"{i:03}.png"))
    samples = list(inferencer.track(tmp_path / "street.v2", out_dir=tmp_path / "out"))
    names = ["street.v2.json", "street.v2.mp4"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert mmcv.VideoReader(str(tmp_path / "out" / "street.v2.mp4")).fps == 25
    content = json.loads((tmp_path / "out" / "street.v2.json").read_text())
    (video,) = content["videos"]
    assert video["file_names"] == [f"{i:03}.png" for i in range(FRAMES)]
    assert (video["height"], video["width"], video["length"]) == (*SIZE, FRAMES)
    names = [one["name"] for one in content["categories"]]
    assert names == list(inferencer.classes.names)
    tracks = {track["id"]: track for track in content["annotations"]}
    for i, sample in enumerate(samples):
        objects = sample.pred_track_instances
        seen = {t for t, track in tracks.items() if track["segmentations"][i] is not None}
        assert seen == set(objects.instances_id.tolist())
        for number, mask, box in zip(
            objects.instances_id.tolist(), objects.masks, objects.bboxes, strict=True
        ):
            track = tracks[number]
            decoded = coco_mask.decode(track["segmentations"][i])
            assert np.array_equal(decoded, mask.numpy())
            assert track["areas"][i] == mask.sum()
            left, top, width, height = track["bboxes"][i]
            assert [left, top, left + width, top + height] == box.tolist()
            assert len(track["segmentations"]) == FRAMES


def test_drawings_show_the_tracks(inferencer, frames, tmp_path):
    """A video of one frame is the drawing, up to its compression."""
    (sample,) = inferencer.track(frames[:1], out_dir=tmp_path)
    objects = sample.pred_track_instances
    tracks = dict(zip(objects.ids.tolist(), objects.instances_id.tolist(), strict=True))
    segments = predicted_segments(sample, inferencer.classes)
    drawn = draw_panoptic(frames[0][..., ::-1], segments, inferencer.classes, tracks=tracks)
    (shown,) = mmcv.VideoReader(str(tmp_path / "video.mp4"))
    assert np.abs(shown[..., ::-1].astype(int) - drawn).mean() < 12


def test_nothing_is_left_of_a_video_that_is_not_finished(inferencer, frames, tmp_path):
    results = inferencer.track(frames, out_dir=tmp_path)
    next(results)
    results.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="expected frames of one size, got another"):
        list(inferencer.track([frames[0], frames[1][:40]], out_dir=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_no_frames_are_no_error(inferencer, tmp_path):
    assert list(inferencer.track([], out_dir=tmp_path)) == []
    assert [path.name for path in tmp_path.iterdir()] == ["video.json"]


def mask(*pixels):
    array = np.zeros(SIZE, np.uint8, order="F")
    for row, column in pixels:
        array[row, column] = 1
    return coco_mask.encode(array)["counts"].decode()


TRACKS = {
    1: Track([0, 1, 1], [0.5, 0.75, 1.0], {0: mask((1, 2)), 1: mask((1, 3)), 3: mask((1, 5))}),
    2: Track([1], [0.25], {1: mask((8, 8), (8, 9))}),
}


def test_mots_by_hand():
    one, two = TRACKS.values()
    assert list(mots_lines(TRACKS, [0, 10, 20, 30], SIZE)) == [
        f"0 2001 2 64 96 {one.masks[0]}\n",
        f"10 2001 2 64 96 {one.masks[1]}\n",
        f"10 2002 2 64 96 {two.masks[1]}\n",
        f"30 2001 2 64 96 {one.masks[3]}\n",
    ]
    many = dict.fromkeys(range(1000), TRACKS[2])
    with pytest.raises(ValueError, match="expected fewer than 1000 objects of a class"):
        list(mots_lines(many, [0, 1], SIZE))


def test_youtube_vis_is_read_by_its_evaluation(monkeypatch):
    """As results against itself as ground truth, every track is found."""
    monkeypatch.setattr(np, "float", float, raising=False)  # mmdet 3.3.0 is older than NumPy 1.24
    content = youtube_vis(TRACKS, ["a.jpg", "b.jpg", "c.jpg", "d.jpg"], SIZE, CLASSES)
    first, second = content["annotations"]
    assert (first["score"], first["category_id"]) == (0.75, 2)
    assert second["segmentations"] == [None, dict(size=SIZE, counts=TRACKS[2].masks[1]), None, None]
    assert second["bboxes"] == [None, [8, 8, 2, 1], None, None]
    truth = YTVIS(json.loads(json.dumps(content)))
    evaluation = YTVISeval(truth, truth.loadRes(content["annotations"]), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == 1


def test_frames_without_objects(inferencer, frames):
    for sample in inferencer.track(frames[:2], object_mask_thr=1.0):
        assert len(sample.pred_track_instances) == 0


def frame_without_objects(size):
    sample = random_sample(*size)
    objects = sample.pred_track_instances = sample.pred_instances[:0]
    objects.ids = objects.instances_id = objects.labels
    return InputImage("a", 0, array=np.zeros((*size, 3), np.uint8)), sample


def test_frames_without_objects_are_written(tmp_path):
    for format, content in [("mots", ""), ("coco-vid", '"annotations": []')]:
        frames = iter([frame_without_objects(SIZE)])
        list(write_tracks(frames, tmp_path / "x", CLASSES, format=format, fps=None))
        (path,) = tmp_path.iterdir()
        assert content in path.read_text()
        path.unlink()


@pytest.mark.parametrize(("size", "fps"), [((1, 5), 25), (SIZE, 1e-3), (SIZE, 1e5)])
def test_videos_that_cannot_be_written_are_refused_at_the_first_frame(tmp_path, size, fps):
    frames = iter([frame_without_objects(size)])
    results = write_tracks(frames, tmp_path / "x", CLASSES, format="mots", fps=fps)
    message = f"got frames of {size[0]}x{size[1]} pixels at {fps:g} per second"
    with pytest.raises(ValueError, match=re.escape(message)):
        next(results)
    assert list(tmp_path.iterdir()) == []


def test_threads_share_an_inferencer(inferencer, frames):
    expected = [s.pred_track_instances.instances_id for s in inferencer.track(frames[:3])]
    found = {}

    def run(i):
        found[i] = [s.pred_track_instances.instances_id for s in inferencer.track(frames[:3])]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(2):
        assert all(map(torch.equal, found[i], expected))


def test_refusals(inferencer, video, frames, tmp_path):
    for fps in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"expected fps above 0, got {fps}"):
            inferencer.track(video, fps=fps)
    with pytest.raises(ValueError, match="expected fps of at most the video's 5, got 6"):
        inferencer.track(video, fps=6)
    with pytest.raises(ValueError, match=r"expected format among \('mots', 'coco-vid'\), got 'x'"):
        inferencer.track(video, out_dir=tmp_path, format="x")
    mp4 = tmp_path / "street.mp4"
    mp4.write_bytes(video.read_bytes())
    with pytest.raises(ValueError, match="expected another folder than that of the video, got"):
        inferencer.track(mp4, out_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="no such image: nowhere"):
        inferencer.track("nowhere.mp4")
    assert mp4.read_bytes() == video.read_bytes()


def test_models_without_objects_are_refused():
    with (
        pytest.warns(UserWarning, match="its predictions are random"),
        pytest.raises(
            ValueError, match=r"expected a detector with HCFormerHead .* got EncoderDecoder with"
        ),
    ):
        VideoInferencer(SEMANTIC_CONFIG, device="cpu")


CHECKPOINT = "HCFORMER_MM_SHAPES_CHECKPOINT"


@pytest.mark.slow
@pytest.mark.skipif(CHECKPOINT not in os.environ, reason=f"{CHECKPOINT} names no checkpoint")
def test_a_trained_model_keeps_ids_through_crossings():
    """Of the objects that it finds apart; better than by masks or by embeddings alone."""
    config = "hcformer_r18_shapes-panoptic"
    inferencer = VideoInferencer(config, os.environ[CHECKPOINT], "cpu")
    kinds = dict(
        all={},
        masks=dict(weights=(0, 1, 0), min_similarity=0.01),
        embeddings=dict(weights=(1, 0, 0), min_similarity=0.3),
    )
    found = {(kind, min_iou): [] for kind in kinds for min_iou in (0.5, 0.75)}
    for seed in range(16):
        frames = list(moving_shapes(seed))
        images, recorder = [frame.image for frame in frames], Recorder()
        list(inferencer.track(images, batch_size=4, tracker=recorder, object_mask_thr=0.5))
        trackers = {kind: SegmentTracker(**options) for kind, options in kinds.items()}
        for (masks, *others), frame in zip(recorder.given, frames, strict=True):
            ids = {kind: one.update(masks, *others).tolist() for kind, one in trackers.items()}
            for (kind, min_iou), pairs in found.items():
                seen = sights(masks.numpy(), ids[kind], frame.masks, min_iou)
                pairs.append([((seed, thing), (seed, track)) for thing, track in seen])
    shares = {key: kept_share(pairs) for key, pairs in found.items()}
    for key, pairs in found.items():
        print(f"{key}: {shares[key]:.1%}, {switches(pairs)} switches in {sum(map(len, pairs))}")
    assert shares["all", 0.75] >= 0.95
    for min_iou in (0.5, 0.75):
        assert shares["all", min_iou] == max(shares[kind, min_iou] for kind in kinds)
