"""Each experiment does to a network what its name says; what is computed exactly, is exact."""

import copy
import csv
import functools
import io
import math
import os
import runpy
import signal
import sys
import time
from pathlib import Path

import common
import deeper
import eigenvalues
import phases
import pytest
import taken_away
import torch
import turn
import word
from matplotlib.figure import Figure
from torch import nn
from torch.testing import assert_close

import train_fa_vs_bp_linear_model as script
from fa_linear import FALinear


@pytest.fixture(scope="module")
def data():
    """Few patterns: an epoch has 63 mini-batches."""
    return script.random_patterns(train_size=2000, test_size=200)


@pytest.fixture(autouse=True)
def two_layers(data):
    """The experiments refuse other networks; who changes the script's is not to fight their tests."""
    network = script.make_network(data, 20, nn.Linear)
    if [*map(type, network)] != [nn.Linear] * 2 or data.train_images.dtype != torch.float32:
        pytest.skip("experiments are about two linear layers, and load float32")


@pytest.fixture
def run(monkeypatch):
    """Return a function that runs a `main` with arguments as a command has them."""
    handler = signal.getsignal(signal.SIGINT)

    def run(main, *arguments, **others):
        monkeypatch.setattr(sys, "argv", ["x.py", *arguments])
        return main(**others)

    yield run
    signal.signal(signal.SIGINT, handler)


def test_experiments_refuse_a_network_that_is_not_two_layers(data, monkeypatch):
    layers = nn.Linear(784, 20), nn.ReLU(), FALinear(20, 10)
    networks = nn.ModuleDict({rule: nn.Sequential(*layers) for rule in ("fa", "bp")})
    monkeypatch.setattr(script, "matched_networks", lambda *_: networks)
    with pytest.raises(AssertionError, match="two linear layers"):
        common.set_up(data, 0)


def fa_of(data, *options, **changes):
    networks, args = common.set_up(data, 0, *options, rules=["fa"], **changes)
    return networks, args, networks["fa"]


def gradients(network, data):
    """Return the gradients of a network's weights for the training images."""
    network.zero_grad()
    script.loss_function(network(data.train_images), data.train_labels).backward()
    return {name: w.grad for name, w in network.named_parameters() if w.grad is not None}


# What they share


def test_the_networks_are_the_scripts_with_a_relu_if_asked_for(data):
    networks, args = common.set_up(data, 3, "--hidden=7", "--init-scale=0.5")
    expected = script.matched_networks(data, args, 3)
    assert list(networks) == ["fa", "bp"]
    assert_close(networks["fa"].state_dict(), expected["fa"].state_dict())
    with_relu = common.set_up(data, 3, "--hidden=7", "--init-scale=0.5", relu=True)[0]["fa"]
    h = expected["fa"].hidden(data.test_images).clamp(min=0)
    assert_close(with_relu(data.test_images), expected["fa"].readout(h))


def test_training_stops_after_the_steps_asked_for_as_the_script_would_be_then(data):
    networks, args, network = fa_of(data)
    rows = common.train_for(networks, data, args, 0, 70, script.measure, every=35)
    assert list(rows) == [0, 1, 2, 4, 8, 16, 32, 35, 70]
    expected, args, other = fa_of(data, "--epochs=9", "--log-every=70")
    optimizer = script.make_optimizer(expected, args)
    for row in script.train(expected, optimizer, data, args, 0, script.measure):
        if row["step"] == 70:
            break
    assert rows[70]["fa_error"] == row["fa_error"]
    assert_close(network.state_dict(), other.state_dict())


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (phases, "phases"),
        (phases, "writing"),
        (turn, "turn"),
        (turn, "law"),
        (eigenvalues, "follow"),
        (eigenvalues, "all_of"),
        (taken_away, "take_away"),
        (taken_away, "change_messages"),
    ],
)
def test_a_table_trains_from_its_seed(data, monkeypatch, module, name):
    seeds, set_up = [], module.set_up

    def train_for(networks, data, args, seed, *rest, **others):
        seeds.append(seed)
        raise Stop

    def recorded(data, seed, *options, **changes):
        seeds.append(seed)
        return set_up(data, seed, *options, **changes)

    monkeypatch.setattr(module, "set_up", recorded)
    monkeypatch.setattr(module, "train_for", train_for)
    with pytest.raises(Stop):
        list(getattr(module, name)(data, 3))
    assert len(seeds) >= 2 and set(seeds) == {3}


def test_a_step_without_a_row_cannot_be_stopped_at(data):
    networks, args, _ = fa_of(data)
    with pytest.raises(AssertionError, match="no row"):
        common.train_for(networks, data, args, 0, 70, script.measure, every=50)


