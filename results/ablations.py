"""Take feedback alignment (FA) apart, on MNIST, and print what is left as tables.

    python results/ablations.py DATA_DIR          all tables; writes ablations.csv, mechanism.png
    python results/ablations.py DATA_DIR TABLE    that table alone; writes nothing

README.md beside this file says what each shows. Letters: pixels u, hidden units h = V u + c, outputs
y = W h + b, feedback B, error e = dL/dy, M the mean of e u^T.
"""

import argparse
import copy
import csv
import functools
import itertools
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import matplotlib.style
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

import train_fa_vs_bp_linear_model as script
from fa_linear import FALinear

RESULTS = Path(__file__).parent
# What takes the mechanism apart starts from weights half as large (B is not): then less of its start
# is left in W, fewer errors grow, and errors stay longer what they were.
HALF_START = "--init-scale=0.5"
WRITE, COPY, USE = 64, 2000, 1875  # steps
DOSES = -2, -1, -0.5, 0, 0.5, 1, 2
ACCOUNT_STEPS = 0, 1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 128, 192, 256, 512, 1024


def make_tables():
    """Return {name: (function, seeds, decimals)}; function(data, seed) is {row: {column: value}}."""
    return {
        "write, copy, use": (write_copy_use, 5, 2),
        "use, by start": (use_by_start, 50, 2),
        "dose": (vary_dose, 5, 1),
        "account of W": (account_of_W, 5, 2),
        "account of the loss": (account_of_loss, 5, 2),
        "taken away": (take_away, 5, 1),
        "taken away, 1000 units": (take_away_wide, 3, 1),
        "shuffled labels": (shuffle_labels, 5, 1),
        "W frozen at an angle": (freeze_at_angle, 5, 2),
        "B redrawn": (redraw_B, 5, 1),
        "linear probe": (probe, 5, 1),
        "along a run": (follow, 5, 1),
        "learning rate": (vary_rate, 3, 1),
        "learning rate, tanh network": (vary_rate_of_tanh, 3, 1),
    }


# The ablations. Each trains the script's networks with one thing changed.


def write_copy_use(data, seed):
    """Let one layer learn at a time: the hidden layer writes, W copies, the hidden layer uses W."""
    rows = {}
    for prefix, writing in ("", WRITE), ("nothing written, ", 0):
        networks, args = set_up(data, seed, HALF_START)
        rows["start"] = state(networks, data)
        if writing:
            learn_alone("hidden", networks, data, args, seed, writing)
            rows["write"] = state(networks, data)
        learn_alone("readout", networks, data, args, seed, COPY)
        rows[f"{prefix}copy"] = state(networks, data)
        another = copy.deepcopy(networks)
        learn_alone("hidden", networks, data, args, seed, USE)
        rows[f"{prefix}use"] = state(networks, data)
        if writing:
            redraw(another["fa"].readout)
            learn_alone("hidden", another, data, args, seed, USE)
            rows["use of another B"] = state(another, data)
    return rows


def use_by_start(data, seed):
    """Write, copy and use from two starts; tell seeds in which some error grows from the others."""
    rows = {}
    for start, *options in ("usual",), ("half", HALF_START):
        networks, args = set_up(data, seed, *options)
        for layer, steps in ("hidden", WRITE), ("readout", COPY), ("hidden", USE):
            learn_alone(layer, networks, data, args, seed, steps)
        columns = state(networks, data)
        growth = "some error grows" if columns["least eigenvalue"] < 0 else "no error grows"
        rows[f"{start}: {growth}"] = columns
    return rows


def vary_dose(data, seed):
    """Let W learn from h0 + dose (h - h0); give its angle to B as predicted and as measured."""
    rows = {}
    for dose, label, *options in [
        *((dose, f"{dose:g}", HALF_START) for dose in DOSES),
        *((dose, f"{dose:g}, usual start") for dose in (-1, 0, 1)),
    ]:
        networks, args = set_up(data, seed, "--log-every=4", *options)
        predicted = predict_angles(networks["fa"], data, args, 100, dose)
        networks["fa"] = Dosed(networks["fa"], dose)
        columns = rows[label] = {}
        for row in train(networks, data, args, seed, 100):
            if row["step"] % 4 == 0:
                columns[f"predicted {row['step']}"] = predicted[row["step"]]
                columns[f"measured {row['step']}"] = row["fa_weight_angle"]
    return rows


