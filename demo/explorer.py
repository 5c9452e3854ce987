"""Look inside a model on a local web page: levels of the hierarchy, and the way of any pixel up.

Without arguments it shows the model that `make demo` leaves. It needs no network.
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

import mmcv
import numpy as np
from explorer_html import CSS, NOTES, levels_html, path_html
from shapes import CONFIG, IMAGES, ROOT, Demo

from exploration import OVERLAYS, Exploration, draw_level, explore
from hcformer_mm.apis.cluster_inferencer import ClusterInferencer
from hcformer_mm.apis.inputs import InputImage
from hcformer_mm.structures.data_samples import predicted_segments

FIRST_PORT = 7860
"""Where the search for a free port begins: Gradio's own."""

LARGEST_SIDE = 2048
"""Larger images are reduced to this longer side, since masks are made at the image's size."""


class UsageError(Exception):
    """What the one who typed the command can put right."""


class Explorer:
    """A model, and what it makes of an image; pages share it.

    Args:
        config: File or name of a config.
        checkpoint: Weights.
        device: Where the model runs; by default on the GPU if there is one.
    """

    def __init__(self, config: str | Path, checkpoint: Path, device: str | None = None) -> None:
        self.inferencer = ClusterInferencer(config, checkpoint, device=device)
        self.title = f"{Path(config).stem} · {checkpoint.name}"
        self._lock = threading.Lock()  # several pages may ask at once

    def open(self, image: np.ndarray) -> Exploration:
        """Run the model on an image ``(H, W, 3)``, BGR."""
        if max(image.shape) > LARGEST_SIDE:
            image = mmcv.imrescale(image, (LARGEST_SIDE, LARGEST_SIDE), interpolation="area")
        with self._lock:
            result = self.inferencer(image)[0]
        classes = self.inferencer.classes
        return explore(
            result.image,
            result.clusters.assignments,
            stride=result.clusters.stride,
            input_size=result.clusters.input_size,
            classes=classes,
            prediction=predicted_segments(result.prediction, classes),
        )


def build_page(explorer: Explorer, examples: list[Path]) -> Any:
    """The page, not yet served."""
    import gradio as gr

    blank = explorer.open(np.full((96, 128, 3), 127, np.uint8))  # tells what the model has to show
    last = len(blank.maps) - 1
    overlays = [name for name in OVERLAYS if name != "prediction" or blank.prediction is not None]

    def view(exploration, level, overlay, opacity, pixel):
        if exploration is None:
            return None, ""
        level = int(level)
        drawn = draw_level(exploration, level, overlay, opacity=opacity, pixel=pixel)
        return drawn, levels_html(exploration, level)

    def change_image(file, level, overlay, opacity):
        if file is None:  # it was removed: what is shown stays
            return [gr.skip()] * 5
        try:
            path = Path(file["path"])
            exploration = explorer.open(InputImage(path.stem, 0, path=path).read())
        except ValueError as error:
            # The name that its owner knows it by.
            gr.Warning(str(error).replace(file["path"], file["orig_name"] or "the image"))
            return [gr.skip()] * 5
        drawn, legend = view(exploration, level, overlay, opacity, None)
        return exploration, None, drawn, legend, path_html(exploration, None)

    def click(exploration, level, overlay, opacity, event: gr.SelectData):
        height, width = exploration.image.shape[:2]
        x, y = event.index
        pixel = (min(max(int(y), 0), height - 1), min(max(int(x), 0), width - 1))
        drawn, _ = view(exploration, level, overlay, opacity, pixel)
        return pixel, drawn, path_html(exploration, pixel)

    with gr.Blocks(title="HCFormer explorer", analytics_enabled=False) as page:
        exploration, pixel = gr.State(), gr.State()
        gr.HTML(
            f"<h1>HCFormer explorer</h1><p>{escape(explorer.title)}</p>",
            elem_id="head",
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=240):
                level = gr.Slider(
                    0,
                    last,
                    value=min(2, last),
                    step=1,
                    precision=0,
                    label="Level",
                    info="from the finest cells to the predicted segments",
                    buttons=[],
                    elem_id="level",
                )
                overlay = gr.Radio(overlays, value=overlays[0], label="Overlay", elem_id="overlay")
                opacity = gr.Slider(
                    0, 1, value=0.8, step=0.05, label="Opacity", buttons=[], elem_id="opacity"
                )
            with gr.Column(scale=4, min_width=420):
                legend = gr.HTML(elem_id="legend")
                shown = gr.Image(
                    interactive=False,
                    show_label=False,
                    format="png",
                    buttons=["download", "fullscreen"],
                    elem_id="shown",
                )
            with gr.Column(scale=1, min_width=240):
                image = gr.Image(
                    value=examples[0] if examples else None,
                    sources=["upload", "clipboard"],
                    label="Image",
                    height=230,
                    buttons=[],
                    elem_id="image",
                )
                if examples:
                    gr.Examples([[str(path)] for path in examples], image, label="Examples")
        path = gr.HTML(elem_id="path")
        gr.HTML(NOTES, elem_id="notes")

        controls = [level, overlay, opacity]
        opened = [exploration, pixel, shown, legend, path]
        for event in (page.load, image.change):
            # The file is taken as it is: Gradio's own reading would fail without a word.
            event(
                change_image,
                [image, *controls],
                opened,
                preprocess=False,
                api_visibility="private",
            )
        for control in controls:
            control.change(
                view,
                [exploration, *controls, pixel],
                [shown, legend],
                show_progress="hidden",
                trigger_mode="always_last",
                api_visibility="private",
            )
        shown.select(
            click,
            [exploration, *controls],
            [pixel, shown, path],
            show_progress="hidden",
            trigger_mode="always_last",
            api_visibility="private",
        )
    return page


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", nargs="?", help="config file, or the name of one of the zoo")
    parser.add_argument("checkpoint", nargs="?", type=Path, help="checkpoint file")
    parser.add_argument("--examples", type=Path, nargs="+", help="images to choose from")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on (%(default)s)")
    parser.add_argument("--port", type=int, help=f"by default a free one from {FIRST_PORT} on")
    parser.add_argument("--device", help="cpu, cuda or cuda:<index>; by default the GPU if any")
    return parser.parse_args()


