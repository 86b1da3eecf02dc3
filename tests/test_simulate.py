"""The virtual brain: any window is a function of (seed, place), statistics are the stated ones, truth comes along."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats
from scipy.spatial import cKDTree

from tera_mind.errors import InputError
from tera_mind.geometry import Box
from tera_mind.simulate import celltypes, keys, optics, panel, regions
from tera_mind.simulate.anatomy import Anatomy
from tera_mind.simulate.brains import BRAINS, Settings
from tera_mind.simulate.cells import make_cells
from tera_mind.simulate.placing import survivors
from tera_mind.simulate.transcripts import TranscriptRows, negative_binomial
from tera_mind.simulate.windows import VirtualBrain

TYPE, REGION = celltypes.INDEX, regions.INDEX
#: the fine brain, the shrunk one, a misregistered 8-bit one, one with planes and another brain's panel
KINDS = {
    "brain": (Settings.of("main", "brain", pixel_um=0.216, misregister=0.0), 24, (19000, 30000)),
    "tiny": (Settings.of("main", "tiny", bits=8, misregister=1.5), 1, (300, 500)),
    "planes": (Settings.of("supp_m", "demo", pixel_um=0.5, genes=80, planes=2, misregister=1.0), 0, (300, 500)),
}
SIDE = 192


def brain_of(**changes) -> VirtualBrain:
    return VirtualBrain(Settings.of("main", "tiny", **changes))


def ordered(rows: TranscriptRows) -> np.ndarray:
    table = np.array([rows.y_um, rows.x_um, rows.gene, rows.cell, rows.place])
    return table[:, np.lexsort(table)]


@pytest.fixture(scope="module")
def wholes():
    made = {}
    for name, (asked, section, (y, x)) in KINDS.items():
        brain = VirtualBrain(asked)
        made[name] = (brain, brain.window(section, Box(y, y + SIDE, x, x + SIDE)))
    return made


@settings(max_examples=6, deadline=None)
@given(
    name=st.sampled_from(sorted(KINDS)),
    rows=st.sets(st.integers(1, SIDE - 1), max_size=2),
    columns=st.sets(st.integers(1, SIDE - 1), max_size=2),
)
def test_any_partition_into_windows_is_bit_equal(wholes, name, rows, columns) -> None:
    brain, whole = wholes[name]
    section, box = KINDS[name][1], whole.box
    images, labels = np.zeros_like(whole.images), np.zeros_like(whole.labels)
    transcripts, cells = [], []
    edges_y, edges_x = [0, *sorted(rows), SIDE], [0, *sorted(columns), SIDE]
    for top, bottom in itertools.pairwise(edges_y):
        for left, right in itertools.pairwise(edges_x):
            part = brain.window(section, Box(box.y0 + top, box.y0 + bottom, box.x0 + left, box.x0 + right))
            images[..., top:bottom, left:right] = part.images
            labels[top:bottom, left:right] = part.labels
            transcripts.append(part.transcripts)
            cells.append(part.cells)
    np.testing.assert_array_equal(images, whole.images)
    np.testing.assert_array_equal(labels, whole.labels)
    np.testing.assert_array_equal(ordered(TranscriptRows.join(transcripts)), ordered(whole.transcripts))
    assert len(whole.transcripts) > 50
    order = np.argsort(np.concatenate([part.cell for part in cells]))
    for field in ("cell", "y_um", "x_um", "kind", "library", "major_um", "dapi"):
        joined = np.concatenate([getattr(part, field) for part in cells])[order]
        np.testing.assert_array_equal(joined, getattr(whole.cells, field))


def test_windows_outside_the_canvas_are_refused() -> None:
    brain = brain_of()
    for section, box in ((0, Box(-1, 5, 0, 5)), (9, Box(0, 5, 0, 5)), (0, Box(0, 0, 0, 5))):
        with pytest.raises(InputError, match="is not in"):
            brain.window(section, box)


def test_filters_agree_with_scipy() -> None:
    """The point spread and the coarse blurs are Gaussian: against scipy's, which are not used for them."""
    random = np.random.default_rng(0)
    image = ndimage.gaussian_filter(random.random((200, 220)), 3).astype(np.float32)
    inner = (slice(60, -60), slice(60, -60))
    expected = ndimage.gaussian_filter(image.astype(float), 2.3, truncate=3.0)
    np.testing.assert_allclose(optics._blur(image, 2.3)[inner], expected[inner], rtol=1e-4)
    step = optics.coarse_step(0.108)
    assert step == 4
    coarse = optics._refine(optics._blur(optics._coarsen(image, step), 20 / step), step)
    expected = ndimage.gaussian_filter(image.astype(float), 20, truncate=3.0)
    np.testing.assert_allclose(coarse[inner], expected[inner], rtol=0.02)