def account_of_W(data, seed):
    """Split W, and so cos(W, B), into its start, what it learned from h0, and what it copied."""
    networks, args = set_up(data, seed)
    below, readout = split(networks["fa"])
    below_at_start = copy.deepcopy(below)
    start = readout.weight.detach().clone()
    parts = nn.ParameterDict(
        {"start": start, "from h0": torch.zeros_like(start), "copied": torch.zeros_like(start)}
    )
    # What SGD makes of a sum of gradients is the sum of what it makes of each: momentum and weight
    # decay are linear. So the parts, trained with the same settings, add up to W.
    optimizer = script.make_optimizer(parts, args)
    last = args.epochs * script.steps_in_epoch(data, args)
    for step, images, labels in train_by_steps(networks, data, args, seed, last):
        if step < last:
            h, h0 = below(images).detach(), below_at_start(images).detach()
            e = error(readout(h).detach(), labels)
            parts["start"].grad = torch.zeros_like(start)  # nothing but weight decay
            parts["from h0"].grad = e.T @ h0
            parts["copied"].grad = e.T @ (h - h0)
            optimizer.step()
    W, B = readout.weight.detach(), readout.feedback
    torch.testing.assert_close(sum(parts.values()).detach(), W, rtol=1e-3, atol=1e-3)
    rows = {"all of W": W} | {name: parts[name].detach() for name in ("start", "from h0", "copied")}
    cosine = {name: (part * B).sum().item() for name, part in rows.items()}
    return {n: {"of cos(W, B)": c / (W.norm() * B.norm()).item()} for n, c in cosine.items()}


def account_of_loss(data, seed):
    """Split the loss's change in the first epoch into that by the hidden layer and the readout.

    At each step the loss on 1,000 training images is taken with the old and the new of both layers.
    A layer's part is what its step changes, the mean over both orders of the layers' steps. So the
    parts add up to the change of the loss.
    """
    rows = {}
    sample, labels = data.train_images[:1000], data.train_labels[:1000]
    for rule in "fa", "bp":
        networks, args = set_up(data, seed)
        below, readout = split(networks[rule])
        parts, old = {"hidden layer": 0.0, "readout": 0.0}, None
        last = script.steps_in_epoch(data, args)
        for step, _images, _labels in train_by_steps(networks, data, args, seed, last):
            new = below(sample).detach(), copy.deepcopy(readout)
            if old:
                for name, change in changes_by_layer(old, new, labels).items():
                    parts[name] += change
            old = new
            if step in ACCOUNT_STEPS or step == last:
                for name, value in parts.items():
                    rows.setdefault(f"{rule.upper()}, {name}", {})[f"step {step}"] = value
    return rows


def take_away(data, seed, *options):
    """Take one thing away, and train."""
    rows = {}
    for label, rules, change, *more in (
        ("nothing", "FA BP", None),
        ("learning of the hidden layer", "FA", freeze_hidden),
        ("learning of W and b", "FA BP", None, "--freeze-readout"),
        ("learning of W", "FA BP", freeze_W),
        ("copying", "FA BP", cut_copying),
        ("the start: W starts as −B", "FA", start_W_as_minus_B),
        ("the hidden layer: softmax regression", "BP", drop_hidden),
    ):
        networks, args = set_up(data, seed, *options, *more)
        if change:
            change(networks)
        row = last_row(networks, data, args, seed)
        rows[label] = {rule: row[f"{rule.lower()}_error"] for rule in rules.split()}
        if "FA" in rules:
            rows[label]["W and B"] = row["fa_weight_angle"]
    return rows


def take_away_wide(data, seed):
    """Take one thing away from 1,000 hidden units, and train for one epoch."""
    return take_away(data, seed, "--hidden=1000", "--epochs=1")


