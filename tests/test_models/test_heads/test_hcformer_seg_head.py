import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from mmseg.models.segmentors import SegTTAModel

from hcformer_mm.models import HCFormerHead
from hcformer_mm.models.utils.post_processing import semantic_scores
from tests.helpers import reference
from tests.helpers.devices import on_each_device
from tests.helpers.models import SEMANTIC_CONFIG, model_config, seg_sample, segmentor
from tests.helpers.tools import quick_config

SLIDE = {"test_cfg.mode": "slide", "test_cfg.crop_size": (64, 64), "test_cfg.stride": (32, 32)}


def random_image(height=64, width=96, seed=0):
    """Blocks of 16x16 pixels in random colors."""
    generator = torch.Generator().manual_seed(seed)
    size = (3, -(-height // 16), -(-width // 16))
    blocks = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
    return blocks.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, :height, :width]


def stripes(height=64, width=96, classes=10):
    """A label map of ``classes`` vertical stripes."""
    return (torch.arange(width) * classes // width).expand(height, -1)


def decided(**overrides):
    """A segmentor in evaluation whose random weights tell classes and places apart."""
    model = segmentor(**overrides).eval()
    head = model.decode_head
    with torch.no_grad():
        head.mask_proj.weight *= 200
        head.cls_embed.weight *= 20
        head.cls_embed.bias[9] = -20  # it would win everywhere
        for layer in head.mask_embed[::2]:
            layer.weight *= 3
    return model


def predict(model, images, samples=None):
    """Test as the runner does, preprocessing included."""
    samples = samples or [seg_sample(torch.zeros(image.shape[1:])) for image in images]
    with torch.no_grad():
        return model.test_step(dict(inputs=images, data_samples=samples))


@on_each_device
def test_scores_sum_up_masks_by_class():
    torch.manual_seed(0)
    class_logits, masks = torch.randn(2, 5, 4).double(), torch.randn(2, 5, 3, 7).double()
    expected = [reference.semantic_scores(*pair) for pair in zip(class_logits, masks, strict=True)]
    torch.testing.assert_close(semantic_scores(class_logits, masks), torch.stack(expected))
    torch.testing.assert_close(semantic_scores(class_logits[0], masks[0]), expected[0])


@on_each_device
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_are_as_exact_in_half_precision(dtype):
    """Rounded sums would make other classes win."""
    class_logits = torch.tensor([[[9.0, 0, 0, 0], [0, 9.01, 0, 0]]]).to(dtype).float()
    masks = torch.tensor([2.0, 2.001]).view(1, 2, 1, 1)
    expected = semantic_scores(class_logits, masks)
    with torch.autocast(masks.device.type, dtype):
        scores = semantic_scores(class_logits, masks)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, expected)


@on_each_device
def test_ground_truth_of_a_hand_made_map():
    head = segmentor().decode_head
    truth = head.masks_of_classes(torch.tensor([[[3, 3, 255], [0, 9, 255]]]))
    assert truth.labels.tolist() == [0, 3, 9]
    assert truth.masks.int().tolist() == [
        [[0, 0, 0], [1, 0, 0]],
        [[1, 1, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 1, 0]],
    ]
    nothing = head.masks_of_classes(torch.full((1, 2, 3), 255))
    assert (nothing.labels.shape, nothing.masks.shape) == ((0,), (0, 2, 3))
    message = r"labels below num_classes=10 or ignore_index=255, got \[-1, 10\]; see num_classes"
    with pytest.raises(ValueError, match=message):
        head.masks_of_classes(torch.tensor([[[10, 3], [255, -1]]]))

    sample = seg_sample(torch.tensor([[10, 3]]))
    sample.set_metainfo(dict(seg_map_path="maps/wrong.png"))
    with pytest.raises(ValueError, match=r"got \[10\]; .*: maps/wrong\.png"):
        head._ground_truth([sample])

    head.num_classes = 256  # more than 8 bits can hold
    truth = head.masks_of_classes(torch.tensor([[[3, 255, 254]]], dtype=torch.uint8))
    assert truth.labels.tolist() == [3, 254]
    head.num_classes = 10

    head.ignore_index = 0
    assert head.masks_of_classes(torch.tensor([[[0, 1]]])).labels.tolist() == [1]
    with pytest.raises(ValueError, match=r"ignore_index=0, got \[255\]"):
        head.masks_of_classes(torch.tensor([[[1, 255]]]))


@on_each_device
def test_losses_are_those_of_the_head_on_these_masks():
    """Semantic ground truth and the same masks as instances give the same losses."""
    model = segmentor().train()
    samples = [seg_sample(stripes()), seg_sample(stripes(classes=3))]
    features = model.extract_feat(torch.randn(2, 3, 64, 96))
    head = model.decode_head
    torch.manual_seed(1)
    losses = head.loss(features, samples, model.train_cfg)
    # The detector's head with the same weights, on instances cut out by hand.
    config = model_config(SEMANTIC_CONFIG).decode_head
    for name in ("type", "num_classes"):
        del config[name]
    twin = HCFormerHead(**config, num_things_classes=10, num_stuff_classes=0).train()
    twin.load_state_dict(head.state_dict())
    for sample in samples:
        label_map = sample.gt_sem_seg.data[0]
        labels = [label for label in range(10) if (label_map == label).any()]
        masks = np.stack([(label_map == label).cpu().numpy() for label in labels])
        height, width = label_map.shape
        sample.gt_instances = InstanceData(
            labels=torch.tensor(labels),
            masks=BitmapMasks(masks.astype(np.uint8), height, width),
        )
        del sample.gt_sem_seg
    torch.manual_seed(1)
    expected = twin.loss(features, samples)
    assert set(losses) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)
    assert losses["loss_scale"].item() == pytest.approx(0.1 * 3 * 0.1)


