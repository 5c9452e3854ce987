"""Values found by the paths of images."""

from pathlib import PurePath

import numpy as np
import pytest

from hcformer_mm.utils.path_index import PathIndex


def test_one_of_a_name_is_found_from_any_folder():
    index = PathIndex([("val2017/0001.jpg", 1), ("0002.jpg", 2)], "gt.json")
    assert [index.find(p) for p in ("0001.jpg", "/data/x/0001.jpg", PurePath("0002.jpg"))] == [
        1,
        1,
        2,
    ]
    assert index.find("0001.png") is None


def test_several_of_a_name_are_told_apart_by_folders(tmp_path, monkeypatch):
    index = PathIndex([("a/0001.jpg", 1), ("b/0001.jpg", 2), ("b/c/0001.jpg", 3)], "gt.json")
    assert [index.find(f"/data/{p}/0001.jpg") for p in ("a", "b", "b/c")] == [1, 2, 3]
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "b")
    assert index.find("0001.jpg") == 2
    with pytest.raises(
        ValueError,
        match=r"image of gt\.json .* got d/0001\.jpg, which may be a/0001\.jpg or b/0001\.jpg",
    ):
        index.find("d/0001.jpg")
    with pytest.raises(ValueError, match=r"every image once in gt\.json, got a/0001\.jpg twice"):
        PathIndex([("a/0001.jpg", 1), ("a/0001.jpg", 2)], "gt.json")


def test_names_without_suffix():
    index = PathIndex(
        [("a/1.png", 1), ("b/1.png", 2), ("b/1.jpg", 3)], "gt", lambda path: path.stem
    )
    assert [index.find(p) for p in ("a/1.jpg", "b/1.jpg", "b/1.png")] == [1, 3, 2]
    with pytest.raises(ValueError, match=r"which may be b/1\.png or b/1\.jpg"):
        index.find("b/1.gif")


def test_any_number_of_a_name():
    """Thousands of videos have frames of the same names."""
    entries = [(f"{i % 7}/{i}/0001.jpg", i) for i in range(2000)]
    index = PathIndex(entries, "gt.json")
    assert [index.find(f"/data/{path}") for path, _ in entries] == [i for _, i in entries]


def test_the_most_folders_are_shared():
    """Compare with a search through all."""
    rng = np.random.default_rng(0)
    folders, queries = (
        sorted({"/".join(rng.choice(["a", "b"], rng.integers(1, 5)).tolist()) for _ in range(50)})
        for _ in range(2)
    )
    index = PathIndex([(f"{folder}/1.jpg", folder) for folder in folders], "gt.json")
    unique = 0
    for query in queries:
        ends = [f"/{query}".split("/")[-number:] for number in range(1, 5)]
        shared = [
            sum(folder.split("/")[-number:] == end for number, end in enumerate(ends, 1))
            for folder in folders
        ]
        best = [folder for folder, n in zip(folders, shared, strict=True) if n == max(shared)]
        if len(best) == 1:
            unique += 1
            assert index.find(f"/{query}/1.jpg") == best[0]
        else:
            with pytest.raises(ValueError, match="which may be"):
                index.find(f"/{query}/1.jpg")
    assert 5 < unique < len(queries)
