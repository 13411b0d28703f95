"""Each ablation does to a network what its name says; what is computed exactly, is exact."""

import csv

import ablations
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import train_fa_vs_bp_linear_model as script
from fa_linear import FALinear


@pytest.fixture(scope="module")
def data():
    """Few patterns, with as many steps in an epoch as the ablations need."""
    return script.random_patterns(train_size=2000, test_size=200)


def fa_and_args(data, *options):
    networks, args = ablations.set_up(data, 0, *options)
    return networks["fa"], networks, args


def gradients(network, data):
    """Return the gradients of W, V and b for the training images."""
    network.zero_grad()
    F.cross_entropy(network(data.train_images), data.train_labels).backward()
    names = dict(network.named_parameters())
    return {name: names[name].grad.clone() for name in names if names[name].grad is not None}


# What is changed


@pytest.mark.parametrize("dose", [-2, 0, 0.5, 1])
def test_a_dose_gives_W_the_gradient_of_h0_and_so_much_of_what_was_written(data, dose):
    network, _, _ = fa_and_args(data)
    h0 = network.hidden(data.train_images).detach()
    dosed = ablations.Dosed(network, dose)
    with torch.no_grad():
        network.hidden.weight.mul_(3)
    y = network(data.train_images)
    e = ablations.error(y.detach(), data.train_labels)
    h = network.hidden(data.train_images).detach()
    expected = e.T @ (h0 + dose * (h - h0))
    found = gradients(dosed, data)["readout.weight"]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(dosed(data.test_images), network(data.test_images))


def test_a_dose_leaves_all_other_gradients(data):
    network, _, _ = fa_and_args(data)
    dosed = ablations.Dosed(network, 0)
    with torch.no_grad():
        network.hidden.weight.mul_(3)
    whole, found = gradients(network, data), gradients(dosed, data)
    torch.testing.assert_close(found["readout.bias"], whole["readout.bias"])
    torch.testing.assert_close(found["below.hidden.weight"], whole["hidden.weight"])


def test_a_dose_keeps_the_layers_between(data):
    network = nn.Sequential(nn.Linear(784, 8), nn.ReLU())
    network.add_module("readout", FALinear(8, 10))
    torch.testing.assert_close(
        ablations.Dosed(network, 0)(data.test_images), network(data.test_images)
    )


@pytest.mark.parametrize("compute", ["predict_angles", "linear_pair"])
def test_what_holds_for_two_linear_layers_is_refused_for_others(data, compute):
    network = nn.Sequential(nn.Linear(784, 8), nn.ReLU(), FALinear(8, 10))
    rest = (data, fa_and_args(data)[2], 3, 1) if compute == "predict_angles" else ()
    with pytest.raises(AssertionError, match="two linear layers"):
        getattr(ablations, compute)(network, *rest)


@pytest.mark.parametrize("layer", ["hidden", "readout"])
def test_a_layer_that_learns_alone_changes_alone(data, layer):
    network, networks, args = fa_and_args(data)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    ablations.learn_alone(layer, networks, data, args, 0, 5)
    after = network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{layer}.weight", f"{layer}.bias"}


@pytest.fixture
def phases(data, monkeypatch):
    """Record the phases in place of running them: layer, steps, size of W (usually 1)."""
    usual = fa_and_args(data)[0].readout.weight.norm()
    phases = []

    def learn_alone(layer, networks, data, args, seed, steps):
        size = networks["fa"].readout.weight.norm() / usual
        phases.append((layer, steps, round(size.item(), 3)))

    monkeypatch.setattr(ablations, "learn_alone", learn_alone)
    return phases


def test_the_hidden_layer_writes_the_readout_copies_the_hidden_layer_uses(data, phases):
    ablations.write_copy_use(data, 0)
    copy_and_use = [("readout", 2000, 0.5), ("hidden", 1875, 0.5)]
    another_B = copy_and_use[-1]
    assert phases == [("hidden", 64, 0.5), *copy_and_use, another_B, *copy_and_use]


