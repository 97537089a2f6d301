"""Result files: whole or not at all, plain numbers, checked on reading; and the table that sets runs side by side."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from lib import claims, results
from lib.claims import Measurement
from lib.results import ResultsError


def verdicts(profile="quick", value=0.5):
    """Verdicts on P1-C2 (confirmed at 0.5) and P1-C1 (nothing measured), from made-up measurements."""
    n = 20_000
    cells = [f"draw {draw}, loss {loss}" for draw in range(3) for loss in (0.01, 0.05)]
    made_up = [Measurement("area_halved", c, value, value - 0.05, value + 0.05, n, 1) for c in cells]
    made_up += [Measurement("mode_orbits", c, 0.0, 0.0, 0.0, n, 1) for c in cells]
    made_up += [Measurement("area_after_scaling", c, 0.7, -math.inf, 0.8, n, 1) for c in cells]
    return [claims.judge("P1-C2", profile, made_up), claims.judge("P1-C1", profile)]


def save(root, profile="quick", digest="abc", value=0.5, **more):
    return results.save(
        "two-neurons", profile, 0, verdicts(profile, value), root=root, digest=digest, wall_seconds=2, **more
    )


def test_what_is_saved_is_read_back_with_its_provenance(tmp_path):
    file = save(tmp_path, tables={"kept": {"draw 0": [1, 2.5, None]}})
    assert file == tmp_path / "_build/results/quick/two-neurons.json"
    read = results.load("two-neurons", "quick", tmp_path)
    assert (read["chapter"], read["profile"], read["seed"]) == ("two-neurons", "quick", 0)
    assert read["tables"] == {"kept": {"draw 0": [1, 2.5, None]}}
    first, second = read["claims"]
    assert (first["id"], first["verdict"], first["value"]) == ("P1-C2", "confirmed", 0.5)
    assert first["interval"] == pytest.approx([0.45, 0.55])
    assert first["sentence"].startswith("P1-C2 is **confirmed** in the quick profile")
    assert (second["verdict"], second["value"], second["interval"]) == ("unresolved", None, [None, None])
    provenance = read["provenance"]
    assert provenance["torch"] == torch.__version__
    assert provenance["digest"] == "abc"
    assert provenance["device"] == "cpu"
    assert provenance["wall_seconds"] == 2
    assert provenance["date"].startswith("20")


def test_full_results_lie_where_they_are_published(tmp_path):
    assert save(tmp_path, "full") == tmp_path / "data/results/full/two-neurons.json"


def test_a_file_holds_plain_json_whatever_it_was_given(tmp_path):
    tables = {
        "tensor": torch.tensor([1.0, math.nan]),
        "array": np.array([[1, 2]]),
        "numbers": (np.float32(0.5), np.int64(3), True, math.inf, range(2)),
        "names": {1: "one"},
    }
    file = save(tmp_path, tables=tables)
    text = file.read_text(encoding="utf-8")
    assert not {"NaN", "Infinity"} & set(text.replace(",", " ").split())
    assert json.loads(text)["tables"] == {
        "tensor": [1.0, None],
        "array": [[1, 2]],
        "numbers": [0.5, 3, True, None, [0, 1]],
        "names": {"1": "one"},
    }


def test_a_published_file_names_no_folder_of_this_machine(tmp_path):
    text = save(tmp_path, "full").read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    assert str(Path.home()) not in text
    assert str(results.ROOT) not in text


def test_a_failed_write_leaves_the_old_file_and_no_scraps(tmp_path, monkeypatch):
    file = save(tmp_path)
    before = file.read_text(encoding="utf-8")

    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr("lib.results.os.replace", fails)
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path, value=0.9)
    assert file.read_text(encoding="utf-8") == before
    assert [path.name for path in file.parent.iterdir()] == ["two-neurons.json"]


def test_what_json_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="not set"):
        save(tmp_path, tables={"x": {1, 2}})
    with pytest.raises(ResultsError, match="judged in profile quick, not in full"):
        results.save("two-neurons", "full", 0, verdicts("quick"), root=tmp_path)
    with pytest.raises(ResultsError, match="P1-C2 stands in it twice"):
        results.save("two-neurons", "quick", 0, [verdicts()[0]] * 2, root=tmp_path)
    assert not list(tmp_path.rglob("*.json"))


def test_no_file_is_no_result_and_an_unknown_profile_an_error(tmp_path):
    assert results.load("two-neurons", "quick", tmp_path) is None
    with pytest.raises(KeyError, match="no profile 'large'"):
        results.load("two-neurons", "large", tmp_path)


def edited(change):
    def edit(text):
        document = json.loads(text)
        change(document)
        return json.dumps(document)

    return edit


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda text: text[: len(text) // 2], "is cut or is not JSON"),
        (lambda text: "", "is cut or is not JSON"),
        (lambda text: "[]", "is not a table"),
        (edited(lambda d: d.pop("claims")), "lacks 'claims'"),
        (edited(lambda d: d.update(seed="0")), "'seed' is of the wrong kind"),
        (edited(lambda d: d.update(chapter="posteriors")), "but says posteriors in quick"),
        (edited(lambda d: d["provenance"].pop("digest")), "provenance lacks digest"),
        (edited(lambda d: d["claims"][0].update(verdict="proven")), "verdict 'proven', which is none"),
        (edited(lambda d: d["claims"][0].update(interval=[1])), "interval of P1-C2 is not two numbers"),
        (
            edited(lambda d: d["claims"][0]["measurements"][0].pop("low")),
            "measurements of P1-C2 are not whole",
        ),
        (edited(lambda d: d["claims"][0].pop("note")), "claim 0 lacks 'note'"),
    ],
)
def test_a_bad_file_says_what_is_wrong_and_what_to_do(tmp_path, edit, sentence):
    file = save(tmp_path)
    file.write_text(edit(file.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(ResultsError, match=sentence) as error:
        results.load("two-neurons", "quick", tmp_path)
    assert "_build/results/quick/two-neurons.json" in str(error.value)
    assert "`python -m lib.run two-neurons --profile quick`" in str(error.value)


def test_recorded_measurements_can_be_judged_again_under_a_changed_rule(tmp_path, monkeypatch):
    save(tmp_path)
    read = results.load("two-neurons", "quick", tmp_path)
    again = results.judged_again(read)
    assert again["P1-C2"] == verdicts()[0]  # infinite ends included
    assert again["P1-C1"].verdict == "unresolved"
    stricter = claims.ledger() | {"P1-C2": claims.ledger()["P1-C1"]}
    monkeypatch.setattr("lib.claims._ledger", lambda: stricter)
    assert results.judged_again(read)["P1-C2"].verdict == "unresolved"


# ------------------------------------------------------------------------------------- paper, this run, GPU run


def rows(table):
    return {row[0]: row[1:] for row in table.rows}


def test_the_comparison_says_when_no_gpu_run_is_published(tmp_path):
    found = rows(results.comparison(["P1-C1", "P1-C2", "P1-C4"], verdicts(), root=tmp_path))
    assert (
        found["P1-C2"][1]
        == "✓ confirmed: 80 % highest-density area, permutations removed / kept = 0.5 (0.45 to 0.55)"
    )
    assert found["P1-C1"][1] == "? unresolved"
    assert found["P1-C4"][1] == "not yet measured"
    assert {row[2] for row in found.values()} == {"GPU run not yet published"}
    assert found["P1-C2"][0].endswith("half the modes [verified]")


def test_a_published_run_is_stamped_stale_where_code_or_sizes_have_changed(tmp_path):
    save(tmp_path, "full", digest="abc", value=0.8)
    save(tmp_path)
    this_run = results.load("two-neurons", "quick", tmp_path)
    fresh = rows(results.comparison(["P1-C2", "P1-C4"], this_run, full_digest="abc", root=tmp_path))
    stale = rows(results.comparison(["P1-C2"], this_run, full_digest="abd", root=tmp_path))
    text = "✗ not confirmed: 80 % highest-density area, permutations removed / kept = 0.8 (0.75 to 0.85)"
    assert fresh["P1-C2"][2] == text
    assert fresh["P1-C4"][2] == "not yet measured"
    assert stale["P1-C2"][2] == f"{text} (STALE: made with other code or sizes)"


def test_the_footer_tells_where_the_numbers_come_from(tmp_path):
    assert "not yet measured" in results.provenance("two-neurons", "quick", tmp_path).text
    save(tmp_path)
    footer = results.provenance("two-neurons", "quick", tmp_path).text
    for part in ("in 2 s", "profile quick, seed 0", "on cpu (", f"torch {torch.__version__}", "digest abc"):
        assert part in footer


def test_where_the_notes_give_no_figure_none_is_printed(tmp_path):
    found = rows(results.comparison(["P4-C4", "P3-C2"], [], root=tmp_path))
    assert found["P4-C4"][0] == "none available"
    assert found["P3-C2"][0].endswith("[recalled]")


def test_the_table_is_html_that_scrolls_by_keyboard_and_escapes_its_text(tmp_path):
    html = results.comparison(["P1-C2"], verdicts(), root=tmp_path)._repr_html_()
    assert '<div class="scroll" role="region" tabindex="0" aria-label="Paper, this run' in html
    assert '<th scope="row">P1-C2</th>' in html
    table = results.Table(("a",), [("<b> & c",)])
    assert "&lt;b&gt; &amp; c" in table.html()
