"""Every link inside the book leads somewhere; links outside are looked at and never followed."""

from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from .conftest import SITE

pytestmark = pytest.mark.book


# sphinx-proof and sphinx-exercise give every proof, and the content of every box, the same id; nothing links to it.
REPEATED = {"proof", "proof-content", "exercise-content", "solution-content"}


class Links(HTMLParser):
    """Ids, links and sources of one page."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.sources = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if attrs.get("id"):
            self.ids.append(attrs["id"])
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])
        elif tag == "link" and attrs.get("href"):
            self.sources.append(attrs["href"])
        if attrs.get("src"):
            self.sources.append(attrs["src"])


@cache
def read(path):
    return Links(Path(path).read_text(encoding="utf-8"))


def broken(folder, page):
    """Internal links and sources of one page that lead nowhere."""
    path, found = folder / page, []
    for link in [*read(path).links, *read(path).sources]:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        anchors = target.suffix == ".html" and parts.fragment
        if not target.is_file() or (anchors and unquote(parts.fragment) not in read(target).ids):
            found.append(link)
    return found


def test_internal_links_and_anchors_resolve(site, page_name):
    assert broken(site, page_name) == []


def test_ids_are_unique(site, page_name):
    ids = read(site / page_name).ids
    assert sorted({i for i in ids if ids.count(i) > 1} - REPEATED) == []
    assert not any(urlsplit(link).fragment in REPEATED for link in read(site / page_name).links)


def test_external_links_are_well_formed_and_nothing_is_loaded_from_outside(site, page_name):
    links = read(site / page_name)
    outside = [link for link in links.links if urlsplit(link).scheme or urlsplit(link).netloc]
    for link in outside:
        parts = urlsplit(link)
        assert parts.scheme in ("http", "https", "mailto"), link
        assert parts.scheme == "mailto" or "." in parts.netloc, link
    assert [s for s in links.sources if urlsplit(s).scheme not in ("", "data") or urlsplit(s).netloc] == []


def test_the_crawl_can_fail(tmp_path):
    (tmp_path / "a.html").write_text(
        '<p id="here"></p><a href="a.html#here"></a><a href="b.html"></a><a href="#gone"></a>'
    )
    assert broken(tmp_path, "a.html") == ["b.html", "#gone"]


def test_the_pages_name_no_place_of_this_machine(site, page_name):
    text = (site / page_name).read_text(encoding="utf-8")
    assert str(SITE.resolve().parents[1]) not in text
