"""Each experiment does to a network what its name says; what is computed exactly, is exact."""

import csv
import itertools
import math
import os
import signal
import time
from pathlib import Path

import common
import deeper
import eigenvalues
import phases
import pytest
import taken_away
import torch
import turn
import word
from matplotlib.figure import Figure
from torch import nn
from torch.testing import assert_close

import train_fa_vs_bp_linear_model as script
from fa_linear import FALinear


@pytest.fixture(scope="module")
def data():
    """Few patterns: an epoch has 63 mini-batches."""
    return script.random_patterns(train_size=2000, test_size=200)


@pytest.fixture(autouse=True)
def two_linear_layers(data):
    """The experiments refuse other networks; who changes the script's is not to fight their tests."""
    try:
        network = common.set_up(data, 0)[0]["fa"]
    except AssertionError as refused:
        pytest.skip(str(refused))
    if network.readout.weight.dtype != torch.float32:
        pytest.skip("the experiments load float32")


def test_experiments_refuse_a_network_that_is_not_two_linear_layers(data, monkeypatch):
    layers = nn.Linear(784, 20), nn.ReLU(), FALinear(20, 10)
    networks = nn.ModuleDict({rule: nn.Sequential(*layers) for rule in ("fa", "bp")})
    monkeypatch.setattr(script, "matched_networks", lambda *_: networks)
    with pytest.raises(AssertionError, match="two linear layers"):
        common.set_up(data, 0)


def fa_of(data, *options, **changes):
    networks, args = common.set_up(data, 0, *options, rules=["fa"], **changes)
    return networks, args, networks["fa"]


def gradients(network, data):
    """Return the gradients of a network's weights for the training images."""
    network.zero_grad()
    script.loss_function(network(data.train_images), data.train_labels).backward()
    return {name: w.grad for name, w in network.named_parameters() if w.grad is not None}


# What they share


def test_the_networks_are_the_scripts_with_a_relu_if_asked_for(data):
    networks, args = common.set_up(data, 3, "--hidden=7", "--init-scale=0.5")
    expected = script.matched_networks(data, args, 3)
    assert list(networks) == ["fa", "bp"]
    assert_close(networks["fa"].state_dict(), expected["fa"].state_dict())
    with_relu = common.set_up(data, 3, "--hidden=7", "--init-scale=0.5", relu=True)[0]["fa"]
    h = expected["fa"].hidden(data.test_images).clamp(min=0)
    assert_close(with_relu(data.test_images), expected["fa"].readout(h))


def test_training_stops_after_the_steps_asked_for_as_the_script_would_be_then(data):
    networks, args, network = fa_of(data)
    rows = common.train_for(networks, data, args, 0, 70, script.measure, every=35)
    assert list(rows) == [0, 1, 2, 4, 8, 16, 32, 35, 70]
    expected, args, other = fa_of(data, "--epochs=9", "--log-every=70")
    optimizer = script.make_optimizer(expected, args)
    for row in script.train(expected, optimizer, data, args, 0, script.measure):
        if row["step"] == 70:
            break
    assert rows[70]["fa_error"] == row["fa_error"]
    assert_close(network.state_dict(), other.state_dict())


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (phases, "phases"),
        (phases, "writing"),
        (turn, "turn"),
        (turn, "law"),
        (eigenvalues, "follow"),
        (eigenvalues, "all_of"),
        (taken_away, "take_away"),
        (taken_away, "change_messages"),
    ],
)
def test_a_table_trains_from_its_seed(data, monkeypatch, module, name):
    seeds, set_up = [], module.set_up

    def train_for(networks, data, args, seed, *rest, **others):
        seeds.append(seed)
        raise Stop

    def recorded(data, seed, *options, **changes):
        seeds.append(seed)
        return set_up(data, seed, *options, **changes)

    monkeypatch.setattr(module, "set_up", recorded)
    monkeypatch.setattr(module, "train_for", train_for)
    with pytest.raises(Stop):
        getattr(module, name)(data, 3)
    assert seeds == [3, 3]


