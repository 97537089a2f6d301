"""The page is one file that fetches nothing, tells everything, and says of each missing part why it is missing."""

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from report_cases import digits, models_of, network

from lib.report import data_source
from lib.report.advice import table
from lib.report.data_source import DataProblem, Source
from lib.report.everything import report
from lib.report.page import page, write
from lib.report.sentences import say

VOID = {"meta", "br", "path", "use", "rect", "image", "line", "circle", "stop"}


class Reader(HTMLParser):
    """Checks that tags close, and collects what could be fetched, figures' words, ids and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.fetched, self.pictures, self.ids, self.words = [], [], [], [], []
        self.feed(html)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.seen(tag, dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen(tag, dict(attrs))

    def seen(self, tag, own):
        for name in ("src", "href", "xlink:href", "action", "poster", "data"):
            if own.get(name) and not own[name].startswith(("#", "data:")):
                self.fetched.append(own[name])
        if tag in ("script", "link", "iframe", "object", "base"):
            self.fetched.append(tag)
        if tag in ("figure", "img"):
            self.pictures.append("")
        if tag == "div" and own.get("role") == "img":
            self.pictures[-1] = own.get("aria-label", "")
        if "id" in own:
            self.ids.append(own["id"])

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            assert "@import" not in data
            assert "url(" not in data
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def source_of(halves: data_source.Halves) -> Source:
    inputs = torch.cat([halves.calibration.inputs, halves.scoring.inputs])
    targets = torch.cat([halves.calibration.targets, halves.scoring.targets])
    return Source(halves.task, targets, lambda rows: inputs[rows])


@pytest.fixture(scope="module")
def whole():
    models = models_of(*(network(i) for i in range(4)))
    return report(models, source_of(digits(400)), seed=1)


def test_the_page_is_one_file_in_which_every_picture_has_words(whole, tmp_path):
    html = page(whole, how="python -m lib.report <here> & there")
    read = Reader(html)
    assert not read.fetched
    assert len(read.pictures) == 4
    assert all(len(words) > 40 for words in read.pictures)
    assert len(read.ids) == len(set(read.ids))
    assert "python -m lib.report <here> & there" in read.text
    assert 'name="viewport"' in html
    assert "prefers-color-scheme: dark" in html
    assert html.count('class="scroll"') == html.count("<table>")
    assert write(tmp_path / "a" / "report.html", html).read_text(encoding="utf-8") == html
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["report.html"]
    assert page(whole, how="python -m lib.report <here> & there") == html


def test_every_finding_is_on_the_page(whole):
    assert not whole.problems
    text = Reader(page(whole)).text
    parts = (whole.halves, whole.plan, whole.structure, whole.mass, whole.alignment, whole.barriers, whole.merging, whole.ensemble)  # fmt: skip
    for part in parts:
        for sentence in say(part):
            assert " ".join(sentence.split()) in text
    for step in whole.advice:
        assert step.action in text
    assert "400 examples were used" in text


def test_names_of_files_are_no_markup():
    models = models_of(network(0), network(1))
    odd = type(models)(models.net, models.params, ("<b>bold</b>.pt", "b&c.pt"))
    html = page(report(odd))
    assert "<b>bold" not in html
    assert "<b>bold</b>.pt" in Reader(html).text


def test_without_data_what_needs_none_is_reported():
    found = report(models_of(network(0), network(1), network(2)))
    assert found.structure.symmetries is not None
    assert found.mass is not None
    assert len(found.alignment.pairs) == 3
    assert found.barriers is found.merging is found.ensemble is None
    assert "no data were given" in found.problems["data"]
    text = Reader(page(found)).text
    assert "Not measured: it needs examples." in text
    assert "Give data" in text


@pytest.mark.parametrize("kind", ["unread", "shape", "labels", "nan"])
def test_with_bad_data_what_needs_none_is_reported(kind):
    models = models_of(network(0), network(1))
    x, y = torch.rand(20, 64), torch.arange(20) % 10
    bad = {
        "unread": DataProblem("data.npz is nowhere."),
        "shape": Source("classification", y, lambda rows: x[rows, :7]),
        "labels": Source("classification", y + 5, lambda rows: x[rows]),
        "nan": Source("classification", y, lambda rows: x[rows] * torch.nan),
    }[kind]
    said = {
        "unread": "nowhere",
        "shape": "refuses inputs of shape (7,); its first layer, '0' (Linear), takes 64 features",
        "labels": "labels run from 5 to 14, but the network has 10 outputs",
        "nan": "the inputs of 20 of 20 examples are NaN",
    }[kind]
    found = report(models, bad)
    assert said in found.problems["data"]
    assert found.structure.symmetries is not None
    assert found.mass is not None
    assert found.alignment is not None
    assert found.ensemble is None
    assert said in Reader(page(found)).text


class Attention(torch.nn.Module):
    """An architecture whose symmetries are not found."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        self.last = torch.nn.Linear(64, 10)

    def forward(self, x):
        y = x.view(-1, 8, 8)
        return self.last(self.inner(y, y, y, need_weights=False)[0].flatten(1))


