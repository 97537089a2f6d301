"""A figure to play with: the reader moves a two-neuron network along its orbit and sees its function stay still.

The drawing is made here, so that it means something without JavaScript and on paper; the script in ``lib/assets``
then moves the same lines. Nothing is fetched; the figure works in a notebook, on the site and from a file.
``lib.step_player`` is a second such figure, made of the same pieces: ``assemble``, ``picture``, ``slider``, ``said``.
"""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ASSETS = Path(__file__).parent / "assets"
SIZE = 300  # of each picture, in units of its viewBox
REACH = float(np.log(2.5))  # a slider goes from 1/2.5 to 2.5
NAMES = ("Unit A", "Unit B")
SWATCH = '<span class="pl-swatch"></span> '
COLOURS = ("#316499", "#e25714")  # blue and orange of lib.plots


@dataclass(frozen=True)
class Player:
    """HTML that a notebook and the site display."""

    page: str
    words: str

    def _repr_html_(self) -> str:
        return self.page

    def __repr__(self) -> str:
        return f"Interactive figure: {self.words} (open the page to play with it)"


def orbit_player(params: Mapping[str, Any], *, limit: float = 6.0) -> Player:
    """Play with one 2-2-1 ReLU network: a scale slider for each hidden unit, a button that swaps the two.

    Left, the plane of the two output weights, with the point, its paths and their mirror images; right, the network's
    output along the diagonal through the two blobs, which does not move, because (λ⁻¹ ▽ θ) r(λ ⊳ ωx) = θ r(ωx).

    Args:
        params: the four tensors of one network in the order of ``state_dict()``: weight (2, 2), bias (2,), weight
            (1, 2), bias (1,); tensors or arrays.
        limit: half-width of the inputs shown.

    Raises:
        ValueError: other shapes.

    Source: P1, scaling and permutation symmetry (Properties 3.1 to 3.3).
    """
    arrays = [np.asarray(value, dtype=float) for value in params.values()]
    shapes = [array.shape for array in arrays]
    if shapes != [(2, 2), (2,), (1, 2), (1,)]:
        raise ValueError(
            f"the tensors have shapes {shapes}, but this figure draws one 2-2-1 network: "
            "(2, 2), (2,), (1, 2), (1,); take one member of a population with lib.params.member."
        )
    w, b, theta, c = arrays
    units = [
        {"incoming": w[i].tolist(), "bias": float(b[i]), "outgoing": float(theta[0, i])} for i in range(2)
    ]
    steps = np.linspace(-limit, limit, 121)
    along = steps[:, None] * np.array([1.0, 1.0]) / np.sqrt(2)
    parts = theta[0] * np.maximum(0.0, along @ w.T + b)
    output = parts.sum(axis=1) + c[0]
    low, high = float(min(output.min(), parts.min())), float(max(output.max(), parts.max()))
    pad = 0.12 * (high - low) + 1e-9
    spec = {
        "units": units,
        "bias": float(c[0]),
        "size": SIZE,
        "reach": REACH,
        "plane": 2.6 * max(abs(float(theta[0, 0])), abs(float(theta[0, 1])), 1e-6),
        "slice": {
            "t": steps.tolist(),
            "direction": [2**-0.5, 2**-0.5],
            "limit": limit,
            "range": [low - pad, high + pad],
        },
    }
    return assemble(
        "orbit",
        spec,
        f'<div class="pl-plots">{_plane(spec)}{_slice(spec, parts, output)}</div>{_controls()}{_table(units)}',
        words="two neurons on their orbit",
        still="This picture moves where JavaScript runs; here it shows the network as trained. Multiply a "
        "unit's incoming weights and bias by any positive number and divide its outgoing weight by it: the point "
        "slides along its line, the graph on the right does not move. Swap the two units: the point jumps to the "
        "hollow one.",
        caption="One trained network. Left: its two output weights; the lines show where scaling unit A (blue) or "
        "unit B (orange) takes the point, the dotted ones are their mirror images across the diagonal. Right: the "
        "network's output along the line through both clouds of data (black or white), the sum of both units' "
        "contributions (dashed, dotted) and the output bias.",
    )


