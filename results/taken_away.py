"""Take one thing away from feedback alignment, and train: is it needed?

    python results/taken_away.py DATA_DIR          writes taken_away.csv beside this file

7 minutes on two cores. FA and BP are test errors in percent, W and B their angle at the end. In the
third table, B is drawn anew before every so many mini-batches, or messages are noise, of the size
that they would have had.
"""

import itertools

import torch
from common import EPOCH, main, mean_and_deviation, script, set_up, train_for
from torch import nn
from turn import Dosed

from fa_linear import FALinear


def freeze_hidden(networks):
    for network in networks.values():
        network.hidden.requires_grad_(False)


def freeze_W(networks):
    for network in networks.values():
        network.readout.weight.requires_grad_(False)


def cut_copying(networks):
    for rule in networks:
        networks[rule] = Dosed(networks[rule], 0)


def start_at_minus_B(networks):
    del networks["bp"]  # it has no B
    readout = networks["fa"].readout
    readout.weight.data = -readout.feedback


def start_at_zero(networks):
    for weight in networks.parameters():
        weight.data.zero_()


def drop_hidden(networks):
    del networks["fa"]  # it would have nothing to teach
    hidden, readout = networks["bp"]
    networks["bp"] = nn.Linear(hidden.in_features, readout.out_features)


CHANGES = {
    "nothing": lambda _networks: None,
    "learning of the hidden layer (shallow)": freeze_hidden,
    "learning of W": freeze_W,
    "copying": cut_copying,
    "luck at the start: W starts at −B": start_at_minus_B,
    "the start: all weights from zero": start_at_zero,
    "the hidden layer: softmax regression": drop_hidden,
}


def take_away(data, seed, *options, epochs=5):
    """Take one thing away, and train FA and BP."""
    rows = {}
    for label, change in CHANGES.items():
        networks, args = set_up(data, seed, *options)
        change(networks)
        steps = epochs * EPOCH
        row = train_for(networks, data, args, seed, steps, script.measure)[steps]
        rows[label] = {rule.upper(): row[f"{rule}_error"] for rule in networks}
        if "fa" in networks:
            rows[label]["W and B"] = row["fa_weight_angle"]
    return rows


def take_away_from_1000(data, seed):
    """The same, with 1,000 hidden units, for one epoch."""
    return take_away(data, seed, "--hidden=1000", epochs=1)


def redraw_B(readout, steps):
    """Draw B anew before each so many uses of the readout in training."""
    uses = itertools.count()

    def hook(readout, _inputs):
        if readout.training and next(uses) % steps == 0:
            readout.feedback = FALinear(readout.in_features, readout.out_features).feedback

    readout.register_forward_pre_hook(hook)


def send_noise(readout):
    """Replace each image's message by normal noise of the same norm."""

    def noise(message):
        drawn = torch.randn_like(message)
        return drawn * message.norm(dim=1, keepdim=True) / drawn.norm(dim=1, keepdim=True)

    def hook(_readout, inputs):
        if inputs[0].requires_grad:  # it does not while errors are measured
            inputs[0].register_hook(noise)

    readout.register_forward_pre_hook(hook)


def change_messages(data, seed):
    """Redraw B, or send noise."""
    rows = {}
    for steps in "noise", 1, 10, 100, 375, EPOCH, 5 * EPOCH:
        networks, args = set_up(data, seed, rules=["fa"])
        readout = networks["fa"].readout
        send_noise(readout) if steps == "noise" else redraw_B(readout, steps)
        row = train_for(networks, data, args, seed, 5 * EPOCH, script.measure)[5 * EPOCH]
        rows[steps if steps == "noise" else f"{steps} step{'s' * (steps > 1)}"] = {
            "FA": row["fa_error"]
        }
    return rows


TABLES = {
    "taken away": (take_away, 5, mean_and_deviation),
    "taken away, 1000 units": (take_away_from_1000, 3, mean_and_deviation),
    "B stays for": (change_messages, 5, mean_and_deviation),
}

if __name__ == "__main__":
    main(__file__, __doc__, TABLES)
