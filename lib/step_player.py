"""A figure to play with: one filter of two weights, whose loss knows only its direction, trained by three rules at once.

The reader moves the learning rate and the starting length and sees what a step is: a gradient, a tangent line, a
retraction to the circle. The numbers come from the steps that train networks (``lib.unit_norm.steps``); the script in
``lib/assets`` repeats them, and tests/book compares the two in a browser.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lib.plots import PALETTE
from lib.unit_norm.manifold import inner, normalise, norms, project
from lib.unit_norm.steps import STEPS
from lib.widgets import SIZE, SWATCH, Player, across, assemble, line, picture, said, slider

METHODS = {
    "SGD": PALETTE["orange"],
    "unit norm": PALETTE["blue"],
    "scaled metric": PALETTE["green"],
}
RATES = (0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0)
LENGTHS = (0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0, 2.5, 3.0)
MOST = 30  # steps
DIRECTION, TARGET = (np.array([np.cos(a), np.sin(a)]) for a in np.deg2rad([150, 20]))  # start, lowest loss
LIMITS = (
    1.5,
    2.0,
    3.0,
    4.0,
    6.0,
    8.0,
    12.0,
)  # half-widths of the plane: the scaled metric may leave even the last
CLOSEST = 0.3  # half-width of the close-up at its most enlarged: the circle still bends
HEIGHT = 180  # of the picture of losses
Scene = dict[str, dict[str, str]]  # the moving elements: their names, and the attributes that place them


def loss(w: Float[Tensor, "n 2"]) -> Float[Tensor, "n 1"]:
    """1 - cos of the angle between each row and the target: the same along every ray from the origin."""
    return 1 - inner(normalise(w), torch.from_numpy(TARGET).expand_as(w))


def gradient(w: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
    """Of the loss: perpendicular to w, and shorter the longer w is."""
    return -project(normalise(w), torch.from_numpy(TARGET).expand_as(w)) / norms(w)


def walk(method: str, rate: float, length: float, steps: int = MOST) -> Float[Tensor, "points 2"]:
    """The weights before and after each of ``steps`` steps. Unit norm starts from the start, normalised."""
    w = length * torch.from_numpy(DIRECTION)[None]
    if method == "unit norm":
        w = normalise(w)
    points = [w.clone()]
    for _ in range(steps):
        STEPS[method](w, gradient(w), rate)
        points.append(w.clone())
    return torch.cat(points)


def step_player(rate: float = 0.3, length: float = 2.0, steps: int = 4) -> Player:
    """Play with one filter w = (w1, w2) whose loss depends on its direction alone, as before a batch normalisation.

    SGD, unit norm and scaled metric start in one direction; sliders set learning rate, starting length and number of
    steps. Above, their paths in the plane and unit norm's last step in its parts; below, loss against step. SGD
    trains one function differently from short and long weights, the other two do not.

    Args:
        rate: where its slider starts, one of ``RATES``.
        length: of the start, one of ``LENGTHS``.
        steps: taken at the start, 0 to ``MOST``.

    Raises:
        ValueError: a value that the slider does not have.

    Source: P4, unit-norm manifold and scaled metric; notes, sections 1.3 to 1.5.
    """
    for value, all_of, what in (
        (rate, RATES, "learning rate"),
        (length, LENGTHS, "length"),
        (steps, range(MOST + 1), "number of steps"),
    ):
        if value not in all_of:
            shown = ", ".join(f"{each:g}" for each in all_of)
            raise ValueError(f"a {what} of {value} is not on the figure's slider: choose one of {shown}.")
    walks = {method: walk(method, rate, length) for method in METHODS}
    ends = [walk("SGD", rate, length) for length in (LENGTHS[0], LENGTHS[-1])]
    longest = max(float(norms(path[: steps + 1]).max()) for path in walks.values())
    limit = next((each for each in LIMITS if each >= 1.1 * longest), LIMITS[-1])
    moving = scene(walks, ends, rate, steps, limit)
    spec = {
        "size": SIZE,
        "height": HEIGHT,
        "most": MOST,
        "rates": RATES,
        "lengths": LENGTHS,
        "limits": LIMITS,
        "closest": CLOSEST,
        "methods": list(METHODS),
        "direction": DIRECTION.tolist(),
        "target": TARGET.tolist(),
        "start": {"rate": RATES.index(rate), "length": LENGTHS.index(length), "steps": steps},
    }
    now = {method: float(loss(path)[steps]) for method, path in walks.items()}
    return assemble(
        "step",
        spec,
        f'<div class="pl-plots">{_plane(moving, limit)}{_close(moving)}</div>'
        f'<div class="pl-plots">{_controls(rate, length, steps)}{_losses(moving)}</div>{said()}',
        words="one filter trained by SGD, unit norm and scaled metric",
        still="This picture moves where JavaScript runs; here it shows "
        f"{steps} steps at a learning rate of {rate:g} from a start of length {length:g}. SGD has come to a loss of "
        f"{now['SGD']:.3f}, and would have come to another from a start of another length. Unit norm has come to "
        f"{now['unit norm']:.3f} and scaled metric to {now['scaled metric']:.3f}, whatever that length.",
        caption="One filter with two weights. First picture: its paths by SGD (orange), unit norm (blue) and scaled "
        "metric (green, dashed); the deeper the shade, the higher the loss, which is the same along every ray and "
        "lowest on the dashed one. Second, the little square of the first enlarged: unit norm's last step goes along "
        "the dashed tangent, by −η times the gradient, and then straight back towards the origin as far as the "
        "circle. The gradient is tangent by itself, because the loss does not change along a ray. Third: the losses, "
        "blue upon broad green dashes; dotted and dashed, SGD from the shortest and from the longest start.",
    )


def scene(
    walks: dict[str, Float[Tensor, "points 2"]],
    ends: list[Float[Tensor, "points 2"]],
    rate: float,
    step: int,
    limit: float,
) -> Scene:
    """Where everything that moves is after ``step`` steps; ``scene`` in the script does the same."""
    parts: Scene = {"circle": _circle(np.zeros(2), np.zeros(2), limit)}
    for i, path in enumerate(walks.values()):
        points = _place(path[: step + 1].numpy(), np.zeros(2), limit)
        parts[f"path-{i}"] = {"d": line(points)}
        parts[f"dots-{i}"] = {"d": "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)}
        parts[f"point-{i}"] = _at(points[-1], "cx", "cy")
        heights = _graph(path)
        parts[f"loss-{i}"] = {"d": line(heights)}
        parts[f"loss-point-{i}"] = _at(heights[step], "cx", "cy")
    parts |= {f"end-{i}": {"d": line(_graph(path))} for i, path in enumerate(ends)}
    x = step / MOST * SIZE
    parts["now"] = {"d": line([(x, 0), (x, HEIGHT)])}

    at, new = walks["unit norm"][[max(step - 1, 0), step]].numpy()
    moved = at - (rate if step else 0) * gradient(torch.from_numpy(at)[None])[0].numpy()
    centre, half = (at + moved) / 2, max(CLOSEST, 0.75 * float(np.linalg.norm(moved - at)))
    along = 3 * half * np.array([-at[1], at[0]])
    origin, a, b, c, *tangent = _place(
        np.stack([np.zeros(2), at, moved, new, at - along, at + along]), centre, half
    )
    left, top = _place(centre + half * np.array([-1, 1]), np.zeros(2), limit)
    side = f"{SIZE * half / limit:.1f}"
    apart = "1" if np.linalg.norm(b - a) > 36 else "0"  # else the names would lie one upon another
    out, out_new = (v * np.array([1, -1]) for v in (at, new))  # outwards on the screen, where y goes down
    return parts | {
        "window": {**_at((left, top), "x", "y"), "width": side, "height": side},
        "close-circle": _circle(np.zeros(2), centre, half),
        "radius": {"d": line([origin, a])},
        "tangent": {"d": line(tangent)},
        "gradient": {"d": _arrow(a, b)},
        "retraction": {"d": _arrow(b, c)},
        "close-point": _at(c, "cx", "cy"),
        "name-at": _beside(a, out, 14),
        "name-moved": {**_beside(b, out, 16, wide=18), "opacity": apart},
        "name-new": {**_beside(c, -out_new, 18, wide=14), "opacity": apart},
    }


def _place(points: np.ndarray, centre: np.ndarray, half: float) -> np.ndarray:
    """Points of the plane in a picture of that centre and half-width."""
    return across((points - centre) * np.array([1, -1]), half)


def _circle(point: np.ndarray, centre: np.ndarray, half: float) -> dict[str, str]:
    """The unit circle around a point."""
    return {**_at(_place(point, centre, half), "cx", "cy"), "r": f"{SIZE / 2 / half:.1f}"}


def _at(point: np.ndarray | tuple[float, float], *names: str) -> dict[str, str]:
    return {name: f"{value:.1f}" for name, value in zip(names, point, strict=True)}


def _beside(point: np.ndarray, way: np.ndarray, distance: int, wide: int = 0) -> dict[str, str]:
    """Where a word's middle goes, further off where it lies beside the point than above or below it."""
    return _at(point + (distance + wide * abs(way[0])) * way + [0, 4], "x", "y")


