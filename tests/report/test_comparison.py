from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cl_diffusion.phases import spelled
from cl_diffusion.report.comparison import Comparison, flattened
from cl_diffusion.report.run import Run
from cl_diffusion.report.seeds import mean_and_half_width, told
from cl_diffusion.report.summary import summary
from tests.report.runs import rows, write


def test_runs_that_differ_in_the_seed_alone_are_one_method(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        write(tmp_path / "ewc" / f"seed_{seed}", seed=seed, shift=0.01 * seed)
    write(tmp_path / "finetune" / "seed_0", strength=None)
    comparison = Comparison.of([tmp_path])
    assert [(method.label, len(method.runs)) for method in comparison.methods] == [("ewc", 3), ("finetune/seed_0", 1)]
    assert comparison.warnings == []
    average = comparison.methods[0].matrix("class_agreement")
    assert average is not None
    assert average.entries[3, 1] == pytest.approx(0.51)


def test_the_same_seed_twice_is_no_second_seed(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name)
    comparison = Comparison.of([tmp_path / "one", tmp_path / "two", tmp_path / "one"])
    assert [method.label for method in comparison.methods] == ["one", "two"]
    assert any("same configuration and seed" in said for said in comparison.warnings)


def test_differences_are_of_the_settings_that_differ(tmp_path: Path) -> None:
    write(tmp_path / "weak", strength=1.0)
    write(tmp_path / "strong", strength=100.0)
    write(tmp_path / "none", strength=None, seed=4)
    differences = Comparison.of([tmp_path / name for name in ("weak", "strong", "none")]).differences
    assert differences["trainer.callbacks[EWC].init_args.strength"] == ["1.0", "100.0", None]
    assert set(differences) == {f"trainer.callbacks[EWC].{key}" for key in ("class_path", "init_args.strength")}


def test_two_callbacks_of_one_class_are_two() -> None:
    each = [{"class_path": "a.B", "init_args": {"x": number}} for number in (1, 2)]
    assert {flattened(each)[f"[B {number}].init_args.x"] for number in (1, 2)} == {"1", "2"}


def test_what_does_not_compare_is_said(tmp_path: Path) -> None:
    write(tmp_path / "a", judge="aa")
    write(tmp_path / "b", judge="bb", tasks=2, strength=None)
    said = " ".join(Comparison.of([tmp_path]).warnings)
    assert "2 different reference classifiers" in said
    assert "after 2, 3 tasks" in said


def test_classifiers_that_were_trained_apart_are_told(tmp_path: Path) -> None:
    for name, weights in (("a", "11"), ("b", "11"), ("c", "22")):
        write(tmp_path / name, strength=float(ord(name)))
        yardstick = {"reference_classifier": "aa", "held_out_accuracy": 0.9, "weights": weights}
        (tmp_path / name / "yardstick.json").write_text(json.dumps(yardstick))
    assert not Comparison.of([tmp_path / "a", tmp_path / "b"]).warnings
    (said,) = Comparison.of([tmp_path]).warnings
    assert "trained apart" in said


def test_the_summary_has_each_figure_with_its_interval(tmp_path: Path) -> None:
    for seed, shift in enumerate((0.0, 0.02, 0.04)):
        write(tmp_path / f"ewc_{seed}", seed=seed, shift=shift)
    columns = {(column.metric, column.figure): column for column in summary(Comparison.of([tmp_path]))}
    ((text, value),) = columns["class_agreement", "average"].cells
    # the mean of (.5 + .7 + .9) / 3 + shift over shifts 0, .02, .04, and t_{.975, 2} = 4.3027 times .02 / sqrt(3)
    assert value == pytest.approx(0.72)
    assert text == "0.720 ± 0.050"
    assert round(4.3027 * 0.02 / math.sqrt(3), 3) == 0.05
    assert columns["class_agreement", "forgetting"].cells[0][1] == pytest.approx((0.4 + 0.2) / 3)
    assert columns["frechet_distance", "backward transfer"].cells[0][1] == pytest.approx(-60)
    assert columns["frechet_distance", "average"].better == "lower"
    assert columns["frechet_distance", "backward transfer"].better == "higher"


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8), st.floats(-1e3, 1e3))
def test_an_interval_moves_with_its_values_and_keeps_its_width(values: list[float], by: float) -> None:
    mean, half = mean_and_half_width(values)
    moved, same = mean_and_half_width([value + by for value in values])
    assert half is not None
    assert moved == pytest.approx(mean + by, abs=1e-6)
    assert same == pytest.approx(half, abs=1e-6)


