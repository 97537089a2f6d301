"""A figure to play with: the reader moves a two-neuron network along its orbit and sees its function stay still.

The drawing is made here, so that it means something without JavaScript and on paper; the script in ``lib/assets``
then moves the same lines. Nothing is fetched; the figure works in a notebook, on the site and from a file.
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
COLOURS = ("#316499", "#e25714")  # blue and orange of lib.plots


@dataclass(frozen=True)
class Player:
    """HTML that a notebook and the site display."""

    page: str

    def _repr_html_(self) -> str:
        return self.page

    def __repr__(self) -> str:
        return "Interactive figure: two neurons on their orbit (open the page to play with it)"


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
    spec_text = json.dumps(spec)
    name = "orbit-" + hashlib.sha256(spec_text.encode()).hexdigest()[:8]
    css = (ASSETS / "orbit_player.css").read_text(encoding="utf-8")
    script = (ASSETS / "orbit_player.js").read_text(encoding="utf-8").rstrip()
    start = f"document.currentScript?.closest?.('.orbit-player') ?? document.getElementById('{name}')"
    return Player(
        f'<figure class="orbit-player" id="{name}"><style>{css}</style>'
        f'<div class="op-plots">{_plane(spec)}{_slice(spec, parts, output)}</div>'
        f"{_controls()}{_table(units)}"
        "<noscript><p>This picture moves where JavaScript runs; here it shows the network as trained. Multiply a "
        "unit's incoming weights and bias by any positive number and divide its outgoing weight by it: the point "
        "slides along its line, the graph on the right does not move. Swap the two units: the point jumps to the "
        "hollow one.</p></noscript>"
        "<figcaption>One trained network. Left: its two output weights; the lines show where scaling unit A (blue) or "
        "unit B (orange) takes the point, the dotted ones are their mirror images across the diagonal. Right: the "
        "network's output along the line through both clouds of data (black or white), the sum of both units' "
        "contributions (dashed, dotted) and the output bias.</figcaption>"
        f"<script>{script}({start}, {spec_text});</script></figure>"
    )


def _line(points: np.ndarray) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _picture(
    title: str, alt: str, body: str, labels: tuple[str, str], reach: float, heights: tuple[float, float]
) -> str:
    """One square picture: title, frame, axis labels, and a body clipped to the frame."""
    ends = [(0, SIZE + 15, "start", -reach), (SIZE, SIZE + 15, "end", reach)]
    ends += [(-5, SIZE, "end", heights[0]), (-5, 11, "end", heights[1])]
    ticks = "".join(
        f'<text x="{x}" y="{y}" text-anchor="{anchor}">{value:.0f}</text>'.replace(">-", ">−")
        for x, y, anchor, value in ends
    )
    return (
        f'<div class="op-plot"><p>{title}</p>'
        f'<svg viewBox="-32 -4 {SIZE + 38} {SIZE + 30}" role="img" aria-label="{html.escape(alt)}">'
        f'<svg x="0" y="0" width="{SIZE}" height="{SIZE}" viewBox="0 0 {SIZE} {SIZE}">{body}</svg>'
        f'<rect class="op-frame" width="{SIZE}" height="{SIZE}"/>'
        f'{ticks}<text x="{SIZE / 2}" y="{SIZE + 20}" text-anchor="middle">{labels[0]}</text>'
        f'<text transform="translate(-12 {SIZE / 2}) rotate(-90)" text-anchor="middle">{labels[1]}</text></svg></div>'
    )


def _plane(spec: dict[str, Any]) -> str:
    """The plane of the two output weights, at the trained network."""
    at, half = spec["plane"], SIZE / 2
    x, y = (unit["outgoing"] for unit in spec["units"])

    def across(v: float) -> float:
        return (v / at + 1) * half

    def ray(w: float, other: float, first: bool) -> str:
        end = -at if w < 0 else at
        ends = [(0.0, other), (end, other)] if first else [(other, 0.0), (other, end)]
        return _line(np.array([(across(a), SIZE - across(b)) for a, b in ends]))

    body = f'<path class="op-axis" d="M0 {half}H{SIZE}M{half} 0V{SIZE}"/><path class="op-diagonal" d="M0 {SIZE}L{SIZE} 0"/>'
    for u, (w, other) in enumerate([(x, y), (y, x)]):
        body += f'<path class="op-path op-path{u}" data-part="path-{u}" d="{ray(w, other, u == 0)}"/>'
        body += f'<path class="op-mirror-path op-path{u}" data-part="mirror-path-{u}" d="{ray(w, other, u != 0)}"/>'
    body += f'<circle class="op-mirror" data-part="mirror" r="6" cx="{across(y):.1f}" cy="{SIZE - across(x):.1f}"/>'
    body += (
        f'<circle class="op-point" data-part="point" r="6" cx="{across(x):.1f}" cy="{SIZE - across(y):.1f}"/>'
    )
    body += '<text x="294" y="84" text-anchor="end">mirror line</text>'
    alt = f"Plane of the two output weights; the trained network's point and its mirror image across the diagonal. Start: ({x:.2f}, {y:.2f})."
    return _picture(
        "The weights move", alt, body, ("first output weight", "second output weight"), at, (-at, at)
    )


def _slice(spec: dict[str, Any], parts: np.ndarray, output: np.ndarray) -> str:
    """The network's output along the diagonal of the inputs, with each unit's contribution."""
    low, high = spec["slice"]["range"]
    x = (np.array(spec["slice"]["t"]) / spec["slice"]["limit"] + 1) * SIZE / 2

    def graph(values: np.ndarray) -> str:
        return _line(np.column_stack([x, (high - values) / (high - low) * SIZE]))

    zero = high / (high - low) * SIZE
    body = f'<path class="op-axis" d="M0 {zero:.1f}H{SIZE}M{SIZE / 2} 0V{SIZE}"/>'
    body += f'<path class="op-trained" d="{graph(output)}"/>'
    for u in range(2):
        body += f'<path class="op-unit op-unit{u}" data-part="unit-{u}" d="{graph(parts[:, u])}"/>'
    body += f'<path class="op-function" data-part="function" d="{graph(output)}"/>'
    alt = "Graph of the network's output along the line through both clouds of data, the sum of two kinked contributions. It stays where it is."
    return _picture(
        "The function does not",
        alt,
        body,
        ("position along the diagonal", "output (logit)"),
        spec["slice"]["limit"],
        (low, high),
    )


def _controls() -> str:
    """Hidden until the script takes them over: a control that does nothing would be a lie."""
    sliders = "".join(
        f'<label class="op-slider" style="--op-accent:{colour}"><span><span class="op-swatch"></span> {name}</span>'
        f'<input type="range" min="-100" max="100" step="5" value="0" data-part="scale-{u}" '
        f'aria-label="{name}: scale of its incoming weights"><span class="op-factor" data-part="factor-{u}">× 1.00</span></label>'
        for u, (name, colour) in enumerate(zip(NAMES, COLOURS, strict=True))
    )
    return (
        f'<div class="op-controls" data-part="controls" hidden>{sliders}<div class="op-buttons">'
        '<button type="button" data-part="swap">Swap the two units</button>'
        '<button type="button" data-part="reset">Back to the trained weights</button>'
        '<label><input type="checkbox" data-part="compensate" checked> divide the outgoing weight</label></div></div>'
        '<output class="op-said" data-part="said" aria-live="polite"></output>'
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
        '<div class="op-table" tabindex="0" role="region" aria-label="The weights of the two units">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