def _graph(path: Float[Tensor, "points 2"]) -> np.ndarray:
    """Loss (0 to 2) against step, in the picture's units."""
    heights = (2 - loss(path)[:, 0].numpy()) / 2 * HEIGHT
    return np.column_stack([np.arange(len(path)) / MOST * SIZE, heights])


def _arrow(start: np.ndarray, end: np.ndarray) -> str:
    """A line with two strokes for its head."""
    length = float(np.linalg.norm(end - start))
    x, y = (end - start) / max(length, 1e-9) * min(9.0, length / 2)
    wings = end - [x, y] + 0.5 * np.array([[-y, x], [y, -x]])
    return line([start, end]) + line([wings[0], end, wings[1]])


def _element(moving: Scene, tag: str, part: str, kind: str, text: str = "", **more: str) -> str:
    attributes = "".join(f' {name}="{value}"' for name, value in {**more, **moving[part]}.items())
    return f'<{tag} class="{kind}" data-part="{part}"{attributes}>{text}</{tag}>'


def _plane(moving: Scene, limit: float) -> str:
    """The plane of the weights. Level lines of the loss are rays, so that the shades stay while the scale changes."""
    half, turn = SIZE / 2, np.arctan2(TARGET[1], TARGET[0])
    body = ""
    for level in np.linspace(0.1, 1.9, 10):
        angles = turn + np.linspace(np.arccos(1 - level), 2 * np.pi - np.arccos(1 - level), 25)
        rim = SIZE * np.column_stack([np.cos(angles), np.sin(angles)])
        body += f'<path class="sp-shade" d="{line(_place(np.vstack([[0, 0], rim]), np.zeros(2), half))}Z"/>'
    lowest = _place(np.array([[0.0, 0.0], SIZE * TARGET]), np.zeros(2), half)
    body += f'<path class="pl-axis" d="M0 {half}H{SIZE}M{half} 0V{SIZE}"/><path class="sp-lowest" d="{line(lowest)}"/>'
    body += _element(moving, "circle", "circle", "sp-circle")
    body += _element(moving, "rect", "window", "sp-window")
    for i, r in enumerate(("6", "5", "4")):  # one upon another, each is seen
        body += _element(moving, "path", f"path-{i}", f"sp-path sp-method{i}")
        body += _element(moving, "path", f"dots-{i}", f"sp-dots sp-method{i}")
        body += _element(moving, "circle", f"point-{i}", f"sp-point sp-method{i}", r=r)
    alt = (
        "Plane of the two weights with the unit circle, shaded by the loss, which depends on the direction only. Paths of three "
        "methods from one direction to that of the lowest loss: SGD leaves outwards, unit norm stays on the circle, scaled metric turns "
        "as unit norm does and leaves outwards too. The text below the figure gives the numbers."
    )
    labels = ("first weight", "second weight")
    return picture("plane", "The weights", alt, body, labels, (-limit, limit), (-limit, limit))