def test_a_step_without_a_row_cannot_be_stopped_at(data):
    networks, args, _ = fa_of(data)
    with pytest.raises(AssertionError, match="no row"):
        common.train_for(networks, data, args, 0, 70, script.measure, every=50)


def random_table(_data, seed):
    return {
        "10 b": {"x": 2.0 * seed, "hidden": 1},
        "9 a": {"x": seed / 10, "only": 1},
        "c": {"x": 1},
    }


def failing_table(_data, seed):
    if seed == 0:
        raise ValueError("seed 0")
    time.sleep(30)


def cell(row, column, values):
    return None if column == "hidden" else common.mean_and_deviation(row, column, values)


TABLE = "t|x|only\n---|---|---\n9 a|0.050±0.071|1.0±0.0\n10 b|1.0±1.4|\nc|1.0±0.0|"


@pytest.fixture
def tiny_mnist(folder):
    from test_run import write_data

    write_data(folder / "MNIST/raw")
    return str(folder)


@pytest.mark.parametrize("options", [[], ["--seeds=2"], ["--seeds=1"]], ids=str)
def test_tables_are_printed_and_files_written_by_a_complete_run_alone(tiny_mnist, capsys, options):
    tables = {"t": (random_table, 2, cell), "u": (random_table, 1, None)}
    common.main("x.py", "Doc.", tables, lambda _: Figure(), arguments=[tiny_mnist, *options])
    printed = capsys.readouterr().out
    if options == ["--seeds=1"]:
        assert printed and not list(Path().glob("x.*"))
        return
    assert printed == f"\n{TABLE}\n"
    assert Path("x.png").is_file()
    with open("x.csv", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["table"] + line["seed"] for line in lines] == ["t0"] * 5 + ["t1"] * 5 + ["u0"] * 5
    assert lines[5] == {"table": "t", "row": "10 b", "column": "x", "seed": "1", "value": "2"}


def test_an_error_in_one_seed_shows_at_once(tiny_mnist):
    start = time.monotonic()
    with pytest.raises(ValueError, match="seed 0"):
        common.main("x.py", "Doc.", {"t": (failing_table, 5, cell)}, arguments=[tiny_mnist])
    assert time.monotonic() - start < 10
    assert not Path("x.csv").exists()


def slow_table(_data, _seed):
    os.write(1, b"on\n")
    time.sleep(60)


@pytest.mark.parametrize("whom", ["parent", "group"])
def test_ctrl_c_stops_all_at_once_in_one_line(tiny_mnist, whom):
    reading, writing = os.pipe()
    child = os.fork()
    if not child:  # a process with a group of its own, which writes all into the pipe
        os.setsid()
        for output in 1, 2:
            os.dup2(writing, output)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # it may have been ignored
        try:
            common.main("x.py", "Doc.", {"t": (slow_table, 9, None)}, arguments=[tiny_mnist])
        except BaseException as stopped:  # noqa: BLE001
            os.write(2, str(stopped).encode())
        os._exit(1)
    os.close(writing)
    with open(reading, encoding="utf-8") as output:
        assert output.readline() == "on\n"
        (os.kill if whom == "parent" else os.killpg)(child, signal.SIGINT)
        start = time.monotonic()
        rest = output.read()  # ends when no process holds the pipe any more
    os.waitpid(child, 0)
    rest = rest.replace("on\n", "")
    assert rest == "Stopped; nothing is written."
    assert time.monotonic() - start < 10


def test_without_mnist_a_line_names_the_command_and_nothing_is_downloaded(folder):
    with pytest.raises(SystemExit, match="train_fa_vs_bp_linear_model.py"):
        common.load(str(folder))
    assert not list(folder.iterdir())


# word.py


