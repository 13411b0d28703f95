"""Train matched linear networks by feedback alignment and backpropagation, on MNIST.

Three networks 784-20-10 without non-linearity start from the same weights and see the same
mini-batches. All that differs is the message by which the output error e teaches the hidden
layer:

    fa       B^T e: e sent back through a fixed random matrix B (feedback alignment)
    bp       W^T e: e sent back through the weights W of the read-out (backpropagation)
    shallow  none: the hidden layer stays as it was drawn, and only the read-out learns

On 20 random hidden units even the best read-out errs on 32 % of the test images: a network that
errs on 8 % has taught its hidden layer. A random message can teach because W comes to resemble
B: watch the angle between B^T e and W^T e. With --freeze-read-out W cannot, and FA fails.
"""

import argparse
import csv
import json
import math
import shlex
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import matplotlib
import torch
from matplotlib.ft2font import FT2Font
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.datasets import MNIST
from torchvision.transforms.functional import center_crop

from fa_linear import FALinear

RULES = ["fa", "bp", "shallow"]
PIXELS, CLASSES = 28 * 28, 10
TRAIN_SIZE, TEST_SIZE = 60_000, 10_000  # MNIST's; the stand-in has as many
PIXEL_MEAN, PIXEL_STD = 0.1307, 0.3081  # of MNIST's training images, scaled to [0, 1]
ANGLE_IMAGES = 1000  # for the mean angle: within a degree of all 10,000, at a tenth of the time


def make_network(rule: str, hidden: int, freeze_read_out: bool = False) -> nn.Sequential:
    """Return a linear network 784-hidden-10 whose hidden layer learns by `rule`."""
    # FALinear changes what it sends down: as read-out, it teaches the hidden layer below by FA.
    read_out = FALinear if rule == "fa" else nn.Linear
    network = nn.Sequential(nn.Linear(PIXELS, hidden), read_out(hidden, CLASSES))
    network[0].requires_grad_(rule != "shallow")
    network[1].requires_grad_(not freeze_read_out)
    return network


def matched_networks(options: argparse.Namespace, seed: int) -> nn.ModuleDict:
    """Return {rule: network}, all with the same initial forward weights and biases.

    Weights are U(-s, s) with s = init_scale * sqrt(6 / fan_in), Kaiming-uniform times
    init_scale; biases are zero. FA's feedback B keeps the scale that `FALinear` gives it, so
    with init_scale 1 the read-out W and B are two draws from one distribution.
    """
    torch.manual_seed(seed)
    # Drawn whichever rules train, so that a seed means the same start for each of them.
    start = make_network("fa", options.hidden)
    for layer in start:
        bound = options.init_scale * math.sqrt(6 / layer.in_features)
        nn.init.uniform_(layer.weight, -bound, bound)
        nn.init.zeros_(layer.bias)
    networks = nn.ModuleDict()
    for rule in options.rules:
        networks[rule] = make_network(rule, options.hidden, options.freeze_read_out)
        # Not strict: `start` has a feedback matrix, which only FA has a place for.
        networks[rule].load_state_dict(start.state_dict(), strict=False)
    return networks


