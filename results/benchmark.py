"""Time the script's training loop beside a textbook's: python results/benchmark.py DATA_DIR"""

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


def textbook_rows(networks, data_dir):
    """Train with DataLoader, ToTensor, Normalize, and an optimizer for each network."""
    transform = Compose([ToTensor(), Normalize(0.1307, 0.3081)])
    dataset = MNIST(data_dir, transform=transform)
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


def seconds_to_next(loop):
    start = time.perf_counter()
    next(loop)
    return time.perf_counter() - start


def main(data_dir):
    torch.set_num_threads(1)  # the script's default
    args = script.make_parser().parse_args([f"--log-every={STEPS}"])
    data = script.load_data("mnist", data_dir)
    networks = script.matched_networks(data, args, seed=0)
    optimizer = script.make_optimizer(networks, args)
    own = script.train(networks, optimizer, data, args, 0, script.measure)
    while next(own)["step"] < STEPS:  # past the early rows
        pass
    textbook = textbook_rows(script.matched_networks(data, args, seed=0).values(), data_dir)
    ratios = []
    for _row in range(ROWS):
        own_seconds = seconds_to_next(own)
        ratios.append(seconds_to_next(textbook) / own_seconds)
    print(f"The textbook's loop takes {statistics.median(ratios):.2f} times as long.")


if __name__ == "__main__":
    main(*sys.argv[1:])
