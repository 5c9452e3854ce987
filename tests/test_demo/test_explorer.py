"""The explorer, started by its command and driven in a browser."""

import base64
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import explorer
import mmcv
import numpy as np
import pytest
import torch
from exploration import draw_level, light_up, trace
from mmengine.config import Config
from PIL import Image

from hcformer_mm.apis.inference import build_model
from hcformer_mm.utils.config import included_weights, read_config
from tests.helpers.models import SHAPES_CONFIG
from tests.helpers.predictions import diversify

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "demo/explorer.py"
CHROMIUM = shutil.which("chromium")
BROWSER_OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-sync"]
TIMEOUT = 120
"""Seconds for a step of the browser on a busy machine."""

# Python runs it first: connections of the server to other machines fail, and are logged.
NO_NETWORK = """
import socket
def refuse(host):
    if str(host) not in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "None"):
        with open({log!r}, "a") as file:
            print(host, file=file)
        raise OSError(f"no network: {{host}}")
def connect(self, address, plain=socket.socket.connect):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        refuse(address[0])
    return plain(self, address)
def getaddrinfo(host, *args, plain=socket.getaddrinfo, **kwargs):
    refuse(host)
    return plain(host, *args, **kwargs)
socket.socket.connect, socket.getaddrinfo = connect, getaddrinfo
"""


