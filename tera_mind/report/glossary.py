"""What every metric is called, what it says, what it does not see, and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A metric's label in tables, the group it stands in, one sentence on what it says, and what it is blind to.

    source: the paper it comes from, empty where it is this project's own.
    """

    label: str
    group: str
    sentence: str
    blind: str = ""
    source: str = ""


FIDELITY, LOOKS, NUCLEI, SHAPES = "Pixel by pixel", "Overall look", "Nuclei", "Nuclei, one by one"
GENES, SECTIONS, SEAMS, ENSEMBLE, OTHER = "Genes", "Between sections", "Seams", "Several seeds", "Other"
GROUPS = (FIDELITY, LOOKS, NUCLEI, SHAPES, GENES, SECTIONS, SEAMS, ENSEMBLE, OTHER)

#: what a group of metrics asks of a picture
QUESTIONS = {
    FIDELITY: "Is each place as bright as it should be?",
    LOOKS: "Does it look like this tissue at all, wherever things lie?",
    NUCLEI: "Are there as many nuclei as there should be, and in the right places?",
    SHAPES: "Are the nuclei as large, round, bright and close together as real ones?",
    GENES: "Can one read the genes back from the picture?",
    SECTIONS: "Do neighbouring sections belong together?",
    SEAMS: "Can one see where the picture was put together?",
    ENSEMBLE: "Do several seeds disagree where they are wrong?",
    OTHER: "",
}

#: what is measured of a nucleus -> (its name in words, unit)
NUCLEUS = {
    "area": ("area", "um^2"),
    "eccentricity": ("eccentricity", ""),
    "intensity": ("intensity", "grey levels"),
    "distance": ("distance to the nearest nucleus", "um"),
    "transcripts": ("transcripts", ""),
}


def nucleus_metrics(quantity: str) -> dict[str, Metric]:
    """The metrics of one quantity of `NUCLEUS`, by name."""
    words, _ = NUCLEUS[quantity]
    label = f"Nucleus {words}" if quantity != "distance" else "Nearest nucleus"
    spread = "Knows nothing of places: right nuclei in wrong places score as well."
    return {
        f"nucleus_{quantity}_median": Metric(
            f"{label}, median", SHAPES, f"Median {words} of a nucleus.", "Says nothing of the spread."
        ),
        f"nucleus_{quantity}_ratio": Metric(
            f"{label}, ratio", SHAPES, f"Median {words} of a nucleus, divided by the real median.", spread
        ),
        f"nucleus_{quantity}_wasserstein": Metric(
            f"{label}, distance",
            SHAPES,
            f"Wasserstein distance between the distributions of {words}: the mean change that would make them equal.",
            spread,
        ),
        f"nucleus_{quantity}_ks": Metric(
            f"{label}, KS",
            SHAPES,
            f"Kolmogorov-Smirnov distance between the distributions of {words}: the largest gap between the two "
            "cumulative curves (0 alike, 1 disjoint).",
            spread,
        ),
        f"nucleus_{quantity}_r": Metric(
            f"{label} per window, r",
            SHAPES,
            f"Correlation over small windows of the median {words} with the real one.",
            "A constant factor; windows without nuclei drop out.",
        ),
        f"region_{quantity}_r": Metric(
            f"{label} per region, r",
            SHAPES,
            f"Correlation over large squares of the median {words} with the real one, as published.",
            "A constant factor; there are few large squares, so the interval is wide.",
        ),
    }


_WANG = "Wang et al., IEEE Trans. Image Process. 13, 600 (2004)"
_BLURRED = "Everything smaller than the blur: nuclei may be missing."

