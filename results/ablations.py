"""Take feedback alignment (FA) apart, on MNIST, and print what is left as tables.

    python results/ablations.py DATA_DIR          all tables; writes ablations.csv, mechanism.png
    python results/ablations.py DATA_DIR TABLE    that table alone; writes nothing

README.md, beside this file, says what each table shows. Letters: pixels u, hidden units h = V u + c,
outputs y = W h + b, feedback B, error e = dL/dy.
"""

import argparse
import copy
import csv
import functools
import itertools
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

import train_fa_vs_bp_linear_model as script
from fa_linear import FALinear


def make_tables():
    """Return {name: (function, seeds, decimals)}; function(data, seed) is {row: {column: value}}."""
    return {
        "phases": (write_copy_use, range(5), 2),
        "dose": (dose_of_copying, range(5), 1),
        "account of W": (account_of_W, range(5), 2),
        "account of the loss": (account_of_loss, range(5), 2),
        "taken away": (take_away, range(5), 1),
        "W frozen at an angle": (freeze_at_angle, range(5), 1),
        "B redrawn": (redraw_B, range(5), 1),
        "linear probe": (probe_hidden_layers, range(5), 1),
        "along a run": (follow, range(5), 1),
        "learning rates": (vary_rate, range(3), 1),
        "tanh network": (train_tanh, range(3), 1),
    }


# The ablations.


def write_copy_use(data, seed):
    """Let one layer learn at a time: the hidden layer writes, the readout copies, all is used."""
    rows = {}
    for name, steps_of_writing, another_B in (
        ("", 64, False),
        ("nothing written, ", 0, False),
        ("another B in the end, ", 64, True),
    ):
        networks, args = set_up(data, seed)
        readout = networks["fa"].readout
        rows.setdefault("start", state_of(networks, data))
        if steps_of_writing:
            learn_alone("hidden", networks, data, args, seed, steps_of_writing)
            rows.setdefault("write", state_of(networks, data))
        learn_alone("readout", networks, data, args, seed + 1000, 2000)
        rows.setdefault(f"{name}copy", state_of(networks, data))
        if another_B:
            readout.feedback = FALinear(readout.in_features, readout.out_features).feedback
        learn_alone("hidden", networks, data, args, seed + 2000, 1875)
        rows[f"{name}use"] = state_of(networks, data)
    return rows


def dose_of_copying(data, seed):
    """Let W learn from h0 + dose (h - h0); give its angle to B as predicted and as measured."""
    rows = {}
    for dose in (-2, -1, -0.5, 0, 0.5, 1, 2):
        networks, args = set_up(data, seed, "--log-every=4")
        predicted = predict_angles(networks["fa"], data, args, 100, dose)
        networks["fa"] = Dosed(networks["fa"], dose)
        columns = rows[f"{dose:g}"] = {}
        for row in rows_until(100, networks, data, args, seed):
            if row["step"] % 4 == 0:
                columns[f"predicted {row['step']}"] = predicted[row["step"]]
                columns[f"measured {row['step']}"] = row["weight_angle"]
    return rows


def account_of_W(data, seed):
    """Split W into its start, what it learned from h0, and what it copied: parts of cos(W, B)."""
    networks, args = set_up(data, seed)
    below, readout = split(networks["fa"])
    below_at_start = copy.deepcopy(below)
    zeros = torch.zeros_like(readout.weight)
    parts = nn.ParameterDict(
        {"start": readout.weight.detach().clone(), "learned from h0": zeros, "copied": zeros.clone()}
    )
    # SGD is linear in its gradients, momentum and weight decay included: what it makes of each part
    # of the gradient adds up to W.
    optimizers = script.make_optimizer(networks, args), script.make_optimizer(parts, args)
    steps = args.epochs * script.steps_in_epoch(data, args)
    for batch in itertools.islice(script.minibatches(data, args, seed), steps):
        images = data.train_images[batch]
        h, h0 = below(images), below_at_start(images).detach()
        y = readout(h)
        y.retain_grad()
        networks.zero_grad()
        script.loss_function(y, data.train_labels[batch]).backward()
        parts["start"].grad = torch.zeros_like(zeros)
        parts["learned from h0"].grad = y.grad.T @ h0
        parts["copied"].grad = y.grad.T @ (h.detach() - h0)
        for optimizer in optimizers:
            optimizer.step()
    W, B = readout.weight.detach(), readout.feedback
    torch.testing.assert_close(sum(parts.values()).detach(), W, rtol=1e-3, atol=1e-4)
    shares = {name: (part * B).sum() / W.norm() / B.norm() for name, part in parts.items()}
    shares["all"] = (W * B).sum() / W.norm() / B.norm()
    return {"part of the cosine": {name: share.item() for name, share in shares.items()}}


def account_of_loss(data, seed):
    """Split the loss's change in the first epoch into that by the steps of V and of W.

    At each step the four losses with old and new hidden layer and readout are taken, on 1,000
    training images. A layer's part is the mean of what its step changes before the other's and
    after. Both parts add up to the change of the loss.
    """
    both, args = set_up(data, seed, "--epochs=1", rules=("fa", "bp"))
    rows = {}
    for rule, network in both.items():
        networks = nn.ModuleDict({rule: network})
        below, readout = split(network)
        sums = {"hidden layer": 0.0, "readout": 0.0}
        for step in train_step_by_step(networks, data, args, seed):
            with torch.no_grad():
                h_new, readout_new = below(data.train_images[:1000]), copy.deepcopy(readout)
                if step > 0:
                    pairs = itertools.product((h_old, h_new), (readout_old, readout_new))
                    labels = data.train_labels[:1000]
                    oo, on, no, nn_ = (
                        script.loss_function(layer(h), labels).item() for h, layer in pairs
                    )
                    sums["hidden layer"] += (no - oo + nn_ - on) / 2
                    sums["readout"] += (on - oo + nn_ - no) / 2
                h_old, readout_old = h_new, readout_new
            if step in ACCOUNT_STEPS:
                for part, value in sums.items():
                    rows.setdefault(f"{rule}, {part}", {})[f"{step}"] = value
    return rows