@on_each_device
@pytest.mark.parametrize("level", [0, 3])
@pytest.mark.parametrize("decoder", ["masked", "standard"])
def test_every_parameter_learns_in_the_segmentor(level, decoder):
    model = segmentor(
        **{"backbone.hierarchical_level": level, "decode_head.decoder": decoder}
    ).train()
    batch = dict(
        inputs=[random_image(), random_image(50, 70)],  # padded to a common size
        data_samples=[seg_sample(stripes()), seg_sample(stripes(50, 70))],
    )
    losses = model(**model.data_preprocessor(batch, training=True), mode="loss")
    assert ("decode.loss_scale" in losses) == (level > 0)
    total, _ = model.parse_losses(losses)
    total.backward()
    assert total.isfinite()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@on_each_device
@pytest.mark.parametrize("empty", [[True, True], [True, False]])
def test_images_without_labels(empty):
    """All parameters get a gradient, which distributed training needs."""
    model = segmentor().train()
    samples = [seg_sample(torch.full((64, 96), 255) if e else stripes()) for e in empty]
    losses = model.loss(torch.randn(2, 3, 64, 96), samples)
    total = sum(losses.values())
    total.backward()
    assert total.isfinite()
    assert losses["decode.loss_cls"] > 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("decoder", ["masked", "standard"])
def test_mixed_precision(decoder):
    """Losses are near those of full precision, and scores are finite."""
    model = segmentor(**{"decode_head.decoder": decoder}).train()
    images = torch.randn(2, 3, 64, 96)
    totals = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            losses = model.loss(images, [seg_sample(stripes()) for _ in range(2)])
        totals.append(sum(losses.values()))
    totals[1].backward()
    assert totals[1].item() == pytest.approx(totals[0].item(), rel=0.05)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        (prediction, _) = model.eval().predict(images)
    assert prediction.seg_logits.data.isfinite().all()


@on_each_device
@pytest.mark.parametrize("mask_space", ["logit", "probability"])
def test_scores_at_the_original_size(mask_space):
    """Decode, bring to the padded size, score, cut the padding, resize: in this order."""
    model = decided(**{"decode_head.mask_space": mask_space})
    sample = seg_sample(torch.zeros(50, 70), ori_shape=(100, 140))
    (prediction,) = predict(model, [random_image(50, 70)], [sample])

    prepared = model.data_preprocessor(dict(inputs=[random_image(50, 70)], data_samples=[sample]))
    assert prepared["inputs"].shape == (1, 3, 64, 96)
    with torch.no_grad():
        class_logits, masks = model(prepared["inputs"], mode="tensor")
    resize = torch.nn.functional.interpolate
    masks = resize(masks[-1], (64, 96), mode="bilinear")
    scores = reference.semantic_scores(class_logits[-1][0], masks[0])[:, :50, :70]
    scores = resize(scores[None], (100, 140), mode="bilinear")[0]
    torch.testing.assert_close(prediction.seg_logits.data, scores, rtol=1e-4, atol=1e-5)
    assert prediction.pred_sem_seg.data.shape == (1, 100, 140)
    assert len(prediction.pred_sem_seg.data.unique()) > 1
    assert (prediction.pred_sem_seg.data[0] == scores.argmax(dim=0)).float().mean() > 0.999


def test_sliding_over_one_window_is_whole():
    whole, slide = decided(), decided(**SLIDE | {"test_cfg.crop_size": (64, 96)})
    for size in ((64, 96), (50, 70)):  # the second is padded to the first
        images = [random_image(*size), random_image(*size, seed=1)]
        for one, other in zip(predict(whole, images), predict(slide, images), strict=True):
            assert one.seg_logits.data.shape == (10, *size)
            assert one.seg_logits.data.std() > 0.1
            torch.testing.assert_close(one.seg_logits.data, other.seg_logits.data)


def test_sliding_averages_windows():
    """Two windows of 64 pixels on 96: their scores meet in the middle third."""
    model = decided(**SLIDE)
    (prediction,) = predict(model, [random_image()])
    scores = prediction.seg_logits.data
    whole = decided()
    left, right = (
        predict(whole, [random_image()[..., x : x + 64]])[0].seg_logits.data for x in (0, 32)
    )
    torch.testing.assert_close(scores[..., :32], left[..., :32])
    torch.testing.assert_close(scores[..., 32:64], (left[..., 32:] + right[..., :32]) / 2)
    torch.testing.assert_close(scores[..., 64:], right[..., 32:])


