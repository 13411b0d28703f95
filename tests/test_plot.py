"""The plot shows what the log holds, and says what it leaves out."""

import json
import os
import runpy
from pathlib import Path

import matplotlib.style
import numpy as np
import pytest

import plot_losses

pytestmark = pytest.mark.usefixtures("folder")
LOG = """\
seed,step,fa_loss,own_loss,fa_error,own_error,message_angle,weight_angle,own_angle
1,0,2.5,2.5,90,91,89,91,60
1,1,2.0,2.1,70,71,80,81,61
1,4,0.5,0.6,10,11,30,41,150
0,0,2.5,2.5,90,92,85,66,60
0,1,2.2,2.1,80,72,75,76,61
0,4,0.9,0.6,20,12,20,26,150
"""
FIRST, SECOND = LOG[:165], LOG[:83] + LOG[165:]


def write_run(log=LOG, folder="runs/a", arrays=("start", "end")):
    folder = Path(folder)
    folder.mkdir(parents=True)
    (folder / "losses.csv").write_text(log)
    (folder / "config.json").write_text(json.dumps({"title": "MNIST", "steps_in_epoch": 10}))
    for number, when in enumerate(arrays):
        np.savez(folder / f"fa_readout_{when}.npz", W=[[number, 2]], B=[[3, 4]])
    return folder / "losses.csv"


def panels_of(log=LOG, **options):
    path = write_run(log, **options)
    config = json.loads(path.with_name("config.json").read_text())
    figure = plot_losses.plot(plot_losses.read_log(path), config, path.parent)
    return {panel.get_label(): panel for panel in figure.axes}


@pytest.mark.parametrize(("quantity", "x"), [("loss", [0, 1, 3]), ("error", [0, 1, 4])])
def test_losses_stand_amid_their_mini_batches_and_the_rest_at_its_step(quantity, x):
    assert panels_of()[quantity].lines[0].get_xdata().tolist() == x


def test_a_line_is_the_mean_over_the_seeds():
    assert panels_of()["error"].lines[0].get_ydata().tolist() == [90, 75, 15]


def test_a_band_is_the_mean_more_and_less_one_sample_deviation():
    (path,) = panels_of()["error"].collections[0].get_paths()
    last = path.vertices[path.vertices[:, 0] == 4][:, 1]
    assert (last.min(), last.max()) == pytest.approx((15 - 50**0.5, 15 + 50**0.5))


@pytest.mark.parametrize("quantity", ["loss", "error", "angle"])
def test_a_column_of_ones_own_is_drawn_by_its_name_in_the_panel_of_its_quantity(quantity):
    lines = {line.get_label(): line.get_ydata()[-1] for line in panels_of()[quantity].lines}
    assert lines["own"] == {"loss": 0.6, "error": 11.5, "angle": 150}[quantity]


@pytest.mark.parametrize(("when", "W", "angle"), [("start", 0, "91"), ("end", 1, "41")])
def test_w_is_drawn_against_b_with_the_angle_of_the_seed_trained_first(when, W, angle):
    panel = panels_of()[when]
    assert panel.collections[0].get_offsets().tolist() == [[3, W], [4, 2]]
    assert angle in panel.get_title()


def test_a_run_stopped_in_its_first_seed_is_drawn_without_w_and_b():
    assert panels_of(FIRST, arrays=["start"]).keys() == {"loss", "error", "angle"}


def test_unfinished_seeds_and_cut_lines_are_left_out_and_said(capsys):
    log = plot_losses.read_log(write_run(FIRST + "77,0,2.5,2.5,90,92,85,66,60\n77,1,0.25"))
    assert log["seed"].tolist() == [[1, 1, 1]]
    printed = capsys.readouterr().out
    assert "77,1,0.25" in printed and "77" in printed.replace("77,1,0.25", "")


def test_large_seeds_are_told_apart():
    log = LOG.replace("\n1,", "\n1732900000000000001,").replace("\n0,", "\n1732900000000000002,")
    assert plot_losses.read_log(write_run(log)).shape == (2, 3)


@pytest.mark.parametrize(("old", "new"), [("own_loss", "own_norm"), ("0.9", "nan"), ("", "")])
def test_what_is_not_drawn_is_said(old, new, capsys):
    plot_losses.main([str(write_run(LOG.replace(old, new))), "--out=picture.png"])
    name = {"0.9": "fa_loss"}.get(old, new)
    assert len(capsys.readouterr().out.splitlines()) == (2 if name else 1)


def test_the_newest_run_at_any_depth_is_drawn_by_default():
    for age, name in enumerate(["runs/b", "runs/sweep/lr/c", "runs/a"]):
        os.utime(write_run(folder=name), (1e9 - abs(1 - age), 1e9 - abs(1 - age)))
    plot_losses.main([])
    assert list(Path().rglob("*.png")) == [Path("runs/sweep/lr/c/losses.png")]


def test_the_picture_is_the_same_whatever_the_users_style():
    write_run()
    pictures = []
    for style in "default", "dark_background":
        with matplotlib.style.context(style):
            plot_losses.main(["runs/a"])
        pictures.append(Path("runs/a/losses.png").read_bytes())
    assert pictures[0] == pictures[1]


def test_importing_the_module_changes_no_settings(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    before = matplotlib.rcParams.copy(), dict(os.environ)
    runpy.run_path(plot_losses.__file__)
    assert (matplotlib.rcParams.copy(), dict(os.environ)) == before
