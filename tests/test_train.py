"""The comparison is matched, trains as a textbook would, and measures what it says."""

import itertools
import statistics
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

import train_fa_vs_bp_linear_model as script
from fa_linear import FALinear

RULES = pytest.mark.parametrize("rule", ["fa", "bp", "shallow"])


def args_of(*options):
    return script.make_parser().parse_args(["--hidden=16", "--epochs=1", *options])


def matched(data, *options):
    return script.matched_networks(data, args_of(*options), seed=3)


def sgd(network):
    return torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.7, weight_decay=0.1)


def train(networks, data, *options):
    """Train the networks, and return the rows."""
    rows = script.train(networks, sgd(networks), data, args_of(*options), seed=3)
    return [*itertools.islice(rows, 50)]  # a loop without end is to fail, not to hang


def add_layer(monkeypatch, make_layer):
    """Let networks have another layer, below the readout."""

    def make_network(data, hidden, layer):
        first, last = nn.Linear(784, hidden), layer(hidden, data.classes)
        return nn.Sequential(OrderedDict(hidden=first, added=make_layer(layer), readout=last))

    monkeypatch.setattr(script, "make_network", make_network)


# Matched networks


@pytest.mark.parametrize("rule", ["fa", "bp", "shallow", "own"])
@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_all_rules_start_with_pytorchs_seeded_weights_times_init_scale_and_one_b_not_scaled(
    small, monkeypatch, rule, scale
):
    monkeypatch.setitem(script.RULES, "own", type("Own", (FALinear,), {}))
    torch.manual_seed(3)
    drawn = script.make_network(small, 16, FALinear).state_dict()  # W and b: those of nn.Linear
    for name, tensor in matched(small, f"--init-scale={scale}")[rule].state_dict().items():
        assert_close(tensor, drawn[name] * (1 if name.endswith("feedback") else scale))


@pytest.mark.parametrize(
    ("option", "learning"),
    [
        (
            "--lr=1",
            {"fa": {"below", "readout"}, "bp": {"below", "readout"}, "shallow": {"readout"}},
        ),
        ("--freeze-readout", {"fa": {"below"}, "bp": {"below"}, "shallow": set()}),
    ],
)
@RULES
def test_what_learns(small, option, learning, rule):
    networks = matched(small, option)
    parts = {True: set(), False: set()}
    for name, weight in networks[rule].named_parameters() if rule in networks else ():
        parts[weight.requires_grad].add("readout" if "readout" in name else "below")
    assert parts[True] == learning[rule] and not parts[True] & parts[False]


@pytest.mark.parametrize("units", [8, 1], ids=["other", "would broadcast"])
def test_networks_of_different_shapes_are_refused(small, monkeypatch, units):
    make, units_of = script.make_network, {FALinear: units, nn.Linear: 16}
    uneven = lambda data, _, layer: make(data, units_of[layer], layer)
    monkeypatch.setattr(script, "make_network", uneven)
    with pytest.raises((AssertionError, ValueError)):
        matched(small)


@RULES
def test_with_a_second_hidden_layer_of_the_rules_class_all_start_the_same(small, monkeypatch, rule):
    add_layer(monkeypatch, lambda layer: layer(16, 16))
    networks = matched(small)
    weights = [[*networks[name].parameters()] for name in (rule, "fa")]
    assert_close(*weights, rtol=0, atol=0)


def test_another_data_set_has_its_own_numbers_of_pixels_and_classes():
    images, labels = torch.randn(40, 64), torch.arange(40) % 4
    network = matched(script.DataSet("own", 4, images, labels, images, labels))["bp"]
    assert next(network.parameters()).shape == (16, 64)
    assert network.readout.weight.shape == (4, 16)


# The loop


@pytest.fixture(scope="module")
def trained(small):
    """Return networks that were trained, the log's rows, and the rate of each update."""
    networks, rates = matched(small), []
    optimizer, args = sgd(networks), args_of("--epochs=2", "--log-every=6")
    optimizer.register_step_pre_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
    rows = script.train(networks, optimizer, small, args, seed=3)
    return networks, [*itertools.islice(rows, 50)], rates


