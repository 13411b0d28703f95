"""A run trains on the data asked for, loses nothing, and leaves nothing where it fails."""

import csv
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torchvision.datasets import MNIST

import plot_losses
import train_fa_vs_bp_linear_model as script

pytestmark = pytest.mark.usefixtures("folder", "few_patterns")
SHORT = ["--epochs=1", "--hidden=16", "--log-every=4", "--dataset=synthetic", "--out=run"]
RAW = Path("data/MNIST/raw")


@pytest.fixture
def few_patterns(monkeypatch, small):
    monkeypatch.setattr(script, "random_patterns", lambda *_: small)


def run(*options):
    """Run main; return what config.json holds, and the log's rows."""
    script.main([*SHORT, *options])
    config = json.loads(Path("run/config.json").read_text())
    return config, list(csv.DictReader(Path("run/losses.csv").read_text().splitlines()))


def prepare(data, seed, *options):
    """Return what `train` needs, for these options."""
    args = script.make_parser().parse_args([*SHORT, *options])
    networks = script.matched_networks(data, args, seed)
    return networks, script.make_optimizer(networks, args), data, args, seed


def test_the_log_has_what_train_yields_and_each_seed_once(small):
    _, logged = run("--seeds", "1", "1234567", "1")
    expected = [row for seed in (1, 1234567) for row in script.train(*prepare(small, seed))]
    assert list(logged[0]) == list(expected[0])
    for texts, row in zip(logged, expected, strict=True):
        assert {name: float(text) for name, text in texts.items()} == pytest.approx(row, rel=1e-4)


def test_the_title_has_the_data_the_number_of_images_and_the_numbers_that_were_given():
    write_data(Path("elsewhere/MNIST/raw"), sizes=(320, 10))
    config, _ = run("--dataset=auto", "--data-dir=elsewhere", "--lr=0.125", "--momentum=0")
    assert all(text in config["title"] for text in ("MNIST", "320", "0.125", "momentum", "hidden"))
    assert "weight_decay" not in config["title"]


def test_config_holds_pytorchs_descriptions_of_what_is_trained(small):
    config, _ = run("--lr=0.125")
    networks, optimizer, *_ = prepare(small, 0, "--lr=0.125")
    assert "\n".join(config["optimizer"]) == str(optimizer)
    for rule, network in networks.items():
        assert "\n".join(config["networks"][rule]) == str(network)


def test_w_and_b_of_the_first_seed_are_saved_at_start_and_end(small):
    run("--seeds", "7", "8")
    networks, *rest = prepare(small, 7)
    for when in "start", "end":
        arrays, readout = np.load(f"run/fa_readout_{when}.npz"), networks["fa"].readout
        assert_close(torch.from_numpy(arrays["W"]), readout.weight.detach())
        assert_close(torch.from_numpy(arrays["B"]), readout.feedback)
        list(script.train(networks, *rest))


def test_a_run_that_is_stopped_keeps_its_rows_and_says_how_to_plot_them(monkeypatch):
    measure, log = script.measure, Path("run/losses.csv")

    def stop_at_the_third_row(*arguments):
        if log.exists() and len(log.read_text().splitlines()) == 3:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(script, "measure", stop_at_the_third_row)
    with pytest.raises(SystemExit) as stopped:
        run()
    plot_losses.main(shlex.split(str(stopped.value).splitlines()[-1])[2:])
    assert Path("run/losses.png").is_file()


def test_the_command_that_a_run_prints_plots_it_and_needs_no_notebooks_backend():
    options = ["--dataset=synthetic", "--epochs=1", "--batch-size=5000", "--out=my run"]
    command = [sys.executable, script.__file__, *options]
    backend = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    for _run_and_plot in range(2):
        env = os.environ | backend
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        command = shlex.split(done.stdout.splitlines()[-1])
    assert Path("my run/losses.png").is_file()


@pytest.mark.parametrize(
    "option",
    [
        *("--epochs=0", "--hidden=0", "--batch-size=0", "--log-every=0", "--threads=0"),
        *("--epochs=1.5", "--lr=-1", "--dataset=cifar", "--device=gpu", "--out=there"),
    ],
)
def test_what_makes_no_sense_is_refused_before_training_and_leaves_nothing(option, monkeypatch):
    Path("there").mkdir()
    monkeypatch.setattr(script, "train", lambda *_: pytest.fail("trained"))
    with pytest.raises((SystemExit, RuntimeError, ValueError, FileExistsError)):
        run(option)
    assert list(Path().rglob("*")) == [Path("there")]


# The data


def write_data(raw=RAW, sizes=(300, 95)):
    """Write the four files of a data set, each image of one grey level, that of its label."""
    raw.mkdir(parents=True)
    for name, size in zip(("train", "t10k"), sizes, strict=True):
        labels = bytes(i % 10 for i in range(size))
        images = b"".join(bytes([label] * 784) for label in labels)
        numbers = [n.to_bytes(4, "big") for n in (2049, size, 2051, size, 28, 28)]
        Path(raw, f"{name}-labels-idx1-ubyte").write_bytes(b"".join(numbers[:2]) + labels)
        Path(raw, f"{name}-images-idx3-ubyte").write_bytes(b"".join(numbers[2:]) + images)


@pytest.fixture
def server(monkeypatch):
    """Let MNIST come from a server of our own, which never answers."""
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.getsockname()[1]}/"])
        yield server


def test_images_are_normalised_by_mean_and_deviation_of_the_training_pixels():
    write_data()
    data = script.load_data("auto", "data")
    assert data.test_labels.tolist() == [i % 10 for i in range(95)]
    for images, labels in (data[2:4], data[4:]):
        expected = (labels[:, None].expand(-1, 784) - 4.5) / 8.25**0.5  # levels 0 to 9
        assert_close(images, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST"])
def test_each_data_set_is_read_from_its_own_folder(name):
    for each in "MNIST", "FashionMNIST", "KMNIST":
        write_data(Path("data", each, "raw"), sizes=(20, len(each)))
    data = script.load_data(name.lower(), "data")
    assert (data.name, data.classes, len(data.test_images)) == (name, 10, len(name))


def test_patterns_stand_in_with_a_warning_where_nothing_is_on_disk_or_to_be_had(
    server, small, capsys
):
    server.close()
    for _again in range(2):  # the first time leaves an empty folder
        assert script.load_data("auto", "data") is small
        assert "WARNING" in capsys.readouterr().err


def test_a_silent_server_is_given_up(monkeypatch, server, small):
    patience, start = socket.setdefaulttimeout, time.monotonic()
    monkeypatch.setattr(socket, "setdefaulttimeout", lambda seconds: patience(seconds / 50))
    patience(3)  # if the script sets none
    assert script.load_data("auto", "data") is small
    patience(None)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("case", ["by name", "missing", "part of a download", "cut"])
def test_no_patterns_stand_in_for_mnist_by_name_or_damaged_and_no_run_is_left(server, case):
    server.close()
    file = RAW / "t10k-labels-idx1-ubyte"
    if case != "by name":
        write_data()
        content = file.read_bytes()
        file.unlink()
    if case == "cut":
        file.write_bytes(content[:-1])
    if case == "part of a download":
        Path(f"{file}.gz").write_bytes(b"cut")
    with pytest.raises((RuntimeError, AssertionError, ValueError)):
        run("--dataset=mnist" if case == "by name" else "--dataset=auto")
    assert not Path("run").exists()