def random_table(_data, seed):
    yield "a", {"x": 2.0 * seed}
    yield 9, {"x": seed / 10, 5: 1}


def failing_table(_data, seed):
    if seed == 0:
        raise ValueError("seed 0")
    time.sleep(30)


TABLE = "t|x|5\n---|---|---\na|1.0±1.4|\n9|0.050±0.071|1.0±0.0"


@pytest.fixture
def tiny_mnist(folder):
    from test_run import write_data

    write_data(folder / "MNIST/raw")
    return str(folder)


@pytest.mark.parametrize("option", ["", "--seeds=1", "--seeds=2", "--seeds=9"])
def test_tables_are_printed_and_files_written_without_seeds_alone(run, tiny_mnist, capsys, option):
    tables = {
        "t": (random_table, 2, common.mean_and_deviation),
        "u": (random_table, 1, None),
    }
    options = [option] if option else []
    run(common.main, tiny_mnist, *options, file="x.py", doc="", tables=tables, draw=picture)
    printed = capsys.readouterr().out
    assert printed == f"\n{TABLE}\n" or option == "--seeds=1"
    if option:
        assert printed and not list(Path().glob("x.*"))
        return
    assert Path("x.png").is_file()
    with open("x.csv", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["table"] + line["seed"] for line in lines] == ["t0"] * 3 + ["t1"] * 3 + ["u0"] * 3
    assert lines[3] == {"table": "t", "row": "a", "column": "x", "seed": "1", "value": "2"}


def test_what_a_files_encoding_lacks_is_replaced(run, tiny_mnist, monkeypatch):
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding="ascii"))
    tables = {"t": (random_table, 2, common.mean_and_deviation)}
    run(common.main, tiny_mnist, file="x.py", doc="", tables=tables)
    sys.stdout.flush()
    assert b"a|1.0?1.4|" in output.getvalue()


def picture(gathered):
    """A picture that needs what was gathered, when the CSV is written already."""
    assert gathered["t"]["a"] == {"x": [0.0, 2.0]} and gathered["u"]["9"]["5"] == [1.0]
    assert Path("x.csv").is_file()
    return Figure()


def test_an_error_in_one_seed_shows_at_once(run, tiny_mnist):
    start = time.monotonic()
    with pytest.raises(ValueError, match="seed 0"):
        run(common.main, tiny_mnist, file="x.py", doc="", tables={"t": (failing_table, 5, None)})
    assert time.monotonic() - start < 10
    assert not Path("x.csv").exists()


def slow_table(_data, _seed):
    os.write(1, b"on\n")
    time.sleep(60)


@pytest.mark.parametrize("whom", ["parent", "group"])
def test_ctrl_c_stops_all_at_once_in_one_line(run, tiny_mnist, whom):
    reading, writing = os.pipe()
    child = os.fork()
    if not child:  # a process with a group of its own, which writes all into the pipe
        os.setsid()
        for output in 1, 2:
            os.dup2(writing, output)
        try:
            run(common.main, tiny_mnist, file="x.py", doc="", tables={"t": (slow_table, 9, None)})
        except BaseException as stopped:  # noqa: BLE001
            os.write(2, str(stopped).encode())
        os._exit(1)
    os.close(writing)
    with open(reading, encoding="utf-8") as output:
        assert output.readline() == "on\n"
        time.sleep(1)  # until each process is on
        (os.kill if whom == "parent" else os.killpg)(child, signal.SIGINT)
        start = time.monotonic()
        rest = output.read()  # ends when no process holds the pipe any more
    os.waitpid(child, 0)
    rest = rest.replace("on\n", "")
    assert rest == "Stopped; nothing is written."
    assert time.monotonic() - start < 10


