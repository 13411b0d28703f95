"""Train matched linear networks by feedback alignment and backpropagation, on MNIST.

Three networks 784-1000-10 without non-linearity start from the same weights and see
the same mini-batches; all that differs is how the hidden layer is taught:

    fa       error sent back through a fixed random matrix (feedback alignment)
    bp       error sent back through the transposed forward weights (backpropagation)
    shallow  not at all: the hidden layer is frozen (the control)

If FA only trained its read-out, it would do no better than `shallow`. The alignment
angle says why it does better: the read-out weights W turn toward the feedback B.

Usage: python train_fa_vs_bp_linear_model.py --help
"""

import argparse
import contextlib
import csv
import itertools
import json
import math
import os
import shlex
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.datasets import MNIST

from fa_linear import FALinear

RULES = {"fa": "FA", "bp": "BP", "shallow": "shallow"}  # as typed and as printed
PIXELS, CLASSES = 28 * 28, 10
TRAIN_SIZE, TEST_SIZE = 60_000, 10_000  # MNIST's; the stand-in has as many
PIXEL_MEAN, PIXEL_STD = 0.1307, 0.3081  # of MNIST's training images, scaled to [0, 1]

MNIST_FILES = [Path(name).stem for name, _ in MNIST.resources]
# Seconds without an answer. A download waits at most three times in a row: 24 seconds.
DOWNLOAD_TIMEOUT = 8

# The angle is a mean over this many test images. All 10,000 would take ten times the time
# and memory and move it by 0.1 degrees (0.4 in the first row; MNIST, seed 0).
ANGLE_IMAGES = 1000


# The networks, and what makes them matched


def make_network(rule: str, hidden: int) -> nn.Sequential:
    """Return a linear network 784-hidden-10 whose hidden layer learns by `rule`."""
    if rule == "fa":
        return nn.Sequential(nn.Linear(PIXELS, hidden), FALinear(hidden, CLASSES))
    network = nn.Sequential(nn.Linear(PIXELS, hidden), nn.Linear(hidden, CLASSES))
    if rule == "shallow":
        network[0].requires_grad_(False)
    return network


def matched_networks(
    rules: list[str], hidden: int, init_scale: float, seed: int
) -> dict[str, nn.Sequential]:
    """Return {rule: network}, all with the same initial forward weights and biases.

    Weights are U(-s, s) with s = init_scale * sqrt(6 / fan_in), Kaiming-uniform times
    init_scale; biases are zero. The feedback keeps the full scale that `FALinear` gives
    it: from small weights, W is soon dominated by what it learned through B.
    """
    torch.manual_seed(seed)
    # Drawn whichever rules train, so that a seed means the same start for each of them.
    start = make_network("fa", hidden)
    for layer in start:
        bound = init_scale * math.sqrt(6 / layer.in_features)
        nn.init.uniform_(layer.weight, -bound, bound)
        nn.init.zeros_(layer.bias)
    networks = {rule: make_network(rule, hidden) for rule in rules}
    for network in networks.values():
        # Not strict: `start` has a feedback matrix, which only FA has a place for.
        network.load_state_dict(start.state_dict(), strict=False)
    return networks


# What is measured


def collapse(network: nn.Sequential) -> tuple[Tensor, Tensor]:
    """Return the one linear map that a linear network amounts to.

    x -> W (W0 x + b0) + b = (W W0) x + (W b0 + b), as weight (10, 784) and bias (10,).
    With 1000 hidden units, a test image then costs a hundredth of what it costs the
    network, and the collapse itself as much as ten images do.
    """
    hidden, read_out = network
    weight = read_out.weight @ hidden.weight
    bias = read_out.weight @ hidden.bias + read_out.bias
    return weight, bias