@pytest.mark.parametrize(("least", "growth"), [(-0.1, "some error grows"), (0.1, "no error grows")])
def test_both_starts_are_used_and_seeds_told_apart(data, phases, monkeypatch, least, growth):
    monkeypatch.setattr(ablations, "least_eigenvalue", lambda _readout: least)
    rows = ablations.use_by_start(data, 0)
    assert list(rows) == [f"usual: {growth}", f"half: {growth}"]
    assert phases == [
        (layer, steps, size)
        for size in (1, 0.5)
        for layer, steps in (("hidden", 64), ("readout", 2000), ("hidden", 1875))
    ]


@pytest.mark.parametrize(
    ("change", "frozen"),
    [
        (ablations.freeze_hidden, {"hidden.weight", "hidden.bias"}),
        (ablations.freeze_W, {"readout.weight"}),
    ],
)
def test_what_is_frozen(data, change, frozen):
    network, networks, _ = fa_and_args(data)
    change(networks)
    assert {n for n, p in network.named_parameters() if not p.requires_grad} == frozen


def test_W_starts_as_minus_B(data):
    network, networks, _ = fa_and_args(data)
    ablations.start_W_as_minus_B(networks)
    assert torch.equal(network.readout.weight, -network.readout.feedback)


@pytest.mark.parametrize(("steps", "draws"), [(1, 6), (3, 2), (10, 1)])
def test_B_is_drawn_anew_every_so_many_steps_and_not_by_measuring(data, steps, draws):
    network, _, _ = fa_and_args(data)
    ablations.redraw_every(steps, network.readout)
    seen = {network.readout.feedback.sum().item()}
    for _step in range(6):
        network.eval()(data.test_images)
        network.train()(data.train_images[:4])
        seen.add(network.readout.feedback.sum().item())
    assert len(seen) == 1 + draws


def test_the_tanh_networks_are_matched_and_differ_in_their_class(data):
    _, networks, _ = fa_and_args(data)
    ablations.make_tanh(networks, data, 0)
    assert all(map(torch.equal, networks["fa"].parameters(), networks["bp"].parameters()))
    assert [type(networks["fa"][i]) for i in (0, 2, 4)] == [nn.Linear, FALinear, FALinear]
    assert [type(networks["bp"][i]) for i in (0, 2, 4)] == [nn.Linear] * 3


def test_W_is_frozen_at_the_angle_that_is_said(data, monkeypatch):
    angles = []

    def last_row(networks, *_):
        readout = networks["fa"].readout
        W, B = readout.weight.detach(), readout.feedback
        angles.append(round(script.angle(W.flatten(), B.flatten()).item()))
        torch.testing.assert_close(W.norm(), B.norm())
        return {"fa_error": 0.0}

    monkeypatch.setattr(ablations, "last_row", last_row)
    rows = ablations.freeze_at_angle(data, 0)
    assert [f"{angle}°" for angle in angles] == list(rows)


# What is exact


def test_the_parts_of_W_add_up_to_W(data):
    rows = ablations.account_of_W(data, 0)
    parts = [columns["of cos(W, B)"] for columns in rows.values()]
    assert parts[0] == pytest.approx(sum(parts[1:]), abs=1e-4)
    assert abs(parts[3]) > 0.3  # copied


def test_both_parts_of_the_loss_add_up_to_its_change(data):
    network, networks, args = fa_and_args(data)
    sample = data.train_images[:1000], data.train_labels[:1000]
    losses = []
    for _step, *_ in ablations.train_by_steps(networks, data, args, 0, 62):
        losses.append(F.cross_entropy(network(sample[0]), sample[1]).item())
    rows = ablations.account_of_loss(data, 0)
    total = rows["FA, hidden layer"]["step 48"] + rows["FA, readout"]["step 48"]
    assert total == pytest.approx(losses[48] - losses[0], abs=1e-3)