def test_without_mnist_a_line_names_the_command_and_nothing_is_downloaded(tiny_mnist):
    Path(tiny_mnist, "MNIST/raw/t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(SystemExit, match="train_fa_vs_bp_linear_model.py"):
        common.load(tiny_mnist)
    assert len(list(Path(tiny_mnist).glob("MNIST/raw/*"))) == 3


@pytest.mark.parametrize("name", ["word", "phases", "turn", "eigenvalues", "taken_away", "deeper"])
def test_each_script_is_a_command(run, folder, name):
    path = Path(common.__file__).with_name(f"{name}.py")
    with pytest.raises(SystemExit, match=f"no MNIST in {folder}"):
        run(runpy.run_path, str(folder), path_name=str(path), run_name="__main__")


# word.py


def test_a_word_that_is_spelled_can_be_read():
    like = torch.randn(10, 400)
    for text in "DUPLICATES", "BACKGROUND", "FJHMQVWXYZ":
        matrix = word.spell(text, like)
        assert word.read(matrix)[0] == text
        assert_close(matrix.std(), like.std())
        assert_close(matrix.mean(dim=1), torch.zeros(10), rtol=0, atol=1e-5)


@pytest.mark.parametrize("text", ["DUPLICATE", "DUPLICATED", "DUPLICAT3S", "ÄUPLICATES", ""])
def test_what_is_no_word_of_ten_different_letters_is_refused(run, text, capsys):
    with pytest.raises(SystemExit):
        run(word.main, "nowhere", text, "BACKGROUND")
    assert "ten different letters" in capsys.readouterr().err


def test_b_spells_both_networks_start_as_the_other_word_and_what_is_gained_is_by_digit(data):
    found = word.train(data, "DUPLICATES", "BACKGROUND", 64)
    assert [word.read(found[name])[0] for name in ("B", "start")] == ["DUPLICATES", "BACKGROUND"]
    networks, args, network = fa_of(data, "--hidden=400", "--init-scale=0.1")
    network.readout.feedback, network.readout.weight.data = found["B"], found["start"]
    before = network.hidden(data.test_images)
    common.train_for(networks, data, args, 0, 64, lambda *_: {})
    gained = network.hidden(data.test_images) - before
    means = [gained[data.test_labels == digit].mean(dim=0) for digit in range(10)]
    assert_close(found["gained"], torch.stack(means) - sum(means) / 10, rtol=1e-3, atol=1e-3)
    assert_close(found["FA"], network.readout.weight.detach(), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found["BP"], found["FA"])


def test_each_row_of_the_picture_is_a_matrix_white_where_it_is_positive():
    names = "B", "start", "gained", "FA", "BP"
    matrices = {name: torch.randn(10, 400) for name in names}
    panels = word.draw(matrices).axes
    assert [panel.get_title() for panel in panels[:10]] == list("0123456789")
    for number, matrix in enumerate(matrices.values()):
        for digit in range(10):
            (image,) = panels[10 * number + digit].images
            assert image.get_array().flatten().tolist() == matrix[digit].tolist()
            black, white = image.get_clim()
            assert black == -white < 0 and image.get_cmap().name == "gray"


@pytest.mark.parametrize("words", [["algorithms", "BACKGROUND"], []], ids=str)
def test_what_w_reads_is_printed_and_the_picture_named_by_the_words(
    run, folder, monkeypatch, capsys, words
):
    spelled = {"B": "DUPLICATES", "start": "BACKGROUND", "gained": "NIGHTMARES"}
    spelled |= {"FA": "ALGORITHMS", "BP": "IMPORTANCE"}
    matrices = {name: word.spell(text, torch.randn(9)) for name, text in spelled.items()}
    monkeypatch.setattr(word, "load", lambda _: None)
    monkeypatch.setattr(word, "__file__", str(folder / "word.py"))

    def train(_data, *how):
        assert how == ("ALGORITHMS" if words else "DUPLICATES", "BACKGROUND", 1875)
        return matrices

    monkeypatch.setattr(word, "train", train)
    run(word.main, "nowhere", *words)
    rows = ["start|BACKGROUND|1.00|1.00", "FA|ALGORITHMS|1.00|1.00", "BP|IMPORTANCE|1.00|1.00"]
    assert capsys.readouterr().out.splitlines()[-3:] == rows
    if words:
        assert [path.name for path in folder.iterdir()] == ["ALGORITHMS-BACKGROUND.png"]
        return
    assert {path.name for path in folder.iterdir()} == {"word.png", "word.csv"}
    lines = Path("word.csv").read_text().splitlines()
    assert lines == ["table,row,reads,mean cosine,least"] + [
        f"W|{r}".replace("|", ",") for r in rows
    ]


def test_fa_turns_one_word_into_the_other_and_bp_does_not(mnist):
    found = word.train(mnist, "DUPLICATES", "BACKGROUND", 512)
    fa, bp = word.read(found["FA"])[0], word.read(found["BP"])[0]
    assert sum(a == b for a, b in zip(fa, "DUPLICATES")) >= 7
    assert bp == "BACKGROUND"


# phases.py


@pytest.mark.parametrize("layer", ["hidden", "readout"])
def test_one_layer_of_the_networks_that_are_named_learns_alone(data, layer):
    networks, args = common.set_up(data, 0)
    before = {name: tensor.clone() for name, tensor in networks.state_dict().items()}
    rows = phases.learn(layer, ["fa"], networks, data, args, 0, 5, measure=script.measure)
    after = networks.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"fa.{layer}.weight", f"fa.{layer}.bias"}
    assert rows[5]["fa_error"] == script.measure(networks, data)["fa_error"]
    assert "bp_error" not in rows[5]


