"""The page of costs: fits that hold what they say, tables from made-up files, sentences where a file is missing or broken."""

from __future__ import annotations

import io
import json
import math
import os
import re
import sys

import numpy as np
import pytest
import torch

from benchmarks import growth as measuring
from lib import costs, results
from lib.cost_series import CostsError, read
from lib.costs import short
from lib.device import one_thread
from lib.ledger import CHAPTERS
from lib.power_law import LEAST, law

SIZES = (8, 32, 128, 512, 1_024, 2_048)


def times(overhead=0.01, scale=1e-4, exponent=1.5, noise=0.0, seed=0, sizes=SIZES):
    generator = np.random.Generator(np.random.Philox(key=seed))
    exact = overhead + scale * np.asarray(sizes, float) ** exponent
    return exact * np.exp(noise * generator.standard_normal(len(sizes)))


# ------------------------------------------------------------------------------------------------------------- the fit


@pytest.mark.parametrize(
    ("overhead", "scale", "exponent"), [(0.01, 1e-4, 1.5), (0, 1e-4, 1), (2, 1e-3, 2), (0, 3, 0.2)]
)
def test_a_law_without_noise_is_found(overhead, scale, exponent):
    found = law(SIZES, times(overhead, scale, exponent))
    assert found.exponent == pytest.approx(exponent, abs=1e-4)
    assert found.overhead == pytest.approx(overhead, abs=1e-3 * (overhead + scale))
    value, low, high = found.at(1e6)
    assert value == pytest.approx(overhead + scale * 1e6**exponent, rel=2e-3)
    assert low <= value <= high
    assert found.reaches(value) == pytest.approx(1e6, rel=1e-3)


@pytest.mark.parametrize("overhead", [0.05, 0.0])
def test_intervals_hold_the_truth_as_often_as_they_say(overhead):
    sets, far = 150, 1e5
    found = [law(SIZES, times(overhead, 6e-4, 1.0, 0.07, seed)) for seed in range(sets)]
    truth = overhead + 6e-4 * far
    slopes = np.mean([f.low <= 1 <= f.high for f in found])
    values = np.mean([f.at(far)[1] <= truth <= f.at(far)[2] for f in found])
    most = (
        0.985 if overhead else 1.0
    )  # on its bound an overhead of nought makes intervals wider than they need be
    assert 0.91 <= slopes <= most
    assert 0.91 <= values <= most
    assert np.mean([f.exponent for f in found]) == pytest.approx(1, abs=0.02)


def test_an_overhead_is_not_taken_for_a_small_exponent():
    y = times(1.0, 1e-2, 1.0)
    plain = np.polyfit(np.log(SIZES), np.log(y), 1)[0]
    assert plain < 0.6
    assert law(SIZES, y).exponent == pytest.approx(1, abs=1e-3)


def test_doubling_units_changes_no_exponent():
    one, other = law(SIZES, times(noise=0.05)), law(2 * np.array(SIZES), 1e3 * times(noise=0.05))
    assert (one.exponent, one.low) == pytest.approx((other.exponent, other.low), rel=1e-4)
    assert 1e3 * one.at(1e4)[2] == pytest.approx(other.at(2e4)[2], rel=1e-3)


@pytest.mark.parametrize(
    ("sizes", "values", "says"),
    [
        ((1, 2, 3, 4), (1, 2, 3, 4), "5 different sizes"),
        ((1, 2, 3, 4, 4), (1, 2, 3, 4, 5), "5 different sizes"),
        ((1, 2, 3, 4, 5), (1, 2, 3, 4, 0), "above zero"),
        ((1, 2, 3, 4, 5), (1, 2, 3, 4, math.nan), "above zero"),
        ((1, 2, 3, 4, 5), (1, 2, 3, 4), "4 values"),
    ],
)
def test_what_cannot_be_fitted_is_refused(sizes, values, says):
    with pytest.raises(ValueError, match=says):
        law(sizes, values)


def test_what_does_not_rise_is_never_reached():
    found = law(SIZES, np.full(len(SIZES), 2.0))
    assert found.reaches(1e9) > 1e9
    assert law(SIZES, times(scale=1e-9, exponent=0.1)).reaches(1.0) > 1e6


