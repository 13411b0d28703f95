"""A run says what it does, loses nothing, and refuses what it cannot do before it makes anything."""

import csv
import itertools
import json
import re
import runpy
import socket
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import train_fa_vs_bp_linear_model as script

pytestmark = pytest.mark.usefixtures("folder", "few_patterns")
SMALL = ["--dataset=synthetic", "--epochs=1", "--hidden=16", "--log-every=4", "--device=cpu"]


@pytest.fixture
def few_patterns(monkeypatch, small):
    monkeypatch.setattr(script, "random_patterns", lambda: small)


def run(*arguments):
    return script.main([*SMALL, *arguments])


def read_rows(path):
    return list(csv.DictReader(Path(path).read_text().splitlines()))


# Log and terminal


def test_the_log_is_what_train_yields_seed_by_seed_rounded_to_six_digits(small):
    run("--out=run", "--seeds", "1", "1234567")
    expected = []
    for seed in 1, 1234567:
        options = script.make_parser().parse_args(SMALL)
        networks = script.matched_networks(small, options, seed)
        for row in script.train(networks, small, options, seed):
            expected.append({"seed": seed} | row)
    logged = read_rows("run/losses.csv")
    assert [list(row) for row in logged] == [list(row) for row in expected]
    for text, row in zip(logged, expected, strict=True):
        assert {name: float(value) for name, value in text.items()} == pytest.approx(row, rel=1e-5)


def test_a_seed_given_twice_is_trained_once():
    run("--out=run", "--seeds", "1", "1")
    assert len(read_rows("run/losses.csv")) == 6


def test_a_row_is_written_with_commas_and_printed_under_its_names(capsys):
    row = {"seed": 1234567, "step": 12, "fa_loss": 0.12345678, "angle": 90.0}
    with open("log", "w") as log:
        script.record(row, log)
    assert Path("log").read_text() == "1234567,12,0.123457,90\n"
    assert capsys.readouterr().out == "1234567|  12| 0.1235|90.00\n"


def test_the_terminal_names_the_data_the_device_and_the_columns(capsys):
    run("--out=run")
    lines = capsys.readouterr().out.splitlines()
    header = Path("run/losses.csv").read_text().splitlines()[0]
    assert lines[0] == ("Data: random patterns (not MNIST). Device: cpu. An epoch has 10 steps.")
    assert lines[1] == (
        "Losses: means since the row before. Errors: % of the test images. Angles: degrees."
    )
    assert lines[2:4] == ["", header.replace(",", "|")]
    assert [len(line) for line in lines[4:10]] == [len(header)] * 6


def test_the_end_says_where_the_results_are_and_how_to_plot_them(capsys):
    run("--out=run")
    end = "\nResults: run/losses.csv\nTo plot them, run plot_losses.py.\n"
    assert capsys.readouterr().out.endswith(end)


def test_the_summary_has_each_measures_mean_and_sample_deviation(capsys):
    measures = [{"fa_loss": 1.0 + s, "longest_angle": 90.0} for s in range(3)]
    rows = [{"seed": 7, "epoch": 4, "step": 9} | measured for measured in measures]
    script.print_summary(rows)
    assert capsys.readouterr().out.splitlines() == [
        "",
        "Last rows, mean +- standard deviation over 3 seeds:",
        "fa_loss       2.000 +- 1",
        "longest_angle 90.00 +- 0",
    ]


def test_the_summary_of_seeds_that_diverge_says_inf_and_nan(capsys):
    script.print_summary([{"fa_loss": loss} for loss in (1.0, float("inf"))])
    assert capsys.readouterr().out.splitlines()[-1] == "fa_loss inf +- nan"