def train(
    networks: nn.ModuleDict, digits: "Digits", options: argparse.Namespace, seed: int
) -> Iterator[tuple[int, int, dict[str, float]]]:
    """Train all networks on the same mini-batches in the same order; yield the log's rows.

    A generator: it trains only as far as its rows are asked for. A row is the epoch (from 0),
    the step in it, and what `measure` returns after that step for the mean losses since the row
    before, each taken before its own update. There is a row for step 0, before any update; one
    every `log_every` steps and at each epoch's last; and in the first epoch, as alignment
    begins early, one at steps 1, 2, 4, ... below `log_every`.
    """
    optimizer = torch.optim.SGD(
        networks.parameters(),
        lr=options.lr,
        momentum=options.momentum,
        nesterov=options.momentum > 0,  # torch refuses Nesterov without momentum
        weight_decay=options.weight_decay,
        fused=True,  # decay, momentum and step in one pass over the weights
    )
    shuffle = torch.Generator().manual_seed(seed)
    for epoch in range(options.epochs):
        order = torch.randperm(len(digits.train_images), generator=shuffle)
        batches = order.to(options.device).split(options.batch_size)  # of indices
        losses_since_row = []
        for step, indices in enumerate(batches, start=1):
            images, labels = digits.train_images[indices], digits.train_labels[indices]
            outputs = [network(images) for network in networks.values()]
            losses = torch.stack([F.cross_entropy(y, labels) for y in outputs])  # (networks,)
            if epoch == 0 and step == 1:
                yield 0, 0, measure(networks, losses, digits)
            # No two networks share a weight, so the sum gives each just its own gradient.
            losses.sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            losses_since_row.append(losses.detach())
            early = epoch == 0 and step < options.log_every and step.bit_count() == 1  # 1, 2, 4, 8
            if early or step % options.log_every == 0 or step == len(batches):
                yield epoch, step, measure(networks, torch.stack(losses_since_row).mean(0), digits)
                losses_since_row.clear()


@torch.no_grad()
def measure(networks: nn.ModuleDict, losses: Tensor, digits: "Digits") -> dict[str, float]:
    """Return {column: value} of a row: training losses, test errors, angle; nan if not finite.

    The losses are given, shape (networks,). A test error is the percentage of the test images
    that a network misclassifies, the angle that of FA's alignment, in degrees.
    """
    measures = {f"{rule}_loss": loss for rule, loss in zip(networks, losses, strict=True)}
    for rule, network in networks.items():
        W0, b0, W, b = network.parameters()
        # Linear as it is, W (W0 x + b0) + b is one layer: a wide one is tested as fast, too.
        outputs = F.linear(digits.test_images, W @ W0, W @ b0 + b)
        misclassified = 100 * (outputs.argmax(dim=1) != digits.test_labels).float().mean()
        # The argmax of nan is an index like any other, and would count as an answer.
        measures[f"{rule}_error"] = misclassified.where(outputs.isfinite().all(), torch.nan)
        if rule == "fa":
            targets = F.one_hot(digits.test_labels[:ANGLE_IMAGES], CLASSES)
            e = outputs[:ANGLE_IMAGES].softmax(dim=1) - targets  # dL/dy of the cross-entropy
            measures["angle"] = alignment_angle(e, W, network[1].feedback)
    values = torch.stack(list(measures.values()))
    values = values.where(values.isfinite(), torch.nan).tolist()  # waits for the device, once
    return dict(zip(measures, values, strict=True))


def alignment_angle(e: Tensor, weight: Tensor, feedback: Tensor) -> Tensor:
    """Return the mean angle between FA's message B^T e and BP's W^T e, a scalar in degrees.

    It is 0 where B is W, and about 90 where they are unrelated (Lillicrap et al. 2016, Figs. 1
    and 2). An example with no message has no angle and is left out; nan if none has one.

    Shapes: output errors e (n, 10), one example a row; weight W and feedback B (10, hidden).
    """
    fa, bp = e @ feedback, e @ weight
    # F.cosine_similarity would give no message the cosine 0, a false 90 degrees.
    cosine = (fa * bp).sum(dim=1) / (fa.norm(dim=1) * bp.norm(dim=1))
    return cosine.clamp(-1, 1).acos().rad2deg().nanmean()  # rounding may leave [-1, 1]


class Digits(NamedTuple):
    """A data set on the device: images float32 (n, 784), normalised; labels int64 (n,)."""

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


class NoMNIST(Exception):
    """MNIST is needed and cannot be had; the message says why, and what may help."""


