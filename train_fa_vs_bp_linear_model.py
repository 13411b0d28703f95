"""Train matched linear networks by feedback alignment and backpropagation, on MNIST.

Three networks of 784 pixels, 20 hidden units and 10 outputs, without non-linearity, start from the
same weights and see the same mini-batches. All that differs is the message by which the error e at
the outputs teaches the hidden layer:

    fa       B^T e: e sent back through a fixed random matrix B (feedback alignment)
    bp       W^T e: e sent back through the weights W of the read-out (backpropagation)
    shallow  none: the hidden layer stays as it was drawn, and only the read-out learns

A random message can teach because W comes to resemble B. The log has two angles to see it by, that
between the messages B^T e and W^T e, and that between the matrices. Both start near 90 degrees and
fall; then FA's loss follows. With --freeze-read-out W cannot turn, and FA fails.
"""

import argparse
import json
import math
import shlex
import socket
import sys
from collections.abc import Iterator
from datetime import datetime
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple, TextIO

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.datasets import MNIST

from fa_linear import FALinear

PIXELS, CLASSES = 28 * 28, 10
TRAIN_SIZE, TEST_SIZE = 60_000, 10_000  # MNIST's; the stand-in has as many
PIXEL_MEAN, PIXEL_STD = 0.1307, 0.3081  # of MNIST's training images, scaled to [0, 1]


class Digits(NamedTuple):
    """A data set on the device: images float32 (n, 784), normalised; labels int64 (n,)."""

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def matched_networks(options: argparse.Namespace, seed: int) -> nn.ModuleDict:
    """Return {rule: network}, linear networks 784-hidden-10 that start from the same weights.

    Weights and biases are PyTorch's own initial ones, times init_scale. FA's feedback B is drawn
    as the weight W of its read-out is, but independently, and is not scaled.
    """
    torch.manual_seed(seed)
    # FALinear changes what it sends down: as read-out, it teaches the hidden layer below by FA.
    fa = nn.Sequential(nn.Linear(PIXELS, options.hidden), FALinear(options.hidden, CLASSES))
    for parameter in fa.parameters():
        parameter.data.mul_(options.init_scale)
    networks = nn.ModuleDict({"fa": fa})
    for rule in "bp", "shallow":
        hidden, read_out = nn.Linear(PIXELS, options.hidden), nn.Linear(options.hidden, CLASSES)
        networks[rule] = nn.Sequential(hidden, read_out)
        networks[rule].load_state_dict(fa.state_dict(), strict=False)  # all but the feedback
    networks["shallow"][0].requires_grad_(False)
    if options.freeze_read_out:
        del networks["shallow"]  # nothing would learn in it
        for network in networks.values():
            network[1].requires_grad_(False)
    return networks


