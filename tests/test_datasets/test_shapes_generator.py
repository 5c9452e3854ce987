"""The Shapes renderer: properties of its scenes, and the same bits on every machine."""

import hashlib

import numpy as np
import pytest

from hcformer_mm.datasets.shapes_generator import FIGURES, STUFF_TEXTURES, render_scene
from hcformer_mm.datasets.shapes_generator.exact import pixel_grid, value_noise, wave
from hcformer_mm.datasets.shapes_generator.layout import (
    MIN_STUFF_SHARE,
    MIN_VISIBLE_SHARE,
    THING_COUNTS,
    draw_layout,
)
from hcformer_mm.datasets.shapes_generator.textures import FILLINGS, plain

NUM_THINGS = len(FIGURES)


@pytest.fixture
def rng():
    return np.random.RandomState(0)


@pytest.fixture(scope="module")
def scenes():
    return [render_scene((1, 0, index)) for index in range(24)]


def label_map(scene):
    labels = np.full(scene.image.shape[:2], 255, np.uint8)
    for number, segment in enumerate(scene.segments):
        labels[segment.mask] = 16 * number + segment.label
    return labels


class TestRenderScene:
    def test_same_bits_everywhere(self):
        """Digests of scenes that were rendered once."""
        labels, pixels = hashlib.sha256(), hashlib.sha256()
        for index in range(4):
            scene = render_scene((0, 1, index))
            labels.update(label_map(scene).tobytes())
            pixels.update(scene.image.tobytes())
        assert labels.hexdigest()[:16] == "aa87190def2fc06a"
        assert pixels.hexdigest()[:16] == "6280e43d4153614d"

    def test_seeds_matter(self):
        images = [render_scene(seed).image for seed in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0))]
        assert len({image.tobytes() for image in images}) == 4

    def test_masks_partition_the_image(self, scenes):
        for scene in scenes:
            assert scene.image.dtype == np.uint8
            cover = sum(segment.mask.astype(int) for segment in scene.segments)
            assert cover.shape == scene.image.shape[:2]
            assert (cover == 1).all()

    def test_counts_and_labels(self, scenes):
        for scene in scenes:
            things = [s.label for s in scene.segments if s.is_thing]
            stuff = [s.label for s in scene.segments if not s.is_thing]
            assert min(THING_COUNTS) <= len(things) <= max(THING_COUNTS)
            assert set(things) <= set(range(NUM_THINGS))
            assert 2 <= len(stuff) <= len(STUFF_TEXTURES)
            assert len(set(stuff)) == len(stuff)
            assert set(stuff) <= set(range(NUM_THINGS, NUM_THINGS + len(STUFF_TEXTURES)))
        assert {s.label for scene in scenes for s in scene.segments} == set(range(10))

    def test_size_suits_a_stride_of_32(self, scenes):
        """At 192×256, most things cover more than a 32×32 cell; some are tiny or thin."""
        areas = [
            0.8 * 0.8 * np.count_nonzero(s.mask)
            for scene in scenes
            for s in scene.segments
            if s.is_thing
        ]
        small = np.mean(np.asarray(areas) < 32 * 32)
        assert 0.05 < small < 0.3

    def test_size_varies_about_the_request(self):
        shapes = {render_scene((0, 0, i), size=(120, 96)).image.shape for i in range(6)}
        assert len(shapes) > 1
        for height, width, _ in shapes:
            assert 0.91 * 120 <= height <= 1.09 * 120
            assert 0.91 * 96 <= width <= 1.09 * 96

    def test_too_small(self):
        with pytest.raises(ValueError, match=r"at least 64 pixels each, got \(240, 32\)"):
            render_scene((0, 0, 0), size=(240, 32))


def test_layout_keeps_everything_visible():
    for seed in range(20):
        layout = draw_layout(np.random.RandomState(seed), 240, 320)
        for index, thing in enumerate(layout.things):
            seen = layout.owner == index
            assert (seen <= thing.mask).all()
            assert np.count_nonzero(seen) >= MIN_VISIBLE_SHARE * thing.area
        for label in np.unique(layout.ground):
            seen = (layout.ground == label) & (layout.owner < 0)
            assert seen.mean() >= MIN_STUFF_SHARE


