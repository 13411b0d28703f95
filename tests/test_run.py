"""A run trains on the data asked for, loses nothing, and leaves nothing where it fails."""

import json
import os
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from numpy.testing import assert_allclose
from torchvision.datasets import MNIST

import fa_linear
import plot_losses
import train_fa_vs_bp_linear_model as script

SHORT = ["--epochs=1", "--hidden=16", "--log-every=4", "--dataset=synthetic", "--out=run"]
BAD = """epochs=0 hidden=0 batch-size=0 log-every=0 threads=0 dataset=x out=there lr=-1 lr=nan lr=inf
    lr=x momentum=-1 momentum=inf weight-decay=-1 weight-decay=nan init-scale=nan init-scale=-inf
    seeds=9223372036854775808 seeds=-9223372036854775809"""
LOG, RAW = Path("run/losses.csv"), Path("data/MNIST/raw")


@pytest.fixture(autouse=True)
def few_patterns_and_no_network(monkeypatch, folder, small):
    monkeypatch.setattr(script, "random_patterns", lambda *_: small)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:1/"])  # where nobody listens


def prepare(data, seed, *options):
    args = script.make_parser().parse_args([*SHORT, *options])
    networks = script.matched_networks(data, args, seed)
    return networks, script.make_optimizer(networks, args), data, args, seed, script.measure


def test_the_log_has_what_train_yields_and_each_seed_once(small):
    script.main([*SHORT, "--seeds", "1", "1234567", "1"])
    expected = [row for seed in (1, 1234567) for row in script.train(*prepare(small, seed))]
    lines = LOG.read_text().splitlines()
    names, *rows = (line.split(",") for line in lines)
    assert names == list(expected[0])
    assert_allclose(np.array(rows, float), [[*row.values()] for row in expected], rtol=1e-4)


def test_the_last_rows_are_summarised_over_all_seeds(capsys):
    script.main([*SHORT, "--seeds", "1", "2", "5"])
    log = np.genfromtxt(LOG, delimiter=",", names=True)
    ends = log[log["step"] == log["step"].max()]
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    for column in ends.dtype.names[2:]:
        ((_, mean, _, deviation),) = [words for words in printed if words[:1] == [column]]
        assert float(mean) == pytest.approx(ends[column].mean(), rel=1e-3)
        assert float(deviation) == pytest.approx(ends[column].std(ddof=1), rel=0.1)


def test_seeds_that_end_at_different_steps_are_not_summarised(capsys):
    script.summarise([{"seed": seed, "step": seed, "fa_loss": 1.0} for seed in (1, 2)])
    assert "different steps" in capsys.readouterr().out


def test_config_describes_the_data_the_options_given_and_what_is_trained(monkeypatch):
    write_data(Path("elsewhere/MNIST/raw"), sizes=(320, 10))
    monkeypatch.setattr(script, "loss_function", lambda *y: script.F.cross_entropy(*y))
    options = "--dataset=auto", "--data-dir=elsewhere", "--lr=0.125", "--momentum=0", "--threads=2"
    script.main([*SHORT, *options])
    config = json.loads(Path("run/config.json").read_text())
    title = config["title"]
    assert all(text in title for text in ("MNIST", "320", "0.125", "momentum", "hidden"))
    assert "threads" not in title
    assert "log" not in title
    assert [config["options"][name] for name in ("lr", "hidden", "seeds")] == [0.125, 16, [0]]
    assert config["loss"] == "<lambda>"
    networks, optimizer, *_ = prepare(script.load_data("mnist", "elsewhere"), 0, *options)
    assert config["optimizer"] == str(optimizer).splitlines()
    assert config["networks"] == {rule: str(net).splitlines() for rule, net in networks.items()}


def test_a_run_keeps_the_code_that_made_it():
    script.main(SHORT)
    for path in Path(script.__file__), Path(fa_linear.__file__):
        assert Path("run/code", path.name).read_bytes() == path.read_bytes()


def test_w_and_b_of_the_first_seed_are_saved_at_start_and_end_for_each_rule_with_a_b(
    small, monkeypatch
):
    monkeypatch.setitem(script.RULES, "own", type("Own", (fa_linear.FALinear,), {}))
    script.main([*SHORT, "--seeds", "7", "8"])
    networks, *rest = prepare(small, 7)
    for when in "start", "end":
        for rule in "fa", "own":
            arrays = np.load(f"run/{rule}_readout_{when}.npz")
            assert_allclose(arrays["W"], networks[rule].readout.weight.detach())
            assert_allclose(arrays["B"], networks[rule].readout.feedback)
        list(script.train(networks, *rest))
    assert not [*Path("run").glob("bp*")]


@pytest.mark.parametrize("rows", [0, 2])
def test_a_run_that_is_stopped_keeps_its_rows_and_says_how_to_plot_them(monkeypatch, rows):
    row = {"fa_error": 90, "fa_weight_angle": 90}
    monkeypatch.setattr(script, "measure", Mock(side_effect=[row] * rows + [KeyboardInterrupt]))
    with pytest.raises(SystemExit) as stopped:
        script.main(SHORT)
    last_line = str(stopped.value).splitlines()[-1]
    if not rows:
        assert last_line == "Stopped. " and not Path("run").exists()
        return
    plot_losses.main(shlex.split(last_line)[2:])
    assert len(LOG.read_text().splitlines()) == 1 + rows  # the columns' names
    assert LOG.with_name("losses.png").is_file()


def test_a_network_that_diverges_is_said_at_the_end(capsys):
    script.main([*SHORT, "--lr=1e30", "--seeds", "0", "12"])
    warnings = [line for line in capsys.readouterr().out.splitlines() if "WARNING" in line]
    assert any("12" in line and "fa_loss" in line for line in warnings)


