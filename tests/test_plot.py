"""The plot shows what the log holds, and refuses or says what it cannot show."""

import csv
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb

import plot_losses

pytestmark = pytest.mark.usefixtures("folder")
CONFIG = {
    "trained_on": "MNIST",
    "networks": {"fa": "Linear 784-20, FALinear 20-10", "bp": "Linear 784-20, Linear 20-10"},
    "optimizer": "SGD: lr 0.5",
    "arguments": ["--lr", "0.5"],
}


def row(seed=0, epoch=0, step=0, **columns):
    """Return a log's row, by default with 1 in each of the usual columns."""
    names = ["fa_loss", "bp_loss", "shallow_loss", "fa_error", "bp_error", "shallow_error"]
    values = dict.fromkeys([*names, "message_angle", "weight_angle"], 1)
    return {"seed": seed, "epoch": epoch, "step": step} | values | columns


def two_rows(seed=0, **columns):
    return [row(seed, step=0, **columns), row(seed, step=10, **columns)]


def write_run(rows, name="a", config=CONFIG):
    """Write a run with these rows; return its log's path."""
    path = Path("runs", name, "losses.csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    path.with_name("config.json").write_text(json.dumps(config))
    return path


def write_arrays(**arrays):
    Path("runs/a").mkdir(parents=True, exist_ok=True)
    np.savez("runs/a/fa_read_out.npz", **arrays)


@pytest.fixture
def quick_pictures(monkeypatch):
    """Let pictures be empty files: to draw one takes most of a second."""
    monkeypatch.setattr(plot_losses.Figure, "savefig", lambda _self, out, **_: Path(out).touch())


def figure_of(rows, read_out=None, config=CONFIG):
    return plot_losses.plot(plot_losses.read_log(write_run(rows)), config, read_out)


def panel_of(rows, quantity):
    """Return the panel of "loss", "error" or "angle"."""
    return figure_of(rows).axes[["loss", "error", "angle"].index(quantity)]


def lines_of(panel):
    """Return {label: heights} of a panel's lines."""
    return {line.get_label(): list(line.get_ydata()) for line in panel.lines}


# Lines and bands


def test_a_line_is_the_mean_over_the_seeds():
    rows = [row(seed, fa_loss=loss) for seed, loss in enumerate([2, 4, 9])]
    assert lines_of(panel_of(rows, "loss"))["FA (feedback alignment)"] == [5]


def test_a_band_is_the_mean_more_and_less_one_sample_deviation():
    rows = [row(seed, fa_loss=loss) for seed, loss in enumerate([2, 4, 9])]
    (path,) = panel_of(rows, "loss").collections[0].get_paths()
    heights = path.vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((5 - 13**0.5, 5 + 13**0.5))


def test_a_band_has_the_color_of_its_line_and_lets_others_through():
    panel = panel_of([*two_rows(seed=0), *two_rows(seed=1)], "loss")
    for line, band in zip(panel.lines, panel.collections, strict=True):
        assert tuple(band.get_facecolor()[0]) == (*to_rgb(line.get_color()), 0.3)
        assert list(band.get_linewidths()) == [0]


def test_one_seed_has_no_band():
    assert not panel_of(two_rows(), "loss").collections


def test_each_column_is_drawn_in_the_panel_of_its_quantity():
    columns = list(row())[3:]
    values = dict(zip(columns, range(1, 9), strict=True))
    loss, error, angle = figure_of([row(**values)]).axes
    assert [heights for [heights] in lines_of(loss).values()] == [1, 2, 3]
    assert [heights for [heights] in lines_of(error).values()] == [4, 5, 6]
    assert list(lines_of(angle).values()) == [[7], [8], [90, 90]]


def test_the_lines_are_named():
    loss, error, angle = figure_of([row()]).axes
    rules = ["FA (feedback alignment)", "BP (backpropagation)", "shallow (hidden layer frozen)"]
    assert list(lines_of(loss)) == rules
    assert list(lines_of(error)) == rules
    angles = ["messages: Bᵀe and Wᵀe", "matrices: B and W", "unrelated"]
    assert list(lines_of(angle)) == angles


def test_each_line_has_its_style():
    loss, _, angle = figure_of([row()]).axes
    styles = {
        line.get_label().split()[0]: (line.get_color(), line.get_linestyle(), line.get_linewidth())
        for line in [*loss.lines, *angle.lines]
    }
    assert styles == {
        "FA": ("#56B4E9", "-", 4),
        "BP": ("#D55E00", "--", 1.5),
        "shallow": ("black", ":", 1.5),
        "messages:": ("#CC79A7", "-", 4),
        "matrices:": ("#009E73", "--", 1.5),
        "unrelated": ("black", "-", 1),
    }


def test_the_title_of_one_seed_claims_no_spread():
    assert figure_of([row()]).get_suptitle().startswith("MNIST, one seed\n")


def test_a_rule_or_an_angle_that_is_not_known_is_drawn_under_its_own_name():
    rows = [row(sign_loss=5, sign_error=6, tilt_angle=7)]
    loss, error, angle = figure_of(rows).axes
    assert lines_of(loss)["sign"] == [5]
    assert lines_of(error)["sign"] == [6]
    assert lines_of(angle)["tilt"] == [7]
    assert loss.lines[-1].get_color() == angle.lines[-2].get_color() == "#E69F00"


def test_another_quantity_does_not_take_the_label_of_a_known_name():
    assert list(lines_of(panel_of([row(weight_loss=5)], "loss")))[-1] == "weight"


# Where they are drawn


def test_errors_and_angles_are_drawn_at_their_step_counted_over_the_epochs():
    rows = [row(), row(step=4), row(step=10), row(epoch=1, step=4), row(epoch=2, step=10)]
    for quantity in "error", "angle":
        assert list(panel_of(rows, quantity).lines[0].get_xdata()) == [0, 4, 10, 14, 30]


def test_a_loss_is_drawn_amid_the_updates_before_its_mini_batches():
    rows = [row(step=step) for step in (0, 1, 4, 8)]
    assert list(panel_of(rows, "loss").lines[0].get_xdata()) == [0, 0, 2, 5.5]


@pytest.mark.parametrize("quantity", ["loss", "error", "angle"])
def test_the_axis_of_steps_is_logarithmic_from_0_to_the_last(quantity):
    panel = panel_of([row(), row(step=2000)], quantity)
    scale = panel.xaxis.get_transform()
    assert (panel.get_xscale(), scale.linthresh, scale.linscale) == ("symlog", 1, 0.5)
    assert panel.get_xlim() == (0, 2000)
    panel.figure.draw_without_rendering()
    labels = [label.get_text() for label in panel.get_xticklabels()]
    assert labels[:5] == ["0", "1", "10", "100", "1000"]


def test_a_log_with_step_0_alone_can_be_drawn():
    assert panel_of([row()], "loss").get_xlim() == (0, 1)


@pytest.mark.parametrize(("quantity", "scale"), [("loss", "log"), ("error", "log")])
def test_losses_and_errors_have_a_logarithmic_axis_with_plain_numbers(quantity, scale):
    rows = [row(fa_loss=0.3, bp_loss=2.5, fa_error=0.3, bp_error=2.5)]
    panel = panel_of(rows, quantity)
    assert panel.get_yscale() == scale
    panel.figure.draw_without_rendering()
    labels = {label.get_text() for label in panel.get_yticklabels(which="both")}
    assert {"0.3", "0.5", "1", "2"} <= labels
    assert "0.4" not in labels


@pytest.mark.parametrize(("largest", "labelled"), [(250, True), (350, False)])
def test_over_many_decades_only_powers_of_ten_have_a_label(largest, labelled):
    panel = panel_of([row(fa_loss=largest)], "loss")
    panel.set_ylim(1, largest)
    plot_losses.make_logarithmic(panel)
    panel.figure.draw_without_rendering()
    labels = {label.get_text() for label in panel.get_yticklabels(which="both")}
    assert ("20" in labels) == labelled
    assert {"1", "10", "100"} <= labels


@pytest.mark.parametrize(("largest", "top"), [(95, 110), (150, 155)])
def test_angles_have_a_linear_axis_from_0_beyond_90(largest, top):
    panel = panel_of([row(message_angle=largest)], "angle")
    assert panel.get_yscale() == "linear"
    assert panel.get_ylim() == (0, top)
    assert [tick for tick in panel.get_yticks() if tick <= 120] == [0, 30, 60, 90, 120]


def test_panels_have_titles_axis_labels_legends_and_grids():
    panels = figure_of([row(), row(epoch=4, step=1)]).axes
    assert [panel.get_title() for panel in panels] == [
        "Training loss",
        "Test error",
        "FA's alignment at the read-out",
    ]
    units = ["cross-entropy (nats)", "misclassified (%)", "angle (degrees)"]
    assert [panel.get_ylabel() for panel in panels] == units
    assert [panel.get_xlabel() for panel in panels] == ["", "", "step (epochs: 5)"]
    assert all(panel.get_legend() for panel in panels)
    assert all(panel.xaxis.get_gridlines()[0].get_visible() for panel in panels)


def test_the_title_says_in_words_what_was_trained_on_what():
    config = CONFIG | {"arguments": []}
    assert figure_of([row(0), row(1)], config=config).get_suptitle().splitlines() == [
        "MNIST, mean ± standard deviation over 2 seeds",
        "fa: Linear 784-20, FALinear 20-10",
        "bp: Linear 784-20, Linear 20-10",
        "SGD: lr 0.5",
        "options: none",
    ]


def test_the_title_has_the_options_that_were_given_in_lines_that_fit():
    config = CONFIG | {"arguments": ["--out", *["long"] * 60]}
    *_, first, last = figure_of([row()], config=config).get_suptitle().splitlines()[:6]
    assert first.startswith("options: --out long")
    assert 90 < len(first) <= 110
    assert last.startswith("long")


def test_dollar_signs_in_the_title_are_no_formula():
    config = CONFIG | {"arguments": [r"--out=$\frac$"]}
    write_run([row()], config=config)
    plot_losses.main([])  # a formula that is none would fail


# W against B

ARRAYS = {
    "feedback_at_start": np.array([[1.0, 2.0], [3.0, 4.0]]),
    "feedback_at_end": np.array([[1.0, 2.0], [3.0, 5.0]]),
    "weight_at_start": np.array([[2.0, -1.0], [4.0, -3.0]]),
    "weight_at_end": np.array([[-10.0, -20.0], [-30.0, -50.0]]),
}


def test_w_is_drawn_against_b_entry_by_entry_at_start_and_end():
    start, end = figure_of([row()], read_out=ARRAYS).axes[3:]
    dots = [panel.collections[0].get_offsets().tolist() for panel in (start, end)]
    assert dots[0] == [[1, 2], [2, -1], [3, 4], [4, -3]]
    assert dots[1] == [[1, -10], [2, -20], [3, -30], [5, -50]]


def test_both_panels_of_w_are_square_and_have_one_scale():
    start, end = figure_of([row()], read_out=ARRAYS).axes[3:]
    assert start.get_ylim() == end.get_ylim()
    assert start.get_ylim()[0] < -40
    assert start.get_box_aspect() == end.get_box_aspect() == 1


def test_both_panels_of_w_say_when_and_at_which_angle():
    start, end = figure_of([row()], read_out=ARRAYS).axes[3:]
    assert start.get_title() == "W against B at the start: 90°"
    assert end.get_title() == "W against B at the end: 180°"
    for panel in start, end:
        labels = panel.get_xlabel(), panel.get_ylabel()
        assert labels == ("entry of B, first seed", "the same entry of W")


@pytest.mark.parametrize(("connections", "size"), [(200, 12), (10_000, 1)])
def test_many_dots_are_smaller(connections, size):
    arrays = dict.fromkeys(ARRAYS, np.ones((10, connections // 10)))
    start = figure_of([row()], read_out=arrays).axes[3]
    assert list(start.collections[0].get_sizes()) == [size]


def test_without_the_file_there_are_three_panels_in_a_smaller_figure():
    without, with_w = figure_of([row()]), figure_of([row()], read_out=ARRAYS)
    assert (len(without.axes), len(with_w.axes)) == (3, 5)
    assert without.get_size_inches().tolist() == pytest.approx([8, 9.6])
    assert with_w.get_size_inches().tolist() == pytest.approx([8, 12.8])


def test_the_arrays_are_read_and_may_be_missing():
    assert plot_losses.read_arrays(Path("missing.npz")) is None
    write_arrays(**ARRAYS)
    arrays = plot_losses.read_arrays(Path("runs/a/fa_read_out.npz"))
    assert arrays.keys() == ARRAYS.keys()
    np.testing.assert_array_equal(arrays["weight_at_end"], ARRAYS["weight_at_end"])


# What is left out, and said


def test_a_seed_with_fewer_rows_is_left_out_and_named(capsys):
    path = write_run([*two_rows(seed=0), row(seed=1)])
    assert plot_losses.read_log(path)["seed"].tolist() == [[0, 0]]
    assert capsys.readouterr().err == f"{path}: left out seed 1, which has fewer rows\n"


def test_a_last_line_that_is_cut_is_left_out_and_shown(capsys):
    path = write_run(two_rows())
    path.write_text(path.read_text() + "0,0,20,1.2")
    assert plot_losses.read_log(path)["step"].tolist() == [[0, 10]]
    assert capsys.readouterr().err == f"{path}: left out the last line, which is cut: 0,0,20,1.2\n"


@pytest.mark.usefixtures("quick_pictures")
def test_a_mean_ends_where_a_seed_is_not_finite_and_this_is_said(capsys):
    rows = [*two_rows(seed=0), row(seed=1), row(seed=1, step=10, fa_loss="nan")]
    write_run(rows)
    plot_losses.main([])
    said = capsys.readouterr().err
    problem = "fa_loss is inf or nan in places, and no mean is drawn there"
    assert said == f"runs/a/losses.csv: {problem}\n"
    line = panel_of(rows, "loss").lines[0]
    np.testing.assert_array_equal(line.get_ydata(), [1, np.nan])


@pytest.mark.usefixtures("quick_pictures")
def test_a_column_that_no_panel_shows_is_named(capsys):
    write_run([row(weight_norm=3)])
    plot_losses.main([])
    assert capsys.readouterr().err == "runs/a/losses.csv: no panel shows weight_norm\n"


@pytest.mark.usefixtures("quick_pictures")
def test_a_mean_of_0_on_a_logarithmic_axis_is_said(capsys):
    write_run([row(fa_error=0, weight_angle=0), row(seed=1, fa_error=0, bp_error=0)])
    plot_losses.main([])
    problem = "fa_error falls to 0, which a logarithmic axis cannot show"
    assert capsys.readouterr().err == f"runs/a/losses.csv: {problem}\n"


@pytest.mark.usefixtures("quick_pictures")
def test_of_a_usual_log_nothing_is_said_to_be_left_out(capsys):
    write_run([*two_rows(seed=0), *two_rows(seed=1)])
    plot_losses.main([])
    assert capsys.readouterr() == ("Plotted runs/a/losses.csv to runs/a/losses.png\n", "")


# Files


@pytest.mark.usefixtures("quick_pictures")
def test_the_newest_run_is_drawn_by_default():
    old, new = write_run([row()], "z"), write_run([row()], "a")
    os.utime(old, (1, 1))
    plot_losses.main([])
    assert list(Path("runs").rglob("*.png")) == [new.with_name("losses.png")]


@pytest.mark.usefixtures("quick_pictures")
@pytest.mark.parametrize("name", ["runs/a", "runs/a/losses.csv"])
def test_a_run_is_named_by_its_folder_or_its_log(name):
    write_run([row()])
    write_run([row()], "b")
    plot_losses.main([name])
    assert list(Path("runs").rglob("*.png")) == [Path("runs/a/losses.png")]


@pytest.mark.parametrize(
    ("name", "signature"), [("a.pdf", b"%PDF"), ("a.png", b"\x89PNG"), ("picture", b"\x89PNG")]
)
def test_the_picture_is_saved_where_and_as_asked_for(name, signature):
    write_run([row()])
    plot_losses.main(["runs/a", "--out", name])
    assert Path(name).read_bytes().startswith(signature)


@pytest.mark.usefixtures("quick_pictures")
def test_a_tilde_is_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write_run([row()])
    plot_losses.main(["~/runs/a", "--out=~/picture.png"])
    assert (tmp_path / "picture.png").is_file()


def refuse(arguments, capsys, *said):
    """Bad input gets status 2 and a last line that says why; no picture is made."""
    with pytest.raises(SystemExit, match="2"):
        plot_losses.main(arguments)
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert all(text in last_line for text in said), last_line
    assert not list(Path().rglob("*.p[nd]*"))


def test_a_folder_without_runs_is_refused(capsys):
    refuse(["nowhere"], capsys, "nowhere: no run here")


@pytest.mark.parametrize("text", ["", "seed,epoch,step\n", "cut"])
def test_a_log_without_rows_is_refused(capsys, text):
    write_run([row()]).write_text(text)
    refuse([], capsys, "losses.csv: no row to plot yet")


@pytest.mark.parametrize(
    "text",
    ["0,0,x", "0,0", "0,0,1,2"],
    ids=["no number", "too short", "too long"],
)
def test_a_line_that_is_no_row_is_refused(capsys, text):
    write_run([row()]).write_text(f"seed,epoch,step\n0,0,0\n{text}\n")
    refuse([], capsys, "losses.csv: line 3 is no row of a log")


@pytest.mark.parametrize("name", ["seed", "epoch", "step"])
def test_a_log_without_a_column_that_is_needed_is_refused(capsys, name):
    columns = [column for column in ("seed", "epoch", "step") if column != name]
    write_run([row()]).write_text(",".join(columns) + "\n0,0\n")
    refuse([], capsys, f"losses.csv: no column '{name}'")


@pytest.mark.parametrize("other", [{"step": 9}, {"step": 10, "epoch": 1}], ids=["step", "epoch"])
def test_seeds_with_rows_at_different_steps_are_refused(capsys, other):
    write_run([*two_rows(seed=0), row(seed=1), row(seed=1, **other)])
    refuse([], capsys, "losses.csv: the seeds have rows at different steps")


def test_a_picture_in_place_of_a_log_is_named(capsys):
    write_run([row()]).write_bytes(b"\x89PNG")
    refuse([], capsys, "losses.csv: 'utf-8' codec")


def test_a_missing_config_is_named(capsys):
    write_run([row()]).with_name("config.json").unlink()
    refuse([], capsys, "No such file", "config.json")


def test_a_config_that_is_no_json_is_named(capsys):
    write_run([row()]).with_name("config.json").write_text("{")
    refuse([], capsys, "config.json: Expecting")


@pytest.mark.parametrize("name", list(CONFIG))
def test_a_config_that_does_not_say_what_was_trained_is_refused(capsys, name):
    write_run([row()], config={key: CONFIG[key] for key in CONFIG if key != name})
    refuse([], capsys, f"config.json: no '{name}' in it")


@pytest.mark.parametrize("content", [b"PK\3\4 cut", b"", b"text"], ids=["cut", "empty", "text"])
def test_arrays_that_are_damaged_are_named(capsys, content):
    write_run([row()])
    Path("runs/a/fa_read_out.npz").write_bytes(content)
    refuse([], capsys, "fa_read_out.npz: ")


def test_arrays_of_other_names_are_refused(capsys):
    write_run([row()])
    write_arrays(feedback_at_start=np.ones(3), feedback_at_end=np.ones(3))
    refuse([], capsys, "fa_read_out.npz: ", "weight_at_start")


def test_an_unknown_kind_of_picture_is_refused(capsys):
    write_run([row()])
    refuse(["--out=a.xyz"], capsys, "a.xyz: no picture can be saved as xyz")


def test_an_ending_in_capital_letters_is_known():
    write_run([row()])
    plot_losses.main(["--out=a.PNG"])
    assert Path("a.PNG").read_bytes().startswith(b"\x89PNG")


def test_a_folder_that_is_not_there_is_named(capsys):
    write_run([row()])
    refuse(["--out=nowhere/a.png"], capsys, "nowhere/a.png")


def test_a_mistake_in_the_code_keeps_its_traceback(monkeypatch):
    write_run([row()])
    monkeypatch.setattr(plot_losses, "steps_of", lambda _log: int("mistaken"))
    with pytest.raises(ValueError, match="mistaken"):
        plot_losses.main([])


@pytest.mark.usefixtures("quick_pictures")
def test_as_a_script_it_draws_the_run_that_is_named(monkeypatch, capsys):
    write_run([row()])
    monkeypatch.setattr(sys, "argv", ["plot_losses.py", "runs/a"])
    runpy.run_path(plot_losses.__file__, run_name="__main__")
    assert capsys.readouterr().out == "Plotted runs/a/losses.csv to runs/a/losses.png\n"


def test_works_where_mplbackend_names_a_backend_that_is_not_there():
    write_run([row()])
    environment = os.environ | {"MPLBACKEND": "module://not_there.backend"}
    command = [sys.executable, plot_losses.__file__]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert Path("runs/a/losses.png").is_file()