def test_a_word_that_is_spelled_can_be_read():
    like = torch.randn(10, 400)
    for text in "DUPLICATES", "BACKGROUND", "FJHMQVWXYZ":
        matrix = word.spell(text, like)
        assert word.read(matrix)[0] == text
        assert_close(matrix.std(), like.std())
        assert_close(matrix.mean(dim=1), torch.zeros(10), rtol=0, atol=1e-5)


@pytest.mark.parametrize("text", ["DUPLICATE", "DUPLICATED", "DUPLICAT3S", "ÄUPLICATES", ""])
def test_what_is_no_word_of_ten_different_letters_is_refused(text, capsys):
    with pytest.raises(SystemExit):
        word.main(["nowhere", text, "BACKGROUND"])
    assert "ten different letters" in capsys.readouterr().err


def test_b_spells_both_networks_start_as_the_other_word_and_what_is_gained_is_by_digit(data):
    found = word.train(data, "DUPLICATES", "BACKGROUND", 64)
    assert [word.read(found[name])[0] for name in ("B", "start")] == ["DUPLICATES", "BACKGROUND"]
    networks, args, network = fa_of(data, "--hidden=400", "--init-scale=0.1")
    network.readout.feedback, network.readout.weight.data = found["B"], found["start"]
    before = network.hidden(data.test_images)
    common.train_for(networks, data, args, 0, 64, lambda *_: {})
    gained = network.hidden(data.test_images) - before
    means = [gained[data.test_labels == digit].mean(dim=0) for digit in range(10)]
    assert_close(found["gained"], torch.stack(means) - sum(means) / 10, rtol=1e-3, atol=1e-3)
    assert_close(found["FA"], network.readout.weight.detach(), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found["BP"], found["FA"])


def test_what_w_reads_is_printed_and_the_picture_named_by_the_words(folder, monkeypatch, capsys):
    words = {"B": "DUPLICATES", "start": "BACKGROUND", "gained": "NIGHTMARES", "FA": "ALGORITHMS"}
    matrices = {name: word.spell(text, torch.randn(9)) for name, text in words.items()}
    matrices["BP"] = word.spell("IMPORTANCE", torch.randn(9))
    monkeypatch.setattr(word, "load", lambda _: None)
    monkeypatch.setattr(word, "train", lambda _data, B, W, steps: matrices if steps == 1875 else {})
    word.main(["nowhere", "algorithms", "BACKGROUND"])
    assert Path("ALGORITHMS-BACKGROUND.png").is_file()
    lines = capsys.readouterr().out.splitlines()[-3:]
    ends = [f"{name}|1.00|1.00" for name in ("BACKGROUND", "ALGORITHMS", "IMPORTANCE")]
    assert lines == [f"{name}|{end}" for name, end in zip(("start", "FA", "BP"), ends)]


def test_fa_turns_one_word_into_the_other_and_bp_does_not(mnist):
    found = word.train(mnist, "DUPLICATES", "BACKGROUND", 512)
    fa, bp = word.read(found["FA"])[0], word.read(found["BP"])[0]
    assert sum(a == b for a, b in zip(fa, "DUPLICATES")) >= 7
    assert bp == "BACKGROUND"


# phases.py

ERRORS = {1875: {"error": 1.0}, 15000: {"error": 2.0}}


@pytest.mark.parametrize("layer", ["hidden", "readout"])
def test_a_layer_that_learns_alone_changes_alone(data, layer):
    networks, args, network = fa_of(data)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    phases.learn_alone(layer, networks, data, args, 0, 5)
    after = network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{layer}.weight", f"{layer}.bias"}


def test_labels_are_permuted_by_the_seed_and_nothing_else_is_changed(data):
    changed = phases.permuted(data, 3)
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(3))
    assert torch.equal(changed.train_labels, data.train_labels[order])
    assert changed.train_images is data.train_images and changed.test_labels is data.test_labels