def shuffle_labels(data, seed):
    """Give the training images each other's labels: less to write, and so less to copy."""
    torch.manual_seed(seed)
    order = torch.randperm(len(data.train_labels))
    rows = {}
    for label, labels in (
        ("true labels", data.train_labels),
        ("shuffled labels", data.train_labels[order]),
    ):
        changed = data._replace(train_labels=labels)
        networks, args = set_up(changed, seed, "--log-every=64")
        network = networks["fa"]
        rows[label] = {
            "predicted": predict_angles(network, changed, args, 128, 1)[128],
            "predicted, no copying": predict_angles(network, changed, args, 128, 0)[128],
            "measured": list(train(networks, changed, args, seed, 128))[-1]["fa_weight_angle"],
        }
    return rows


def freeze_at_angle(data, seed):
    """Freeze W at an angle to B, and as long as B; let the hidden layer learn for one epoch."""
    rows = {}
    for degrees in 30, 40, 50, 55, 60, 70, 80:
        networks, args = set_up(data, seed, "--freeze-readout", "--epochs=1")
        readout = networks["fa"].readout
        radians = torch.tensor(float(degrees)).deg2rad()
        B = readout.feedback
        across = torch.randn_like(B)
        across -= (across * B).sum() / B.square().sum() * B
        across *= B.norm() / across.norm()
        readout.weight.data = radians.cos() * B + radians.sin() * across
        error = last_row(networks, data, args, seed)["fa_error"]
        rows[f"{degrees}°"] = {"FA": error, "least eigenvalue": least_eigenvalue(readout)}
    return rows


def redraw_B(data, seed):
    """Draw B anew every so many steps, for five epochs."""
    rows = {}
    for steps in 1, 10, 100, 375, 1875:
        networks, args = set_up(data, seed)
        redraw_every(steps, networks["fa"].readout)
        rows[f"{steps}"] = {"FA": last_row(networks, data, args, seed)["fa_error"]}
    return rows


def probe(data, seed):
    """Give the error of the softmax regression that fits the hidden units best."""
    generator = torch.Generator().manual_seed(seed)
    of_image = torch.randn(data.train_images.shape[1], data.classes, generator=generator)
    targets = (data.train_images @ of_image).argmax(dim=1)  # they persist, but know no label
    frozen = "--freeze-readout"
    networks, _ = set_up(data, seed)
    hidden = networks["fa"].hidden
    mixing = torch.randn(hidden.out_features, len(data.train_images), generator=generator)
    mixtures = mixing @ data.train_images / len(data.train_images)
    components = torch.linalg.eigh(data.train_images.T.cov()).eigenvectors[:, -len(mixing) :]
    rows = {
        "as drawn: random mixtures of pixels": hidden,
        "random mixtures of images": lambda images: images @ mixtures.T,
        "principal components": lambda images: images @ components,
        "FA, B drawn anew at each step": taught(data, seed, redraw=True),
        "FA, W frozen, random labels": taught(data, seed, frozen, labels=RandomLabels(data)),
        "FA, W frozen, targets without labels": taught(data, seed, frozen, labels=targets),
        "FA, W frozen": taught(data, seed, frozen),
        "FA": taught(data, seed),
    }
    return {
        label: {"error of the probe": probe_error(layer, data)} for label, layer in rows.items()
    }


def follow(data, seed):
    """Follow the angles, and how far the exact law of plain SGD fails, along the default run."""
    networks, args = set_up(data, seed)
    hidden, readout = linear_pair(networks["fa"])
    V, B = extended(hidden), readout.feedback
    gram, overlap = V @ V.T, B.T @ readout.weight.detach()
    rows = {}
    for row in train(networks, data, args, seed):
        if row["step"] in (0, 16, 32, 64, 125, 250, 500, 1875, 9375):
            W, V = readout.weight.detach(), extended(hidden)
            M = mean_of_error_times_input(networks["fa"], data)
            written = V @ V.T - gram
            copied = B.T @ W - overlap
            copied = copied + copied.T
            rows[f"{row['step']}"] = {
                "W and B": row["fa_weight_angle"],
                "Bᵀe and Wᵀe": row["fa_message_angle"],
                "BᵀM and WᵀM": script.angle((B.T @ M).flatten(), (W.T @ M).flatten()).item(),
            }
            if row["step"] >= 32:
                error = (copied - written).norm() / written.norm()
                rows[f"{row['step']}"]["the law is off by, %"] = 100 * error.item()
    return rows


