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
COLUMNS = "seed,step,fa_loss,bp_loss,own_loss,fa_error,bp_error,own_error,"
COLUMNS += "fa_message_angle,fa_weight_angle,own_message_angle,own_weight_angle,own_angle\n"
SEED_1 = "1,0,2.5,3,1,90,91,1,89,91,60,70,50\n1,1,2,3,1,70,91,1,80,81,61,71,51\n"
SEED_1 += "1,4,0.5,3,0.6,10,91,11,30,41,62,72,150\n"
SEED_0 = "0,0,2.5,3,1,90,91,1,85,66,60,70,50\n0,1,2.2,3,1,80,91,1,75,76,61,71,51\n"
SEED_0 += "0,4,0.9,3,0.6,20,91,12,20,26,62,72,150\n"
ONE_SEED, LOG = COLUMNS + SEED_1, COLUMNS + SEED_1 + SEED_0
DIVERGED = "0,4,nan,inf,1e30,90,91,1,nan,nan,nan,nan,nan\n"


def write_run(log=LOG, folder="runs/a", rules=("own", "fa")):
    Path(folder).mkdir(parents=True)
    Path(folder, "losses.csv").write_text(log)
    Path(folder, "config.json").write_text(json.dumps({"title": "MNIST", "steps_in_epoch": 10}))
    for rule in rules:
        for number, when in enumerate(["start", "end"]):
            W = [[number, 2 if rule == "fa" else 0]]
            np.savez(Path(folder, f"{rule}_readout_{when}.npz"), W=W, B=[[3, 4]])
    return Path(folder, "losses.csv")


def figure_of(path):
    config = json.loads(path.with_name("config.json").read_text())
    figure = plot_losses.plot(plot_losses.read_log(path), config, path.parent)
    return figure


def panels_of(path):
    return {panel.get_label(): panel for panel in figure_of(path).axes}


def line_of(panel, column):
    """Return the line that has a column's mean."""
    log = np.genfromtxt((COLUMNS + SEED_1 + SEED_0).splitlines(), delimiter=",", names=True)
    mean = (log[column][:3] + log[column][3:]) / 2
    (line,) = [line for line in panel.lines if np.array_equal(line.get_ydata(), mean)]
    return line


@pytest.mark.parametrize("column", COLUMNS.strip().split(",")[2:])
def test_each_column_is_drawn_in_its_panel_under_its_rules_name(column):
    panels = panels_of(write_run())
    rule, ending = column.split("_", 1)
    panel = panels[ending.rpartition("_")[2]]
    label = line_of(panel, column).get_label()
    expected = {"fa": "FA (feedback alignment)", "bp": "BP (backpropagation)"}.get(rule, rule)
    if ending in ("message_angle", "weight_angle"):
        matrices = ("messages Bᵀe and Wᵀe", "matrices B and W")[ending == "weight_angle"]
        expected = f"{'FA' if rule == 'fa' else rule}: {matrices}"
    assert label == expected
    legends = [panel.get_legend() for panel in panels.values() if panel.get_legend()]
    assert label in [text.get_text() for legend in legends for text in legend.get_texts()]


def test_losses_are_drawn_amid_their_mini_batches_and_the_rest_at_its_step():
    panels = panels_of(write_run())
    assert_allclose(line_of(panels["loss"], "fa_loss").get_xdata(), [0, 1, 3])
    assert_allclose(line_of(panels["error"], "fa_error").get_xdata(), [0, 1, 4])


def test_a_band_is_the_mean_more_and_less_one_sample_deviation():
    (path,) = panels_of(write_run())["error"].collections[0].get_paths()
    last = path.vertices[path.vertices[:, 0] == 4][:, 1]
    assert (last.min(), last.max()) == pytest.approx((15 - 50**0.5, 15 + 50**0.5))