def load_digits(dataset: str, data_dir: Path, device: torch.device) -> Digits:
    """Return MNIST; for "synthetic", and for "auto" where MNIST cannot be had, the stand-in.

    Raises NoMNIST for "mnist" if it cannot be had, and if `data_dir` cannot be used at all.
    """
    if dataset == "synthetic":
        name, parts = "synthetic digits (not MNIST)", synthetic_digits()
    else:
        print(f"Looking for MNIST in {data_dir}, else downloading it ...", flush=True)
        try:
            name, parts = "MNIST", load_mnist(data_dir)
        except Exception as error:  # torchvision raises nearly anything on a damaged file
            reason = " ".join(str(error).split()) or type(error).__name__
            problem = f"no MNIST in {data_dir} ({reason}); if damaged, delete {data_dir / 'MNIST'}"
            unusable = isinstance(error, (FileExistsError, NotADirectoryError, PermissionError))
            if dataset == "mnist" or unusable:
                raise NoMNIST(problem) from error
            print(f"WARNING: {problem}", file=sys.stderr)
            print("WARNING: typeset digits stand in; no figure below is MNIST's", file=sys.stderr)
            return load_digits("synthetic", data_dir, device)
    tensors = []
    for images, labels in parts:
        # Normalised once and kept on the device, where a mini-batch is then a look-up.
        pixels = images.to(device).flatten(start_dim=1).float().div_(255)
        tensors += [pixels.sub_(PIXEL_MEAN).div_(PIXEL_STD), labels.to(device)]
    return Digits(name, *tensors)


def load_mnist(data_dir: Path) -> list[tuple[Tensor, Tensor]]:
    """Return MNIST's training and test part, each as images uint8 (n, 28, 28) and labels (n,)."""
    socket.setdefaulttimeout(10)  # seconds; a silent server would else hold the run forever
    parts = []
    for train_part, size in (True, TRAIN_SIZE), (False, TEST_SIZE):
        mnist = MNIST(data_dir, train=train_part, download=True)
        complete = mnist.data.shape == (size, 28, 28) and mnist.targets.shape == (size,)
        if not complete or mnist.targets.max() >= CLASSES:
            raise ValueError(f"not {size} images of 28 x 28 with labels from 0 to 9")
        parts.append((mnist.data, mnist.targets))
    return parts


def synthetic_digits() -> list[tuple[Tensor, Tensor]]:
    """Return a stand-in for what `load_mnist` returns that needs no file and no network.

    Digits typeset in 20 fonts that Matplotlib ships, each under a random affine map: the same
    every time under one version of Matplotlib (see config.json), and about as hard as MNIST.
    """
    glyphs = typeset_digits()
    parts = []
    for seed, size in (1, TRAIN_SIZE), (0, TEST_SIZE):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(CLASSES, (size,), generator=generator)
        fonts = torch.randint(len(glyphs), (size,), generator=generator)
        maps = torch.eye(2, 3) + 0.09 * torch.randn(size, 2, 3, generator=generator)
        images = torch.empty(size, 1, 28, 28, dtype=torch.uint8)
        for chunk in torch.arange(size).split(2000):  # bounds the memory
            grid = F.affine_grid(maps[chunk], (len(chunk), 1, 28, 28), align_corners=False)
            drawn = F.grid_sample(glyphs[fonts[chunk], labels[chunk]], grid, align_corners=False)
            images[chunk] = drawn.round().byte()
        parts.append((images.squeeze(dim=1), labels))
    return parts


