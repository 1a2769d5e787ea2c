"""The README is true: its code runs, its table is the catalogue's."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from blocks import run, world
from ncmonitor.catalogue import CATALOGUE, METRICS, Quantity

README = Path(__file__).resolve().parent.parent / "README.md"


def table(quantities: Iterable[Quantity]) -> str:
    lines = ["| name | what it says | definition | at collapse | source |", "|---|---|---|---|---|"]
    for quantity in quantities:
        target = "" if quantity.collapse is None else f"{quantity.collapse:g}"
        texts = (quantity.meaning, quantity.definition, target, quantity.source)
        cells = [f"`{quantity.name}`", *(text.replace("|", "\\|") for text in texts)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


#: The few that lead; the catalogue of the docs has all.
FRONT = (
    "nc1",
    "nc2_equinorm_means",
    "nc2_equiangular_std_means",
    "nc2_max_angle_means",
    "nc2_etf_means",
    "nc3_self_duality",
    "nc4_disagreement",
    "sk_breaking_means",
    "w_mean_ratio",
    "error",
    "tpt_start_exact",
    "wd_time",
)


def test_the_table_of_metrics_is_the_catalogue_s() -> None:
    text = README.read_text(encoding="utf-8")
    found = re.search(r"<!-- metrics:.*?-->\n(.*?)\n<!-- /metrics -->", text, re.S)
    expected = table(CATALOGUE[name] for name in FRONT)
    assert [m[1] for m in [found] if m] == [expected], f"the README should have:\n{expected}"


def test_it_counts_the_metrics_as_the_catalogue_does() -> None:
    default = sum(quantity.default for quantity in METRICS)
    regression = sum(quantity.needs == "targets" for quantity in METRICS)
    others = len(METRICS) - default - regression
    words = f"{default} by default, {others} by name or group, {regression} for regression"
    assert words in README.read_text(encoding="utf-8"), f"README should say: {words}"


@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_every_python_block_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run(README, world(monkeypatch), capsys)


def test_every_command_it_names_exists() -> None:
    from ncmonitor.cli import _COMMANDS, main

    blocks = "".join(re.findall(r"```bash\n(.*?)```", README.read_text(encoding="utf-8"), re.S))
    words = set(re.findall(r"^ncmonitor (\w+)", blocks, re.M))
    assert words == set(_COMMANDS)
    for word in words:
        with pytest.raises(SystemExit) as done:
            main([word, "--help"])
        assert done.value.code == 0