def test_a_rule_has_one_colour_messages_are_solid_and_matrices_dashed():
    panels = panels_of(write_run())
    colors = {line_of(panels["loss"], "bp_loss").get_color()}
    for rule in "fa", "own":
        loss = line_of(panels["loss"], f"{rule}_loss")
        messages = line_of(panels["angle"], f"{rule}_message_angle")
        matrices = line_of(panels["angle"], f"{rule}_weight_angle")
        assert loss.get_color() == messages.get_color() == matrices.get_color()
        assert (messages.get_linestyle(), matrices.get_linestyle()) == ("-", "--")
        colors.add(loss.get_color())
    assert len(colors) == 3


def test_the_axes_say_what_is_drawn():
    panels = panels_of(write_run())
    labels = {name: panels[name].get_ylabel() for name in ("loss", "error", "angle", "start")}
    for name, text in [("loss", "loss"), ("error", "%"), ("angle", "degrees"), ("start", "W")]:
        assert text in labels[name]
    assert "10" in panels["loss"].get_xlabel()
    assert panels["angle"].get_ylim() == (0, 155)  # a little above the largest
    assert panels["end"].get_xlabel() == "entry of B"


@pytest.mark.parametrize(
    ("log", "text"),
    [
        (ONE_SEED, "1 seed"),
        (LOG, "2 seeds: mean ± standard deviation"),
        (LOG.rpartition("0,4")[0], "1 of 2 seeds (the longest)"),
        (
            LOG + "5,0,2.5,3,1,90,91,1,85,66,60,70,50\n",
            "2 of 3 seeds (the longest): mean ± standard deviation",
        ),
        (LOG.replace("0,4,0.9", "0,5,0.9"), "1 of 2 seeds (the longest)"),
    ],
)
def test_the_title_says_how_many_seeds_are_drawn(log, text):
    assert figure_of(write_run(log)).get_suptitle() == f"MNIST; {text}"


@pytest.mark.parametrize(("when", "W", "angle"), [("start", 0, "37°"), ("end", 1, "10°")])
def test_w_is_drawn_against_b_with_their_angle_rule_and_seed(when, W, angle):
    panel = panels_of(write_run())[when]
    assert panel.collections[0].get_offsets().tolist() == [[3, W], [4, 2]]
    assert panel.get_title() == f"W against B, FA, seed 1\n{when}: {angle}"


def test_w_and_b_of_a_seed_that_is_not_drawn_are_not_drawn():
    path = write_run(COLUMNS + SEED_1.rpartition("1,4")[0] + SEED_0)
    assert panels_of(path).keys() == {"loss", "error", "angle"}


def test_w_and_b_of_another_rule_are_drawn_if_fa_has_none():
    assert "own" in panels_of(write_run(rules=["own"]))["end"].get_title()


@pytest.mark.filterwarnings("error")
def test_w_that_is_0_has_no_angle():
    panel = panels_of(write_run(rules=["own"]))["start"]  # where its W is 0
    assert panel.get_title().endswith("no angle")


def test_w_that_is_b_is_at_0_degrees_whatever_rounding_does():
    for seed in range(20):
        W = np.random.default_rng(seed).standard_normal((10, 20)).astype(np.float32)
        panel = plot_losses.Figure().subplots()
        plot_losses.draw_entries(panel, {"W": W, "B": W}, "start")
        assert panel.get_title().endswith(": 0°")


def test_without_w_and_b_or_angles_their_panels_are_left_out():
    path = write_run(rules=[])
    assert panels_of(path).keys() == {"loss", "error", "angle"}
    path.write_text("seed,step,bp_loss,bp_error\n0,0,2.3,90\n0,1,2.2,80\n")
    assert panels_of(path).keys() == {"loss", "error"}


def test_a_log_from_before_is_drawn_by_the_names_that_it_has():
    lines = panels_of(write_run("seed,step,fa_loss,weight_angle\n0,0,2.3,90\n", rules=[]))
    assert "weight" in [line.get_label() for line in lines["angle"].lines]