def test_without_symmetries_the_rest_goes_on():
    states = []
    for i in range(3):
        torch.manual_seed(i)
        states.append(Attention().state_dict())
    found = report(models_of(*states, net=Attention()), source_of(digits(60)))
    assert found.structure.diagnosis is None
    assert found.structure.why_not
    assert found.mass is found.alignment is None
    assert list(found.barriers.kinds) == ["as they are"]
    assert found.barriers.parts is None
    assert found.merging.chosen == "plain mean"
    assert found.ensemble is not None
    text = Reader(page(found)).text
    assert "could not be found" in text
    assert found.structure.why_not[:60] in text


def test_one_network_has_no_pairs_and_the_page_says_so():
    found = report(models_of(network(0)), source_of(digits(60)))
    assert found.mass is not None
    assert found.ensemble is not None
    assert not found.verdict
    text = Reader(page(found)).text
    assert "Not measured: it needs two networks." in text
    assert "One network has no pair" in text
    assert "Add networks" in text


def test_networks_that_overflow_are_named():
    broken = {k: v * 1e30 for k, v in network(0).items()}
    found = report(models_of(network(1), broken), source_of(digits(60)))
    assert "1.pt put out NaN or infinite numbers" in found.problems["predictions"]
    assert found.mass is not None
    assert "1.pt put out NaN" in Reader(page(found)).text


def test_regression_has_squared_errors_and_no_calibration():
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(300, 3, generator=draws)
    y = x.sum(1) + 0.1 * torch.randn(300, generator=draws)
    from lib.networks import perceptron
    from lib.params import member
    from lib.population import Recipe, train

    net = perceptron((3, 12, 1))
    recipe = Recipe(lr=0.05, batch_size=50, epochs=15, loss="mse")
    params = train(net, x[:100], y[:100, None], recipe, members=4, seed=0).params
    found = report(models_of(*(member(params, i) for i in range(4)), net=net), Source("regression", y[100:], lambda rows: x[100:][rows]))  # fmt: skip
    assert not found.problems
    own = torch.stack([net_of(net, member(params, i))(found.halves.scoring.inputs) for i in range(4)])
    squares = (own[..., 0] - found.halves.scoring.targets).square().mean(1)
    assert torch.allclose(found.ensemble.alone, squares.double(), rtol=1e-4)
    assert list(found.ensemble.scores) == ["mean squared error"]
    assert found.ensemble.scores["mean squared error"]["ensemble"].value <= float(squares.mean())
    lines = found.barriers.kinds["as they are"]
    assert torch.allclose(lines.error, lines.loss.sqrt())
    assert found.merging.gap("plain mean").value == pytest.approx(
        float(found.merging.error["plain mean"].mean() / squares.mean()) - 1, rel=1e-4
    )
    text = Reader(page(found)).text
    assert "% of the squared error" in text
    assert "ECE" not in text


def net_of(net, params):
    import copy

    own = copy.deepcopy(net)
    own.load_state_dict(params)
    return own.requires_grad_(False)


def test_a_finding_shows_itself_in_a_notebook(whole):
    found = whole.merging
    assert str(found).splitlines() == list(say(found))
    assert len(repr(found)) < 100
    assert "can" in found._repr_markdown_()
    assert found.figure().alt in page(whole)
    assert whole.halves.figure() is None
    assert [row[0] for row in table(whole.advice).rows] == [step.action for step in whole.advice]


def test_there_are_no_words_for_strangers():
    with pytest.raises(TypeError, match="no words for a int"):
        say(3)


def test_the_report_is_light_to_import():
    code = "import lib.report.__main__, sys; print([m for m in ('torchvision', 'matplotlib', 'scipy', 'PIL') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip() == "[]", done.stderr
