"""Linear classifiers on cached features: the grid of this project, the same grid in PyTorch, and scikit-learn's SGDClassifier.

    taskset -c 0 python -m benchmarks.linear_probe --rounds=3 --epochs=2          # on one core; alternating rounds, medians
    taskset -c 0 python -m benchmarks.linear_probe --rounds=1 --epochs=100        # whole

Features are drawn: classes with centres, and noise. All contestants train `--heads` learning rates for `--epochs` epochs.
PyTorch does what the grid of this project does, operation by operation, on the same batches: heads stacked in one matrix product,
SGD with momentum .9, a vector of rates. SGDClassifier trains one head after the other, one image at a time, one class against
the others; it is given `--sklearn_heads` of the rates, and its time is scaled by heads / sklearn_heads. Compilation is not measured.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from sklearn.linear_model import SGDClassifier

from sere_jax.evals.frozen import linear_grid
from sere_jax.evals.frozen.linear_grid import GridSettings

Best = float  # accuracy of the best head on the test features


def drawn(images: int, width: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    centres = np.random.default_rng(0).normal(size=(classes, width)) * 0.2
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images).astype(np.int32)
    return (centres[labels] + rng.normal(size=(images, width))).astype(np.float32), labels


def by_grid(train, test, classes: int, settings: GridSettings) -> Best:
    columns = {"all": (0, train[0].shape[1])}
    heads = linear_grid.train(*train, columns, classes=classes, settings=settings)
    return max(linear_grid.accuracies(heads, *test, columns)["all"])


def by_torch(train, test, classes: int, settings: GridSettings) -> Best:
    features, labels = torch.from_numpy(train[0]), torch.from_numpy(train[1]).long()
    count, width, batch = len(settings.rates), features.shape[1], settings.batch_size
    kernel = (0.01 * torch.randn(width, 1, classes)).repeat(1, count, 1).reshape(width, count * classes)
    bias = torch.zeros(count * classes)
    momenta = torch.zeros_like(kernel), torch.zeros_like(bias)
    rates = torch.tensor(settings.rates).float() * batch / 256
    for epoch in range(settings.epochs):
        now = (rates * (1 + math.cos(math.pi * epoch / settings.epochs)) / 2).repeat_interleave(classes)
        for rows in linear_grid.batches(len(labels), batch, settings.seed, epoch):
            rows = torch.from_numpy(rows).long()
            images, target = features[rows], labels[rows]
            error = torch.softmax((images @ kernel + bias).reshape(batch, count, classes), dim=-1)
            error[torch.arange(batch), :, target] -= 1
            error = error.reshape(batch, -1) / batch
            momenta[0].mul_(settings.momentum).add_(images.T @ error)
            momenta[1].mul_(settings.momentum).add_(error.sum(0))
            kernel -= now * momenta[0]
            bias -= now * momenta[1]
    predicted = (torch.from_numpy(test[0]) @ kernel + bias).reshape(-1, count, classes).argmax(-1)
    return float((predicted == torch.from_numpy(test[1])[:, None]).float().mean(0).max())


def by_sklearn(train, test, classes: int, settings: GridSettings) -> Best:
    heads = (
        SGDClassifier("log_loss", alpha=1e-9, max_iter=settings.epochs, tol=None, learning_rate="constant", eta0=rate / 256)
        for rate in settings.rates
    )
    return max(head.fit(*train).score(*test) for head in heads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"images": 50_000, "width": 384, "classes": 10, "heads": 45, "epochs": 100, "batch_size": 1024, "rounds": 3, "sklearn_heads": 1}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    train, test = (drawn(n, options.width, options.classes, seed) for n, seed in ((options.images, 1), (10_000, 2)))
    rates = linear_grid.RATES[: options.heads]
    settings = GridSettings(rates, options.epochs, options.batch_size)
    few = GridSettings(rates[len(rates) // 2 :][: options.sklearn_heads], options.epochs)
    contestants: dict[str, tuple[Callable[..., Best], GridSettings, float]] = {
        "this project": (by_grid, settings, 1.0),
        "PyTorch, stacked heads": (by_torch, settings, 1.0),
        "scikit-learn SGDClassifier": (by_sklearn, few, options.heads / max(options.sklearn_heads, 1)),
    }
    if not options.sklearn_heads:
        del contestants["scikit-learn SGDClassifier"]
    by_grid(train, test, options.classes, GridSettings(rates, 1, options.batch_size))  # compiles
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    best = {}
    for _ in range(options.rounds):
        for name, (run, its, scale) in contestants.items():
            began = time.process_time()
            best[name] = run(train, test, options.classes, its)
            seconds[name].append((time.process_time() - began) * scale)
    ours = statistics.median(seconds["this project"])
    print(f"{options.images:,} images, width {options.width}, {options.heads} heads, {options.epochs} epochs; CPU seconds, medians")
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"{name:28} {median:9.1f} s  {median / ours:6.2f} x  best head {100 * best[name]:.1f} %")


if __name__ == "__main__":
    main()
