"""The plot shows what the log holds, and refuses or says what it cannot show."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

import plot_losses

HEADER = (
    "seed,epoch,step,fa_loss,bp_loss,shallow_loss,fa_error,bp_error,shallow_error,"
    "message_angle,weight_angle\n"
)
SEED_0 = "0,0,0,2,3,4,20,30,40,60,70\n0,0,10,1,2,3,10,20,30,50,60\n"
SEED_1 = "1,0,0,4,3,4,22,30,40,70,72\n1,0,10,1,2,3,10,20,30,50,62\n"
CONFIG = {"steps_per_epoch": 10, "hidden": 20, "dataset_used": "MNIST", "lr": 0.5, "momentum": 0.9}
CONFIG |= {"weight_decay": 0, "batch_size": 32, "init_scale": 1, "freeze_read_out": True}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_log(text, name="a"):
    """Write a run with that text as its log; return the log's path."""
    path = Path("runs", name, "losses.csv")
    path.parent.mkdir(parents=True)
    path.write_bytes(text.encode(errors="surrogateescape"))
    path.with_name("config.json").write_text(json.dumps(CONFIG))
    return path


def draw(text):
    return plot_losses.plot(plot_losses.read_log(write_log(text)), CONFIG)


def drawn(ax):
    """Return {label: (steps, values)} of a panel's lines."""
    lines = {line.get_label(): line.get_data() for line in ax.lines}
    return {label: (list(x), list(y)) for label, (x, y) in lines.items()}


def test_draws_each_columns_mean_and_sample_deviation_under_its_name_and_the_settings():
    figure = draw(HEADER + SEED_0 + SEED_1)
    loss, error, angle = figure.axes
    assert [ax.get_title() for ax in figure.axes] == [
        "Training loss",
        "Test error",
        "FA's alignment",
    ]
    values = [values for _steps, values in drawn(loss).values()]
    assert values == [[3, 1], [3, 2], [4, 3]]
    band = loss.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((1, 3 + 2**0.5))
    values = {label.split()[0]: values for label, (_steps, values) in drawn(error).items()}
    assert values == {"FA": [21, 10], "BP": [30, 20], "shallow": [40, 30]}
    values = {label.split(":")[0]: values for label, (_steps, values) in drawn(angle).items()}
    assert values == {"messages": [65, 50], "matrices": [71, 61], "unrelated": [90, 90]}
    legend = [text.get_text() for text in angle.get_legend().get_texts()]
    assert legend == [line.get_label() for line in angle.lines]
    for said in "784-20-10 on MNIST", "lr 0.5", "freeze_read_out True", "seeds: 2":
        assert said in figure.get_suptitle()


def test_steps_are_on_one_logarithmic_axis_that_has_a_zero_and_plain_numbers():
    figure = draw(HEADER + SEED_0 + SEED_0.replace("0,0,", "0,200,"))
    figure.draw_without_rendering()
    loss, _error, angle = figure.axes
    assert {ax.get_xlim() for ax in figure.axes} == {(0, 2010)}
    assert [ax.get_xscale() for ax in figure.axes] == ["symlog"] * 3
    assert [ax.get_yscale() for ax in figure.axes] == ["log", "log", "linear"]
    ticks = [label.get_text() for label in angle.get_xticklabels()]
    assert ticks[:5] == ["0", "1", "10", "100", "1000"]
    assert {"2", "3"} <= {label.get_text() for label in loss.get_yticklabels(minor=True)}


def test_a_loss_is_drawn_in_the_middle_of_the_steps_that_it_is_the_mean_of():
    rows = [f"0,{at},1,1,1,1,1,1,1,1\n" for at in ("0,0", "0,1", "0,2", "0,4", "0,10", "1,10")]
    loss, error, angle = (drawn(ax) for ax in draw(HEADER + "".join(rows)).axes)
    for steps, _values in list(error.values()) + list(angle.values())[:2]:
        assert steps == [0, 1, 2, 4, 10, 20]
    # Updates made before each mini-batch: 0; 0; 1; 2, 3; 4 to 9; 10 to 19.
    for steps, _values in loss.values():
        assert steps == [0, 0, 1, 2.5, 6.5, 14.5]