def test_sliding_over_a_padded_image():
    """Windows have their own size, whatever the image was padded to."""
    (prediction,) = predict(decided(**SLIDE), [random_image(70, 90)])
    assert prediction.seg_logits.data.shape == (10, 70, 90)


def test_test_time_augmentation_of_mmseg():
    """An image, its mirror image and a larger one vote on one label map."""
    model = decided()
    image = random_image(50, 70)
    larger = torch.nn.functional.interpolate(image[None].float(), (75, 105))[0].to(torch.uint8)
    plain = dict(img_path="a.jpg", ori_shape=(50, 70))
    metainfo = [plain, plain | dict(flip=True, flip_direction="horizontal"), plain]

    def samples():
        sizes = [(50, 70), (50, 70), (75, 105)]
        return [
            seg_sample(torch.zeros(size), **meta)
            for size, meta in zip(sizes, metainfo, strict=True)
        ]

    images = [image, image.flip(-1), larger]
    data = dict(inputs=[[x] for x in images], data_samples=[[s] for s in samples()])
    with torch.no_grad():
        (merged,) = SegTTAModel(model).test_step(data)
    scores = [
        predict(model, [x], [s])[0].seg_logits.data for x, s in zip(images, samples(), strict=True)
    ]
    direct = predict(model, [image.flip(-1)])[0].seg_logits.data.flip(-1)
    torch.testing.assert_close(scores[1], direct)
    votes = torch.stack([s.softmax(dim=0) for s in scores]).mean(dim=0)
    assert torch.equal(merged.pred_sem_seg.data[0], votes.argmax(dim=0))
    assert len(votes.argmax(dim=0).unique()) > 1

    single = dict(inputs=[[image]], data_samples=[samples()[:1]])
    with torch.no_grad():
        (alone,) = SegTTAModel(model).test_step(single)
    # The votes of one augmentation have the order of its scores.
    assert torch.equal(alone.pred_sem_seg.data[0], scores[0].argmax(dim=0))


def test_attributes_that_mmseg_reads():
    model = segmentor(**{"decode_head.align_corners": True, "decode_head.ignore_index": 0})
    head = model.decode_head
    assert (head.num_classes, head.out_channels, head.ignore_index) == (10, 10, 0)
    assert (model.num_classes, model.out_channels, model.align_corners) == (10, 10, True)
    assert head.mask_proj.out_channels == 128
    assert segmentor().decode_head.ignore_index == 255


@pytest.mark.parametrize(
    "name", ["num_things_classes", "num_stuff_classes", "test_cfg", "num_query"]
)
def test_derived_and_unknown_options_are_refused(name):
    config = Config.fromfile(SEMANTIC_CONFIG).model.decode_head
    with pytest.raises(TypeError, match=f"'{name}'"):
        MODELS.build({**config, name: 10})


def test_a_single_class_is_refused():
    with pytest.raises(ValueError, match="num_classes of at least 2 for HCFormerSegHead, got 1"):
        segmentor(**{"decode_head.num_classes": 1})


def test_runner_trains_validates_and_tests(shapes, tmp_path):
    """Files in, mIoU out: training, whole, sliding and augmented tests."""
    with DefaultScope.overwrite_default_scope("mmseg"):
        config = quick_config(shapes, tmp_path, SEMANTIC_CONFIG, batch_size=2)
        runner = Runner.from_cfg(config)
        before = {name: p.clone() for name, p in runner.model.named_parameters()}
        runner.train()
        assert any(not torch.equal(p, before[name]) for name, p in runner.model.named_parameters())
        scores = runner.message_hub.log_scalars
        assert "val/mIoU" in scores
        whole = runner.test()

        config.load_from = str(tmp_path / "iter_2.pth")
        slide = config.copy()
        slide.merge_from_dict(
            {f"model.{key}": value for key, value in SLIDE.items()}
            | {"model.test_cfg.crop_size": (192, 256), "experiment_name": "slide"}
        )
        assert Runner.from_cfg(slide).test() == whole

        config.test_dataloader.dataset.pipeline = [
            dict(type="LoadImageFromFile"),
            dict(
                type="TestTimeAug",
                transforms=[
                    [dict(type="Resize", scale_factor=f, keep_ratio=True) for f in (1.0, 1.5)],
                    [dict(type="RandomFlip", prob=p, direction="horizontal") for p in (0.0, 1.0)],
                    [dict(type="mmseg.LoadAnnotations")],
                    [dict(type="mmseg.PackSegInputs")],
                ],
            ),
        ]
        config.model = dict(**config.tta_model, module=config.model)
        config.experiment_name = "tta"
        augmented = Runner.from_cfg(config).test()
        assert set(augmented) == set(whole)
        assert 0 <= augmented["mIoU"] <= 100