def _close(moving: Scene) -> str:
    """Unit norm's last step, enlarged."""
    body = _element(moving, "circle", "close-circle", "sp-circle")
    for part in ("radius", "tangent", "gradient", "retraction"):
        body += _element(moving, "path", part, f"sp-{part}")
    body += _element(moving, "circle", "close-point", "sp-point sp-new", r="5")
    for part, text in (("at", "w"), ("moved", "w − η ∇L"), ("new", "new w")):
        body += _element(moving, "text", f"name-{part}", "sp-name", text, **{"text-anchor": "middle"})
    alt = (
        "The last step of unit norm, enlarged: from a point of the circle an arrow along the tangent line, minus the learning rate times "
        "the gradient; from its tip a second arrow straight towards the origin, which ends on the circle at the new point."
    )
    return picture("close", "Unit norm’s last step, in parts", alt, body, ("", ""), None, None)


def _losses(moving: Scene) -> str:
    """Loss against step."""
    body = _element(moving, "path", "now", "sp-now")
    for i in range(2):
        body += _element(moving, "path", f"end-{i}", f"sp-end sp-end{i} sp-method0")
    order = (2, 0, 1)  # the scaled metric's broad dashes lie below unit norm's line
    for i in order:
        body += _element(moving, "path", f"loss-{i}", f"sp-loss sp-loss{i} sp-method{i}")
    for i, r in zip(order, ("6.5", "5", "3.5"), strict=True):
        body += _element(moving, "circle", f"loss-point-{i}", f"sp-point sp-method{i}", r=r)
    alt = (
        "Loss against the number of steps. Unit norm and scaled metric have one curve, whatever the starting length; SGD's curve depends "
        "on it, between those of the shortest and the longest start. The text below the figure gives the numbers."
    )
    return picture("losses", "The loss", alt, body, ("step", "loss"), (0.0, float(MOST)), (0.0, 2.0), HEIGHT)


def _controls(rate: float, length: float, steps: int) -> str:
    """Hidden until the script takes them over, as in lib.widgets."""
    sliders = (
        slider(
            "rate", "Learning rate η", "Learning rate", (0, len(RATES) - 1), RATES.index(rate), f"{rate:g}"
        )
        + slider(
            "length",
            "Starting length",
            "Starting length of the weights",
            (0, len(LENGTHS) - 1),
            LENGTHS.index(length),
            f"{length:g}",
        )
        + slider("steps", "Steps", "Steps taken", (0, MOST), steps, str(steps))
    )
    boxes = "".join(
        f'<label style="--pl-accent:{colour}"><input type="checkbox" data-part="show-{i}" checked> {SWATCH}{method}</label>'
        for i, (method, colour) in enumerate(METHODS.items())
    )
    return (
        f'<div class="pl-controls" data-part="controls" hidden>{sliders}'
        f'<div class="pl-buttons" role="group" aria-label="Methods shown">{boxes}</div>'
        '<div class="pl-buttons"><button type="button" data-part="reset">Back to the start</button></div></div>'
    )