def test_labels_are_permuted_by_the_seed_and_nothing_else_is_changed(data):
    changed = phases.permuted(data, 3)
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(3))
    assert torch.equal(changed.train_labels, data.train_labels[order])
    assert changed.train_images is data.train_images and changed.test_labels is data.test_labels


CONTROLS = ["use another B", "write errors of other images", "write nothing"]
CONTROLS += ["write nothing, usual start", "copy nothing"]


def rows_of_a_use(names, epochs=8):
    rows = {}
    for step in 0, 1875, epochs * 1875:
        rows[step] = {f"{name}_error": float(step) for name in names}
        rows[step] |= {f"{name}_weight_angle": step + 1 for name in names}
    return rows


def what_is_done(data, monkeypatch, table):
    """Make a table of phases.py without training.

    Return its rows, what would have been trained, and copies of the networks each time.
    """
    done, copies = [], []

    def learn(layer, names, networks, given, args, seed, steps, **measuring):
        labels = "true" if given.train_labels is data.train_labels else "other"
        done.append((layer, list(names), steps, labels, measuring))
        copies.append(copy.deepcopy(networks))
        return rows_of_a_use(names)

    monkeypatch.setattr(phases, "learn", learn)
    function, _, _ = phases.TABLES[table]
    return dict(function(data, 0)), done, copies


def test_what_is_done_in_each_phase(data, monkeypatch):
    rows, done, _ = what_is_done(data, monkeypatch, "phases")
    names = ["write, copy, use", *CONTROLS]
    writers = ["write, copy, use", "use another B", "copy nothing"]
    assert done == [
        ("hidden", writers, 64, "true", {}),
        ("hidden", ["write errors of other images"], 64, "other", {}),
        ("readout", names[:-1], 2000, "true", {}),
        ("hidden", names, 15000, "true", {"measure": script.measure, "every": 1875}),
    ]
    assert list(rows) == names
    for columns in rows.values():
        assert list(columns.values())[-3:] == [0.0, 1875.0, 15000.0]


@pytest.mark.parametrize(("table", "units"), [("phases", 20), ("phases, ReLU", 50)])
def test_the_networks_of_the_phases(data, monkeypatch, table, units):
    _, _, copies = what_is_done(data, monkeypatch, table)
    usual = copies[0]["write nothing, usual start"].readout.weight
    for name, network in copies[0].items():
        scale = 1 if name == "write nothing, usual start" else 0.1
        assert_close(network.readout.weight, scale * usual)
        h = network.hidden(data.test_images)
        assert h.shape[1] == units
        assert (h.min().item() >= 0) == (table == "phases, ReLU")


def test_one_network_alone_uses_another_B_than_it_wrote_and_copied(data, monkeypatch):
    _, _, copies = what_is_done(data, monkeypatch, "phases")
    B = copies[0]["copy nothing"].readout.feedback
    for phase, networks in enumerate(copies):
        others = {name for name in networks if not torch.equal(networks[name].readout.feedback, B)}
        assert others == ({"use another B"} if phase == 3 else set())


def test_another_B_is_drawn_as_B_is_and_unlike_W_and_B(data, monkeypatch):
    found = {}

    def use(networks, *_):
        found.update(networks.items())
        return {}

    monkeypatch.setattr(phases, "learn", lambda *_: {})
    monkeypatch.setattr(phases, "use", use)
    phases.phases(data, 0)
    other, readout = found["use another B"].readout.feedback, found["copy nothing"].readout
    assert_close(other.std(), readout.feedback.std(), rtol=0.2, atol=0)
    for each in readout.feedback, readout.weight:
        assert abs(torch.cosine_similarity(other.flatten(), each.flatten(), dim=0)) < 0.5


def test_how_long_is_written_and_the_signs_are_told_apart(data, monkeypatch):
    done = []
    counts = ["4", "8", "12", "16", "24", "32", "128"]

    def learn(layer, names, networks, given, args, seed, steps):
        assert given is data and args.init_scale == 0.1
        done.append((layer, list(names), steps))

    def use(networks, start, given, args, seed, epochs):
        assert given is data and epochs == 4
        for steps in networks:
            assert networks[steps] is not start[steps]
            yield steps, {"least eigenvalue": -0.1 if steps == "8" else 0.1}

    monkeypatch.setattr(phases, "learn", learn)
    monkeypatch.setattr(phases, "use", use)
    rows = dict(phases.writing(data, 0))
    assert done == [*(("hidden", [n], int(n)) for n in counts), ("readout", counts, 2000)]
    signs = {steps: "negative" if steps == "8" else "positive" for steps in counts}
    assert list(rows) == [f"{steps} steps, {signs[steps]}" for steps in counts]
    assert rows["8 steps, negative"] == {"runs": 1, "least eigenvalue": -0.1}
    assert rows["4 steps, positive"] == {"runs": 1, "least eigenvalue": 0.1}


