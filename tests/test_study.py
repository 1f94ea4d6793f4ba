"""Studies: expansion into runs, cost, and results next to the paper's."""

import shlex
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner

from kdcache import extensions
from kdcache.analysis.estimates import MeanStd
from kdcache.checked_files import write_toml
from kdcache.cli import cli
from kdcache.config import StudentConfig
from kdcache.errors import UsageError
from kdcache.run.folder import RunFolder
from kdcache.study.archive import extracted
from kdcache.study.cost import study_cost
from kdcache.study.definition import read_study
from kdcache.study.expand import expand_study
from kdcache.study.launch import make_launcher
from kdcache.study.planned import filter_cells, list_runs
from kdcache.study.published import published_accuracy
from kdcache.study.result_files import write_results
from kdcache.study.result_tables import accuracy_table, cells_table, sources_table
from kdcache.study.results import collect_results
from kdcache.study.training_runs import train_unfinished
from tests.studies import STUDY, write_study

ROOT = Path(__file__).parents[1]

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
STUDIES = sorted(file.stem for file in (ROOT / "configs" / "studies").iterdir())


@pytest.mark.parametrize("name", STUDIES)
def test_every_shipped_study_can_be_expanded(name: str, tmp_path: Path) -> None:
    study = read_study(name)
    assert {"paper", "mini"} <= study.profiles.keys()
    for profile in study.profiles:
        assert all(cell.runs for cell in expand_study(study, profile, tmp_path))


def test_table_3_is_seven_pairs_eight_rows_three_seeds(tmp_path: Path) -> None:
    cells = expand_study(read_study("table3"), "paper", tmp_path)
    distilled = [run for cell in cells for run in cell.runs if run.teacher is not None]
    assert len({run.path for run in distilled}) == 7 * 8 * 3
    cost = study_cost(cells)
    # Forwards per image and epoch: 1 for x, 2 with CutMix, 3 with CutMix-pick; long runs have 960 epochs.
    features = 240 * (1 + 3) + 960 * 3
    students = 240 * (1 + 2 + 3) + 960 * (1 + 3) + features
    assert cost.uncached == 50_000 * (7 * 3 * students + 5)
    assert cost.without_store == 50_000 * 7 * 3 * features
    # For five teachers: two x' in each of 960 epochs of three seeds, and at most every crop-and-flip view.
    mixed, standard = 5 * 3 * 2 * 960 * 50_000, 5 * 162 * 50_000
    assert mixed < cost.shared.forwards <= mixed + standard
    assert cost.shared.stored_bytes == pytest.approx(3 * 960 * 3 * 5 * 50_000 * 200, rel=1e-3)


def test_a_limited_cache_saves_fewer_forwards(tmp_path: Path) -> None:
    limited = expand_study(read_study("table3"), "paper", tmp_path, student={"cache_limit": "10 GB"})
    cost = study_cost(filter_cells(limited, pairs=["VGG13/VGG8"]))
    # A store of 10 GB holds x of 960 epochs of one seed, which KD long computes before the CutMix rows.
    assert cost.limited.stored_bytes == pytest.approx(960 * 50_000 * 200, rel=1e-3)
    assert cost.shared.forwards < cost.limited.forwards < cost.uncached - cost.without_store
    uncached = expand_study(read_study("precision"), "mini", tmp_path)
    assert study_cost(uncached).without_store == 5 * 100 * 1000  # KD in float32, with the cache off


def test_accuracies_of_the_paper_are_found() -> None:
    found = published_accuracy("table3", "kd+cutmix-pick@240", "VGG13/MobileNetV2", "cifar100")
    assert found is not None
    assert (found.mean, found.std) == (69.49, 0.32)
    assert published_accuracy("table3", "kd+cutmix-pick@960", "ResNet32x4/ResNet8x4", "cifar100") is None
    assert published_accuracy("table3", "kd@240", "VGG13/VGG8", "fashion-mini") is None
    imagenet = published_accuracy("table5", "crd", "ResNet34/ResNet18", "imagenet")
    assert imagenet is not None
    assert imagenet.mean == 71.38


