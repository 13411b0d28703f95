"""Each control does to the networks what its label says, and nothing else."""

import csv
import itertools
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.pool import ThreadPool
from pathlib import Path

import controls
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import train_fa_vs_bp_linear_model as script
from fa_linear import FALinear

CONTROLS = controls.make_controls()
LABELS = list(CONTROLS)


def situation_of(data, *arguments, seed=0):
    """Return what a control is given: networks of the first seed, before it changes them."""
    options = script.make_parser().parse_args(["--device=cpu", "--epochs=1", *arguments])
    networks = script.matched_networks(data, options, seed)
    return controls.Situation(networks, data, options, seed)


def changed(label, data, *arguments):
    """Return the situation after a control's change."""
    control = CONTROLS[label]
    situation = situation_of(data, *control.options, *arguments)
    new_data = control.change(situation)
    return situation._replace(data=new_data) if new_data else situation


def state_of(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def train(situation):
    """Train one epoch of ten mini-batches."""
    list(script.train(*situation))


def angle_of(read_out):
    """Return the angle of W and B."""
    return float(script.angle(read_out.weight.detach().flatten(), read_out.feedback.flatten()))


def frozen_parts(network):
    return {name for name, p in network.named_parameters() if not p.requires_grad}


# What each control changes

UNCHANGED = [
    "nothing changed",
    "W frozen at its start",
    "learning rate 1e-4",
    "learning rate 3e-4",
    "learning rate 0.01",
    "learning rate 0.05",
]


@pytest.mark.parametrize("label", UNCHANGED)
def test_a_control_of_options_leaves_networks_and_data(small, label):
    before = situation_of(small, *CONTROLS[label].options)
    after = changed(label, small)
    assert after.data is small
    assert str(before.networks.state_dict()) == str(after.networks.state_dict())


@pytest.mark.parametrize("label", [label for label in LABELS if label.startswith("learning rate")])
def test_the_learning_rate_is_that_of_the_label(label):
    options = script.make_parser().parse_args(CONTROLS[label].options)
    assert options.lr == float(label.removeprefix("learning rate "))


@pytest.mark.parametrize("label", [label for label in LABELS if label.startswith("W frozen")])
def test_where_w_is_frozen_only_the_hidden_layer_learns(small, label):
    networks = changed(label, small).networks
    for network in networks.values():
        assert frozen_parts(network) == {"read_out.weight", "read_out.bias"}


def test_hidden_layer_frozen(small):
    network = changed("hidden layer frozen (shallow)", small).networks["fa"]
    assert frozen_parts(network) == {"hidden.weight", "hidden.bias"}


def test_no_hidden_layer(small):
    network = changed("no hidden layer (softmax regression)", small).networks["bp"]
    assert isinstance(network, nn.Linear)
    assert network.weight.shape == (10, 784)


def test_w_and_b_as_fa_left_them_are_aligned(small):
    networks = changed("W frozen as FA left it", small, "--lr=0.1").networks
    read_out = networks["fa"].read_out
    started = situation_of(small, seed=100).networks["fa"].read_out
    assert torch.equal(read_out.feedback, started.feedback)
    assert angle_of(read_out) < angle_of(started) - 20


def test_bp_gets_fas_w_as_well(small):
    networks = changed("W frozen as FA left it", small).networks
    assert torch.equal(networks["fa"].read_out.weight, networks["bp"].read_out.weight)
    assert torch.equal(networks["fa"].read_out.bias, networks["bp"].read_out.bias)


def test_the_hidden_layer_below_fas_w_is_as_it_was_drawn(small):
    untouched = situation_of(small, "--freeze-read-out").networks
    networks = changed("W frozen as FA left it", small).networks
    assert torch.equal(networks["fa"].hidden.weight, untouched["fa"].hidden.weight)


def test_another_b_is_the_networks_own(small):
    untouched = situation_of(small).networks["fa"].read_out
    with_its_b = changed("W frozen as FA left it", small).networks["fa"].read_out
    read_out = changed("W frozen as FA left it, but another B", small).networks["fa"].read_out
    assert torch.equal(read_out.feedback, untouched.feedback)
    assert torch.equal(read_out.weight, with_its_b.weight)


CUT = "W learns from the hidden layer as it started"


@pytest.mark.parametrize("rule", ["fa", "bp"])
def test_the_cut_gives_w_the_gradient_e_h0(small, rule):
    network = changed(CUT, small).networks[rule]
    h0 = network.hidden(small.train_images).detach()
    with torch.no_grad():
        network.hidden.weight.mul_(3)
    outputs = network(small.train_images)
    F.cross_entropy(outputs, small.train_labels, reduction="sum").backward()
    e = (outputs.softmax(dim=1) - torch.eye(10)[small.train_labels]).detach()
    torch.testing.assert_close(network.read_out.weight.grad, e.T @ h0, rtol=1e-3, atol=1e-3)


def test_reversed_copying_gives_w_the_gradient_of_the_mirrored_hidden_layer(small):
    network = changed("W copies with the opposite sign", small).networks["fa"]
    h0 = network.hidden(small.train_images).detach()
    with torch.no_grad():
        network.hidden.weight.mul_(3)
    h = network.hidden(small.train_images).detach()
    outputs = network(small.train_images)
    F.cross_entropy(outputs, small.train_labels, reduction="sum").backward()
    e = (outputs.softmax(dim=1) - torch.eye(10)[small.train_labels]).detach()
    expected = e.T @ (h0 - (h - h0))
    torch.testing.assert_close(network.read_out.weight.grad, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("rule", ["fa", "bp"])
def test_the_cut_leaves_outputs_messages_and_all_other_gradients(small, rule):
    cut = changed(CUT, small).networks[rule]
    whole = situation_of(small).networks[rule]
    gradients = []
    for network in cut, whole:
        with torch.no_grad():
            network.hidden.weight.mul_(3)
        F.cross_entropy(network(small.train_images), small.train_labels).backward()
        rest = network.hidden.weight, network.hidden.bias, network.read_out.bias
        gradients.append([parameter.grad for parameter in rest])
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(cut(small.test_images), whole(small.test_images))


def test_the_hidden_layer_as_it_started_stays_so(small):
    situation = changed(CUT, small, "--lr=0.1")
    network = situation.networks["fa"]
    before = state_of(network)
    train(situation)
    assert torch.equal(network.hidden_at_start.weight, before["hidden.weight"])
    assert not torch.equal(network.hidden.weight, before["hidden.weight"])


def test_labels_are_shuffled_among_the_training_images(small):
    data = changed("labels shuffled among the images once", small).data
    assert not torch.equal(data.train_labels, small.train_labels)
    assert torch.equal(data.train_labels.bincount(), small.train_labels.bincount())
    same = "name", "classes", "train_images", "test_images", "test_labels"
    assert all(getattr(data, name) is getattr(small, name) for name in same)


@pytest.mark.parametrize(("label", "sign"), [("W starts as B", 1), ("W starts as −B", -1)])
def test_w_starts_as_b_or_its_opposite_and_learns(small, label, sign):
    situation = changed(label, small)
    read_out = situation.networks["fa"].read_out
    feedback = read_out.feedback.clone()
    assert torch.equal(read_out.weight, sign * feedback)
    train(situation)
    assert not torch.equal(read_out.weight, sign * feedback)
    assert torch.equal(read_out.feedback, feedback)


def test_b_is_drawn_anew_at_each_use(small):
    network = changed("B drawn anew at each step", small).networks["fa"]
    drawn = []
    for _use in range(3):
        network(small.test_images)
        drawn.append(network.read_out.feedback.flatten())
    cosines = [F.cosine_similarity(a, b, dim=0) for a, b in itertools.pairwise(drawn)]
    assert all(abs(cosine) < 0.4 for cosine in cosines)
    limit = 20**-0.5  # as nn.Linear draws
    assert 0.9 * limit < drawn[0].abs().max() <= limit


def messages_of(network, data):
    """Return the gradient that the hidden layer's outputs get, an image a row."""
    received = []
    hook = network.hidden.register_full_backward_hook(lambda *args: received.append(args[2][0]))
    F.cross_entropy(network(data.train_images), data.train_labels).backward()
    hook.remove()
    return received[0]


RANDOM_LABELS = [label for label in LABELS if label.endswith("messages from random labels")]


@pytest.mark.parametrize("label", RANDOM_LABELS)
def test_random_messages_are_errors_of_random_labels_through_b(small, label):
    network = changed(label, small).networks["fa"]
    messages = messages_of(network, small)
    softmax = network(small.train_images).softmax(dim=1)
    e = len(messages) * messages @ torch.linalg.pinv(network.read_out.feedback)
    if "anew" not in label:
        one_hot = softmax - e
        torch.testing.assert_close(one_hot.max(dim=1).values, torch.ones(300), rtol=0, atol=1e-3)
        agreeing = one_hot.argmax(dim=1) == small.train_labels
        assert 0.02 < agreeing.float().mean() < 0.25  # a tenth, by chance
    assert not torch.allclose(messages, messages_of(network, small))


@pytest.mark.parametrize("label", RANDOM_LABELS)
def test_random_messages_leave_the_read_outs_own_gradient(small, label):
    network = changed(label, small).networks["fa"]
    whole = situation_of(small).networks["fa"]
    network.read_out.requires_grad_(True)
    for each in network, whole:
        F.cross_entropy(each(small.train_images), small.train_labels).backward()
    torch.testing.assert_close(network.read_out.weight.grad, whole.read_out.weight.grad)


def test_redrawn_b_with_random_labels_draws_b_anew_too(small):
    label = "B drawn anew at each step, messages from random labels"
    network = changed(label, small).networks["fa"]
    before = network.read_out.feedback.clone()
    network(small.test_images)
    assert not torch.isclose(network.read_out.feedback, before).any()


TANH = [label for label in LABELS if label.startswith("tanh")]


@pytest.mark.parametrize("label", TANH)
@pytest.mark.parametrize(("rule", "upper"), [("fa", FALinear), ("bp", nn.Linear)])
def test_the_tanh_network_has_the_layers_that_are_said(small, label, rule, upper):
    network = changed(label, small).networks[rule]
    kinds = [nn.Linear, nn.Tanh, upper, nn.Tanh, upper]
    assert [type(layer) for layer in network] == kinds
    assert [layer.weight.shape for layer in network[::2]] == [(256, 784), (64, 256), (10, 64)]


@pytest.mark.parametrize("rule", ["fa", "bp"])
def test_in_the_tanh_network_all_layers_learn(small, rule):
    assert not frozen_parts(changed("tanh network", small).networks[rule])


def test_in_the_shallow_tanh_network_only_the_read_out_learns(small):
    network = changed("tanh network, only its read-out learns", small).networks["fa"]
    lower = {"hidden.weight", "hidden.bias", "second.weight", "second.bias"}
    assert frozen_parts(network) == lower


def test_the_tanh_networks_are_matched(small):
    networks = changed("tanh network", small).networks
    assert all(map(torch.equal, networks["fa"].parameters(), networks["bp"].parameters()))


# What is run and measured


def test_the_controls_are_those_of_the_table():
    both = {label for label, control in CONTROLS.items() if set(control.rules) == {"fa", "bp"}}
    assert both == {
        *UNCHANGED,
        "W frozen as FA left it",
        CUT,
        "tanh network",
    }
    best = {label for label, control in CONTROLS.items() if control.best}
    redrawn = "B drawn anew at each step", "B drawn anew at each step, messages from random labels"
    frozen = "W frozen at its start", "W frozen at its start, messages from random labels"
    assert best == {"nothing changed", "hidden layer frozen (shallow)", CUT, *redrawn, *frozen}
    assert CONTROLS["no hidden layer (softmax regression)"].rules == ["bp"]


@pytest.mark.parametrize("label", TANH)
def test_the_tanh_network_is_trained_with_the_settings_that_are_said(label):
    assert CONTROLS[label].options == ["--lr=0.01", "--batch-size=64"]


def test_there_are_five_seeds():
    assert list(controls.SEEDS) == [0, 1, 2, 3, 4]


MANY_BATCHES = ["--batch-size=2", "--epochs=1"]  # so that there are rows for steps 64 and 128


def test_a_control_is_the_scripts_training_measured_at_its_end(small):
    control = controls.Control(controls.leave, ("fa", "bp"), ["--lr=0.02"])
    values = controls.run_control(control, small, 7, *MANY_BATCHES)
    situation = situation_of(small, "--lr=0.02", "--log-every=1875", *MANY_BATCHES, seed=7)
    rows = list(script.train(situation.networks, small, situation.options, 7))
    (early,) = (row for row in rows if row["step"] == 64)
    (later,) = (row for row in rows if row["step"] == 128)
    assert values["matrices at 128"] == pytest.approx(later["weight_angle"])
    assert values["fa"] == pytest.approx(rows[-1]["fa_error"])
    assert values["bp"] == pytest.approx(rows[-1]["bp_error"])
    assert values["fa early"] == pytest.approx(early["fa_loss"])
    assert values["bp early"] == pytest.approx(early["bp_loss"])
    assert values["messages"] == pytest.approx(rows[-1]["message_angle"])
    overlap = controls.least_overlap(situation.networks["fa"].read_out)
    assert values["least overlap"] == pytest.approx(overlap)


@pytest.mark.parametrize(
    ("rules", "columns"),
    [
        (("fa",), ["fa", "fa early", "matrices at 128", "messages", "least overlap"]),
        (("bp",), ["bp", "bp early"]),
    ],
)
def test_only_what_is_of_interest_is_reported(small, rules, columns):
    control = controls.Control(controls.leave, rules)
    assert list(controls.run_control(control, small, 0, *MANY_BATCHES)) == columns


def test_a_control_trains_on_the_data_that_it_changed(small):
    one_class = small._replace(train_labels=torch.zeros_like(small.train_labels))
    control = controls.Control(lambda _situation: one_class, ("bp",), ["--lr=0.01"])
    error = controls.run_control(control, small, 0, *MANY_BATCHES)["bp"]
    assert error == pytest.approx(100 * float((small.test_labels != 0).float().mean()))


def test_where_it_is_of_interest_the_best_read_out_is_reported(small):
    control = controls.Control(controls.freeze_hidden, best=True)
    values = controls.run_control(control, small, 0, *MANY_BATCHES)
    hidden = situation_of(small).networks["fa"].hidden
    assert values["best read-out"] == pytest.approx(controls.best_read_out(hidden, small), abs=2)


def zero_sum_vectors(n=2000):
    """Return vectors of length 1 and sum zero, a row each."""
    e = torch.randn(n, 10)
    e -= e.mean(dim=1, keepdim=True)
    return e / e.norm(dim=1, keepdim=True)


def test_least_overlap_is_the_least_that_any_error_has():
    read_out, e = FALinear(20, 10), zero_sum_vectors()
    least = controls.least_overlap(read_out)
    overlaps = ((e @ read_out.weight) * (e @ read_out.feedback)).sum(dim=1)
    assert least <= overlaps.min() + 1e-5
    assert overlaps.min() < least + 0.3 * abs(least)


def test_the_least_overlap_of_w_that_is_twice_b_follows_from_bs_singular_values():
    read_out = FALinear(20, 10)
    read_out.weight.data = 2 * read_out.feedback
    projected = read_out.feedback - read_out.feedback.mean(dim=0)
    least = 2 * float(torch.linalg.svdvals(projected)[8] ** 2)
    assert controls.least_overlap(read_out) == pytest.approx(least, rel=1e-3)


def test_the_best_read_out_fits_what_can_be_fitted(small):
    """Of ten classes that a hidden layer keeps apart, none is misclassified; of noise, most are."""
    images = 5 * torch.eye(10)[small.train_labels] + 0.1 * torch.randn(300, 10)
    noise = torch.randn(300, 10)
    hidden = nn.Linear(10, 10)
    for inputs, low, high in (images, 0, 1), (noise, 50, 100):
        data = script.DataSet("own", 10, inputs, small.train_labels, inputs, small.train_labels)
        assert low <= controls.best_read_out(hidden, data) <= high


def test_the_best_read_out_is_tested_on_the_test_images(small):
    images = 5 * torch.eye(10)[small.train_labels] + 0.1 * torch.randn(300, 10)
    others = torch.randperm(300)
    labels = small.train_labels
    data = script.DataSet("own", 10, images, labels, images[others], labels)
    wrong = 100 * float((labels[others] != labels).float().mean())
    assert controls.best_read_out(nn.Linear(10, 10), data) == pytest.approx(wrong, abs=1)


# The prediction


def train_with_constant_errors(network, data, options, steps):
    """Train on the loss <errors of the start, outputs>, for which errors stay what they are."""
    outputs = network(data.train_images)
    e = (outputs.softmax(dim=1) - torch.eye(10)[data.train_labels]).detach()
    optimizer = script.make_optimizer(network, options)
    for _step in range(steps):
        optimizer.zero_grad()
        (e * network(data.train_images)).sum(dim=1).mean().backward()
        optimizer.step()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("steps", [0, 1, 2, 30])
def test_the_prediction_is_exact_where_errors_stay_what_they_are(small, momentum, steps):
    arguments = [f"--momentum={momentum}", "--weight-decay=0", "--lr=0.05"]
    situation = situation_of(small, *arguments)
    network = situation.networks["fa"]
    predicted = controls.predicted_angle(network, small, situation.options, steps)
    train_with_constant_errors(network, small, situation.options, steps)
    assert predicted == pytest.approx(angle_of(network.read_out), abs=0.01)


def test_the_prediction_leaves_the_network_as_it_is(small):
    situation = situation_of(small)
    before = state_of(situation.networks["fa"])
    controls.predicted_angle(situation.networks["fa"], small, situation.options, 10)
    after = situation.networks["fa"].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


# The command


def test_a_row_of_the_table_has_means_and_sample_deviations():
    rows = [{"fa": "1", "messages": "10"}, {"fa": "2", "messages": "20"}]
    assert controls.table_row("label", rows) == "label|1.5±0.7|||||15±7||"


def test_a_line_of_the_file_has_five_digits(small, monkeypatch):
    monkeypatch.setattr(controls, "load", lambda _data_dir: small)
    monkeypatch.setattr(controls, "run_control", lambda *_: {"fa": 12.345678})
    line = controls.run("nothing changed", 3, "data")
    assert line == {"control": "nothing changed", "seed": "3", "fa": "12.346"}


@pytest.fixture
def command(monkeypatch, tmp_path, small):
    """Let the command load nothing, run nothing, and write to an empty folder."""

    def run_labels(labels, data_dir):
        return [{"control": label, "seed": "0", "fa": data_dir} for label in labels]

    monkeypatch.setattr(controls, "load", lambda _data_dir: small)
    monkeypatch.setattr(controls, "run_labels", run_labels)
    monkeypatch.setattr(controls, "RESULTS", tmp_path)
    return tmp_path / "controls.csv"


def test_a_complete_run_replaces_the_file(command):
    command.write_text("old")
    controls.main(["where"])
    rows = list(csv.DictReader(command.read_text(encoding="utf-8").splitlines()))
    assert list(rows[0]) == ["control", "seed", *controls.COLUMNS]
    assert [row["control"] for row in rows] == LABELS
    assert {row["fa"] for row in rows} == {"where"}


def test_the_command_prints_the_tables_header(command, capsys):
    controls.main(["where"])
    assert capsys.readouterr().out.splitlines()[:2] == [
        "control|fa|bp|fa early|bp early|matrices at 128|messages|least overlap|best read-out",
        "---|---|---|---|---|---|---|---|---",
    ]


def test_a_complete_run_writes_the_predictions(command, monkeypatch):
    monkeypatch.setattr(
        controls, "predicted_angle", lambda _n, _d, _o, steps, copying: steps + copying
    )
    controls.main(["where"])
    path = command.with_name("prediction.csv")
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    assert [(row["seed"], row["step"]) for row in rows] == [
        (seed, step) for seed in "01234" for step in ("0", "16", "32", "64", "125")
    ]
    assert [row["predicted"] for row in rows[1:3]] == ["17.0000", "33.0000"]
    assert [row["without copying"] for row in rows[1:3]] == ["16.0000", "32.0000"]


def test_the_predictions_are_of_the_default_run(small):
    options = script.make_parser().parse_args(["--device=cpu"])
    for row in controls.predictions(small)[4:7]:
        network = script.matched_networks(small, options, int(row["seed"]))["fa"]
        angle = controls.predicted_angle(network, small, options, int(row["step"]))
        assert float(row["predicted"]) == pytest.approx(angle, abs=1e-3)


def test_without_copying_the_prediction_is_what_the_cut_does(small):
    situation = changed(CUT, small, "--weight-decay=0", "--lr=0.05")
    network = situation.networks["fa"]
    predicted = controls.predicted_angle(network, small, situation.options, 20, copying=False)
    train_with_constant_errors(network, small, situation.options, 20)
    assert predicted == pytest.approx(angle_of(network.read_out), abs=0.01)


def test_one_control_leaves_the_files(command):
    command.write_text("old")
    controls.main(["where", "W starts as B"])
    assert command.read_text() == "old"
    assert not command.with_name("prediction.csv").exists()


def test_an_unknown_label_is_refused_and_leaves_the_file(command, capsys):
    command.write_text("old")
    with pytest.raises(SystemExit, match="2"):
        controls.main(["where", "W starts as C"])
    assert "'W starts as −B'" in capsys.readouterr().err
    assert command.read_text() == "old"


def test_a_mistyped_folder_is_an_error_and_leaves_the_file(monkeypatch, tmp_path):
    monkeypatch.setattr(controls, "RESULTS", tmp_path)
    (tmp_path / "controls.csv").write_text("old")
    with pytest.raises(RuntimeError, match="not found"):
        controls.main([str(tmp_path / "nowhere")])
    assert (tmp_path / "controls.csv").read_text() == "old"


def test_all_seeds_of_all_labels_are_run_and_their_rows_printed(monkeypatch, capsys):
    monkeypatch.setattr(
        controls, "run", lambda label, seed, _dir: {"control": label, "fa": str(seed)}
    )
    monkeypatch.setattr(controls.multiprocessing, "Pool", ThreadPool)
    monkeypatch.setattr(controls, "prepare_worker", lambda: None)
    rows = controls.run_labels(["a", "b"], "data")
    assert [(row["control"], row["fa"]) for row in rows] == [
        (label, seed) for label in "ab" for seed in "01234"
    ]
    assert capsys.readouterr().out == "a|2.0±1.6|||||||\nb|2.0±1.6|||||||\n"


def test_a_worker_has_one_thread_leaves_ctrl_c_to_its_parent_and_watches_it(monkeypatch):
    threads, signals, watchers = [], [], []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(signal, "signal", lambda *arguments: signals.append(arguments))
    monkeypatch.setattr(threading.Thread, "start", lambda watcher: watchers.append(watcher))
    controls.prepare_worker()
    assert threads == [1]
    assert signals == [(signal.SIGINT, signal.SIG_IGN)]
    assert [watcher.daemon for watcher in watchers] == [True]  # it does not hold the worker


def wait_for_long(_label, _seed, log):
    """Stand in for `run`: tell which process it is that would compute."""
    with open(log, "a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(60)


def command_that_waits(log):
    multiprocessing.set_start_method("fork", force=True)  # so that workers have the stand-ins
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in case it is ignored here
    controls.run = wait_for_long
    controls.load = lambda _data_dir: None
    controls.main([str(log)])


def wait_until(is_true):
    deadline = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_command_that_is_stopped_leaves_no_worker_and_the_file(number, tmp_path):
    committed = (controls.RESULTS / "controls.csv").read_bytes()
    log = tmp_path / "log"
    log.touch()
    context = multiprocessing.get_context("fork")
    command = context.Process(target=command_that_waits, args=(log,))
    command.start()
    wait_until(log.read_text)
    workers = log.read_text().split()
    os.kill(command.pid, number)
    command.join(timeout=20)
    wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    assert (controls.RESULTS / "controls.csv").read_bytes() == committed
