"""The comparison is matched, measures what it says, and loses nothing."""

import csv
import itertools
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmark import hand_written_loop
from torch.nn import functional as F

import plot_losses
import train_fa_vs_bp_linear_model as script

SMALL = ["--dataset=synthetic", "--epochs=1", "--hidden=16", "--log-every=4", "--device=cpu"]
MEASURES = [f"{rule}_{name}" for name in ("loss", "error") for rule in ("fa", "bp", "shallow")]
MEASURES += ["message_angle", "weight_angle"]


@pytest.fixture
def digits(small):
    return script.load_digits("synthetic", Path("data"), "cpu")


def settings(*arguments):
    return script.make_parser().parse_args([*SMALL, *arguments])


def matched(*arguments, seed=0):
    return script.matched_networks(settings(*arguments), seed)


def train(networks, digits, *arguments, seed=0):
    return list(script.train(networks, digits, settings(*arguments), seed))


def run(*arguments):
    return script.main([*SMALL, *map(str, arguments)])


def read_rows(folder):
    with open(Path(folder) / "losses.csv") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_the_networks_start_equal_as_pytorch_starts_and_the_scale_spares_the_feedback(scale):
    networks = matched("--hidden=1000", f"--init-scale={scale}", seed=3)
    other = matched("--hidden=1000", f"--init-scale={scale}", seed=4)["fa"]
    assert not torch.equal(networks["fa"][0].weight, other[0].weight)
    for name, start in networks["bp"].state_dict().items():
        assert all(torch.equal(start, networks[rule].state_dict()[name]) for rule in networks)
        bound = scale * (784 if name.startswith("0") else 1000) ** -0.5
        assert 0.7 * bound < start.abs().max() <= bound  # one bias has but 10 numbers
    feedback = networks["fa"][1].feedback
    assert feedback.abs().max().item() == pytest.approx(1000**-0.5, rel=0.01)
    assert abs(script.angle(feedback.flatten(), networks["fa"][1].weight.flatten()) - 90) < 3


def test_fa_with_feedback_tied_to_the_weights_is_bp(digits):
    networks = matched()

    def tie(layer, _):
        layer.feedback = layer.weight.detach().clone()

    networks["fa"][1].register_forward_pre_hook(tie)
    rows = train(networks, digits, "--log-every=1")
    assert all(row["fa_loss"] == row["bp_loss"] for row in rows)
    assert all(row["fa_error"] == row["bp_error"] for row in rows)
    assert rows[-1]["fa_loss"] < rows[0]["fa_loss"]


def test_the_layers_learn_that_should_and_no_others(digits):
    def learned(*option):
        networks = matched(*option)
        before = [parameter.clone() for parameter in networks.parameters()]
        train(networks, digits, *option)
        pairs = zip(before, networks.parameters(), strict=True)
        return [not torch.equal(old, new) for old, new in pairs]

    assert learned() == [True] * 8 + [False, False, True, True]  # fa, bp, shallow
    assert learned("--freeze-read-out") == [True, True, False, False] * 2  # fa, bp


def measure_by_hand(networks, digits):
    """Return test errors and angles, in other ways than the script's."""
    measures = {}
    for rule, (hidden, read_out) in networks.items():
        h = digits.test_images @ hidden.weight.T + hidden.bias
        y = h @ read_out.weight.T + read_out.bias
        wrong = [int(a.argmax()) != int(t) for a, t in zip(y, digits.test_labels, strict=True)]
        measures[f"{rule}_error"] = 100 * statistics.fmean(wrong)
    W, B = networks["fa"][1].weight.double(), networks["fa"][1].feedback.double()
    y = networks["fa"](digits.test_images).double()
    e = y.softmax(dim=1) - torch.eye(10)[digits.test_labels]
    cosines = [F.cosine_similarity(a @ B, a @ W, dim=0, eps=1e-30) for a in e]
    measures["message_angle"] = torch.stack(cosines).acos().rad2deg().mean().item()
    cosine = F.cosine_similarity(W.flatten(), B.flatten(), dim=0)
    return measures | {"weight_angle": cosine.acos().rad2deg().item()}


