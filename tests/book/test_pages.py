"""Every page, light and dark: asks nobody, complains of nothing, readable by all, on a phone too."""

import tomllib
from pathlib import Path

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.book]

BASELINE = tomllib.loads((Path(__file__).parent / "axe_baseline.toml").read_text(encoding="utf-8")).get(
    "leave", []
)
# Console messages that are nobody's fault here, each with its reason.
CONSOLE = {}


def test_a_page_asks_nobody_outside(visits, origin, page_name):
    asked = visits(page_name).asked
    assert [url for url in asked if not url.startswith((origin, "data:", "blob:"))] == []
    assert any(url.startswith(origin) for url in asked)


def test_everything_that_a_page_asks_for_is_there(visits, page_name):
    assert visits(page_name).failed == []


def test_the_console_is_quiet(visits, page_name):
    said = visits(page_name).console
    assert [line for line in said if not any(known in line for known in CONSOLE)] == []


def test_axe_finds_nothing(visits, page_name, scheme):
    found = visits(page_name).axe[scheme]
    left = [f for f in found if not any(e["rule"] == f[0] and e["element"] in f[1] for e in BASELINE)]
    assert left == []


def test_every_picture_has_words(visits, page_name):
    assert visits(page_name).without_words == []


def test_every_formula_is_set(visits, page_name):
    assert visits(page_name).broken_math == []


def test_a_phone_need_not_scroll_sideways(visits, page_name):
    assert visits(page_name).phone_overflow == []


@pytest.mark.parametrize("entry", BASELINE, ids=lambda entry: entry["rule"])
def test_the_baseline_is_needed(visits, site, entry):
    from .conftest import SCHEMES, all_pages

    found = (f for page in all_pages() for scheme in SCHEMES for f in visits(page).axe[scheme])
    assert any(entry["rule"] == rule and entry["element"] in element for rule, element, _ in found)
    assert entry["reason"].strip()


# The checks above must be able to fail: each is given a page with that very fault.
FAULTS = """<!doctype html><html lang="en"><title>Faults</title><body><h1>Faults</h1>
<article><p>$$x$$</p><span class="math">\\(y\\)</span><img src="/_static/none.png"><div style="width:900px">wide</div>
<script>console.error('planted')</script><script src="https://example.invalid/x.js"></script></article></body></html>"""


def test_the_checks_can_fail(browser, origin, axe_source):
    from . import conftest

    visit = conftest.Visit()
    page = browser.new_page(viewport=conftest.PHONE)
    conftest.watch(page, origin, visit)
    page.route(f"{origin}/faults.html", lambda route: route.fulfill(body=FAULTS, content_type="text/html"))
    page.goto(f"{origin}/faults.html")
    page.evaluate(axe_source)
    assert any("example.invalid" in url for url in visit.asked)
    assert any(line.startswith("404") for line in visit.failed)
    assert any("planted" in line for line in visit.console)
    assert len(page.evaluate(conftest.BROKEN_MATH)) == 3  # raw $$, raw \(, never set
    assert len(page.evaluate(conftest.WITHOUT_WORDS)) == 1
    assert page.evaluate(conftest.OVERFLOW)
    assert "image-alt" in {found[0] for found in page.evaluate(conftest.AXE)}
    page.close()
