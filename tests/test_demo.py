"""`tera-mind demo`: its stages, what it takes over, what it refuses. The whole way runs in the slow test only."""

from __future__ import annotations

import pytest
import yaml
from tiny_training import RECIPE, SHAPE, exit_code, tiny_shards

from tera_mind.cli import demo
from tera_mind.errors import InputError, MissingFileError
from tera_mind.model.checkpoint import load_checkpoint
from tera_mind.simulate.brains import Settings
from tera_mind.simulate.panel import panel

STAGES = ["ingest", "shards", "fit", "generate", "generate", "generate", "evaluate", "report"]


@pytest.fixture
def tissue(tmp_path):
    """A folder that looks like a Xenium one from outside."""
    folder = tmp_path / "xenium"
    folder.mkdir()
    (folder / "experiment.xenium").write_text("{}")
    return folder


@pytest.fixture
def recipe(tmp_path):
    """The demo's recipe with the network of the tests."""
    settings = yaml.safe_load(RECIPE.read_text())
    settings["model"] |= SHAPE
    settings["trainer"] |= {"val_check_interval": 20}
    settings["data"] |= {"patch_px": 16, "bin_px": 4, "batch_size": 2, "steps_per_epoch": 20}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def options_of(*arguments):
    options = demo.parser().parse_args([str(argument) for argument in arguments])
    demo.prepare(options)
    return options


