"""The comparison is matched, measures what it says, and loses nothing."""

import csv
import itertools
import json
import re
import socket
import statistics
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import plot_losses
import train_fa_vs_bp_linear_model as script

SMALL = ["--dataset=synthetic", "--epochs=1", "--hidden=16", "--log-every=4", "--device=cpu"]


def matched(*arguments):
    """Return the options that these arguments give, and matched networks of the first seed."""
    options = script.make_parser().parse_args([*SMALL, *arguments])
    return options, script.matched_networks(options, options.seeds[0])


def run(*arguments):
    return script.main([*SMALL, *arguments])


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_networks_start_equal_as_pytorch_starts_and_those_layers_learn_that_should(scale):
    torch.manual_seed(3)
    hidden, feedback, read_out = nn.Linear(784, 16), nn.Linear(16, 10), nn.Linear(16, 10)
    start = [scale * parameter for parameter in [*hidden.parameters(), *read_out.parameters()]]
    _, networks = matched("--seeds=3", f"--init-scale={scale}")
    for network in networks.values():
        torch.testing.assert_close(list(network.parameters()), start)
    assert torch.equal(networks["fa"][1].feedback, feedback.weight)
    learn = [p.requires_grad for p in networks.parameters()]  # W0, b0, W, b of each
    assert learn == [True] * 8 + [False, False, True, True]  # fa, bp, shallow
    learn = [p.requires_grad for p in matched("--freeze-read-out")[1].parameters()]
    assert learn == [True, True, False, False] * 2  # fa, bp


def test_fa_with_feedback_tied_to_the_weights_is_bp(small):
    options, networks = matched("--log-every=1")
    networks["fa"][1].feedback = networks["fa"][1].weight.detach()  # the same numbers in memory
    rows = list(script.train(networks, small, options, seed=0))
    for row in rows:
        assert (row["fa_loss"], row["fa_error"]) == (row["bp_loss"], row["bp_error"])
    assert rows[-1]["fa_loss"] < rows[0]["fa_loss"]


