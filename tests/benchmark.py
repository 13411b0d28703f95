"""How fast the script's training step is, against the textbook's and against the floor.

Usage: python tests/benchmark.py [DATA_DIR]

Prints medians over ROUNDS rounds that alternate within one process, for the FA and BP
pair at the script's defaults. On another device than the CPU, a round ends when the
device has finished.
"""

import itertools
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.datasets import MNIST
from torchvision.transforms import Compose, Normalize, ToTensor

sys.path.insert(0, str(Path(__file__).parents[1]))

import train_fa_vs_bp_linear_model as script

ROUNDS, STEPS = 11, 125  # 125 steps: one row of the log


class MNISTOf(MNIST):
    """torchvision's MNIST with given images, which may be the stand-in's."""

    def __init__(self, images, labels, transform):
        self.data, self.targets = images.cpu().view(-1, 28, 28), labels.cpu()
        self.transform, self.target_transform = transform, None


def own_steps(digits, options):
    """The script's training loop, its row of the log included."""
    networks = script.matched_networks(
        ["fa", "bp"], options.hidden, options.init_scale, seed=0
    )
    rows = script.train(networks, digits, options, seed=0)
    return lambda: next(rows)


def sgd(parameters, options, fused=None):
    return torch.optim.SGD(
        parameters,
        lr=options.lr,
        momentum=options.momentum,
        nesterov=True,
        weight_decay=options.weight_decay,
        fused=fused,
    )


def textbook_steps(digits, options):
    """What one would write without thinking of speed."""
    transform = Compose([ToTensor(), Normalize(script.PIXEL_MEAN, script.PIXEL_STD)])
    dataset = MNISTOf(digits.train_images, digits.train_labels, transform)
    loader = DataLoader(dataset, batch_size=options.batch_size, shuffle=True)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    networks, optimizers = [], []
    for rule in "fa", "bp":
        network = nn.Sequential(nn.Flatten(), script.make_network(rule, options.hidden))
        networks.append(network.to(options.device))
        optimizers.append(sgd(network.parameters(), options))

    def steps():
        for images, labels in itertools.islice(batches, STEPS):
            images, labels = images.to(options.device), labels.to(options.device)
            for network, optimizer in zip(networks, optimizers):
                optimizer.zero_grad()
                loss = F.cross_entropy(network(images), labels)
                loss.backward()
                optimizer.step()

    return steps


def floor_steps(digits, options, in_threads):
    """What no implementation can avoid: for each network the hidden layer's two matrix
    products, forward and weight gradient, and one pass of the optimizer over its weights.

    The networks take turns on all cores, or each has a thread and a core of its own.
    """
    images = script.normalise(digits.train_images[: options.batch_size])
    error = torch.randn(options.batch_size, options.hidden, device=options.device)
    weights = [
        nn.Parameter(torch.randn(options.hidden, 784, device=options.device) / 100)
        for _ in range(2)
    ]
    optimizers = [sgd([weight], options, fused=True) for weight in weights]
    threads = ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=[1])
    for_each = threads.map if in_threads else map

    @torch.no_grad()
    def one_network(weight, optimizer):
        for _ in range(STEPS):
            torch.mm(images, weight.T)
            weight.grad = torch.mm(error.T, images)
            optimizer.step()
            optimizer.zero_grad()

    return lambda: list(for_each(one_network, weights, optimizers))


def seconds(steps, device):
    started = time.perf_counter()
    steps()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - started


def main(data_dir="data"):
    options = script.make_parser().parse_args([f"--log-every={STEPS}", "--epochs=10"])
    digits = script.load_digits("auto", Path(data_dir)).to(options.device)
    loops = {
        "this script": own_steps(digits, options),
        "textbook": textbook_steps(digits, options),
        "floor": floor_steps(digits, options, in_threads=False),
        "floor, in threads": floor_steps(digits, options, in_threads=True),
    }
    times = {name: [] for name in loops}
    for round_ in range(ROUNDS + 1):
        for name, steps in loops.items():
            elapsed = seconds(steps, options.device)
            if round_ > 0:  # the first warms up
                times[name].append(elapsed)

    def median_ratio(one, other):
        return statistics.median(map(float.__truediv__, times[one], times[other]))

    print(
        f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads, "
        f"{digits.name}; FA and BP, medians of {ROUNDS} rounds of {STEPS} steps\n"
    )
    print("loop              | ms a step | times the floor | textbook's time over it")
    print("---               |       --- |             --- |                     ---")
    for name in loops:
        milliseconds = 1000 * statistics.median(times[name]) / STEPS
        print(
            f"{name:17} | {milliseconds:9.2f} | {median_ratio(name, 'floor'):15.2f} | "
            f"{median_ratio('textbook', name):23.2f}"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
