"""The figure to play with: the point moves, the function's graph does not, and the keyboard is enough."""

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.book]

PAGE = "chapters/01-two-neurons.html"


@pytest.fixture
def player(open_page):
    return open_page(PAGE).locator("figure.orbit-player").first


def part(player, name):
    return player.locator(f"[data-part='{name}']")


def point(player, name="point"):
    return tuple(float(part(player, name).get_attribute(axis)) for axis in ("cx", "cy"))


def graph(player):
    return part(player, "function").get_attribute("d")


def change(player):
    return float(player.get_attribute("data-change"))


def test_a_key_moves_the_point_and_not_the_function(player):
    before, still = point(player), graph(player)
    part(player, "scale-0").focus()
    for _ in range(6):
        player.page.keyboard.press("ArrowRight")
    assert point(player)[0] != before[0]  # the first output weight
    assert point(player)[1] == before[1]  # the second belongs to the other unit
    assert graph(player) == still
    assert change(player) < 1e-9
    assert "times 1." in part(player, "scale-0").get_attribute("aria-valuetext")
    assert "Largest change of the function" in part(player, "said").inner_text()


def test_a_swap_mirrors_the_point_and_not_the_function(player):
    before, mirror, still = point(player), point(player, "mirror"), graph(player)
    part(player, "swap").focus()
    player.page.keyboard.press("Enter")
    assert point(player) == mirror != before
    assert point(player, "mirror") == before
    assert graph(player) == still
    player.page.keyboard.press("Space")
    assert point(player) == before


def test_scaling_one_side_alone_moves_the_function(player):
    """The control without which a still graph would prove nothing."""
    still = graph(player)
    part(player, "compensate").uncheck()
    part(player, "scale-0").focus()
    player.page.keyboard.press("End")
    assert graph(player) != still
    assert change(player) > 1e-3
    part(player, "reset").click()
    assert graph(player) == still
    assert change(player) == 0.0


def test_every_control_is_reached_by_tab_and_shows_it(player):
    part(player, "scale-0").focus()
    reached = []
    for _ in range(5):
        reached.append(player.page.evaluate("document.activeElement.dataset.part"))
        outline = player.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none"
        player.page.keyboard.press("Tab")
    assert reached == ["scale-0", "scale-1", "swap", "reset", "compensate"]


def test_without_javascript_the_picture_stands_and_the_controls_hide(open_page):
    player = open_page(PAGE, java_script_enabled=False).locator("figure.orbit-player").first
    assert part(player, "function").count() == 1
    assert player.locator("svg").first.is_visible()
    assert not part(player, "swap").is_visible()
    assert "here it shows the network as trained" in player.inner_text()


def test_the_drawn_picture_is_the_live_one(open_page, player):
    still = open_page(PAGE, java_script_enabled=False).locator("figure.orbit-player").first
    assert graph(still) == graph(player)
    assert point(still) == point(player)


def test_it_fits_a_phone(open_page):
    page = open_page(PAGE, viewport={"width": 360, "height": 740})
    box = page.locator("figure.orbit-player").first.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360