def test_on_windows_the_plot_command_is_one_for_its_shells(monkeypatch, capsys):
    monkeypatch.setattr(script, "os", SimpleNamespace(name="nt", path=os.path))
    monkeypatch.setattr(sys, "executable", r"C:\Python 3\python.exe")
    script.main(SHORT)
    assert capsys.readouterr().out.splitlines()[-1].startswith(r'"C:\Python 3\python.exe" ')


def test_a_tilde_is_the_home_folder(monkeypatch, folder):
    home = folder / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    write_data(home / "sets/MNIST/raw")
    script.main([*SHORT, "--dataset=auto", "--data-dir=~/sets", "--out=~/run"])
    plot_losses.main(["~/run", "--out=~/picture.png"])
    assert (home / "picture.png").is_file() and list(folder.iterdir()) == [home]


def test_the_command_that_a_run_prints_plots_it_and_needs_no_notebooks_backend(capsys):
    script.main([*SHORT, "--out=my run"])
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    environment = os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    subprocess.run(command, env=environment, check=True)
    assert Path("my run/losses.png").is_file()


@pytest.mark.parametrize("option", BAD.split())
def test_what_makes_no_sense_is_refused_in_one_line_before_anything_is_done(option, capsys):
    Path("there").mkdir()
    with pytest.raises(SystemExit):
        script.main([*SHORT, f"--{option}"])
    assert f"argument --{option.partition('=')[0]}: " in capsys.readouterr().err.splitlines()[-1]
    assert list(Path().rglob("*")) == [Path("there")]


@pytest.mark.parametrize("seed", [-(2**63), 2**63 - 1])
def test_the_outermost_seeds_are_taken(seed):
    assert script.make_parser().parse_args([f"--seeds={seed}"]).seeds == [seed]


@pytest.mark.parametrize("mistake", ["device", "loss", "train", "test"])
def test_what_fails_in_the_first_step_leaves_no_folder(small, monkeypatch, mistake):
    if mistake == "loss":
        monkeypatch.setattr(script, "loss_function", lambda y, labels: script.F.mse_loss(y, labels))
    if mistake in ("train", "test"):  # there are no images
        names = f"{mistake}_images", f"{mistake}_labels"
        empty = small._replace(**{name: getattr(small, name)[:0] for name in names})
        monkeypatch.setattr(script, "random_patterns", lambda *_: empty)
    with pytest.raises((RuntimeError, AssertionError)):
        script.main([*SHORT, f"--device={'x' if mistake == 'device' else 'cpu'}"])
    assert not list(Path().iterdir())


def write_data(raw=RAW, sizes=(300, 95)):
    """Write the four files of a data set, each image of one grey level, that of its label."""
    raw.mkdir(parents=True)
    for name, size in zip(("train", "t10k"), sizes, strict=True):
        labels = bytes(i % 10 for i in range(size))
        images = b"".join(bytes([label] * 784) for label in labels)
        numbers = [n.to_bytes(4, "big") for n in (2049, size, 2051, size, 28, 28)]
        Path(raw, f"{name}-labels-idx1-ubyte").write_bytes(b"".join(numbers[:2]) + labels)
        Path(raw, f"{name}-images-idx3-ubyte").write_bytes(b"".join(numbers[2:]) + images)


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST"])
def test_a_data_set_is_read_from_its_folder_and_normalised_by_its_training_pixels(name):
    for each in "MNIST", "FashionMNIST", "KMNIST":
        write_data(Path("data", each, "raw"), sizes=(300, len(each)))
    data = script.load_data(name.lower(), "data")
    assert (data.name, data.classes) == (name, 10)
    assert data.test_labels.tolist() == [i % 10 for i in range(len(name))]
    for images, labels in (data[2:4], data[4:]):
        expected = (labels[:, None].expand(-1, 784) - 4.5) / 8.25**0.5  # levels 0 to 9
        assert_allclose(images, expected, rtol=1e-3, atol=1e-3)


def test_patterns_stand_in_with_a_warning_where_nothing_is_on_disk_or_to_be_had(small, capsys):
    for _again in range(2):  # the first time leaves an empty folder
        assert script.load_data("auto", "data") is small
        assert "WARNING" in capsys.readouterr().err


def test_a_silent_server_is_given_up(monkeypatch, small):
    patience, start = socket.setdefaulttimeout, time.monotonic()
    monkeypatch.setattr(socket, "setdefaulttimeout", lambda seconds: patience(seconds / 50))
    patience(3)  # if the script sets none
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.getsockname()[1]}/"])
        assert script.load_data("auto", "data") is small
    patience(None)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("there", ["nothing", "a part", "all, but one file is cut"])
def test_without_the_data_asked_for_or_with_a_part_no_run_is_left(there):
    if there != "nothing":
        write_data()
        labels = Path(RAW, "train-labels-idx1-ubyte")
        labels.write_bytes(labels.read_bytes()[:-1])
    if there == "a part":
        Path(RAW, "train-images-idx3-ubyte").unlink()
    with pytest.raises((RuntimeError, AssertionError, ValueError)):
        script.main([*SHORT, "--dataset", "mnist" if there == "nothing" else "auto"])
    assert not Path("run").exists()


def test_the_random_patterns_are_the_same_everywhere(small):
    assert small.train_labels[:6].tolist() == [3, 3, 6, 2, 9, 6]
    assert small.train_images[0, :3].tolist() == pytest.approx([-2.93531, -2.82850, -2.33057], 1e-3)
    assert small.test_images[-1, -2:].tolist() == pytest.approx([-0.54926, -0.58511], 1e-3)
