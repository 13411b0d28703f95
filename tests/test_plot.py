"""The plot shows what the log holds, and says clearly when it cannot."""

import os
from pathlib import Path

import numpy as np
import pytest

import plot_losses

ROOT = Path(plot_losses.__file__).parent
HEADER = "seed,epoch,step,fa_loss,bp_loss,shallow_loss,fa_error,bp_error,shallow_error,angle\n"
SEED_0 = "0,0,0,2,3,4,20,30,40,60\n0,0,10,1,2,3,10,20,30,50\n"
SEED_1 = "1,0,0,4,3,4,22,30,40,70\n1,0,10,1,2,3,10,20,30,50\n"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_log(text, name="a"):
    """Write a run with that text as its log; return the log's path."""
    path = Path("runs", name, "losses.csv")
    path.parent.mkdir(parents=True)
    path.write_bytes(text.encode(errors="surrogateescape"))
    return path


def draw(text, steps_per_epoch=None, title=""):
    return plot_losses.plot(plot_losses.read_log(write_log(text)), steps_per_epoch, title)


def test_draws_mean_and_sample_standard_deviation_of_each_network_under_its_name():
    figure = draw(HEADER + SEED_0 + SEED_1, 20, "the title")
    assert figure.get_suptitle() == "the title\nmean ± standard deviation over 2 seeds"
    assert [ax.get_title().split()[0] for ax in figure.axes] == ["Training", "Test", "Angle"]
    loss, error, angle = figure.axes
    for ax, ends in (loss, (1, 2, 3)), (error, (10, 20, 30)):
        drawn = {line.get_label().split()[0]: line.get_ydata()[-1] for line in ax.lines}
        assert drawn == dict(zip(["FA", "BP", "shallow"], ends, strict=True))
    assert len(loss.get_legend().get_texts()) == 3
    np.testing.assert_allclose(loss.lines[0].get_ydata(), [3, 1])
    band = loss.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((1, 3 + 2**0.5))
    np.testing.assert_allclose(angle.lines[0].get_ydata(), [65, 50])
    np.testing.assert_allclose(angle.lines[1].get_ydata(), [90, 90])  # unrelated


def test_steps_are_on_a_logarithmic_axis_that_has_a_zero_and_plain_numbers():
    figure = draw("seed,epoch,step,bp_loss,bp_error\n0,0,0,9,9\n0,4,1875,1,1\n", 1875)
    figure.draw_without_rendering()
    loss, error = figure.axes
    assert (error.get_xscale(), error.xaxis.get_transform().linthresh) == ("symlog", 1)
    assert (loss.get_yscale(), error.get_yscale()) == ("log", "log")
    ticks = [label.get_text() for label in error.get_xticklabels()]
    assert ticks[:5] == ["0", "1", "10", "100", "1000"]
    assert error.get_xlabel() == "step (an epoch has 1875)"


def test_a_loss_is_drawn_in_the_middle_of_the_steps_that_it_is_the_mean_of():
    rows = "".join(f"0,{at},1,1\n" for at in ("0,0", "0,1", "0,2", "0,4", "0,10", "1,10"))
    loss, error = draw("seed,epoch,step,fa_loss,fa_error\n" + rows, 10).axes
    np.testing.assert_allclose(error.lines[0].get_xdata(), [0, 1, 2, 4, 10, 20])
    # Updates made before each mini-batch: 0; 0; 1; 2, 3; 4 to 9; 10 to 19.
    np.testing.assert_allclose(loss.lines[0].get_xdata(), [0, 0, 1, 2.5, 6.5, 14.5])


@pytest.mark.parametrize(("top", "labels"), [(5, {"0.3", "0.5", "2", "3"}), (5000, {""})])
def test_numbers_on_the_axis_of_the_loss_have_room(top, labels):
    figure = draw(f"seed,epoch,step,fa_loss\n0,0,0,0.3\n0,0,9,{top}\n")
    figure.draw_without_rendering()
    drawn = {label.get_text() for label in figure.axes[0].get_yticklabels(minor=True)}
    assert labels <= drawn if top == 5 else labels == drawn


