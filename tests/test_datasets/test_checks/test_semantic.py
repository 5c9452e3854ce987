"""check_semantic names every fault that is put into three images and their label maps."""

import numpy as np
import pytest
from mmseg.datasets.transforms import LoadAnnotations
from PIL import Image

from hcformer_mm.datasets.checks import check_label_maps, check_semantic

SIZE = (48, 64)


def labels(index=0):
    """Classes 0, 1 and 2 and void, as a person would draw them."""
    found = np.zeros(SIZE, np.uint8)
    found[10:30, 20:40] = 1
    found[30:40, 5 + index : 20] = 2
    found[:2] = 255
    return found


class Maps:
    """A set with three classes; each method puts in a fault."""

    def __init__(self, root):
        self.img_dir, self.map_dir = root / "images", root / "maps"
        for folder in (self.img_dir, self.map_dir):
            (folder / "a").mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", SIZE[::-1], (90, 90, 90)).save(self.img_dir / f"a/{index}.jpg")
            self.save(labels(index), f"a/{index}.png")
        self.map, self.image = self.map_dir / "a/0.png", self.img_dir / "a/0.jpg"

    def save(self, values, name="a/0.png"):
        Image.fromarray(values).save(self.map_dir / name)

    def save_all(self, change):
        for index in range(3):
            self.save(change(labels(index)), f"a/{index}.png")

    def check(self, num_classes=3, **options):
        return check_semantic(self.img_dir, self.map_dir, num_classes, **options)


class Faults(Maps):
    """Each method puts in one fault and returns its kind, file and a part of its message."""

    def label_out_of_range(self):
        self.save(labels() + 3 * (labels() == 2).astype(np.uint8))
        return "label out of range", self.map, "classes from 0 to 2, and 255 for void, got 5"

    def color(self):
        self.save(np.stack([labels()] * 3, axis=-1))
        return "color label map", self.map, "expected one channel of class numbers, got mode RGB"

    def alpha(self):
        self.save(np.stack([labels()] * 2, axis=-1))
        return "color label map", self.map, "got mode LA"

    def jpeg(self):
        Image.fromarray(labels()).save(self.map, format="JPEG")
        return "lossy label map", self.map, "expected a PNG, got a JPEG"

    def floats(self):
        Image.fromarray(labels().astype(np.float32)).save(self.map, format="TIFF")
        return "float label map", self.map, "expected integers, got floats"

    def negative(self):
        Image.fromarray(labels().astype(np.int32) - 5).save(self.map, format="TIFF")
        return "label out of range", self.map, "got -5"

    def sixteen_bits(self):
        self.save(np.where(labels() == 1, np.uint16(300), labels()))
        return "label out of range", self.map, "got 300"

    def all_void(self):
        self.save(np.full(SIZE, 255, np.uint8))
        return "all void", self.map, "all pixels are void"

    def another_size(self):
        self.save(labels()[:-1])
        return "size", self.map, f"expected height and width {SIZE}, got (47, 64)"

    def image_on_its_side(self):
        exif = Image.Exif()
        exif[0x0112] = 8
        Image.new("RGB", SIZE[::-1]).save(self.image, exif=exif)
        return "size", self.map, "expected height and width (64, 48), got (48, 64)"

    def no_map(self):
        self.map.unlink()
        return "missing file", self.map, "the file does not exist"

    def no_image(self):
        self.image.unlink()
        return "map without image", self.map, "no image belongs to this label map"

    def broken_map(self):
        self.map.write_bytes(self.map.read_bytes()[:-30])
        return "unreadable file", self.map, "expected a whole image"

    def another_image_suffix(self):
        self.image.rename(self.image.with_suffix(".JPG"))
        return "image of another suffix", self.img_dir, ".jpg (img_suffix): 1 that end in .JPG"

    def other_image_suffixes(self):
        for image in list(self.img_dir.rglob("*.jpg")):
            image.rename(image.with_suffix(".png"))
        return "no image", self.img_dir, "that end in .jpg (img_suffix), got 3 that end in .png"

    def another_map_suffix(self):
        for path in list(self.map_dir.rglob("*.png")):
            path.rename(path.with_name(f"{path.stem}_labelTrainIds.png"))
        return "map suffix", self.map_dir, "set seg_map_suffix='_labelTrainIds.png' for a/0_label"

    def masks_of_255(self):
        self.save_all(lambda values: np.where(values == 1, 255, 0).astype(np.uint8))
        return (
            "one class alone",
            self.map_dir,
            "3 maps have class 0 alone, no pixel of classes 1, 2, and void; if void pixels are a "
            "class, as in masks of 0 and 255, give them its number (divide by 255)",
        )

    def void_alone(self):
        self.save_all(lambda values: np.full_like(values, 255))
        return "only void", self.map_dir, "all pixels of 3 maps are void"