def test_a_span_is_from_least_to_largest():
    assert phases.span("", "x", [2.0, -1.0]) == "-1.0…2.0"
    assert phases.span("", "runs", [1.0, 0.0, 1.0]) == "2"


def test_a_row_has_what_was_written_and_the_angle_and_errors_of_the_w_and_b_that_are_used(
    data, monkeypatch
):
    networks, args, network = fa_of(data)
    start, _, _ = fa_of(data)
    network.hidden.weight.data += 1

    def learn(layer, names, networks, *_, measure, every):
        assert (layer, measure, every) == ("hidden", script.measure, 1875)
        network.hidden.weight.data += 1
        return rows_of_a_use(names, epochs=4)

    monkeypatch.setattr(phases, "learn", learn)
    ((name, row),) = phases.use(networks, start, data, args, 0, epochs=4)
    whole, symmetric = eigenvalues.eigenvalues(network.readout)
    assert (name, row) == (
        "fa",
        {
            "‖ΔV‖": pytest.approx((784 * 20) ** 0.5, rel=1e-3),
            "angle": 1,
            "least eigenvalue": whole[0],
            "symmetric part": symmetric[0],
            "before use": 0.0,
            "use, 1 epoch": 1875.0,
            "4 epochs": 7500.0,
        },
    )


# turn.py


@pytest.mark.parametrize("dose", [-2, 0, 0.5, 1])
def test_a_dose_gives_w_the_gradient_of_h0_and_so_much_of_what_was_written(data, dose):
    _, _, network = fa_of(data)
    h0 = network.hidden(data.train_images).detach()
    dosed = turn.Dosed(network, dose)
    with torch.no_grad():
        network.hidden.weight.mul_(3)
    whole = {name: grad.clone() for name, grad in gradients(network, data).items()}
    e = script.error_signal(network(data.train_images), data.train_labels) / 2000
    h = network.hidden(data.train_images).detach()
    found = gradients(dosed, data)
    expected = whole | {"readout.weight": e.T @ (h0 + dose * (h - h0))}
    assert found.keys() == expected.keys()
    for name in expected:
        assert_close(found[name], expected[name], rtol=1e-3, atol=1e-4)
    assert_close(dosed(data.test_images), network(data.test_images))


@pytest.mark.parametrize("dose", [-1, 0, 1])
def test_the_computed_turn_is_exact_if_errors_stay_what_they_are(data, monkeypatch, dose):
    """Full-batch training on a loss whose gradient is constant: e of the start."""
    monkeypatch.setattr(turn, "STEPS", range(21))
    _, args, network = fa_of(data, "--weight-decay=0", "--lr=0.01")
    y = network(data.train_images)
    constant = script.error_signal(y, data.train_labels) / 2000
    computed = turn.compute(network, data, args, dose)
    assert list(computed) == list(range(21))
    dosed = turn.Dosed(network, dose)
    optimizer = script.make_optimizer(dosed, args)
    for angle in computed.values():
        assert turn.measure({"fa": dosed}, data)["angle"] == pytest.approx(angle, abs=0.05)
        optimizer.zero_grad()
        dosed(data.train_images).backward(constant)
        optimizer.step()
    assert dose == 0 or abs(computed[20] - computed[0]) > 2


@pytest.mark.parametrize("relu", [False, True])
def test_the_law_holds_for_one_small_step(data, relu):
    networks, _, network = fa_of(data, relu=relu)
    networks.double()
    one = data._replace(
        train_images=data.train_images[:9].double(), train_labels=data.train_labels[:9]
    )
    before = turn.measure(networks, one)
    gradients(network, one)
    torch.optim.SGD(network.parameters(), lr=1e-6).step()
    after = turn.measure(networks, one)
    product, half = (after[side] - before[side] for side in ("inner product", "½‖V‖²"))
    assert product == pytest.approx(half, rel=1e-3)
    weight, bias = network.hidden.parameters()
    half = (weight.square().sum() + bias.square().sum()).item() / 2
    assert after["½‖V‖²"] == pytest.approx(half)


def test_the_law_is_for_plain_sgd_and_the_default_with_and_without_a_relu(data, monkeypatch):
    seen = []

    def train_for(networks, data, args, seed, steps, measure):
        is_relu = networks["fa"].hidden(data.test_images).min().item() == 0
        seen.append((args.momentum, args.weight_decay, is_relu, args.init_scale, steps))
        start = {"angle": 9, "inner product": 1, "½‖V‖²": 2}
        return {0: start, 1: None, steps: {"angle": 8, "inner product": 4, "½‖V‖²": 6}}

    monkeypatch.setattr(turn, "train_for", train_for)
    rows = dict(turn.law(data, 0))
    assert rows["plain SGD, linear"] == {"inner product": 3, "½‖V‖²": 4, "ratio, %": 75}
    assert list(rows) == [
        f"{how}, {n}" for how in ("plain SGD", "default") for n in ("linear", "ReLU")
    ]
    plain, default = (0, 0), (0.9, 0.001)
    assert seen == [(*how, relu, 0.1, 3750) for how in (plain, default) for relu in (False, True)]