def vary_rate(data, seed, tanh=False):
    """Train at other learning rates."""
    rows = {}
    for rate in ("1e-3", "3e-3", "1e-2", "3e-2", "1e-1") if tanh else ("1e-4", "1e-3", "1e-2"):
        networks, args = set_up(data, seed, f"--lr={rate}")
        if tanh:
            make_tanh(networks, data, seed)
            args.batch_size = 64
        row = last_row(networks, data, args, seed)
        rows[rate] = {"FA": row["fa_error"], "BP": row["bp_error"]}
    return rows


def vary_rate_of_tanh(data, seed):
    """Train 784-256-64-10 with tanh, in mini-batches of 64."""
    return vary_rate(data, seed, tanh=True)


# What they change.


def freeze_hidden(networks):
    networks["fa"].requires_grad_(False)
    networks["fa"].readout.requires_grad_(True)


def freeze_W(networks):
    for network in networks.values():
        network.readout.weight.requires_grad_(False)


def cut_copying(networks):
    for rule in networks:
        networks[rule] = Dosed(networks[rule], 0)


def start_W_as_minus_B(networks):
    readout = networks["fa"].readout
    readout.weight.data = -readout.feedback


def drop_hidden(networks):
    pixels = networks["bp"].hidden.in_features
    networks["bp"] = nn.Linear(pixels, networks["bp"].readout.out_features)


def make_tanh(networks, data, seed):
    for rule in networks:
        torch.manual_seed(seed)
        layer = script.RULES[rule]
        first = nn.Linear(data.train_images.shape[1], 256)
        networks[rule] = nn.Sequential(first, nn.Tanh(), layer(256, 64), nn.Tanh())
        networks[rule].add_module("readout", layer(64, data.classes))
    networks["bp"].load_state_dict(networks["fa"].state_dict(), strict=False)  # BP has no B


def redraw(readout):
    readout.feedback = FALinear(readout.in_features, readout.out_features).feedback


def redraw_every(steps, readout):
    """Draw B anew before each so many uses of the readout in training."""
    uses = itertools.count()

    def hook(readout, _inputs):
        if readout.training and next(uses) % steps == 0:
            redraw(readout)

    readout.register_forward_pre_hook(hook)


class Dosed(nn.Module):
    """Computes what its network computes, but W learns from h0 + dose (h - h0) in place of h.

    h is what the layers below the readout compute, h0 what they computed before training.
    """

    def __init__(self, network, dose):
        super().__init__()
        self.below, self.readout = split(network)
        self.below_at_start = copy.deepcopy(self.below).requires_grad_(False)
        self.dose = dose

    def forward(self, images):
        h, h0 = self.below(images), self.below_at_start(images)
        more = F.linear((self.dose - 1) * (h - h0).detach(), self.readout.weight)
        zero = more - more.detach()  # but its gradient is that of `more`
        return self.readout(h) + zero


class RandomLabels:
    """Labels that are drawn anew each time they are looked at."""

    def __init__(self, data):
        self.size, self.classes = len(data.train_labels), data.classes

    def __len__(self):
        return self.size

    def __getitem__(self, batch):
        return torch.randint(self.classes, batch.shape)


# What they share.


def set_up(data, seed, *options):
    """Return FA's and BP's matched networks, as the script makes them, and its arguments."""
    args = script.make_parser().parse_args(options)
    networks = script.matched_networks(data, args, seed)
    return nn.ModuleDict({rule: networks[rule] for rule in ("fa", "bp")}), args


def train(networks, data, args, seed, steps=None):
    """Yield the rows of the script's training, up to a step."""
    optimizer = script.make_optimizer(networks, args)
    for row in script.train(networks, optimizer, data, args, seed, script.measure):
        yield row
        if row["step"] == steps:
            return


def last_row(networks, data, args, seed):
    """Train to the end, and return the last row."""
    args.log_every = args.epochs * script.steps_in_epoch(data, args)
    return list(train(networks, data, args, seed))[-1]


