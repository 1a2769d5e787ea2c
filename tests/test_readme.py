"""The README is true: its code runs, its table is the catalogue's."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from ncmonitor.catalogue import FIT, METRICS, PHASE, Quantity
from toys import Toy, train_loader, val_loader

README = Path(__file__).resolve().parent.parent / "README.md"


def table(quantities: Iterable[Quantity]) -> str:
    lines = ["| name | what it says | definition | at collapse | source |", "|---|---|---|---|---|"]
    for quantity in quantities:
        target = "" if quantity.collapse is None else f"{quantity.collapse:g}"
        texts = (quantity.meaning, quantity.definition, target, quantity.source)
        cells = [f"`{quantity.name}`", *(text.replace("|", "\\|") for text in texts)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


TABLES = {
    "metrics": (*(q for q in METRICS if q.default), *FIT, *PHASE),
    "opt-in": tuple(q for q in METRICS if not q.default),
}


def python_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.S | re.M)


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_of_metrics_are_those_of_the_catalogue(name: str) -> None:
    text = README.read_text(encoding="utf-8")
    found = re.search(rf"<!-- {name}:.*?-->\n(.*?)\n<!-- /{name} -->", text, re.S)
    expected = table(TABLES[name])
    assert [m[1] for m in [found] if m] == [expected], f"the README should have:\n{expected}"


@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("block", python_blocks(), ids=lambda block: block.split("\n")[0])
def test_every_python_block_runs(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loaders: tuple[DataLoader[object], ...] = (train_loader(), val_loader())
    small = block.replace("max_epochs=350", "max_epochs=1, accelerator='cpu', logger=False")
    small = small.replace("fit(model, datamodule)", "fit(model, *loaders)")
    exec(compile(small, "README.md", "exec"), {"model": Toy(), "loaders": loaders})


def test_every_command_it_names_exists() -> None:
    from ncmonitor.cli import _COMMANDS, main

    blocks = "".join(re.findall(r"```bash\n(.*?)```", README.read_text(encoding="utf-8"), re.S))
    words = set(re.findall(r"^ncmonitor (\w+)", blocks, re.M))
    assert words == set(_COMMANDS)
    for word in words:
        with pytest.raises(SystemExit) as done:
            main([word, "--help"])
        assert done.value.code == 0