def test_what_is_done_in_each_phase(data, monkeypatch):
    done, usual = [], fa_of(data)[2].readout.weight.norm()

    def learn_alone(layer, networks, given, args, seed, steps, every=None):
        network = networks["fa"]
        size = (network.readout.weight.norm() / usual).item() if len(network) == 2 else 0
        assert network.hidden.out_features == (20 if len(network) == 2 else 50)
        labels = "true" if given.train_labels is data.train_labels else "other"
        done.append((layer, steps, labels, network.readout.feedback.sum().item(), len(network)))
        if steps == phases.USE:
            done.append(round(size, 2))
        return ERRORS

    monkeypatch.setattr(phases, "learn_alone", learn_alone)
    rows = phases.phases(data, 0)
    assert len(rows) == 12
    for layers, size in (2, 0.1), (3, 0):
        B = done[0][3]
        write, copied, use = ("hidden", 64), ("readout", 2000), ("hidden", 15000)
        plan = [[write, copied, use, size], [write, copied, use, size], [write, copied, use, size]]
        plan += [[copied, use, size], [copied, use, 1 if size else 0], [write, use, size]]
        for number, steps in enumerate(plan):
            for step in steps:
                found = done.pop(0)
                if not isinstance(step, tuple):
                    assert found == step
                    continue
                labels = "other" if number == 2 and step == write else "true"
                assert (*found[:3], found[4]) == (*step, labels, layers)
                assert (found[3] == B) == (number != 1 or step != use)  # 1: another B


def test_how_long_is_written_and_the_signs_are_told_apart(data, monkeypatch):
    leasts = itertools.cycle([-0.1, 0.1])

    def run(_networks, args, data, seed, write_from, steps):
        assert args.init_scale == 0.1 and write_from is data
        return {"steps": steps, "least eigenvalue": next(leasts)}

    monkeypatch.setattr(phases, "run", run)
    rows = phases.writing(data, 0)
    assert [columns["steps"] for columns in rows.values()] == [4, 8, 12, 16, 24, 32, 128]
    assert list(rows)[:2] == ["4 steps, negative", "8 steps, positive"]


def test_a_span_is_from_least_to_largest():
    assert phases.span("", "x", [2.0, -1.0]) == "-1.0 to 2.0"
    assert phases.span("", "runs", [1.0, 1.0]) == "2"


def test_a_row_has_what_was_written_and_the_angle_and_errors_of_the_w_and_b_that_are_used(
    data, monkeypatch
):
    networks, args, network = fa_of(data)
    readout = network.readout

    def learn_alone(layer, *_, **__):
        if layer == "hidden":
            network.hidden.weight.data += 1
        return ERRORS

    monkeypatch.setattr(phases, "learn_alone", learn_alone)
    old_B = readout.feedback
    row = phases.run(networks, args, data, 0, write_from=data, another_B=True)
    W, B = readout.weight.detach().flatten(), readout.feedback.flatten()
    cosine = torch.cosine_similarity(B, old_B.flatten(), dim=0)
    assert abs(cosine) < 0.5
    assert_close(B.std(), old_B.std(), rtol=0.2, atol=0)
    least, symmetric = eigenvalues.least_eigenvalues(readout)
    network.hidden.weight.data -= 1  # of the use
    assert row == {
        "‖ΔV‖": pytest.approx((784 * 20) ** 0.5, rel=1e-3),
        "angle": script.angle(W, B).item(),
        "least eigenvalue": least,
        "symmetric part": symmetric,
        "before use": phases.error(networks, data)["error"],
        "use, 1 epoch": 1.0,
        "8 epochs": 2.0,
    }


def test_an_error_is_that_of_the_test_images(data):
    networks, _, _ = fa_of(data)
    expected = script.measure(networks, data)["fa_error"]
    assert phases.error(networks, data) == {"error": pytest.approx(expected)}


# turn.py


