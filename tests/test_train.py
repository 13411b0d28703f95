"""The comparison is matched, trains as a textbook would, and measures what it says."""

import copy
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

RULES = pytest.mark.parametrize("rule", script.RULES)
ROWS = {0: 1, 1: 1, 2: 1, 4: 2, 6: 2, 12: 6, 18: 6, 20: 2}  # mini-batches at each logged step


def args_of(*options):
    return script.make_parser().parse_args(["--hidden=16", "--epochs=1", *options])


def matched(data, *options):
    return script.matched_networks(data, args_of(*options), seed=3)


def sgd(network):
    return torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.7, weight_decay=0.1)


def rows_of(networks, optimizer, data, *options, measure=script.measure):
    rows = script.train(networks, optimizer, data, args_of(*options), 3, measure)
    return [*itertools.islice(rows, 50)]  # a loop without end is to fail, not to hang


def train(networks, data, *options):
    return rows_of(networks, sgd(networks), data, *options)


class Tenfold(FALinear):
    """Has a B of its own, ten times as large."""

    def reset_parameters(self):
        super().reset_parameters()
        self.feedback *= 10


def add_layer(monkeypatch, make_layer):
    def make_network(data, hidden, layer):
        first, last = nn.Linear(784, hidden), layer(hidden, data.classes)
        return nn.Sequential(OrderedDict(hidden=first, added=make_layer(layer), readout=last))

    monkeypatch.setattr(script, "make_network", make_network)


@pytest.mark.parametrize("rule", [*script.RULES, "own"])
@pytest.mark.parametrize("scale", [1.0, 0.1])
@pytest.mark.parametrize("deep", [False, True])
def test_all_rules_start_as_pytorch_draws_times_init_scale(small, monkeypatch, rule, scale, deep):
    monkeypatch.setitem(script.RULES, "own", Tenfold)
    if deep:
        add_layer(monkeypatch, lambda layer: layer(16, 16))
    drawn = {}
    for layer in FALinear, nn.Linear:  # B, and then the weights
        torch.manual_seed(3)
        drawn |= script.make_network(small, 16, layer).state_dict()
    network = matched(small, f"--init-scale={scale}")[rule]
    weights = dict(network.named_parameters())
    for name, tensor in network.state_dict().items():
        if name in weights or rule in ("fa", "own"):  # a rule may have another B
            factor = scale if name in weights else 10 if rule == "own" else 1
            assert_close(tensor, factor * drawn[name], check_dtype=False)


@pytest.mark.parametrize("rule", script.RULES)
def test_a_rule_can_be_taken_out(small, monkeypatch, rule):
    monkeypatch.delitem(script.RULES, rule)
    columns = train(matched(small), small, "--log-every=10")[-1]
    assert {f"{other}_loss" for other in script.RULES} < columns.keys()
    assert not [column for column in columns if column.startswith(f"{rule}_")]


def learning(network):
    """Say of each layer whether its weights learn: all (True), none (False) or some (None)."""
    layers = {}
    for name, layer in network.named_children():
        learn = {weight.requires_grad for weight in layer.parameters()}
        layers[name] = learn.pop() if len(learn) == 1 else None
    return layers


@RULES
def test_shallow_trains_the_readout_alone_and_others_train_everything(small, rule):
    learns = learning(matched(small)[rule])
    assert learns["readout"] is True
    assert learns["hidden"] is (rule != "shallow")


def test_freeze_readout_trains_the_rest_alone_and_leaves_shallow_out(small):
    networks = matched(small, "--freeze-readout")
    assert "shallow" not in networks
    for network in networks.values():
        learns = learning(network)
        assert learns["hidden"] is True
        assert learns["readout"] is False


DIFFERENCES = ["", "narrower", "would broadcast", "no bias", "one more", "parametrised", "renamed"]


def make_different(difference, layer):
    """Return a network that differs from the usual."""
    units = 8 if difference == "narrower" else 1 if difference == "would broadcast" else 16
    layers = OrderedDict(hidden=nn.Linear(784, units, bias=difference != "no bias"))
    if difference == "one more":
        layers["norm"] = nn.BatchNorm1d(units)
    if difference == "parametrised":
        nn.utils.parametrizations.weight_norm(layers["hidden"])
    if difference == "renamed":
        layers["below"] = layers.pop("hidden")
    layers["readout"] = layer(units, 10)
    return nn.Sequential(layers)


