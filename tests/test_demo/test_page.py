"""The page of results of demo/page.py."""

import base64
import io
import re

import numpy as np
import pytest
from page import WIDTH, write_page
from PIL import Image


@pytest.mark.parametrize("width", [40, WIDTH + 200])
def test_page(tmp_path, width):
    file = tmp_path / "a & b" / "sheet.png"
    file.parent.mkdir()
    Image.fromarray(np.full((30, width, 3), (200, 40, 90), np.uint8)).save(file)
    page = tmp_path / "out" / "index.html"
    write_page(
        page,
        "A <title>",
        intro="What & why",
        tables={"Metrics": [("", "reached"), ("PQ", "60.9")], "Times": [("step", "")]},
        sections={"Images": {"one <b>": file}, "None": {}},
        commands=["python x.py \\", "  --out y"],
    )
    text = page.read_text()
    assert "<title>A &lt;title&gt;</title>" in text and "What &amp; why" in text
    assert "<tr><th></th><th>reached</th></tr><tr><td>PQ</td><td>60.9</td></tr>" in text
    assert text.count("<table>") == 2
    assert "<h2>Images</h2>" in text and "<h2>None</h2>" not in text
    assert "one &lt;b&gt;" in text and "<pre>python x.py \\\n  --out y</pre>" in text
    (link,) = re.findall(r'<a href="([^"]*)">', text)
    assert (page.parent / link.replace("&amp;", "&")).resolve() == file.resolve()
    (data,) = re.findall(r'src="data:image/webp;base64,([^"]*)"', text)
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.width == min(width, WIDTH)
    assert np.abs(np.array(image).astype(int) - (200, 40, 90)).max() < 8
    # Nothing is loaded from elsewhere.
    assert not re.findall(r'(?:src|href)="(?!data:|\.\./)', text) and "http" not in text