@pytest.mark.parametrize("dose", [-2, 0, 0.5, 1])
def test_a_dose_gives_w_the_gradient_of_h0_and_so_much_of_what_was_written(data, dose):
    _, _, network = fa_of(data)
    h0 = network.hidden(data.train_images).detach()
    dosed = turn.Dosed(network, dose)
    with torch.no_grad():
        network.hidden.weight.mul_(3)
    whole = {name: grad.clone() for name, grad in gradients(network, data).items()}
    e = script.error_signal(network(data.train_images), data.train_labels) / 2000
    h = network.hidden(data.train_images).detach()
    found = gradients(dosed, data)
    expected = whole | {"readout.weight": e.T @ (h0 + dose * (h - h0))}
    assert found.keys() == expected.keys()
    for name in expected:
        assert_close(found[name], expected[name], rtol=1e-3, atol=1e-4)
    assert_close(dosed(data.test_images), network(data.test_images))


@pytest.mark.parametrize("dose", [-1, 0, 1])
def test_the_computed_turn_is_exact_if_errors_stay_what_they_are(data, dose):
    """Full-batch training on a loss whose gradient is constant: e of the start."""
    _, args, network = fa_of(data, "--weight-decay=0", "--lr=0.01")
    y = network(data.train_images)
    constant = script.error_signal(y, data.train_labels) / 2000
    computed = turn.compute(network, data, args, 20, dose)
    dosed = turn.Dosed(network, dose)
    optimizer = script.make_optimizer(dosed, args)
    for angle in computed:
        assert turn.angle_at_readout({"fa": dosed}, data)["angle"] == pytest.approx(angle, abs=0.05)
        optimizer.zero_grad()
        dosed(data.train_images).backward(constant)
        optimizer.step()
    assert dose == 0 or abs(computed[20] - computed[0]) > 2


def test_the_turn_of_other_networks_is_not_computed(data):
    _, args, network = fa_of(data, relu=True)
    with pytest.raises((AssertionError, ValueError)):
        turn.compute(network, data, args, 3, 1)


@pytest.mark.parametrize("relu", [False, True])
def test_the_law_holds_for_one_small_step(data, relu):
    networks, _, network = fa_of(data, relu=relu)
    networks.double()
    one = data._replace(
        train_images=data.train_images[:9].double(), train_labels=data.train_labels[:9]
    )
    sides = [turn.both_sides(networks, one)]
    gradients(network, one)
    torch.optim.SGD(network.parameters(), lr=1e-6).step()
    sides.append(turn.both_sides(networks, one))
    product, half = (sides[1][key] - sides[0][key] for key in ("product", "half"))
    assert product == pytest.approx(half, rel=1e-3)
    fresh, _, network = fa_of(data, relu=relu)
    weight, bias = network.hidden.parameters()
    half = (weight.square().sum() + bias.square().sum()).item() / 2
    assert turn.both_sides(fresh, one)["half"] == pytest.approx(half)


def test_the_law_is_for_plain_sgd_and_the_default_with_and_without_a_relu(data, monkeypatch):
    seen = []

    def train_for(networks, data, args, seed, steps, measure):
        units = networks["fa"].hidden.out_features
        seen.append(
            (args.momentum, args.weight_decay, units, len(networks["fa"]), args.init_scale, steps)
        )
        return {0: {"product": 0, "half": 0}, steps: {"product": 1, "half": 2}}

    monkeypatch.setattr(turn, "train_for", train_for)
    rows = turn.law(data, 0)
    assert list(rows["plain SGD, linear"].values()) == [1, 2, 50]
    assert list(rows) == [
        f"{how}, {n}" for how in ("plain SGD", "default") for n in ("linear", "ReLU")
    ]
    plain, default = (0, 0), (0.9, 0.001)
    kinds = (20, 2), (50, 3)
    assert seen == [(*how, *kind, 0.1, 3750) for how in (plain, default) for kind in kinds]


def test_what_is_computed_and_measured_stands_at_its_step_and_dose(data, monkeypatch):
    doses, measured = [], {step: {"angle": -step} for step in range(0, 97, 4)}
    compute = lambda *_: doses.append(_[-1]) or [1000 * _[-1] + step for step in range(97)]
    monkeypatch.setattr(turn, "compute", compute)
    monkeypatch.setattr(turn, "train_for", lambda networks, *_, **__: seen(networks) or measured)
    seen = lambda networks: doses.append(networks["fa"].dose)
    rows = turn.turn(data, 0)
    assert doses == [dose for dose in (-2, -1, -0.5, 0, 0.5, 1, 2) for _ in range(2)]
    assert rows["s = -0.5"]["16: computed"] == -484 and rows["s = 2"]["64: measured"] == -64