def test_each_network_learns_as_if_trained_alone_on_the_same_mini_batches(small):
    changed = "--seeds=5 --lr=0.02 --momentum=0.7 --weight-decay=0.1 --epochs=2 --log-every=6"
    (options, together), (_, alone) = matched(*changed.split()), matched("--seeds=5")
    rows = list(script.train(together, small, options, seed=5))
    # Rows: before any update, at early powers of two, every 6 steps, at each epoch's last.
    places = [(0, 0), (0, 1), (0, 2), (0, 4), (0, 6), (0, 10), (1, 6), (1, 10)]
    assert [(row["epoch"], row["step"]) for row in rows] == places
    settings = {"momentum": 0.7, "nesterov": True, "weight_decay": 0.1}
    for rule, network in alone.items():
        optimizer, losses = torch.optim.SGD(network.parameters(), lr=0.02, **settings), []
        generator = torch.Generator().manual_seed(5)
        for _epoch in range(2):
            for batch in torch.randperm(300, generator=generator).split(32):
                outputs = network(small.train_images[batch])
                loss = F.cross_entropy(outputs, small.train_labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        steps = itertools.pairwise([0, 1, 2, 4, 6, 10, 16, 20])
        means = [losses[0], *(statistics.fmean(losses[a:b]) for a, b in steps)]
        assert [row[f"{rule}_loss"] for row in rows] == pytest.approx(means, rel=1e-4)
        torch.testing.assert_close(list(network.parameters()), list(together[rule].parameters()))
        assert losses[0] == rows[0]["fa_loss"]  # a matched start
        W0, b0, W, b = network.parameters()
        y = (small.test_images @ W0.T + b0) @ W.T + b
        wrong = [int(a.argmax()) != int(t) for a, t in zip(y, small.test_labels, strict=True)]
        assert rows[-1][f"{rule}_error"] == pytest.approx(100 * statistics.fmean(wrong))
        if rule == "fa":
            B, e = network[1].feedback, y.softmax(dim=1) - torch.eye(10)[small.test_labels]
            messages = F.cosine_similarity(e @ B, e @ W).acos().rad2deg().mean()
            matrices = F.cosine_similarity(B.flatten(), W.flatten(), dim=0).acos().rad2deg()
            angles = rows[-1]["message_angle"], rows[-1]["weight_angle"]
            assert angles == pytest.approx((messages.item(), matrices.item()), rel=1e-4)
    assert rows[-1]["bp_error"] < 50  # the stand-in can be learned
    assert script.angle(torch.zeros(2), torch.ones(2)).isnan()  # no message, no angle
    assert script.angle(torch.tensor([1.0, 0.0]), -torch.ones(2)) == pytest.approx(135)


def test_log_and_terminal_hold_what_was_asked_for_and_it_depends_on_nothing_else(small, capsys):
    run("--out=both", "--seeds", "1", "1234567", "1")
    output = capsys.readouterr().out
    run("--seeds=1234567")
    paths = Path("both/losses.csv"), next(Path("runs").glob("*/losses.csv"))
    both, one = (list(csv.DictReader(path.read_text().splitlines())) for path in paths)
    assert [row["seed"] for row in both] == ["1"] * 6 + ["1234567"] * 6
    assert both[6:] == one
    options, networks = matched("--seeds=1234567")
    for logged, row in zip(one, script.train(networks, small, options, 1234567), strict=True):
        assert list(logged) == ["seed", *row]
        assert [float(logged[name]) for name in row] == pytest.approx(list(row.values()), rel=1e-5)
    config = json.loads(Path("both/config.json").read_text())
    assert (config["seeds"], config["steps_per_epoch"]) == ([1, 1234567], 10)
    assert "Data: random patterns (not MNIST). Device: cpu. An epoch has 10 steps." in output
    for name in list(row)[2:]:
        ends = [float(both[end][name]) for end in (5, 11)]
        mean, deviation = re.search(rf"^{name} +(\S+) ± (\S+)$", output, re.MULTILINE).groups()
        assert float(mean) == pytest.approx(statistics.fmean(ends), rel=1e-3)
        assert float(deviation) == pytest.approx(statistics.stdev(ends), rel=0.1)


def refuse(arguments, capsys, culprit):
    """Bad input gets status 2 and, below the usage, a line that names it; nothing is made."""
    before = set(Path().rglob("*"))
    with pytest.raises(SystemExit, match="2"):
        run(*arguments)
    assert culprit in capsys.readouterr().err.splitlines()[-1]
    assert set(Path().rglob("*")) == before


@pytest.mark.parametrize("answers", [True, False])
def test_where_the_download_fails_patterns_stand_in(small, monkeypatch, capsys, answers):
    patience = socket.setdefaulttimeout
    monkeypatch.setattr(socket, "setdefaulttimeout", lambda seconds: patience(seconds / 20))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/"
        monkeypatch.setattr(script.MNIST, "mirrors", [address])
        if answers:
            server.close()  # by a refusal
        digits = script.load_digits("auto", Path("data"), "cpu")
        assert "no figure below is MNIST's" in capsys.readouterr().err
        refuse(["--dataset=mnist"], capsys, "no MNIST in data")
    patience(None)
    assert digits.name == "random patterns (not MNIST)"
    assert all(map(torch.equal, digits[1:], small[1:]))  # the same every time


def test_mnist_is_normalised_and_damaged_files_stop_the_run(small, monkeypatch, capsys):
    monkeypatch.setattr(script.MNIST, "mirrors", [])
    raw = Path("data/MNIST/raw")
    raw.mkdir(parents=True)
    for name, size in ("train", 300), ("t10k", 100):
        sizes = [n.to_bytes(4, "big") for n in (size, 28, 28)]
        labels = bytes(i % 10 for i in range(size))
        images = b"".join(bytes([label] * 784) for label in labels)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(b"\0\0\b\3" + b"".join(sizes) + images)
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(b"\0\0\b\1" + sizes[0] + labels)
    digits = script.load_digits("auto", Path("data"), "cpu")
    assert digits.name == "MNIST"
    for images, labels in zip(digits[1::2], digits[2::2], strict=True):
        expected = (labels[:, None].expand(-1, 784) / 255 - 0.1307) / 0.3081
        torch.testing.assert_close(images, expected)
    for file in sorted(raw.iterdir()):
        intact = file.read_bytes()
        part = "t10k" if file.name.startswith("train") else "train"
        other = file.with_name(part + file.name[file.name.index("-") :]).read_bytes()
        for damaged in intact[:-1], other, None:
            file.unlink() if damaged is None else file.write_bytes(damaged)
            refuse(["--dataset=auto"], capsys, "data/MNIST is damaged or incomplete; delete it")
        file.write_bytes(intact)


BAD_OPTIONS = """--epochs=0 --epochs=1.5 --lr=0 --lr=-1 --lr=nan --lr=inf --batch-size=0 --hidden=0
    --momentum=1 --weight-decay=-1 --init-scale=0 --log-every=0 --seeds=x --dataset=cifar
    --out=file --out=run --out=/proc/run"""


def test_what_makes_no_sense_is_refused_and_leaves_nothing(small, capsys):
    Path("file").write_text("a file")
    Path("run").mkdir()
    for option in BAD_OPTIONS.split():
        refuse([option], capsys, f"argument {option.partition('=')[0]}: ")
    for device in "gpu", "cuda:99":
        refuse([f"--device={device}"], capsys, "error: ")
    refuse(["--data-dir=file", "--dataset=auto"], capsys, "no MNIST in file")


def test_a_run_that_is_interrupted_has_kept_each_row_and_says_so(small, monkeypatch, capsys):
    measure, calls = script.measure, itertools.count()

    def interrupted(*arguments):
        if next(calls) == 4:
            log = Path("run/losses.csv").read_text().splitlines()
            assert len(log) == 1 + 4  # on disk as soon as they are there
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(script, "measure", interrupted)
    assert run("--out=run", "--epochs=2") == 130
    assert capsys.readouterr().err == "\nInterrupted. All rows so far are in run/losses.csv.\n"
    plot_losses.main(["run"])