@pytest.mark.parametrize(("seeds", "times"), [(["1"], 0), (["1", "2"], 1)], ids=["one", "two"])
def test_there_is_a_summary_of_the_last_rows_where_there_are_several_seeds(seeds, times, capsys):
    run("--out=run", "--seeds", *seeds)
    output = capsys.readouterr().out
    assert output.count("Last rows") == times
    if times:
        ends = [float(row["bp_loss"]) for row in read_rows("run/losses.csv")[5::6]]
        mean = re.search(r"^bp_loss +(\S+) \+-", output, re.MULTILINE).group(1)
        assert float(mean) == pytest.approx(statistics.fmean(ends), rel=1e-3)


def test_what_is_printed_fits_an_ascii_console(capsys):
    run("--out=run", "--seeds", "1", "2")
    assert capsys.readouterr().out.isascii()


def test_a_run_that_is_interrupted_has_kept_each_row_and_says_so(monkeypatch, capsys):
    measure, calls = script.measure, itertools.count()

    def interrupted(*arguments):
        if next(calls) == 4:
            log = Path("run/losses.csv").read_text().splitlines()
            assert len(log) == 1 + 4  # on disk as soon as they are there
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(script, "measure", interrupted)
    assert run("--out=run") == 130
    assert capsys.readouterr().err == "\nInterrupted. All rows so far are in run/losses.csv.\n"


@pytest.mark.parametrize(("arguments", "status"), [([], 0), (["--epochs=0"], 2)], ids=["0", "2"])
def test_the_exit_status_is_mains(monkeypatch, arguments, status):
    write_mnist(RAW)
    arguments = ["script", "--dataset=mnist", "--device=cpu", "--epochs=1", *arguments]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(script.__file__, run_name="__main__")
    assert end.value.code == status


# What else a run writes


def test_of_a_rule_that_changes_b_both_b_are_saved(small, monkeypatch):
    def train(networks, *_arguments):
        networks["fa"].read_out.feedback.zero_()
        return []

    monkeypatch.setattr(script, "train", train)
    options = script.make_parser().parse_args([*SMALL, "--out=."])
    assert not list(script.compare(small, options))
    arrays = np.load("fa_read_out.npz")
    assert arrays["feedback_at_start"].all()
    assert not arrays["feedback_at_end"].any()


def test_the_first_seeds_feedback_and_weight_at_start_and_end_are_saved(small):
    run("--out=run", "--seeds", "7", "8")
    networks = script.matched_networks(small, script.make_parser().parse_args(SMALL), 7)
    read_out = networks["fa"].read_out
    arrays = np.load("run/fa_read_out.npz")
    np.testing.assert_array_equal(arrays["feedback_at_start"], read_out.feedback)
    np.testing.assert_array_equal(arrays["weight_at_start"], read_out.weight.detach())
    B, W = (torch.tensor(arrays[name]).flatten() for name in ("feedback_at_end", "weight_at_end"))
    last_of_first = read_rows("run/losses.csv")[5]
    assert float(script.angle(B, W)) == pytest.approx(
        float(last_of_first["weight_angle"]), rel=1e-4
    )


def test_config_says_what_was_asked_for_and_what_was_trained_on_what():
    arguments = ["--out=run", "--seeds", "1", "--momentum=0"]
    run(*arguments)
    config = json.loads(Path("run/config.json").read_text())
    options = vars(script.make_parser().parse_args([*SMALL, *arguments]))
    assert config == json.loads(json.dumps(options, default=str)) | {
        "arguments": [*SMALL, *arguments],
        "trained_on": "random patterns (not MNIST)",
        "networks": {
            "fa": "Linear 784-16, FALinear 16-10",
            "bp": "Linear 784-16, Linear 16-10",
            "shallow": "Linear 784-16 (frozen), Linear 16-10",
        },
        "optimizer": "SGD: lr 0.001, momentum 0.0, dampening 0, weight_decay 0.001, fused True",
        "torch": torch.__version__,
    }


def test_a_layer_that_is_not_linear_is_described_by_its_own_words():
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1, bias=False))
    network[2].requires_grad_(False)
    described = script.describe_network(network)
    assert described == "Linear 2-3, ReLU(), Linear 3-1 (frozen)"