def test_what_is_computed_and_measured_stands_at_its_step_and_dose(data, monkeypatch):
    doses = []

    def compute(network, data, args, dose):
        doses.append(dose)
        assert args.init_scale == 0.1 and not isinstance(network, turn.Dosed)
        return {0: 1000 * dose}

    def train_for(networks, data, args, seed, steps, measure, every):
        doses.append(networks["fa"].dose)
        return {step: {"angle": -step} for step in range(0, steps + 1, every)}

    monkeypatch.setattr(turn, "compute", compute)
    monkeypatch.setattr(turn, "train_for", train_for)
    rows = dict(turn.turn(data, 0))
    assert doses == [dose for dose in (-2, -1, -0.5, 0, 0.5, 1, 2) for _ in range(2)]
    assert rows["-0.5, computed"] == {0: -500}
    assert rows["2, measured"] == {step: -step for step in (0, 16, 32, 48, 64, 80, 96)}


def test_the_picture_has_each_dose_under_its_name_and_what_was_computed_dashed():
    rows = {}
    for dose in -1, 0, 1:
        rows[f"{dose}, computed"] = {f"{step}": [dose, dose + 2.0] for step in turn.STEPS}
        rows[f"{dose}, measured"] = {f"{step}": [10.0 * dose, 10.0 * dose] for step in turn.STEPS}
    panel = turn.draw({"dose": rows}).axes[0]
    names = ["W copies with the opposite sign", "W cannot copy", "W copies, as usual"]
    handles, labels = panel.get_legend_handles_labels()
    assert set(labels) == {*names, "computed before training"}
    for dose, name in zip((-1, 0, 1), names):
        line = handles[labels.index(name)].lines[0]
        assert list(line.get_xdata()) == list(turn.STEPS)
        assert set(line.get_ydata().tolist()) == {10.0 * dose}
    dashed = [line for line in panel.lines if line.get_linestyle() == "--"]
    assert [line.get_ydata()[0].item() for line in dashed] == [0.0, 1.0, 2.0]


def test_on_mnist_each_dose_turns_w_as_was_computed(mnist):
    rows = dict(turn.turn(mnist, 0))
    measured = {}
    for dose in -1, 0, 1:
        measured[dose] = rows[f"{dose}, measured"][48]
        assert measured[dose] == pytest.approx(rows[f"{dose}, computed"][48], abs=3)
    assert measured[-1] > measured[0] + 10 > measured[1] + 30


# eigenvalues.py


@pytest.mark.parametrize("sign", [1, -1])
def test_the_eigenvalues_are_for_errors_that_sum_to_zero(sign):
    readout = FALinear(10, 10)
    readout.feedback = torch.eye(10)
    readout.weight.data = sign * torch.eye(10) - torch.ones(10, 10) / 2  # on errors all alike: -5
    readout.weight.data[0, 1] += 8  # for the symmetric part
    readout.weight.data[0, 2] -= 8
    whole, symmetric = eigenvalues.eigenvalues(readout)
    assert whole == pytest.approx([sign] * 9, abs=0.05) and whole == sorted(whole)
    assert len(symmetric) == 9 and symmetric[0] < sign - 2


def test_the_eigenvalues_are_those_of_w_and_b(data):
    networks, _, network = fa_of(data)
    W, B = network.readout.weight.detach(), network.readout.feedback
    centre = torch.eye(10) - 0.1  # takes the mean off: one eigenvalue more, which is 0
    whole, symmetric = eigenvalues.measure(networks, data)["eigenvalues"]
    product = centre @ W @ B.T @ centre
    expected = torch.linalg.eigvals(product).real.tolist()
    assert sorted([*whole, 0]) == pytest.approx(sorted(expected), abs=1e-3)
    expected = torch.linalg.eigvalsh((product + product.T) / 2).tolist()
    assert sorted([*symmetric, 0]) == pytest.approx(expected, abs=1e-3)


