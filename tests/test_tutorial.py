"""The configs, layout and commands of the pages on data of one's own work as written."""

import contextlib
import io
import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import mmcv
import mmengine  # at the top: its progress bars keep the stdout of the import
import numpy as np
import pytest
import tifffile
import torch
from mmengine.config import Config
from panopticapi.utils import id2rgb
from PIL import Image

from hcformer_mm.apis import ClusterInferencer, HCFormerInferencer
from hcformer_mm.apis.coco_format import encode_panoptic
from hcformer_mm.apis.inputs import open_images
from hcformer_mm.deployment.export import ExportableModel
from hcformer_mm.structures.panoptic import Panoptic
from tests.helpers.annotation_formats import (
    assert_same,
    write_coco,
    write_labelme,
    write_masks,
    write_yolo,
)

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/custom_dataset.md").read_text()
PAGES = PAGE + (ROOT / "docs/choosing.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGES, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [line for kind, text in BLOCKS if kind == "shell" for line in text.splitlines()]
ITERATIONS = 1
SPLITS = ("train", "val")


def scene(index):
    """Category ids (72, 96): sky over grass over soil, with a bee and a snail, or none of them."""
    labels = np.full((72, 96), 3)
    labels[:48] = 4
    labels[:24] = 5
    if index:
        labels[8:18, 10 * index : 10 * index + 12] = 1
        labels[40:52, 60:80] = 2
    return labels


def write_split(root, split, images, categories):
    """Images, panoptic annotations and label maps, as the page describes them."""
    folders = (root / split, root / f"annotations/panoptic_{split}", root / f"semantic/{split}")
    for folder in folders:
        folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    entries, annotations = [], []
    for index, name in enumerate(images):
        labels = scene(index)
        ids, segments = encode_panoptic(Panoptic(labels, {i: i for i in range(6)}), range(6))
        pixels = 40 * labels[..., None] + random.integers(0, 40, (72, 96, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folders[0] / f"{name}.jpg")
        Image.fromarray(id2rgb(ids)).save(folders[1] / f"{name}.png")
        Image.fromarray((labels - 1).astype(np.uint8)).save(folders[2] / f"{name}.png")
        entries.append(dict(id=index + 1, file_name=f"{name}.jpg", height=72, width=96))
        files = dict(image_id=index + 1, file_name=f"{name}.png")
        annotations.append(files | dict(segments_info=segments))
    content = dict(images=entries, annotations=annotations, categories=categories)
    mmengine.dump(content, root / f"annotations/panoptic_{split}.json")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with the configs of the page, and data in its layout."""
    project = tmp_path_factory.mktemp("project")
    (project / "tools").symlink_to(ROOT / "tools")
    (project / "configs/garden").mkdir(parents=True)
    for folder in (ROOT / "configs").iterdir():
        (project / "configs" / folder.name).symlink_to(folder)
    for kind, text in BLOCKS:
        if kind in ("python", "yaml"):
            path = project / re.match(r"# (\S+\.(py|yaml))\n", text).group(1)
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    (example,) = (json.loads(text) for kind, text in BLOCKS if kind == "json")
    root = project / "data/garden"
    write_split(root, "train", ("rose", "hedge", "pond"), example["categories"])
    write_split(root, "val", ("path", "bed"), example["categories"])
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patch:
        patch.chdir(project)
        for command in commands("panoptic_to_instances.py"):
            start(patch, command)
    return project


def start(monkeypatch, command, options=()):
    """Run a command of the pages in this process."""
    program, script, *arguments = shlex.split(command)
    assert program == "python"
    monkeypatch.setattr(sys, "argv", [script, *arguments, *options])
    runpy.run_path(script, run_name="__main__")


@pytest.fixture
def run(project, monkeypatch):
    """Run a command of the page, with fewer iterations."""
    monkeypatch.chdir(project)
    monkeypatch.setenv("LOCAL_RANK", "0")

    def run(command):
        command = re.sub(r"iter_[36]000", f"iter_{ITERATIONS}", command)
        loaders = [
            f"{split}_dataloader.{option}"
            for split in ("train", "val", "test")
            for option in ("num_workers=0", "persistent_workers=False")
        ]
        options = [] if "--cfg-options" in command else ["--cfg-options"]
        if "tools/train.py" in command:
            iterations = [f"train_cfg.{key}={ITERATIONS}" for key in ("max_iters", "val_interval")]
            options += [*loaders, *iterations, "train_dataloader.batch_size=2"]
        elif "tools/test.py" in command:
            options += loaders
        elif "tools/visualize_clusters.py" in command:
            options = ["--side", "160"]
        else:
            options = []
        start(monkeypatch, command, options)

    return run


def commands(*needles):
    found = [line for line in COMMANDS if all(needle in line for needle in needles)]
    assert found, f"the page has no command with {needles}"
    return found


def test_annotations_are_clean(run, capsys):
    for command in commands("dataset_converters/check_"):
        run(command)
    out = capsys.readouterr().out
    assert out.count(": clean") == 4
    assert "at most 5 segments in an image, so at least 8 queries" in out


def test_panoptic(run, project):
    """Training, test and drawings, each from the results of the one before."""
    (train,) = commands("tools/train.py", "panoptic")
    (test,) = commands("tools/test.py", "panoptic")
    (draw,) = commands("visualize_clusters.py", "panoptic")
    run(train)
    run(test)
    logs = project.glob("work_dirs/garden/*/*.json")
    scores = json.loads(max(path for path in logs if path.stem == path.parent.name).read_text())
    assert {"coco_panoptic/PQ", "coco/segm_mAP", "sem_seg/mIoU"} <= set(scores)
    assert scores["coco/segm_mAP_l"] == -1  # as docs/remedies.md says
    run(draw)
    assert (project / "work_dirs/garden/clusters/bed.png").is_file()


def test_semantic(run, project):
    (train,) = commands("tools/train.py", "semantic")
    run(train)
    assert (project / f"work_dirs/garden-semantic/iter_{ITERATIONS}.pth").is_file()


FIVE_BANDS = "configs/garden/hcformer_r18_garden-five-bands.py"
MEMBERS = dict(semantic="pred_sem_seg", panoptic="pred_panoptic_seg")


@pytest.fixture(params=MEMBERS)
def field(request, project, tmp_path):
    """The project with images of five bands and 16 bits, and the kind of its model."""
    folder = tmp_path / "field"
    shutil.copytree(project, folder, symlinks=True)
    random = np.random.default_rng(0)
    for path in (folder / "data/garden").glob("*/*.jpg"):
        image = np.dstack([mmcv.imread(str(path)), random.integers(0, 255, (72, 96, 2))]) * 200
        options = dict(photometric="minisblack", planarconfig="contig")
        tifffile.imwrite(path.with_suffix(".tif"), image.astype(np.uint16), **options)
        path.unlink()
    for path in (folder / "data/garden/annotations").rglob("*.*"):
        if path.suffix == ".json":
            path.write_text(re.sub(r"\.(jpg|png)", ".tif", path.read_text()))
        else:
            path.rename(path.with_suffix(".tif"))
    if request.param == "panoptic":
        text = (folder / FIVE_BANDS).read_text().replace("garden-semantic", "garden-panoptic")
        (folder / FIVE_BANDS).write_text(text.replace('img_suffix=".tif", ', ""))
    return folder, request.param


def test_five_bands_of_16_bits(field, run, monkeypatch):
    """Training by the runner; prediction from files, bytes, arrays and tensors; drawings."""
    folder, kind = field
    monkeypatch.chdir(folder)
    (train,) = commands("tools/train.py", "five-bands")
    run(train)
    weights = f"work_dirs/garden-five-bands/iter_{ITERATIONS}.pth"
    state = torch.load(weights, weights_only=False)["state_dict"]
    assert state["backbone.backbone.conv1.weight"].shape[1] == 5

    inferencer = HCFormerInferencer(FIVE_BANDS, weights, "cpu")
    path = Path("data/garden/val/bed.tif")
    image = tifffile.imread(path)
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    samples = inferencer([path, path.read_bytes(), image, tensor], out_dir="results", logits=True)
    for sample in samples:
        for name in {MEMBERS[kind], "seg_logits"} & set(samples[0].keys()):
            for key, value in samples[0].get(name).items():
                assert torch.equal(sample.get(name).get(key), value)
    (opened,) = (one for one, _ in inferencer.predict(open_images(path)))
    shown = opened.read_rgb()
    bands = image[..., [2, 1, 0]].astype(int)
    assert abs(shown - 255 * (bands - bands.min()) / np.ptp(bands)).max() <= 1
    arguments = [str(path), FIVE_BANDS, weights, "--out", "drawn.png", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["image_demo.py", *arguments])
    runpy.run_path(str(ROOT / "demo/image_demo.py"), run_name="__main__")
    for file in ("results/vis/bed.png", "drawn.png"):
        assert np.array_equal(Image.open(file), inferencer.draw(shown, samples[0]))

    for wrong, got in ((image[..., :3], ", 3"), (image / 2, "float64"), (tensor[1:], ", 4")):
        with pytest.raises(ValueError, match=rf"array \(H, W, 5\) of uint8 or .*, got .*{got}"):
            inferencer(wrong)
    Image.fromarray(shown).save("colors.png")
    with pytest.raises(ValueError, match=r"expected 5 bands in colors\.png, .* \(72, 96, 3\)"):
        inferencer("colors.png")
    with pytest.raises(ValueError, match="three bands to export, BGR, got 5 bands"):
        ExportableModel(inferencer.model)
    (clusters,) = ClusterInferencer(FIVE_BANDS, weights, "cpu")(path)
    assert np.array_equal(clusters.image, shown)


def test_bands_that_the_model_would_cut_are_refused(field, run, monkeypatch):
    """MMEngine's preprocessor takes the first three bands without a word."""
    folder, _ = field
    monkeypatch.chdir(folder)
    text = (folder / FIVE_BANDS).read_text()
    (folder / FIVE_BANDS).write_text(re.sub(r"    data_preprocessor=.*\n", "", text))
    message = "no bgr_to_rgb, mean, std in model.data_preprocessor, .* loads 5 bands; set bgr"
    with pytest.raises(ValueError, match=message):
        HCFormerInferencer(FIVE_BANDS)
    (train,) = commands("tools/train.py", "five-bands")
    with pytest.raises(SystemExit, match=message):
        run(train)


def test_wrong_number_is_refused_as_the_page_says(run, project):
    (train,) = commands("tools/train.py", "panoptic")
    config = project / "configs/garden/hcformer_r18_garden-panoptic.py"
    wrong = config.with_name("wrong.py")
    wrong.write_text(
        config.read_text().replace("num_things_classes=len(things)", "num_things_classes=6")
    )
    with pytest.raises(SystemExit) as raised:
        run(train.replace(config.name, wrong.name))
    (message,) = re.findall(r"^- (model\..*?)^- ", PAGE, re.M | re.S)
    assert " ".join(message.split()) in str(raised.value)


@pytest.mark.parametrize(
    ("source", "write"),
    [
        ("labelme", lambda root, out: write_labelme(root, out / "labelme", SPLITS, "mask")),
        ("yolo", lambda root, out: write_yolo(root, out / "yolo", SPLITS)),
        ("coco", lambda root, out: write_coco(root, out / "cvat", SPLITS, "list")),
        ("masks", lambda root, out: write_masks(root, out, SPLITS, (".png", ".npy"))),
    ],
)
def test_other_tools(project, tmp_path, monkeypatch, source, write):
    """Annotations of another tool become the panoptic set that they were made from."""
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    shutil.copytree(project / "data", tmp_path / "data", ignore=lambda *_: ["garden"])
    write(project / "data/garden", tmp_path / "annotated")
    monkeypatch.chdir(tmp_path)
    (command,) = commands(f"to_panoptic.py {source} ")
    start(monkeypatch, command, ["--num-workers", "1"])
    for split in SPLITS:
        assert_same(project / "data/garden", tmp_path / "data/garden", split)


def test_larger_images(run, project):
    """Training and test of the config of docs/choosing.md, whose bases give the rest."""
    config = Config.fromfile(project / "configs/garden/hcformer_r18_garden-large.py")
    for loader in (config.train_dataloader, config.test_dataloader):
        scales = [step["scale"] for step in loader.dataset.pipeline if "scale" in step]
        assert scales == [(384, 288)]
    first, last = config.param_scheduler
    assert (first.end, last.begin, last.T_max) == (100, 100, 5900)
    for tool in ("tools/train.py", "tools/test.py"):
        (command,) = commands(tool, "garden-large")
        run(command)


def test_merging_and_replacing(project, monkeypatch):
    """What the page says of ``_base_``, ``_delete_`` and ``data_root``; docs/remedies.md too."""
    monkeypatch.chdir(project)
    path = "configs/garden/hcformer_r18_garden-sgd.py"
    config = Config.fromfile(path)
    assert config.optim_wrapper.optimizer == dict(type="SGD", lr=0.01, momentum=0.9)
    assert config.model.panoptic_head.num_queries == 50
    assert config.model.panoptic_head.type == "hcformer_mm.HCFormerHead"
    (command,) = commands("pretty_text")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(shlex.split(command)[2])
    assert printed.getvalue().strip() == config.pretty_text.strip()
    file = Path(path).with_name("wrong.py")
    text = Path(path).read_text().replace("_delete_=True, ", "")
    file.write_text(text + 'data_root = "elsewhere/"\n')
    wrong = Config.fromfile(file)
    assert wrong.optim_wrapper.optimizer.weight_decay == 0.05  # of AdamW
    assert wrong.train_dataloader.dataset.data_root == "data/garden/"


def test_all_gray(project, monkeypatch):
    """A model without training is sure of nothing, and shows segments at a threshold of 0."""
    monkeypatch.chdir(project)
    torch.manual_seed(0)
    inferencer = HCFormerInferencer("configs/garden/hcformer_r18_garden-panoptic.py", device="cpu")
    image = "data/garden/val/bed.jpg"
    found = {}
    for threshold in (0.8, 0.0):
        (sample,) = inferencer(image, object_mask_thr=threshold, iou_thr=0.0)
        found[threshold] = set(sample.pred_panoptic_seg.sem_seg.unique().tolist())
    assert found[0.8] == {5}  # void
    assert found[0.0] - {5}


def test_every_command_is_known():
    tools = ("check_panoptic.py", "check_semantic.py", "panoptic_to_instances.py", "to_panoptic.py")
    tools += ("tools/train.py", "tools/test.py", "visualize_clusters.py", "pretty_text")
    assert all(any(tool in command for tool in tools) for command in COMMANDS)
