"""OpenMMLab's debug messages stay off the terminal, and no other message does."""

import logging
import subprocess
import sys

import pytest
from mmengine.logging import MMLogger, print_log


def test_only_debug_messages_without_a_logger_are_dropped(capsys, caplog):
    print_log("a detail", level=logging.DEBUG)
    print_log("a fact")
    print_log("a warning", level=logging.WARNING)
    assert capsys.readouterr().out.splitlines() == ["a fact", "a warning"]
    logger = MMLogger.get_instance("debug-prints", log_level="DEBUG")
    logger.addHandler(caplog.handler)
    print_log("a detail", logger=logger, level=logging.DEBUG)
    assert [record.message for record in caplog.records] == ["a detail"]


@pytest.mark.slow
def test_importing_all_libraries_prints_nothing():
    command = "import hcformer_mm, mmdet.datasets, mmseg.datasets"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