def test_pixel_noise_is_standard_normal_and_independent() -> None:
    first = keys.pixel_normals(3, 1, 0, Box(-40, 260, 5, 405))
    assert stats.kstest(first.ravel(), "norm").pvalue > 1e-3
    second = keys.pixel_normals(3, 1, 1, Box(-40, 260, 5, 405))
    for other in (second[:, :-1], first[:, 1:], np.roll(first, 1, 0)[:, :-1]):
        assert abs(np.corrcoef(first[:, :-1].ravel(), other.ravel())[0, 1]) < 0.02


def test_negative_binomial_has_the_stated_moments() -> None:
    chance = (np.arange(200_000) + 0.5) / 200_000
    for mean in (0.05, 0.8, 12.0):
        counts = negative_binomial(chance, np.full(len(chance), mean))
        expected = stats.nbinom(3, 3 / (3 + mean))
        assert counts.mean() == pytest.approx(mean, rel=0.01)
        assert counts.var() == pytest.approx(expected.var(), rel=0.05)
        np.testing.assert_array_equal(counts[::5000], expected.ppf(chance[::5000]))


def test_survivors_follow_the_rule_by_brute_force() -> None:
    random = np.random.default_rng(1)
    y, x, mark = random.uniform(0, 90, (3, 250))
    reach = random.uniform(5, 9, 250)
    stays = survivors(y, x, reach, mark)
    near = np.hypot(y[:, None] - y, x[:, None] - x) < (reach[:, None] + reach) / 2
    np.fill_diagonal(near, val=False)
    assert not near[np.ix_(stays, stays)].any()
    lowest = (mark[:, None] < np.where(near, mark[None], np.inf)).all(axis=1)
    assert stays[lowest].all()
    assert stays.sum() > lowest.sum()


def test_regions_go_on_from_section_to_section() -> None:
    anatomy = Anatomy(5, 1.0)
    y, x = np.arange(0.0, 7800, 50)[:, None], np.arange(-5600.0, 5600, 50)[None, :]
    for z in (3000.0, 5600.0, 7400.0):
        first, second, far = (anatomy.region(y, x, z + step) for step in (0.0, 100.0, 1500.0))
        assert 0.85 < (first == second).mean() < 1.0
        assert (first == far).mean() < (first == second).mean()
    # boundaries are smooth: a region's edge moves by less than 2 % of the brain's size in 20 um
    assert (anatomy.region(y, x, 6000.0) == anatomy.region(y, x, 6020.0)).mean() > 0.98


def test_anatomy_holds_what_a_brain_holds() -> None:
    anatomy = Anatomy(0, 1.0)
    y, x = np.arange(0.0, 7800, 40)[:, None], np.arange(-5600.0, 5600, 40)[None, :]
    seen: dict[str, np.ndarray] = {}
    for z in np.arange(600.0, 10200, 400):
        found = anatomy.region(y, x, float(z))
        for index in np.unique(found):
            seen.setdefault(regions.REGIONS[index].name, np.zeros(found.shape, bool))[found == index] = True
    assert set(seen) == set(REGION)
    down = anatomy.region(np.arange(0.0, 3000, 4), np.array(-3000.0), 6000.0)  # layers follow one another below the pia
    order = [regions.REGIONS[index].name for index in down[np.sort(np.unique(down, return_index=True)[1])]]
    assert order[:8] == ["outside", "pia", "layer 1", "layer 2/3", "layer 4", "layer 5", "layer 6", "fibre tract"]
    without = Anatomy(0, 1.0, bulb=False).region(y, x, 1000.0)
    assert (without == 0).all()


@pytest.fixture(scope="module")
def forebrain():
    """Cells of a quarter of a full-size section, with the area of every region in mm2."""
    s = Settings.of("main", "brain")
    window = (300.0, 3900.0, 100.0, 4600.0)
    cells = make_cells(s.work, s.anatomy, 27, 6300.0, window)
    y, x = np.arange(window[0] + 5, window[1], 10.0), np.arange(window[2] + 5, window[3], 10.0)
    region = s.anatomy.region(y[:, None], x[None, :], 6300.0)
    return cells, np.bincount(region.ravel(), minlength=len(regions.REGIONS)) * 1e-4