def typeset_digits() -> Tensor:
    """Return the ten digits in 20 fonts: grey levels, (20, 10, 1, 28, 28)."""
    names = ["STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"]
    names += ["cmr10", "cmb10", "cmss10", "cmtt10"]  # Computer Modern
    for family, slant in ("Sans", "Oblique"), ("SansMono", "Oblique"), ("Serif", "Italic"):
        names += [f"DejaVu{family}{style}" for style in ("", "-Bold", f"-{slant}", f"-Bold{slant}")]
    glyphs = torch.zeros(len(names), CLASSES, 1, 28, 28)
    for row, name in zip(glyphs, names, strict=True):
        font = FT2Font(str(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf")))
        font.set_size(24, 72)  # 24 pixels at 72 dots per inch: digits 15 to 18 high
        for digit in range(CLASSES):
            font.set_text(str(digit))
            font.draw_glyphs_to_bitmap()
            row[digit, 0] = center_crop(torch.from_numpy(font.get_image().copy()), [28, 28])
    return glyphs


def compare(options: argparse.Namespace, digits: Digits) -> None:
    """Train a matched set of networks for each seed; log and print each row when it comes."""
    measured = [f"{rule}_{name}" for name in ("loss", "error") for rule in options.rules]
    measured += ["angle"] if "fa" in options.rules else []
    columns = ["seed", "epoch", "step", *measured]
    headings = [*columns, "time left"]
    steps_per_epoch = math.ceil(len(digits.train_images) / options.batch_size)
    write_config(options, digits, steps_per_epoch)
    print(f"Data: {digits.name}. Device: {options.device}. Losses: means since the row before.")
    print("Test errors: in %. Angle: between B^T e and W^T e, in degrees.\n")
    row_format = "|".join(f"{{:>{len(heading)}}}" for heading in headings)
    print(row_format.format(*headings))
    print(row_format.format(*("-" * len(heading) for heading in headings)))
    started, last_rows = time.monotonic(), []
    # Line buffering hands each row to the system whole: a run that is killed keeps it.
    with open(options.out / "losses.csv", "x", buffering=1, newline="") as log:
        writer = csv.writer(log, lineterminator="\n")
        writer.writerow(columns)
        for seeds_done, seed in enumerate(options.seeds):
            networks = matched_networks(options, seed).to(options.device)
            for epoch, step, measures in train(networks, digits, options, seed):
                position, values = [seed, epoch, step], [measures[name] for name in measured]
                writer.writerow([*position, *(f"{value:.6g}" for value in values)])
                epochs_done = seeds_done * options.epochs + epoch + step / steps_per_epoch
                left = time_left(started, epochs_done / (len(options.seeds) * options.epochs))
                cells = [*position, *(f"{value:#.4g}" for value in values), left]
                print(row_format.format(*cells), flush=True)
            last_rows.append(values)  # of this seed's last row
            if any(map(math.isnan, values)):
                print("WARNING: nan: the loss overflowed; try a smaller --lr", file=sys.stderr)
    if len(last_rows) > 1:
        print_summary(measured, last_rows)


def print_summary(measured: list[str], last_rows: list[list[float]]) -> None:
    """Print each measure's mean and sample standard deviation over the seeds."""
    print(f"\nLast rows, mean ± standard deviation over {len(last_rows)} seeds:")
    for name, values in zip(measured, torch.tensor(last_rows).T, strict=True):
        print(f"{name:13} {values.mean():#.4g} ± {values.std():.2g}")


def write_config(options: argparse.Namespace, digits: Digits, steps_per_epoch: int) -> None:
    """Write config.json: what it takes to repeat the run, and to draw it."""
    config = vars(options) | {"dataset_used": digits.name, "steps_per_epoch": steps_per_epoch}
    config |= {"torch": torch.__version__, "matplotlib": matplotlib.__version__}
    with open(options.out / "config.json", "x") as file:
        file.write(json.dumps(config, indent=2, default=str) + "\n")


def time_left(started: float, share_done: float) -> str:
    """Return how long the rest takes at this pace, as h:mm:ss; blank where nobody can tell."""
    seconds = time.monotonic() - started
    if seconds < 2 or share_done == 0:  # start-up and the many early rows hide the pace
        return ""
    return str(timedelta(seconds=round(seconds * (1 / share_done - 1))))


class OneLineParser(argparse.ArgumentParser):
    def error(self, message: str):
        """Exit with status 2 and one line, without the usage that argparse prints."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def within(low: float, high: float):
    """Return an argparse type: a number from low to high, whole if they are."""

    def number(text: str) -> float:
        value = type(low)(text)
        if not low <= value <= high:  # as nan is not
            raise argparse.ArgumentTypeError(f"{text!r} is not from {low} to {high}")
        return value

    number.__name__ = type(low).__name__  # argparse's word for it: "invalid int value"
    return number


def working_device(text: str) -> torch.device:
    """Return the device of that name if it can be used here; an argparse type."""
    try:
        torch.zeros(1, device=text).item()
        return torch.device(text)
    except Exception as error:  # each device fails in its own way
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used here ({reason})") from error


def make_parser() -> argparse.ArgumentParser:
    """Return the parser; "L0SG's code" is github.com/L0SG/feedback-alignment-pytorch."""
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = OneLineParser(description=__doc__.splitlines()[0], formatter_class=formatter)
    accelerator = torch.accelerator.is_available() and torch.accelerator.current_accelerator()
    new_folder = datetime.now().strftime("runs/%Y-%m-%d_%H-%M-%S-%f")

    def add(name: str, type, default, help: str, **settings):
        parser.add_argument(name, type=type, default=default, help=help, **settings)

    text = "freeze the read-outs of all networks, so that W cannot come to resemble B"
    parser.add_argument("--freeze-read-out", action="store_true", help=text)
    add("--rules", str, RULES, "which networks train", nargs="+", choices=RULES)
    add("--hidden", within(1, 100_000), 20, "hidden units; with 1000, shallow does as well")
    add("--init-scale", within(1e-6, 1e2), 1.0, "multiplies the initial weights, but not B")
    add("--epochs", within(1, 10_000), 5, "passes over the images; 15 more gain half a percent")
    add("--batch-size", within(1, TRAIN_SIZE), 32, "images in a mini-batch, as in L0SG's code")
    add("--lr", within(1e-9, 1e6), 1e-3, "learning rate of SGD; with 0.01 FA is unstable")
    add("--momentum", within(0.0, 0.9999), 0.9, "Nesterov momentum, as in L0SG's code; 0: none")
    add("--weight-decay", within(0.0, 1.0), 1e-3, "weight decay (L2), as in L0SG's code; 0: none")
    add("--log-every", within(1, TRAIN_SIZE), 125, "steps between rows; 125: 15 rows an epoch")
    add("--seeds", within(0, 2**32 - 1), [0], "one matched set of networks each", nargs="+")
    add("--dataset", str, "auto", "auto: mnist if possible", choices=["auto", "mnist", "synthetic"])
    add("--data-dir", Path, "data", "where MNIST is, or is downloaded to")
    add("--device", working_device, str(accelerator or "cpu"), "cpu, cuda, ...")
    add("--out", Path, new_folder, "new folder for losses.csv and config.json")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison that the arguments ask for; return the exit status."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    options.rules = [rule for rule in RULES if rule in options.rules]
    options.seeds = list(dict.fromkeys(options.seeds))  # each once
    if options.freeze_read_out and options.rules == ["shallow"]:
        parser.error("argument --freeze-read-out: nothing would learn in shallow; add fa or bp")
    try:  # now, rather than after a download
        options.out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=options.out).close()  # can it be written to?
        if any(options.out.iterdir()):
            parser.error(f"argument --out: {options.out} is not empty; no run is overwritten")
    except OSError as error:
        parser.error(f"argument --out: {error}")
    log_path = options.out / "losses.csv"
    try:
        compare(options, load_digits(options.dataset, options.data_dir, options.device))
        plot = [sys.executable, str(Path(__file__).with_name("plot_losses.py")), str(options.out)]
        print(f"\nResults: {log_path}\nPlot:    {shlex.join(plot)}")
        return 0
    except NoMNIST as error:
        parser.error(f"argument --data-dir: {error}")
    except KeyboardInterrupt:
        status, reason = 130, "Interrupted"
    except OSError as error:  # a full disk, say, or the reader of the output has gone
        status, reason = 1, f"Stopped: {error}"
    kept = f" All rows so far are in {log_path}." if log_path.exists() else ""
    print(f"\n{reason}.{kept}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
