"""How many pictures a second of CPU time an enhancer's training takes, on one core.

python scripts/research/measure_steps.py CONFIG [key=value ...]

The pictures are random, and time that other programs take does not count. Prints the number of
parameters and the pictures per CPU second of the fastest of several steps, with their optimizers.
"""

from __future__ import annotations

import argparse
import time

import torch

from dr2pipe.core.config import load_config
from dr2pipe.core.precision import resolve_precision, warn_if_slow
from dr2pipe.core.seeding import random_stream
from dr2pipe.training.recipes.enhancer import EnhancerRecipe, EnhancerTrainConfig

_STEPS = 4


def main() -> None:
    """Read the arguments, take the steps and print the speed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    config = load_config(EnhancerTrainConfig, options.config, ["data.path=-", *options.overrides])
    config.precision = resolve_precision(config.precision, "cpu")
    warn_if_slow(config.precision, "cpu")
    torch.set_num_threads(1)
    recipe = EnhancerRecipe(config)
    generator = torch.Generator().manual_seed(config.seed)
    with random_stream(generator):
        trained = recipe.build()
    networks = {name: built.network for name, built in trained.items()}
    in_bf16 = torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16")
    for network in networks.values():
        network.forward = in_bf16(network.forward)  # as accelerate does
    count, side = config.batch_size, config.data.size
    size = config.pairs.input_size
    seconds = []
    with random_stream(generator):
        for step in range(_STEPS):
            batch = {
                "image": torch.rand(count, 3, side, side) * 2 - 1,
                "input": torch.rand(count, 3, size, size) * 2 - 1,
                "seed": torch.arange(count) + step,
                "step": step,
            }
            start = time.process_time()
            for name, loss, _ in recipe.step(networks, batch):
                loss.backward()
                optimizer = trained[name].optimizer
                assert optimizer is not None
                optimizer.step()
                optimizer.zero_grad()
            seconds.append(time.process_time() - start)
    parameters = sum(p.numel() for p in networks["enhancer"].parameters())
    speed = count / min(seconds[1:])
    print(f"{parameters / 1e6:.2f} M parameters, {speed:.2f} pictures per CPU second")


if __name__ == "__main__":
    main()