@pytest.mark.parametrize(
    ("x", "text"),
    [(0.0134, "0.013"), (4213, "4,200"), (3.14e8, "3.1 × 10⁸"), (0, "0"), (9.96, "10"), (999_999, "1.0 × 10⁶"), (0.5, "0.50"),
     (2e-7, "2.0 × 10⁻⁷"), (math.inf, "∞"), (99.7, "100"), (15, "15")],
)  # fmt: skip
def test_numbers_are_short_and_readable(x, text):
    assert short(x) == text


# -------------------------------------------------------------------------------------------------------------- files


def series(**other):
    cpu = times(noise=0.02)
    told = {
        "kernel": "population.train", "variable": "networks", "sizes": list(SIZES), "fixed": "64-16-10", "splits": True,
        "how": "yes: each on its own", "chapters": ["two-neurons"], "date": "2026-11-27T09:00:00+00:00", "others": 0.02,
        "base": [200 << 20] * 6, "peak": [(200 << 20) + (size << 14) for size in SIZES],
        "seconds": [[1.02 * x, 1.0 * x, 1.01 * x] for x in cpu], "cpu": [[x, 0.9 * x, 1.1 * x] for x in cpu],
    }  # fmt: skip
    return told | other


def exactly(seconds):
    """Times without noise."""
    return {"cpu": [[x] * 3 for x in seconds], "seconds": [[x] * 3 for x in seconds]}


def write(root, *tables, **other):
    about = {"machine": "A | B", "cores": 2, "memory": 8 << 30, "threads": 1, "system": "Linux", "python": "3.11", "torch": "2", "rounds": 3}  # fmt: skip
    (root / "data").mkdir(exist_ok=True)
    (root / "data" / "growth.toml").write_text(measuring.toml(about | other, list(tables)), encoding="utf-8")


def save(root, chapter="two-neurons", profile="quick", wall=36.0, **provenance):
    file = results.save(chapter, profile, 0, [], root=root, digest="abc", wall_seconds=wall)
    document = json.loads(file.read_text(encoding="utf-8"))
    document["provenance"] |= {"threads": 2} | provenance
    file.write_text(json.dumps(document), encoding="utf-8")


def test_without_any_file_the_page_says_what_is_missing(tmp_path):
    text = costs.costs_markdown(tmp_path)
    assert "python -m benchmarks.growth" in text
    assert f"Quick: not yet measured, of {', '.join((*CHAPTERS, *costs.WITHOUT_CLAIMS))}." in text
    assert f"Full: GPU run not yet published, of {', '.join((*CHAPTERS, *costs.WITHOUT_CLAIMS))}." in text
    assert "|" not in text
    assert "larger" not in text


def test_what_the_script_writes_is_read_back(tmp_path):
    write(tmp_path, series(), series(variable="width", chapters=[]))
    found = read(tmp_path)
    assert found.series[0].sizes == SIZES
    assert found.series[0].core_seconds == pytest.approx([x[0] for x in series()["cpu"]])
    assert found.of_chapter("two-neurons") is found.series[0]
    assert found.of_chapter("posteriors") is None
    assert found.dates == "2026-11-27"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sizes": [1, 2, 3]}, "rising sizes"),
        ({"sizes": [8, 32, 128, 512, 512, 2_048]}, "rising sizes"),
        ({"cpu": [[0.1]] * 5 + [[0.1, 0.2]]}, "as many times"),
        ({"cpu": [[0.0] * 3] * 6}, "above zero"),
        ({"peak": [1]}, "each with its numbers"),
    ],
)
def test_a_file_that_is_not_whole_says_so_and_the_way_out(tmp_path, change, says):
    write(tmp_path, series(**change))
    with pytest.raises(CostsError, match=f"{says}.*delete it and run `python -m benchmarks.growth`"):
        read(tmp_path)


