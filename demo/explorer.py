"""Browse the levels of the hierarchy, and the path of any pixel through them, on a local web page.

Without arguments it shows the model that `make demo` trained, or else the tiny one that comes with
the package. It needs no network.
"""

import argparse
import os
import signal
import socket
import sys
import threading
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hcformer_mm.utils.threads  # noqa: F401

import mmcv
import numpy as np
from exploration import OVERLAYS, Exploration, draw_level, explore
from explorer_html import CSS, NOTES, levels_html, path_html
from mmseg.models.segmentors import BaseSegmentor
from shapes import CONFIG, IMAGES, ROOT, Demo
from tiny import FOLDER, TINY, render_images

from hcformer_mm.apis.cluster_inferencer import ClusterInferencer
from hcformer_mm.apis.inference import thresholds_of
from hcformer_mm.apis.inputs import InputImage
from hcformer_mm.structures.data_samples import SCORE_THR, predicted_segments
from hcformer_mm.utils.arguments import add_cfg_options
from hcformer_mm.utils.config import find_weights, read_config
from hcformer_mm.utils.errors import InputError

FIRST_PORT = 7860
"""First port that is tried: Gradio's default."""

LARGEST_SIDE = 2048
"""Larger images are reduced to this longer side, since masks have the image's size."""


class Explorer:
    """A model that all pages share.

    Args:
        config: Path or name of a config.
        checkpoint: Path of the weights.
        device: Device of the model; by default the GPU if there is one.
        cfg_options: Overrides of the config.

    Attributes:
        thresholds: Those that act on the segments that are shown, with the values of the config.
    """

    def __init__(
        self,
        config: str | Path,
        checkpoint: Path,
        device: str | None = None,
        cfg_options: dict[str, Any] | None = None,
    ) -> None:
        self.inferencer = ClusterInferencer(
            config, checkpoint, device=device, cfg_options=cfg_options
        )
        model = self.inferencer.model
        self.thresholds = thresholds_of(model)
        panoptic = "iou_thr" in self.thresholds
        self.confidence = panoptic or isinstance(model, BaseSegmentor)
        if panoptic:
            self.thresholds.pop("max_per_image", None)  # instances are not shown
        elif self.thresholds:
            self.thresholds["score_thr"] = SCORE_THR
        self.title = f"{Path(config).stem} · {checkpoint.name}"
        self._lock = threading.Lock()  # several pages may run the model at once

    def open(
        self, image: np.ndarray, *, score_thr: float = SCORE_THR, **thresholds: float
    ) -> Exploration:
        """Run the model on an image ``(H, W, 3)``, BGR, with these thresholds."""
        if max(image.shape) > LARGEST_SIDE:
            image = mmcv.imrescale(image, (LARGEST_SIDE, LARGEST_SIDE), interpolation="area")
        with self._lock:
            (result,) = self.inferencer(image, confidence=self.confidence, **thresholds)
        classes, sample = self.inferencer.classes, result.prediction
        return explore(
            result.image,
            result.clusters.assignments,
            stride=result.clusters.stride,
            input_size=result.clusters.input_size,
            classes=classes,
            prediction=predicted_segments(sample, classes, score_thr=score_thr),
            confidence=sample.pred_confidence.data[0].numpy() if self.confidence else None,
        )


