"""Ways of a config: read, chosen, put between the config and the user's options, and trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml

from ncmonitor import InputError
from ncmonitor.cli import main
from ncmonitor.monitor.provenance import read_run
from ncmonitor.recipes.bundled import recipes
from ncmonitor.recipes.fit.variants import read_ways, words_of_ways

pytestmark = pytest.mark.filterwarnings(
    # LightningCLI 2.6 calls jsonargparse by names that its version 4.49 has retired.
    "ignore::DeprecationWarning:pytorch_lightning.cli",
    "ignore:schedule= lists",  # of runs that are cut short on purpose
)
Fit = Callable[..., tuple[int, str, str]]
CONFIG = """
ways:
  plain: {}
  bare:
  wide: {model.network.hidden: [8, 4], model.lr: 0.5, data.augment: rotations90}
"""
SHORT = (
    *("--way", "augmented", "--trainer.max_epochs=1", "--trainer.logger=false"),
    *("--trainer.enable_progress_bar=false", "--figures.figures=[]"),
)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "own.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Fit]:
    """Give the command, run in an empty folder; it returns status, stdout and stderr."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("WANDB_QUIET", "true")  # so that it is undone
    threads = torch.get_num_threads()  # which a recipe may set

    def run(*words: str) -> tuple[int, str, str]:
        status = main(["fit", *words])
        return status, *capsys.readouterr()

    yield run
    torch.set_num_threads(threads)


def test_every_way_stands_between_the_config_and_the_users_options(config: Path) -> None:
    words = ["--config", str(config), "--model.lr", "0.1"]
    found = words_of_ways(words, None)
    wide = ["--model.network.hidden=[8, 4]", "--model.lr=0.5", "--data.augment=rotations90"]
    assert found == {
        "plain": [*words[:2], "--way", "plain", *words[2:]],
        "bare": [*words[:2], "--way", "bare", *words[2:]],
        "wide": [*words[:2], "--way", "wide", *wide, *words[2:]],
    }
    assert words_of_ways(words, "wide") == {"wide": found["wide"]}
    inline = words_of_ways(["--trainer.max_epochs=1", f"--config={config}", "--x=1"], "bare")
    assert inline["bare"] == [
        "--trainer.max_epochs=1", f"--config={config}", "--way", "bare", "--x=1"
    ]  # fmt: skip


def test_without_ways_the_words_are_those_given(tmp_path: Path) -> None:
    assert words_of_ways(["--model.lr", "0.1"], None) == {None: ["--model.lr", "0.1"]}
    (tmp_path / "none.yaml").write_text("seed_everything: 0\n")
    words = ["--config", str(tmp_path / "none.yaml")]
    assert words_of_ways(words, None) == {None: words}
    with pytest.raises(InputError, match="--way wide: what is to be trained has no ways"):
        words_of_ways(words, "wide")


def test_a_near_name_of_a_way_is_offered(config: Path) -> None:
    expected = "there is no way 'plan', only plain, bare, wide; did you mean 'plain'"
    with pytest.raises(InputError, match=expected):
        words_of_ways(["--config", str(config)], "plan")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ways: [plain]", r"ways must be names with options, .* but is \['plain'\]"),
        ("ways: {}", "ways must be names with options"),
        ("ways: {Plain: {}}", "small letters, digits and _, but is 'Plain'"),
        ("ways: {a/b: {}}", "but is 'a/b'"),
        ("ways: {1: {}}", "but is 1"),
        ("ways: {plain: [--model.lr, 1]}", "way 'plain' must hold options with values"),
    ],
)
def test_ways_that_cannot_be_are_explained(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_ways(path)


@pytest.mark.parametrize("text", ["ways: [", "- 1", ""])
def test_what_is_no_config_is_left_to_the_parser(text: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    assert read_ways(path) == {}
    assert read_ways(tmp_path / "none.yaml") == {}


@pytest.mark.parametrize(
    ("name", "way"), [(name, way) for name, recipe in recipes().items() for way in recipe.ways]
)
def test_the_options_of_every_bundled_way_reach_the_parser(
    name: str, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["fit", name, "--way", way, "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["way"] == way
    for key, value in recipes()[name].ways[way].items():
        group, _, option = key.partition(".")
        if option:
            assert printed[group]["init_args"][option] == value


@pytest.mark.usefixtures("plain_pages")
def test_one_way_is_a_run_that_says_which_and_can_be_run_again_and_resumed(fit: Fit) -> None:
    status, _, err = fit("digits_rot90", *SHORT)
    assert status == 0, err
    (folder,) = Path.cwd().glob("runs/digits_rot90/*")
    assert folder.name.endswith("-augmented-seed0")
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["way"] == "augmented"
    assert saved["data"]["init_args"]["augment"] == "rotations90"
    assert "ways" not in saved
    assert read_run(folder)["finished"]
    assert "has finished" in fit("digits_rot90", *SHORT, "--resume")[2]
    other = fit("digits_rot90", *SHORT, "--way", "plain", "--resume")[2]
    assert "runs/digits_rot90 with way plain with seed 0 has no run" in other
    status, _, err = fit("--config", str(folder / "config.yaml"), "--trainer.fast_dev_run=1")
    assert status == 0, err


@pytest.mark.usefixtures("plain_pages")
def test_a_run_without_ways_does_not_mention_them(fit: Fit) -> None:
    assert fit("digits", *SHORT[2:])[0] == 0
    (folder,) = Path.cwd().glob("runs/digits/*")
    assert not {"way", "ways"} & {*yaml.safe_load((folder / "config.yaml").read_text())}


MISTAKES = {
    "digits_rot90 --way equivarient": "did you mean 'equivariant'",
    "digits_rot90 --way": "there is no way '', only plain, augmented, equivariant",
    "digits --way plain": "--way plain: what is to be trained has no ways to choose from",
    'digits --ways {"a":{}}': "ways are read from a config file (--config FILE), not from --ways",
    "digits_rot90 --wey plain": "unknown option --wey; did you mean '--way'",
    "digits_rot90 --way plain --data.augment rotation": "did you mean 'rotations90'",
}


@pytest.mark.parametrize("words", list(MISTAKES))
def test_a_mistake_is_refused_in_one_line(words: str, fit: Fit) -> None:
    status, out, err = fit(*words.split())
    assert status == 2
    (line,) = [line for line in err.splitlines() if line.startswith("ncmonitor: error: ")]
    assert MISTAKES[words] in line
    assert "Traceback" not in out + err
    assert not list(Path.cwd().iterdir())
