"""The commands of docs/tutorial_nuclei.md work as written, with fewer tiles and iterations."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(
    r"^```(\w+)\n(.*?)^```",
    (ROOT / "docs/tutorial_nuclei.md").read_text(),
    flags=re.MULTILINE | re.DOTALL,
)
COMMANDS = [line for kind, text in BLOCKS if kind == "shell" for line in text.splitlines()]
WHEELS = "HCFORMER_MM_NUCLEI_WHEELS"
LAST = ("iter_1500", "iter_2")  # the last checkpoint of the page, and that of the test
OPTIONS = [
    f"{split}_dataloader.{option}"
    for split in ("train", "val", "test")
    for option in ("num_workers=0", "persistent_workers=False")
]
SHORT = {
    "tools/dataset_converters/nuclei.py": ["--step", "320"],
    "tools/train.py": [
        "--cfg-options",
        "train_cfg.max_iters=2",
        "train_cfg.val_interval=100",
        *OPTIONS,
    ],
    "benchmarks/nuclei.py": ["--cfg-options", *OPTIONS],
    "tools/analysis_tools/evaluate_clusters.py": ["--cfg-options", *OPTIONS],
}


@pytest.mark.slow
@pytest.mark.skipif(WHEELS not in os.environ, reason=f"needs {WHEELS}, a folder of two wheels")
def test_commands(tmp_path):
    for name in ("benchmarks", "configs", "demo", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    for wheel in Path(os.environ[WHEELS]).glob("*.whl"):
        (tmp_path / wheel.name).symlink_to(wheel.resolve())
    for kind, text in BLOCKS:
        if kind == "python":
            name = re.match(r"# (\S+\.py)\n", text).group(1)
            (tmp_path / name).write_text(text.replace(*LAST))
    for command in COMMANDS:
        program, script, *arguments = shlex.split(command)
        if program == "pip":
            continue
        assert program == "python"
        arguments = [one.replace(*LAST) for one in arguments]
        done = subprocess.run(
            [sys.executable, script, *arguments, *SHORT.get(script, [])],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])
    scores = [
        json.loads(path.read_text())
        for path in (tmp_path / "work_dirs/nuclei").glob("*/*.json")
        if path.stem == path.parent.name
    ]
    assert sum("class_agnostic/PQ_th" in one for one in scores) == 2
    results = json.loads((tmp_path / "work_dirs/nuclei/clusters.json").read_text())
    assert "clusters/blame/PQ/classification" in results["metrics"]
    assert (tmp_path / "work_dirs/nuclei/tiles.jpg").is_file()