def build_page(explorer: Explorer, examples: list[Path]) -> Any:
    """Build the Gradio page without serving it."""
    blank = explorer.open(np.full((96, 128, 3), 127, np.uint8))  # shows what the model predicts
    last = len(blank.maps) - 1
    lacking = {name for name in ("prediction", "confidence") if getattr(blank, name) is None}
    overlays = [name for name in OVERLAYS if name not in lacking]
    names = list(explorer.thresholds)

    import gradio as gr

    def change(file, opened, *values):
        # Where the file is removed, the image that is shown stays.
        path = Path(file["path"]) if file else opened and opened[0][0]
        asked = (path, values)
        if path is None or (opened and opened[0] == asked):
            return gr.skip()
        thresholds = dict(zip(names, values, strict=True))
        try:
            return asked, explorer.open(InputImage(path.stem, 0, path=path).read(), **thresholds)
        except ValueError as error:  # name the user's file, not the uploaded copy
            name = file and file["orig_name"]
            gr.Warning(str(error).replace(str(path), name or "the image"))
            return gr.skip()

    def click(opened, event: gr.SelectData):
        asked, exploration = opened
        height, width = exploration.image.shape[:2]
        x, y = event.index
        return asked[0], (min(max(int(y), 0), height - 1), min(max(int(x), 0), width - 1))

    def chosen(opened, clicked):
        """The pixel that was clicked, unless another image was opened since."""
        return clicked[1] if clicked and clicked[0] == opened[0][0] else None

    def view(opened, clicked, level, overlay, opacity):
        if opened is None:
            return None, ""
        exploration, level, pixel = opened[1], int(level), chosen(opened, clicked)
        drawn = draw_level(exploration, level, overlay, opacity=opacity, pixel=pixel)
        return drawn, levels_html(exploration, level)

    def follow(opened, clicked):
        return path_html(opened[1], chosen(opened, clicked))

    with gr.Blocks(title="HCFormer explorer", analytics_enabled=False) as page:
        opened, clicked = gr.State(), gr.State()
        gr.HTML(f"<h1>HCFormer explorer</h1><p>{escape(explorer.title)}</p>", elem_id="head")
        with gr.Row():
            with gr.Column(scale=1, min_width=240):
                info = "from the finest cells to the predicted segments"
                start = dict(value=min(2, last), step=1, precision=0)
                level = gr.Slider(0, last, **start, label="Level", info=info, buttons=[])
                overlay = gr.Radio(overlays, value=overlays[0], label="Overlay")
                opacity = gr.Slider(0, 1, value=0.8, step=0.05, label="Opacity", buttons=[])
                thresholds = []
                for name, value in explorer.thresholds.items():
                    scale = dict(maximum=1, step=0.01)
                    if name == "max_per_image":
                        scale = dict(minimum=1, maximum=max(100, value), step=1, precision=0)
                    thresholds.append(gr.Slider(value=value, label=name, buttons=[], **scale))
            with gr.Column(scale=4, min_width=420):
                legend = gr.HTML(elem_id="legend")
                buttons = ["download", "fullscreen"]
                shown = gr.Image(
                    interactive=False,
                    show_label=False,
                    format="png",
                    buttons=buttons,
                    elem_id="shown",
                )
            with gr.Column(scale=1, min_width=240):
                sources = ["upload", "clipboard"]
                first = examples[0] if examples else None
                image = gr.Image(
                    first, label="Image", sources=sources, height=230, buttons=[], elem_id="image"
                )
                if examples:
                    gr.Examples([[str(path)] for path in examples], image, label="Examples")
        path = gr.HTML(elem_id="path")
        gr.HTML(NOTES, elem_id="notes")

        # Each output has one listener: two could finish in another order than they began.
        controls = [level, overlay, opacity]
        last = dict(trigger_mode="always_last", api_visibility="private")
        gr.on(
            [page.load, image.change, *(threshold.change for threshold in thresholds)],
            change,
            [image, opened, *thresholds],
            opened,
            show_progress="minimal",
            show_progress_on=shown,
            preprocess=False,  # Gradio's own reading of a broken file fails silently
            **last,
        )
        shown.select(click, opened, clicked, **last)
        states = [opened, clicked]
        changes = [state.change for state in states]
        quick = dict(show_progress="hidden", **last)
        gr.on(
            [*changes, *(control.change for control in controls)],
            view,
            [*states, *controls],
            [shown, legend],
            **quick,
        )
        gr.on(changes, follow, states, path, **quick)
    return page


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", nargs="?", help="config file, or name of a config of the package")
    parser.add_argument(
        "checkpoint",
        nargs="?",
        type=Path,
        help="checkpoint file; by default the weights that come with this package, as those of "
        "hcformer_tiny_shapes do",
    )
    parser.add_argument("--examples", type=Path, nargs="+", help="images to choose from")
    parser.add_argument("--host", default="127.0.0.1", help="address (default: %(default)s)")
    parser.add_argument("--port", type=int, help=f"default: a free one from {FIRST_PORT} on")
    parser.add_argument("--device", help="cpu, cuda or cuda:<index>; by default the GPU if any")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    add_cfg_options(parser)
    return parser.parse_args(arguments)