def test_on_mnist_each_dose_turns_w_as_was_computed(mnist, monkeypatch):
    monkeypatch.setattr(turn, "DOSES", (-1, 0, 1))
    rows = turn.turn(mnist, 0)
    for columns in rows.values():
        assert columns["48: measured"] == pytest.approx(columns["48: computed"], abs=3)
    reversed_, cut, copied = (columns["48: measured"] for columns in rows.values())
    assert reversed_ > cut + 10 > copied + 30


# eigenvalues.py


@pytest.mark.parametrize("sign", [1, -1])
def test_the_eigenvalues_are_for_errors_that_sum_to_zero(sign):
    readout = FALinear(10, 10)
    readout.feedback = torch.eye(10)
    readout.weight.data = sign * torch.eye(10) - torch.ones(10, 10) / 2  # on errors all alike: -5
    readout.weight.data[0, 1] += 8  # for the symmetric part
    readout.weight.data[0, 2] -= 8
    found = eigenvalues.eigenvalues(readout.weight.detach())
    assert_close(found.real, torch.full((9,), float(sign)), rtol=0, atol=0.05)
    whole, symmetric = eigenvalues.least_eigenvalues(readout)
    assert whole == pytest.approx(sign, abs=0.05) and symmetric < sign - 2


def test_from_which_step_none_is_negative(data, monkeypatch):
    least = lambda step: [-0.1 if step in (0, 50, 125) else 0.1, -0.1]
    rows = {step: {"least": least(step), "all": [step] * 9} for step in range(0, 9376, 25)}
    monkeypatch.setattr(eigenvalues, "train_for", lambda *_: rows)
    found = eigenvalues.follow(data, 0)
    assert list(found[eigenvalues.FROM].values()) == [150, math.inf]
    assert list(found["500"].values()) == [0.1, -0.1]
    assert eigenvalues.all_of(data, 0)["125"] == {f"{i}": 125 for i in range(9)}


def test_what_is_measured_are_the_eigenvalues_of_w_and_b(data):
    networks, _, network = fa_of(data)
    found = eigenvalues.measure(networks, data)
    product = network.readout.weight.detach() @ network.readout.feedback.T
    real_parts = eigenvalues.eigenvalues(product).real.tolist()
    assert found["all"] == sorted(real_parts)
    assert found["least"] == eigenvalues.least_eigenvalues(network.readout)


def test_a_cell_counts_what_is_negative_and_has_the_median_step():
    assert eigenvalues.cell("125", "", [1.0, -3.0]).endswith("negative in 1")
    assert eigenvalues.cell(eigenvalues.FROM, "", [100, 125, 400]) == "125 (100 to 400)"


# taken_away.py


def effect(networks):
    """Say what was done to FA's and BP's networks."""
    if list(networks) == ["bp"]:
        return "softmax regression" if isinstance(networks["bp"], nn.Linear) else "BP alone"
    fa = networks["fa"]
    if list(networks) == ["fa"]:
        return "-B" if torch.equal(fa.readout.weight, -fa.readout.feedback) else "FA alone"
    bp = networks["bp"]
    if isinstance(fa, turn.Dosed) and isinstance(bp, turn.Dosed):
        return f"dose {fa.dose}"
    if not (fa.readout.weight.any() or bp.readout.weight.any() or fa.hidden.weight.any()):
        return "zero"
    frozen = {n for n, p in [*fa.named_parameters(), *bp.named_parameters()] if not p.requires_grad}
    return " ".join(sorted(frozen))