def test_densities_and_make_up_are_as_stated(forebrain) -> None:
    cells, area = forebrain
    for name, wanted in (("layer 2/3", 1880), ("layer 4", 2490), ("layer 6", 2110), ("fibre tract", 1650),
                         ("thalamus", 1290), ("dentate gyrus", 6850), ("CA", 3390)):  # fmt: skip
        here = cells.region == REGION[name]
        assert cells.passes_qc[here].sum() / area[REGION[name]] == pytest.approx(wanted, rel=0.13), name
        assert here.sum() / area[REGION[name]] == pytest.approx(1.4 * wanted, rel=0.13), name
    for place, name, wanted in (("layer 2/3", "L23 exc", 0.62), ("layer 6", "L56 exc", 0.61),
                                ("dentate gyrus", "DG gran", 0.85),
                                ("fibre tract", "Oligodendrocyte", 0.69), ("thalamus", "Thal exc", 0.48)):  # fmt: skip
        share = (cells.kind[cells.region == REGION[place]] == TYPE[name]).mean()
        assert share == pytest.approx(wanted, rel=0.12), (place, name)
    assert len(celltypes.TYPES) >= 14


def test_nuclei_keep_their_distance(forebrain) -> None:
    cells, _ = forebrain
    kept = cells.take(cells.passes_qc)
    nearest = cKDTree(np.stack([kept.y_um, kept.x_um], 1)).query(np.stack([kept.y_um, kept.x_um], 1), k=2)[0][:, 1]
    for percent, wanted in ((25, 11.3), (50, 14.3), (75, 18.0), (95, 25.2)):
        assert np.percentile(nearest, percent) == pytest.approx(wanted, rel=0.15)
    layer = cells.take(cells.region == REGION["layer 2/3"])
    points = np.stack([layer.y_um, layer.x_um], 1)
    assert cKDTree(points).query(points, k=2)[0][:, 1].min() > 6.5


def test_library_size_shapes_the_cell(forebrain) -> None:
    cells, _ = forebrain
    own = cells.take(cells.kind == TYPE["L56 exc"])
    assert np.corrcoef(own.library, own.major_um)[0, 1] > 0.3
    assert np.corrcoef(own.library, own.polyt)[0, 1] > 0.5
    size = [np.median(cells.major_um[cells.kind == TYPE[name]]) for name in ("L56 exc", "L23 exc", "Oligodendrocyte")]
    assert size == sorted(size, reverse=True)
    vessels = cells.take(cells.kind == TYPE["Endothelial"])
    assert np.median(vessels.minor_um / vessels.major_um) < 0.45


def test_markers_mark_their_types_and_go_together_where_they_should() -> None:
    numbers = panel.gene_numbers(500)
    means = panel.expression(numbers)
    names = list(panel.panel(500))

    def of(gene: str, kind: str) -> float:
        return float(means[names.index(gene), TYPE[kind]])

    assert of("Slc17a7", "L23 exc") > 50 * of("Slc17a7", "Astrocyte")
    assert means[names.index("Aqp4")].argmax() == TYPE["Astrocyte"]
    # both in the thalamus' excitatory cells; Th and Nr4a2 both in dopaminergic cells alone
    assert of("Slc17a6", "Thal exc") > 1 < of("Slc17a7", "Thal exc")
    assert means[names.index("Th")].argmax() == means[names.index("Nr4a2")].argmax() == TYPE["Dopaminergic"]


def test_marker_transcripts_lie_together_in_the_tissue() -> None:
    """Nr4a2 and Th in substantia nigra and VTA; Slc17a6 in the thalamus, Slc17a7 in the cortex above it."""
    brain = brain_of(sections=1, first_mm=7.9, genes=100, misregister=0.0)
    rows = brain.transcripts(0, brain.canvas)
    region = brain.regions_at(0, rows.y_um, rows.x_um)

    def share(gene: str, *names: str) -> float:
        own = region[rows.gene == brain.genes.index(gene)]
        return float(np.isin(own, [REGION[name] for name in names]).mean())

    area = np.isin(region, [REGION["SN/VTA"]]).mean()
    assert share("Th", "SN/VTA") > 8 * area
    assert share("Nr4a2", "SN/VTA") > 2.5 * area
    below = rows.take((region == REGION["SN/VTA"]) | (region == REGION["midbrain"]))
    maps = [
        np.histogram2d(own.y_um, own.x_um, bins=12)[0].ravel()
        for own in (below.take(below.gene == brain.genes.index(gene)) for gene in ("Th", "Nr4a2"))
    ]
    assert np.corrcoef(maps)[0, 1] > 0.7
    cells = brain.cells_near(0, brain.canvas, 0.0)
    thalamus = brain.transcriptome.counts(cells.take(cells.kind == TYPE["Thal exc"]), 0)
    both = [thalamus[:, brain.genes.index(gene)] > 0 for gene in ("Slc17a6", "Slc17a7")]
    assert (both[0] & both[1]).mean() > 0.5
    upper = ("layer 2/3", "layer 4", "layer 5", "layer 6")
    assert share("Slc17a7", *upper) > 2 * share("Slc17a6", *upper)