@pytest.mark.parametrize("difference", DIFFERENCES)
@pytest.mark.parametrize("where", ["first", "last"])
def test_networks_that_differ_are_refused(small, monkeypatch, difference, where):
    first = next(iter(script.RULES.values()))

    def make_network(data, hidden, layer):
        is_different = (layer is first) == (where == "first")
        return make_different(difference if is_different else "", layer)

    monkeypatch.setattr(script, "make_network", make_network)
    if not difference:
        assert matched(small)
        return
    with pytest.raises((AssertionError, RuntimeError)):
        matched(small)


def test_another_data_set_has_its_own_numbers_of_pixels_and_classes():
    images, labels = torch.randn(40, 64), torch.arange(40) % 4
    network = matched(script.DataSet("own", 4, images, labels, images, labels))["bp"]
    assert network.hidden.weight.shape == (16, 64)
    assert network.readout.weight.shape == (4, 16)


@pytest.fixture(scope="module")
def trained(small):
    """Return networks that were trained, the log's rows, and the rate of each update."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(script.RULES, "own", Tenfold)
        networks, rates = matched(small), []
    optimizer = sgd(networks)
    optimizer.register_step_pre_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
    return networks, rows_of(networks, optimizer, small, "--epochs=2", "--log-every=6"), rates


@RULES
def test_each_network_is_trained_and_its_loss_is_logged_as_if_it_was_alone(small, trained, rule):
    networks, rows, rates = trained
    network, losses = matched(small)[rule], []
    optimizer = sgd(network)
    batches = script.minibatches(small, args_of(), seed=3)
    for batch, rate in zip(batches, [*rates, 0]):  # a last mini-batch is not trained on
        loss = script.loss_function(network(small.train_images[batch]), small.train_labels[batch])
        losses.append(loss.item())
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert_close(networks[rule].state_dict(), network.state_dict())
    for row, batches_since_row in zip(rows, ROWS.values(), strict=True):
        since = [losses.pop(0) for _ in range(batches_since_row)]
        assert row[f"{rule}_loss"] == pytest.approx(statistics.fmean(since), rel=1e-4)
    assert not losses


@RULES
def test_a_rules_row_does_not_depend_on_which_other_rules_there_are(small, monkeypatch, rule):
    together = train(matched(small), small)[-1]
    monkeypatch.setattr(script, "RULES", {rule: script.RULES[rule]})
    alone = train(matched(small), small)[-1]
    assert alone == pytest.approx({name: together[name] for name in alone}, rel=1e-4)


def test_rows_stand_at_0_at_early_powers_of_two_each_log_every_steps_and_at_the_end(trained):
    assert [row["step"] for row in trained[1]] == [*ROWS]


def test_random_patterns_can_be_learned(trained):
    assert trained[1][-1]["bp_error"] < 50 < trained[1][0]["bp_error"]


def test_a_row_is_made_while_the_gradients_that_are_then_used_are_there(small):
    networks, pairs = matched(small), []
    weight, optimizer = networks["fa"].readout.weight, torch.optim.SGD(networks.parameters(), 0.1)
    group = optimizer.param_groups[0]
    see = lambda *_: pairs.append((weight.detach().clone(), group["lr"] * weight.grad)) or {}
    rows_of(networks, optimizer, small, "--log-every=1", measure=see)
    for (old, change), (new, _) in itertools.pairwise(pairs):
        assert_close(new, old - change)


def test_fa_with_feedback_tied_to_the_weights_is_bp(small, monkeypatch):
    monkeypatch.setattr(script, "RULES", {"fa": FALinear, "bp": nn.Linear})
    networks = matched(small)
    for layer in networks["fa"].modules():
        if isinstance(layer, FALinear):
            layer.feedback = layer.weight.detach()  # the same numbers in memory
    train(networks, small)
    assert all(map(torch.equal, networks["fa"].parameters(), networks["bp"].parameters()))


def test_each_epoch_of_each_seed_has_each_image_once_in_an_order_of_its_own(small):
    batches = [script.minibatches(small, args_of(), seed) for seed in (3, 4)]
    orders = [torch.cat([next(own) for _ in range(10)]).tolist() for own in batches * 2]
    assert all(sorted(order) == list(range(300)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize("mistake", ["optimizer", "labels", "column", "no images"])
def test_a_mistake_that_would_pass_in_silence_is_an_error(small, mistake):
    networks = matched(small)
    optimizer = sgd(networks["fa"] if mistake == "optimizer" else networks)
    measure = (lambda *_: {"fa_loss": 1.5}) if mistake == "column" else script.measure
    if mistake == "labels":
        small = small._replace(train_labels=torch.arange(301) % 10)
    elif mistake == "no images":
        small = small._replace(train_images=torch.ones(0, 784), train_labels=torch.arange(0))
    with pytest.raises((AssertionError, TypeError, ValueError)):
        next(script.train(networks, optimizer, small, args_of(), 3, measure))


class Mirror(FALinear):
    """Lets B learn in `forward`, and writes into it there when it is measured, too."""

    def forward(self, input):
        self.feedback.lerp_(self.weight.detach(), 0.1 if self.training else 0)
        return super().forward(input)


def test_logging_changes_neither_a_rule_that_learns_in_forward_nor_a_batch_norm(small, monkeypatch):
    monkeypatch.setitem(script.RULES, "mirror", Mirror)
    add_layer(monkeypatch, lambda _layer: nn.BatchNorm1d(16))
    ends = []
    for log_every in 1, 7:
        networks = matched(small)
        train(networks, small, f"--log-every={log_every}")
        ends.append(networks.state_dict())
    assert_close(*ends, rtol=0, atol=0)
    assert ends[0]["fa.added.num_batches_tracked"] == 11


@pytest.mark.parametrize("momentum", [0, 0.25])
def test_sgd_has_the_options_given_and_nesterovs_momentum(momentum):
    args = args_of("--lr=0.5", f"--momentum={momentum}", "--weight-decay=0.125")
    optimizer = script.make_optimizer(nn.Linear(1, 1), args)
    if type(optimizer) is not torch.optim.SGD:
        pytest.skip("another optimizer")
    expected = torch.optim.SGD([nn.Parameter()], 0.5, momentum, 0, 0.125, nesterov=momentum > 0)
    assert optimizer.defaults | {"fused": None} == expected.defaults


@RULES
def test_a_test_error_is_the_percentage_of_misclassified_test_images(small, trained, rule):
    outputs = trained[0][rule].eval()(small.test_images)
    wrong = sum(int(y.argmax()) != label for y, label in zip(outputs, small.test_labels))
    assert trained[1][-1][f"{rule}_error"] == pytest.approx(int(wrong))  # of 100


@pytest.mark.parametrize("bias", [0, 1000])
@pytest.mark.parametrize("squares", [False, True], ids=["cross-entropy", "squares"])
def test_angles_are_of_each_network_with_a_b_of_messages_and_of_matrices(
    small, trained, monkeypatch, squares, bias
):
    loss = lambda y, labels: F.mse_loss(y, torch.eye(10)[labels])
    monkeypatch.setattr(script, "loss_function", loss if squares else F.cross_entropy)
    networks, expected = copy.deepcopy(trained[0]), {}
    for rule, readout in script.readouts_with_feedback(networks).items():
        readout.bias.data[0] += bias  # 1000: certain of class 0, and sometimes right
        y = networks[rule].eval()(small.test_images)
        W, B = readout.weight.detach(), readout.feedback
        e = (y if squares else y.softmax(dim=1)) - torch.eye(10)[small.test_labels]
        messages = script.angle(e @ B, e @ W).nanmean().item()
        matrices = script.angle(B.flatten(), W.flatten()).item()
        expected |= {f"{rule}_message_angle": messages, f"{rule}_weight_angle": matrices}
    assert expected.keys() >= {"fa_weight_angle", "own_weight_angle"}
    row = script.measure(networks, small)
    assert {name: row[name] for name in row if "angle" in name} == pytest.approx(expected, 1e-4)


def test_an_error_signal_is_of_each_example_alone_not_of_the_mean():
    y, labels = torch.randn(7, 1, 10, requires_grad=True), torch.arange(7)[:, None]
    losses = [script.loss_function(*example) for example in zip(y, labels, strict=True)]
    (expected,) = torch.autograd.grad(sum(losses), y)
    assert_close(script.error_signal(y.flatten(0, 1), labels.flatten()), expected.flatten(0, 1))


def test_an_angle_is_0_to_180_degrees_and_nan_where_a_vector_is_0():
    a = torch.randn(1000, 2)
    normal = a.flip(dims=[1]) * torch.tensor([1, -1])
    for b, degrees in (a, 0.0), (normal, 90.0), (-a, 180.0), (0 * a, torch.nan):
        expected = torch.full((1000,), degrees)
        assert_close(script.angle(a, b), expected, rtol=0, atol=0.1, equal_nan=True)