def test_from_which_step_none_is_negative(data, monkeypatch):
    default = vars(script.make_parser().parse_args([]))

    def train_for(networks, data, args, seed, steps, measure, every):
        assert vars(args) == default | {"out": args.out}
        assert (steps, every) == (5625, 25)
        rows = {step: {"eigenvalues": ([0.1, step], [-0.1])} for step in range(0, 5626, 25)}
        for step in 0, 50, 125:
            rows[step] = {"eigenvalues": ([-0.1, step], [-0.1])}
        return rows

    monkeypatch.setattr(eigenvalues, "train_for", train_for)
    found = dict(eigenvalues.follow(data, 0))
    assert list(found[eigenvalues.FROM].values()) == [150, math.inf]
    assert list(found[500].values()) == [0.1, -0.1]
    assert list(found[125].values()) == [-0.1, -0.1]
    assert dict(eigenvalues.all_of(data, 0))[125] == {0: -0.1, 1: 125}


def test_the_picture_has_nine_eigenvalues_and_their_mean():
    rows = {step: {f"{i}": [i + float(step)] for i in range(9)} for step in ("0", "125", "5625")}
    panel = eigenvalues.draw({"all, seed 0": rows}).axes[0]
    *curves, mean, _zero = panel.lines
    assert [list(curve.get_ydata()) for curve in curves] == [
        [i, i + 125, i + 5625] for i in range(9)
    ]
    assert mean.get_label() == "their mean" and list(mean.get_ydata()) == [4, 129, 5629]
    assert list(mean.get_xdata()) == [0, 125, 5625]


def test_a_cell_counts_what_is_negative_and_has_the_median_step():
    assert eigenvalues.cell("125", "", [1.0, -3.0]).endswith("negative in 1")
    assert eigenvalues.cell(eigenvalues.FROM, "", [100, 125, 400]) == "125 (100 to 400)"


# taken_away.py


def effect(network):
    """Say what was done to a network."""
    if isinstance(network, nn.Linear):
        return f"softmax regression of {network.in_features} pixels"
    if isinstance(network, turn.Dosed):
        return f"dose {network.dose}"
    readout = network[1]
    if not any(weight.any() for weight in network.parameters()):
        return "zero" if readout.state_dict().get("feedback", torch.ones(1)).any() else "no B"
    if torch.equal(readout.weight, -getattr(readout, "feedback", readout.weight)):
        return "-B"
    return " ".join(n for n, weight in network.named_parameters() if not weight.requires_grad)


@pytest.mark.parametrize(("hidden", "steps"), [(20, 9375), (1000, 1875)])
def test_each_row_does_what_its_name_says(data, monkeypatch, hidden, steps):
    effects, measured = {}, {}

    def train_for(networks, data, args, seed, *rest):
        assert (args.hidden, *rest) == (hidden, steps)
        effects.update({name: effect(network) for name, network in networks.items()})
        measured.update(script.measure(networks, data))

    monkeypatch.setattr(taken_away, "train_for", train_for)
    run = taken_away.take_away if hidden == 20 else taken_away.take_away_from_1000
    rows = dict(run(data, 0))
    expected = ["", "hidden.weight hidden.bias", "readout.weight", "dose 0", "-B", "zero"]
    expected += ["softmax regression of 784 pixels"]
    words = ["nothing", "hidden layer (shallow)", "of W", "copying", "−B", "zero", "softmax"]
    for what, word_, done in zip(rows, words, expected, strict=True):
        rules = {"-B": ["fa"], expected[-1]: ["bp"]}.get(done, ["fa", "bp"])
        assert word_ in what
        assert [effects.pop(f"{what}: {rule}") for rule in rules] == [done] * len(rules)
        columns = {rule.upper(): measured[f"{what}: {rule}_error"] for rule in rules}
        angle = {"W and B": measured[f"{what}: fa_weight_angle"]} if "fa" in rules else {}
        assert rows[what] == pytest.approx(columns | angle, nan_ok=True)
    assert not effects


def test_what_is_not_known_is_not_taken_away(data):
    with pytest.raises(AssertionError):
        taken_away.without("something else", fa_of(data)[2])


def test_b_is_redrawn_or_noise_sent_as_the_rows_say(data, monkeypatch):
    done, trained = [], {}

    def train_for(networks, data, args, seed, steps):
        assert steps == 9375
        trained.update(networks.items())

    monkeypatch.setattr(taken_away, "train_for", train_for)
    monkeypatch.setattr(taken_away, "send_noise", lambda readout: done.append(("noise", readout)))
    monkeypatch.setattr(taken_away, "redraw_B", lambda *how: done.append((str(how[1]), how[0])))
    rows = dict(taken_away.change_messages(data, 0))
    assert list(rows) == ["1", "10", "100", "375", "1875", "noise"]
    assert done == [(name, network.readout) for name, network in trained.items()]
    errors = script.measure(nn.ModuleDict(trained), data)
    assert rows == {name: {"FA": errors[f"{name}_error"]} for name in rows}