def test_numbers_are_told_as_they_are_read() -> None:
    assert mean_and_half_width([0.5]) == (0.5, None)
    assert [told(3e-18), told(math.nan), told(0.47123, 0.0312), told(123456.0)] == ["0", "–", "0.471 ± 0.031", "123456"]
    # with an interval, both to the place of the interval's second digit
    given = [(0.2164321, 0.00011), (1234.5, 123.4), (-0.001, 0.12), (0.7, 0.0), (math.nan, 0.1)]
    assert [told(*each) for each in given] == ["0.21643 ± 0.00011", "1234 ± 123", "0.00 ± 0.12", "0.7 ± 0", "–"]
    assert [spelled(s) for s in (3.21, 59.4, 152.0, 3900.0)] == ["3.2 s", "59 s", "2 min 32 s", "1 h 5 min"]


def test_a_folder_without_a_run_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"run='.*empty' holds no run .*give the folders"):
        Comparison.of([tmp_path / "empty"])
    with pytest.raises(ValueError, match="no run was given"):
        Comparison.of([])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("continual.csv", "metric,after,task,value\nclass_agreement,1,1,x\n", "line 2.*no entry of a continual matrix"),
        ("continual.csv", "metric,after,task,value\nfame,1,1,0.5\n", "line 2.*'fame'"),
        ("continual.csv", "metric,after,task,value\nclass_agreement,0,1,0.5\n", "line 2.*counted from 1"),
        ("config.yaml", "a: [", "config.yaml cannot be read"),
        ("config.yaml", "- a", "config.yaml holds list"),
        ("run.json", "{", "run.json cannot be read"),
        ("timings.csv", "task,phase,seconds\n1,training\n", "timings.csv, line 2.*2 columns"),
        ("plasticity.csv", "task,layer,figure,value\n1,a,dead,much\n", "plasticity.csv, line 2.*much"),
        ("audit/after_task_1/audit.json", "{}", "no audit as FisherAudit writes it"),
    ],
)
def test_a_file_that_is_not_as_it_was_written_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (write(tmp_path / "run") / name).write_text(content)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        Run.read(tmp_path / "run")