def test_each_network_learns_as_if_trained_alone_by_hand_on_the_same_mini_batches(digits):
    networks, by_hand = matched(seed=5), matched(seed=5)
    arguments = "--lr=0.02", "--momentum=0.7", "--weight-decay=0.1", "--epochs=2", "--log-every=6"
    rows = train(networks, digits, *arguments, seed=5)
    loop = hand_written_loop(by_hand, digits, settings(*arguments), seed=5)
    generator = torch.Generator().manual_seed(5)
    orders = [torch.randperm(300, generator=generator) for _epoch in range(2)]
    losses, measured = [], [measure_by_hand(by_hand, digits)]
    for batch in [batch for order in orders for batch in order.split(32)]:
        images, labels = digits.train_images[batch], digits.train_labels[batch]
        losses.append([F.cross_entropy(by_hand[rule](images), labels).item() for rule in by_hand])
        next(loop)
        measured.append(measure_by_hand(by_hand, digits))
    torch.testing.assert_close(list(networks.parameters()), list(by_hand.parameters()))
    # Rows: before any update, at early powers of two, every 6 steps, at each epoch's last.
    places = [(0, 0), (0, 1), (0, 2), (0, 4), (0, 6), (0, 10), (1, 6), (1, 10)]
    assert [(row["epoch"], row["step"]) for row in rows] == places
    steps = [0, 1, 2, 4, 6, 10, 16, 20]
    means = [torch.tensor(losses[a:b]).mean(dim=0).tolist() for a, b in itertools.pairwise(steps)]
    for step, mean, row in zip(steps, [losses[0], *means], rows, strict=True):
        assert [row[f"{rule}_loss"] for rule in by_hand] == pytest.approx(mean, rel=1e-4)
        assert {name: row[name] for name in measured[step]} == pytest.approx(measured[step], 1e-4)
    assert len(set(losses[0])) == 1  # a matched start


def test_the_angle_of_known_cases():
    a = torch.tensor([[3.0, 0], [1, 1], [0, 2], [-1, 0], [0, 0]])
    angles = script.angle(a, torch.tensor([2.0, 0]))
    torch.testing.assert_close(angles[:4], torch.tensor([0.0, 45, 90, 180]))
    assert angles[4].isnan()  # no message, no angle


def test_log_and_terminal_hold_what_was_asked_for_and_it_depends_on_nothing_else(digits, capsys):
    run("--out=both", "--seeds", 1, 1234567, 1, "--batch-size=30")
    output = capsys.readouterr().out
    run("--seeds", 1234567, "--batch-size=30")
    one = read_rows(next(Path("runs").iterdir()))
    both = read_rows("both")
    assert [row["seed"] for row in both] == ["1"] * 6 + ["1234567"] * 6
    assert both[6:] == one
    assert list(one[0]) == ["seed", "epoch", "step", *MEASURES]
    rows = train(matched(seed=1234567), digits, "--batch-size=30", seed=1234567)
    for logged, row in zip(one, rows, strict=True):
        values = [float(logged[name]) for name in MEASURES]
        assert values == pytest.approx([row[name] for name in MEASURES], rel=1e-5)
    config = json.loads(Path("both/config.json").read_text())
    assert (config["seeds"], config["steps_per_epoch"]) == ([1, 1234567], 10)
    assert config["dataset_used"] == "random patterns (not MNIST)"

    assert "Data: random patterns (not MNIST). Device: cpu. An epoch has 10 steps." in output
    table = [line.split("|") for line in output.splitlines() if "|" in line]
    assert [float(cell) for cell in table[-1][3:]] == pytest.approx(values, rel=1e-3)
    for name in MEASURES:
        ends = [float(both[row][name]) for row in (5, 11)]
        ((mean, deviation),) = re.findall(rf"^{name} +(\S+) ± (\S+)$", output, re.MULTILINE)
        assert float(mean) == pytest.approx(statistics.fmean(ends), rel=1e-3)
        assert float(deviation) == pytest.approx(statistics.stdev(ends), rel=0.1, abs=0.01)
    assert output.endswith("plot_losses.py both\n")


def test_the_stand_in_is_the_same_every_time_and_holds_ten_different_patterns(digits):
    again = script.load_digits("synthetic", Path("data"), "cpu")
    assert all(map(torch.equal, digits[1:], again[1:]))
    means = [digits.train_images[digits.train_labels == label].mean(dim=0) for label in range(10)]
    nearest = torch.cdist(digits.test_images, torch.stack(means)).argmin(dim=1)
    assert (nearest == digits.test_labels).float().mean() > 0.6
    assert not torch.equal(digits.train_images[:100], digits.test_images)
    assert digits.train_images.std().item() == pytest.approx(1)


def refuse(arguments, capsys, culprit):
    """Bad input gets status 2 and, below the usage, a line that names it; nothing is made."""
    before = set(Path().rglob("*"))
    with pytest.raises(SystemExit, match="2"):
        run(*arguments)
    assert culprit in capsys.readouterr().err.splitlines()[-1]
    assert set(Path().rglob("*")) == before


