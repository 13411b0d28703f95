"""What README.md and results/README.md say is so: held against a run, or measured on MNIST.

What is measured may miss what is said by twice its spread over seeds; rounding changes it less.
"""

import contextlib
import csv
import io
import json
import re
import statistics
from pathlib import Path

import pytest
import torch
from conftest import sides_of_the_law
from torch import nn
from torch.nn import functional as F

import train_fa_vs_bp_linear_model as script
from fa_linear import FALinear

ROOT = Path(script.__file__).parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```\w*\n(.*?)```", README, re.DOTALL)
FIRST, *EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
BEST_READ_OUT = {20: 31.6, 1000: 7.6}  # units: its error in %


def says(text):
    """Return whether the text stands in one of the two, wherever its lines are broken."""
    return " ".join(text.split()) in " ".join((README + RESULTS).replace("**", "").split())


def committed(name, epoch=4, step=1875):
    """Return a run's rows of that step, one for each seed."""
    with open(ROOT / "results" / name / "losses.csv") as file:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    return [row for row in rows if (row["epoch"], row["step"]) == (epoch, step)]


def spread(rows, column, digits):
    values = [row[column] for row in rows]
    return f"{statistics.fmean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def mean(rows, column, digits=0):
    return f"{statistics.fmean(row[column] for row in rows):.{digits}f}"


def test_the_runs_were_made_by_the_commands_that_are_said_and_by_todays_defaults():
    said = dict(re.findall(r"^\[([\w-]+)\].*?\| `(.*?)` \| \d$", RESULTS, re.MULTILINE))
    assert set(said) == {path.parent.name for path in ROOT.glob("results/*/losses.csv")}
    for name, arguments in said.items():
        config = json.loads((ROOT / "results" / name / "config.json").read_text())
        arguments = [*arguments.split(), "--out", f"results/{name}", "--device", "cpu"]
        options = vars(script.make_parser().parse_args(arguments))
        assert {key: config[key] for key in options} == json.loads(json.dumps(options, default=str))
        assert (config["dataset_used"], config["torch"][:6]) == ("MNIST", "2.15.0")
    assert "--freeze-read-out" in script.make_parser().format_help()


def test_the_figures_in_the_text_are_those_of_the_runs():
    start, turn, later = (committed("mnist", 0, step) for step in (0, 32, 125))
    default, frozen, wide = map(committed, ("mnist", "frozen-read-out", "1000-units"))
    small, small_later = committed("small-weights"), committed("small-weights", 0, 125)
    long, (end,) = committed("twenty-epochs", 19), committed("original-settings", 26)
    fa, bp = spread(default, "fa_error", 2), spread(default, "bp_error", 2)
    shallow, angle = spread(default, "shallow_error", 1), mean(default, "angle")
    claims = [
        f"nothing | {fa} | {bp} hidden layer frozen",
        f'hidden layer frozen ("shallow") | {shallow} | the same',
        f"`--freeze-read-out` | {spread(frozen, 'fa_error', 1)} | {spread(frozen, 'bp_error', 2)}",
        f"the angle rises to {mean(frozen, 'angle')}°",
        f"The angle starts at {spread(start, 'angle', 0)}°",
        f"rises to {mean(committed('mnist', 0, 16), 'angle')}°",
        f"FA's loss rises, too, from {mean(start, 'fa_loss', 1)} to {mean(turn, 'fa_loss', 1)}.",
        f"The angle falls to {mean(later, 'angle')}°",
        f"test error from {mean(turn, 'fa_error')} to {mean(later, 'fa_error')} % (BP's",
        f"from {mean(turn, 'bp_error')} to {mean(later, 'bp_error')} %)",
        f"FA misclassifies {fa} %, BP {bp} %. The angle is {angle}°",
        f"After twenty epochs it is {mean(long, 'angle')}°",
        f"errors are {mean(long, 'fa_error', 1)} and {mean(long, 'bp_error', 1)} %",
        f"five epochs bring the angle to {mean(small, 'angle')}° instead of {angle}°",
        f"already after one epoch, at a mean of {mean(committed('mnist', 0), 'angle')}°",
        f"FA misclassifies {mean(wide, 'fa_error', 2)} %, BP {mean(wide, 'bp_error', 2)} %",
        f'"shallow" {mean(wide, "shallow_error", 2)} %',
        f"the angle stays at {mean(wide, 'angle')}°",
        f"FA {default[0]['fa_error']:.1f} %, BP {default[0]['bp_error']:.1f} %, shallow "
        + f"{default[0]['shallow_error']:.0f} %",
        f"misclassifies {mean(small_later, 'fa_error')} %, BP {mean(small_later, 'bp_error')} %",
        f"BP leads: {mean(later, 'bp_error')} against {mean(later, 'fa_error')} %",
        f"FA misclassifies {end['fa_error']:.2f} %, BP {end['bp_error']:.2f} %",
        f"the frozen network {end['shallow_error']:.2f} %. The angle is {end['angle']:.1f}°",
    ]
    small_wide = committed("1000-units-small-weights")
    table = {(20, 1): default, (20, 0.1): small, (1000, 1): wide, (1000, 0.1): small_wide}
    for (units, scale), rows in table.items():
        errors = [spread(rows, f"{rule}_error", 2) for rule in script.RULES]
        cells = [units, scale, *errors, BEST_READ_OUT[units], spread(rows, "angle", 1)]
        claims.append(" | ".join(map(str, cells)))
    assert [claim for claim in claims if not says(claim)] == []