class TestFigures:
    points = np.meshgrid(np.linspace(-1.3, 1.3, 201), np.linspace(-1.3, 1.3, 201))

    @pytest.mark.parametrize("name", FIGURES)
    def test_fits_the_unit_disc(self, name, rng):
        u, v = self.points
        for thin in (False, True):
            inside = FIGURES[name](rng, thin)(u, v)
            assert inside.any()
            assert not inside[u * u + v * v > 1.15**2].any()

    @pytest.mark.parametrize("name", FIGURES)
    def test_thin_is_thinner(self, name):
        u, v = self.points
        full, thin = (FIGURES[name](np.random.RandomState(0), kind)(u, v) for kind in (False, True))
        assert 0.05 * full.sum() < thin.sum() < 0.75 * full.sum()

    def test_hole_of_the_ring(self, rng):
        ring = FIGURES["ring"](rng, False)
        assert not ring(np.zeros(1), np.zeros(1)).any()
        assert ring(np.full(1, 0.8), np.zeros(1)).all()

    def test_star_has_five_points(self, rng):
        """On a circle between the inner and the outer radius, five arcs lie in the star."""
        angles = np.linspace(0.0, 2.0 * np.pi, 720, endpoint=False)
        inside = FIGURES["star"](rng, False)(0.75 * np.cos(angles), 0.75 * np.sin(angles))
        assert np.count_nonzero(inside != np.roll(inside, 1)) == 10


class TestTextures:
    @pytest.mark.parametrize("name", STUFF_TEXTURES)
    def test_range_and_variation(self, name, rng):
        x, y = pixel_grid(120, 160)
        pattern = STUFF_TEXTURES[name](rng, x, y)
        assert pattern.shape == x.shape
        assert pattern.min() >= -1.0
        assert pattern.max() <= 1.0
        assert pattern.std() > 0.15
        region = x > y  # any set of points
        assert STUFF_TEXTURES[name](rng, x[region], y[region]).shape == (region.sum(),)

    @pytest.mark.parametrize("filling", FILLINGS)
    def test_fillings(self, filling, rng):
        x, y = pixel_grid(60, 80)
        pattern = filling(rng, x, y)
        assert pattern.shape == x.shape
        assert np.abs(pattern).max() <= 1.0
        assert (pattern.std() == 0.0) == (filling is plain)

    def test_every_thing_class_prefers_a_filling(self):
        assert len(FILLINGS) == len(set(FILLINGS)) == len(FIGURES)


class TestExact:
    def test_wave(self):
        phase = np.asarray([0.0, 0.25, 0.5, 0.75, 1.0, -0.75])
        np.testing.assert_array_equal(wave(phase), [0.0, 1.0, 0.0, -1.0, 0.0, 1.0])
        fine = np.linspace(-2.0, 2.0, 1001)
        assert np.abs(wave(fine) - np.sin(2.0 * np.pi * fine)).max() < 0.06

    def test_value_noise_is_continuous_and_bounded(self, rng):
        x, y = pixel_grid(50, 400)
        noise = value_noise(rng, x / 40.0 - 3.7, y / 40.0)
        assert np.abs(noise).max() <= 1.0
        assert noise.std() > 0.2
        # The smoothstep's slope is at most 1.5, and two lattice values differ by at most 2.
        assert np.abs(np.diff(noise, axis=1)).max() <= 2.0 * 1.5 / 40.0

    def test_value_noise_meets_its_lattice(self):
        x, y = np.meshgrid(np.arange(5.0), np.arange(4.0))
        lattice = 2.0 * np.random.RandomState(3).random_sample((5, 6)) - 1.0
        noise = value_noise(np.random.RandomState(3), x, y)
        np.testing.assert_array_equal(noise, lattice[:4, :5])
