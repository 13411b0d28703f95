"""Time the script's training loop beside a textbook's: python benchmark.py [DATA_DIR]"""

import statistics
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.datasets import MNIST
from torchvision.transforms import Compose, Normalize, ToTensor

sys.path.insert(0, str(Path(__file__).parents[1]))

import train_fa_vs_bp_linear_model as script

ROWS, STEPS = 11, 125  # of the log; STEPS to a row


def textbook_rows(networks, options):
    """Train with DataLoader, ToTensor, Normalize, and an optimizer for each network."""
    transform = Compose([ToTensor(), Normalize(script.PIXEL_MEAN, script.PIXEL_STD)])
    dataset = MNIST(options.data_dir, transform=transform)
    settings = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.001}
    optimizers = {n: torch.optim.SGD(n.parameters(), lr=0.001, **settings) for n in networks}
    loader = DataLoader(dataset, batch_size=32, shuffle=True)
    for step, (images, labels) in enumerate(loader, start=1):
        for network, optimizer in optimizers.items():
            optimizer.zero_grad()
            F.cross_entropy(network(images.flatten(start_dim=1)), labels).backward()
            optimizer.step()
        if step % STEPS == 0:
            yield step


def main(data_dir="data"):
    arguments = [f"--log-every={STEPS}", f"--data-dir={data_dir}", "--device=cpu"]
    options = script.make_parser().parse_args(arguments)
    digits = script.load_digits("mnist", options.data_dir, options.device)
    own = script.train(script.matched_networks(options, 0), digits, options, seed=0)
    while next(own)["step"] < STEPS:  # past the early rows
        pass
    textbook = textbook_rows(script.matched_networks(options, 0).values(), options)
    ratios = []
    for _row in range(ROWS):
        times = [time.perf_counter()]
        for loop in own, textbook:
            next(loop)
            times.append(time.perf_counter())
        ratios.append((times[2] - times[1]) / (times[1] - times[0]))
    print(f"The textbook's loop takes {statistics.median(ratios):.2f} times as long.")


if __name__ == "__main__":
    main(*sys.argv[1:])
