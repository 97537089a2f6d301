"""The experiment whole: every method at every rate, several times, what is finished kept on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from lib import device as devices
from lib.kept import Kept
from lib.segmentation import scenes as road
from lib.segmentation.scenes import Scenes
from lib.segmentation.training import METHODS, Number, Outcome, Plan, Trainer


@dataclass(frozen=True, eq=False)
class Segmentations:
    """The outcomes of a plan by method and rate, trainings in order."""

    plan: Plan
    classes: tuple[str, ...]
    outcomes: Mapping[tuple[str, Number], list[Outcome]]

    def values(
        self, method: str, rate: Number, split: str = "test", score: str = "mean_iou"
    ) -> Float[np.ndarray, " seeds"]:
        """A score in points (per cent), training by training; 0 for those that diverged."""
        return np.array([100 * getattr(each.scores(split), score) for each in self.outcomes[method, rate]])

    def best(self, method: str) -> Number:
        """The rate with the best mean over trainings of the mean intersection over union, on validation images.

        Not on the test images: the best of several test scores flatters, and flatters more what varies more.
        """
        return max(self.plan.rates, key=lambda rate: float(self.values(method, rate, "val").mean()))


def trainings(
    plan: Plan,
    seed: int,
    *,
    device: str | None = None,
    folder: Path | None = None,
    scenes: Scenes | None = None,
) -> Segmentations:
    """Train SegNet by both methods at every rate of the plan, ``plan.seeds`` times.

    Args:
        plan: the sizes.
        seed: of all starts and orders.
        device: a name as in ``lib.device.pick``.
        folder: where finished trainings are kept, for a run that may be cut; it must name the code and the seed.
        scenes: the data, by default camvid-small cropped for the plan's levels.

    Raises what ``lib.segmentation.scenes.load`` and ``Trainer`` raise.
    """
    where = devices.pick(device)
    scenes = (scenes or road.load(plan.levels)).to(where)
    trainer, kept = Trainer(scenes, plan, seed), Kept(folder)
    outcomes: dict[tuple[str, Number], list[Outcome]] = {}
    for k in range(plan.seeds):
        for rate in plan.rates:
            for method in METHODS:
                name = f"segnet-{method}-{rate:g}-{k}".replace(" ", "-")
                part = kept.part(name, lambda run=(method, rate, k): vars(trainer.run(*run)))
                outcomes.setdefault((method, rate), []).append(Outcome(**part))
    return Segmentations(plan, scenes.classes, outcomes)
