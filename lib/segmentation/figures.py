"""Pictures of the experiment: what the two methods see in a few frames, and how their scores hang on the rate."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib.drawing import legend_above, said
from lib.plots import INK, Shown, figure, line_plot, show, style
from lib.segmentation.experiment import Segmentations
from lib.segmentation.measures import overlap_by_rate
from lib.segmentation.scenes import VOID, Scenes
from lib.segmentation.training import METHODS

# Near what the classes look like, and moved until any two, and each and the page, light or dark, stay apart for every kind
# of colour vision (tests/segmentation/test_segmentation_figures.py measures it).
COLOURS = {
    "Sky": "#afd9f1",
    "Building": "#8d75d2",
    "Pole": "#f8de06",
    "Road": "#3a304c",
    "Pavement": "#be9cf1",
    "Tree": "#25860f",
    "SignSymbol": "#fa9c09",
    "Fence": "#713d04",
    "Car": "#432bd0",
    "Pedestrian": "#af3080",
    "Bicyclist": "#00ac99",
}


@style()
def pictures(found: Segmentations, scenes: Scenes, k: int = 0) -> Shown:
    """Image, labels, and the classes that training ``k`` of each method names at its own best rate, a row a frame.

    The frames are the plan's. Pixels without a class are left empty in the labels; the methods name them nevertheless.
    Raises ValueError for a plan that keeps no frames.
    """
    frames = found.plan.frames
    if not frames:
        raise ValueError("the plan keeps no frames, so there is nothing to show: name some in Plan.frames.")
    fig, axes = figure(8.4, 1.6 * len(frames) + 1.0, rows=len(frames), columns=4, squeeze=False)
    words = []
    for place, (line, frame) in enumerate(zip(axes, frames, strict=True)):
        labels = scenes.test.labels[frame].cpu()
        called = {m: found.outcomes[m, found.best(m)][k].shown[place].long() for m in METHODS}
        panels = [("image", scenes.picture(scenes.test, frame).numpy()), ("labels", painted(labels))]
        panels += [(method, painted(each)) for method, each in called.items()]
        for ax, (title, picture) in zip(line, panels, strict=True):
            ax.imshow(picture, interpolation="nearest")
            ax.set(xticks=[], yticks=[], title="" if place else title)
            ax.spines[:].set_visible(False)
        line[0].set_ylabel(f"frame {frame}", fontsize=9)
        words.append(f"Frame {frame}: {_contents(labels, found.classes)}; {_agreement(labels, called)}")
    legend_above(fig, *_key(found.classes), columns=6)
    rates = " and ".join(f"{found.best(method):g} ({method})" for method in METHODS)
    return show(
        fig,
        f"{len(frames)} rows of four pictures: a road scene, its labels in colours, and the classes that a network trained by "
        f"{METHODS[0]} and one trained by {METHODS[1]} name. {'. '.join(words)}.",
        f"Test frames at {labels.shape[0]} × {labels.shape[1]}, training {k + 1} of {found.plan.seeds}, rates {rates}. "
        "Empty in the labels: pixels without a class, which do not count.",
    )


def painted(labels: Tensor) -> np.ndarray:
    """Classes (H, W) as colours with opacity (H, W, 4); what has no class is transparent, the page itself."""
    from matplotlib.colors import to_rgba

    table = np.array([*map(to_rgba, COLOURS.values()), (0, 0, 0, 0)])
    return table[labels.clamp(0, VOID).numpy()]


def _key(classes: tuple[str, ...]) -> tuple[list[Any], list[str]]:
    from matplotlib.patches import Patch

    patches = [Patch(facecolor=COLOURS[name], edgecolor=INK, lw=0.6) for name in classes]
    return [*patches, Patch(facecolor="none", edgecolor=INK, lw=0.6)], [*classes, "no class"]


def _contents(labels: Tensor, classes: tuple[str, ...]) -> str:
    """The three classes with most pixels."""
    counted = labels[labels != VOID]
    shares = torch.bincount(counted, minlength=len(classes)) / max(1, counted.numel())
    largest = shares.argsort(descending=True)[:3].tolist()
    return "mostly " + ", ".join(f"{classes[c]} {float(shares[c]):.0%}" for c in largest if shares[c] > 0)


def _agreement(labels: Tensor, called: dict[str, Tensor]) -> str:
    known = labels != VOID
    right = {m: float((each == labels)[known].double().mean()) for m, each in called.items()}
    shares = " and ".join(f"{share:.0%} ({method})" for method, share in right.items())
    return f"right on {shares} of the labelled pixels"


def overlaps(found: Segmentations) -> Shown:
    """Mean intersection over union on the test images against the learning rate, both methods, with intervals over trainings."""
    bands = overlap_by_rate(found)
    rates = np.array(found.plan.rates, dtype=float)
    order = rates.argsort()
    chosen: dict[float, list[str]] = {}
    for method in METHODS:
        chosen.setdefault(float(found.best(method)), []).append(method)
    words = [
        f"{method}: "
        + ", ".join(f"{said(band[:, i], '.1f')} at {rates[i]:g}" for i in order)
        + f"; chosen {found.best(method):g}"
        for method, band in bands.items()
    ]
    top = max(float(band[2].max()) for band in bands.values())
    cut = top > 100 or any(bool((band[1] < 0).any()) for band in bands.values())
    return line_plot(
        {method: (rates[order], *band[:, order]) for method, band in bands.items()},
        alt=f"A curve a method over learning rates on a logarithmic axis, in points. {'. '.join(words)}.",
        xlabel="learning rate (first epoch)",
        ylabel="mean IoU, test (points)",
        caption=f"Bands: 95 % intervals of the mean over {found.plan.seeds} trainings; one that diverged counts as 0. Dotted: the rates "
        "chosen on the validation images."
        + " A band that reaches the edge goes on beyond scores that exist."
        * cut,
        log=(True, False),
        markers=True,
        limits=(0.0, min(100.0, 1.08 * top)),
        marks=[(rate, " and ".join(methods)) for rate, methods in chosen.items()],
    )
