"""The comparison is matched, trains as a textbook would, and measures what it says."""

import argparse
import itertools
import statistics
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import train_fa_vs_bp_linear_model as script
from fa_linear import FALinear

RULES = pytest.mark.parametrize("rule", ["fa", "bp", "shallow"])


def options_of(*arguments) -> argparse.Namespace:
    return script.make_parser().parse_args(["--device=cpu", "--hidden=16", *arguments])


def matched(data, *arguments, seed=3):
    """Return the networks that these arguments give."""
    return script.matched_networks(data, options_of(*arguments), seed)


def learning_parameters(network):
    return [name for name, parameter in network.named_parameters() if parameter.requires_grad]


def change_networks(monkeypatch, **more_layers):
    """Let every network have more layers, between the hidden one and the read-out."""

    def build_network(data, hidden, upper):
        layers = {"hidden": nn.Linear(784, hidden)}
        for name, make_layer in more_layers.items():
            layers[name] = make_layer(upper)
        return nn.Sequential(OrderedDict(layers | {"read_out": upper(hidden, data.classes)}))

    monkeypatch.setattr(script, "build_network", build_network)


# Matched networks


@RULES
@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_networks_start_with_pytorchs_own_weights_times_init_scale(small, rule, scale):
    torch.manual_seed(3)
    hidden, _feedback, read_out = nn.Linear(784, 16), nn.Linear(16, 10), nn.Linear(16, 10)
    expected = [scale * parameter for parameter in [*hidden.parameters(), *read_out.parameters()]]
    network = matched(small, f"--init-scale={scale}")[rule]
    torch.testing.assert_close(list(network.parameters()), expected)


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_the_feedback_is_drawn_as_a_weight_is_and_not_scaled(small, scale):
    torch.manual_seed(3)
    _hidden, feedback = nn.Linear(784, 16), nn.Linear(16, 10)
    networks = matched(small, f"--init-scale={scale}")
    assert torch.equal(networks["fa"].read_out.feedback, feedback.weight)


def test_networks_are_fa_bp_and_shallow(small):
    layers = {rule: type(network.read_out) for rule, network in matched(small).items()}
    assert layers == {"fa": FALinear, "bp": nn.Linear, "shallow": nn.Linear}


def test_in_shallow_only_the_read_out_learns(small):
    networks = matched(small)
    everything = ["hidden.weight", "hidden.bias", "read_out.weight", "read_out.bias"]
    assert learning_parameters(networks["fa"]) == everything
    assert learning_parameters(networks["bp"]) == everything
    assert learning_parameters(networks["shallow"]) == everything[2:]


def test_freeze_read_out_lets_only_the_hidden_layer_learn_and_leaves_shallow_out(small):
    networks = matched(small, "--freeze-read-out")
    learning = {rule: learning_parameters(network) for rule, network in networks.items()}
    hidden = ["hidden.weight", "hidden.bias"]
    assert learning == {"fa": hidden, "bp": hidden}


def test_with_a_relu_added_freeze_read_out_still_freezes_the_read_out(small, monkeypatch):
    change_networks(monkeypatch, relu=lambda _upper: nn.ReLU())
    networks = matched(small, "--freeze-read-out")
    assert learning_parameters(networks["fa"]) == ["hidden.weight", "hidden.bias"]


def test_with_a_second_hidden_layer_shallow_still_trains_the_read_out_alone(small, monkeypatch):
    change_networks(monkeypatch, second=lambda upper: upper(16, 16))
    networks = matched(small)
    assert learning_parameters(networks["shallow"]) == ["read_out.weight", "read_out.bias"]
    assert torch.equal(networks["fa"].second.weight, networks["bp"].second.weight)
    assert not torch.equal(networks["fa"].second.feedback, networks["fa"].read_out.feedback[:1])


def test_a_network_that_the_others_weights_do_not_fit_is_an_error(small, monkeypatch):
    change_networks(
        monkeypatch, norm=lambda upper: nn.LayerNorm(16) if upper is FALinear else nn.ReLU()
    )
    with pytest.raises(RuntimeError, match="norm.weight"):
        matched(small)


def test_another_data_set_has_its_own_numbers_of_pixels_and_classes():
    images, labels = torch.randn(40, 64), torch.arange(40) % 4
    networks = matched(script.DataSet("own", 4, images, labels, images, labels))
    assert [tuple(p.shape) for p in networks["bp"].parameters()] == [(16, 64), (16,), (4, 16), (4,)]


# The training loop. The reference trains a network alone, by PyTorch's own means.

SETTINGS = ["--lr=0.02", "--momentum=0.7", "--weight-decay=0.1", "--epochs=2", "--log-every=6"]
PLACES = [(0, 0), (0, 1), (0, 2), (0, 4), (0, 6), (0, 10), (1, 6), (1, 10)]  # epoch, step


