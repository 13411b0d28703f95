"""The controls take away what they say, and come out as the table says."""

import statistics

import controls
import torch
from test_texts import CONTROLS

import train_fa_vs_bp_linear_model as script


def test_w_learns_but_its_overlap_with_b_stays_for_every_error_and_by_the_least_change(small):
    digits = script.load_digits("synthetic", None, "cpu")
    options = script.make_parser().parse_args(["--device=cpu", "--epochs=5", "--lr=0.01"])
    for zero in False, True:
        networks = script.matched_networks(options, seed=0)
        W, B = networks["fa"][1].weight, networks["fa"][1].feedback
        e, start = torch.randn(100, 10), W.detach().clone()
        kept = ((e @ start) * (e @ B)).sum(dim=1) * (not zero)  # (W^T e).(B^T e)
        controls.keep_overlap(networks, zero=zero)
        list(script.train(networks, digits, options, seed=0))
        torch.testing.assert_close(((e @ W) * (e @ B)).sum(dim=1), kept, rtol=0, atol=1e-4)
        assert (W - start).norm() > 0.3 * start.norm()
    before = W.data.normal_().clone()
    networks["fa"](digits.test_images)
    outside_bs_rows = (W.detach() - before) @ (torch.eye(20) - torch.linalg.pinv(B) @ B)
    assert outside_bs_rows.abs().max() < 1e-4 < (W - before).abs().max()  # the change is L B


def test_each_control_still_learns_or_fails_as_in_the_table(mnist_dir):
    """One seed, a third of an epoch."""
    for label, (row,) in controls.run_all(mnist_dir, seeds=[0], epochs=1, images=20_000):
        for rule in {"fa", "bp"} & row.keys():
            committed = statistics.fmean(float(other[rule]) for other in CONTROLS[label])
            low, high = (0, 30) if committed < 10 else (60, 100) if committed > 60 else (10, 80)
            assert low < row[rule] < high, label
        assert row.get("best read-out", 0) < row.get("fa", 100), label
        if "fa wait" in row:
            assert (row["fa wait"] > 2 * row["bp wait"]) == ("W starts as B" not in label)
        if label in ("nothing", "W starts as −B"):
            assert max(row["message"], row["weight"]) < 75
            assert row["least eigenvalue"] > 0


def test_pairs_of_different_digits_take_away_some_60_percent_of_what_the_others_add(mnist_dir):
    _name, images, labels, *_ = controls.load(mnist_dir, 4000)
    e = 0.1 - torch.eye(10)[labels]  # at the start
    gains, same = (images @ images.T) * (e @ e.T), labels[:, None] == labels
    assert 0.55 < -gains[~same].sum() / gains[same].sum() < 0.7
