"""The plot shows what the log holds, and refuses or says what it cannot show."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

import plot_losses

pytestmark = pytest.mark.usefixtures("small")  # for its empty folder
HEADER = "seed,epoch,step,fa_loss,bp_loss,shallow_loss,fa_error,bp_error,shallow_error,"
HEADER += "message_angle,weight_angle\n"
SEED_0 = "0,0,0,2,3,4,20,30,40,60,70\n0,0,10,1,2,3,10,20,30,50,60\n"
SEED_1 = "1,0,0,4,3,4,22,30,40,70,72\n1,0,10,1,2,3,10,20,30,50,62\n"
SEED_2 = "2,0,0,9,3,4,24,30,40,80,74\n2,0,10,1,2,3,10,20,30,50,64\n"
CONFIG = {"steps_per_epoch": 10, "hidden": 20, "dataset_used": "MNIST", "lr": 0.5, "momentum": 0.9}
CONFIG |= {"weight_decay": 0, "batch_size": 32, "init_scale": 1, "freeze_read_out": True}


def write_log(text, name="a", config=CONFIG):
    """Write a run with that text as its log; return the log's path."""
    path = Path("runs", name, "losses.csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.with_name("config.json").write_text(json.dumps(config))
    return path


def test_draws_each_columns_mean_and_sample_deviation_under_its_name_and_the_settings():
    rows = SEED_0 + SEED_1 + SEED_2 + "".join(f"{seed},200,10{',1' * 8}\n" for seed in range(3))
    figure = plot_losses.plot(plot_losses.read_log(write_log(HEADER + rows)), CONFIG)
    loss, error, angle = (
        {line.get_label()[:8]: list(line.get_ydata()) for line in ax.lines} for ax in figure.axes
    )
    assert loss == {"FA (feed": [5, 1, 1], "BP (back": [3, 2, 1], "shallow ": [4, 3, 1]}
    assert error == {"FA (feed": [22, 10, 1], "BP (back": [30, 20, 1], "shallow ": [40, 30, 1]}
    assert angle == {"messages": [70, 50, 1], "matrices": [72, 62, 1], "unrelate": [90, 90]}
    band = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((1, 5 + 13**0.5))
    # A loss is drawn amid the updates that were made before its mini-batches: 0 to 9, 10 to 2009.
    at = [{tuple(line.get_xdata()) for line in ax.lines[:2]} for ax in figure.axes]
    assert at == [{(0, 4.5, 1009.5)}, {(0, 10, 2010)}, {(0, 10, 2010)}]
    figure.draw_without_rendering()
    assert {ax.get_xlim() for ax in figure.axes} == {(0, 2010)}
    assert all(ax.get_legend() for ax in figure.axes)
    for said in "784-20-10 on MNIST", "lr 0.5", "freeze_read_out True", "seeds: 3":
        assert said in figure.get_suptitle()


def test_another_order_of_rows_is_drawn_right_and_what_is_left_out_is_said(capsys):
    shuffled = "".join((SEED_0 + SEED_1).splitlines(keepends=True)[row] for row in (3, 0, 2, 1))
    for rest, losses, said in (
        (shuffled, [[2, 1], [4, 1]], ""),
        (SEED_0 + SEED_1[:27], [[2, 1]], "left out seed 1"),
        (SEED_0 + SEED_1[:9], [[2, 1]], "left out the last line"),
        (SEED_0 + SEED_1.replace("10,1", "10,nan"), [[2, 1], [4, np.nan]], "seed 1 overflows"),
    ):
        log = plot_losses.read_log(write_log(HEADER + rest))
        np.testing.assert_array_equal(log["fa_loss"], losses)
        assert said in capsys.readouterr().err


def test_draws_the_newest_run_by_default_and_where_it_is_told():
    old, new = write_log(HEADER + SEED_0, "new"), write_log(HEADER + SEED_0, "a")
    os.utime(old, (1, 1))
    plot_losses.main([])
    assert list(Path("runs").glob("*/losses.png")) == [new.with_name("losses.png")]
    plot_losses.main([str(old), "--out", "other.pdf"])
    assert Path("other.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("text", "config", "arguments", "culprit"),
    [
        (HEADER + "0,0,2\n", CONFIG, "runs", "a/losses.csv"),
        (HEADER + SEED_0 + SEED_1.replace("1,0,10", "1,0,9"), CONFIG, "runs", "different steps"),
        (HEADER + SEED_0 + SEED_0, CONFIG, "runs", "stands twice"),
        (HEADER + SEED_0, {}, "runs", "KeyError"),
        (HEADER + SEED_0, CONFIG, "nowhere", "nowhere"),
        (HEADER + SEED_0, CONFIG, "runs/a --out a.pgf", "latex"),
    ],
)
def test_what_cannot_be_plotted_is_refused(capsys, monkeypatch, text, config, arguments, culprit):
    monkeypatch.setenv("PATH", "")  # so that there is no LaTeX
    write_log(text, config=config)
    with pytest.raises(SystemExit, match="2"):
        plot_losses.main(arguments.split())
    assert culprit in capsys.readouterr().err.splitlines()[-1]
    assert not list(Path().rglob("*.p*"))