@pytest.fixture
def maps(tmp_path):
    return Faults(tmp_path)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_clean(maps, num_workers):
    assert maps.check(num_workers=num_workers) == []


@pytest.mark.parametrize("name", [name for name in vars(Faults) if not name.startswith("_")])
def test_fault_is_found(maps, name):
    kind, file, message = getattr(maps, name)()
    found = maps.check()
    assert [f for f in found if (f.kind, f.file) == (kind, file) and message in f.message], found
    assert all(fault.severity != "note" for fault in found if fault.kind == kind)


def test_class_without_pixels_is_a_note(maps):
    (note,) = maps.check(4)
    assert note.severity == "note"
    assert note.message == "1 classes have no pixel in 3 maps: 3"


@pytest.mark.parametrize("mode", ["P", "1"])
def test_palettes_and_bits_are_read_like_mmseg(maps, mode):
    """The colors of a palette do not matter, nor do its bits."""
    values = labels() * (labels() != 255) if mode == "P" else labels() == 1
    image = Image.fromarray(values.astype(np.uint8) * (255 if mode == "1" else 1))
    if mode == "P":
        image.putpalette([200, 30, 30, 40, 200, 40, 50, 50, 200])
    image.convert(mode).save(maps.map)
    assert Image.open(maps.map).mode == mode
    assert maps.check() == []
    results = dict(seg_map_path=str(maps.map), reduce_zero_label=False, seg_fields=[])
    assert np.array_equal(LoadAnnotations()(results)["gt_seg_map"], values)


def test_sixteen_bits_of_many_classes(maps):
    """Void is 65535 in maps of 16 bits; 255 is a class where there are more than 255."""
    wide = np.where(labels() == 255, 65535, labels().astype(np.uint16) + 254)
    maps.save_all(lambda values: wide)
    assert not [fault for fault in maps.check(300) if fault.severity != "note"]
    assert check_label_maps([maps.map], 256)[0].message.endswith("for void, got 256")
    maps.save(np.where(wide > 300, 65535, 255).astype(np.uint8))
    (fault, *_) = check_label_maps([maps.map], 300)
    assert "255 in 8 bits is void or a class, of more than 255" in fault.message


def test_sixteen_bits_of_few_classes(maps):
    """mmseg keeps the lower 8 bits, so that 65535 is void like 255."""
    maps.save(np.where(labels() == 255, 65535, labels()).astype(np.uint16))
    assert maps.check() == []


def test_labels_from_1_on(maps):
    maps.save_all(lambda values: np.where(values == 255, 0, values + 1).astype(np.uint8))
    assert maps.check(reduce_zero_label=True) == []
    (fault, *_) = maps.check()
    assert "expected classes from 0 to 2, and 255 for void, got 3" in fault.message


def test_masks_of_255_with_reduce_zero_label(maps):
    maps.save_all(lambda values: np.where(values == 1, 255, 0).astype(np.uint8))
    kinds = {fault.kind for fault in maps.check(2, reduce_zero_label=True)}
    assert kinds == {"all void", "only void"}


def test_list_of_names(maps, tmp_path):
    maps.label_out_of_range()
    names = tmp_path / "val.txt"
    names.write_text("a/1\n\na/2\n")
    assert maps.check(ann_file=names) == []
    names.write_text("a/1\na/9\n")
    assert {f.file.name for f in maps.check(ann_file=names)} == {"9.jpg", "9.png"}


def test_images_and_maps_in_one_folder(tmp_path):
    for index in range(2):
        Image.new("RGB", SIZE[::-1]).save(tmp_path / f"{index}.jpg")
        Image.fromarray(labels()).save(tmp_path / f"{index}.png")
    assert check_semantic(tmp_path, tmp_path, 3) == []


def test_labels_out_of_range_are_no_class_alone(maps):
    maps.save_all(lambda values: np.where(values == 1, 255, 7).astype(np.uint8))
    assert {fault.kind for fault in maps.check()} == {"label out of range"}


def test_some_maps_alone(maps):
    paths = sorted(maps.map_dir.rglob("*.png"))
    assert check_label_maps(paths, 3) == []
    maps.masks_of_255()
    (fault,) = check_label_maps(paths[:2], 2)
    assert "2 maps have class 0 alone, no pixel of class 1, and void" in fault.message
    assert check_label_maps([], 2) == []
