"""tools/predict.py on real files: what it writes, does again, refuses, and leaves when killed."""

import json
import os
import signal
import subprocess
import sys
import tarfile
from itertools import chain, count
from types import SimpleNamespace

import mmcv
import numpy as np
import psutil
import pytest
from PIL import Image

from hcformer_mm.apis import HCFormerInferencer
from hcformer_mm.apis.bulk_inferencer import BulkInferencer, Share
from hcformer_mm.apis.inputs import InputImage
from hcformer_mm.apis.result_writer import ResultWriter
from hcformer_mm.apis.run_folder import RunFolder
from hcformer_mm.apis.sources import open_sources
from hcformer_mm.visualization import FigureStyle
from tests.helpers.models import SEMANTIC_CONFIG
from tests.helpers.predictions import CLASSES, random_sample, scene, write_model, write_video
from tests.helpers.tools import ROOT, run_tool
from tests.test_tools.test_launchers import free_port

SIZES = [(64, 96), (96, 64), (64, 96), (64, 96), (80, 80), (96, 64), (64, 96)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Images of three sizes in folders in folders."""
    root = tmp_path_factory.mktemp("images")
    for i, (height, width) in enumerate(SIZES):
        pixels = scene(i, (128, 128))[:height, :width]
        mmcv.imwrite(np.ascontiguousarray(pixels), str(root / "abc"[i % 3] / "deep" / f"{i}.png"))
    return root


@pytest.fixture
def predict(model, images, capsys):
    """Function that runs the tool in this process and returns its exit code and output."""

    def run(*arguments, inputs=(images,)):
        with pytest.raises(SystemExit) as ended:
            run_tool("tools/predict.py", *inputs, *model, *arguments, "--device", "cpu")
        return ended.value.code

    return run


def read(out):
    """All files of a folder with their content, but for those that change from run to run."""
    return {
        str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()
    }


@pytest.fixture(scope="module")
def expected(model, images, tmp_path_factory):
    """Results of one run without interruption, in batches."""
    out = tmp_path_factory.mktemp("expected") / "out"
    with pytest.raises(SystemExit) as ended:
        run_tool("tools/predict.py", images, *model, "--out", out, *BATCHES, *CPU)
    assert ended.value.code == 0
    return out


CPU = ("--device", "cpu")
TABLES = ("csv", "geojson")
BATCHES = ("--batch-size", 2, "--tables", *TABLES)


def test_the_files_are_those_of_an_inferencer(predict, model, images, tmp_path):
    look = ("--draw", "--draw-mode", "contours", "--legend", "--tables", *TABLES)
    assert predict("--out", tmp_path / "out", *look, "--workers", 2) == 0
    inferencer = HCFormerInferencer(*model, "cpu")
    style = FigureStyle("contours", legend=True)
    files = sorted(images.rglob("*.png"))
    inferencer(files, out_dir=tmp_path / "alone", style=style, tables=TABLES)
    found, alone = read(tmp_path / "out"), read(tmp_path / "alone")
    assert {name: found.pop(name) for name in alone} == alone
    assert sorted(found) == ["results.jsonl", "settings.json"]
    lines = [json.loads(line) for line in found["results.jsonl"].splitlines()]
    assert [line["number"] for line in lines] == list(range(len(SIZES)))
    content = json.loads(alone["instances.json"])
    assert [entry for line in lines for entry in line["instances"]] == content
    assert isinstance(content[0]["segmentation"]["counts"], str)


def test_label_maps_of_a_segmentor(images, tmp_path):
    model = write_model(tmp_path, SEMANTIC_CONFIG)
    with pytest.raises(SystemExit) as ended:
        run_tool("tools/predict.py", images, *model, "--out", tmp_path / "out", *BATCHES, *CPU)
    assert ended.value.code == 0
    inferencer = HCFormerInferencer(*model, "cpu")
    files = sorted(images.rglob("*.png"))
    inferencer(files, out_dir=tmp_path / "alone", draw=False, tables=TABLES)
    found, alone = read(tmp_path / "out"), read(tmp_path / "alone")
    assert sorted(found) == sorted([*alone, "results.jsonl", "settings.json"])
    for name in (name for name in alone if name.endswith(".png")):
        one, other = (np.asarray(Image.open(tmp_path / x / name)) for x in ("out", "alone"))
        assert (one != other).mean() < 0.001  # batches differ from single images by rounding


def test_batches_are_of_images_of_one_size(model, images, expected, tmp_path, monkeypatch):
    def predict_batches(self, batches):
        for batch in batches:
            sizes.append([given["inputs"].shape[-2:] for _, given in batch])
            for image, _ in batch:
                yield image, random_sample(*image.read().shape[:2])

    sizes = []
    monkeypatch.setattr(BulkInferencer, "_predict", predict_batches)
    inferencer = BulkInferencer(*model, "cpu")
    writer = ResultWriter(tmp_path, inferencer.classes, draw=False)
    records = dict(inferencer.records(open_sources([images]).images, writer, Share(2)))
    assert sorted(records) == list(range(len(SIZES)))
    assert sorted(map(len, sizes)) == [1, 2, 2, 2]
    assert all(len({tuple(size) for size in batch}) == 1 for batch in sizes)


def test_shares_of_processes(images):
    """Whole windows, whatever is done, so that batches are those of one process."""
    stream = [type("Image", (), dict(number=number)) for number in range(30)]
    whole = [[image.number for image in window] for window in Share(2).windows(stream)]
    assert whole == [[*range(i, min(i + 8, 30))] for i in range(0, 30, 8)]
    done = {*range(8), 9, 24}
    shares = [Share(2, rank, 3, done) for rank in range(3)]
    found = [[w[0].number for w in share.windows(stream)] for share in shares]
    assert found == [[24], [8], [16]]
    assert [share.left(30) for share in shares] == [5, 7, 8]
    assert [w[0].number for w in Share().windows(stream)] == list(range(30))


def test_two_processes_write_what_one_writes(predict, expected, images, model, tmp_path):
    """Here one after the other; each finds nothing left of the other's share."""
    inferencer = BulkInferencer(*model, "cpu")
    writer = ResultWriter(tmp_path, inferencer.classes, draw=False, tables=TABLES)
    sources = open_sources([images])
    monkey = Share(2, 0, 2)
    assert monkey.left(sources.total) > 0
    for rank in (1, 0):
        folder = RunFolder(tmp_path, rank)
        share = Share(2, rank, 2, folder.done())
        for number, record in inferencer.records(sources.images, writer, share):
            folder.append(number, record)
    assert folder.merge(writer) == (len(SIZES), 0)
    found, one = read(tmp_path), read(expected)
    del one["settings.json"]
    assert found == one


def test_other_files_of_the_folder_stay(tmp_path):
    copy = tmp_path / "results_copy.jsonl"
    copy.write_text("of the user")
    with RunFolder(tmp_path) as folder:
        folder.claim({}, overwrite=True)
        folder.append(0, dict(failed={}))
        assert folder.merge(ResultWriter(tmp_path, CLASSES)) == (0, 1)
    assert copy.read_text() == "of the user"


def test_an_image_that_fails_again_has_the_new_reason(tmp_path):
    for reason in ("old", "new"):
        with RunFolder(tmp_path) as folder:
            folder.claim({})
            folder.append(0, dict(failed=dict(file_name="a.png", reason=reason)))
            assert folder.merge(ResultWriter(tmp_path, CLASSES)) == (0, 1)
    assert json.loads((tmp_path / "images.json").read_text())["failed"][0]["reason"] == "new"


KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from hcformer_mm.apis.run_folder import RunFolder
append = RunFolder.append
def killing(self, number, record):
    append(self, number, record)
    if sum(1 for _ in self._own.open()) == 3:
        os.truncate(self._own, self._own.stat().st_size - 20)
        os.kill(os.getpid(), signal.SIGKILL)
RunFolder.append = killing
from tests.helpers.tools import run_tool
run_tool("tools/predict.py", *sys.argv[1:])
"""


def test_a_killed_run_goes_on(predict, model, images, expected, tmp_path, monkeypatch):
    """Killed in the middle of its third line: the other two are not run again."""
    out = tmp_path / "out"
    arguments = [*map(str, (images, *model, "--out", out, *BATCHES, *CPU))]
    code = KILLED.format(root=str(ROOT))
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    assert not (out / "images.json").exists()
    encode, encoded = ResultWriter.encode, []

    def recorded(self, image, sample):
        encoded.append(image.number)
        return encode(self, image, sample)

    monkeypatch.setattr(ResultWriter, "encode", recorded)
    assert predict("--out", out, *BATCHES) == 0
    assert len(encoded) == len(set(encoded)) == len(SIZES) - 2
    assert read(out) == read(expected)
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()}
    del encoded[:], before[out / "settings.json"]
    assert predict("--out", out, *BATCHES) == 0
    assert not encoded
    assert {file: file.stat().st_mtime_ns for file in before} == before


STOPPED = {KeyboardInterrupt: "stopped; the same command does what is left", OSError: "disk full"}


@pytest.mark.parametrize(
    ("step", "turn", "error", "workers"),
    [
        ("encode", 3, OSError, 0),
        ("encode", 3, OSError, 2),
        ("collect", 2, KeyboardInterrupt, 0),
        ("close", 0, KeyboardInterrupt, 0),
    ],
)
def test_a_stopped_run_goes_on(
    step, turn, error, workers, predict, expected, tmp_path, monkeypatch
):
    """Stopped by an error while writing, in turn or in a thread, or while merging."""
    out, turns = tmp_path / "out", count()
    working = getattr(ResultWriter, step)

    def stopped(self, *arguments):
        if next(turns) == turn:
            raise error(STOPPED[error])
        return working(self, *arguments)

    monkeypatch.setattr(ResultWriter, step, stopped)
    stopping = predict("--out", out, *BATCHES, "--workers", workers)
    assert stopping == f"predict: {STOPPED[error]}"
    assert not (out / "results.jsonl").exists()
    monkeypatch.undo()
    assert predict("--out", out, *BATCHES) == 0
    assert read(out) == read(expected)


def test_a_run_without_images_has_its_files(tmp_path):
    assert RunFolder(tmp_path).merge(ResultWriter(tmp_path, CLASSES, draw=False)) == (0, 0)
    assert sorted(read(tmp_path)) == ["images.json", "results.jsonl"]


def test_a_folder_to_which_another_run_writes_is_refused(predict, tmp_path):
    other = RunFolder(tmp_path)
    other.claim({})
    assert "no other run writes" in predict("--out", tmp_path, "--overwrite")
    assert sorted(read(tmp_path)) == [".lock", "settings.json"]


def test_an_image_that_is_broken_and_last_is_not_forgotten():
    runs = SimpleNamespace(_predict=chain.from_iterable)
    last = InputImage("0", 0), "broken"
    assert list(BulkInferencer._results(runs, [[last]], Share())) == [last]


def test_broken_files(predict, images, tmp_path, capsys):
    """Left out, listed, counted, and run alone once they are replaced."""
    folder, out = tmp_path / "images", tmp_path / "out"
    whole = sorted(images.rglob("*.png"))
    folder.mkdir()
    for number, file in enumerate(whole[:3]):
        content = file.read_bytes()
        (folder / f"{number}.png").write_bytes(
            content[: len(content) // 2] if number == 1 else content
        )
    assert predict("--out", out, inputs=[folder]) == 3
    content = json.loads((out / "images.json").read_text())
    assert [image["id"] for image in content["images"]] == [0, 2]
    ((name, reason),) = (entry.values() for entry in content["failed"])
    assert name == "1.png" and "expected a complete image" in reason
    assert json.loads((out / "results.jsonl").read_text().splitlines()[1])["failed"]["reason"]
    assert predict("--out", out, inputs=[folder]) == 3
    (folder / "1.png").write_bytes(whole[1].read_bytes())
    assert predict("--out", out, inputs=[folder]) == 0
    assert predict("--out", tmp_path / "whole", inputs=[folder]) == 0
    assert read(out) == read(tmp_path / "whole")


def test_names_that_are_too_long_for_results(predict, images, tmp_path):
    """Files, members of shards, and lines of lists; each fails alone, and nothing is written."""
    folder, out = tmp_path / "images", tmp_path / "out"
    content = sorted(images.rglob("*.png"))[0].read_bytes()
    folder.mkdir()
    for name in ("a", "é" * 125):
        (folder / f"{name}.png").write_bytes(content)
    with tarfile.open(folder / "s.tar", "w") as shard:
        for letter in "bc":
            shard.add(folder / "a.png", f"{letter * 300}.png")
    (tmp_path / "list.txt").write_text(f"{'d' * 300}.png\n")
    assert predict("--out", out, "--draw", inputs=[folder, tmp_path / "list.txt"]) == 3
    listed = json.loads((out / "images.json").read_text())
    assert [image["file_name"] for image in listed["images"]] == ["a.png"]
    assert len(listed["failed"]) == 4
    for one in listed["failed"]:
        assert "expected names of at most 255 bytes" in one["reason"]
        assert "; shorten its name by" in one["reason"]
    assert [file.name for file in (out / "vis").iterdir()] == ["a.png"]


def test_other_settings_are_refused(predict, images, tmp_path):
    out = tmp_path / "out"
    (one, other, *_) = sorted(images.rglob("*.png"))
    assert predict("--out", out, inputs=[one]) == 0
    before = read(out)
    options = ["--object-mask-thr", "0.5", "--cfg-options", "test_cfg.x=1"]
    message = predict("--out", out, *options, inputs=[other])
    assert message.startswith(
        "predict: expected a new folder or that of a run with the same settings"
    )
    for part in ("inputs (1 images ", "config (", "--object-mask-thr (None there, 0.5 here)"):
        assert part in message
    assert "checkpoint" not in message and "--draw" not in message
    assert predict("--out", out, "--overwrite", "--font", one).startswith("predict: ")
    assert read(out) == before
    assert predict("--out", out, *options[:2], "--overwrite", inputs=[other]) == 0
    assert [x["file_name"] for x in json.loads((out / "images.json").read_text())["images"]] == [
        other.name
    ]
    message = predict("--out", images / "out")
    assert message.startswith("predict: expected --out outside of the inputs")
    (out / "results.jsonl").write_text("something else\n")
    assert "expected a result on each line" in predict("--out", out, *options[:2], inputs=[other])


def test_a_video_and_confidence(predict, tmp_path):
    frames = (np.ascontiguousarray(scene(0, (96, 128))[i : i + 64, :96]) for i in range(5))
    video = write_video(tmp_path / "street.avi", frames)
    options = ("--confidence", "--batch-size", "2")
    assert predict("--out", tmp_path / "out", *options, inputs=[video]) == 0
    names = [f"street_{i:06}.png" for i in range(5)]
    assert sorted(file.name for file in (tmp_path / "out/confidence").iterdir()) == names
    images = json.loads((tmp_path / "out/images.json").read_text())["images"]
    assert [image["file_name"] for image in images] == names


def test_errors_end_in_one_line(predict, tmp_path, capsys):
    out = ("--out", tmp_path / "out")
    assert predict(*out, inputs=["nowhere"]).startswith("predict: no such image, folder, list")
    assert predict(*out, "--ann-file", tmp_path / "gt.json").startswith("predict: ")
    assert "--launcher none" in predict(*out, "--launcher", "slurm")
    assert predict(*out, "--batch-size", "0") == 2
    assert "expected --tile with --tile-overlap" in predict(*out, "--tile-overlap", "64")


def test_memory_does_not_grow(model, tmp_path, monkeypatch):
    """Of the loop, the results and their files; the network is replaced."""

    def results(self, batch):
        return [random_sample(64, 64, seed=len(batch)) for _ in batch]

    monkeypatch.setattr(BulkInferencer, "_run", results)
    file = tmp_path / "0.png"
    mmcv.imwrite(scene(0, (64, 64))[:64, :64], str(file))
    images = (InputImage(str(number), number, path=file) for number in range(400))
    inferencer = BulkInferencer(*model, "cpu")
    writer = ResultWriter(tmp_path, inferencer.classes, draw=False)
    folder, sizes = RunFolder(tmp_path), []
    for number, record in inferencer.records(images, writer, Share(2)):
        folder.append(number, record)
        sizes.append(psutil.Process().memory_info().rss)
    assert len(sizes) == 400
    assert max(sizes[250:]) - max(sizes[100:250]) < 3e6


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["pytorch", "slurm"])
def test_launchers(launcher, model, images, expected, tmp_path):
    """Two processes at a time, with one that goes on alone, write what one writes."""
    out, port = tmp_path / "out", free_port()
    words = [*map(str, (images, *model, "--out", out, *BATCHES, *CPU)), "--launcher", launcher]
    tool = ["tools/predict.py", *words]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1"}
    if launcher == "pytorch":
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
        runs = [([*command, f"--master_port={port}", *tool], quiet)]
    else:
        job = dict(SLURM_NTASKS="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        rank = [dict(SLURM_PROCID=str(i), SLURM_LOCALID=str(i)) for i in range(2)]
        runs = [([sys.executable, *tool], quiet | job | one) for one in rank]
    started = [subprocess.Popen(run, cwd=ROOT, env=env) for run, env in runs]
    assert [process.wait(600) for process in started] == [0] * len(runs)
    assert read(out) == read(expected)


@pytest.mark.slow
def test_memory_over_10000_images(model, tmp_path):
    """At most 1 MB per 1,000 images, once allocators and caches are warm."""
    file = tmp_path / "0.png"
    mmcv.imwrite(scene(0, (64, 64))[:64, :64], str(file))
    images = (InputImage(str(number), number, path=file) for number in range(10_000))
    small = {"test_dataloader.dataset.pipeline.1.scale": (48, 32)}
    inferencer = BulkInferencer(*model, "cpu", cfg_options=small)
    writer = ResultWriter(tmp_path / "out", inferencer.classes, draw=False)
    folder, sizes = RunFolder(tmp_path), []
    for number, record in inferencer.records(images, writer):
        folder.append(number, record)
        sizes.append(psutil.Process().memory_info().rss)
    slope = np.polyfit(range(5000), sizes[5000:], 1)[0]
    assert slope * 1000 < 1e6