def block(beginning):
    return next(text for text in BLOCKS if text.startswith(beginning))


def test_the_first_example_prints_what_is_said():
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(FIRST, {})  # noqa: S102
    texts = output.getvalue(), block("step   loss")
    printed, said = ([float(n) for n in re.findall(r"[\d.]+", text)] for text in texts)
    assert printed == pytest.approx(said, rel=0.02, abs=0.01)


def test_the_first_example_ends_as_said_when_a_layer_is_frozen():
    def loss(layer, steps):
        code = FIRST.replace("print", f"{layer}.requires_grad_(False)\nprint", 1)
        exec(code.replace("range(501)", f"range({steps + 1})"), scope := {})  # noqa: S102
        return scope["loss"].item()

    assert loss("hidden", 500) == pytest.approx(4.2, abs=0.1)
    assert loss("hidden", 5000) == pytest.approx(3.4, abs=0.1)
    assert 200 < loss("read_out", 500) < 10_000


def test_the_other_examples_run_and_the_changed_line_is_the_code():
    assert block("grad_input").split("#")[0] in (ROOT / "fa_linear.py").read_text()
    scope = {"torch": torch, "nn": nn, "F": F, "FALinear": FALinear}
    for example in EXAMPLES:
        exec(example, scope)  # noqa: S102
    assert scope["network"](torch.zeros(2, 784)).shape == (2, 10)
    assert scope["output"].shape == (2, 16, 32, 32)


def start(*arguments, seed=0):
    """Return matched networks, and the options to train them by."""
    options = script.make_parser().parse_args(["--device=cpu", *arguments])
    return script.matched_networks(options, seed), options


def train(networks, options, mnist, seed=0):
    """Train as the script does; return the last row's measures."""
    *_, (_epoch, _step, measures) = script.train(networks, mnist, options, seed)
    return measures


def test_the_default_run_ends_as_said_and_as_fa_left_it_the_read_out_may_be_frozen(mnist):
    networks, options = start()
    before = sides_of_the_law(networks["fa"])
    for name, value in train(networks, options, mnist).items():
        values = [row[name] for row in committed("mnist")]
        assert value == pytest.approx(values[0], abs=2 * statistics.stdev(values))
    assert drift_from_the_law(before, networks["fa"]) == pytest.approx(0.3, rel=0.2)
    assert smallest_overlap(networks["fa"]) > 0.05
    aligned = networks["fa"][1].state_dict()
    networks, options = start("--rules", "fa", "bp", "--freeze-read-out")
    networks["fa"][1].load_state_dict(aligned)
    networks["bp"][1].load_state_dict(aligned, strict=False)
    measures = train(networks, options, mnist)
    assert measures["fa_error"] == pytest.approx(8.02, abs=0.2)
    assert measures["bp_error"] == pytest.approx(8.06, abs=0.2)
    assert says("hidden layer drawn anew | 8.02 ± 0.06 | 8.06 ± 0.11")
    aligned.pop("feedback")
    networks, options = start("--rules=fa", "--freeze-read-out", "--epochs=1", seed=1)
    networks["fa"][1].load_state_dict(aligned, strict=False)
    assert train(networks, options, mnist)["fa_error"] > 60
    assert says("the same, and B drawn anew | 83.3 ± 8.4 | –")


def drift_from_the_law(before, network):
    """Return by what share of the latter B'W + W'B and W0 W0' + b0 b0' have grown apart."""
    pairs = zip(sides_of_the_law(network), before, strict=True)
    overlap, hidden = (now - then for now, then in pairs)
    return ((overlap - hidden).norm() / hidden.norm()).item()


