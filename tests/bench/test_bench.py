"""The benchmark suite itself: its arithmetic, its templates, and that it refuses figures without proof."""

from pathlib import Path

import pytest

from bench.contenders import FULL, NGINX, Proxy
from bench.lab import Lab
from bench.model import Goal, Result, Row, Sample, ratio
from bench.process import BenchError
from bench.prove import Proofs
from bench.report import section
from bench.scenarios import ALL
from bench.stats import percentile
from bench.template import render
from tests.support.servers import program

needs_nginx = pytest.mark.skipif(not all(map(program, ("nginx", "h2load", "curl"))), reason="needs nginx, h2load, curl")


def row(label: str, *rates: int) -> Row:
    return Row(label, [Sample(rate, 1.0, 0.5, 0.001, 0.002) for rate in rates])


def test_a_ratio_is_taken_within_each_round() -> None:
    # The second round was twice as slow for both; against the medians the ratio would be 2.5.
    assert ratio(row("one", 250, 100, 300), row("other", 125, 50, 100), "rate") == 2.0


def test_a_percentile_is_a_value_that_was_seen() -> None:
    times = [float(number) for number in range(1, 101)]
    assert (percentile(times, 0.5), percentile(times, 0.99), percentile([7.0], 0.99)) == (50.0, 99.0, 7.0)


def test_a_goal_is_judged_only_when_both_were_measured() -> None:
    rows = {"l7proxy": row("l7proxy", 110), "envoy": row("envoy", 100)}
    finding = Goal("l7proxy", "envoy", "rate", 1.2).judge(rows)
    assert finding is not None
    assert (finding.value, finding.met) == (1.1, False)
    assert Goal("l7proxy", "nginx", "rate", 1.2).judge(rows) is None


def test_each_scenario_has_a_name_of_its_own() -> None:
    names = [scenario.name for scenario in ALL]
    assert len(names) == len(set(names))


def test_template_blocks_follow_their_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.template.FOLDER", tmp_path)
    nested = "a {{x}}\n  # {{#on}}\nb\n  # {{^off}}\nc\n  # {{/off}}\n  # {{/on}}\n# {{^on}}\nd\n# {{/on}}\n"
    (tmp_path / "nested").write_text(nested)
    assert render("nested", {"x": 1, "on": True, "off": False}) == "a 1\nb\nc\n"
    with pytest.raises(KeyError):
        render("nested", {"on": True, "off": False})


def test_a_failed_contender_is_reported_with_its_reason() -> None:
    result = Result("h1", "HTTP/1.1")
    with result.without("l7proxy"):
        raise BenchError("the denied path: 200 instead of 403")
    assert "l7proxy failed" in "\n".join(section(result))
    assert "200 instead of 403" in "\n".join(section(result))


@needs_nginx
def test_figures_need_a_log_line_for_each_answer() -> None:
    with Lab() as lab:
        proxy: Proxy = NGINX.start(lab, FULL, "nginx")
        proofs = Proofs(proxy)
        proofs.before()
        assert "a denied path gets 403" in proofs.done
        proofs.after(requests=0, unfinished=0)
        proofs.retry_for = 0.1
        with pytest.raises(BenchError, match="2 requests were answered, 0 log lines written"):
            proofs.after(requests=2, unfinished=0)