def one_line(capsys):
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_dry_run_lists_the_stages(tmp_path, capsys):
    out = tmp_path / "demo"
    assert exit_code(["demo", "--out", str(out), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[:-1]] == ["simulate", *STAGES]
    assert all("to do" in line for line in lines[:-1])
    assert not out.exists()


def test_dry_run_with_tissue_needs_no_simulation_and_sees_what_is_done(tissue, tmp_path, capsys):
    (tmp_path / "demo" / "brain.zarr").mkdir(parents=True)
    assert exit_code(["demo", "--input", str(tissue), "--out", str(tmp_path / "demo"), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()[:-1]
    assert [line.split()[1] for line in lines] == STAGES
    assert ["done " in line for line in lines] == [True] + [False] * 7


def test_volumes_of_all_treatments_are_evaluated(tissue, tmp_path):
    options = options_of("--input", tissue, "--out", tmp_path / "demo", "--seed", 5)
    stages = demo.plan(options, RECIPE, 0.0)
    made = [stage.arguments() for stage in stages if stage.command == "generate"]
    assert {given[given.index("--genes") + 1] for given in made} == {"as measured", "shuffled", "zeroed"}
    assert {given[given.index("--seed") + 1] for given in made} == {"5"}
    assert len({given[given.index("--out") + 1] for given in made}) == 3
    (evaluate,) = (stage.arguments() for stage in stages if stage.command == "evaluate")
    for given in made:
        assert given[given.index("--out") + 1] in evaluate
    (shards,) = (stage.arguments() for stage in stages if stage.command == "shards")
    region = given[given.index("--region") + 1]
    assert shards[shards.index("--val") + 1] == region
    assert evaluate[evaluate.index("--train-region") + 1] == shards[shards.index("--train") + 1] != region


@pytest.mark.parametrize(
    ("kind", "marker"), [("xenium", "experiment.xenium"), ("merscope", "detected_transcripts.csv")]
)
def test_the_format_is_told_by_the_files(kind, marker, tmp_path):
    for region in ("region_1", "region_0"):
        (tmp_path / region).mkdir()
        (tmp_path / region / marker).touch()
    (tmp_path / "notes").mkdir()
    brain = tmp_path / "b.zarr"
    rest = ["--out", str(brain), "--pixel-um", "0.5"]
    one = demo.ingest_arguments(tmp_path / "region_0", brain, 0.5)
    assert one == [kind, str(tmp_path / "region_0"), *rest]
    both = demo.ingest_arguments(tmp_path, brain, 0.5)
    assert both == [kind, str(tmp_path / "region_0"), str(tmp_path / "region_1"), *rest]


def test_the_format_of_an_unknown_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="neither Xenium"):
        demo.ingest_arguments(tmp_path, tmp_path / "b.zarr", 0.5)
    with pytest.raises(MissingFileError, match="no folder"):
        demo.ingest_arguments(tmp_path / "none", tmp_path / "b.zarr", 0.5)


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
@pytest.mark.parametrize(("folder", "words"), [("none", "no folder"), ("empty", "neither Xenium")])
def test_unknown_input_is_refused_before_anything_is_written(folder, words, more, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    out = tmp_path / "demo"
    assert exit_code(["demo", "--input", str(tmp_path / folder), "--out", str(out), *more]) == 2
    assert words in one_line(capsys)
    assert not out.exists()


def test_other_settings_in_the_same_folder_are_refused(tmp_path, capsys, tissue):
    out = tmp_path / "demo"
    demo.claim(out, options_of("--out", out), RECIPE)
    before = (out / "demo.json").read_text()
    assert exit_code(["demo", "--out", str(out), "--seed", "1"]) == 2
    assert "other settings (seed)" in one_line(capsys)
    assert exit_code(["demo", "--out", str(out), "--input", str(tissue), "--pixel-um", "0.6"]) == 2
    assert "other settings (input, pixel_um, recipe)" in one_line(capsys)
    assert (out / "demo.json").read_text() == before
    demo.claim(out, options_of("--out", out), RECIPE)  # the same settings go on


def test_more_time_can_be_given_until_training_is_over(tmp_path):
    out = tmp_path / "demo"
    demo.claim(out, options_of("--out", out, "--minutes", 1), RECIPE)
    demo.claim(out, options_of("--out", out, "--minutes", 20), RECIPE)
    (out / "training").mkdir()
    (out / "training" / "finished").touch()
    demo.claim(out, options_of("--out", out, "--minutes", 20), RECIPE)
    with pytest.raises(InputError, match=r"other settings \(minutes\)"):
        demo.claim(out, options_of("--out", out, "--minutes", 30), RECIPE)


def test_a_foreign_folder_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert exit_code(["demo", "--out", str(tmp_path)]) == 2
    assert "holds no demo" in one_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--minutes", "0"], "--minutes must be above 0"), (["--recipe", "none.yaml"], "no recipe at none.yaml")],
)
def test_bad_options(arguments, words, tmp_path, capsys):
    assert exit_code(["demo", "--out", str(tmp_path / "demo"), *arguments]) == 2
    assert words in one_line(capsys)
    assert not (tmp_path / "demo").exists()


def test_too_little_time_is_said_in_one_line(tissue, recipe, tmp_path, capsys):
    """Ingest and shards are there, so the run comes to training at once."""
    out = tmp_path / "demo"
    command = ["--input", str(tissue), "--out", str(out), "--recipe", str(recipe), "--device", "cpu"]
    demo.claim(out, options_of(*command, "--minutes", 0.5), recipe)
    tiny_shards(out)
    assert exit_code(["demo", *command, "--minutes", "0.5"]) == 2
    said = one_line(capsys)
    assert "--minutes 0.5 leaves" in said
    assert "give at least" in said
    assert not (out / "training").exists()


def test_training_gets_the_time_that_the_rest_leaves(tissue, recipe, tmp_path, monkeypatch):
    out = tmp_path / "demo"
    tiny_shards(out)
    options = options_of("--input", tissue, "--out", out, "--minutes", 100, "--device", "cpu", "--seed", 7)
    monkeypatch.setattr(demo, "generation_seconds", lambda *_: 600.0)
    monkeypatch.setattr(demo.time, "monotonic", lambda: 1000.0)
    given = demo.fit_arguments(options, recipe, out / "shards", out / "training", 1000.0)
    limit = given[given.index("--trainer.max_time") + 1]
    days, hours, minutes, seconds = map(int, limit.split(":"))
    budget = seconds + 60 * (minutes + 60 * (hours + 24 * days))
    assert 6000 - 600 - 2 * demo.EVALUATE_S < budget <= 6000 - 600 - demo.EVALUATE_S
    (out / "training").mkdir()
    (out / "training" / "last.ckpt").touch()
    again = demo.fit_arguments(options, recipe, out / "shards", out / "training", 1000.0)
    assert again == given  # `fit` finds the checkpoint by itself, and checks that it is of this run


def test_a_stage_that_fails_ends_the_demo(tissue, tmp_path, monkeypatch):
    from tera_mind.cli import ingest, shards

    monkeypatch.setattr(ingest, "run", lambda _: 2)
    monkeypatch.setattr(shards, "run", lambda _: pytest.fail("shards ran after ingest had failed"))
    assert exit_code(["demo", "--input", str(tissue), "--out", str(tmp_path / "demo")]) == 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_demo(recipe, tmp_path, capsys):
    out = tmp_path / "demo"
    command = ["demo", "--out", str(out), "--recipe", str(recipe), "--minutes", "12"]
    assert exit_code(command) == 0
    assert (out / "report.html").stat().st_size > 10_000
    capsys.readouterr()
    assert exit_code(command) == 0
    assert capsys.readouterr().out.count("done before") == len(STAGES) + 1


def test_shipped_weights_fit_the_demo():
    """The demo of simulated tissue starts from them, so they must have its recipe's shape and its panel."""
    info = load_checkpoint(demo.WEIGHTS).info
    settings = yaml.safe_load((RECIPE.parent / "demo.yaml").read_text())
    assert set(info.genes) == set(panel(Settings.of().genes))
    assert info.pixel_um == demo.SIMULATED_PIXEL_UM
    for key, value in {**settings["model"], "patch_px": settings["data"]["patch_px"]}.items():
        if hasattr(info.model, key):
            stored = getattr(info.model, key)
            assert (list(stored) if isinstance(stored, tuple) else stored) == value, key
    assert info.model.bin_px == settings["data"]["bin_px"]
    assert demo.WEIGHTS.stat().st_size < 8e6