@pytest.mark.parametrize(("lr", "drift"), [("0.001", 0.01), ("0.01", 0.3)])
def test_without_the_squared_steps_the_law_breaks_by_as_much_as_said(mnist, lr, drift):
    networks, options = start("--rules=fa", "--weight-decay=0", "--momentum=0", f"--lr={lr}")
    before = sides_of_the_law(networks["fa"])
    train(networks, options, mnist)
    assert drift_from_the_law(before, networks["fa"]) == pytest.approx(drift, rel=0.2)


def test_with_b_redrawn_at_each_step_fa_errs_as_often_as_said(mnist):
    def redraw(layer, _):
        nn.init.kaiming_uniform_(layer.feedback)

    networks, options = start("--rules=fa")
    networks["fa"][1].register_forward_pre_hook(redraw)
    assert train(networks, options, mnist)["fa_error"] == pytest.approx(20.1, abs=2)
    assert says("B drawn anew at each step | 20.1 ± 1.0 | –")


def test_with_a_frozen_read_out_a_smaller_learning_rate_does_not_help(mnist):
    networks, options = start("--freeze-read-out", "--rules=fa", "--lr=1e-4", "--epochs=1")
    measures = train(networks, options, mnist)
    assert measures["fa_loss"] > 20
    assert measures["fa_error"] > 60


def smallest_overlap(network):
    """Return the least (W'e).(B'e) of all e of length 1 that sum to zero: acute if positive."""
    zero_sum = torch.linalg.svd(torch.ones(1, 10)).Vh[1:].T  # a basis of such e, (10, 9)
    product = zero_sum.T @ network[1].weight @ network[1].feedback.T @ zero_sum
    return torch.linalg.eigvalsh((product + product.T) / 2).min().item()


def test_after_one_epoch_the_angle_is_acute_for_every_possible_error(mnist):
    for seed in range(5):
        networks, options = start("--rules=fa", "--epochs=1", seed=seed)
        assert smallest_overlap(networks["fa"]) < 0
        train(networks, options, mnist, seed)
        assert smallest_overlap(networks["fa"]) > 0.05


def error_of(network, mnist):
    wrong = network(mnist.test_images).argmax(dim=1) != mnist.test_labels
    return 100 * wrong.float().mean().item()


@pytest.mark.parametrize(("units", "seeds"), [(20, range(5)), (1000, [0])])
def test_the_best_read_out_on_frozen_features_errs_as_often_as_said(mnist, units, seeds, request):
    torch.set_num_threads(2)  # the one test with work enough for them
    request.addfinalizer(lambda: torch.set_num_threads(1))

    def best_error(seed):
        network = start("--rules=shallow", f"--hidden={units}", seed=seed)[0]["shallow"]
        hidden, read_out = network
        features = hidden(mnist.train_images)
        search = "strong_wolfe"
        optimizer = torch.optim.LBFGS(read_out.parameters(), max_iter=100, line_search_fn=search)

        def loss():
            optimizer.zero_grad()
            value = F.cross_entropy(read_out(features), mnist.train_labels)
            value.backward()
            return value

        optimizer.step(loss)
        return error_of(network, mnist)

    assert statistics.fmean(map(best_error, seeds)) == pytest.approx(BEST_READ_OUT[units], abs=0.1)


@pytest.mark.parametrize(
    ("activation", "layer", "lr", "said", "deviation"),
    [
        ("Tanh", "FALinear", 0.01, 5.6, 0.2),
        ("Tanh", "nn.Linear", 0.01, 4.9, 0.2),
        ("Tanh", "frozen", 0.01, 22.2, 0.4),
        ("ReLU", "FALinear", 0.003, 8.1, 0.6),
        ("ReLU", "nn.Linear", 0.003, 7.0, 0.2),
    ],
)
def test_deeper_networks_err_as_often_as_said(mnist, activation, layer, lr, said, deviation):
    torch.manual_seed(1)
    scope = {"nn": nn, "FALinear": nn.Linear if layer == "nn.Linear" else FALinear}
    exec(EXAMPLES[0].replace("Tanh", activation), scope)  # noqa: S102
    network = scope["network"]
    network[:4].requires_grad_(layer != "frozen")
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9)
    for batch in torch.randperm(60_000).split(64):
        optimizer.zero_grad()
        outputs = network(mnist.train_images[batch])
        F.cross_entropy(outputs, mnist.train_labels[batch]).backward()
        optimizer.step()
    assert error_of(network, mnist) == pytest.approx(said, abs=2 * deviation)
    assert says(f"{said} ± {deviation} %")
