"""The controls take away what they say, and come out as the table says. These need MNIST."""

import statistics

import controls
import pytest
import torch
from test_texts import control

import train_fa_vs_bp_linear_model as script


def test_what_may_not_align_learns_but_keeps_the_products_of_the_messages_for_every_error(small):
    digits = script.load_digits("synthetic", None, "cpu")
    options = script.make_parser().parse_args(["--device=cpu", "--epochs=5", "--lr=0.01"])
    networks = script.matched_networks(options, seed=0)
    W, B = networks["fa"][1].weight, networks["fa"][1].feedback
    e, start = torch.randn(100, 10), W.detach().clone()
    products = ((e @ start) * (e @ B)).sum(dim=1)
    controls.no_alignment(networks)
    list(script.train(networks, digits, options, seed=0))
    torch.testing.assert_close(((e @ W) * (e @ B)).sum(dim=1), products, rtol=0, atol=1e-4)
    change = (W - start).detach()
    assert change.norm() > 0.3 * start.norm()
    # The least change that puts the products back has the form L B: nothing outside B's rows.
    W.data += torch.randn_like(W)
    before = W.detach().clone()
    networks["fa"](digits.test_images)
    outside = (W - before).detach() @ (torch.eye(20) - torch.linalg.pinv(B) @ B)
    assert outside.abs().max() < 1e-4 < (W - before).abs().max()


def test_each_control_still_learns_or_fails_as_in_the_table(mnist_dir):
    """One seed, a third of an epoch."""
    rows = {
        label: row
        for label, (row,) in controls.run_all(mnist_dir, seeds=[0], epochs=1, images=20_000)
    }
    for label, row in rows.items():
        for rule in {"fa", "bp"} & row.keys():
            committed = statistics.fmean(float(other[rule]) for other in control(label))
            low, high = (0, 30) if committed < 10 else (60, 100) if committed > 60 else (10, 80)
            assert low < row[rule] < high, label
        assert row.get("best read-out", 0) < row.get("fa", 100), label
        if "fa wait" in row:
            assert (row["fa wait"] > 2 * row["bp wait"]) == ("W starts as B" not in label)
    for label in "nothing", "W starts as −B", "B × 3":
        assert max(rows[label]["message"], rows[label]["weight"]) < 75
        assert rows[label]["least eigenvalue"] > 0 > rows["W frozen at its start"]["least overlap"]