@pytest.fixture(scope="module")
def trained(small):
    """Return networks trained with SETTINGS, and the rows."""
    networks = matched(small, *SETTINGS, seed=5)
    rows = list(script.train(networks, small, options_of(*SETTINGS), seed=5))
    return networks, rows


def train_alone(network, data, lr, epochs, **settings):
    """Train a network by itself; return the loss of each mini-batch before its update."""
    optimizer = torch.optim.SGD(network.parameters(), lr, **settings)
    generator = torch.Generator().manual_seed(5)
    losses = []
    for _epoch in range(epochs):
        for batch in torch.randperm(300, generator=generator).split(32):
            loss = F.cross_entropy(network(data.train_images[batch]), data.train_labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


@pytest.fixture(scope="module")
def reference(small):
    """Return networks trained alone, and their losses: {rule: network}, {rule: losses}."""
    networks, losses = matched(small, seed=5), {}
    settings = {"momentum": 0.7, "nesterov": True, "weight_decay": 0.1}
    for rule, network in networks.items():
        losses[rule] = train_alone(network, small, lr=0.02, epochs=2, **settings)
    return networks, losses


def test_rows_stand_at_step_0_at_early_powers_of_two_every_log_every_steps_and_at_ends(trained):
    _, rows = trained
    assert [(row["epoch"], row["step"]) for row in rows] == PLACES


@RULES
def test_each_network_ends_as_if_it_was_trained_alone(trained, reference, rule):
    (networks, _), (alone, _) = trained, reference
    expected = list(alone[rule].parameters())
    torch.testing.assert_close(list(networks[rule].parameters()), expected)


@RULES
def test_the_row_of_step_0_has_the_first_mini_batchs_loss_before_any_update(
    trained, reference, rule
):
    (_, rows), (_, losses) = trained, reference
    assert rows[0][f"{rule}_loss"] == pytest.approx(losses[rule][0], rel=1e-5)


@RULES
def test_a_rows_loss_is_the_mean_over_the_steps_since_the_row_before(trained, reference, rule):
    (_, rows), (_, losses) = trained, reference
    own_losses = iter(losses[rule])
    for row, steps in zip(rows[1:], [1, 1, 2, 2, 4, 6, 4], strict=True):
        expected = statistics.fmean(itertools.islice(own_losses, steps))
        assert row[f"{rule}_loss"] == pytest.approx(expected, rel=1e-4)


def test_all_networks_have_the_same_loss_at_step_0(trained):
    _, rows = trained
    assert rows[0]["fa_loss"] == rows[0]["bp_loss"] == rows[0]["shallow_loss"]


def test_a_row_holds_place_losses_errors_and_angles_in_this_order(trained):
    _, rows = trained
    errors = ["fa_error", "bp_error", "shallow_error"]
    losses = ["fa_loss", "bp_loss", "shallow_loss"]
    angles = ["message_angle", "weight_angle"]
    assert list(rows[0]) == ["epoch", "step", *losses, *errors, *angles]


def test_a_rows_measures_are_numbers(trained):
    _, rows = trained
    assert {type(value) for value in list(rows[0].values())[2:]} == {float}


def test_momentum_0_is_plain_sgd(small):
    networks, alone = matched(small), matched(small)["bp"]
    options = options_of("--momentum=0", "--weight-decay=0", "--lr=0.1", "--epochs=1")
    list(script.train(networks, small, options, seed=5))
    train_alone(alone, small, lr=0.1, epochs=1)
    torch.testing.assert_close(list(networks["bp"].parameters()), list(alone.parameters()))


def test_fa_with_feedback_tied_to_the_weights_is_bp(small):
    networks = matched(small)
    read_out = networks["fa"].read_out
    read_out.feedback = read_out.weight.detach()  # the same numbers in memory
    options = options_of("--epochs=1", "--log-every=1")
    rows = list(script.train(networks, small, options, seed=0))
    assert [row["fa_loss"] for row in rows] == [row["bp_loss"] for row in rows]
    assert rows[-1]["fa_loss"] < rows[0]["fa_loss"]


def test_the_order_of_the_images_is_the_seeds(small):
    options = options_of("--epochs=1", "--log-every=1")
    losses = {}
    for seed in 0, 1:
        rows = script.train(matched(small), small, options, seed)
        losses[seed] = [row["bp_loss"] for row in rows]
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_random_patterns_can_be_learned(trained):
    _, rows = trained
    assert rows[-1]["bp_error"] < 50 < rows[0]["bp_error"]


def test_errors_are_measured_without_dropout_and_training_goes_on_with_it(small, monkeypatch):
    change_networks(monkeypatch, dropout=lambda _upper: nn.Dropout(0.9))
    networks = matched(small)
    row = next(script.train(networks, small, options_of(), seed=0))
    assert row["fa_error"] == row["bp_error"] == row["shallow_error"]
    assert networks["fa"].dropout.training


def test_a_fourth_rule_is_logged_by_its_name(small):
    networks = matched(small)
    networks["fourth"] = script.build_network(small, 16, FALinear)
    row = next(script.train(networks, small, options_of(), seed=0))
    assert {"fourth_loss", "fourth_error"} <= row.keys()


class InPlace(FALinear):
    """A rule that writes into its feedback each time it is used."""

    def forward(self, input):
        self.feedback.copy_(self.weight.detach().sign())
        return super().forward(input)


def test_nothing_is_measured_between_a_forward_and_its_backward_pass(small):
    """What would be written there, autograd would refuse."""
    networks = matched(small)
    networks["in place"] = script.build_network(small, 16, InPlace)
    rows = list(script.train(networks, small, options_of("--epochs=1"), seed=0))
    assert rows[0]["step"] == 0


@pytest.mark.parametrize("value", [1.5, torch.tensor(1.5)], ids=["float", "tensor"])
def test_a_measure_may_be_a_number_or_a_tensor(small, monkeypatch, value):
    monkeypatch.setattr(script, "measure", lambda *_: {"own": value})
    row = next(script.train(matched(small), small, options_of(), seed=0))
    assert row["own"] == 1.5


def test_a_measure_does_not_take_the_name_of_another_column(small, monkeypatch):
    monkeypatch.setattr(script, "measure", lambda *_: {"fa_loss": 1.5})
    with pytest.raises(TypeError, match="fa_loss"):
        next(script.train(matched(small), small, options_of(), seed=0))


@pytest.mark.parametrize(
    ("epoch", "step", "due"),
    [
        pytest.param(0, 8, True, id="early power of two"),
        pytest.param(0, 9, False, id="early, no power of two"),
        pytest.param(1, 8, False, id="power of two, second epoch"),
        pytest.param(0, 128, False, id="power of two above log_every"),
        pytest.param(0, 100, True, id="log_every"),
        pytest.param(1, 300, True, id="multiple of log_every, second epoch"),
        pytest.param(1, 345, True, id="last of an epoch"),
        pytest.param(1, 344, False, id="last but one"),
    ],
)
def test_row_is_due(epoch, step, due):
    assert script.row_is_due(epoch, step, last_step=345, log_every=100) == due


# What is measured


def test_a_test_error_is_the_percentage_of_misclassified_test_images(small):
    networks = matched(small)
    outputs = networks["bp"](small.test_images)
    wrong = [int(y.argmax()) != int(t) for y, t in zip(outputs, small.test_labels, strict=True)]
    measured = script.measure(networks, small)["bp_error"]
    assert float(measured) == pytest.approx(100 * statistics.fmean(wrong))


def messages(network, data):
    """Return B^T e and W^T e, an image a row."""
    probabilities = network(data.test_images).softmax(dim=1)
    one_hot = torch.eye(10)[data.test_labels]
    e = probabilities - one_hot
    return e @ network.read_out.feedback, e @ network.read_out.weight


def test_message_angle_is_the_mean_angle_of_both_messages_over_the_test_images(small):
    networks = matched(small)
    cosines = F.cosine_similarity(*messages(networks["fa"], small))
    expected = cosines.acos().rad2deg().mean().item()
    measured = script.measure(networks, small)["message_angle"]
    assert float(measured) == pytest.approx(expected, rel=1e-4)


def test_message_angle_leaves_out_an_image_without_error(small):
    networks = matched(small)
    with torch.no_grad():
        networks["fa"].read_out.bias[0] = 1000  # certain of class 0, and right about some images
    angles = script.angle(*messages(networks["fa"], small))
    measured = script.measure(networks, small)["message_angle"]
    assert 0 < angles.isnan().sum() < len(angles)
    assert float(measured) == pytest.approx(angles[~angles.isnan()].mean().item())


def test_weight_angle_is_that_between_both_matrices_as_vectors(small):
    networks = matched(small)
    read_out = networks["fa"].read_out
    cosine = F.cosine_similarity(read_out.weight.flatten(), read_out.feedback.flatten(), dim=0)
    measured = script.measure(networks, small)["weight_angle"]
    assert float(measured) == pytest.approx(cosine.acos().rad2deg().item(), rel=1e-4)


@pytest.mark.parametrize(
    ("a", "b", "degrees"),
    [
        pytest.param([1.0, 0.0], [1.0, 1.0], 45, id="45"),
        pytest.param([1.0, 0.0], [-2.0, -2.0], 135, id="135"),
        pytest.param([0.1, 0.3, 0.7], [-0.1, -0.3, -0.7], 180, id="opposite"),
        pytest.param([0.0, 0.0], [1.0, 1.0], float("nan"), id="no vector, no angle"),
    ],
)
def test_angle(a, b, degrees):
    measured = script.angle(torch.tensor(a), torch.tensor(b))
    assert float(measured) == pytest.approx(degrees, abs=0.05, nan_ok=True)


def test_angle_never_leaves_0_to_180_degrees_by_rounding():
    vectors = torch.randn(1000, 20)
    assert not script.angle(vectors, -vectors).isnan().any()
