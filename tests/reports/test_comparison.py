"""Runs side by side: what is a group, what its statistics are, and a page that says so."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.figure import Figure

from histories import collapse, collapse_rows
from ncmonitor import InputError
from ncmonitor.catalogue import CATALOGUE, METRICS
from ncmonitor.cli import main
from ncmonitor.monitor.history import start_history
from ncmonitor.plots import PANELS
from ncmonitor.plots.style import SERIES
from ncmonitor.reports.comparison import export_comparison, write_comparison
from ncmonitor.reports.comparison.aggregate import (
    aggregate,
    comparison_table,
    last_epochs,
    spread,
    thinned,
)
from ncmonitor.reports.comparison.group_expectations import expected_table
from ncmonitor.reports.comparison.group_plots import (
    ORDER_PARAMETERS,
    GroupStyle,
    compared_panel,
    look_of,
    order_parameters,
)
from ncmonitor.reports.comparison.group_tables import Column
from ncmonitor.reports.comparison.run_groups import RunGroup, differences, group_runs
from ncmonitor.reports.comparison.runs import RunFolder, read_runs, run_folders
from ncmonitor.reports.comparison.sentences import all_cautions, headline
from pages import HOSTILE, RUN, Page

CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "trainer": {
        "max_epochs": 150,
        "logger": {"class_path": "pytorch_lightning.loggers.WandbLogger"},
        "callbacks": [{"class_path": "ModelCheckpoint", "init_args": {"dirpath": "a"}}],
        "default_root_dir": "a",
    },
    "model": {"class_path": "ImageClassifier", "init_args": {"lr": 0.1, "name": "mlp"}},
    "data": {"class_path": "DigitsData", "init_args": {"root": "a", "batch_size": 64}},
}


def make_run(
    folder: Path,
    rows: list[dict[str, Any]] | None = None,
    config: dict[str, Any] | None = None,
    **facts: Any,
) -> Path:
    start_history(folder, collapse_rows(range(21), exits=()) if rows is None else rows)
    (folder / "run.json").write_text(json.dumps(RUN | facts), encoding="utf-8")
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder


def make_seeds(root: Path, seeds: int = 3, epochs: Sequence[int] = range(21)) -> list[Path]:
    return [
        make_run(
            root / f"seed{seed}",
            collapse_rows(epochs, exits=(), onset=12 + seed, failed=(), seed=seed),
            CONFIG | {"seed_everything": seed},
            seed=seed,
            command=f"ncmonitor fit digits --seed_everything {seed}",
        )
        for seed in range(seeds)
    ]


def changed(path: str, value: object) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(json.dumps(CONFIG))
    *above, last = path.split(".")
    part = config
    for name in above:
        part = part[int(name)] if isinstance(part, list) else part[name]
    part[last] = value
    return config


def groups_of(folders: Sequence[Path]) -> list[RunGroup]:
    return group_runs(read_runs(run_folders(folders))[0])


def histories(seeds: int = 3, **kwargs: Any) -> list[pd.DataFrame]:
    return [collapse(seed=seed, **kwargs) for seed in range(seeds)]


def value_of(table: pd.DataFrame, metric: str, epoch: int, split: str = "train") -> pd.Series[Any]:
    at = table[(table["split"] == split) & (table["epoch"] == epoch) & (table["metric"] == metric)]
    return at.iloc[0]


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs") / "20260203-140506-seeds3"
    make_seeds(root)
    (root / "seed1" / "report.html").write_text("a page")
    write_comparison([root], root / "report.html")
    return root


@pytest.fixture(scope="module")
def page(seeds: Path) -> Page:
    return Page((seeds / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def one_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out most pictures, which take a second and do not depend on what is tested."""
    monkeypatch.setattr(
        "ncmonitor.reports.comparison.comparison_page.PANELS", (("error",), ("nc1",))
    )


