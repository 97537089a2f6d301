"""What a reader does with the site: searches, downloads, opens it from a folder, follows with the keyboard."""

import nbformat
import pytest

from .conftest import Visit, settled, watch

pytestmark = [pytest.mark.browser, pytest.mark.book]

CHAPTERS = ["01-two-neurons"]


def found(page, word):
    page.wait_for_function(
        "document.querySelector('#search-results .search-summary')?.textContent.length > 9"
    )
    return page.locator("#search-results ul.search li a").evaluate_all(
        "links => links.map(a => a.getAttribute('href'))"
    )


def test_search_finds_a_word(open_page):
    page = open_page("search.html?q=orbit")
    hits = found(page, "orbit")
    assert any("00-before-you-begin" in link for link in hits)
    assert any("01-two-neurons" in link for link in hits)


def test_search_finds_nothing_where_nothing_is(open_page):
    assert found(open_page("search.html?q=quokkaberg"), "quokkaberg") == []


def test_search_by_keyboard(open_page):
    page = open_page("index.html")
    page.keyboard.press("Control+k")
    page.keyboard.type("orbit")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search.html?q=orbit*")


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_download_button_gives_the_executed_notebook(open_page, chapter):
    page = open_page(f"chapters/{chapter}.html")
    page.get_by_role("button", name="Download this page").click()
    with page.expect_download() as waiting:
        page.locator(".dropdown-download-buttons a[href$='.ipynb']").click()
    notebook = nbformat.reads(waiting.value.path().read_text(encoding="utf-8"), as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert any(cell.outputs for cell in code)
    assert all(cell.execution_count for cell in code if cell.source.strip())


def test_the_site_opens_from_a_folder(browser, site):
    visit = Visit()
    page = browser.new_page()
    watch(page, site.as_uri(), visit)
    page.goto((site / "index.html").as_uri())
    settled(page)
    assert page.get_by_role("heading", level=1).first.is_visible()
    assert [url for url in visit.asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert visit.console == []
    page.goto((site / "search.html").as_uri() + "?q=orbit")
    assert any("00-before-you-begin" in link for link in found(page, "orbit"))
    page.close()


def test_the_theme_button_changes_the_scheme(open_page):
    page = open_page("index.html", color_scheme="light")
    seen = {page.evaluate("document.documentElement.dataset.theme")}
    for _ in range(3):
        page.locator(".theme-switch-button").first.click()
        seen.add(page.evaluate("document.documentElement.dataset.theme"))
    assert seen == {"light", "dark"}


def test_the_verdicts_are_on_the_front_page(open_page):
    text = open_page("index.html").locator("article").inner_text()
    assert "claims in the ledger" in text or "P1-C1" in text