METRICS = {
    "psnr": Metric(
        "PSNR",
        FIDELITY,
        "Peak signal-to-noise ratio: how small the squared grey-level error is, in decibels.",
        "Rewards blur, so a smooth guess can beat a sharp picture whose nuclei sit one micron off.",
    ),
    "ssim": Metric(
        "SSIM",
        FIDELITY,
        "Structural similarity: local brightness, contrast and pattern agree (1 is identical, 0 unrelated).",
        "Noise in dark background weighs much; shifts of a few pixels look like errors.",
        _WANG,
    ),
    "ms_ssim": Metric(
        "MS-SSIM",
        FIDELITY,
        "Structural similarity at five scales together: from single pixels to whole structures.",
        "Needs large squares, of which a small region has few.",
        "Wang, Simoncelli and Bovik, Asilomar Conf. (2003)",
    ),
    "psnr_blur": Metric(
        "PSNR, blurred",
        FIDELITY,
        "PSNR after both pictures are blurred to the scale that genes can be expected to determine.",
        _BLURRED,
    ),
    "ssim_blur": Metric("SSIM, blurred", FIDELITY, "SSIM after the same blur.", _BLURRED, _WANG),
    "pearson_blur": Metric(
        "Correlation, blurred",
        FIDELITY,
        "Pearson correlation of blurred grey levels within a patch: bright where the tissue is bright.",
        "Overall brightness and contrast; nuclei may be missing.",
    ),
    "nucleus_size_transcripts_r": Metric(
        "Nucleus area and transcripts, r",
        SHAPES,
        "Correlation over nuclei of the logarithms of area and transcripts; as in the real tissue is right.",
        "Transcripts are the measured ones: a nucleus of the right size in the wrong place lowers it.",
    ),
    "nuclei_count": Metric(
        "Nuclei",
        NUCLEI,
        "Number of nuclei that one and the same segmentation finds.",
        "Where they are, and whether they look like nuclei to an eye.",
    ),
    "nuclei_count_r": Metric(
        "Nuclei per window, r",
        NUCLEI,
        "Correlation over small windows of the number of nuclei with the real one: cells are dense where they should "
        "be.",
        "A constant factor: half of the nuclei in the right places score as well.",
    ),
    "nuclei_count_ratio": Metric(
        "Nuclei, ratio", NUCLEI, "Total number of nuclei, divided by the real number.", "Where they are."
    ),
    "nuclei_count_error": Metric(
        "Nuclei per window, error",
        NUCLEI,
        "Mean absolute error of the number of nuclei in a window.",
        "Places inside a window.",
    ),
    "nuclei_count_wasserstein": Metric(
        "Nuclei per window, distance",
        NUCLEI,
        "Wasserstein distance between the distributions of nuclei per window: how many nuclei a window would have to "
        "gain or lose, on average, to match.",
        "Which window is which.",
    ),
    "nuclei_count_ks": Metric(
        "Nuclei per window, KS",
        NUCLEI,
        "Kolmogorov-Smirnov distance between the distributions of nuclei per window: the largest gap between the two "
        "cumulative curves (0 alike, 1 disjoint).",
        "Which window is which.",
    ),
    "region_count_r": Metric(
        "Nuclei per region, r",
        NUCLEI,
        "Correlation over large squares of the number of nuclei with the real one, as published.",
        "A constant factor; there are few large squares, so the interval is wide.",
    ),
    "nuclei_f1": Metric(
        "Nuclei found again, F1",
        NUCLEI,
        "Share of nuclei that overlap a real one by at least half: harmonic mean of precision and recall.",
        "Strict: genes do not say where in a cell the nucleus lies, and a nucleus two microns off counts as wrong.",
        "Caicedo et al., Nature Methods 16, 1247 (2019)",
    ),
    **{name: words for quantity in NUCLEUS for name, words in nucleus_metrics(quantity).items()},
    "frechet": Metric(
        "Fréchet distance",
        LOOKS,
        "Distance between real and other tiles in the feature space of an image network (efficientnet-lite0).",
        "Places, and faint seams; it depends on the number of tiles, so compare it within one report only.",
        "after Heusel et al., NeurIPS (2017)",
    ),
    "kernel": Metric(
        "Kernel distance",
        LOOKS,
        "Squared maximum mean discrepancy between the same features: no assumption of a normal distribution, and no "
        "bias from few tiles; it may fall a little below 0.",
        "Places, and faint seams.",
        "Binkowski et al., ICLR (2018)",
    ),
    "fid": Metric(
        "FID",
        LOOKS,
        "Fréchet distance of the pooled features of Inception, as in other papers.",
        "Places; from few tiles it is too large.",
        "Heusel et al., NeurIPS (2017)",
    ),
    "sfid": Metric(
        "sFID",
        LOOKS,
        "Fréchet distance of Inception's spatial features: arrangement within a tile counts.",
        "Places beyond a tile; from few tiles it is too large.",
        "Nash et al., ICML (2021)",
    ),
    "spectrum_distance": Metric(
        "Power spectrum, distance",
        LOOKS,
        "Mean difference of the power at each scale of structure: too smooth or too grainy shows here.",
        "Places and shapes: noise of the right colour scores well.",
    ),
    "histogram_wasserstein": Metric(
        "Grey levels, distance",
        LOOKS,
        "Wasserstein distance between the histograms of grey levels.",
        "Everything but brightness.",
    ),
    "gene_r": Metric(
        "Genes read back, r",
        GENES,
        "How well a probe, trained on real tissue, reads gene counts from the picture: mean over the genes that it can "
        "read from the real one.",
        "Depends on the probe and its features.",
    ),
    "gene_r_median": Metric("Genes read back, median r", GENES, "The same, its median over genes.", "As above."),
    "gene_recovery": Metric(
        "Gene recovery",
        GENES,
        "What the probe reads from the picture, as a share of what it reads from the real one.",
        "A picture drawn from genes can be easier to read than real tissue; shares of other probes do not compare.",
    ),
    "z_correlation": Metric(
        "Correlation along z",
        SECTIONS,
        "Correlation of blurred grey levels with the next section; to be held against that of the real sections.",
        "Everything below the blur.",
    ),
    "z_correlation_gap": Metric(
        "Correlation along z, gap",
        SECTIONS,
        "How far that correlation is from the one of the real sections: too unlike, or too alike.",
        "Which of the two it is.",
    ),
    "seam_index": Metric(
        "Seam index",
        SEAMS,
        "Grey-level steps across patch borders, divided by those elsewhere: above 1, the patch grid shows.",
        "Faint steps drown in texture.",
    ),
    "seam_step": Metric(
        "Seam step",
        SEAMS,
        "Steps that whole patch borders share, divided by those elsewhere: sees a border of a few per cent.",
        "A change of texture without a step.",
    ),
    "seam_spectrum": Metric(
        "Seam spectrum",
        SEAMS,
        "Power of the steps at the patch grid's own frequencies, divided by what chance gives.",
        "Few frequencies, so it scatters widely: hold it against its null.",
    ),
    "tile_seam_index": Metric("Seam index, tiles", SEAMS, "The seam index at the borders of the sampler's tiles."),
    "tile_seam_step": Metric("Seam step, tiles", SEAMS, "The seam step at the borders of the sampler's tiles."),
    "tile_seam_spectrum": Metric("Seam spectrum, tiles", SEAMS, "The seam spectrum of the sampler's tile grid."),
    "spread_error_ratio": Metric(
        "Spread by error",
        ENSEMBLE,
        "How far the seeds are apart, divided by how far their mean is from the real tissue: below 1 they are too "
        "sure of themselves.",
        "Where they are apart.",
        "Fortin et al., J. Hydrometeor. 15, 1708 (2014)",
    ),
    "spread_skill": Metric(
        "Spread and error, r",
        ENSEMBLE,
        "Correlation over patches of the seeds' spread with their error: do they know where they are wrong?",
        "A constant factor; bright patches have more of both.",
    ),
    "spread_skill_rank": Metric(
        "Spread and error, rank r", ENSEMBLE, "The same with ranks, so that a few patches cannot decide.", "As above."
    ),
}

#: null of a seam figure: shown beside the figure that it judges, not as a row -> that figure
NULLS = {
    f"{grid}{null}": f"{grid}{metric}"
    for grid in ("", "tile_")
    for null, metric in (
        ("seam_null", "seam_index"),
        ("seam_step_null", "seam_step"),
        ("seam_spectrum_null", "seam_spectrum"),
    )
}

#: the best share of a real image's gene information that a generated one was published to carry
BEST_PUBLISHED_RECOVERY = 0.82


def metric_words(name: str) -> Metric:
    """A metric's words; one unknown here is shown by its own name, without a sentence."""
    return METRICS.get(name, Metric(name, OTHER, ""))