def test_a_cut_file_or_one_without_a_key_says_so(tmp_path):
    write(tmp_path, series())
    file = tmp_path / "data" / "growth.toml"
    whole = file.read_text(encoding="utf-8")
    for broken in (whole[: len(whole) // 2], whole.replace("kernel =", "kernal ="), "machine = 3"):
        file.write_text(broken, encoding="utf-8")
        with pytest.raises(CostsError, match=r"growth\.toml cannot be read"):
            read(tmp_path)


# ----------------------------------------------------------------------------------------------------------- the page


def rows(text, title):
    """The cells of the table under a heading, a list a row."""
    part = text.split(f"## {title}")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if "---" not in line]


def test_chapters_show_time_memory_machine_and_date(tmp_path):
    save(tmp_path, wall=36.4, peak_bytes=512 << 20, device_name="x86", date="2026-11-20T10:00:00+00:00")
    save(tmp_path, "posteriors", wall=None, peak_bytes=None)
    save(tmp_path, "posteriors", "full", wall=60.0, device="cuda", device_name="Some GPU")
    text = costs.costs_markdown(tmp_path)
    shown = {row[0]: row[1:] for row in rows(text, "What the chapters cost")}
    assert shown["two-neurons, quick"] == ["36 s", "510 MiB", "cpu (x86, 2 threads)", "2026-11-20"]
    assert shown["posteriors, quick"][:2] == ["not recorded", "not recorded"]
    assert shown["posteriors, full"][0::2] == ["60 s", "cuda (Some GPU, 2 threads)"]
    assert "one after the other: 36 s" in text
    assert set(shown) == {"Chapter, profile", "two-neurons, quick", "posteriors, quick", "posteriors, full"}
    assert "Full: GPU run not yet published, of two-neurons, free-energy" in text


def test_growth_is_shown_with_machine_intervals_and_a_picture(tmp_path):
    write(tmp_path, series(), series(variable="width", chapters=[], splits=False))
    text = costs.costs_markdown(tmp_path)
    assert "Measured on 2026-11-27 on A \\| B (2 cores, 8 GiB)" in text
    assert "The machine was quiet: other programs used 0.02 to 0.02 cores" in text
    _, first, second = rows(text, "How the kernels grow")
    assert first[0] == "population.train, networks"
    exponent = float(first[2].split()[0])
    assert exponent == pytest.approx(1.5, abs=0.1)
    assert second[0] == "population.train, width"
    assert text.count("<figure") == 1
    assert text.count("<svg") == 2
    assert f"exponent {exponent:.2f}" in re.search(r'aria-label="([^"]*)"', text)[1]
    assert "currentColor" in text


@pytest.mark.parametrize(
    ("others", "says"),
    [((0.5, 1.5), "shared with other work"), ((0.0, 0.9), "shared for a part of it"), ((-1, -1), "does not say what else ran")],
)  # fmt: skip
def test_a_shared_machine_is_called_shared(tmp_path, others, says):
    write(tmp_path, *(series(variable=f"v{i}", others=x) for i, x in enumerate(others)))
    assert says in costs.costs_markdown(tmp_path)


@pytest.mark.parametrize(
    ("splits", "larger"), [(False, ["3.2", "32", "320"]), (True, ["10", "1,000", "100,000"])]
)
def test_a_larger_study_costs_its_power_of_the_size_or_is_repeated(tmp_path, splits, larger):
    """Independent work is never done for less than its pieces, however the fit to small sizes came out."""
    save(tmp_path, wall=1_800.0)
    save(tmp_path, "two-neurons", "full", wall=7_200.0, device="cuda")
    write(
        tmp_path,
        series(splits=splits, **exactly(times(0, 1e-4, 0.5))),
    )
    _, chapter, total = rows(costs.costs_markdown(tmp_path), "The whole study, larger")
    assert chapter[:3] == ["two-neurons", "population.train, networks", "1.0"]
    assert [cell.split(" (")[0] for cell in chapter[3:6]] == larger
    assert chapter[6] == "2.0"
    assert total[2:] == [*chapter[2:6], ""]


def test_without_a_gpu_run_gpu_hours_are_not_measured(tmp_path):
    save(tmp_path)
    save(tmp_path, "two-neurons", "full", wall=7_200.0)  # on a CPU
    write(tmp_path, series())
    assert rows(costs.costs_markdown(tmp_path), "The whole study, larger")[1][6] == "not measured"


def test_a_kernel_without_its_chapter_gives_no_study(tmp_path):
    write(tmp_path, series(chapters=[]))
    assert "nothing can be said yet" in costs.costs_markdown(tmp_path)


def test_what_does_not_split_ends_where_memory_or_a_day_ends(tmp_path):
    cubic = times(0.001, 1e-8, 3.0)
    alike = {**exactly(cubic), "splits": False}
    square = [(200 << 20) + 64 * size**2 for size in SIZES]
    write(
        tmp_path,
        series(variable="split"),
        series(variable="time", peak=[200 << 20] * 6, **alike),
        series(variable="memory", peak=square, **alike),
        series(variable="unknown", peak=[0] * 6, **alike),
    )
    _, split, time, memory, unknown = rows(costs.costs_markdown(tmp_path), "One kernel, larger")
    assert (split[4], split[6]) == ("230 MiB", "nowhere: more workers")
    day, full = (86_400 / 1e-8) ** (1 / 3), ((8 << 30) - (200 << 20)) / 64
    assert time[6] == f"{short(day)} (time, a day on one core)"
    assert time[4] == "200 MiB, 200 MiB, 200 MiB"
    assert memory[6] == f"{short(math.sqrt(full))} (memory, all that this machine has)"
    assert memory[4].startswith("25 GiB, ")
    assert unknown[4] == "not recorded, not recorded, not recorded"


def test_work_that_splits_is_repeated_and_the_rest_follows_its_law(tmp_path):
    root = exactly(times(0, 1e-2, 0.5))  # printed in six digits
    write(tmp_path, series(splits=True, **root), series(splits=False, variable="width", **root))
    split, whole = read(tmp_path).series
    largest = 1e-2 * SIZES[-1] ** 0.5
    for times_over, power in ((1, 1.0), (100, 10.0)):
        assert split.core_seconds_at(times_over)[0] == pytest.approx(times_over * largest, rel=1e-4)
        assert whole.core_seconds_at(times_over)[0] == pytest.approx(power * largest, rel=1e-4)
    assert split.core_seconds_at(0.25)[0] == pytest.approx(largest / 2, rel=1e-4)


def test_memory_that_does_not_tell_its_exponent_is_not_extrapolated(tmp_path):
    ragged = [int(x * 2**20) for x in (200, 201, 260, 203, 330, 280)]
    write(tmp_path, series(splits=False, peak=ragged))
    text = costs.costs_markdown(tmp_path)
    assert rows(text, "One kernel, larger")[1][4] == "not determined"
    assert rows(text, "How the kernels grow")[1][-1] == "not determined"
    assert "time, a day" in rows(text, "One kernel, larger")[1][6]


# --------------------------------------------------------------------------------------------------------- the script


def test_every_series_has_sizes_that_can_be_fitted_and_an_owner_that_exists():
    names = [one.name for one in measuring.SERIES]
    assert len(set(names)) == len(names)
    assert sorted(chapter for one in measuring.SERIES for chapter in one.chapters) == sorted(CHAPTERS)
    for one in measuring.SERIES:
        assert len(one.sizes) >= LEAST
        assert list(one.sizes) == sorted(set(one.sizes))
        assert one.splits == one.how.startswith("yes")


@pytest.mark.parametrize(
    "one", {one.kernel: one for one in measuring.SERIES}.values(), ids=lambda one: one.name
)
def test_every_kernel_does_its_smallest_work(one):
    with one_thread():  # as the script does
        one.prepare(one.sizes[0])()


@pytest.fixture
def tiny(monkeypatch):
    """Two series whose measuring is made up: its calls are counted, and the second one can be made to fail."""
    told = {"calls": [], "fails": set()}

    def measure(one, rounds):
        told["calls"].append(one.name)
        if one.name in told["fails"]:
            raise measuring.Failed(f"{one.name}: no memory")
        return series(kernel=one.kernel, variable=one.variable)

    monkeypatch.setattr(measuring, "measure", measure)
    chosen = [measuring.Series("k", v, SIZES, "", True, "yes", lambda size: None) for v in ("a", "b")]
    return chosen, told


def test_a_stopped_run_goes_on_and_a_finished_one_begins_anew(tmp_path, tiny, capsys):
    chosen, told = tiny
    kept, target = tmp_path / "kept.json", tmp_path / "data" / "growth.toml"
    told["fails"] = {"k, b"}
    assert measuring.run(chosen, 3, kept, target) == 1
    assert not target.exists()
    assert "FAILED: k, b: no memory" in capsys.readouterr().err
    told["fails"] = set()
    assert measuring.run(chosen, 3, kept, target) == 0
    assert told["calls"] == ["k, a", "k, b", "k, b"]
    assert [one.name for one in read(tmp_path).series] == ["k, a", "k, b"]
    assert not kept.exists()
    measuring.run(chosen, 3, kept, target)
    assert told["calls"][3:] == ["k, a", "k, b"]


def test_what_was_kept_of_another_plan_is_not_used(tmp_path, tiny):
    chosen, told = tiny
    kept = tmp_path / "kept.json"
    told["fails"] = {"k, b"}
    measuring.run(chosen, 3, kept, tmp_path / "data" / "growth.toml")
    measuring.run(chosen, 5, kept, tmp_path / "data" / "growth.toml")
    assert told["calls"] == ["k, a", "k, b", "k, a", "k, b"]


def test_a_child_says_its_times_and_its_peak_a_line_a_round(monkeypatch, capsys):
    done = []

    def prepare(size):
        return lambda: done.append(torch.ones(size).sum())

    one = measuring.Series("k", "v", (1, 2), "", True, "yes", prepare)
    monkeypatch.setattr(sys, "stdin", io.StringIO("go\ngo\n"))
    monkeypatch.setattr(measuring, "LEAST", 0.0)
    threads = torch.get_num_threads()
    try:
        measuring.serve(one, 2)
    finally:
        torch.set_num_threads(threads)
    first, *rounds = map(json.loads, capsys.readouterr().out.splitlines())
    assert set(first) == {"base"}
    assert [set(each) for each in rounds] == [{"wall", "cpu", "spent", "peak"}] * 2
    assert [float(x) for x in done] == [1, 2, 2]
    assert all(each["wall"] > 0 for each in rounds)


posix = pytest.mark.skipif(os.name == "nt", reason="a script as an interpreter")
CHILD = """#!{python}
import json, sys
size = int(sys.argv[-1])
print(json.dumps({{"base": 100}}), flush=True)
for round, _ in enumerate(sys.stdin):
    print(json.dumps({{"wall": size + round / 10, "cpu": size, "spent": 0.0, "peak": 100 + size + round}}), flush=True)
"""


@posix
def test_sizes_take_turns_and_a_peak_is_the_largest_of_the_rounds(tmp_path, monkeypatch):
    child = tmp_path / "child"
    child.write_text(CHILD.format(python=sys.executable))
    child.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(child))
    found = measuring.measure(measuring.Series("k", "v", (8, 32), "fixed", True, "yes", abs), rounds=3)
    assert found["base"] == [100, 100]
    assert found["peak"] == [110, 134]
    assert found["seconds"] == [[8, 8.1, 8.2], [32, 32.1, 32.2]]
    assert found["cpu"] == [[8, 8, 8], [32, 32, 32]]
    assert found["others"] >= 0
    assert "prepare" not in found


@posix
def test_a_child_that_dies_is_named_with_its_last_words(tmp_path, monkeypatch):
    child = tmp_path / "child"
    child.write_text("#!/bin/sh\necho 'no memory left' >&2\nexit 3\n")
    child.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(child))
    with pytest.raises(measuring.Failed, match="k, v, size 8: no memory left"):
        measuring.measure(measuring.Series("k", "v", (8, 32), "fixed", True, "yes", abs), rounds=1)


def test_a_name_that_no_series_has_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["growth", "--only", "nothing like it"])
    assert measuring.main() == 2
    assert "population.train, networks" in capsys.readouterr().err
