"""One training step to play with: the script's numbers are Python's, and the keyboard is enough. Needs no built book."""

import re

import numpy as np
import pytest

from lib.step_player import LENGTHS, METHODS, MOST, RATES, step_player, walk

from . import conftest

pytestmark = pytest.mark.browser

MOVING = (
    *(f"{kind}-{i}" for kind in ("path", "dots", "point", "loss", "loss-point") for i in range(3)),
    *("end-0", "end-1", "now", "circle", "window", "close-circle", "radius", "tangent", "gradient", "retraction"),
    *("close-point", "name-at", "name-moved", "name-new"),
)  # fmt: skip
PLACES = {"d", "cx", "cy", "r", "x", "y", "width", "height", "opacity"}


@pytest.fixture
def open_player(browser, tmp_path):
    """open_player(figure, **context options): the figure alone, from a file."""
    contexts = []

    def open_it(figure=None, **options):
        file = tmp_path / f"{len(contexts)}.html"
        file.write_text(
            '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            "<style>:root { color-scheme: light dark }</style><title>Figure</title><body>"
            f"<main><h1>Figure</h1>{(figure or step_player()).page}</main></body></html>",
            encoding="utf-8",
        )
        contexts.append(browser.new_context(**{"viewport": conftest.DESK, **options}))
        page = contexts[-1].new_page()
        page.problems = []
        page.on("request", lambda request: page.problems.append(request.url))
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.goto(file.as_uri(), wait_until="load")
        assert page.problems == [file.as_uri()]
        return page.locator("figure.step-player")

    yield open_it
    for context in contexts:
        context.close()


@pytest.fixture
def player(open_player):
    return open_player()


def part(player, name):
    return player.locator(f"[data-part='{name}']")


def place(player, name):
    """An element's numbers, attribute by attribute."""
    found = part(player, name).evaluate(
        "e => Object.fromEntries([...e.attributes].map(a => [a.name, a.value]))"
    )
    return {name: [float(v) for v in re.findall(r"-?\d+\.?\d*", found[name])] for name in PLACES & set(found)}


def said(player):
    return part(player, "said").inner_text()


def choose(player, rate, length, steps):
    for name, value in (("rate", RATES.index(rate)), ("length", LENGTHS.index(length)), ("steps", steps)):
        part(player, name).fill(str(value))


@pytest.mark.parametrize("method", METHODS)
def test_the_scripts_walks_are_pythons(player, method):
    """Every learning rate and starting length that the sliders have."""
    found = player.evaluate(
        "(e, [method, rates, lengths]) => rates.map(r => lengths.map(l => e.walk(method, r, l)))",
        [method, RATES, LENGTHS],
    )
    expected = [[walk(method, rate, length).numpy() for length in LENGTHS] for rate in RATES]
    assert np.shape(found) == (len(RATES), len(LENGTHS), MOST + 1, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "chosen",
    [
        (0.3, 2.0, 4),
        (0.1, 3.0, 10),
        (1.0, 0.3, 3),
        (3.0, 1.0, 5),
        (2.0, 0.3, 30),
        (0.01, 1.2, 0),
        (0.5, 1.0, 1),
    ],
)
def test_the_live_picture_is_the_drawn_one(player, open_player, chosen):
    still = open_player(step_player(*chosen), java_script_enabled=False)
    choose(player, *chosen)
    for name in MOVING:
        drawn = place(still, name)
        assert drawn
        assert place(player, name) == {a: pytest.approx(v, abs=0.11) for a, v in drawn.items()}, name
    ticks = [each.locator(".pl-tick").all_inner_texts() for each in (still, player)]
    assert ticks[0] == ticks[1]


def test_every_moving_part_is_compared(player):
    """Those whose place the script writes: a part added to the figure is added to MOVING."""
    shapes = player.evaluate("e => [...e.querySelectorAll('svg [data-part]')].map(part => part.dataset.part)")
    assert sorted(shapes) == sorted(MOVING)


def test_a_key_takes_a_step_and_tells_it(player):
    before, told = place(player, "path-0"), said(player)
    part(player, "steps").focus()
    player.page.keyboard.press("ArrowRight")
    assert len(place(player, "path-0")["d"]) == len(before["d"]) + 2
    assert part(player, "steps").get_attribute("aria-valuetext") == "5"
    assert said(player).startswith("After 5 steps. SGD: length 2.0")
    player.page.keyboard.press("Home")
    assert said(player).startswith(
        "After 0 steps. SGD: length 2.000, effective rate η/‖w‖² = 0.075, loss 1.643."
    )
    player.page.keyboard.press("ArrowRight")
    assert said(player).startswith("After 1 step. ")
    part(player, "reset").click()
    assert (place(player, "path-0"), said(player)) == (before, told)


def test_the_starting_length_moves_sgds_loss_and_no_others(player):
    losses = {}
    for length in (LENGTHS[0], LENGTHS[-1]):
        choose(player, 0.3, length, 10)
        losses[length] = [place(player, f"loss-{i}")["d"] for i in range(3)]
        assert losses[length][0] == place(player, f"end-{[LENGTHS[0], LENGTHS[-1]].index(length)}")["d"]
        assert "(rounding)" in said(player) or "exactly 0" in said(player)
    short, long = losses.values()
    assert short[0] != long[0]
    assert short[1] == long[1]
    assert short[2] == pytest.approx(long[2], abs=0.11)
    assert short[1] == pytest.approx(short[2], abs=0.11)


def test_a_method_can_be_put_away(player):
    part(player, "show-0").uncheck()
    assert "SGD" not in said(player)
    assert not part(player, "loss-0").is_visible()
    assert part(player, "loss-1").is_visible()
    part(player, "show-1").uncheck()
    part(player, "show-2").uncheck()
    assert "No method is shown" in said(player)
    part(player, "reset").click()
    assert part(player, "show-0").is_checked()
    assert part(player, "loss-0").is_visible()


def test_every_control_is_reached_by_tab_and_shows_it(player):
    part(player, "rate").focus()
    reached = []
    for _ in range(7):
        reached.append(player.page.evaluate("document.activeElement.dataset.part"))
        assert player.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
        player.page.keyboard.press("Tab")
    assert reached == ["rate", "length", "steps", "show-0", "show-1", "show-2", "reset"]


@pytest.mark.parametrize("colours", conftest.SCHEMES)
def test_axe_finds_nothing_in_it(open_player, axe_source, colours):
    page = open_player(color_scheme=colours).page
    page.evaluate(axe_source)
    assert page.evaluate(conftest.AXE) == []
    assert page.evaluate(conftest.WITHOUT_WORDS) == []


def test_without_javascript_the_picture_stands_and_the_controls_hide(open_player):
    still = open_player(java_script_enabled=False)
    assert still.locator("svg").first.is_visible()
    assert not part(still, "rate").is_visible()
    assert "here it shows 4 steps at a learning rate of 0.3" in still.inner_text()


def test_it_fits_a_phone(open_player):
    player = open_player(viewport=conftest.PHONE)
    box = player.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= conftest.PHONE["width"]
    assert player.page.evaluate(conftest.OVERFLOW) == []