def train_alone(network, data, rates):
    """Train a network by a loop of our own, with these rates; return its losses."""
    optimizer, losses = sgd(network), []
    batches = script.minibatches(data, args_of(), seed=3)
    for optimizer.param_groups[0]["lr"] in [*rates, 0]:  # a last mini-batch is not trained on
        batch = next(batches)
        loss = script.loss_function(network(data.train_images[batch]), data.train_labels[batch])
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


@RULES
def test_each_network_ends_as_if_it_was_trained_alone(small, trained, rule):
    network = matched(small)[rule]
    train_alone(network, small, trained[2])
    assert_close([*trained[0][rule].parameters()], [*network.parameters()])


@RULES
def test_losses_are_means_over_the_mini_batches_since_the_row_before(small, trained, rule):
    losses = iter(train_alone(matched(small)[rule], small, trained[2]))
    for row, batches in zip(trained[1], [1, 1, 1, 2, 2, 6, 6, 2], strict=True):
        expected = statistics.fmean(itertools.islice(losses, batches))
        assert row[f"{rule}_loss"] == pytest.approx(expected, rel=1e-4)
    assert not list(losses)


def test_rows_stand_at_0_at_early_powers_of_two_each_log_every_steps_and_at_the_end(trained):
    assert [row["step"] for row in trained[1]] == [0, 1, 2, 4, 6, 12, 18, 20]


def test_random_patterns_can_be_learned(trained):
    assert trained[1][-1]["bp_error"] < 50 < trained[1][0]["bp_error"]


def test_a_row_is_made_while_the_gradients_that_are_then_used_are_there(small, monkeypatch):
    pairs, networks = [], matched(small)
    weight = networks["fa"].readout.weight
    see = lambda *_: pairs.append((weight.detach().clone(), weight.grad.clone())) or {}
    monkeypatch.setattr(script, "measure", see)
    optimizer = torch.optim.SGD(networks.parameters(), lr=0.1)
    list(script.train(networks, optimizer, small, args_of("--log-every=1"), seed=3))
    assert len(pairs) == 11
    for (old, gradient), (new, _) in itertools.pairwise(pairs):
        assert_close(new, old - 0.1 * gradient)


def test_fa_with_feedback_tied_to_the_weights_is_bp(small):
    networks = matched(small)
    readout = networks["fa"].readout
    readout.feedback = readout.weight.detach()  # the same numbers in memory
    train(networks, small)
    fa, bp = ([*networks[rule].parameters()] for rule in ("fa", "bp"))
    assert_close(fa, bp, rtol=0, atol=0)


def test_each_epoch_of_each_seed_has_each_image_once_in_an_order_of_its_own(small):
    orders = set()
    for seed in 3, 4:
        batches = script.minibatches(small, args_of(), seed)
        for _epoch in range(2):
            orders.add((*torch.cat([next(batches) for _ in range(10)]).tolist(),))
    assert len(orders) == 4
    assert all(sorted(order) == list(range(300)) for order in orders)


def test_a_network_that_no_optimizer_trains_is_an_error(small):
    networks = matched(small)
    with pytest.raises(AssertionError):
        next(script.train(networks, sgd(networks["fa"]), small, args_of(), seed=3))


def test_more_labels_than_images_are_an_error(small):
    with pytest.raises(AssertionError):
        train(matched(small), small._replace(train_labels=torch.arange(301) % 10))


class Mirror(FALinear):
    """A rule whose feedback learns in `forward`."""

    when_measured = False

    def forward(self, input):
        if self.training or self.when_measured:
            self.feedback.lerp_(self.weight.detach(), 0.1)
        return super().forward(input)


def test_a_rule_that_learns_in_forward_learns_the_same_whatever_is_logged(small, monkeypatch):
    monkeypatch.setitem(script.RULES, "mirror", Mirror)
    ends = []
    for log_every in 1, 7:
        networks = matched(small)
        train(networks, small, f"--log-every={log_every}")
        ends.append(networks["mirror"].readout.feedback)
    assert torch.equal(*ends)


