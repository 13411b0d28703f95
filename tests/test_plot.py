"""The plot shows what the log holds, and says clearly when it cannot."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import plot_losses

ROOT = Path(plot_losses.__file__).parent
CONFIG = json.loads((ROOT / "results" / "mnist" / "config.json").read_text())
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


def test_draws_mean_and_sample_standard_deviation_over_epochs():
    log = plot_losses.read_log(write_log(HEADER + SEED_0 + SEED_1))
    figure = plot_losses.plot(log, {**CONFIG, "steps_per_epoch": 20})
    assert "784-20-10 on MNIST, mean ± standard deviation over 2 seeds" in figure.get_suptitle()
    loss, error, angle = figure.axes
    fa, _bp, shallow = loss.lines
    np.testing.assert_allclose(fa.get_xdata(), [0, 0.5])
    np.testing.assert_allclose(fa.get_ydata(), [3, 1])
    np.testing.assert_allclose(shallow.get_ydata(), [4, 3])
    band = loss.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((1, 3 + 2**0.5))
    np.testing.assert_allclose(error.lines[1].get_ydata(), [30, 20])
    np.testing.assert_allclose(angle.lines[1].get_ydata(), [65, 50])  # line 0 is that at 90


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
    figure = plot_losses.plot(plot_losses.read_log(Path("runs/some/losses.csv")), {})
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [2, np.nan])
    assert len(figure.axes) == 1
    assert "unknown" in figure.get_suptitle()


def test_draws_the_newest_run_by_default_without_a_display_or_where_it_is_told():
    old, new = write_log(HEADER + SEED_0, "new"), write_log(HEADER + SEED_0, "a")
    os.utime(old, (1, 1))
    environment = {k: v for k, v in os.environ.items() if k != "DISPLAY"}
    subprocess.run([sys.executable, ROOT / "plot_losses.py"], env=environment, check=True)
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
    assert plot_losses.main([str(path.parent)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"error: {path}: " in error
    assert mention in error


@pytest.mark.parametrize(
    ("arguments", "mention"),
    [
        ("nowhere", "nowhere: no run here"),
        ("runs/a --out .", "Is a directory"),
        ("runs/a --out a.docx", "'docx' is not supported"),
    ],
)
def test_what_cannot_be_found_or_written_gets_one_clear_line(capsys, arguments, mention):
    write_log(HEADER + SEED_0)
    assert plot_losses.main(arguments.split()) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert mention in error