def test_panels_share_their_first_genes() -> None:
    main_, m, f = (VirtualBrain(Settings.of(name, "bench")).genes for name in BRAINS)
    assert len(main_) == len(m) == len(f) == len(set(m)) == 500
    assert m == f
    assert m[:229] == main_[:229]
    assert not set(m[229:]) & set(main_)
    assert list(panel.MARKERS) == list(main_[: len(panel.MARKERS)])
    numbers = panel.gene_numbers(300), panel.gene_numbers(60)
    np.testing.assert_array_equal(panel.expression(numbers[0])[:60], panel.expression(numbers[1]))
    assert len(panel.panel(20_000)) == 20_000
    with pytest.raises(InputError, match="marker genes"):
        panel.gene_numbers(3)


def test_three_brains_differ_in_cells_stain_and_regions() -> None:
    box = Box(300, 420, 500, 640)
    made = [VirtualBrain(Settings.of(name, "tiny", misregister=0.0)) for name in BRAINS]
    windows = [brain.window(0, box) for brain in made]
    assert len({window.images[0].mean() for window in windows}) == 3
    assert len({tuple(window.cells.cell.tolist()) for window in windows}) == 3
    assert [brain.settings.anatomy.bulb for brain in made] == [True, False, False]
    for brain in (VirtualBrain(Settings.of(name, "brain")) for name in BRAINS):
        steps = np.diff(brain.z_um)
        assert len(brain.z_um) == 50
        assert 90 < steps.min() < 130
        assert 190 < steps.max() < 210
        if brain.settings.preset.supporting:
            assert brain.z_um[0] > 2000
    assert Settings.of("main", "brain").pixels == (288 * 256, 416 * 256)


def test_brains_of_other_seeds_share_the_biology() -> None:
    totals = []
    for seed in (0, 1):
        brain = brain_of(seed=seed, genes=120)
        rows = brain.transcripts(0, Box(200, 700, 300, 900))
        totals.append(np.bincount(rows.gene, minlength=125)[len(panel.MARKERS) : 120])
    assert not np.array_equal(*totals)
    assert np.corrcoef(np.log1p(totals))[0, 1] > 0.9


def test_transcripts_have_the_wanted_density_and_places() -> None:
    brain = brain_of(genes=200)
    rows = brain.transcripts(0, brain.canvas)
    y, x = ((np.arange(100) + 0.5) * side / 100 for side in (brain.settings.height_um, brain.settings.width_um))
    tissue = (
        (brain.regions_at(0, y[:, None], x[None, :]) > 1).mean() * brain.settings.height_um * brain.settings.width_um
    )
    assert len(rows) / tissue * 100 == pytest.approx(60, rel=0.15)
    blanks = (rows.gene >= 200).mean() * 205 / 5
    assert 0.01 < blanks < 0.02
    assert (rows.cell == 0).mean() == pytest.approx(0.15, abs=0.03)


def test_a_gene_only_classifier_names_cell_types() -> None:
    brain = brain_of(genes=200)
    cells = brain.cells_near(0, brain.canvas, 0.0)
    rows = brain.transcripts(0, brain.canvas)
    own = rows.take((rows.place < 2) & (rows.cell > 0) & (rows.gene < 200))
    index = np.searchsorted(cells.cell, own.cell)
    own, index = own.take(index < len(cells)), index[index < len(cells)]
    counts = np.zeros((len(cells), 200))
    np.add.at(counts, (index, own.gene), 1)
    train = np.arange(len(cells)) % 2 == 0
    kinds = [kind for kind in np.unique(cells.kind) if (cells.kind[train] == kind).sum() > 10]
    scores = []
    for kind in kinds:
        share = counts[train & (cells.kind == kind)].sum(axis=0) + 0.5
        scores.append(counts[~train] @ np.log(share / share.sum()))
    assert (np.array(kinds)[np.argmax(scores, axis=0)] == cells.kind[~train]).mean() > 0.9


def test_focal_planes_see_the_same_cells_differently() -> None:
    brain = brain_of(planes=7, pixel_um=0.4)
    images = brain.window(0, Box(500, 800, 700, 1000)).images[0].astype(float)
    near = np.corrcoef(images[2].ravel(), images[3].ravel())[0, 1]
    far = np.corrcoef(images[0].ravel(), images[6].ravel())[0, 1]
    assert far < near
    assert near > 0.95


def test_settings_of_a_bench_and_scale() -> None:
    half = Settings.of("main", "bench", scale=0.125)
    assert half.height_um == pytest.approx(Settings.of("main", "bench").height_um / 2)
    assert replace(half, seed=3).key != half.key
    with pytest.raises(InputError, match="no size"):
        Settings.of("main", "huge")