def test_the_log_of_a_killed_fit_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    folder = write(tmp_path / "run")
    path = folder / "metrics.csv"
    whole = Run.read(folder)
    path.write_text(path.read_text()[:-14])
    cut = Run.read(folder)
    assert whole.notes == ()
    assert cut.notes == ("metrics.csv: 1 row not whole, as a killed run leaves them",)
    assert cut.log == whole.log[:-1]


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.9, 0.99])
def test_a_boundary_that_was_cut_off_is_left_out_whatever_the_order_of_columns(share: float, tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.csv"
    path.parent.mkdir()
    rows(path, ["continual/a/average", "epoch", "step", "train_loss"], (0.5, 1, 100, 0.25), (0.75, 2, 200, 0.125))
    text = path.read_text()
    last = text.rindex("0.75")
    path.write_text(text[: last + int(share * len("0.75,2,200,0.125"))])
    run = Run.read(path.parent)
    assert run.boundaries == [100.0]
    assert run.series("train_loss") == ([100.0], [0.25])
    assert len(run.notes) == 1


def test_seeds_of_callbacks_and_folders_in_them_are_of_the_run(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        folder = write(tmp_path / f"seed_{seed}" / "ewc", seed=seed)
        settings = yaml.safe_load((folder / "config.yaml").read_text())
        settings["run"] = f"runs/seed_{seed}"
        settings["trainer"]["callbacks"][1]["init_args"]["seed"] = seed
        settings["trainer"]["logger"] = {"class_path": "a.Logger", "init_args": {"save_dir": f"runs/seed_{seed}/board"}}
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (method,) = Comparison.of([tmp_path]).methods
    assert (method.label, len(method.runs)) == ("ewc", 3)


@pytest.mark.parametrize(
    ("names", "label"),
    [
        (("ewc_10", "ewc_11", "ewc_12"), "ewc"),
        (("si_s100", "si_s101"), "si"),
        (("ewc/seed_3", "ewc/seed_14"), "ewc"),
        (("3/ewc", "14/ewc"), "ewc"),
        (("ewc_first", "ewc_second"), "ewc"),
        (("one", "other"), "one to other"),
    ],
)
def test_a_label_holds_no_part_of_a_seed(names: tuple[str, ...], label: str, tmp_path: Path) -> None:
    for seed, name in enumerate(names):
        write(tmp_path / name, seed=seed)
    write(tmp_path / "elsewhere", strength=None)
    assert label in [method.label for method in Comparison.of([tmp_path]).methods]


def test_no_two_methods_have_one_label(tmp_path: Path) -> None:
    for strength, names in {1.0: ("a_0", "a_1"), 2.0: ("a_2", "a_3"), 3.0: ("a_0_1", "a_0_2")}.items():
        for seed, name in enumerate(names):
            write(tmp_path / name, seed=seed, strength=strength)
    labels = [method.label for method in Comparison.of([tmp_path]).methods]
    assert len(set(labels)) == 3, labels


def test_seeds_that_have_come_further_than_others_count_as_far_as_all_have(tmp_path: Path) -> None:
    write(tmp_path / "m_0", seed=0, tasks=3)
    write(tmp_path / "m_1", seed=1, tasks=2)
    comparison = Comparison.of([tmp_path])
    columns = {(column.metric, column.figure): column for column in summary(comparison)}
    assert columns["class_agreement", "average"].cells[0][1] == pytest.approx((0.7 + 0.9) / 2)
    assert any("figures are of what all of them have, after 2" in said for said in comparison.warnings)


def test_a_run_that_goes_on_and_a_metric_that_one_seed_lacks_are_told(tmp_path: Path) -> None:
    for seed in (0, 1):
        write(tmp_path / f"m_{seed}", seed=seed)
    path = tmp_path / "m_1" / "continual.csv"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "frechet" not in line))
    record = {"sessions": [{"command": "x", "started": "today", "ended": None}]}
    (tmp_path / "m_0" / "run.json").write_text(json.dumps(record))
    said = " ".join(Comparison.of([tmp_path]).warnings)
    assert "Not every run of m (2 seeds) has measured frechet_distance" in said
    assert "m_0: not ended when this was written" in said
    assert "m_1: not" not in said


def test_runs_are_found_by_links_and_whatever_they_are_called_and_not_within_runs(tmp_path: Path) -> None:
    real = tmp_path / "real"
    for name, strength in (("audit", 1.0), ("ewc", 2.0)):
        write(real / name, strength=strength)
    (real / "ewc" / "lightning_logs" / "version_0").mkdir(parents=True)
    (real / "ewc" / "lightning_logs" / "version_0" / "metrics.csv").write_text("step\n")
    assert len(Comparison.of([real]).runs) == 2
    links = tmp_path / "links"
    links.mkdir()
    for name in ("audit", "ewc"):
        (links / name).symlink_to(real / name)
    (links / "round").symlink_to(links)
    assert len(Comparison.of([links]).runs) == 2


@pytest.mark.parametrize("name", ["metrics.csv", "continual.csv", "timings.csv", "config.yaml", "run.json"])
def test_a_file_of_other_bytes_is_named(name: str, tmp_path: Path) -> None:
    (write(tmp_path / "run") / name).write_bytes(b"step,a\n\xff\xfe\n")
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        Run.read(tmp_path / "run")


def test_a_step_that_was_trained_twice_is_there_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    rows(folder / "metrics.csv", ["step", "train_loss"], (0, 1.0), (10, 0.5), (20, 0.4), (10, 0.6), (20, 0.3))
    assert Run.read(folder).series("train_loss") == ([0.0, 10.0, 20.0], [1.0, 0.6, 0.3])
