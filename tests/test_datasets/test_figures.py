"""Sizes and numbers of the objects of a set."""

from hcformer_mm.datasets.figures import describe_set


def content(objects, crowds=()):
    """Images of 100 × 50 pixels whose squares have certain sides, on stuff; then crowds."""
    infos = [
        [dict(category_id=1, area=side**2, iscrowd=0) for side in sides]
        + [dict(category_id=2, area=10, iscrowd=0)]
        for sides in objects
    ]
    infos[0] += [dict(category_id=1, area=1, iscrowd=1) for _ in crowds]
    return dict(
        images=[dict(height=50, width=100)] * len(objects),
        annotations=[dict(segments_info=each) for each in infos],
        categories=[dict(id=1, isthing=1), dict(id=2, isthing=0)],
    )


def test_by_hand():
    """Sides 8, 16, 32, 64 and 128: half are below 32, and a quarter below 16."""
    lines = list(describe_set(content([(8, 16, 128), (64, 32)], crowds=range(9))))
    assert lines == [
        "2 images, 100 × 50 in the median (width × height)",
        "5 objects; the side (root of the area) of a tenth is below 11 pixels, of a quarter below "
        "16, of half below 32",
        "scale=(200, 100), 2 times the size, makes half of the objects 2 cells of stride 32 wide",
        "scale=(400, 200), 4 times the size, makes three quarters of the objects 2 cells of stride "
        "32 wide",
        "at most 4 segments in an image, so at least 6 queries: model.panoptic_head.num_queries",
    ]
    assert "scale=(100, 50), 1 times the size" in list(describe_set(content([(32,)]), 16))[2]


def test_without_objects():
    assert len(list(describe_set(content([()])))) == 2
    empty = content([(8,)])
    empty["annotations"][0]["segments_info"][0]["area"] = -1
    assert len(list(describe_set(empty))) == 2