@pytest.fixture
def no_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out all pictures, where only words and files are looked at."""
    monkeypatch.setattr("ncmonitor.reports.comparison.comparison_page.PANELS", ())
    monkeypatch.setattr(
        "ncmonitor.reports.comparison.comparison_page.order_parameters", lambda *_: None
    )


# ---------------------------------------------------------------------------------- statistics


def test_mean_and_sd_are_those_of_numpy_at_every_epoch() -> None:
    tables = histories(epochs=range(11), failed=())
    found = aggregate(tables)
    for epoch, metric, split in ((0, "nc1", "train"), (10, "error", "val"), (7, "w_norm", "train")):
        values = np.array(
            [t[(t["epoch"] == epoch) & (t["split"] == split)][metric].iloc[0] for t in tables]
        )
        row = value_of(found, metric, epoch, split)
        assert row["n"] == 3
        assert row["mean"] == pytest.approx(values.mean(), rel=1e-12)
        assert row["sd"] == pytest.approx(values.std(ddof=1), rel=1e-12)
        assert (row["min"], row["max"]) == (values.min(), values.max())


def test_only_epochs_that_every_run_measured_are_aggregated() -> None:
    found = aggregate(
        [collapse(range(0, 31)), collapse(range(0, 61, 3)), collapse(range(0, 61, 2))]
    )
    assert list(dict.fromkeys(found["epoch"])) == list(range(0, 31, 6))
    assert last_epochs(found) == {"train": 30, "val": 30}


def test_runs_without_a_common_epoch_have_an_empty_table() -> None:
    assert aggregate([collapse((1, 3)), collapse((2, 4))]).empty


def test_a_split_that_one_run_lacks_is_over_the_others() -> None:
    found = aggregate([*histories(2, epochs=range(4)), collapse(range(4), splits=("train",))])
    assert value_of(found, "nc1", 3, "val")["n"] == 2
    assert value_of(found, "nc1", 3)["n"] == 3


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_undefined_value_is_left_out_and_n_says_so(bad: float) -> None:
    tables = histories(3, epochs=range(4), failed=())
    tables[1].loc[tables[1]["epoch"] == 3, "nc1"] = bad
    row = value_of(aggregate(tables), "nc1", 3)
    rest = [t[(t["epoch"] == 3) & (t["split"] == "train")]["nc1"].iloc[0] for t in tables[::2]]
    assert (row["n"], row["mean"]) == (2, pytest.approx(np.mean(rest)))
    for table in tables:
        table.loc[table["epoch"] == 3, "nc1"] = bad
    row = value_of(aggregate(tables), "nc1", 3)
    assert row["n"] == 0
    assert np.isnan(row["mean"])


def test_one_run_has_no_sd() -> None:
    row = value_of(aggregate(histories(1, epochs=range(3))), "nc1", 2)
    assert (row["n"], row["mean"]) == (1, row["max"])
    assert np.isnan(row["sd"])


def test_a_metric_that_does_not_apply_to_a_split_has_no_rows() -> None:
    found = aggregate(histories(2, epochs=range(3)))
    assert "nc2_etf_w" in set(found[found["split"] == "train"]["metric"])
    assert "nc2_etf_w" not in set(found[found["split"] == "val"]["metric"])


def test_a_measurement_written_twice_counts_once() -> None:
    twice = pd.concat([collapse(range(3)), collapse(range(3)).tail(1)])
    assert value_of(aggregate([twice, collapse(range(3))]), "nc1", 2, "val")["n"] == 2


@pytest.mark.parametrize(
    ("mean", "sd", "written"),
    [
        *[(0.0034213, 0.00021, "0.00342 ± 0.00021"), (0.5055, 0.0206, "0.505 ± 0.021")],
        *[(33.0, 1.73, "33.0 ± 1.7"), (21.7, 0.0, "21.7 ± 0"), (60.0, 0.0, "60 ± 0")],
        *[(3.42e-7, 2.1e-8, "(3.42 ± 0.21)×10⁻⁷"), (-0.5, 0.1, "−0.50 ± 0.10")],
        *[(0.25, np.nan, "0.25"), (np.nan, np.nan, "nan"), (0.0, 0.0, "0 ± 0")],
        *[
            (0.02, 0.0996, "0.02 ± 0.10"),
            (0.3, 1e-12, "0.3 ± 1.00×10⁻¹²"),
            (1e-9, 0.5, "0.00 ± 0.50"),
        ],
        *[(1234.0, 150.0, "1234 ± 150"), (3.0e9, 2.0e8, "(3.00 ± 0.20)×10⁹")],
    ],
)
def test_mean_and_sd_are_written_to_the_second_digit_of_the_sd(
    mean: float, sd: float, written: str
) -> None:
    assert spread(mean, sd) == written


def test_a_thinned_course_keeps_its_last_epoch_its_extremes_and_its_gaps() -> None:
    table = aggregate(histories(2, epochs=range(1000), failed=(999, 500), exits=()))
    rows = table[(table["metric"] == "nc1") & (table["split"] == "train")]
    rows = rows.assign(max=rows["max"].where(rows["epoch"] != 777, 50.0))
    kept = thinned(rows, 100)
    assert len(kept) == 100
    assert list(np.diff(kept["epoch"])) == [10] * 99
    assert kept["epoch"].iloc[-1] == 999
    assert kept["max"].max() == 50.0
    assert kept["min"].min() == rows["min"].min()
    assert np.isnan(kept["mean"].iloc[-1])
    whole = rows.set_index("epoch")["mean"]
    assert kept["mean"].iloc[3] == whole[kept["epoch"].iloc[3]]
    assert thinned(rows, 1000) is rows


# -------------------------------------------------------------------------------------- groups


@pytest.mark.parametrize(
    ("path", "value", "same"),
    [
        ("seed_everything", 7, True),
        ("trainer.default_root_dir", "b", True),
        ("trainer.logger", False, True),
        ("trainer.callbacks.0.init_args.dirpath", "b", True),
        ("data.init_args.root", "/elsewhere", True),
        ("trainer.max_epochs", 300, False),
        ("model.init_args.lr", 0.2, False),
        ("data.init_args.batch_size", 32, False),
    ],
)
def test_runs_with_the_same_options_but_for_the_seed_folders_and_logger_are_a_group(
    path: str, value: object, same: bool, tmp_path: Path
) -> None:
    first = make_run(tmp_path / "a", config=CONFIG)
    second = make_run(tmp_path / "b", config=changed(path, value), seed=7)
    groups = groups_of([first, second])
    assert len(groups) == (1 if same else 2)
    assert all(group.certain for group in groups)


@pytest.mark.parametrize(
    ("commands", "count"),
    [
        (("train.py --lr 1 --seed 3", "train.py --seed=4 --lr 1", "train.py --lr 1"), 1),
        (("ncmonitor fit x --seed_everything 3", "ncmonitor fit x --seed_everything=4"), 1),
        (("ncmonitor fit x --trainer.default_root_dir a", "ncmonitor fit x --resume"), 1),
        (("train.py seed=1 lr=2", "train.py seed=2 lr=2"), 1),
        (("train.py --lr 1", "train.py --lr 2"), 2),
        (("train.py --seed 1 fast", "train.py --seed 1"), 2),
        (("ipykernel_launcher.py -f k.json", "ipykernel_launcher.py -f k.json"), 2),
        (("", ""), 2),
        (("train.py 'open", "train.py 'open"), 2),
    ],
)
def test_without_options_the_command_decides(
    commands: Sequence[str], count: int, tmp_path: Path
) -> None:
    folders = [make_run(tmp_path / str(i), command=c, seed=i) for i, c in enumerate(commands)]
    groups = groups_of(folders)
    assert len(groups) == count
    assert all(group.certain == (len(group.runs) == 1) for group in groups)


def test_another_network_of_the_same_command_is_another_group(tmp_path: Path) -> None:
    measured = RUN["measurement"] | {"num_classes": 100}
    folders = [make_run(tmp_path / "a"), make_run(tmp_path / "b", measurement=measured)]
    assert len(groups_of(folders)) == 2


def test_groups_are_called_by_the_recipe_and_by_what_sets_them_apart(tmp_path: Path) -> None:
    command = "ncmonitor fit digits"
    lr = [changed("model.init_args.lr", rate) for rate in (0.1, 0.2)]
    folders = [
        make_run(tmp_path / "a", config=lr[0], command=command),
        make_run(tmp_path / "b", config=lr[1], command=command),
        make_run(tmp_path / "c", config=changed("model.class_path", "X"), command="x fit other"),
        make_run(tmp_path / "mine" / "20260203-140506-seed4", command="train.py --w 2"),
    ]
    groups = groups_of(folders)
    assert [g.label for g in groups] == ["digits · lr 0.1", "digits · lr 0.2", "other", "mine"]
    assert differences([g.runs for g in groups[:2]]) == [("model.lr", ["0.1", "0.2"])]


def test_a_run_whose_options_are_not_saved_takes_no_name_from_those_of_others(
    tmp_path: Path,
) -> None:
    command = "ncmonitor fit digits"
    folders = [
        make_run(tmp_path / "a", config=changed("model.init_args.lr", 0.1), command=command),
        make_run(tmp_path / "b", command=command),
    ]
    assert [g.label for g in groups_of(folders)] == ["digits", "digits · no config.yaml"]
    third = make_run(tmp_path / "c", config=changed("model.init_args.lr", 0.2), command=command)
    labels = [g.label for g in groups_of([*folders, third])]
    assert labels == ["digits · lr 0.1", "digits · no config.yaml", "digits · lr 0.2"]


@pytest.mark.usefixtures("no_panels")
def test_groups_are_columns_by_number_and_the_heading_says_which_epoch(tmp_path: Path) -> None:
    def compared(*ends: int) -> Page:
        folders = [
            make_run(
                tmp_path / f"{ends}" / f"run{i}",
                collapse_rows(range(end + 1), exits=(), failed=()),
                changed("model.init_args.lr", float(i)),
                command="ncmonitor fit digits",
            )
            for i, end in enumerate(ends)
        ]
        return Page(write_comparison(folders, tmp_path / f"{ends}").read_text(encoding="utf-8"))

    page = compared(4, 4)
    assert "Every quantity at the last shared epoch" in page.text
    table = page.text.partition("Every quantity at")[2].partition("The fit")[0]
    said = "the last shared epoch train 1digits · lr 0.0 2digits · lr 1.0 quantity"
    assert " ".join(table.split()).startswith(said)
    assert "1epoch 42epoch 4at collapse" in " ".join(table.split())
    assert set(page.values("data-label")) >= {"1", "2", "at collapse"}
    assert "Every quantity at each group's last epoch" in compared(4, 6).text


def test_labels_are_unique_and_runs_are_ordered_by_seed(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / f"x/run{i}", command="", seed=0) for i in range(2)]
    labels = [group.label for group in groups_of(folders)]
    assert len(set(labels)) == 2
    unordered = [
        make_run(tmp_path / f"y{i}", config=CONFIG, seed=s) for i, s in enumerate((9, 10, 2))
    ]
    assert [run.seed for run in groups_of(unordered)[0].runs] == [2, 9, 10]


@pytest.mark.parametrize("text", ["a: [", "- 1", "\x00", "&a [*a]", "a: &a [*a]"])
def test_a_damaged_config_is_as_none(text: str, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    (folder / "config.yaml").write_text(text)
    assert read_runs([folder])[0][0].options is None


def test_a_config_that_unfolds_to_billions_is_read_in_a_moment(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    folder = make_run(tmp_path / "a")
    (folder / "config.yaml").write_text("\n".join(lines))
    options = read_runs([folder])[0][0].options
    assert options is not None
    assert len(options) == 10_000


# ---------------------------------------------------------------------------------------- runs


def test_a_folder_stands_for_the_runs_below_it_in_natural_order(tmp_path: Path) -> None:
    for seed in (10, 9, 0):
        make_run(tmp_path / "x" / f"seed{seed}")
    found = run_folders([tmp_path])
    assert [folder.name for folder in found] == ["seed0", "seed9", "seed10"]
    assert run_folders(found[:1]) == found[:1]


def test_names_are_as_much_of_the_path_as_tells_runs_apart(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / name / "seed0") for name in ("a", "b")]
    assert [run.name for run in read_runs(folders)[0]] == ["a/seed0", "b/seed0"]
    assert [run.name for run in read_runs(folders[:1])[0]] == ["seed0"]


def test_a_run_without_a_measured_epoch_is_left_out_and_named(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / "a", []), make_run(tmp_path / "b")]
    runs, left_out = read_runs(folders)
    assert ([run.name for run in runs], left_out) == (["b"], ["a"])
    with pytest.raises(InputError, match="none of the 2 runs has a measured epoch yet"):
        read_runs([folders[0], make_run(tmp_path / "c", [])])


# -------------------------------------------------------------------------------------- pictures


def panel_of(folders: Sequence[Path], name: str) -> tuple[Figure, list[RunGroup], GroupStyle]:
    groups = groups_of(folders)
    tables = [aggregate([run.history for run in group.runs]) for group in groups]
    look = look_of(groups, pd.concat(tables))
    return compared_panel(groups, tables, name, look), groups, look


def lines_of(figure: Figure, label: str) -> list[Any]:
    return [line for line in figure.axes[0].lines if line.get_label() == label]


def band_of(figure: Figure) -> Any:
    return np.asarray(figure.axes[0].collections[0].get_paths()[0].vertices)[:, 1]


def test_a_panel_draws_the_mean_the_range_the_runs_and_the_onsets(tmp_path: Path) -> None:
    figure, groups, look = panel_of(make_seeds(tmp_path), "nc1")
    table = aggregate([run.history for run in groups[0].runs])
    assert look.splits == ("train", "val")
    mean = lines_of(figure, "_mean")
    expected = table[(table["metric"] == "nc1") & (table["split"] == "train")]
    assert np.array_equal(mean[0].get_ydata(), expected["mean"])
    assert [line.get_linestyle() for line in mean] == ["-", "--"]
    assert len(lines_of(figure, "_run")) == 6
    band = band_of(figure)
    assert band.max() == expected["max"].max()
    assert band.min() == expected["min"].min()
    assert list(lines_of(figure, "_TPT start")[0].get_xdata()) == [12, 13, 14]


def order_of(folders: Sequence[Path]) -> tuple[Figure | None, list[pd.DataFrame]]:
    groups = groups_of(folders)
    tables = [aggregate([run.history for run in group.runs]) for group in groups]
    return order_parameters(groups, tables, look_of(groups, pd.concat(tables))), tables


def test_order_parameters_share_a_linear_axis_from_zero_and_a_logarithm_of_epochs(
    tmp_path: Path,
) -> None:
    figure, [table] = order_of(make_seeds(tmp_path))
    assert figure is not None
    assert len(figure.axes) == len(ORDER_PARAMETERS)
    for ax, name in zip(figure.axes, ORDER_PARAMETERS, strict=True):
        rows = table[(table["metric"] == name) & (table["split"] == "train")]
        [mean] = [line for line in ax.lines if line.get_label() == "_mean"]
        assert np.array_equal(mean.get_ydata(), rows["mean"])
        band = np.asarray(ax.collections[0].get_paths()[0].vertices)[:, 1]
        assert (band.min(), band.max()) == (rows["min"].min(), rows["max"].max())
        assert (ax.get_yscale(), ax.get_xscale()) == ("linear", "symlog")
        assert ax.get_ylim() == figure.axes[0].get_ylim()
        assert ax.get_ylim()[0] == 0
        assert ax.get_ylim()[1] >= band.max()
        assert ax.get_title("left") == CATALOGUE[name].label


def test_without_order_parameters_there_is_no_picture_of_them(tmp_path: Path) -> None:
    rows = [
        {key: value for key, value in row.items() if not key.startswith("sk_")}
        for row in collapse_rows(range(5))
    ]
    figure, _ = order_of([make_run(tmp_path / "old", rows)])
    assert figure is None
    some = [row | {"sk_breaking_w": 0.5} for row in rows]
    figure, _ = order_of([make_run(tmp_path / "some", some)])
    assert figure is not None
    assert len(figure.axes) == 1


def test_a_range_that_reaches_zero_stays_on_a_logarithmic_axis(tmp_path: Path) -> None:
    folders = make_seeds(tmp_path, 2)
    rows = [
        row | {"nc1": 0.0 if row["epoch"] > 15 else row["nc1"]} for row in collapse_rows(range(21))
    ]
    start_history(folders[0], rows)
    figure, *_ = panel_of(folders, "nc1")
    ax = figure.axes[0]
    low, high = ax.get_ylim()
    assert ax.get_yscale() == "log"
    assert 1e-4 < low < high < 10
    assert band_of(figure).min() == low


def test_an_extreme_far_above_the_mean_lies_on_the_picture(tmp_path: Path) -> None:
    folders = make_seeds(tmp_path, 16, range(14, 21))
    rows = collapse_rows(range(14, 21), exits=())
    start_history(folders[0], [row | {"error": float(row["epoch"] == 16)} for row in rows])
    figure, *_ = panel_of(folders, "error")
    assert band_of(figure).max() == 1.0
    assert figure.axes[0].get_ylim()[1] >= 1.0


def test_a_single_run_is_a_line_and_no_band(tmp_path: Path) -> None:
    figure, *_ = panel_of(make_seeds(tmp_path, 1), "nc1")
    assert len(figure.axes[0].collections) == 0
    assert lines_of(figure, "_run") == []


def test_many_groups_share_colours_but_no_look(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / str(i), command=f"train.py {i}") for i in range(24)]
    groups = groups_of(folders)
    look = look_of(groups, aggregate([groups[0].runs[0].history]))
    assert look.splits == ("train",)
    assert len({(look.colour(i), look.dashes(i, "train")) for i in range(24)}) == 24
    assert {look.colour(i) for i in range(24)} == set(SERIES)


def test_a_page_of_six_groups_of_long_runs_stays_below_5_megabytes() -> None:
    runs = [
        RunFolder(Path(), f"run{seed}", collapse(range(1000), failed=(), seed=seed), {}, {})
        for seed in range(2)
    ]
    table = aggregate([run.history for run in runs])
    groups, tables = [RunGroup(str(i), tuple(runs), True) for i in range(6)], [table] * 6
    figure = compared_panel(groups, tables, "nc1", look_of(groups, table))
    out = io.StringIO()
    figure.savefig(out, format="svg")
    assert len(out.getvalue()) * sum(map(len, PANELS)) < 4.5e6


def test_what_was_not_measured_says_so(tmp_path: Path) -> None:
    figure, *_ = panel_of(
        [make_run(tmp_path / "a", collapse_rows(range(3), failed=range(3)))], "nc1"
    )
    assert figure.axes[0].texts[0].get_text() == "not measured"


# ---------------------------------------------------------------------------------------- words


def cautions_of(folders: Sequence[Path]) -> str:
    runs, left_out = read_runs(folders)
    groups = group_runs(runs)
    last = [last_epochs(aggregate([run.history for run in g.runs])) for g in groups]
    return "\n".join(all_cautions(groups, last, left_out))


def test_the_headline_counts_runs_groups_and_onsets(tmp_path: Path) -> None:
    seeds = groups_of(make_seeds(tmp_path / "digits"))
    assert headline(seeds) == (
        "3 runs of digits that differ by the seed alone. Training error reached 0 in all 3 runs, "
        "at epochs 12 to 14."
    )
    assert headline(groups_of(run_folders([tmp_path / "digits"])[:2])).endswith(
        "Training error reached 0 in both runs, at epochs 12 to 13."
    )
    never = make_run(tmp_path / "never", collapse_rows(range(5)), command="train.py")
    both = groups_of([*run_folders([tmp_path / "digits"]), never])
    assert headline(both) == (
        "4 runs in 2 groups of 1 to 3; within a group only the seed differs. Training error "
        "reached 0 in 3 of 4 runs, at epochs 12 to 14."
    )
    assert headline(groups_of([never])) == "One run: never. The terminal phase was not reached."


def test_nothing_is_cautioned_where_nothing_is_to_hide(tmp_path: Path) -> None:
    folders = make_seeds(tmp_path)
    for folder in folders:
        facts = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps(facts | {"max_epochs": 20}))
    assert cautions_of(folders) == ""


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({"config": CONFIG, "seed": 0}, "Seed 0 was run 2 times"),
        (
            {"config": CONFIG, "rows": collapse_rows(range(11), exits=())},
            "On train and val the runs end at different epochs (a 20, b 10); their numbers are "
            "those of epoch 10",
        ),
        (
            {"config": CONFIG, "rows": collapse_rows(range(0, 21, 2), exits=())},
            "On train and val different epochs were measured; means are over the shared ones.",
        ),
        (
            {"config": CONFIG, "rows": collapse_rows(range(21), splits=("train",))},
            "On val nothing was measured by b, so n is smaller there.",
        ),
        (
            {"config": CONFIG, "rows": collapse_rows((21, 22), exits=())},
            "the runs have no measured epoch in common",
        ),
        ({"measurement": {"num_classes": 100}}, "different class counts (10, 100)"),
        ({"rows": []}, "b has no measured epoch yet and is left out."),
        ({"finished": None}, "b: The run has not recorded its end"),
    ],
)
def test_cautions_name_what_limits_a_comparison(
    second: dict[str, Any], said: str, tmp_path: Path
) -> None:
    first = make_run(tmp_path / "a", config=CONFIG)
    facts = {"seed": 1} | second
    assert said in cautions_of([first, make_run(tmp_path / "b", **facts)])


def test_a_caution_of_every_run_is_said_once(tmp_path: Path) -> None:
    said = cautions_of(make_seeds(tmp_path))
    assert said == "All runs: The last measured epoch is 20 of 150 planned."


def test_runs_grouped_by_their_command_alone_are_cautioned(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / str(seed), seed=seed) for seed in range(2)]
    assert "No config.yaml, so these runs are taken together" in cautions_of(folders)


# -------------------------------------------------------------------- against what was expected

EXPECT = "\nexpect:\n  epoch: 20\n  nc1: 1.0\n  error: 0.0\n"


def test_verdicts_of_a_group_are_counted_and_the_odd_runs_named(tmp_path: Path) -> None:
    folders = make_seeds(tmp_path, 3)
    for folder in folders:
        (folder / "config.yaml").write_text((folder / "config.yaml").read_text() + EXPECT)
    rows = [row | {"nc1": 2.5} for row in collapse_rows(range(21), exits=(), failed=())]
    start_history(folders[1], rows)
    lines, doubts = expected_table(groups_of(folders))
    assert doubts == []
    by_key = {line["key"]: line for i, line in lines if i == 0}
    assert list(by_key) == ["nc1", "error"]  # nothing is said of what nothing is expected of
    nc1 = by_key["nc1"]
    assert (nc1["bounds"], nc1["epoch"]) == ("≤ 1", 20)
    assert nc1["measured"].endswith(" to 2.5")
    assert nc1["verdicts"] == [
        ("collapsed as expected (2 of 3: seed0, seed2)", False),
        ("not as far as expected (1 of 3: seed1)", True),
    ]
    assert by_key["error"]["verdicts"] == [("as expected (all 3)", False)]
    assert by_key["error"]["measured"] == "0"


def test_of_a_single_run_the_verdict_stands_alone(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    assert expected_table(groups_of([folder])) == ([], [])
    (folder / "config.yaml").write_text(EXPECT)
    lines, _ = expected_table(groups_of([folder]))
    assert next(line["verdicts"] for _, line in lines) == [("collapsed as expected", False)]


@pytest.mark.usefixtures("no_panels")
def test_the_page_shows_the_verdicts_and_whose_expectation_cannot_be_judged(
    tmp_path: Path,
) -> None:
    folders = make_seeds(tmp_path, 2)
    (folders[0] / "config.yaml").write_text(EXPECT)
    (folders[1] / "config.yaml").write_text("expect:\n  epoch: 20\n  nc9: 1\n")
    out = write_comparison(folders, tmp_path / "out")
    text = " ".join(Page(out.read_text(encoding="utf-8")).text.split())
    section = text.partition("Against what was expected")[2].partition("The collapse, epoch")[0]
    assert "collapsed as expected" in section
    assert re.search(r"seed1: .*there is no metric", text)


# ------------------------------------------------------------------------------------- the page


def test_the_page_holds_every_panel_and_every_quantity(page: Page) -> None:
    assert page.tags["figure"] == sum(map(len, PANELS)) + 1  # and the order parameters, in one
    assert all(CATALOGUE[name].meaning in page.text for name in ORDER_PARAMETERS)
    assert page.tags["script"] == 0
    assert set(page.text.split()) >= {q.name for q in METRICS if q.default}
    for name in (name for names in PANELS for name in names):
        assert CATALOGUE[name].meaning in page.text
        assert re.sub(r"_\{?([^}_]*)\}?", r"\1", CATALOGUE[name].definition)[:12] in page.text


def test_the_page_fetches_nothing(seeds: Path, page: Page) -> None:
    for name, value in page.attributes:
        if name in {"src", "href", "xlink:href", "data", "poster", "srcset", "action"}:
            assert re.fullmatch(r"#[\w-]+|comparison\.csv|per_run\.csv|seed1/report\.html", value)
        assert "http" not in value or name.startswith("xmlns") or name == "http-equiv"
    [policy] = [value for value in page.values("content") if "-src" in value]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")
    text = (seeds / "report.html").read_text(encoding="utf-8")
    styles = "".join(re.findall(r"<style.*?</style>", text, flags=re.DOTALL))
    assert "prefers-color-scheme" in styles
    assert "@media print" in styles
    assert not re.search(r"@import|url\(|http|@font-face", styles)


def test_ids_are_unique_and_figures_take_the_colours_of_the_page(page: Page) -> None:
    ids = page.values("id")
    assert len(set(ids)) == len(ids)
    wanted = [v[1:] for k in ("href", "xlink:href") for v in page.values(k) if v.startswith("#")]
    assert wanted
    assert set(wanted) <= set(ids)
    styles = " ".join(page.values("style"))
    assert "var(--series-0)" in styles
    assert not re.search(r"#[0-9a-f]{6}", styles)


def test_the_tables_hold_mean_and_sd_at_the_last_shared_epoch(seeds: Path, page: Page) -> None:
    tables = [run.history for run in read_runs(run_folders([seeds]))[0]]
    at = [t[(t["epoch"] == 20) & (t["split"] == "train")]["nc1"].iloc[0] for t in tables]
    written = spread(float(np.mean(at)), float(np.std(at, ddof=1))).replace("± ", "±\u00a0")
    assert page.text.count(written) == 2  # the first table, and that of every quantity
    assert page.text.count("13.0 ±\u00a01.0") == 2  # the onsets 12, 13, 14
    assert "epoch 20, n = 3" in page.text


def test_a_run_with_a_report_is_linked_and_the_others_are_named(page: Page) -> None:
    assert "seed1/report.html" in page.values("href")
    assert all(f"seed{seed}" in page.text for seed in range(3))


def test_the_numbers_as_csv_read_back_to_the_same_statistics(seeds: Path) -> None:
    written = pd.read_csv(seeds / "comparison.csv")
    columns = ["group", "split", "epoch", "metric", "n", "mean", "sd", "min", "max"]
    assert list(written.columns) == columns
    runs, _ = read_runs(run_folders([seeds]))
    expected = aggregate([run.history for run in runs]).assign(group="digits")[columns]
    # pandas 2 reads decimals to some 13 digits.
    pd.testing.assert_frame_equal(written, expected, check_dtype=False, rtol=1e-12, atol=0)


def test_each_run_is_a_row_of_a_table_of_its_own(seeds: Path) -> None:
    written = pd.read_csv(seeds / "per_run.csv")
    train = written[written["split"] == "train"]
    assert list(train["seed"]) == [0, 1, 2]
    assert list(train["tpt_onset"]) == [12, 13, 14]
    runs, _ = read_runs(run_folders([seeds]))
    last = runs[1].history.query("split == 'train'")["nc1"].iloc[-1]
    assert train["nc1"].iloc[1] == pytest.approx(last, rel=1e-12)


@pytest.mark.usefixtures("one_panel")
def test_the_same_runs_give_the_same_page(seeds: Path, tmp_path: Path) -> None:
    pages = [write_comparison([seeds], tmp_path / name).read_bytes() for name in "ab"]
    assert pages[0] == pages[1]


@pytest.mark.usefixtures("one_panel")
def test_every_string_of_a_run_is_escaped(tmp_path: Path) -> None:
    folders = [
        make_run(
            tmp_path / f"run <script>alert({i})<script>&amp; $x",
            config=changed("model.class_path", f"{HOSTILE}{i}"),
            command=f"ncmonitor fit '<script>{i}'",
            machine={"gpu": HOSTILE},
            versions={HOSTILE: f"{i}{HOSTILE}"},
        )
        for i in range(2)
    ]
    (folders[0] / "report.html").write_text("a page")
    out = write_comparison(folders, tmp_path / "out", title=HOSTILE)
    page = Page(out.read_text(encoding="utf-8"))
    assert page.tags["script"] == 0
    assert page.text.count(HOSTILE) > 5
    assert "<script>0 " in page.text
    assert any("%3Cscript%3E" in link for link in page.values("href"))


@pytest.mark.usefixtures("no_panels")
@pytest.mark.parametrize("epochs", [20, 400])
def test_the_page_says_when_epochs_are_left_out_of_the_pictures(
    epochs: int, tmp_path: Path
) -> None:
    out = write_comparison(make_seeds(tmp_path, 1, range(epochs)), tmp_path / "out")
    said = "Of a long course only some epochs are drawn" in out.read_text(encoding="utf-8")
    assert said == (epochs == 400)


def _older(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith(("nc2", "tpt"))} for row in rows]


def _two_classes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    flat = dict.fromkeys(("nc2_etf_means", "nc2_max_angle_means", "nc2_equiangular_std_means"), 0.0)
    return [row | flat | {"n_classes_present": 2.0, "nc1_rank": 1.0} for row in rows]


DEGENERATE = {
    "one epoch": [collapse_rows(range(1))] * 2,
    "one run": [collapse_rows(range(5))],
    "all nan": [collapse_rows(range(4), failed=range(4))] * 2,
    "one failed": [collapse_rows(range(4)), collapse_rows(range(4), failed=range(4))],
    "no validation": [collapse_rows(range(4), splits=("train",)), collapse_rows(range(4))],
    "validation only": [collapse_rows(range(3), splits=("val",))] * 2,
    "splits of several names": [collapse_rows(range(3), splits=("train", "val0", "val1"))] * 2,
    "inner layers": [collapse_rows(range(3), splits=("train", "train/layer/a.b"))] * 2,
    "disjoint epochs": [collapse_rows((1, 3)), collapse_rows((2, 4))],
    "different schedules": [collapse_rows(range(30)), collapse_rows((0, 7, 14, 28, 60))],
    "an older history": [_older(collapse_rows(range(4))), collapse_rows(range(4))],
    "two classes": [_two_classes(collapse_rows(range(20))), collapse_rows(range(20))],
}


@pytest.mark.slow
@pytest.mark.usefixtures("one_panel")
@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_runs_have_a_comparison(case: str, grouped: bool, tmp_path: Path) -> None:
    folders = [
        make_run(
            tmp_path / f"run{i}",
            rows,
            CONFIG if grouped else changed("model.init_args.lr", i),
            seed=i,
            measurement=RUN["measurement"] | {"num_classes": 2 if i == 0 else 1000},
        )
        for i, rows in enumerate(DEGENERATE[case])
    ]
    page = Page(write_comparison(folders, tmp_path / "out").read_text(encoding="utf-8"))
    # The third: the order parameters, where there are any for the same epochs.
    nothing = case == "all nan" or (case == "disjoint epochs" and grouped)
    assert page.tags["figure"] == (2 if nothing else 3)
    assert all(f"run{i}" in page.text for i in range(len(folders)))


@pytest.mark.usefixtures("no_panels")
@pytest.mark.parametrize("run", ["", "[1, 2]", "{}", json.dumps(dict.fromkeys(RUN, 3)), "{"])
def test_a_run_json_of_any_shape_has_a_comparison(run: str, tmp_path: Path) -> None:
    folders = [make_run(tmp_path / "a"), make_run(tmp_path / "b")]
    (folders[0] / "run.json").write_text(run)
    assert write_comparison(folders, tmp_path).is_file()


@pytest.mark.usefixtures("no_panels")
def test_a_run_cut_in_the_middle_of_a_line_is_compared(tmp_path: Path) -> None:
    folders = make_seeds(tmp_path, 2)
    history = folders[0] / "history.csv"
    history.write_text(history.read_text()[:-60])
    table = pd.read_csv(
        write_comparison(folders, tmp_path / "x.html").with_name("x_comparison.csv")
    )
    assert table[table["split"] == "val"]["epoch"].max() == 19
    assert table[table["split"] == "train"]["epoch"].max() == 20


# ----------------------------------------------------------------------------- the command line


@pytest.mark.usefixtures("no_panels")
@pytest.mark.parametrize(
    ("words", "written"),
    [
        (["seed0", "seed1"], "comparison.html"),
        (["."], "report.html"),
        ([".", "--out", "new/folder"], "new/folder/comparison.html"),
        (["seed0", "seed1", "--out", "two.html"], "two.html"),
        (["seed0", "seed1", "--out", "seed0"], "seed0/comparison.html"),
    ],
)
def test_the_command_says_where_it_wrote(
    words: list[str],
    written: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_seeds(tmp_path, 2)
    monkeypatch.chdir(tmp_path)
    assert main(["report", *words]) == 0
    assert capsys.readouterr().out == f"{written}   (open it in any browser)\n"
    assert "<!doctype html>" in (tmp_path / written).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["seed0", "seed0/"], "expected each run once, but seed0 was given twice"),
        ([".", "seed1"], "but seed1 was given twice"),
        (["seed0", "nowhere"], "but nowhere does not exist"),
        (["seed0", "seed1/history.csv"], "but seed1/history.csv is a file"),
        (["seed0", "seed1", "--out", "a.pdf"], "expected a folder or an .html file to write to"),
        (["seed0", "--out", "x"], "--out is for comparisons"),
        (["seed0", "foreign"], "is not a history"),
        (["seed0", "seed1", "--out", "seed0/history.csv/x.html"], "cannot be written"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_seeds(tmp_path, 2)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "history.csv").write_text("a,b\n1,2\n")
    if "." in words:
        (tmp_path / "foreign" / "history.csv").unlink()
    monkeypatch.chdir(tmp_path)
    assert main(["report", *words]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("ncmonitor: error: ")
    assert said in err
    assert not list(tmp_path.rglob("*.html"))


def test_a_run_that_cannot_be_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = make_seeds(tmp_path, 2)

    def refuse(folder: Path) -> pd.DataFrame:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("ncmonitor.reports.comparison.runs.read_history", refuse)
    assert main(["report", *map(str, folders), "--out", str(tmp_path)]) == 2
    assert f"{folders[0]} cannot be read: Permission denied" in capsys.readouterr().err


def test_runs_of_unlike_length_share_a_logarithmic_axis_of_epochs(tmp_path: Path) -> None:
    def scale(*lengths: int) -> str:
        histories = [collapse(range(n), exits=(), failed=()) for n in lengths]
        runs = [RunFolder(tmp_path / str(i), str(i), h, {}, None) for i, h in enumerate(histories)]
        columns = [Column(RunGroup(run.name, (run,), certain=True)) for run in runs]
        groups, tables = [c.group for c in columns], [c.table for c in columns]
        look = look_of(groups, comparison_table(groups, tables))
        return compared_panel(groups, tables, "nc1", look).axes[0].get_xscale()

    assert scale(13, 61) == "linear"
    assert scale(6, 61) == "symlog"


def test_a_row_that_was_cut_is_told_in_the_comparison_and_its_files(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, collapse_rows(range(3))) for name in ("a", "b")]
    path = runs[1] / "history.csv"
    path.write_text(path.read_text()[:-30])
    text = write_comparison(runs, tmp_path / "out").read_text(encoding="utf-8")
    assert "b: The last row of history.csv is cut short" in text
    with pytest.warns(UserWarning, match=r"^b: The last row of history\.csv is cut short"):
        export_comparison(runs, tmp_path / "out", "csv")