def assemble(
    kind: str, spec: Mapping[str, Any], body: str, *, words: str, still: str, caption: str
) -> Player:
    """One figure in one piece of HTML: its drawing, and the styles and script named ``kind`` on top of the shared ones.

    Args:
        kind: ``lib/assets/{kind}_player.js`` and ``.css``.
        spec: what the script knows, as JSON; ``size`` is that of the pictures.
        body: pictures and controls.
        words: what the figure is, for a reader who sees only text.
        still: said where JavaScript does not run.
        caption: below the figure.
    """
    text = json.dumps(spec)
    name = f"{kind}-" + hashlib.sha256(text.encode()).hexdigest()[:8]
    own = f"{kind}_player"
    start = f"document.currentScript?.closest?.('.{kind}-player') ?? document.getElementById('{name}')"
    return Player(
        f'<figure class="player {kind}-player" id="{name}"><style>{_asset("player.css")}{_asset(own + ".css")}</style>'
        f"{body}<noscript><p>{still}</p></noscript><figcaption>{caption}</figcaption>"
        f"<script>{_asset('player.js')}({start}, {text}, {_asset(own + '.js')});</script></figure>",
        words,
    )


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8").rstrip()


def across(value: Any, limit: float) -> Any:
    """Where ``value`` lies in a picture that shows -limit to limit."""
    return (value / limit + 1) * SIZE / 2


def line(points: Any) -> str:
    """The path through ``points`` (n, 2) in the picture's units."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def picture(
    name: str,
    title: str,
    alt: str,
    body: str,
    labels: tuple[str, str],
    widths: tuple[float, float] | None,
    heights: tuple[float, float] | None,
    height: int = SIZE,
) -> str:
    """One picture: title, frame, axis labels with the values at their ends, and a body clipped to the frame."""
    ends = []
    if widths:
        ends += [(0, height + 15, "start", widths[0]), (SIZE, height + 15, "end", widths[1])]
    if heights:
        ends += [(-5, height, "end", heights[0]), (-5, 11, "end", heights[1])]
    ticks = "".join(
        f'<text class="pl-tick" x="{x}" y="{y}" text-anchor="{anchor}">{tick(value)}</text>'
        for x, y, anchor, value in ends
    )
    return (
        f'<div class="pl-plot" data-part="{name}"><p>{title}</p>'
        f'<svg viewBox="-32 -4 {SIZE + 38} {height + 30}" role="img" aria-label="{html.escape(alt)}">'
        f'<svg x="0" y="0" width="{SIZE}" height="{height}" viewBox="0 0 {SIZE} {height}">{body}</svg>'
        f'<rect class="pl-frame" width="{SIZE}" height="{height}"/>'
        f'{ticks}<text x="{SIZE / 2}" y="{height + 20}" text-anchor="middle">{labels[0]}</text>'
        f'<text transform="translate(-12 {height / 2}) rotate(-90)" text-anchor="middle">{labels[1]}</text></svg></div>'
    )


def tick(value: float) -> str:
    """An axis's number: one digit after the point where it needs one and has room."""
    text = f"{value:.1f}".removesuffix(".0") if abs(value) < 10 else f"{value:.0f}"
    return text.replace("-", "−")


def slider(
    part: str,
    name: str,
    meaning: str,
    span: tuple[int, int],
    value: int,
    shown: str,
    *,
    step: int = 1,
    colour: str = "",
) -> str:
    """A labelled slider with its value beside it, and a spot of ``colour`` before its name."""
    style = f' style="--pl-accent:{colour}"' if colour else ""
    return (
        f'<label class="pl-slider"{style}><span>{SWATCH if colour else ""}{name}</span>'
        f'<input type="range" min="{span[0]}" max="{span[1]}" step="{step}" value="{value}" data-part="{part}" '
        f'aria-label="{meaning}"><span class="pl-value" data-part="{part}-value">{shown}</span></label>'
    )


def said() -> str:
    """Where the script tells what the picture shows."""
    return '<output class="pl-said" data-part="said" aria-live="polite"></output>'