def write_weights(folder, config):
    """A checkpoint of random weights, with which a mask classifier predicts segments."""
    path = folder / "untrained.pth"
    model = build_model(Config.fromfile(config))
    diversify(model)
    torch.save({"state_dict": model.state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("checkpoint"), SHAPES_CONFIG)


@pytest.fixture(scope="module")
def model(checkpoint):
    return explorer.Explorer(SHAPES_CONFIG, checkpoint, "cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two images of different sizes."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    paths = [folder / "first.png", folder / "second.png"]
    for path, size in zip(paths, [(12, 16), (20, 15)], strict=True):
        image = Image.fromarray(random.integers(256, size=(*size, 3), dtype=np.uint8))
        image.resize((size[1] * 10, size[0] * 10)).save(path)
    return paths


@pytest.fixture
def one_thread():
    """As in the server: the last digits of weights depend on it."""
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(number)


@pytest.fixture(scope="module")
def server(checkpoint, images, tmp_path_factory):
    """Address of an explorer without a network, and the log of machines that it asked for."""
    if CHROMIUM is None or find_spec("playwright") is None or find_spec("gradio") is None:
        pytest.skip("needs Gradio, Playwright and Debian's chromium")
    folder = tmp_path_factory.mktemp("server")
    log = folder / "asked.txt"
    (folder / "sitecustomize.py").write_text(NO_NETWORK.format(log=str(log)))
    options = ["--device", "cpu", "--examples", images[0]]
    process = subprocess.Popen(
        [sys.executable, SCRIPT, SHAPES_CONFIG, checkpoint, *options],
        cwd=ROOT,
        env=os.environ | dict(PYTHONPATH=str(folder), TMPDIR=str(folder), OMP_NUM_THREADS="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    watchdog = threading.Timer(TIMEOUT, process.kill)
    watchdog.start()
    try:
        output = ""
        for line in process.stdout:
            output += line
            if address := re.search(r"open (http://\S+) in a browser", line):
                break
        else:
            pytest.fail(f"the explorer ended without an address:\n{output}")
        watchdog.cancel()
        yield address[1], log
    finally:
        watchdog.cancel()
        process.terminate()
        process.communicate()
    assert not list(folder.glob("explorer-*")), "images are left behind"


@pytest.fixture
def page(server):
    """The explorer's page in a browser, with the addresses that it asked for and its errors."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=BROWSER_OPTIONS)
        page = browser.new_page(viewport={"width": 1440, "height": 1000})
        page.set_default_timeout(TIMEOUT * 1000)
        page.asked, page.problems = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("websocket", lambda socket: page.asked.append(socket.url))
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.goto(server[0])
        yield page
        browser.close()


def counts(page):
    return tuple(int(item.get_attribute("data-count")) for item in page.locator(".levels li").all())


def wait_for_counts(page, expected):
    """Wait until the page shows these numbers of clusters."""
    page.wait_for_function(
        "expected => { const items = [...document.querySelectorAll('.levels li')];"
        " return String(items.map(item => item.dataset.count)) === String(expected); }",
        arg=list(expected),
    )


def read(page, source):
    """The image at a URL of the page."""
    if source.startswith("data:"):
        content = base64.b64decode(source.partition(",")[2])
    else:
        content = page.request.get(source).body()
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def wait_for_image(page, expected):
    """Wait until the page shows exactly this image."""
    source = None
    while source is None or not np.array_equal(read(page, source), expected):
        # The URL changes with the image; the last one has to be the expected one.
        page.wait_for_function(
            "old => { const now = document.querySelector('#shown img')?.src;"
            " return now && now !== old; }",
            arg=source,
        )
        source = page.locator("#shown img").get_attribute("src")


@contextmanager
def hold_first_request(page):
    """Keep the first request for an event from the server, while later ones may overtake it."""
    held = []

    def handle(route):
        if held:
            route.continue_()
        else:
            held.append(route)

    page.route("**/queue/join*", handle)
    with page.expect_request("**/queue/join*"):
        yield
    page.wait_for_timeout(1000)
    held[0].continue_()
    page.wait_for_timeout(1000)


def test_page(page, server, model, images, one_thread):
    first, second = (model.open(mmcv.imread(str(path))) for path in images)
    assert first.counts() != second.counts()

    # The first example is there from the start, at level 2.
    wait_for_counts(page, first.counts())
    wait_for_image(page, draw_level(first, 2, "boundaries", opacity=0.8))
    assert page.locator(".path").count() == 0

    # Another image is uploaded in its place.
    page.get_by_label("Remove Image").click()
    page.locator("#image input[type=file]").set_input_files(images[1])
    wait_for_counts(page, second.counts())
    wait_for_image(page, draw_level(second, 2, "boundaries", opacity=0.8))

    # The level moves, up to the segments and down to the cells.
    slider = page.get_by_label("range slider for Level")
    for key, level in (("ArrowRight", 3), ("End", 4), ("Home", 0)):
        slider.press(key)
        page.wait_for_selector(f".levels li.shown[data-level='{level}']")
        wait_for_image(page, draw_level(second, level, "boundaries", opacity=0.8))

    # The overlay changes, and its opacity.
    page.get_by_label("mean colors").check()
    wait_for_image(page, draw_level(second, 0, "mean colors", opacity=0.8))
    page.get_by_label("range slider for Opacity").press("End")
    wait_for_image(page, draw_level(second, 0, "mean colors"))

    # The thresholds move, and the model runs again.
    page.get_by_label("prediction").check()
    assert not second.prediction.categories
    second = model.open(mmcv.imread(str(images[1])), object_mask_thr=0, iou_thr=0)
    assert second.prediction.categories
    with hold_first_request(page):
        for name in ("object_mask_thr", "iou_thr"):
            page.get_by_label(f"range slider for {name}").press("Home")
    wait_for_image(page, draw_level(second, 0, "prediction"))
    page.get_by_label("confidence").check()
    wait_for_image(page, draw_level(second, 0, "confidence"))
    page.get_by_label("mean colors").check()

    # A pixel near the top left corner is clicked.
    height, width = second.image.shape[:2]
    box = page.locator("#shown img").bounding_box()
    scale = min(box["width"] / width, box["height"] / height)  # of the image in its frame
    left, top = (box["width"] - width * scale) / 2, (box["height"] - height * scale) / 2
    page.locator("#shown img").click(position={"x": left + 9, "y": top + 5})
    path = page.locator(".path")
    path.wait_for()
    pixel = tuple(map(int, path.get_attribute("data-pixel").split(",")))
    assert pixel == (pytest.approx(5 / scale, abs=2), pytest.approx(9 / scale, abs=2))
    wait_for_image(page, draw_level(second, 0, "mean colors", pixel=pixel))
    compare_path(page, second, pixel)
    outside = page.locator(".path figure[data-level='1'] td.outside")
    assert outside.count() == 5  # above and left of the first cell

    # Neither the page nor its server asked another machine.
    addresses = [url for url in page.asked if not url.startswith(("data:", "blob:"))]
    assert addresses and all(url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:"))
                             for url in addresses)  # fmt: skip
    assert not server[1].exists(), server[1].read_text()
    assert not page.problems


def compare_path(page, exploration, pixel):
    """The page shows the path of a pixel as computed."""
    figures = page.locator(".path figure").all()
    assert len(figures) == len(exploration.maps)
    for level, figure in enumerate(figures):
        lit = read(page, figure.locator("img").get_attribute("src"))
        assert np.array_equal(lit, light_up(exploration, level, pixel))
    for step in trace(exploration, pixel):
        cells = figures[step.level].locator("td").all()
        assert len(cells) == 9
        weights = [float(cell.get_attribute("data-weight") or 0) for cell in cells]
        assert sum(weights) == pytest.approx(1)
        assert np.array_equal(np.reshape(weights, (3, 3)), step.weights)
        outside = ["outside" in (cell.get_attribute("class") or "") for cell in cells]
        assert np.array_equal(~np.reshape(outside, (3, 3)), step.inside)
        chosen = ["chosen" in (cell.get_attribute("class") or "") for cell in cells]
        place = divmod(chosen.index(True), 3)
        assert tuple(np.add(step.candidates, place)) == step.chosen
    category = exploration.prediction.categories.get(int(exploration.prediction.segments[pixel]))
    name = "void" if category is None else exploration.classes.names[category]
    assert name in figures[-1].inner_text()
    if category is not None:
        assert f"confidence {exploration.confidence[pixel]:.2f}" in figures[-1].inner_text()


def test_file_that_is_no_image(page, tmp_path):
    page.wait_for_selector(".levels")
    before = counts(page)
    page.get_by_label("Remove Image").click()
    path = tmp_path / "text.png"
    path.write_text("no image")
    page.locator("#image input[type=file]").set_input_files(path)
    page.get_by_text("expected a complete image that OpenCV can read, got text.png").wait_for()
    assert counts(page) == before
    assert not page.problems


def refuse(monkeypatch, *arguments):
    """Message with which the command ends instead of starting."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    monkeypatch.setattr(explorer.signal, "signal", lambda *_: None)
    if sys.modules.get("gradio", explorer) is not None:  # its import takes seconds
        monkeypatch.setattr(explorer, "import_gradio", lambda: None)
    with patch.dict(os.environ), pytest.raises(SystemExit) as end:
        explorer.main()
    return end.value.code


def test_tiny_model_without_a_trained_one(monkeypatch, tmp_path):
    """Neither a training nor a data set is needed."""
    monkeypatch.setattr(explorer, "ROOT", tmp_path)
    monkeypatch.setattr(explorer, "FOLDER", tmp_path / "images")
    config, checkpoint = explorer.find_model(explorer.parse_args([]))
    assert config == explorer.TINY
    assert checkpoint == included_weights(read_config(explorer.TINY))
    assert explorer.find_model(explorer.parse_args([explorer.TINY])) == (config, checkpoint)
    images = explorer.find_examples(None)
    assert [path.stem for path in images] == [path.stem for path in explorer.IMAGES]
    assert all(mmcv.imread(str(path)).ndim == 3 for path in images)


def test_demo_is_the_default(monkeypatch, tmp_path):
    folder = tmp_path / "work_dirs" / explorer.CONFIG.stem
    folder.mkdir(parents=True)
    (folder / "iter_7.pth").touch()
    (folder / "last_checkpoint").write_text("/somewhere/else/iter_7.pth")
    monkeypatch.setattr(explorer, "ROOT", tmp_path)
    found = explorer.find_model(explorer.parse_args([]))
    assert found == (tmp_path / explorer.CONFIG, folder / "iter_7.pth")
    images = [tmp_path / path for path in explorer.IMAGES]
    images[0].parent.mkdir(parents=True)
    for image in images:
        image.touch()
    assert explorer.find_examples(None) == images


def test_wrong_arguments(monkeypatch, tmp_path, checkpoint):
    missing = tmp_path / "missing"
    assert "expected a checkpoint for " in refuse(monkeypatch, SHAPES_CONFIG)
    message = refuse(monkeypatch, SHAPES_CONFIG, missing)
    assert message == f"explorer: no such checkpoint: {missing}"
    model = (SHAPES_CONFIG, checkpoint)
    message = refuse(monkeypatch, *model, "--examples", checkpoint, missing)
    assert message == f"explorer: no such image: {missing}"
    message = refuse(monkeypatch, *model, "--device", "nonsense")
    assert message.startswith("explorer: expected a device of this machine, got nonsense: ")


def test_port_is_taken(monkeypatch, checkpoint):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        message = refuse(monkeypatch, SHAPES_CONFIG, checkpoint, "--port", port)
    assert f"cannot serve on port {port} of 127.0.0.1" in message
    assert "in use" in message
    assert "0-65535" in refuse(monkeypatch, SHAPES_CONFIG, checkpoint, "--port", 70000)
    message = refuse(monkeypatch, SHAPES_CONFIG, checkpoint, "--host", "192.0.2.1")
    assert "cannot serve on 192.0.2.1" in message  # of no machine


def test_without_gradio(monkeypatch, checkpoint):
    monkeypatch.setitem(sys.modules, "gradio", None)
    message = refuse(monkeypatch, SHAPES_CONFIG, checkpoint)
    assert message.startswith("explorer: expected Gradio 6")
    assert "pip install 'gradio>=6'" in message


def test_model_that_cannot_be_explored(monkeypatch, tmp_path, checkpoint):
    assert "does not fit" in refuse(
        monkeypatch, "configs/shapes/hcformer_r18_shapes-instance.py", checkpoint
    )
    config = "configs/shapes/fcn32s_r18_shapes-semantic.py"
    assert "clusters nothing" in refuse(monkeypatch, config, write_weights(tmp_path, config))


@pytest.mark.parametrize("name", ["hcformer_r18_shapes-instance", "hc-fcn32s_r18_shapes-semantic"])
def test_other_models(name, tmp_path):
    """Models of instances, around which all is void, and of classes."""
    config = f"configs/shapes/{name}.py"
    other = explorer.Explorer(config, write_weights(tmp_path, config), "cpu")
    thresholds = dict(max_per_image=100, score_thr=0.5) if "instance" in name else {}
    assert other.thresholds == thresholds
    image = np.full((60, 80, 3), 127, np.uint8)
    seen = other.open(image, score_thr=1)
    path = explorer.path_html(seen, (5, 5))
    assert path.count("<figure") == len(seen.maps) == 5
    assert ("void" in path) == ("instance" in name)
    assert explorer.levels_html(seen, 4).count("<li") == 5
    assert (seen.confidence is None) == ("instance" in name) == ("confidence" not in path)
    if thresholds:
        assert not seen.prediction.categories
        assert other.open(image, score_thr=0, max_per_image=3).prediction.categories


def test_overrides_of_the_config(checkpoint):
    options = {"model.test_cfg.iou_thr": 0.3}
    other = explorer.Explorer(SHAPES_CONFIG, checkpoint, "cpu", options)
    assert other.thresholds == dict(object_mask_thr=0.8, iou_thr=0.3)


def test_large_images_are_reduced(model, monkeypatch):
    assert explorer.LARGEST_SIDE == 2048
    monkeypatch.setattr(explorer, "LARGEST_SIDE", 128)
    sizes = []
    plain = model.inferencer
    monkeypatch.setattr(
        model,
        "inferencer",
        lambda image, **options: sizes.append(image.shape) or plain(image, **options),
    )
    model.inferencer.classes = plain.classes
    for size in [(94, 128), (94, 256), (260, 130)]:
        model.open(np.zeros((*size, 3), np.uint8))
    assert sizes == [(94, 128, 3), (47, 128, 3), (128, 64, 3)]


def test_names_are_escaped(model):
    seen = model.open(np.zeros((60, 80, 3), np.uint8))
    names = [f"<b>{name}</b>" for name in seen.classes.names]
    seen = replace(
        seen,
        classes=replace(seen.classes, names=names),
        prediction=replace(seen.prediction, categories={int(seen.maps[-1][5, 5]): 0}),
    )
    assert f"&lt;b&gt;{names[0][3:-4]}&lt;/b&gt;" in explorer.path_html(seen, (5, 5))
