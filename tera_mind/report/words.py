"""What the report calls things: methods, metrics and what each metric says, in words for a biologist."""

from __future__ import annotations

import math
from dataclasses import dataclass

DASH, MINUS, TIMES = "\N{EN DASH}", "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"

#: method -> (column head, what it is); the order of the report's columns
METHODS = {
    "real": ("Real", "the measured tissue itself"),
    "generated": ("Generated", "painted by the model from the genes of this tissue"),
    "shuffled": (
        "Genes shuffled",
        "the same model, genes exchanged between patches: what it paints without the right genes",
    ),
    "zeroed": ("Genes zeroed", "the same model, all genes set to zero: what it paints without any genes"),
    "mean_image": ("Mean image", "one constant grey level everywhere, the mean of the training tissue"),
    "ridge": ("Ridge", "linear regression from binned genes to the blurred stain, fitted on the training tissue"),
    "real_vs_real": ("Real vs real", "measured tissue against other measured tissue: the ceiling"),
}

#: methods that stand beside the competition: the truth and the ceiling never win a row
REFERENCES = frozenset({"real", "real_vs_real"})

#: `better` of a table row -> (arrow, its meaning)
ARROWS = {
    "higher": ("↑", "higher is better"),
    "lower": ("↓", "lower is better"),
    "one": ("→ 1", "closest to 1 is best"),
    "none": ("", "a description, neither better nor worse"),
}


@dataclass(frozen=True)
class Metric:
    """A metric's label in tables, the group it stands in, and one sentence on what it says."""

    label: str
    group: str
    sentence: str


FIDELITY, NUCLEI, LOOKS, SEAMS, OTHER = "Pixel by pixel", "Nuclei", "Overall look", "Seams", "Other"
GROUPS = (FIDELITY, NUCLEI, LOOKS, SEAMS, OTHER)

METRICS = {
    "psnr": Metric(
        "PSNR",
        FIDELITY,
        "Peak signal-to-noise ratio: how small the squared grey-level error is, in decibels; it rewards blur, so a "
        "smooth guess can beat a sharp picture whose nuclei sit one micron off.",
    ),
    "ssim": Metric(
        "SSIM",
        FIDELITY,
        "Structural similarity: local brightness, contrast and pattern agree (1 is identical, 0 unrelated).",
    ),
    "psnr_blur": Metric(
        "PSNR, blurred",
        FIDELITY,
        "PSNR after both pictures are blurred to the scale that genes can be expected to determine.",
    ),
    "ssim_blur": Metric("SSIM, blurred", FIDELITY, "SSIM after the same blur."),
    "pearson_blur": Metric(
        "Correlation, blurred",
        FIDELITY,
        "Pearson correlation of blurred grey levels within a patch: bright where the tissue is bright, regardless of "
        "overall brightness.",
    ),
    "nuclei_count": Metric(
        "Nuclei", NUCLEI, "Number of nuclei that the same watershed segmentation finds in all windows together."
    ),
    "nuclei_count_r": Metric(
        "Nuclei per window, r",
        NUCLEI,
        "Correlation of the number of nuclei per window with the real one: cells are dense where they should be.",
    ),
    "nuclei_count_ratio": Metric("Nuclei, ratio", NUCLEI, "Total number of nuclei, divided by the real number."),
    "nuclei_count_error": Metric(
        "Nuclei per window, error", NUCLEI, "Mean absolute error of the number of nuclei in a window."
    ),
    "nuclei_count_wasserstein": Metric(
        "Nuclei per window, distance",
        NUCLEI,
        "Wasserstein distance between the distributions of nuclei per window: how many nuclei a window would have to "
        "gain or lose, on average, to match.",
    ),
    "nucleus_area_median_um2": Metric("Nucleus area, median", NUCLEI, "Median area of a nucleus."),
    "nucleus_area_ratio": Metric("Nucleus area, ratio", NUCLEI, "Median nucleus area, divided by the real median."),
    "nucleus_area_r": Metric(
        "Nucleus area per window, r",
        NUCLEI,
        "Correlation of the median nucleus area per window with the real one: nuclei are large where they should be.",
    ),
    "nucleus_area_wasserstein": Metric(
        "Nucleus area, distance",
        NUCLEI,
        "Wasserstein distance between the distributions of nucleus areas: the mean change of area that would make "
        "them equal.",
    ),
    "frechet": Metric(
        "Fréchet distance",
        LOOKS,
        "Distance between real and other patches in the feature space of an image network (efficientnet-lite0): does "
        "it look like such tissue at all, wherever things lie? Blind to small seams.",
    ),
    "seam_index": Metric(
        "Seam index",
        SEAMS,
        "Grey-level steps across patch borders, divided by those elsewhere: above 1, the patch grid shows.",
    ),
    "seam_null": Metric(
        "Seam index, grid shifted",
        SEAMS,
        "The seam index measured on shifted grids, where no border is: what 1 looks like with chance in it.",
    ),
}


def metric_words(name: str) -> Metric:
    """A metric's words; one unknown here is shown by its own name, without a sentence."""
    return METRICS.get(name, Metric(name, OTHER, ""))


def method_label(name: str) -> str:
    return METHODS[name][0] if name in METHODS else name


def number(value: float | None) -> str:
    """About three significant digits, thousands apart, a true minus; a dash for what could not be computed."""
    if value is None or not math.isfinite(value):
        return DASH
    size = abs(value)
    if size >= 100 or value == 0:
        text = f"{value:,.0f}"
    elif size >= 1:
        text = f"{value:.1f}" if size >= 10 else f"{value:.2f}"
    else:
        text = f"{value:.3f}" if size >= 0.001 else f"{value:.1e}"
    return text.replace("-", MINUS).replace(",", " ")