def test_the_prediction_is_exact_if_errors_stay_what_they_are(data):
    """Full-batch training of both layers on a loss whose gradient is constant: e of the start."""
    network, _, args = fa_and_args(data, "--weight-decay=0", "--lr=0.01")
    y = network(data.train_images).detach()
    constant = ablations.error(y, data.train_labels)  # of a mean, as M is
    predicted = ablations.predict_angles(network, data, args, 20, 1)
    optimizer = script.make_optimizer(network, args)
    for step in range(21):
        W, B = network.readout.weight.detach(), network.readout.feedback
        found = script.angle(W.flatten(), B.flatten()).item()
        assert found == pytest.approx(predicted[step], abs=0.02)
        optimizer.zero_grad()
        network(data.train_images).backward(constant)
        optimizer.step()
    assert abs(predicted[20] - predicted[0]) > 2


def test_the_probe_finds_the_best_readout(data):
    pixels = torch.randperm(784)[:15]
    assert 20 < ablations.probe_error(lambda images: images[:, pixels], data) < 90


@pytest.mark.parametrize("sign", [1, -1])
def test_the_least_eigenvalue_is_for_errors_that_sum_to_zero(sign):
    readout = FALinear(10, 10)
    readout.feedback = torch.eye(10)
    ones = torch.ones(10, 10) / 10  # what projects on errors that are all alike
    readout.weight.data = sign * torch.eye(10) - 5 * ones
    assert ablations.least_eigenvalue(readout) == pytest.approx(sign, abs=1e-4)


# Tables and files


def test_a_table_has_means_and_sample_deviations():
    lines = [
        {"table": "B redrawn", "row": "1", "column": "FA", "seed": seed, "value": value}
        for seed, value in enumerate(["20.0", "22.0"])
    ]
    assert ablations.markdown("B redrawn", lines) == "B redrawn|FA\n---|---\n1|21.0±1.4"
    assert [ablations.cell(values, 1) for values in ([], [2.0])] == ["", "2.0"]


def test_a_mistyped_table_writes_nothing(capsys):
    before = (ablations.RESULTS / "ablations.csv").read_bytes()
    with pytest.raises(SystemExit):
        ablations.main(["data", "no such table"])
    assert (ablations.RESULTS / "ablations.csv").read_bytes() == before


def test_every_seed_of_every_table_is_in_the_file():
    with open(ablations.RESULTS / "ablations.csv", encoding="utf-8") as file:
        found = {(line["table"], int(line["seed"])) for line in csv.DictReader(file)}
    tables = ablations.make_tables().items()
    assert found == {(name, seed) for name, table in tables for seed in range(table[1])}


# On MNIST, for fewer steps, with room for other processors' rounding


def cut(mnist, training_images):
    """Return MNIST with fewer images: the figures differ, the sentences hold."""
    return mnist._replace(
        train_images=mnist.train_images[:training_images],
        train_labels=mnist.train_labels[:training_images],
        test_images=mnist.test_images[:1000],
        test_labels=mnist.test_labels[:1000],
    )


def test_without_writing_use_fails_and_with_it_it_succeeds(mnist):
    rows = ablations.write_copy_use(cut(mnist, 60_000), 0)
    assert rows["use"]["FA"] < 15
    assert rows["nothing written, use"]["FA"] > 60
    assert rows["use of another B"]["FA"] > 50


def test_the_dose_orders_the_angles_as_was_predicted(mnist):
    rows = ablations.vary_dose(cut(mnist, 6400), 0)
    for what in "predicted", "measured":
        angles = [rows[f"{dose:g}"][f"{what} 48"] for dose in ablations.DOSES]
        assert angles == sorted(angles, reverse=True)
        assert angles[0] - angles[-1] > 10
    assert rows["1"]["measured 48"] + 1 < rows["1, usual start"]["measured 48"]


def test_at_step_64_messages_have_raised_the_loss_and_bps_lowered_it(mnist):
    rows = ablations.account_of_loss(cut(mnist, 2560), 1)
    assert rows["FA, hidden layer"]["step 64"] > 0
    assert rows["BP, hidden layer"]["step 64"] < -0.5
    assert rows["FA, readout"]["step 64"] < 0
