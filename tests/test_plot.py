"""The plot shows what the log holds, and says what it leaves out."""

import json
import os
import runpy
from pathlib import Path

import matplotlib.style
import numpy as np
import pytest
from numpy.testing import assert_allclose

import plot_losses

pytestmark = pytest.mark.usefixtures("folder")
COLUMNS = "seed,step,fa_loss,own_loss,fa_error,own_error,message_angle,weight_angle,own_angle\n"
ONE_SEED = COLUMNS + "1,0,2.5,1,90,1,89,91,60\n1,1,2,1,70,1,80,81,61\n1,4,0.5,0.6,10,11,30,41,150\n"
LOG = ONE_SEED + "0,0,2.5,1,90,1,85,66,60\n0,1,2.2,1,80,1,75,76,61\n0,4,0.9,0.6,20,12,20,26,150\n"
LINES = {"loss": [[0, 2.5], [1, 2.1], [3, 0.7]], "error": [[0, 90], [1, 75], [4, 15]]}


def write_run(log=LOG, folder="runs/a", arrays=("start", "end")):
    Path(folder).mkdir(parents=True)
    Path(folder, "losses.csv").write_text(log)
    Path(folder, "config.json").write_text(json.dumps({"title": "MNIST", "steps_in_epoch": 10}))
    for number, when in enumerate(arrays):
        np.savez(Path(folder, f"fa_readout_{when}.npz"), W=[[number, 2]], B=[[3, 4]])
    return Path(folder, "losses.csv")


def panels_of(path):
    config = json.loads(path.with_name("config.json").read_text())
    figure = plot_losses.plot(plot_losses.read_log(path), config, path.parent)
    return {panel.get_label(): panel for panel in figure.axes}


@pytest.mark.parametrize("quantity", LINES)
def test_losses_have_their_mean_amid_their_mini_batches_and_the_rest_at_its_step(quantity):
    assert_allclose(panels_of(write_run())[quantity].lines[0].get_xydata(), LINES[quantity])


def test_a_band_is_the_mean_more_and_less_one_sample_deviation():
    (path,) = panels_of(write_run())["error"].collections[0].get_paths()
    last = path.vertices[path.vertices[:, 0] == 4][:, 1]
    assert (last.min(), last.max()) == pytest.approx((15 - 50**0.5, 15 + 50**0.5))


@pytest.mark.parametrize(("quantity", "end"), [("loss", 0.6), ("error", 11.5), ("angle", 150)])
def test_a_column_of_ones_own_is_drawn_by_its_name_in_its_quantitys_panel(quantity, end):
    lines = {line.get_label(): line for line in panels_of(write_run())[quantity].lines}
    assert lines["own"].get_ydata()[-1] == end


@pytest.mark.parametrize(("when", "W", "angle"), [("start", 0, "37°"), ("end", 1, "10°")])
def test_w_is_drawn_against_b_with_their_angle(when, W, angle):
    panel = panels_of(write_run())[when]
    assert panel.collections[0].get_offsets().tolist() == [[3, W], [4, 2]]
    assert angle in panel.get_title()


def test_w_that_is_b_is_at_0_degrees_whatever_rounding_does():
    for seed in range(20):
        W = np.random.default_rng(seed).standard_normal((10, 20)).astype(np.float32)
        panel = plot_losses.Figure().subplots()
        plot_losses.draw_entries(panel, {"W": W, "B": W}, "start")
        assert panel.get_title().endswith(": 0°")


def test_a_run_stopped_in_its_first_seed_is_drawn_without_w_and_b():
    path = write_run(ONE_SEED, arrays=["start"])
    assert panels_of(path).keys() == {"loss", "error", "angle"}


def test_unfinished_seeds_and_cut_lines_are_left_out_and_said(capsys):
    log = plot_losses.read_log(write_run(ONE_SEED + "77,0,2.5,2.5,90,92,85,66,60\n88,1,0.25"))
    assert log["seed"].tolist() == [[1, 1, 1]]
    printed = capsys.readouterr().out
    assert "77" in printed and "88,1,0.25" in printed


def test_large_seeds_are_told_apart():
    log = LOG.replace("\n1,", "\n1732900000000000001,").replace("\n0,", "\n1732900000000000002,")
    assert plot_losses.read_log(write_run(log)).shape == (2, 3)


@pytest.mark.parametrize(("old", "new"), [("fa_loss", "fa_norm"), ("2.2", "nan")])
def test_columns_without_a_panel_or_not_finite_are_said(old, new, capsys):
    plot_losses.say_what_is_missing(plot_losses.read_log(write_run(LOG.replace(old, new))))
    assert "fa_" in capsys.readouterr().out


def test_the_newest_run_at_any_depth_is_drawn_by_default():
    for time, name in enumerate(["runs/b", "runs/a", "runs/sweep/lr/0.1"]):
        os.utime(write_run(folder=name), (time, time))
    plot_losses.main([])
    assert list(Path().rglob("*.png")) == [Path("runs/sweep/lr/0.1/losses.png")]


def test_the_picture_is_the_same_whatever_the_users_style():
    path, pictures = write_run(), set()
    for style in "default", "dark_background":
        with matplotlib.style.context(style):
            plot_losses.main([str(path)])
        pictures.add(path.with_name("losses.png").read_bytes())
    assert len(pictures) == 1


def test_importing_the_module_changes_no_settings(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    with matplotlib.style.context("default"):
        before = matplotlib.rcParams.copy(), dict(os.environ)
        runpy.run_path(plot_losses.__file__)
        assert (matplotlib.rcParams.copy(), dict(os.environ)) == before