def find_model(args: argparse.Namespace) -> tuple[str | Path, Path]:
    """Config and checkpoint given on the command line, by default the demo's or the tiny model."""
    checkpoint = Demo(ROOT / "work_dirs" / CONFIG.stem).checkpoint()
    if args.config is None and checkpoint is not None:
        return ROOT / CONFIG, checkpoint
    name = args.config or TINY
    found = find_weights(read_config(name), args.checkpoint)
    if not found.is_file():
        raise InputError(f"no such checkpoint: {found}")
    return name, found


def find_examples(named: list[Path] | None) -> list[Path]:
    """Images given on the command line, by default some of the Shapes set.

    If the set is not there, they are rendered into ``work_dirs``.
    """
    if named is None:
        images = [ROOT / path for path in IMAGES]
        return images if all(path.is_file() for path in images) else [*render_images(FOLDER)]
    missing = [str(path) for path in named if not path.is_file()]
    if missing:
        raise InputError(f"no such image: {', '.join(missing)}")
    return named


def check_address(host: str, port: int | None) -> None:
    """Raise an InputError if the address cannot be served on, before the model is loaded."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port or 0))
        except (OSError, OverflowError) as error:
            where = host if port is None else f"port {port} of {host}"
            raise InputError(
                f"cannot serve on {where} ({error}); choose another, or leave out --host and "
                f"--port for a free port of this machine from {FIRST_PORT} on"
            ) from None


def import_gradio() -> Any:
    """Import Gradio with its use of the network switched off."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    # Gradio polls its own server, which must not go through a proxy.
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "localhost", "127.0.0.1"]))
    try:
        import gradio
    except ImportError as error:
        raise InputError(f"expected Gradio 6 ({error}): pip install 'gradio>=6'") from None
    return gradio


def serve(args: argparse.Namespace) -> None:
    config, checkpoint = find_model(args)
    examples = find_examples(args.examples)
    check_address(args.host, args.port)
    with TemporaryDirectory(prefix="explorer-") as cache:
        os.environ["GRADIO_TEMP_DIR"] = cache  # for images that pages upload and show
        gradio = import_gradio()
        explorer = Explorer(config, checkpoint, args.device, args.cfg_options)
        page = build_page(explorer, examples)
        # Generic fonts: the default ones would be downloaded.
        fonts = {"font": "sans-serif", "font_mono": "monospace"}
        _, url, _ = page.launch(
            server_name=args.host,
            server_port=args.port,
            theme=gradio.themes.Default(primary_hue="blue", **fonts),
            css=CSS,
            footer_links=[],
            inbrowser=args.open,
            share=False,
            ssr_mode=False,
            run_history=False,
            enable_monitoring=False,
            quiet=True,
            prevent_thread_lock=True,
        )
        print(f"explorer: {explorer.title}: open {url} in a browser; Ctrl+C stops", flush=True)
        try:
            threading.Event().wait()
        finally:
            page.close(verbose=False)


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up as after Ctrl+C
    try:
        serve(parse_args())
    except (ValueError, OSError) as error:
        sys.exit(f"explorer: {error}")
    except KeyboardInterrupt:
        sys.exit("\nexplorer: stopped")


if __name__ == "__main__":
    main()