def test_a_log_in_another_order_of_rows_is_drawn_right():
    rows = (SEED_0 + SEED_1).splitlines(keepends=True)
    ordered, other = (
        plot_losses.read_log(write_log(HEADER + "".join(text), name))
        for text, name in ((rows, "a"), ([rows[i] for i in (3, 0, 2, 1)], "b"))
    )
    np.testing.assert_array_equal(other, ordered)


@pytest.mark.parametrize(
    ("cut", "said"), [(SEED_1[:27], "left out seed 1"), (SEED_1[:9], "left out the last line")]
)
def test_what_a_stopped_run_left_unfinished_is_left_out_and_said(capsys, cut, said):
    log = plot_losses.read_log(write_log(HEADER + SEED_0 + cut))
    np.testing.assert_array_equal(log["fa_loss"], [[2, 1]])
    assert said in capsys.readouterr().err


def test_a_seed_that_overflows_ends_the_mean_and_is_named(capsys):
    path = write_log(HEADER + SEED_0 + SEED_1.replace("10,1,2,3", "10,nan,2,3"))
    plot_losses.main([])
    assert "seed 1 overflows" in capsys.readouterr().err
    loss, *_ = plot_losses.plot(plot_losses.read_log(path), CONFIG).axes
    assert not np.isfinite(loss.lines[0].get_ydata()).all()
    assert np.isfinite(loss.lines[1].get_ydata()).all()


def test_draws_the_newest_run_by_default_and_where_it_is_told():
    old, new = write_log(HEADER + SEED_0, "new"), write_log(HEADER + SEED_0, "a")
    os.utime(old, (1, 1))
    plot_losses.main([])
    assert list(Path("runs").glob("*/losses.png")) == [new.with_name("losses.png")]
    plot_losses.main([str(old), "--out", "other.pdf"])
    assert Path("other.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("text", "arguments", "culprit"),
    [
        ("", "runs", "a/losses.csv"),
        (HEADER, "runs", "no log with a row"),
        ("a,b\n1,2\n", "runs", "columns are ['a', 'b']"),
        (HEADER + SEED_0.replace("20", "x"), "runs", "'x'"),
        (HEADER + "0,0,2\n", "runs", "a/losses.csv"),
        (HEADER + SEED_0 + SEED_1.replace("1,0,10", "1,0,9"), "runs", "different steps"),
        (HEADER + SEED_0 + SEED_0, "runs", "stands twice"),
        ("\udcff\n", "runs", "Unicode"),
        (HEADER + SEED_0, "nowhere", "nowhere"),
        (HEADER + SEED_0, "runs/a --out .", "Is a directory"),
        (HEADER + SEED_0, "runs/a --out a.docx", "'docx' is not supported"),
        (HEADER + SEED_0, "runs/a --out a.pgf", "latex"),
    ],
)
def test_what_cannot_be_plotted_is_refused_and_named(capsys, monkeypatch, text, arguments, culprit):
    monkeypatch.setenv("PATH", "")  # so that there is no LaTeX
    write_log(text)
    with pytest.raises(SystemExit, match="2"):
        plot_losses.main(arguments.split())
    assert culprit in capsys.readouterr().err.splitlines()[-1]
    assert not list(Path().rglob("*.p*"))


@pytest.mark.parametrize("text", ["{", "{}", "[1]", None])
def test_settings_that_are_none_are_refused_and_named(capsys, text):
    config = write_log(HEADER + SEED_0).with_name("config.json")
    config.unlink() if text is None else config.write_text(text)
    with pytest.raises(SystemExit, match="2"):
        plot_losses.main([])
    assert "runs/a/losses.csv: " in capsys.readouterr().err