def _plane(spec: dict[str, Any]) -> str:
    """The plane of the two output weights, at the trained network."""
    at, half = spec["plane"], SIZE / 2
    x, y = (unit["outgoing"] for unit in spec["units"])

    def ray(w: float, other: float, first: bool) -> str:
        end = -at if w < 0 else at
        ends = [(0.0, other), (end, other)] if first else [(other, 0.0), (other, end)]
        return line(np.array([(across(a, at), SIZE - across(b, at)) for a, b in ends]))

    body = f'<path class="pl-axis" d="M0 {half}H{SIZE}M{half} 0V{SIZE}"/><path class="pl-diagonal" d="M0 {SIZE}L{SIZE} 0"/>'
    for u, (w, other) in enumerate([(x, y), (y, x)]):
        body += f'<path class="pl-path pl-path{u}" data-part="path-{u}" d="{ray(w, other, u == 0)}"/>'
        body += f'<path class="pl-mirror-path pl-path{u}" data-part="mirror-path-{u}" d="{ray(w, other, u != 0)}"/>'
    body += f'<circle class="pl-mirror" data-part="mirror" r="6" cx="{across(y, at):.1f}" cy="{SIZE - across(x, at):.1f}"/>'
    body += f'<circle class="pl-point" data-part="point" r="6" cx="{across(x, at):.1f}" cy="{SIZE - across(y, at):.1f}"/>'
    body += '<text x="294" y="84" text-anchor="end">mirror line</text>'
    alt = f"Plane of the two output weights; the trained network's point and its mirror image across the diagonal. Start: ({x:.2f}, {y:.2f})."
    labels = ("first output weight", "second output weight")
    return picture("plane", "The weights move", alt, body, labels, (-at, at), (-at, at))


def _slice(spec: dict[str, Any], parts: np.ndarray, output: np.ndarray) -> str:
    """The network's output along the diagonal of the inputs, with each unit's contribution."""
    low, high = spec["slice"]["range"]
    x = across(np.array(spec["slice"]["t"]), spec["slice"]["limit"])

    def graph(values: np.ndarray) -> str:
        return line(np.column_stack([x, (high - values) / (high - low) * SIZE]))

    zero = high / (high - low) * SIZE
    body = f'<path class="pl-axis" d="M0 {zero:.1f}H{SIZE}M{SIZE / 2} 0V{SIZE}"/>'
    body += f'<path class="pl-trained" d="{graph(output)}"/>'
    for u in range(2):
        body += f'<path class="pl-unit pl-unit{u}" data-part="unit-{u}" d="{graph(parts[:, u])}"/>'
    body += f'<path class="pl-function" data-part="function" d="{graph(output)}"/>'
    alt = "Graph of the network's output along the line through both clouds of data, the sum of two kinked contributions. It stays where it is."
    labels = ("position along the diagonal", "output (logit)")
    limit = spec["slice"]["limit"]
    return picture("slice", "The function does not", alt, body, labels, (-limit, limit), (low, high))


def _controls() -> str:
    """Hidden until the script takes them over: a control that does nothing would be a lie."""
    sliders = "".join(
        slider(
            f"scale-{u}",
            name,
            f"{name}: scale of its incoming weights",
            (-100, 100),
            0,
            "× 1.00",
            step=5,
            colour=colour,
        )
        for u, (name, colour) in enumerate(zip(NAMES, COLOURS, strict=True))
    )
    return (
        f'<div class="pl-controls" data-part="controls" hidden>{sliders}<div class="pl-buttons">'
        '<button type="button" data-part="swap">Swap the two units</button>'
        '<button type="button" data-part="reset">Back to the trained weights</button>'
        '<label><input type="checkbox" data-part="compensate" checked> divide the outgoing weight</label></div></div>'
        + said()
    )


def _table(units: list[dict[str, Any]]) -> str:
    """The nine parameters but one: what the sliders do to them."""
    rows = "".join(
        f'<tr data-part="row-{u}"><th scope="row">{NAMES[u]}</th><td>{("first", "second")[u]}</td>'
        + "".join(
            f"<td>{v:.2f}</td>".replace("-", "−") for v in (*unit["incoming"], unit["bias"], unit["outgoing"])
        )
        + "</tr>"
        for u, unit in enumerate(units)
    )
    head = "".join(
        f'<th scope="col">{title}</th>'
        for title in ("unit", "place", "incoming 1", "incoming 2", "bias", "outgoing")
    )
    return (
        '<div class="pl-table" tabindex="0" role="region" aria-label="The weights of the two units">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