def test_error(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the share of wrong answers in per cent, a scalar; nan if any output is.

    Shapes: outputs (n, 10), labels (n,).
    """
    wrong = 100 * (outputs.argmax(dim=1) != labels).float().mean()
    # The argmax of nan is an index like any other, and would count as an answer.
    return torch.where(outputs.isfinite().all(), wrong, torch.nan)


def alignment_angle(error: Tensor, weight: Tensor, feedback: Tensor) -> Tensor:
    """Return the mean angle between FA's and BP's teaching signal, a scalar in degrees.

    The signals are what the hidden layer gets, B^T e under FA and W^T e under BP: 0
    degrees for BP itself, about 90 for unrelated matrices (Lillicrap et al. 2016, Figs.
    1 and 2). An example whose signal is zero has no angle and is left out; nan if none
    has one.

    Shapes: error (n, 10), one example a row; weight and feedback (10, hidden).
    """
    fa, bp = error @ feedback, error @ weight
    fa = fa / fa.norm(dim=1, keepdim=True)
    bp = bp / bp.norm(dim=1, keepdim=True)
    # Unlike the arc cosine, exact near 0 and 180 degrees (Kahan 2006, "How futile are
    # mindless assessments of roundoff", section 12).
    angle = 2 * torch.atan2((fa - bp).norm(dim=1), (fa + bp).norm(dim=1))
    return angle.rad2deg().nanmean()


@torch.no_grad()
def evaluate(
    networks: dict[str, nn.Sequential], images: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """Return the test error of each network, and FA's alignment angle."""
    outputs = {
        rule: F.linear(images, *collapse(network)) for rule, network in networks.items()
    }
    measures = {f"{rule}_error": test_error(outputs[rule], labels) for rule in networks}
    if "fa" in networks:
        # The error e = dL/dy of the cross-entropy: softmax(y) - target.
        target = F.one_hot(labels[:ANGLE_IMAGES], CLASSES)
        error = outputs["fa"][:ANGLE_IMAGES].softmax(dim=1) - target
        read_out = networks["fa"][1]
        measures["angle"] = alignment_angle(error, read_out.weight, read_out.feedback)
    return measures


def to_numbers(measures: dict[str, Tensor]) -> dict[str, float]:
    """Return scalars as numbers, inf as nan; waits for the device once for them all."""
    values = torch.stack(list(measures.values())).tolist()
    values = [value if math.isfinite(value) else math.nan for value in values]
    return dict(zip(measures, values))


# Training


class Digits(NamedTuple):
    """A data set: images uint8 (n, 784), labels int64 (n,)."""

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def to(self, device: torch.device) -> "Digits":
        return Digits(self.name, *(tensor.to(device) for tensor in self[1:]))


def normalise(images: Tensor) -> Tensor:
    """Scale grey levels 0 to 255 to mean 0 and standard deviation 1 over MNIST."""
    # The division makes a new tensor; the rest works on it in place, to spare memory.
    return (images / 255).sub_(PIXEL_MEAN).div_(PIXEL_STD)


def make_optimizer(
    network: nn.Module, options: argparse.Namespace
) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        network.parameters(),
        lr=options.lr,
        momentum=options.momentum,
        nesterov=options.momentum > 0,  # torch refuses Nesterov without momentum
        weight_decay=options.weight_decay,
        fused=options.device.type == "cpu",  # one pass over the weights instead of six
    )