@pytest.mark.parametrize(("hidden", "steps"), [(20, 9375), (1000, 1875)])
def test_each_row_does_what_its_name_says(data, monkeypatch, hidden, steps):
    effects = []

    def train_for(networks, data, args, seed, *rest):
        assert (args.hidden, *rest) == (hidden, steps, script.measure)
        effects.append(effect(networks))
        row = {"fa_error": 1, "bp_error": 2, "fa_weight_angle": 3, "fa_message_angle": 4}
        return {steps: row}

    monkeypatch.setattr(taken_away, "train_for", train_for)
    run = taken_away.take_away if hidden == 20 else taken_away.take_away_from_1000
    rows = run(data, 0)
    assert rows["nothing"] == {"FA": 1, "BP": 2, "W and B": 3}
    assert rows["luck at the start: W starts at −B"] == {"FA": 1, "W and B": 3}
    assert rows["the hidden layer: softmax regression"] == {"BP": 2}
    expected = ["", "hidden.bias hidden.weight", "readout.weight", "dose 0", "-B", "zero"]
    assert effects == [*expected, "softmax regression"]
    words = ["nothing", "hidden layer (shallow)", "of W", "copying", "−B", "zero", "softmax"]
    assert all(word in row for word, row in zip(words, rows, strict=True))


def test_b_is_redrawn_or_noise_sent_as_the_rows_say(data, monkeypatch):
    done = []
    row = {9375: {"fa_error": 5}}
    monkeypatch.setattr(taken_away, "train_for", lambda *_: row)
    monkeypatch.setattr(taken_away, "send_noise", lambda readout: done.append("noise"))
    monkeypatch.setattr(taken_away, "redraw_B", lambda readout, steps: done.append(steps))
    rows = taken_away.change_messages(data, 0)
    assert done == ["noise", 1, 10, 100, 375, 1875, 9375]
    assert [row.split()[0] for row in rows] == [str(each) for each in done]


@pytest.mark.parametrize(
    ("change", "frozen"),
    [
        (taken_away.freeze_hidden, {"hidden.weight", "hidden.bias"}),
        (taken_away.freeze_W, {"readout.weight"}),
    ],
)
@pytest.mark.parametrize("rule", ["fa", "bp"])
def test_what_is_frozen(data, change, frozen, rule):
    networks, _ = common.set_up(data, 0)
    change(networks)
    found = set()
    for name, weight in networks[rule].named_parameters():
        if not weight.requires_grad:
            found.add(name)
    assert found == frozen


def test_copying_is_cut_and_starts_are_changed(data):
    networks, _ = common.set_up(data, 0)
    taken_away.start_at_zero(networks)
    assert not any(weight.any() for weight in networks.parameters())
    assert networks["fa"].readout.feedback.any()
    taken_away.cut_copying(networks)
    assert [(type(each), each.dose) for each in networks.values()] == [(turn.Dosed, 0)] * 2
    networks, _ = common.set_up(data, 0)
    taken_away.drop_hidden(networks)
    assert networks["bp"].weight.shape == (10, 784)


@pytest.mark.parametrize(("steps", "draws"), [(1, 6), (3, 2), (10, 1)])
def test_b_is_drawn_anew_every_so_many_steps_and_not_by_measuring(data, steps, draws):
    _, _, network = fa_of(data)
    taken_away.redraw_B(network.readout, steps)
    seen = {network.readout.feedback.sum().item()}
    for _step in range(6):
        network.eval()(data.test_images)
        network.train()(data.train_images[:4])
        seen.add(network.readout.feedback.sum().item())
    assert len(seen) == 1 + draws
    assert network.readout.feedback.abs().max() <= 20**-0.5  # as B is drawn


def test_noise_has_each_messages_norm_but_not_its_direction(data):
    readout, h = fa_of(data)[2].readout, torch.randn(50, 20, requires_grad=True)
    taken_away.send_noise(readout)
    error = torch.randn(50, 10)
    readout(h).backward(error)
    message = error @ readout.feedback
    assert_close(h.grad.norm(dim=1), message.norm(dim=1))
    assert script.angle(h.grad, message).mean().item() == pytest.approx(90, abs=15)
    assert script.angle(h.grad[1:], h.grad[:-1]).mean().item() == pytest.approx(90, abs=15)
    readout(h.detach())  # measured: there is no message