def train(
    networks: nn.ModuleDict, digits: Digits, options: argparse.Namespace, seed: int
) -> Iterator[dict[str, float]]:
    """Train all networks on the same mini-batches in the same order; yield the log's rows.

    A generator: it trains only as far as its rows are asked for. A row is {column: value}: the
    epoch (from 0), the step in it, and what `measure` returns after that step, for the mean losses
    since the row before, each taken before its own update. There is a row for step 0, before any
    update; one every `log_every` steps and at each epoch's last; and in the first epoch, as
    alignment begins early, one at steps 1, 2, 4, ... below `log_every`.
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
                yield {"epoch": 0, "step": 0} | measure(networks, losses, digits)
            # No two networks share a weight, so the sum gives each just its own gradient.
            losses.sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            losses_since_row.append(losses.detach())
            early = epoch == 0 and step < options.log_every and step.bit_count() == 1  # 1, 2, 4, 8
            if early or step % options.log_every == 0 or step == len(batches):
                losses = torch.stack(losses_since_row).mean(dim=0)
                yield {"epoch": epoch, "step": step} | measure(networks, losses, digits)
                losses_since_row.clear()


@torch.no_grad()
def measure(networks: nn.ModuleDict, losses: Tensor, digits: Digits) -> dict[str, float]:
    """Return {column: value}: training losses, as given; test errors; FA's two angles.

    The losses have shape (networks,). A test error is the percentage of the test images that a
    network misclassifies. The angles are in degrees: `message_angle` between B^T e and W^T e, both
    in FA's network, a mean over test images (as in Lillicrap et al. 2016, Figs. 1 and 2);
    `weight_angle` between B and W, each taken as one long vector.
    """
    measures = {f"{rule}_loss": loss for rule, loss in zip(networks, losses, strict=True)}
    outputs = {rule: network(digits.test_images) for rule, network in networks.items()}
    for rule in networks:
        wrong = outputs[rule].argmax(dim=1) != digits.test_labels
        measures[f"{rule}_error"] = 100 * wrong.float().mean()
    if "fa" in networks:
        W, B = networks["fa"][1].weight, networks["fa"][1].feedback
        # The gradient of the cross-entropy with respect to the outputs, one image a row.
        e = outputs["fa"].softmax(dim=1) - F.one_hot(digits.test_labels, CLASSES)
        # Where e is 0 there is no message, so no angle: the mean leaves it out.
        measures["message_angle"] = angle(e @ B, e @ W).nanmean()
        measures["weight_angle"] = angle(B.flatten(), W.flatten())
    values = torch.stack(list(measures.values())).tolist()  # waits for the device, once
    return dict(zip(measures, values, strict=True))


def angle(a: Tensor, b: Tensor) -> Tensor:
    """Return the angles in degrees, shape (...), between vectors (..., n); nan where one is 0."""
    # F.cosine_similarity would say 0 of a vector that is 0: a false 90 degrees.
    cosine = (a * b).sum(dim=-1) / (a.norm(dim=-1) * b.norm(dim=-1))
    return cosine.clamp(-1, 1).acos().rad2deg()  # rounding may leave [-1, 1]


def load_digits(dataset: str, data_dir: Path, device: str) -> Digits:
    """Return MNIST, or a stand-in: for "synthetic", and for "auto" if the download fails.

    Raises RuntimeError if MNIST is needed and cannot be had, and if its files are damaged.
    """
    name, tensors = "random patterns (not MNIST)", None
    if dataset != "synthetic":
        print(f"Looking for MNIST in {data_dir}, else downloading it ...", flush=True)
        try:
            name, tensors = "MNIST", load_mnist(data_dir)
        except Exception as error:  # torchvision raises nearly anything on a damaged file
            reason = " ".join(str(error).split()) or type(error).__name__
            if any(data_dir.glob("MNIST/raw/*-ubyte")):  # more than a download that never began
                problem = f"{data_dir / 'MNIST'} is damaged or incomplete; delete it ({reason})"
                raise RuntimeError(problem) from error
            # Other errors, such as a folder that cannot be written to, are for the user to mend.
            failed = isinstance(error, (RuntimeError, HTTPException, ConnectionError, TimeoutError))
            if dataset == "mnist" or not failed:
                raise RuntimeError(f"no MNIST in {data_dir} ({reason})") from error
            print(f"WARNING: MNIST cannot be downloaded ({reason})", file=sys.stderr)
            print("WARNING: random patterns stand in; no figure below is MNIST's", file=sys.stderr)
    tensors = tensors or random_patterns()
    return Digits(name, *(tensor.to(device) for tensor in tensors))


def load_mnist(data_dir: Path) -> list[Tensor]:
    """Return training images and labels, test images and labels, downloaded if need be."""
    socket.setdefaulttimeout(10)  # seconds; a silent server would else hold the run forever
    tensors = []
    for train_part, size in (True, TRAIN_SIZE), (False, TEST_SIZE):
        mnist = MNIST(data_dir, train=train_part, download=True)
        complete = mnist.data.shape == (size, 28, 28) and mnist.targets.shape == (size,)
        if not complete or mnist.targets.max() >= CLASSES:
            raise ValueError(f"not {size} images of 28 x 28 with labels from 0 to 9")
        pixels = mnist.data.flatten(start_dim=1) / 255
        tensors += [(pixels - PIXEL_MEAN) / PIXEL_STD, mnist.targets]
    return tensors


def random_patterns() -> list[Tensor]:
    """Return a stand-in for what `load_mnist` returns: ten smooth patterns under smooth noise."""
    generator = torch.Generator().manual_seed(0)

    def smooth(n: int) -> Tensor:
        coarse = torch.randn(n, 1, 7, 7, generator=generator)
        return F.interpolate(coarse, size=(28, 28), mode="bicubic").flatten(start_dim=1)

    patterns, tensors = smooth(CLASSES), []
    for size in TRAIN_SIZE, TEST_SIZE:
        labels = torch.randint(CLASSES, (size,), generator=generator)
        images = patterns[labels] + 2.1 * smooth(size)  # 2.1 makes them about as hard as MNIST
        tensors += [images / images.std(), labels]
    return tensors


def compare(options: argparse.Namespace, digits: Digits, log: TextIO) -> None:
    """Train a matched set of networks for each seed; log and print each row when it comes."""
    last_rows = []
    for seed in options.seeds:
        networks = matched_networks(options, seed).to(options.device)
        for measures in train(networks, digits, options, seed):
            row = {"seed": seed} | measures
            if log.tell() == 0:
                print(*row, sep=",", file=log)
                print(*row, sep="|")
            values = [v if isinstance(v, int) else f"{v:.6g}" for v in row.values()]
            print(*values, sep=",", file=log, flush=True)  # a run that is killed keeps its rows
            values = [str(v) if isinstance(v, int) else f"{v:#.4g}" for v in row.values()]
            print(*map(str.rjust, values, map(len, row)), sep="|", flush=True)
        last_rows.append(row)
    if len(last_rows) > 1:
        print(f"\nLast rows, mean ± standard deviation over {len(last_rows)} seeds:")
        for name in list(row)[3:]:  # all but seed, epoch and step
            values = torch.tensor([row[name] for row in last_rows])
            print(f"{name:13} {values.mean():#.4g} ± {values.std():.2g}")


def within(low: float, high: float):
    """Return an argparse type: a number from low to high, whole if they are."""

    def number(text: str) -> float:
        value = type(low)(text)
        if not low <= value <= high:  # as nan is not
            raise argparse.ArgumentTypeError(f"{text} is not from {low} to {high}")
        return value

    number.__name__ = type(low).__name__  # argparse's word for it: "invalid int value"
    return number


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the options, each with its default."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    accelerator = torch.accelerator.is_available() and torch.accelerator.current_accelerator()
    new_folder = datetime.now().strftime("runs/%Y-%m-%d_%H-%M-%S-%f")

    def add(name: str, type, default, help: str, **settings):
        parser.add_argument(name, type=type, default=default, help=help, **settings)

    # Momentum, weight decay and mini-batch are those of L0SG/feedback-alignment-pytorch.
    text = "never train W and b of the read-out, so that W cannot come to resemble B"
    parser.add_argument("--freeze-read-out", action="store_true", help=text)
    add("--hidden", within(1, 100_000), 20, "hidden units; with 1000, shallow does as well")
    add("--init-scale", within(1e-6, 1e2), 1.0, "multiplies the initial weights, but not B")
    add("--epochs", within(1, 10_000), 5, "passes over the training images")
    add("--batch-size", within(1, TRAIN_SIZE), 32, "images in a mini-batch")
    add("--lr", within(1e-9, 1e6), 1e-3, "learning rate of SGD")
    add("--momentum", within(0.0, 0.9999), 0.9, "Nesterov momentum; 0: none")
    add("--weight-decay", within(0.0, 1.0), 1e-3, "weight decay (L2); 0: none")
    add("--log-every", within(1, TRAIN_SIZE), 125, "steps between rows; 125: 15 rows an epoch")
    add("--seeds", within(0, 2**32 - 1), [0], "one matched set of networks each", nargs="+")
    add("--dataset", str, "auto", "auto: mnist if possible", choices=["auto", "mnist", "synthetic"])
    add("--data-dir", Path, "data", "where MNIST is, or is downloaded to")
    add("--device", str, str(accelerator or "cpu"), "cpu, cuda, ...")
    add("--out", Path, new_folder, "new folder for losses.csv and config.json")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison that the arguments ask for; return the exit status."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    options.seeds = list(dict.fromkeys(options.seeds))  # each once
    try:
        digits = load_digits(options.dataset, options.data_dir, options.device)
    except (RuntimeError, AssertionError) as error:  # no MNIST, or no such device
        parser.error(str(error).partition("\n")[0])
    try:
        options.out.mkdir(parents=True)  # fails if it is there: no run writes into another's
    except OSError as error:
        parser.error(f"argument --out: {error}")
    steps = math.ceil(len(digits.train_images) / options.batch_size)
    config = vars(options) | {"dataset_used": digits.name, "steps_per_epoch": steps}
    config |= {"torch": torch.__version__}
    (options.out / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n")
    print(f"Data: {digits.name}. Device: {options.device}. An epoch has {steps} steps.")
    print("Losses: means since the row before. Errors: % of the test images. Angles: degrees.\n")
    with open(options.out / "losses.csv", "w") as log:
        try:
            compare(options, digits, log)
        except KeyboardInterrupt:
            print(f"\nInterrupted. All rows so far are in {log.name}.", file=sys.stderr)
            return 130
    plot = [sys.executable, str(Path(__file__).with_name("plot_losses.py")), str(options.out)]
    print(f"\nResults: {log.name}\nPlot:    {shlex.join(plot)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