def test_nothing_is_measured_between_a_forward_and_its_backward_pass(small, monkeypatch):
    """Autograd refuses what a rule writes there."""
    monkeypatch.setattr(Mirror, "when_measured", True)
    monkeypatch.setitem(script.RULES, "mirror", Mirror)
    assert train(matched(small), small)[-1]["step"] == 10


def test_a_batch_norms_statistics_are_updated_once_a_mini_batch(small, monkeypatch):
    add_layer(monkeypatch, lambda _layer: nn.BatchNorm1d(16))
    networks = matched(small)
    train(networks, small, "--log-every=1")
    assert {int(network.added.num_batches_tracked) for network in networks.values()} == {11}


def test_a_measure_does_not_take_another_columns_name(small, monkeypatch):
    monkeypatch.setattr(script, "measure", lambda *_: {"fa_loss": 1.5})
    with pytest.raises(TypeError):
        train(matched(small), small)


@pytest.mark.parametrize("momentum", [0, 0.25])
def test_sgd_has_nesterov_momentum_and_weight_decay(momentum):
    layer = nn.Linear(1, 1, bias=False)
    args = args_of("--lr=0.5", f"--momentum={momentum}", "--weight-decay=0.125")
    optimizer = script.make_optimizer(layer, args)
    if type(optimizer) is not torch.optim.SGD:
        pytest.skip("another optimizer")
    weight, velocity = layer.weight.item(), 0
    for gradient in 1, -2, 4:
        layer.weight.grad = torch.full((1, 1), float(gradient))
        optimizer.step()
        decayed = gradient + 0.125 * weight
        velocity = momentum * velocity + decayed
        weight -= 0.5 * (decayed + momentum * velocity)
    assert layer.weight.item() == pytest.approx(weight)


# What is measured


@RULES
def test_a_test_error_is_the_percentage_of_misclassified_test_images(small, trained, rule):
    outputs = trained[0][rule](small.test_images)
    wrong = [int(y.argmax()) != int(t) for y, t in zip(outputs, small.test_labels, strict=True)]
    assert trained[1][-1][f"{rule}_error"] == pytest.approx(sum(wrong))  # of 100


def angle(a, b):
    return F.cosine_similarity(a, b, dim=-1).acos().rad2deg()


def mean_squares(y, labels):
    return F.mse_loss(y, torch.eye(10)[labels])


@pytest.mark.parametrize("bias", [0, 1000], ids=["", "some without error"])
@pytest.mark.parametrize(
    ("loss", "outputs_of"), [(F.cross_entropy, nn.Softmax(dim=1)), (mean_squares, nn.Identity())]
)
def test_message_angle_is_the_mean_over_the_images_with_an_error(
    small, monkeypatch, loss, outputs_of, bias
):
    monkeypatch.setattr(script, "loss_function", loss)
    networks = matched(small)
    readout = networks["fa"].readout
    readout.bias.data[0] += bias  # 1000: softmax is certain of class 0, and sometimes right
    e = outputs_of(networks["fa"](small.test_images)) - torch.eye(10)[small.test_labels]
    e = e[e.any(dim=1)]
    expected = angle(e @ readout.feedback, e @ readout.weight).mean().item()
    assert train(networks, small)[0]["message_angle"] == pytest.approx(expected, rel=1e-4)


def test_weight_angle_is_that_of_both_matrices_as_vectors(small):
    networks = matched(small)
    readout = networks["fa"].readout
    expected = angle(readout.weight.flatten(), readout.feedback.flatten()).item()
    assert train(networks, small)[0]["weight_angle"] == pytest.approx(expected, rel=1e-4)


def test_angles_are_0_to_180_degrees_and_nan_where_a_vector_is_0():
    a = torch.tensor([0.1, 0.3, 0.7])
    others = torch.stack([a, torch.tensor([0.3, -0.1, 0.0]), -a, 0 * a])
    expected = torch.tensor([0, 90, 180, torch.nan])
    assert_close(script.angle(a, others), expected, rtol=0, atol=0.05, equal_nan=True)
