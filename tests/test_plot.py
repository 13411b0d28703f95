"""The plot shows what the log holds, and says clearly when it cannot."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.testing.compare import compare_images
from PIL import Image

import plot_losses

ROOT = Path(plot_losses.__file__).parent
HEADER = (
    "seed,epoch,step,fa_loss,bp_loss,shallow_loss,fa_error,bp_error,shallow_error,angle"
)
ROWS = ["0,0,5,2,3,4,20,30,40,60", "0,0,10,1,2,3,10,20,30,50"]
ROWS += ["1,0,5,4,3,4,22,30,40,70", "1,0,10,1,2,3,10,20,30,50"]

LOG = "\n".join([HEADER, *ROWS, ""])


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a function that writes a run with the given text as its log."""
    monkeypatch.chdir(tmp_path)

    def write(text=LOG, name="a"):
        folder = Path("runs", name)
        folder.mkdir(parents=True)
        (folder / "losses.csv").write_text(text)
        return folder

    yield write
    plt.close("all")


def test_draws_mean_and_sample_standard_deviation_over_epochs(run):
    log = plot_losses.read_log(run() / "losses.csv")
    figure = plot_losses.plot(log, {"steps_per_epoch": 20})
    loss, error, angle = figure.axes
    fa, bp, shallow = loss.lines
    np.testing.assert_allclose(fa.get_xdata(), [0.25, 0.5])
    np.testing.assert_allclose(fa.get_ydata(), [3, 1])
    np.testing.assert_allclose(shallow.get_ydata(), [4, 3])
    band = loss.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(1)
    assert band.max() == pytest.approx(3 + 2**0.5)
    np.testing.assert_allclose(error.lines[1].get_ydata(), [30, 20])
    np.testing.assert_allclose(angle.lines[0].get_ydata(), [65, 50])
    assert loss.get_yscale() == "log"
    assert "(nats)" in loss.get_ylabel()
    assert "(%)" in error.get_ylabel()
    assert "(degrees)" in angle.get_ylabel()
    assert "epoch" in angle.get_xlabel()
    assert len({line.get_color() for line in (fa, bp, shallow)}) == 3
    assert len({line.get_linestyle() for line in (fa, bp, shallow)}) == 3
    assert len(loss.get_legend().get_texts()) == 3


def test_the_title_names_the_data_set_and_the_settings():
    config = json.loads((ROOT / "results/mnist/config.json").read_text())
    title = plot_losses.describe(config, 5)
    for part in "MNIST", "784-1000-10", "0.001", "batch 32", "5 seeds":
        assert part in title
    assert "unknown" in plot_losses.describe({}, 1)


def test_draws_only_the_panels_that_were_logged(run):
    log = plot_losses.read_log(run("seed,epoch,step,bp_loss\n0,0,1,2\n") / "losses.csv")
    assert len(plot_losses.plot(log, {}).axes) == 1


def test_takes_the_newest_run_by_default_and_needs_no_display(run):
    old, new = run(name="new"), run(name="a")
    os.utime(old / "losses.csv", (1, 1))
    environment = {k: v for k, v in os.environ.items() if k != "DISPLAY"}
    command = [sys.executable, str(ROOT / "plot_losses.py")]
    subprocess.run(command, env=environment, check=True)
    assert (new / "losses.png").exists()
    assert not (old / "losses.png").exists()


def test_writes_where_it_is_told(run):
    assert plot_losses.main([str(run() / "losses.csv"), "--out", "other.pdf"]) == 0
    assert Path("other.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("name", ["mnist", "original-settings"])
def test_the_committed_pictures_are_those_of_the_committed_logs(name, tmp_path):
    """Another Matplotlib lays a picture out a little differently: nothing to compare."""
    with Image.open(ROOT / "results" / name / "losses.png") as picture:
        if f"version{matplotlib.__version__}," not in picture.info["Software"]:
            pytest.skip(f"drawn by {picture.info['Software']}")
    folder = tmp_path / name
    shutil.copytree(ROOT / "results" / name, folder)
    expected = folder / "committed.png"
    (folder / "losses.png").rename(expected)
    assert plot_losses.main([str(folder)]) == 0
    assert compare_images(expected, folder / "losses.png", tol=2) is None
    log = (folder / "losses.csv").read_text().splitlines()
    (folder / "losses.csv").write_text("\n".join(log[: len(log) * 4 // 5]) + "\n")
    assert plot_losses.main([str(folder)]) == 0
    assert compare_images(expected, folder / "losses.png", tol=2) is not None


def test_nan_leaves_a_gap(run):
    folder = run(HEADER + "\n" + ROWS[0] + "\n0,0,10,nan,2,3,nan,20,30,nan\n")
    log = plot_losses.read_log(folder / "losses.csv")
    figure = plot_losses.plot(log, {})
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [2, np.nan])
    assert plot_losses.main([str(folder)]) == 0


def test_all_nan_still_plots(run):
    folder = run(HEADER + "\n0,0,1" + ",nan" * 7 + "\n")
    assert plot_losses.main([str(folder)]) == 0


def test_a_cut_last_line_is_left_out_and_said(run, capsys):
    folder = run(HEADER + "\n" + "\n".join(ROWS)[:-3])
    log = plot_losses.read_log(folder / "losses.csv")
    assert len(log["step"]) == 3
    assert "left out the last line" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "mention"),
    [
        ("", "no column seed, epoch, step"),
        (HEADER + "\n", "no row"),
        (HEADER, "no row"),
        (HEADER + "\n0,0", "no row"),
        ("a,b\n1,2\n", "no column seed, epoch, step"),
        ("seed,epoch,step\n0,0,1\n", "no column fa_loss, bp_loss or shallow_loss"),
        (
            HEADER + "\n" + ROWS[0].replace("20", "x") + "\n",
            "line 2: could not convert",
        ),
        (HEADER + "\n" + ROWS[0] + "\n0,0,2\n", "line 3: 3 values for 10 columns"),
        ("\udcff", "cannot be read as text"),
    ],
)
def test_a_log_that_cannot_be_plotted_gets_one_clear_line(run, capsys, text, mention):
    folder = run("")
    (folder / "losses.csv").write_bytes(text.encode(errors="surrogateescape"))
    assert plot_losses.main([str(folder)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert mention in error
    assert "losses.csv" in error
    assert os.listdir(folder) == ["losses.csv"]


@pytest.mark.parametrize(
    ("arguments", "mention"),
    [
        ([], "no run in runs/ yet"),
        (["."], "losses.csv does not exist"),
        (["nowhere"], "nowhere does not exist"),
    ],
)
def test_a_missing_log_gets_one_clear_line(
    tmp_path, monkeypatch, capsys, arguments, mention
):
    monkeypatch.chdir(tmp_path)
    assert plot_losses.main(arguments) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert mention in error
    assert os.listdir() == []


@pytest.mark.parametrize("out", [".", "nowhere/a.png", "a.docx"])
def test_a_picture_that_cannot_be_written_gets_one_clear_line(run, capsys, out):
    folder = run()
    assert plot_losses.main([str(folder), "--out", out]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert f"cannot write {out}" in error