@pytest.mark.parametrize("answers", [True, False])
def test_where_the_download_fails_auto_says_that_it_stands_in_and_mnist_stops(
    small, monkeypatch, capsys, answers
):
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and never answers
        address = f"http://127.0.0.1:{server.getsockname()[1]}/"
        monkeypatch.setattr(script.MNIST, "mirrors", [address])
        patience = socket.setdefaulttimeout
        monkeypatch.setattr(socket, "setdefaulttimeout", lambda seconds: patience(seconds / 20))
        if answers:
            server.close()  # with a refusal
        assert run("--dataset=auto", "--out=run") == 0
        assert "no figure below is MNIST's" in capsys.readouterr().err
        assert "not MNIST" in Path("run/config.json").read_text()
        refuse(["--dataset=mnist"], capsys, "no MNIST in data")
    patience(None)


@pytest.fixture
def raw(small, monkeypatch):
    """The folder of MNIST's four files: 300 + 100 images, whose first pixel is the label."""
    monkeypatch.setattr(script.MNIST, "mirrors", [])
    raw = Path("data/MNIST/raw")
    raw.mkdir(parents=True)
    for name, size in ("train", 300), ("t10k", 100):
        sizes = [n.to_bytes(4, "big") for n in (size, 28, 28)]
        labels = os.urandom(size).translate(bytes(i % 10 for i in range(256)))
        images = b"".join(bytes([label]) + os.urandom(783) for label in labels)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(b"\0\0\b\3" + b"".join(sizes) + images)
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(b"\0\0\b\1" + sizes[0] + labels)
    return raw


def test_mnists_images_keep_their_labels_and_are_normalised(raw):
    digits = script.load_digits("auto", Path("data"), "cpu")
    assert digits.name == "MNIST"
    for images, labels in zip(digits[1::2], digits[2::2], strict=True):
        torch.testing.assert_close(images[:, 0], (labels / 255 - 0.1307) / 0.3081)


@pytest.mark.parametrize("damage", ["cut", "empty", "of the test images", "missing"])
@pytest.mark.parametrize("part", ["images-idx3-ubyte", "labels-idx1-ubyte"])
def test_damaged_or_incomplete_files_stop_the_run_and_it_says_what_to_delete(
    raw, capsys, part, damage
):
    train, test = ((raw / f"{name}-{part}").read_bytes() for name in ("train", "t10k"))
    (raw / f"train-{part}").unlink()
    if damage != "missing":
        damaged = {"cut": train[:-1], "empty": b"", "of the test images": test}[damage]
        (raw / f"train-{part}").write_bytes(damaged)
    refuse(["--dataset=auto"], capsys, "data/MNIST is damaged or incomplete; delete it")


BAD_OPTIONS = """--epochs=0 --epochs=1.5 --lr=0 --lr=-1 --lr=nan --lr=inf --batch-size=0 --hidden=0
    --momentum=1 --weight-decay=-1 --init-scale=0 --log-every=0 --seeds=x --dataset=cifar
    --device=gpu --device=cuda:99 --out=file --out=file/below --out=run --out=/proc/run"""


@pytest.mark.parametrize("option", [*BAD_OPTIONS.split(), "--data-dir=file --dataset=auto"])
def test_what_makes_no_sense_is_refused_and_leaves_nothing(small, capsys, option):
    Path("file").write_text("a file")
    Path("run").mkdir()
    name = option.partition("=")[0]
    named = {"--device": "error: ", "--data-dir": "no MNIST in file"}
    refuse(option.split(), capsys, named.get(name, f"argument {name}: "))


# The script in a process of its own, on the small stand-in, for hours.
LONG = f"""import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
sys.path.insert(0, {str(Path(script.__file__).parent)!r})
import train_fa_vs_bp_linear_model as script
script.TRAIN_SIZE, script.TEST_SIZE = 300, 100
sys.exit(script.main({[*SMALL, "--log-every=1", "--out=run", "--epochs=9999"]}))"""


@pytest.mark.parametrize("cause", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_stopped_keeps_its_rows_and_plots(tmp_path, cause):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", LONG], cwd=tmp_path, **pipes)
    shown = [process.stdout.readline() for _ in range(12)]
    process.send_signal(cause)
    terminal, error = process.communicate(timeout=30)
    interrupted = 130, "\nInterrupted. All rows so far are in run/losses.csv.\n"
    assert (process.returncode, error) == (interrupted if cause == signal.SIGINT else (-cause, ""))
    rows = read_rows(tmp_path / "run")[:-1]  # a kill may cut the last one
    assert [int(row["step"]) for row in rows] == [0] + [1 + i % 10 for i in range(len(rows) - 1)]
    assert len(rows) + 1 >= sum(
        line.startswith("   0|") for line in [*shown, *terminal.split("\n")]
    )
    plot_losses.main([str(tmp_path / "run")])