def test_what_is_frozen_of_a_layer_is_named():
    network = nn.Sequential(nn.Linear(2, 3))
    network[0].bias.requires_grad_(False)
    assert script.describe_network(network) == "Linear 2-3 (bias frozen)"


def test_another_optimizer_is_described_by_its_own_settings():
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": weights[:1]}, {"params": weights[1:], "lr": 0.5}]
    optimizer = torch.optim.Adam(groups, lr=0.25, betas=(0.5, 0.75), eps=0.125)
    rest = "betas (0.5, 0.75), eps 0.125, weight_decay 0"
    assert script.describe_optimizer(optimizer) == f"Adam: lr 0.25, {rest}; lr 0.5, {rest}"


def test_a_network_of_another_class_is_called_by_it():
    class Direct(nn.Sequential):
        pass

    assert script.describe_network(Direct(nn.Linear(2, 3))) == "Direct, Linear 2-3"


# Options


def test_the_defaults():
    options = vars(script.make_parser().parse_args(["--device=cpu"]))
    out = str(options.pop("out"))
    assert re.fullmatch(r"runs/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-\d{6}", out)
    assert options == {
        "hidden": 20,
        "init_scale": 1.0,
        "freeze_read_out": False,
        "epochs": 5,
        "batch_size": 32,
        "lr": 1e-3,
        "momentum": 0.9,
        "weight_decay": 1e-3,
        "seeds": [0],
        "dataset": "auto",
        "data_dir": Path("data"),
        "device": "cpu",
        "threads": 1,
        "log_every": 125,
    }


def test_help_names_each_option_and_its_default(capsys):
    with pytest.raises(SystemExit, match="0"):
        script.main(["--help"])
    output = capsys.readouterr().out
    for option in vars(script.make_parser().parse_args([])):
        assert f"--{option.replace('_', '-')}" in output
    assert "(default: 0.001)" in output


def test_each_option_is_explained():
    assert all(action.help for action in script.make_parser()._actions)


def test_without_arguments_main_takes_those_of_the_command_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script", *SMALL, "--out=run"])
    assert script.main() == 0
    assert json.loads(Path("run/config.json").read_text())["arguments"] == [*SMALL, "--out=run"]


def test_threads_are_as_many_as_asked_for(monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    run("--out=run", "--threads=3")
    assert calls == [3]


@pytest.mark.parametrize("option", ["--out", "--data-dir"])
def test_a_tilde_is_the_home_directory(monkeypatch, tmp_path, option):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    options = vars(script.make_parser().parse_args([f"{option}=~/place"]))
    assert options[option[2:].replace("-", "_")] == tmp_path / "place"


BAD_OPTIONS = [
    *("--epochs=0", "--epochs=1.5", "--hidden=0", "--batch-size=0", "--log-every=0", "--threads=0"),
    *("--lr=-1", "--lr=nan", "--lr=x", "--momentum=-1", "--weight-decay=-1", "--init-scale=-1"),
    *("--seeds=x", "--dataset=cifar", "--device=gpu", "--device=cuda:99", "--device=meta"),
    *("--out=file", "--out=run", "--out=file/run"),
]


def refuse(arguments, capsys, culprit):
    """Bad input gets status 2 and, below the usage, a line that names it; nothing is made."""
    before = set(Path().rglob("*"))
    with pytest.raises(SystemExit, match="2"):
        run(*arguments)
    assert culprit in capsys.readouterr().err.splitlines()[-1]
    assert set(Path().rglob("*")) == before


@pytest.mark.parametrize("option", BAD_OPTIONS)
def test_what_makes_no_sense_is_refused_and_leaves_nothing(option, capsys):
    Path("file").write_text("a file")
    Path("run").mkdir()
    culprit = "file/run" if option == "--out=file/run" else f"argument {option.partition('=')[0]}: "
    refuse([option], capsys, culprit)


@pytest.mark.parametrize("option", ["--epochs=0", "--out=run", "--device=nope"])
def test_what_the_arguments_decide_is_refused_before_any_data_is_looked_for(
    option, capsys, monkeypatch
):
    Path("run").mkdir()
    monkeypatch.setattr(script, "load_data", lambda *_: pytest.fail("looked for data"))
    refuse([option, "--dataset=auto"], capsys, "error: argument")


@pytest.mark.parametrize("number", ["1", "3"])
def test_count_takes_whole_numbers_from_1(number):
    assert script.count(number) == int(number)


@pytest.mark.parametrize("number", ["0", "0.5", "2"])
def test_amount_takes_numbers_from_0(number):
    assert script.amount(number) == float(number)


# The data


def write_mnist(raw, sizes=(300, 100)):
    """Write MNIST's four files, each image of one grey level, that of its label."""
    raw.mkdir(parents=True)
    for name, size in zip(("train", "t10k"), sizes, strict=True):
        shape = b"".join(n.to_bytes(4, "big") for n in (size, 28, 28))
        labels = bytes(i % 10 for i in range(size))
        images = b"".join(bytes([label] * 784) for label in labels)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(b"\0\0\b\3" + shape + images)
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(b"\0\0\b\1" + shape[:4] + labels)


RAW = Path("data/MNIST/raw")
FILES = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
]


