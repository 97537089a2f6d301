"""The built site, served on this machine alone, and one headless browser for all tests of a run."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import threading
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest

SITE = Path(os.environ.get("BOOK_HTML", Path(__file__).parents[2] / "_build" / "html"))
SCHEMES = ("light", "dark")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run",
)  # fmt: skip
PHONE = {"width": 360, "height": 740}
DESK = {"width": 1280, "height": 800}


def all_pages() -> list[str]:
    found = (path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
    return sorted(page for page in found if not page.startswith(("_static/", "_sources/")))


def pytest_generate_tests(metafunc):
    if "page_name" in metafunc.fixturenames:
        metafunc.parametrize("page_name", all_pages() or ["index.html"])
    if "scheme" in metafunc.fixturenames:
        metafunc.parametrize("scheme", SCHEMES)


@pytest.fixture(scope="session")
def site() -> Path:
    if not (SITE / "index.html").is_file():
        pytest.skip("the site is not built: run `make book` (or `python -m lib.book build`) first")
    return SITE


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="session")
def origin(site):
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def browser():
    if CHROMIUM is None:
        pytest.skip(
            "no Chromium on this machine: install it with `apt-get install chromium` (Debian, Ubuntu)"
        )
    if find_spec("playwright") is None:
        pytest.skip("playwright is not installed: run `make env`")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@dataclass
class Visit:
    """What one load of one page showed."""

    asked: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    console: list[str] = field(default_factory=list)
    axe: dict[str, list[tuple[str, str, str]]] = field(default_factory=dict)  # scheme -> rule, selector, help
    without_words: list[str] = field(default_factory=list)
    broken_math: list[str] = field(default_factory=list)
    phone_overflow: list[str] = field(default_factory=list)


def watch(page, origin: str, visit: Visit) -> None:
    """Write down what the page asks for, what fails and what it complains about; keep it from the outside."""
    page.on("request", lambda request: visit.asked.append(request.url))
    page.on("requestfailed", lambda request: visit.failed.append(f"failed {request.url}"))
    page.on(
        "response",
        lambda answer: answer.status >= 400 and visit.failed.append(f"{answer.status} {answer.url}"),
    )
    page.on("pageerror", lambda error: visit.console.append(f"error {error}"))
    page.on(
        "console",
        lambda message: message.type in ("error", "warning") and visit.console.append(f"{message.type} {message.text}"),
    )  # fmt: skip
    page.route(
        lambda url: url.startswith(("http", "ws")) and not url.startswith(origin), lambda route: route.abort()
    )


def settled(page) -> None:
    """Wait until the formulas are set and the fonts are there."""
    page.evaluate("async () => { await window.MathJax?.startup?.promise; await document.fonts.ready; }")
    page.wait_for_load_state("networkidle")  # a request that comes late still counts


# An icon in a button is not asked for words here: axe asks the button.
WITHOUT_WORDS = """() => [...document.querySelectorAll('img, [role=img], svg, canvas, object, video')]
  .filter(e => !e.closest('[aria-hidden=true], mjx-container, button, summary'))
  .filter(e => !(e.tagName === 'IMG' && e.hasAttribute('alt') && (e.alt.trim() || e.closest('a, .logo'))))
  .filter(e => !(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.querySelector(':scope > title')))
  .filter(e => !e.parentElement.closest('[role=img][aria-label], svg[aria-label]'))
  .map(e => e.outerHTML.slice(0, 150))"""

BROKEN_MATH = r"""() => {
  const article = document.querySelector('article') ?? document.body, found = [];
  for (const e of article.querySelectorAll('mjx-merror, merror')) found.push('error: ' + e.textContent.slice(0, 80));
  for (const e of article.querySelectorAll('.math')) if (!e.querySelector('mjx-container')) found.push('not set: ' + e.textContent.slice(0, 80));
  const walker = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
  for (let n; (n = walker.nextNode());) {
    if (n.parentElement.closest('pre, code, script, style, mjx-container, noscript')) continue;
    if (/\$\$|\\\(|\\\[|\\begin\{/.test(n.data)) found.push('raw: ' + n.data.trim().slice(0, 80));
  }
  return found;
}"""

OVERFLOW = """() => {
  if (document.documentElement.scrollWidth <= innerWidth) return [];
  return [document.documentElement.scrollWidth + ' px wide: ' + [...document.querySelectorAll('body *')]
    .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && getComputedStyle(e).position !== 'fixed')
    .slice(0, 5).map(e => e.tagName + '.' + e.className).join(', ')];
}"""

AXE = """async () => (await axe.run(document, {resultTypes: ['violations']})).violations
  .flatMap(v => v.nodes.map(n => [v.id, n.target.join(' '), v.help]))"""


@pytest.fixture(scope="session")
def axe_source() -> str:
    import axe_playwright_python

    return (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def visits(browser, origin, axe_source):
    """visits(page): each page loaded once, everything observed on that one load, in light, in dark and as a phone."""
    context = browser.new_context(color_scheme="light", viewport=DESK, reduced_motion="reduce")

    @functools.cache
    def look(name: str) -> Visit:
        visit = Visit()
        page = context.new_page()
        watch(page, origin, visit)
        page.goto(f"{origin}/{name}", wait_until="load")
        settled(page)
        visit.without_words = page.evaluate(WITHOUT_WORDS)
        visit.broken_math = page.evaluate(BROKEN_MATH)
        page.set_viewport_size(PHONE)
        visit.phone_overflow = page.evaluate(OVERFLOW)
        page.set_viewport_size(DESK)
        seen = dataclasses.replace(
            visit, asked=[*visit.asked], failed=[*visit.failed], console=[*visit.console]
        )
        page.evaluate(
            axe_source
        )  # axe asks for stylesheets under addresses of its own making: no longer the page
        for scheme in SCHEMES:
            page.emulate_media(color_scheme=scheme)
            page.wait_for_function("scheme => document.documentElement.dataset.theme === scheme", arg=scheme)
            seen.axe[scheme] = [tuple(found) for found in page.evaluate(AXE)]
        page.close()
        return seen

    yield look
    context.close()


@pytest.fixture
def open_page(browser, origin):
    """open_page(name, **context options): a fresh page, closed after the test."""
    contexts = []

    def open_it(name: str, **options):
        context = browser.new_context(**{"viewport": DESK, **options})
        contexts.append(context)
        page = context.new_page()
        page.goto(name if name.startswith("file:") else f"{origin}/{name}", wait_until="load")
        return page

    yield open_it
    for context in contexts:
        context.close()