# deeper.py


@pytest.mark.parametrize("name", deeper.NETWORKS)
def test_the_deeper_networks_are_matched_and_differ_in_their_class(name):
    networks = deeper.make_networks(name, 3)
    fa, bp = networks["fa"], networks["bp"]
    assert all(map(torch.equal, fa.parameters(), bp.parameters()))
    units, between = deeper.NETWORKS[name]
    assert name.startswith("-".join(map(str, units)))
    assert name.endswith("tanh" if between is nn.Tanh else "linear")
    steps = len(units) - 2
    assert [type(layer) for layer in fa] == [nn.Linear] + [between, FALinear] * steps
    assert [type(layer) for layer in bp] == [nn.Linear] + [between, nn.Linear] * steps
    for layer, inputs, outputs in zip(fa[::2], units, units[1:]):
        assert layer.weight.shape == (outputs, inputs)
    for layer in fa[2::2]:
        assert not torch.equal(layer.weight, layer.feedback)


def test_the_deeper_networks_are_trained_at_the_rate_for_five_epochs(data, monkeypatch):
    seen = []

    def train_for(networks, data, args, seed, steps, measure):
        seen.append((args.lr, args.batch_size, seed, steps, measure))
        return {steps: "row"}

    monkeypatch.setattr(deeper, "train_for", train_for)
    assert deeper.train({}, data, 3, 0.03) == "row"
    assert seen == [(0.03, 64, 3, 5 * 32, script.measure)]  # 2,000 images


def test_rates_are_chosen_on_the_last_10000_training_images(monkeypatch):
    images, labels = torch.arange(30_000)[:, None], torch.arange(30_000)
    data, seen = script.DataSet("", 10, images, labels, images[:7], labels[:7]), []

    def train(networks, held_out, seed, rate):
        assert held_out.train_images.flatten().equal(labels[:20_000])
        assert held_out.train_labels.equal(labels[:20_000]) and seed == 0
        assert held_out.test_images.flatten().equal(labels[20_000:])
        assert held_out.test_labels.equal(labels[20_000:])
        seen.append(rate)
        return {"fa_error": abs(rate - 3e-2), "bp_error": abs(rate - 3e-3)}

    monkeypatch.setattr(deeper, "train", train)
    best = {"fa": 3e-2, "bp": 3e-3}
    assert deeper.choose_rates(data) == dict.fromkeys(deeper.NETWORKS, best)
    assert seen == [1e-3, 3e-3, 1e-2, 3e-2, 1e-1] * 3
    done = lambda networks, data, seed, rate: {f"{next(iter(networks))}_error": (seed, rate)}
    monkeypatch.setattr(deeper, "train", done)
    for columns in deeper.deeper(data, 2, dict.fromkeys(deeper.NETWORKS, best)).values():
        assert columns == {"FA, rate": 3e-2, "FA": (2, 3e-2), "BP, rate": 3e-3, "BP": (2, 3e-3)}


# On MNIST, with room for other processors' rounding


def test_writing_and_copying_are_needed_to_use(mnist, monkeypatch):
    monkeypatch.setattr(phases, "USE", common.EPOCH)
    errors = {}
    for name, changes in [
        ("use", {"write_from": mnist}),
        ("another B", {"write_from": mnist, "another_B": True}),
        ("other images", {"write_from": phases.permuted(mnist, 0)}),
        ("not copied", {"write_from": mnist, "copies": False}),
    ]:
        networks, args, _ = fa_of(mnist, phases.TENTH)
        errors[name] = phases.run(networks, args, mnist, 0, **changes)["8 epochs"]
    assert errors.pop("use") < 15
    assert min(errors.values()) > 50