@pytest.mark.parametrize(("steps", "draws"), [(1, 6), (3, 2), (10, 1)])
def test_b_is_drawn_anew_every_so_many_steps_and_not_by_measuring(data, steps, draws):
    _, _, network = fa_of(data)
    taken_away.redraw_B(network.readout, steps)
    seen = {network.readout.feedback.sum().item()}
    for _step in range(6):
        network.eval()(data.test_images)
        network.train()(data.train_images[:4])
        seen.add(network.readout.feedback.sum().item())
    assert len(seen) == 1 + draws
    assert network.readout.feedback.abs().max() <= 20**-0.5  # as B is drawn


def test_noise_has_each_messages_norm_but_not_its_direction(data):
    readout, h = fa_of(data)[2].readout, torch.randn(50, 20, requires_grad=True)
    taken_away.send_noise(readout)
    error = torch.randn(50, 10)
    readout(h).backward(error)
    message = error @ readout.feedback
    assert_close(h.grad.norm(dim=1), message.norm(dim=1))
    assert script.angle(h.grad, message).mean().item() == pytest.approx(90, abs=15)
    assert script.angle(h.grad[1:], h.grad[:-1]).mean().item() == pytest.approx(90, abs=15)
    readout(h.detach())  # measured: there is no message


# deeper.py


@pytest.mark.parametrize("name", deeper.BEST)
def test_the_deeper_networks_are_matched_and_differ_in_their_class(name):
    networks = deeper.make_networks(name, 3)
    fa, bp = networks["fa"], networks["bp"]
    assert all(map(torch.equal, fa.parameters(), bp.parameters()))
    text, kind = name.split(", ")
    units = [int(number) for number in text.split("-")]
    between, steps = {"tanh": nn.Tanh, "linear": nn.Identity}[kind], len(units) - 2
    assert [type(layer) for layer in fa] == [nn.Linear] + [between, FALinear] * steps
    assert [type(layer) for layer in bp] == [nn.Linear] + [between, nn.Linear] * steps
    for layer, inputs, outputs in zip(fa[::2], units, units[1:]):
        assert layer.weight.shape == (outputs, inputs)
    for layer in fa[2::2]:
        assert not torch.equal(layer.weight, layer.feedback)


def test_the_deeper_networks_are_trained_at_the_rate_for_five_epochs(data, monkeypatch):
    seen = []

    def train_for(networks, data, args, seed, steps):
        seen.append((list(networks), args.lr, args.batch_size, seed, steps))

    monkeypatch.setattr(deeper, "train_for", train_for)
    name = "784-256-10, tanh"
    error = deeper.train(name, "fa", data, 3, 0.03)
    assert error == script.measure(deeper.make_networks(name, 3), data)["fa_error"]
    assert seen == [(["fa"], 0.03, 64, 3, 5 * 32)]  # 2,000 images


def test_rates_are_tried_on_the_last_10000_training_images(monkeypatch):
    images, labels = torch.arange(30_000)[:, None], torch.arange(30_000)
    data = script.DataSet("", 10, images, labels, images[:7], labels[:7])

    def train(name, rule, held_out, seed, rate):
        assert held_out.train_images.flatten().equal(labels[:20_000])
        assert held_out.train_labels.equal(labels[:20_000])
        assert held_out.test_images.flatten().equal(labels[20_000:])
        assert held_out.test_labels.equal(labels[20_000:])
        return (name, rule, seed, rate)

    monkeypatch.setattr(deeper, "train", train)
    for rule in "fa", "bp":
        function, _, _ = deeper.TABLES[f"{rule.upper()} by rate"]
        for name, errors in function(data, 2):
            rates = 1e-3, 3e-3, 1e-2, 3e-2, 1e-1
            assert errors == {rate: (name, rule, 2, rate) for rate in rates}


def test_three_seeds_learn_from_all_images_at_the_best_rates(data, monkeypatch):
    monkeypatch.setattr(deeper, "train", lambda *how: how)
    rows = dict(deeper.at_best_rates(data, 2))
    assert list(rows) == list(deeper.BEST)
    for name, columns in rows.items():
        fa, bp = deeper.BEST[name]
        assert columns == {"FA": (name, "fa", data, 2, fa), "BP": (name, "bp", data, 2, bp)}


# On MNIST, with room for other processors' rounding


def test_writing_and_copying_are_needed_to_use(mnist, monkeypatch):
    monkeypatch.setattr(phases, "use", functools.partial(phases.use, epochs=1))
    errors = {name: columns["1 epochs"] for name, columns in phases.phases(mnist, 0)}
    assert errors.pop("write, copy, use") < 15
    assert len(errors) == 5 and min(errors.values()) > 50