def test_the_title_tells_network_data_and_options():
    runs = [ROOT / "results" / name / "config.json" for name in ("mnist", "frozen-read-out")]
    (steps, default), (_, frozen) = map(plot_losses.read_config, runs)
    assert steps == 1875
    assert default.startswith("Linear network 784-20-10 on MNIST\n--lr 0.001 --momentum 0.9")
    assert frozen.replace(", all read-outs frozen", "") == default != frozen


@pytest.mark.parametrize("text", ["", "{", "{}", "[1]", "null", '{"lr": "x"}', "\udcff"])
def test_a_config_that_is_none_gets_one_clear_line(capsys, text):
    path = write_log(HEADER + SEED_0).with_name("config.json")
    path.write_bytes(text.encode(errors="surrogateescape"))
    assert plot_losses.main(["runs"]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert f"error: {path}: not the settings of a run: " in error


@pytest.mark.parametrize(
    ("cut", "said"), [(SEED_1[:24], "left out seed 1"), (SEED_1[:9], "left out the last line")]
)
def test_what_a_stopped_run_left_unfinished_is_left_out_and_said(capsys, cut, said):
    log = plot_losses.read_log(write_log(HEADER + SEED_0 + cut))
    np.testing.assert_array_equal(log["fa_loss"], [[2, 1]])
    assert said in capsys.readouterr().err


def test_nan_leaves_a_gap_and_what_was_not_logged_no_panel():
    for name, rows in ("some", "0,0,0,2\n0,0,1,nan\n"), ("all", "0,0,0,nan\n"):
        path = write_log("seed,epoch,step,bp_loss\n" + rows, name)
        assert plot_losses.main([str(path)]) == 0
    figure = plot_losses.plot(plot_losses.read_log(Path("runs/some/losses.csv")), None, "")
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [2, np.nan])
    assert len(figure.axes) == 1
    assert "unknown" in plot_losses.read_config(Path("runs/some/config.json"))[1]


def test_draws_the_newest_run_by_default_and_where_it_is_told():
    old, new = write_log(HEADER + SEED_0, "new"), write_log(HEADER + SEED_0, "a")
    os.utime(old, (1, 1))
    assert plot_losses.main([]) == 0
    assert list(Path("runs").glob("*/losses.png")) == [new.with_name("losses.png")]
    assert plot_losses.main([str(old), "--out", "other.pdf"]) == 0
    assert Path("other.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("text", "mention"),
    [
        ("", "no log of a run"),
        (HEADER + "0,0", "no row to plot yet"),
        ("a,b\n1,2\n", "no log of a run: its columns are ['a', 'b']"),
        (HEADER + SEED_0.replace("20", "x"), "could not convert string 'x'"),
        (HEADER + SEED_0 + "0,0,2\n", "columns changed from 10 to 3"),
        (HEADER + "0,0,2\n", "3 values a row for 10 columns"),
        ("\udcff\n", "can't decode byte"),
    ],
)
def test_a_log_that_cannot_be_plotted_gets_one_clear_line(capsys, text, mention):
    path = write_log(text)
    assert plot_losses.main(["runs"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"error: {path}: " in error
    assert mention in error


def test_what_cannot_be_found_or_written_gets_one_clear_line(capsys):
    write_log(HEADER + SEED_0)
    for arguments, mention in (
        ("nowhere", "error: nowhere: no run here"),
        ("runs/a --out .", "error: .: [Errno 21] Is a directory"),
        ("runs/a --out a.docx", "'docx' is not supported"),
    ):
        assert plot_losses.main(arguments.split()) == 2
        (error,) = capsys.readouterr().err.splitlines()
        assert mention in error