def train_by_steps(networks, data, args, seed, last_step):
    """Train; before each update, and at the last step, yield step, images, labels."""
    optimizer = script.make_optimizer(networks, args)
    for step, batch in enumerate(script.minibatches(data, args, seed)):
        images, labels = data.train_images[batch], data.train_labels[batch]
        yield step, images, labels
        if step == last_step:
            return
        losses = [script.loss_function(network(images), labels) for network in networks.values()]
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()


def learn_alone(layer, networks, data, args, seed, steps):
    """Let one layer of FA's network learn, for so many steps of the seed's shuffle."""
    network = networks["fa"]
    network.requires_grad_(False)
    getattr(network, layer).requires_grad_(True)
    args.log_every, args.epochs = steps, steps  # more epochs than are needed
    list(train(nn.ModuleDict({"fa": network}), data, args, seed, steps))


def state(networks, data):
    """Return the angle of W and B, the least eigenvalue of W B^T, the test error."""
    row = script.measure(networks, data)
    least = least_eigenvalue(networks["fa"].readout)
    return {"W and B": row["fa_weight_angle"], "least eigenvalue": least, "FA": row["fa_error"]}


def least_eigenvalue(readout):
    """Return the least real part of W B^T's eigenvalues, for errors that sum to zero.

    Those of cross-entropy do: a softmax and a label both sum to one.
    """
    ones = torch.ones(1, readout.out_features)
    basis = torch.linalg.svd(ones).Vh[1:]  # rows: an orthonormal basis of what sums to zero
    product = basis @ readout.weight.detach() @ readout.feedback.T @ basis.T
    return torch.linalg.eigvals(product).real.min().item()


def split(network):
    """Return the layers below the readout, and the readout."""
    assert network[-1] is network.readout, "the readout has to be the last layer"
    return network[:-1], network.readout


def linear_pair(network):
    """Return both layers of a network that has no others; what is computed holds for no other."""
    assert [type(layer) for layer in network] == [nn.Linear, FALinear], "two linear layers needed"
    return network


def extended(hidden):
    """Return V with c as one more column."""
    return torch.cat([hidden.weight, hidden.bias[:, None]], dim=1).detach()


def error(y, labels):
    """Return e, the gradient of the loss with respect to the outputs."""
    y.requires_grad_()
    return torch.autograd.grad(script.loss_function(y, labels), y)[0]


def mean_of_error_times_input(network, data):
    """Return M over the training images, a 1 appended to each for the bias: (classes, pixels + 1)."""
    e = error(network(data.train_images).detach(), data.train_labels)
    return e.T @ F.pad(data.train_images, (0, 1), value=1.0)


def predict_angles(network, data, args, steps, dose):
    """Return the angle of W and B at each step up to `steps`, as if errors stayed as at the start.

    Then M stays what it is. The hidden layer gains -a B^T M; W gains -a M V^T from h0, and
    dose c M M^T B from what was written. For plain SGD a is lr t, and c lr^2 t (t - 1) / 2. For any
    optimizer: what it makes of two numbers whose gradients are -1 and -a.
    """
    hidden, readout = linear_pair(network)
    W, B, V = readout.weight.detach(), readout.feedback, extended(hidden)
    M = mean_of_error_times_input(network, data)
    numbers = nn.ParameterDict({"a": torch.zeros(()), "c": torch.zeros(())})
    optimizer = script.make_optimizer(numbers, args)
    angles = []
    for _step in range(steps + 1):
        a, c = numbers["a"].detach().clone(), numbers["c"].detach().clone()
        later_W = W - a * M @ V.T + dose * c * M @ M.T @ B
        angles.append(script.angle(later_W.flatten(), B.flatten()).item())
        numbers["a"].grad, numbers["c"].grad = torch.tensor(-1.0), -a
        optimizer.step()
    return angles


def changes_by_layer(old, new, labels):
    """Return how far each layer's step changes the loss; old and new are (h, readout)."""
    (old_h, old_readout), (new_h, new_readout) = old, new

    def loss(h, readout):
        return script.loss_function(readout(h), labels).item()

    start, end = loss(old_h, old_readout), loss(new_h, new_readout)
    hidden_first, readout_first = loss(new_h, old_readout), loss(old_h, new_readout)
    return {
        "hidden layer": (hidden_first - start + end - readout_first) / 2,
        "readout": (readout_first - start + end - hidden_first) / 2,
    }