@pytest.fixture
def offline(monkeypatch):
    """Let every download be refused."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/"
    monkeypatch.setattr(script.SOURCE, "mirrors", [address])


def test_mnist_is_normalised_by_its_rounded_mean_and_deviation_of_training_pixels():
    write_mnist(RAW)
    data = script.load_data("auto", Path("data"))
    assert (data.name, data.classes) == ("MNIST", 10)
    for images, labels in (
        (data.train_images, data.train_labels),
        (data.test_images, data.test_labels),
    ):
        # Levels 0 to 9 of 255, as many of each: mean 4.5 / 255, deviation 2.872 / 255.
        expected = (labels[:, None].expand(-1, 784) / 255 - 0.0176) / 0.0113
        torch.testing.assert_close(images, expected)
    assert (len(data.train_images), len(data.test_images)) == (300, 100)


def test_a_data_sets_name_folder_and_classes_are_those_of_its_source(monkeypatch):
    other = type("Other", (script.SOURCE,), {"classes": ["one", "two"]})
    monkeypatch.setattr(script, "SOURCE", other)
    write_mnist(Path("data/Other/raw"))
    data = script.load_data("auto", Path("data"))
    assert (data.name, data.classes) == ("Other", 2)
    assert script.make_parser().parse_args(["--dataset=other"]).dataset == "other"


@pytest.mark.usefixtures("offline")
def test_patterns_stand_in_where_nothing_is_on_disk_and_the_download_fails(small, capsys):
    data = script.load_data("auto", Path("data"))
    printed = capsys.readouterr()
    assert data is small
    assert printed.out == f"Downloading MNIST to {RAW} ...\n"
    first, second = printed.err.splitlines()
    assert first.startswith("WARNING: cannot download MNIST (Error downloading train-images")
    assert first.endswith(f"); missing in {RAW}: {', '.join(FILES)}")
    assert second == "WARNING: random patterns stand in"


def test_a_silent_server_is_given_up(monkeypatch, small):
    patience = socket.setdefaulttimeout
    monkeypatch.setattr(socket, "setdefaulttimeout", lambda seconds: patience(seconds / 50))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/"
        monkeypatch.setattr(script.SOURCE, "mirrors", [address])
        assert script.load_data("auto", Path("data")) is small
    patience(None)


@pytest.mark.usefixtures("offline")
def test_mnist_asked_for_by_name_is_refused_where_it_cannot_be_had(capsys):
    script.load_data("auto", Path("data"))  # makes the folder
    capsys.readouterr()
    refuse(["--dataset=mnist"], capsys, "cannot download MNIST")


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("missing", FILES)
def test_half_a_download_stops_the_run_and_the_missing_file_is_named(missing, capsys):
    write_mnist(RAW)
    (RAW / missing).unlink()
    refuse(["--dataset=auto"], capsys, f"missing in {RAW}: {missing}")


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["train-images.idx3-ubyte", "train-images-idx3-ubyte.gz"])
def test_a_file_of_another_name_stops_the_run(name, capsys):
    RAW.mkdir(parents=True)
    (RAW / name).write_bytes(b"part of a download")
    refuse(["--dataset=auto"], capsys, f"missing in {RAW}: train-images-idx3-ubyte")


@pytest.mark.parametrize("file", FILES)
def test_a_file_that_is_cut_is_an_error_with_its_traceback(file):
    write_mnist(RAW)
    (RAW / file).write_bytes((RAW / file).read_bytes()[:-1])
    with pytest.raises((RuntimeError, AssertionError)):
        run("--dataset=auto")


def test_labels_of_another_number_of_images_are_an_error():
    write_mnist(RAW)
    (RAW / FILES[0]).write_bytes((RAW / FILES[2]).read_bytes())
    with pytest.raises(ValueError, match=r"MNIST: images .* \(100, 784\) and \(300,\)"):
        run("--dataset=auto")


NAN = torch.full((100, 784), float("nan"))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        pytest.param({"test_images": torch.zeros(100, 28, 28)}, "shapes", id="images not flat"),
        pytest.param({"test_labels": torch.zeros(100, 1)}, "shapes", id="labels in a column"),
        pytest.param({"test_labels": torch.zeros(1)}, "shapes", id="one label for all"),
        pytest.param({"train_labels": torch.zeros(301)}, "shapes", id="too many labels"),
        pytest.param({"test_labels": torch.full((100,), 10)}, "0 to 9", id="label too large"),
        pytest.param({"train_labels": torch.full((300,), -1)}, "0 to 9", id="label negative"),
        pytest.param({"test_images": NAN}, "not finite", id="pixels not finite"),
    ],
)
def test_own_data_that_do_not_fit_are_an_error_and_nothing_is_made(
    small, monkeypatch, change, problem
):
    monkeypatch.setattr(script, "load_data", lambda *_: small._replace(**change))
    with pytest.raises(ValueError, match=problem):
        run("--out=run")
    assert not Path("run").exists()


def test_a_file_that_cannot_be_read_is_named(monkeypatch, capsys):
    write_mnist(RAW)

    def locked(_source, *_arguments, **_settings):
        raise PermissionError(13, "Permission denied", str(RAW / FILES[0]))

    monkeypatch.setattr(script.SOURCE, "__init__", locked)
    refuse(["--dataset=auto"], capsys, f"Permission denied: '{RAW / FILES[0]}'")


def test_a_data_dir_that_is_a_file_is_refused(capsys):
    Path("file").write_text("a file")
    refuse(["--data-dir=file", "--dataset=auto"], capsys, "file/MNIST")


@pytest.mark.parametrize("stage", ["download", "read_data"])
def test_a_mistake_in_code_that_loads_data_is_not_taken_for_a_failed_download(monkeypatch, stage):
    def mistaken(_data_dir):
        raise RuntimeError("a mistake") if stage == "read_data" else TypeError("a mistake")

    if stage == "read_data":
        write_mnist(RAW)
    monkeypatch.setattr(script, stage, mistaken)
    with pytest.raises((RuntimeError, TypeError), match="a mistake"):
        script.load_data("auto", Path("data"))


def test_a_mistake_in_a_source_of_ones_own_is_not_taken_for_a_failed_download(monkeypatch):
    def mistaken(*_arguments, **_settings):
        raise RuntimeError("a mistake")

    own = type("Own", (script.SOURCE,), {"__init__": mistaken, "download": lambda _self: None})
    monkeypatch.setattr(script, "SOURCE", own)
    with pytest.raises(RuntimeError, match="a mistake"):
        script.load_data("auto", Path("data"))


def test_a_data_set_is_moved_as_a_whole(small):
    moved = small.to("meta")
    assert moved[:2] == small[:2]
    assert {tensor.device.type for tensor in moved[2:]} == {"meta"}
