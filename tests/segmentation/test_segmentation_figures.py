"""Pictures: what is drawn is what was found, the words follow from it, and classes part for every eye."""

import numpy as np
import pytest
import torch
from coloured import CLASSES
from coloured import scenes as coloured_scenes
from matplotlib.colors import to_rgb, to_rgba
from outcomes import found_of, made

from lib.segmentation import figures
from lib.segmentation.experiment import Segmentations
from lib.segmentation.scenes import VOID, Scenes, Split
from lib.segmentation.training import SGD, UNIT, Outcome, Plan

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB; and from there to Oklab.
EYES = {
    "full colour": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}  # fmt: skip
LMS = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566], [0.0883024619, 0.2817188376, 0.6299787005]]  # fmt: skip
LAB = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099], [0.0259040371, 0.7827717662, -0.8086757660]]  # fmt: skip
REAL = tuple(figures.COLOURS)


def oklab(eye, colour):
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return np.array(LAB) @ np.cbrt(np.array(LMS) @ np.clip(np.array(EYES[eye]) @ linear, 0, 1))


@pytest.mark.parametrize("eye", EYES)
def test_every_two_classes_and_the_page_differ_for_every_eye(eye):
    assert len(REAL) == VOID
    classes, papers = (
        [oklab(eye, c) for c in some] for some in (figures.COLOURS.values(), ("#ffffff", "#121212"))
    )
    apart = [np.linalg.norm(a - b) for i, a in enumerate(classes) for b in (*classes[:i], *papers)]
    assert min(apart) > 0.12  # six "just noticeable" steps of 0.02


@pytest.fixture
def seen(monkeypatch):
    """The figures that are handed over, as matplotlib has them."""
    handed, right = [], figures.show

    def hand(fig, alt, caption=""):
        handed.append(fig)
        return right(fig, alt, caption)

    monkeypatch.setattr(figures, "show", hand)
    return handed


def test_no_class_is_the_page_itself():
    found = figures.painted(torch.tensor([[0, 3], [10, VOID]]))
    wanted = [to_rgba(figures.COLOURS[name]) for name in ("Sky", "Road", "Bicyclist")]
    np.testing.assert_allclose(found.reshape(4, 4), [*wanted, (0, 0, 0, 0)])


def outcome(shown, value):
    one = made(value)
    return Outcome(one.losses, one.diverged, one.val, one.test, shown)


def test_pictures_stand_by_frame_and_method(seen):
    """Frame 2 half sky, half road, a quarter of it without a class; SGD names all sky, unit norm all of it right."""
    labels = torch.full((3, 8, 8), 5)
    labels[2, :4], labels[2, 4:] = 0, 3
    truth = labels.clone()
    labels[2, :, :2] = VOID
    image = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(991))
    split = Split(image * 4 - 2, labels)
    scenes = Scenes(split, split, split, torch.full((3,), 0.5), torch.full((3,), 0.25), REAL)
    plan = Plan((0.1, 1.0), 2, 1, 1, frames=(2, 0))
    sky, right = torch.zeros(2, 8, 8, dtype=torch.uint8), truth[[2, 0]].to(torch.uint8)
    other = torch.full_like(sky, 7)
    outcomes = {
        (SGD, 0.1): [outcome(other, 0.9), outcome(sky, 0.9)],
        (SGD, 1.0): [outcome(other, 0.2)] * 2,
        (UNIT, 0.1): [outcome(other, 0.2)] * 2,
        (UNIT, 1.0): [outcome(other, 0.9), outcome(right, 0.9)],
    }
    shown = figures.pictures(Segmentations(plan, REAL, outcomes), scenes, k=1)
    assert (
        "Frame 2: mostly Sky 50%, Road 50%; right on 50% (SGD) and 100% (unit norm) of the labelled pixels"
        in shown.alt
    )
    assert "Frame 0: mostly Tree 100%; right on 0% (SGD)" in shown.alt
    assert "rates 0.1 (SGD) and 1 (unit norm)" in shown.caption
    (fig,) = seen
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["image", "labels", SGD, UNIT, *[""] * 4]
    drawn = [ax.images[0].get_array() for ax in fig.axes]
    np.testing.assert_allclose(drawn[0], image[2].movedim(0, -1), atol=1e-6)
    for at, classes in ((1, labels[2]), (2, sky[0].long()), (3, truth[2]), (7, truth[0])):
        np.testing.assert_allclose(drawn[at], figures.painted(classes))
    (legend,) = fig.legends
    assert [text.get_text() for text in legend.get_texts()] == [*REAL, "no class"]
    assert "<image" in shown.drawings[0]


def test_without_frames_there_is_nothing_to_show():
    plan = Plan((0.1,), 2, 1, 1, frames=())
    with pytest.raises(ValueError, match="keeps no frames"):
        figures.pictures(Segmentations(plan, CLASSES, {}), coloured_scenes())


def test_overlaps_are_drawn_and_told_in_the_order_of_the_rates(monkeypatch):
    drawn, right = [], figures.line_plot
    monkeypatch.setattr(
        figures, "line_plot", lambda series, **rest: (drawn.append(series), right(series, **rest))[1]
    )
    plan = Plan((1.0, 0.1), 3, 1, 1)
    low, high = [made(0.5)] * 3, [made(0.8)] * 3
    shown = figures.overlaps(found_of([low, high], [high, low], plan))
    assert "SGD: 66.7 (66.7 to 66.7) at 0.1, 33.3 (33.3 to 33.3) at 1; chosen 0.1" in shown.alt
    assert "unit norm: 33.3 (33.3 to 33.3) at 0.1, 66.7 (66.7 to 66.7) at 1; chosen 1" in shown.alt
    for method, values in ((SGD, [66.7, 33.3]), (UNIT, [33.3, 66.7])):
        for part, wanted in zip(drawn[0][method], ([0.1, 1.0], *[values] * 3), strict=True):
            np.testing.assert_allclose(part, wanted, atol=0.05)


def test_a_band_beyond_the_scores_is_cut_and_said():
    wide = [made(0.1), made(0.9), made(0.2)]
    steady = [made(0.5)] * 3
    assert "goes on beyond" in figures.overlaps(found_of([wide, steady], [steady] * 2)).caption
    assert "goes on beyond" not in figures.overlaps(found_of([steady] * 2, [steady] * 2)).caption