def test_accuracies_that_could_not_be_read_without_doubt_are_printed_as_uncertain(tmp_path: Path) -> None:
    study = read_study("table3")
    results = collect_results(study, expand_study(study, "paper", tmp_path))
    uncertain = [result.cell for result in results if result.published and result.published.uncertain]
    doubtful = {(cell.row.name, cell.pair.name) for cell in uncertain}
    assert doubtful == {
        ("KD+CutMix-pick long", "ResNet56/ResNet20"),
        ("KD+CutMix-pick long", "ResNet32x4/ShuffleNetV2"),
        ("CRD+CutMix-pick", "ResNet56/ResNet20"),
    }
    table = accuracy_table(study, results)
    (long,) = (row for before, row in pairwise(table.rows) if before[0] == "KD+CutMix-pick long")
    cells = dict(zip(table.header, long, strict=True))
    assert cells["ResNet56/ResNet20"] == "71.66, uncertain"
    assert cells["ResNet32x4/ShuffleNetV2"] == "77.90 (0.30), uncertain"
    assert cells["WRN-40-2/WRN-16-2"] == "76.41 (0.10)"
    assert {result.as_json()["published"]["uncertain"] for result in results if result.published} == {False, True}


@pytest.mark.parametrize("study", ["table3", "table4", "table5"])
def test_crd_rows_have_the_recipe_that_the_paper_compares_with(study: str, tmp_path: Path) -> None:
    cells = [cell for cell in expand_study(read_study(study), "paper", tmp_path) if "CRD" in cell.row.name]
    assert len(cells) >= 1
    for run in list_runs(cells):
        if isinstance(run.config, StudentConfig):
            assert run.config.loss_weights == {"ce": 1, "kd": 1, "crd": 0.8}


MOBILE = {"MobileNetV2", "ShuffleV2"}


@pytest.mark.parametrize("study", ["table3", "table4"])
def test_mobile_networks_have_the_rate_of_the_authors_code(study: str, tmp_path: Path) -> None:
    runs = list_runs(expand_study(read_study(study), "paper", tmp_path))
    rates = {run.config.model: run.config.lr for run in runs if isinstance(run.config, StudentConfig)}
    assert {model: rate for model, rate in rates.items() if model in MOBILE} == dict.fromkeys(MOBILE, 0.01)
    assert {rate for model, rate in rates.items() if model not in MOBILE} == {0.05}


def test_presets_give_mobile_networks_the_rate_of_the_authors_code() -> None:
    students = {path.stem: StudentConfig.load(path) for path in (ROOT / "configs").glob("*.toml")}
    mobile = {name: config.lr for name, config in students.items() if config.model in MOBILE}
    assert mobile == {"cifar100-mobile": 0.01}
    assert students["cifar100"].lr == students["tiny-imagenet"].lr == 0.05