def find_model(args: argparse.Namespace) -> tuple[str | Path, Path]:
    """Config and checkpoint that were named, or else those of the demo."""
    if args.config is not None and args.checkpoint is None:
        raise UsageError("expected CONFIG and CHECKPOINT, or neither of them, got CONFIG alone")
    if args.config is not None:
        if not args.checkpoint.is_file():
            raise UsageError(f"no such checkpoint: {args.checkpoint}")
        return args.config, args.checkpoint
    work_dir = ROOT / "work_dirs" / CONFIG.stem
    checkpoint = Demo(work_dir).checkpoint()
    if checkpoint is None:
        raise UsageError(
            f"there is no checkpoint in {work_dir}: run `make demo` first, or name CONFIG and "
            "CHECKPOINT"
        )
    return ROOT / CONFIG, checkpoint


def find_examples(named: list[Path] | None) -> list[Path]:
    """Images that were named, or else some of the Shapes set if it is there."""
    if named is None:
        return [ROOT / path for path in IMAGES if (ROOT / path).is_file()]
    missing = [str(path) for path in named if not path.is_file()]
    if missing:
        raise UsageError(f"no such image: {', '.join(missing)}")
    return named


def check_address(host: str, port: int | None) -> None:
    """Refuse what cannot be served on, before the model is loaded."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port or 0))
        except (OSError, OverflowError) as error:
            where = host if port is None else f"port {port} of {host}"
            raise UsageError(
                f"cannot serve on {where} ({error}); choose another, or leave out --host and "
                f"--port for a free port of this machine from {FIRST_PORT} on"
            ) from None


def import_gradio() -> Any:
    """Gradio, told to stay away from the network."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    # It asks its own server whether it is up, which is not for a proxy to answer.
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "localhost", "127.0.0.1"]))
    try:
        import gradio
    except ImportError as error:
        raise UsageError(f"expected Gradio 6 ({error}): pip install 'gradio>=6'") from None
    return gradio


def serve(args: argparse.Namespace) -> None:
    config, checkpoint = find_model(args)
    examples = find_examples(args.examples)
    check_address(args.host, args.port)
    with TemporaryDirectory(prefix="explorer-") as cache:
        os.environ["GRADIO_TEMP_DIR"] = cache  # images that pages send and get
        gradio = import_gradio()
        try:
            explorer = Explorer(config, checkpoint, args.device)
            page = build_page(explorer, examples)
            # Fonts that any machine has: those of other themes come from the network.
            fonts = {"font": "sans-serif", "font_mono": "monospace"}
            _, url, _ = page.launch(
                server_name=args.host,
                server_port=args.port,
                theme=gradio.themes.Default(primary_hue="blue", **fonts),
                css=CSS,
                footer_links=[],
                share=False,
                ssr_mode=False,
                run_history=False,
                enable_monitoring=False,
                quiet=True,
                prevent_thread_lock=True,
            )
        except (ValueError, OSError) as error:
            raise UsageError(str(error)) from None
        print(f"explorer: {explorer.title}: open {url} in a browser; Ctrl+C ends", flush=True)
        try:
            threading.Event().wait()
        finally:
            page.close(verbose=False)


def main() -> None:
    # To be told to end is as good as Ctrl+C: nothing is left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        serve(parse_args())
    except UsageError as error:
        sys.exit(f"explorer: {error}")
    except KeyboardInterrupt:
        sys.exit("\nexplorer: ended")


if __name__ == "__main__":
    main()
