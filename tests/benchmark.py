"""Time the training loop beside the textbook's and one by hand: python benchmark.py [DATA_DIR]"""

import itertools
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

ROUNDS, STEPS = 11, 125  # 125 steps: one row of the log


def textbook_loop(networks, digits, options, _seed):
    """DataLoader with ToTensor and Normalize, and an optimizer for each network."""
    transform = Compose([ToTensor(), Normalize(script.PIXEL_MEAN, script.PIXEL_STD)])
    dataset = MNIST(options.data_dir, transform=transform)
    loader = DataLoader(dataset, batch_size=options.batch_size, shuffle=True)
    settings = {"lr": options.lr, "momentum": options.momentum, "nesterov": True}
    settings["weight_decay"] = options.weight_decay
    optimizers = [torch.optim.SGD(n.parameters(), **settings) for n in networks.values()]
    for images, labels in itertools.chain.from_iterable(itertools.repeat(loader)):
        images, labels = images.flatten(start_dim=1).to(options.device), labels.to(options.device)
        for network, optimizer in zip(networks.values(), optimizers, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()
        yield


@torch.no_grad()
def hand_written_loop(networks, digits, options, seed):
    """The same gradients and updates, of the same mini-batches, written out: no autograd."""
    feedbacks = [getattr(read_out, "feedback", None) for _hidden, read_out in networks.values()]
    weights = [list(network.parameters()) for network in networks.values()]  # changed in place
    velocities = [[torch.zeros_like(p) for p in parameters] for parameters in weights]
    shuffle = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(digits.train_labels), generator=shuffle).to(options.device)
        for mini_batch in order.split(options.batch_size):
            x = digits.train_images[mini_batch]
            target = F.one_hot(digits.train_labels[mini_batch], script.CLASSES)
            for (W0, b0, W, b), velocity, B in zip(weights, velocities, feedbacks, strict=True):
                h = torch.addmm(b0, x, W0.T)
                e = torch.addmm(b, h, W.T).softmax(dim=1).sub_(target).div_(len(x))
                message = e @ (W if B is None else B)
                gradients = [message.T @ x, message.sum(dim=0), e.T @ h, e.sum(dim=0)]
                for p, gradient, v in zip((W0, b0, W, b), gradients, velocity, strict=True):
                    if p.requires_grad:
                        gradient.add_(p, alpha=options.weight_decay)
                        v.mul_(options.momentum).add_(gradient)
                        p.sub_(gradient.add_(v, alpha=options.momentum), alpha=options.lr)
            yield


def seconds(loop, times):
    started = time.perf_counter()
    for _ in range(times):
        next(loop)
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - started


def main(data_dir="data"):
    options = script.make_parser().parse_args([f"--log-every={STEPS}", f"--data-dir={data_dir}"])
    digits = script.load_digits("mnist", options.data_dir, options.device)
    print(f"torch {torch.__version__}, {options.device}; {ROUNDS} rounds of {STEPS} steps, medians")
    loops = []
    for make_loop in script.train, textbook_loop, hand_written_loop:
        networks = script.matched_networks(options, seed=0).to(options.device)
        del networks["shallow"]  # FA against BP
        loops.append(make_loop(networks, digits, options, 0))
    while next(loops[0])["step"] < STEPS:  # past the early rows
        pass
    turns = list(zip(loops, [1, STEPS, STEPS], strict=True))  # the script's yields are rows
    rounds = [[seconds(*turn) for turn in turns] for _ in range(ROUNDS + 1)][1:]
    own, textbook, by_hand = (statistics.median(times) for times in zip(*rounds, strict=True))
    speed = statistics.median(textbook / own for own, textbook, _ in rounds)
    cost = statistics.median(own / by_hand for own, _, by_hand in rounds)
    print(f"{1000 * own / STEPS:.2f} ms a step, with its share of the log,")
    print(f"{speed:.2f} times as fast as the textbook ({1000 * textbook / STEPS:.2f} ms),")
    print(f"{cost:.2f} times the time by hand ({1000 * by_hand / STEPS:.2f} ms)")


if __name__ == "__main__":
    main(*sys.argv[1:])