def taught(data, seed, *options, labels=None, redraw=False):
    """Return the layers below the readout after five epochs of FA, with labels of one's own."""
    networks, args = set_up(data, seed, *options)
    del networks["bp"]
    if redraw:
        redraw_every(1, networks["fa"].readout)
    if labels is not None:
        data = data._replace(train_labels=labels)
    last_row(networks, data, args, seed)
    return split(networks["fa"])[0]


def probe_error(layer, data):
    """Return the test error of the softmax regression that fits a layer's outputs best."""
    with torch.no_grad():
        h, h_test = layer(data.train_images).double(), layer(data.test_images).double()
    whiten = torch.linalg.inv(torch.linalg.cholesky(h.T.cov())).T  # L-BFGS is faster then
    centre = h.mean(dim=0)
    h, h_test = (h - centre) @ whiten, (h_test - centre) @ whiten
    readout = nn.Linear(h.shape[1], data.classes, dtype=torch.double)
    optimizer = torch.optim.LBFGS(
        readout.parameters(), max_iter=1000, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def loss():
        optimizer.zero_grad()
        value = F.cross_entropy(readout(h), data.train_labels)
        value.backward()
        return value

    optimizer.step(loss)
    assert readout.weight.grad.abs().max() < 1e-4, "L-BFGS has not converged"
    wrong = readout(h_test).argmax(dim=1) != data.test_labels
    return 100 * wrong.double().mean().item()


# The command.


@functools.cache
def load(data_dir):
    torch.set_num_threads(1)
    return script.load_data("mnist", data_dir)


def run(name, seed, data_dir):
    """Return a table's lines of the CSV file, for one seed."""
    function, _seeds, _decimals = make_tables()[name]
    return [
        {"table": name, "row": row, "column": column, "seed": seed, "value": f"{value:.5g}"}
        for row, columns in function(load(data_dir), seed).items()
        for column, value in columns.items()
    ]


def values_of(lines, table, row, column):
    """Return the values over the seeds."""
    place = table, row, column
    return [float(n["value"]) for n in lines if (n["table"], n["row"], n["column"]) == place]


def cell(values, decimals):
    """Return mean±sample standard deviation, for a table; "" for what is not there."""
    numbers = [statistics.fmean(values)] if values else []
    if len(values) > 1:
        numbers.append(statistics.stdev(values))
    return "±".join(f"{number:.{decimals}f}" for number in numbers)


def markdown(name, lines):
    """Return a table in Markdown, a row and a column for each that the function returned."""
    own = [line for line in lines if line["table"] == name and is_shown(name, line["column"])]
    rows, columns = (list(dict.fromkeys(line[key] for line in own)) for key in ("row", "column"))
    decimals = make_tables()[name][2]
    table = [[name, *columns], ["---"] * (1 + len(columns))]
    for row in rows:
        cells = [cell(values_of(own, name, row, column), decimals) for column in columns]
        table.append([row, *cells])
    return "\n".join("|".join(texts) for texts in table)


def summary(lines):
    """Return the table of the project's README, in Markdown."""
    phases, taken = "write, copy, use", "taken away"
    rows = ["what learns|steps|W and B, degrees|FA, %|BP, %", "---|---|---|---|---"]
    for label, steps, table, row in (
        ("write, then copy", "64 + 2,000", phases, "copy"),
        ("write, copy, then use", "… + 1,875", phases, "use"),
        ("write, copy, then use another B", "… + 1,875", phases, "use of another B"),
        ("copy, then use: nothing written", "2,000 + 1,875", phases, "nothing written, use"),
        ("everything, as always", "9,375", taken, "nothing"),
        ("the readout alone (shallow)", "9,375", taken, "learning of the hidden layer"),
        ("the hidden layer alone", "9,375", taken, "learning of W and b"),
    ):
        cells = [
            cell(values_of(lines, table, row, column), 1) for column in ("W and B", "FA", "BP")
        ]
        rows.append("|".join([label, steps, *cells]))
    return "\n".join(rows)


def is_shown(name, column):
    """Tell whether a column is in the table; what is not is for the picture."""
    step = column.rpartition(" ")[2]
    if name == "dose":
        return step in ("32", "64")
    return name != "account of the loss" or step in ("32", "64", "128", "512", "1875")


def draw_mechanism(lines):
    """Return the picture: W's angle to B by dose, and the account of the loss."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    turn, account = figure.subplots(1, 2)
    draw_turn(turn, lines)
    draw_account(account, lines)
    for panel in turn, account:
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    return figure


def draw_turn(panel, lines):
    """Draw the angle of W and B, as measured and as predicted."""
    labels = {
        "1": ("W copies, as always", "#009E73"),
        "0": ("W cannot copy", "gray"),
        "-1": ("W copies with the opposite sign", "#E69F00"),
    }
    for dose, (label, color) in labels.items():
        style = {"label": label, "color": color, "linewidth": 3}
        draw_band(panel, lines, "dose", dose, "measured", style)
        steps, mean, _ = series(lines, "dose", dose, "predicted")
        panel.plot(steps, mean, color="black", linestyle="--")
    panel.plot([], [], color="black", linestyle="--", label="computed before training")
    panel.set_title("Angle between W and B (degrees), half-size start")
    panel.set_xlabel("step")


def draw_account(panel, lines):
    """Draw by how much each layer's steps have changed the loss."""
    for rule, color in ("FA", "#56B4E9"), ("BP", "#D55E00"):
        for part, linestyle in ("hidden layer", "-"), ("readout", "--"):
            style = {"label": f"{rule}: by the {part}", "color": color, "linestyle": linestyle}
            row = f"{rule}, {part}"
            draw_band(panel, lines, "account of the loss", row, "step", style)
    panel.axhline(0, color="black", linewidth=0.8)
    panel.set_xscale("symlog", linthresh=10, linscale=0.6)
    panel.set_xlim(0, 1875)
    panel.xaxis.set_major_formatter("{x:.0f}")
    panel.set_title("Change of the training loss since step 0")
    panel.set_xlabel("step (first epoch)")


def draw_band(panel, lines, table, row, column, style):
    """Draw mean and standard deviation of a row's columns, named by their step."""
    steps, mean, spread = series(lines, table, row, column)
    panel.plot(steps, mean, **style)
    low = [m - s for m, s in zip(mean, spread, strict=True)]
    high = [m + s for m, s in zip(mean, spread, strict=True)]
    panel.fill_between(steps, low, high, color=style["color"], alpha=0.2, linewidth=0)


def series(lines, table, row, column):
    """Return steps, means and standard deviations of the columns `column STEP`."""
    values = {}
    for line in lines:
        name, _, step = line["column"].rpartition(" ")
        if (line["table"], line["row"], name) == (table, row, column):
            values.setdefault(int(step), []).append(float(line["value"]))
    means = [statistics.fmean(each) for each in values.values()]
    spreads = [statistics.stdev(each) for each in values.values()]
    return list(values), means, spreads


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data_dir", help="where MNIST is")
    parser.add_argument("table", nargs="?", choices=make_tables(), metavar="table")
    args = parser.parse_args(arguments)
    load(args.data_dir)  # an error now, not in each process
    names = [args.table] if args.table else list(make_tables())
    tasks = [(name, seed) for name in names for seed in range(make_tables()[name][1])]
    lines = []
    with ProcessPoolExecutor() as pool:
        results = [pool.submit(run, name, seed, args.data_dir) for name, seed in tasks]
        for (name, seed), result in zip(tasks, results, strict=True):
            lines += result.result()
            print(f"{name}, seed {seed}", file=sys.stderr)
            if seed == make_tables()[name][1] - 1:
                print(f"\n{markdown(name, lines)}\n", flush=True)
    if not args.table:
        with open(RESULTS / "ablations.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, lines[0].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)
        print(summary(lines))
        with matplotlib.style.context("default"):
            draw_mechanism(lines).savefig(RESULTS / "mechanism.png", dpi=100)


if __name__ == "__main__":
    main()