def train_on(
    mini_batches: list[tuple[Tensor, Tensor]],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> Tensor:
    """Train one network on mini-batches (images, labels); return its mean loss."""
    losses = []
    for images, labels in mini_batches:
        loss = F.cross_entropy(network(normalise(images)), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses).mean()


def train(
    networks: dict[str, nn.Sequential],
    digits: Digits,
    options: argparse.Namespace,
    seed: int,
) -> Iterator[dict[str, float]]:
    """Train all networks on the same mini-batches in the same order; yield log rows.

    A row comes every `options.log_every` steps and at each epoch's last step. It holds
    seed, epoch (from 0), step within the epoch, then for each network the mean training
    loss over the mini-batches since the previous row, and what `evaluate` measures.
    """
    optimizers = [
        make_optimizer(network.to(options.device), options)
        for network in networks.values()
    ]
    test_images = normalise(digits.test_images)
    shuffle = torch.Generator().manual_seed(seed)
    images_a_row = options.log_every * options.batch_size

    # The networks have nothing in common, so on the CPU each trains in a thread of its own,
    # on one core: layers this small gain little from a second.
    with ThreadPoolExecutor(
        len(networks), initializer=torch.set_num_threads, initargs=[1]
    ) as threads:
        for_each = threads.map if options.device.type == "cpu" else map
        for epoch in range(options.epochs):
            order = torch.randperm(len(digits.train_images), generator=shuffle)
            step = 0
            for indices in order.to(options.device).split(images_a_row):
                images = digits.train_images[indices].split(options.batch_size)
                labels = digits.train_labels[indices].split(options.batch_size)
                mini_batches = list(zip(images, labels))
                step += len(mini_batches)
                try:
                    losses = for_each(
                        partial(train_on, mini_batches), networks.values(), optimizers
                    )
                    measures = dict(zip([f"{rule}_loss" for rule in networks], losses))
                finally:
                    mini_batches.clear()  # on Ctrl-C, the threads end at their next step
                measures |= evaluate(networks, test_images, digits.test_labels)
                position = {"seed": seed, "epoch": epoch, "step": step}
                yield position | to_numbers(measures)


# The data


def load_digits(dataset: str, data_dir: Path) -> Digits:
    """Return MNIST, or the stand-in where `dataset` asks for or allows it.

    Raises:
        ArgumentError: MNIST is damaged; or it is required, or partly there, and cannot
            be downloaded.
    """
    if dataset == "synthetic":
        return synthetic_digits()
    try:
        return load_mnist(data_dir)
    except (OSError, RuntimeError, HTTPException) as error:
        reason = one_line(error)
    if dataset == "mnist" or (data_dir / "MNIST").exists():
        raise argparse.ArgumentError(
            None,
            f"argument --data-dir: {data_dir} does not hold the four files of MNIST, and "
            f"they cannot be downloaded ({reason})",
        )
    print(
        f"WARNING: MNIST is not in {data_dir} and cannot be downloaded ({reason}).\n"
        "WARNING: training on typeset digits instead. No figure below is MNIST's.",
        file=sys.stderr,
        flush=True,
    )
    return synthetic_digits()


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def load_mnist(data_dir: Path) -> Digits:
    """Return MNIST from data_dir/MNIST/raw, downloaded first if it is not there.

    Raises:
        ArgumentError: the files are there but damaged.
        OSError, RuntimeError, HTTPException: they are not, and cannot be downloaded.
    """
    raw = data_dir / "MNIST" / "raw"
    if not all((raw / name).is_file() for name in MNIST_FILES):
        download_mnist(data_dir)
    try:
        train, test = MNIST(data_dir, train=True), MNIST(data_dir, train=False)
        for part, size in (train, TRAIN_SIZE), (test, TEST_SIZE):
            if part.data.shape != (size, 28, 28) or part.targets.shape != (size,):
                raise ValueError(f"not {size} images of 28 x 28 and {size} labels")
            if part.targets.max() >= CLASSES:
                raise ValueError("labels above 9")
    except Exception as error:  # torchvision raises nearly anything on a damaged file
        reason = one_line(error)
        raise argparse.ArgumentError(
            None,
            f"argument --data-dir: the files in {raw} are not MNIST or are damaged "
            f"({reason}); delete them to have them downloaded again",
        ) from error
    return Digits(
        "MNIST",
        train.data.flatten(start_dim=1),
        train.targets,
        test.data.flatten(start_dim=1),
        test.targets,
    )


def download_mnist(data_dir: Path) -> None:
    """Download MNIST into data_dir/MNIST/raw: whole files or nothing.

    torchvision takes any file of the right name for MNIST, a cut one too. So it works in
    a scratch folder, and only files whose checksum it has tested are moved from there.
    """
    print(f"MNIST is not in {data_dir}: downloading it ...", flush=True)
    default_timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        with tempfile.TemporaryDirectory(
            dir=nearest_existing(data_dir), prefix=".mnist-download-"
        ) as scratch:
            MNIST(scratch, download=True)
            raw = data_dir / "MNIST" / "raw"
            raw.mkdir(parents=True, exist_ok=True)
            for name in MNIST_FILES:
                os.replace(Path(scratch, "MNIST", "raw", name), raw / name)
    finally:
        socket.setdefaulttimeout(default_timeout)


def synthetic_digits() -> Digits:
    """Return the stand-in for MNIST, which needs no file and no network.

    Digits typeset in the fonts that Matplotlib ships, each randomly rotated, sheared,
    scaled and shifted; as many images as MNIST has, and the same ones every time. With
    this much jitter a linear classifier errs about as often as on MNIST.
    """
    glyphs = typeset_digits()
    random = torch.Generator().manual_seed(0)

    def uniform(limit: float, *shape: int) -> Tensor:
        return limit * (2 * torch.rand(*shape, generator=random) - 1)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        fonts = torch.randint(len(glyphs), (count,), generator=random)
        labels = torch.randint(CLASSES, (count,), generator=random)
        turn, shear = uniform(math.radians(20), count), uniform(0.25, count)
        zoom_x, zoom_y = uniform(0.2, 2, count).exp()
        shift = uniform(2 / 14, count, 2)  # up to 2 pixels; half an image is 14
        cos, sin = turn.cos(), turn.sin()
        # Rotation times shear times zoom, and the shift as third column.
        top = [cos * zoom_x, (cos * shear - sin) * zoom_y, shift[:, 0]]
        bottom = [sin * zoom_x, (sin * shear + cos) * zoom_y, shift[:, 1]]
        maps = torch.stack([torch.stack(top, dim=1), torch.stack(bottom, dim=1)], dim=1)
        images = torch.empty(count, PIXELS, dtype=torch.uint8)
        for part in torch.arange(count).split(2000):  # bounds the memory
            grid = F.affine_grid(
                maps[part], [len(part), 1, 28, 28], align_corners=False
            )
            drawn = F.grid_sample(
                glyphs[fonts[part], labels[part]], grid, align_corners=False
            )
            images[part] = drawn.round().byte().flatten(start_dim=1)
        return images, labels

    return Digits("synthetic digits (not MNIST)", *draw(TRAIN_SIZE), *draw(TEST_SIZE))


def typeset_digits() -> Tensor:
    """Return the ten digits in 20 fonts: grey levels, (20, 10, 1, 28, 28)."""
    # Not at the top of the file: training on MNIST needs no Matplotlib.
    from matplotlib import get_data_path
    from matplotlib.ft2font import FT2Font

    fonts = ["STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"]
    fonts += ["cmr10", "cmb10", "cmss10", "cmtt10"]  # Computer Modern
    for family, slant in (
        ("Sans", "Oblique"),
        ("SansMono", "Oblique"),
        ("Serif", "Italic"),
    ):
        styles = ["", "-Bold", f"-{slant}", f"-Bold{slant}"]
        fonts += [f"DejaVu{family}{style}" for style in styles]

    glyphs = []
    for name in fonts:
        font = FT2Font(str(Path(get_data_path(), "fonts", "ttf", f"{name}.ttf")))
        font.set_size(24, 72)  # pixels at 72 dots per inch: digits 18 to 20 high
        for digit in range(CLASSES):
            font.set_text(str(digit))
            font.draw_glyphs_to_bitmap()
            glyph = torch.from_numpy(font.get_image().copy())
            rows, columns = 28 - glyph.shape[0], 28 - glyph.shape[1]
            left, top = columns // 2, rows // 2
            glyphs.append(F.pad(glyph, (left, columns - left, top, rows - top)))
    return torch.stack(glyphs).float().view(len(fonts), CLASSES, 1, 28, 28)


# The run and its log


def new_run_folder(out: Path | None) -> Path:
    """Create and return the folder `out`, or without one runs/<date>_<time>.

    Raises:
        ArgumentError: the folder cannot be created.
    """
    try:
        if out:
            out.mkdir(parents=True, exist_ok=True)
            return out
        Path("runs").mkdir(exist_ok=True)
        now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        for attempt in itertools.count(1):
            folder = Path("runs", now if attempt == 1 else f"{now}_{attempt}")
            # Another run may have started in the same second.
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                return folder
    except OSError as error:
        raise argparse.ArgumentError(
            None, f"argument --out: cannot create {error.filename}: {error.strerror}"
        ) from error


def log_columns(rules: list[str]) -> list[str]:
    columns = ["seed", "epoch", "step"]
    columns += [f"{rule}_loss" for rule in rules] + [f"{rule}_error" for rule in rules]
    return columns + ["angle"] if "fa" in rules else columns


def heading(column: str) -> str:
    rule, _, measure = column.partition("_")
    return f"{RULES[rule]} {measure}".replace("error", "err") if measure else column


def cell(column: str, value: float) -> str:
    if column.endswith("_loss"):
        return f"{value:#.4g}"
    if column.endswith("_error"):
        return f"{value:.2f}%"
    return f"{value:.1f}\N{DEGREE SIGN}" if column == "angle" else str(value)


def print_table_row(headings: list[str], cells: list[str]) -> None:
    widths = [max(len(heading), 5) for heading in headings]
    print(" | ".join(map(str.rjust, cells, widths)), flush=True)


def run(options: argparse.Namespace, digits: Digits, folder: Path) -> None:
    """Train a matched set of networks for each seed; log every row when it comes."""
    steps_per_epoch = math.ceil(len(digits.train_images) / options.batch_size)
    config = vars(options) | {
        "dataset_used": digits.name,
        "steps_per_epoch": steps_per_epoch,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(
        f"Data: {digits.name}, {len(digits.train_labels)} training and "
        f"{len(digits.test_labels)} test images. Device: {options.device}, "
        f"{config['threads']} threads.\n"
        "loss: mean training cross-entropy since the row before. err: error on the test "
        "images.\nangle: between FA's and BP's teaching signal at the hidden layer."
    )
    columns = log_columns(options.rules)
    headings = [heading(column) for column in columns[1:]] + ["time left"]
    total_steps = len(options.seeds) * options.epochs * steps_per_epoch
    started, last_rows = time.monotonic(), []

    # Line buffering hands each row to the system whole: a run that is killed keeps it.
    with open(folder / "losses.csv", "x", buffering=1, newline="") as file:
        text = json.dumps(config, indent=2, default=str)
        (folder / "config.json").write_text(text + "\n")
        log = csv.writer(file, lineterminator="\n")
        log.writerow(columns)
        for seeds_done, seed in enumerate(options.seeds):
            print(f"\nSeed {seed}\n")
            print_table_row(headings, headings)
            print_table_row(headings, ["---"] * len(headings))
            networks = matched_networks(
                options.rules, options.hidden, options.init_scale, seed
            )
            overflowed = set()
            for row in train(networks, digits, options, seed):
                values = [row[column] for column in columns]
                log.writerow(f"{v:.6g}" if isinstance(v, float) else v for v in values)
                epochs_done = seeds_done * options.epochs + row["epoch"]
                steps_done = epochs_done * steps_per_epoch + row["step"]
                elapsed = time.monotonic() - started
                time_left = elapsed * (total_steps / steps_done - 1)
                cells = list(map(cell, columns[1:], values[1:]))
                cells.append(str(timedelta(seconds=round(time_left))))
                print_table_row(headings, cells)
                for rule in networks:
                    if math.isnan(row[f"{rule}_loss"]) and rule not in overflowed:
                        overflowed.add(rule)
                        print(
                            f"WARNING: the loss of {RULES[rule]} overflowed and is nan "
                            "from here on; a smaller --lr may help",
                            file=sys.stderr,
                        )
            last_rows.append(row)
    print_summary(columns, last_rows, digits.name)


def print_summary(columns: list[str], last_rows: list[dict], data: str) -> None:
    """Print the final test errors and angle: mean ± standard deviation over seeds."""
    seeds = "1 seed"
    if len(last_rows) > 1:
        seeds = (
            f"mean \N{PLUS-MINUS SIGN} standard deviation over {len(last_rows)} seeds"
        )
    print(f"\nAt the end, on {data}, {seeds}:")
    for column in columns:
        if not column.endswith("_error") and column != "angle":
            continue
        values = torch.tensor([row[column] for row in last_rows])
        text = f"{values.mean():6.2f}"
        if len(values) > 1:
            text += f" \N{PLUS-MINUS SIGN} {values.std():.2f}"
        if column == "angle":
            print(f"  angle              {text} degrees")
        else:
            print(f"  {RULES[column.removesuffix('_error')]:7} test error {text} %")


# The command line


class OneLineParser(argparse.ArgumentParser):
    def error(self, message: str):
        """Exit with status 2 and one line, without the usage that argparse prints."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def number(kind: type, low: float, high: float):
    """Return an argparse type: an int or float from low to high."""
    name = "a whole number" if kind is int else "a number"

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not {name} from {low} to {high}"
            )
        return value

    return parse


def device(text: str) -> torch.device:
    try:
        torch.zeros(1, device=text).item()
        return torch.device(text)
    except Exception as error:  # each device fails in its own way
        reason = str(error).splitlines()[0].rstrip(".")
        raise argparse.ArgumentTypeError(
            f"{text!r} cannot be used here ({reason}); accepts cpu, cuda, cuda:1, mps, ..."
        ) from error


def nearest_existing(path: Path) -> Path:
    """Return the path itself or the nearest of its parents that exists."""
    return next(p for p in (path, *path.absolute().parents) if p.exists())


def data_folder(text: str) -> Path:
    try:
        os.listdir(nearest_existing(Path(text)))
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a folder that can be read ({error.strerror})"
        ) from error
    return Path(text)


def out_folder(text: str) -> Path:
    path = Path(text)
    try:
        if not nearest_existing(path).is_dir():
            raise argparse.ArgumentTypeError(f"{text!r} is a file; accepts a folder")
        if (path / "losses.csv").exists():
            raise argparse.ArgumentTypeError(f"{text!r} already holds a run")
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a folder that can be written ({error.strerror})"
        ) from error
    return path


def make_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        description="Train matched linear networks 784-hidden-10 by feedback alignment "
        "(FA), by backpropagation (BP) and with a frozen hidden layer (shallow); print "
        "and write their losses. Plot them with plot_losses.py.",
    )
    accelerator = (
        torch.accelerator.is_available() and torch.accelerator.current_accelerator()
    )
    add = parser.add_argument
    add(
        "--rules",
        nargs="+",
        choices=RULES,
        default=list(RULES),
        help="which networks train (default: fa bp shallow)",
    )
    add(
        "--epochs",
        type=number(int, 1, 10_000),
        default=5,
        help="passes over the training images (default: %(default)s)",
    )
    add(
        "--batch-size",
        type=number(int, 1, TRAIN_SIZE),
        default=32,
        help="images in a mini-batch (default: %(default)s)",
    )
    add(
        "--hidden",
        type=number(int, 1, 100_000),
        default=1000,
        help="hidden units (default: %(default)s)",
    )
    add(
        "--lr",
        type=number(float, 1e-9, 1e6),
        default=1e-3,
        help="learning rate of SGD (default: %(default)s)",
    )
    add(
        "--momentum",
        type=number(float, 0, 0.9999),
        default=0.9,
        help="Nesterov momentum of SGD; 0 for none (default: %(default)s)",
    )
    add(
        "--weight-decay",
        type=number(float, 0, 1),
        default=1e-3,
        help="weight decay (L2) of SGD (default: %(default)s)",
    )
    add(
        "--init-scale",
        type=number(float, 1e-6, 100),
        default=0.1,
        help="initial forward weights, as a multiple of Kaiming-uniform; from large ones nothing aligns (default: %(default)s)",
    )
    add(
        "--log-every",
        type=number(int, 1, TRAIN_SIZE),
        default=125,
        help="steps between two rows of the log (default: %(default)s)",
    )
    add(
        "--seeds",
        nargs="+",
        type=number(int, 0, 2**32 - 1),
        default=[0],
        help="one matched set of networks for each (default: 0)",
    )
    add(
        "--dataset",
        choices=["auto", "mnist", "synthetic"],
        default="auto",
        help="mnist, or the stand-in synthetic (digits typeset in many fonts); auto takes "
        "MNIST unless it cannot be had (default: %(default)s)",
    )
    add(
        "--data-dir",
        type=data_folder,
        default="data",
        help="holds MNIST, or will once it is downloaded (default: %(default)s)",
    )
    add(
        "--device",
        type=device,
        default=str(accelerator or "cpu"),
        help="cpu, cuda, mps, ... (default: the accelerator if there is one; here: "
        "%(default)s)",
    )
    add(
        "--out",
        type=out_folder,
        help="folder for losses.csv and config.json (default: runs/<date>_<time>)",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser()
    options = parser.parse_args(arguments)
    options.rules.sort(key=list(RULES).index)
    for name, values in ("rules", options.rules), ("seeds", options.seeds):
        if len(set(values)) < len(values):
            parser.error(f"argument --{name}: accepts each value only once")

    folder = None
    try:
        digits = load_digits(options.dataset, options.data_dir).to(options.device)
        folder = new_run_folder(options.out)
        run(options, digits, folder)
    except argparse.ArgumentError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print(f"\nInterrupted. {kept(folder)}", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"\nStopped: {error}. {kept(folder)}", file=sys.stderr)
        return 1
    print(f"\nResults: {folder / 'losses.csv'}\nPlot:    {plot_command(folder)}")
    return 0


def kept(folder: Path | None) -> str:
    return f"All rows so far are in {folder / 'losses.csv'}." if folder else ""


def plot_command(folder: Path) -> str:
    """Return the command that plots the run, as it can be pasted here."""
    python, here = Path(sys.executable), Path.cwd()
    python = python.relative_to(here) if python.is_relative_to(here) else python
    plot = Path(sys.argv[0]).with_name("plot_losses.py")
    return shlex.join(map(str, [python, plot, folder]))


if __name__ == "__main__":
    sys.exit(main())