@pytest.mark.parametrize("low", [0.9, 0.09, 1e-3, 1e-9, 1e-30])
@pytest.mark.parametrize("high", [0.91, 3, 1e9, 1e30])
def test_there_are_a_few_numbers_at_the_axis_of_the_losses(low, high):
    path = write_run(f"seed,step,fa_loss\n0,0,{high}\n0,1,{low}\n", rules=[])
    figure = figure_of(path)
    figure.canvas.draw()
    panel = figure.axes[0]
    bottom, top = sorted(panel.get_ylim())
    ticks = [tick for tick in panel.get_yticks() if bottom <= tick <= top]
    assert 2 <= len(ticks) <= 13
    assert all(label.get_text() for label in panel.get_yticklabels())


@pytest.mark.filterwarnings("error")
def test_losses_that_are_all_nan_leave_an_empty_panel():
    figure = figure_of(write_run("seed,step,fa_loss\n0,0,nan\n0,1,nan\n", rules=[]))
    figure.canvas.draw()
    assert figure.axes[0].get_ylabel() == "training loss"


def test_a_rule_may_have_a_space_in_its_name():
    path = write_run(LOG.replace("own_", "my rule_"), rules=[])
    assert "my rule" in [line.get_label() for line in panels_of(path)["loss"].lines]


@pytest.mark.parametrize(("loss", "scale"), [("0.5", "log"), ("0", "linear"), ("-1", "linear")])
def test_losses_of_0_or_below_are_drawn_on_a_linear_axis(loss, scale):
    path = write_run(f"seed,step,fa_loss\n0,0,2.5\n0,1,{loss}\n0,2,nan\n", rules=[])
    assert panels_of(path)["loss"].get_yscale() == scale


def test_unfinished_seeds_and_cut_lines_are_left_out_and_said(capsys):
    rows = plot_losses.read_log(write_run(ONE_SEED + SEED_0[:40].replace("0,0", "77,0") + "88,1,0"))
    assert plot_losses.by_seed(rows)["seed"].tolist() == [[1, 1, 1]]
    printed = capsys.readouterr().out
    assert "77" in printed and "88,1,0" in printed


def test_large_seeds_are_told_apart():
    log = LOG.replace("\n1,", "\n9223372036854775807,").replace("\n0,", "\n9223372036854775806,")
    assert plot_losses.by_seed(plot_losses.read_log(write_run(log))).shape == (2, 3)


@pytest.mark.parametrize(("old", "new"), [("fa_loss", "fa_norm"), ("2.2", "nan"), ("2.2", "inf")])
def test_columns_without_a_panel_or_not_finite_are_said(old, new, capsys):
    figure_of(write_run(LOG.replace(old, new)))
    printed = capsys.readouterr().out
    assert "fa_" in printed and "bp_" not in printed


@pytest.mark.filterwarnings("error")
def test_a_run_that_diverged_is_drawn_without_numpys_warnings():
    figure = figure_of(write_run(LOG.rpartition("0,4")[0] + DIVERGED))
    figure.canvas.draw()
    assert len(figure.axes) == 5


@pytest.mark.parametrize("log", ["", COLUMNS, COLUMNS + "1,0,2.5"])
def test_a_log_without_rows_is_one_line(log):
    write_run(log)
    with pytest.raises(SystemExit, match="has no rows"):
        plot_losses.main(["runs"])


@pytest.mark.parametrize(
    ("out", "picture"),
    [("my.svg", "my.svg"), ("my", "my.png"), ("runs", "runs/losses.png"), ("v1.5/a", "v1.5/a.png")],
)
def test_what_is_printed_is_what_was_written(out, picture, capsys):
    write_run()
    Path("v1.5").mkdir()
    plot_losses.main([f"--out={out}"])
    assert Path(picture).is_file()
    assert capsys.readouterr().out.splitlines()[-1].endswith(f" to {Path(picture)}")


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