def test_a_row_with_options_of_losses_has_a_folder_of_its_own(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(
        'title = "T"\n[profiles]\nown = ["mini"]\n'
        '[[rows]]\nname = "A"\nsettings = { loss = "dkd" }\n'
        '[[rows]]\nname = "B"\nsettings = { loss = "dkd", losses.dkd = { beta = 2, target = "label" } }\n'
        '[[rows]]\nname = "C"\nsettings = { recipe = "kd-standardized" }\n'
    )
    cells = expand_study(read_study(str(own)), "own", tmp_path)
    names = [cell.runs[0].path.name for cell in cells]
    assert [name.removeprefix("resnet8-resnet20-shipped-") for name in names] == [
        "dkd-standard-100epochs-seed0",
        "dkd-standard-dkd.beta-2-dkd.target-label-100epochs-seed0",
        "ce-0.1+kd-9-standard-recipe-kd-standardized-100epochs-seed0",
    ]
    config = cells[1].runs[0].config
    assert isinstance(config, StudentConfig)
    assert config.losses.dkd is not None
    assert config.losses.dkd.beta == 2
    assert cells[2].runs[0].config.temperature == 2  # type: ignore[attr-defined]


def test_a_row_adds_options_to_those_of_all_rows(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(
        'title = "T"\n[profiles]\nown = ["mini"]\n'
        '[[rows]]\nname = "A"\nsettings = { augs.cutmix = { probability = 0.5 } }\n'
    )
    shared = {"aug": "cutmix", "augs": {"cutmix": {"alpha": 0.2}}}
    run = expand_study(read_study(str(own)), "own", tmp_path, student=shared)[0].runs[0]
    assert "-cutmix.probability-0.5-" in run.path.name
    assert isinstance(run.config, StudentConfig)
    assert run.config.augmentation.mixes == ("cutmix,alpha=0.2,probability=0.5",)


def test_a_row_has_settings_of_single_pairs_and_profiles_of_its_own(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(
        'title = "T"\n[profiles]\none = ["cifar100"]\nother = ["mini"]\n'
        '[[rows]]\nname = "A"\nsettings = { loss = "dkd", losses.dkd = { alpha = 2.0, beta = 3.0 } }\n'
        'by_pair."VGG13/VGG8".losses.dkd.beta = 6.0\n'
        '[[rows]]\nname = "B"\nprofiles = ["other"]\n'
    )
    cells = expand_study(read_study(str(own)), "one", tmp_path)
    options = {cell.pair.name: cell.runs[0].config.losses.dkd for cell in cells}  # type: ignore[attr-defined]
    assert {(pair, one.alpha, one.beta) for pair, one in options.items()} == {
        (pair, 2.0, 6.0 if pair == "VGG13/VGG8" else 3.0) for pair in options
    }
    names = {cell.pair.name: cell.runs[0].path.name for cell in cells}
    assert "-dkd.beta-6.0-" in names["VGG13/VGG8"]
    assert "-dkd.beta-3.0-" in names["ResNet56/ResNet20"]
    assert {cell.row.name for cell in cells} == {"A"}
    assert {cell.row.name for cell in expand_study(read_study(str(own)), "other", tmp_path)} == {"A", "B"}
    unknown = read_study(str(own)).rows[0].model_copy(update={"by_pair": {"VGG13/VGG9": {}}})
    with pytest.raises(UsageError, match=r"by_pair of a row .*expected WRN-40-2/WRN-16-2, .*, got VGG13/VGG9"):
        expand_study(read_study(str(own)).model_copy(update={"rows": (unknown,)}), "one", tmp_path)


def test_methods_have_their_published_settings_and_figures(tmp_path: Path) -> None:
    study = read_study("field")
    results = collect_results(study, expand_study(study, "paper", tmp_path))
    betas = {
        result.cell.pair.name: result.cell.runs[0].config.losses.dkd.beta  # type: ignore[attr-defined]
        for result in results
        if result.cell.row.name == "DKD+CutMix-pick"
    }
    assert betas == {
        "WRN-40-2/WRN-16-2": 6.0,
        "ResNet56/ResNet20": 2.0,
        "ResNet32x4/ResNet8x4": 8.0,
        "VGG13/VGG8": 6.0,
        "VGG13/MobileNetV2": 6.0,
        "ResNet50/VGG8": 8.0,
        "ResNet32x4/ShuffleNetV2": 8.0,
        "ResNet34/ResNet18": 0.5,
    }
    published = {(result.cell.row.name, result.cell.pair.name): str(result.published) for result in results}
    assert published["DIST", "ResNet32x4/ResNet8x4"] == "76.31"
    assert published["KD", "ResNet34/ResNet18"] == "70.66, others 71.21, 71.37"
    assert published["RLD", "VGG13/VGG8"] == published["KD+CutMix", "VGG13/VGG8"] == "None"
    sources = dict(reversed(sources_table(results).rows))  # CIFAR-100 first
    assert sources["crd"] == "RepDistiller README"


def test_settings_are_compared_on_validation_images_where_some_are_held_out(tmp_path: Path) -> None:
    study = read_study("figure1")
    results = collect_results(study, expand_study(study, "mini", tmp_path))
    tested = [replace(result, by_seed={0: 80.0}, last_top1=MeanStd.of([80.0])) for result in results]
    assert "validation" not in accuracy_table(study, tested).title
    assert {row[1].split()[0] for row in accuracy_table(study, tested).rows} == {"80.00"}
    assert "validation (last epoch)" not in cells_table(tested).header
    validated = [replace(result, val_top1=MeanStd.of([90.0])) for result in tested]
    assert "on validation images" in accuracy_table(study, validated).title
    assert {row[1].split()[0] for row in accuracy_table(study, validated).rows} == {"90.00"}
    cells = [dict(zip(cells_table(validated).header, row, strict=True)) for row in cells_table(validated).rows]
    assert {(cell["validation (last epoch)"], cell["last epoch"]) for cell in cells} == {("90.00", "80.00")}


def test_only_the_first_method_with_some_views_asks_the_teacher(tmp_path: Path) -> None:
    cost = study_cost(expand_study(read_study("field"), "mini", tmp_path))
    images, epochs, seeds = 1000, 24, 5
    views = 1 + 1 + 1  # x, the x' of CutMix, and one more with CutMix-pick
    assert cost.shared.forwards <= images + seeds * epochs * images * views
    assert cost.uncached == images + 5 * seeds * epochs * images * (1 + 2 + 3)  # of five methods


def test_problems_of_a_study_are_reported(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(STUDY.replace('title = "Four students"', 'colour = "red"'))
    with pytest.raises(UsageError, match="title") as refused:
        read_study(str(own))
    assert "colour" in str(refused.value)
    with pytest.raises(UsageError, match=r"study: expected a TOML file or a study \(claims, .*table3.*got table9"):
        read_study("table9")
    with pytest.raises(UsageError, match=r"--profile of table3: expected paper, mini, got huge"):
        expand_study(read_study("table3"), "huge", tmp_path)
    cells = expand_study(read_study("table3"), "paper", tmp_path)
    with pytest.raises(UsageError, match=r"--pairs: expected WRN-40-2/WRN-16-2.*, got A/B"):
        filter_cells(cells, pairs=["A/B"])
    with pytest.raises(UsageError, match=r"--rows: expected teacher, .*, got KD\+cutout"):
        filter_cells(cells, rows=["KD", "KD+cutout"])


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ('[[claims]]\nstatement = "nothing"\ntests = []', r"claims\.0\.tests"),
        ('[[claims]]\nstatement = "nothing"\ntests = [{ sum = {}, above = 0 }]', r"claims\.0\.tests\.0\.sum"),
        ('[[rows]]\nname = "a, b"', r"rows\.4\.name"),
        (
            '[[rows]]\nname = "teacher"\nkind = "teacher"\nepoch_multiplier = 2',
            r"rows\.4: .*no epoch_multiplier and no settings",
        ),
        ('[[rows]]\nname = "x"\nepoch_multiplier = [[1]]', r"rows\.4\.epoch_multiplier"),
    ],
)
def test_an_invalid_study_is_refused(change: str, where: str, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(f"{STUDY}\n{change}\n")
    with pytest.raises(UsageError, match=where):
        read_study(str(tmp_path / "own.toml"))


def test_unknown_pairs_are_refused(pictures: Path, tmp_path: Path) -> None:
    write_study(tmp_path, pictures)
    study = read_study(str(tmp_path / "four.toml")).model_copy(update={"pairs": ("ResNet8/ResNet9",)})
    with pytest.raises(UsageError, match="in the file of study four: expected ResNet8/ResNet8, got ResNet8/ResNet9"):
        expand_study(study, "own", tmp_path)


def test_part_of_a_study_can_be_selected(tmp_path: Path) -> None:
    cells = expand_study(read_study("claims"), "mini", tmp_path, seeds=7)
    assert {len(cell.runs) for cell in cells if cell.row.kind == "student"} == {7}
    part = filter_cells(cells, rows=["teacher", "KD"], seeds=2)
    assert [(cell.row.name, len(cell.runs)) for cell in part] == [("teacher", 1), ("KD", 2)]
    # Fewer seeds than the protocol's select a part of the study; its table lacks the others.
    assert {len(cell.runs) for cell in expand_study(read_study("claims"), "mini", tmp_path, seeds=2)[1:]} == {5}


def test_loaded_teachers_are_distinguished_by_the_content_of_their_files(tmp_path: Path) -> None:
    study, folders = read_study("claims"), []
    for content in (b"one", b"two"):
        (tmp_path / "net.pth").write_bytes(content)
        cells = expand_study(study, "mini", tmp_path, weights={"resnet20": str(tmp_path / "net.pth")})
        folders.append(cells[0].runs[0].path.name)
    assert folders[0] != folders[1]
    assert all(name.startswith("teacher-resnet20-") for name in folders)
    with pytest.raises(UsageError, match=r"weights .*gone\.pth"):
        expand_study(study, "mini", tmp_path, weights={"resnet20": str(tmp_path / "gone.pth")})


@pytest.mark.parametrize("name", STUDIES)
def test_runs_of_a_study_have_different_names(name: str, tmp_path: Path) -> None:
    runs = list_runs(expand_study(read_study(name), "paper", tmp_path))
    assert len({run.name for run in runs}) == len(runs)


def test_missing_images_are_reported_before_training(tmp_path: Path) -> None:
    write_study(tmp_path, tmp_path / "nowhere")
    cells = expand_study(read_study(str(tmp_path / "four.toml")), "own", tmp_path / "studies")
    with pytest.raises(UsageError, match="nowhere"):
        train_unfinished(cells, make_launcher("local", 1, tmp_path, {}), print)
    assert not (tmp_path / "studies").exists()


def test_a_partial_table_says_so(pictures: Path, tmp_path: Path) -> None:
    write_study(tmp_path, pictures)
    study = read_study(str(tmp_path / "four.toml"))
    tables = write_results(study, expand_study(study, "own", tmp_path / "studies"), tmp_path / "table")
    assert "partial: 0 of 5 runs" in tables[0].title


def test_several_epoch_multipliers_make_a_row_each(tmp_path: Path) -> None:
    rows = {row.name: row.epoch_multiplier for row in read_study("figure1").rows if row.settings["loss"] == "kd"}
    assert list(rows.items())[4:] == [("KD", 1), ("KD x2", 2), ("KD x3", 3), ("KD x4", 4)]
    own = tmp_path / "own.toml"
    own.write_text('title = "T"\n[profiles]\nown = ["mini"]\n[[rows]]\nname = "KD"\nepoch_multiplier = [1, 0]\n')
    with pytest.raises(UsageError, match=r"rows\.1\.epoch_multiplier: .*got 0"):
        read_study(str(own))


def run_command(*words: object) -> str:
    done = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_config_file_of_a_run_has_all_of_its_settings(tmp_path: Path) -> None:
    limit = {"cache_limit": "50 GB", "checkpoint_minutes": 3.0}
    for run in list_runs(expand_study(read_study("table3"), "mini", tmp_path, student=limit)):
        run.write_config()
        reread = type(run.config).load(run.config_file, out=run.path)
        assert reread == run.config


def test_commands_are_printed_with_their_config_files(tmp_path: Path) -> None:
    output = run_command("reproduce", "precision", "--profile", "mini", "--commands", "--out", tmp_path)
    commands = [shlex.split(line) for line in output.splitlines() if line.startswith("kdcache ")]
    assert len(commands) == 21  # a teacher, and four rows with five seeds
    assert {words[1] for words in commands} == {"teacher-load", "student-train"}
    assert all(Path(words[words.index("--config") + 1]).is_file() for words in commands)


def test_the_cost_of_a_study_is_printed_without_torch(tmp_path: Path) -> None:
    command = ["reproduce", "table1", "--dry-run", "--out", str(tmp_path)]
    run = f"from kdcache.cli import cli; cli({command}, standalone_mode=False)"
    code = f"import sys; {run}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("runs: ")


@pytest.mark.parametrize(("name", "options"), [("claims", ("--seeds", 10)), ("precision", ())])
def test_committed_records_give_the_tables_on_their_page(
    name: str, options: tuple[object, ...], tmp_path: Path
) -> None:
    records = RESULTS / f"{name}.tar.xz"
    run_command("reproduce", name, "--profile", "mini", *options, "--show", "--records", records, "--out", tmp_path)
    assert (tmp_path / f"{name}-mini.md").read_text() in (RESULTS / f"{name}.md").read_text()


def test_an_unreadable_archive_is_reported(tmp_path: Path) -> None:
    (tmp_path / "records.tar.xz").write_bytes(b"not an archive")
    for archive in (tmp_path / "records.tar.xz", tmp_path / "missing.tar.xz"):
        with (
            pytest.raises(UsageError, match=f"could not read {archive}: expected a tar file of run folders"),
            extracted(archive),
        ):
            pass


def test_a_damaged_archive_is_reported(tmp_path: Path) -> None:
    damaged, data = tmp_path / "records.tar.xz", (ROOT / "docs" / "results" / "precision.tar.xz").read_bytes()
    for place in (len(data) // 2, len(data) - 40):  # within the records, and within the checksums behind them
        damaged.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(UsageError, match=f"could not read {damaged}"), extracted(damaged):
            pass


def test_code_that_a_study_names_is_trusted_by_the_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extensions, "_trusted", set())
    study, model = read_study("table1"), {"model": "python:theirs:network"}
    rows = tuple(row.model_copy(update={"settings": {**row.settings, **model}}) for row in study.rows)
    with pytest.raises(UsageError, match="add --trust python:theirs:network"):
        expand_study(study.model_copy(update={"rows": rows}), "mini", tmp_path)
    extensions.trust("python:theirs:network")
    run = list_runs(expand_study(study, "mini", tmp_path))[-1]
    own = replace(run, config=run.config.model_copy(update=model))
    assert own.arguments[:3] == ("--trust", "python:theirs:network", run.command)


@pytest.mark.parametrize(("key", "table"), [("recipe", ""), ("config", "[student]\n")])
def test_code_that_a_file_of_a_study_names_is_not_imported(
    key: str, table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extensions, "_trusted", set())
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "their_code", raising=False)
    (tmp_path / "their_code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (tmp_path / "theirs.toml").write_text(f'{table}aug = "python:their_code:a"\n')
    study = read_study("table1")
    row = study.rows[1].model_copy(update={"settings": {key: str(tmp_path / "theirs.toml")}})
    own = study.model_copy(update={"rows": (row,)})
    for trusted, message in (((), "add --trust python:their_code:a"), (("python:their_code:a",), "could not import")):
        for address in trusted:
            extensions.trust(address)
        with pytest.raises(UsageError, match=message):
            expand_study(own, "mini", tmp_path)
        assert (tmp_path / "ran").exists() == bool(trusted)


def test_an_unfinished_run_keeps_its_device_and_precision(tmp_path: Path) -> None:
    run = list_runs(expand_study(read_study("table1"), "mini", tmp_path))[0]
    run.path.mkdir(parents=True)
    write_toml(RunFolder(run.path).config_file, run.config.model_copy(update={"device": "cpu"}).to_toml())
    run.write_config()
    assert run.problems() == []
    reread = type(run.config).load(run.config_file, out=run.path, resume=True)
    assert reread.differences(RunFolder(run.path).read_config()) == []


def test_all_values_of_a_key_are_named(tmp_path: Path) -> None:
    text = (ROOT / "configs" / "studies" / "figure1.toml").read_text()
    (tmp_path / "mine.toml").write_text(text.replace('figure_kind = "error-curves"', 'figure_kind = "bars"'))
    with pytest.raises(UsageError, match="'error-curves', 'kl-ratio' or 'label-disagreement', got bars"):
        read_study(str(tmp_path / "mine.toml"))
