"""Paged states: training with optimizer states larger than the memory that a limit leaves.

Each row is a process of its own that trains the same model. RLIMIT_DATA (``ulimit -d``) bounds its
private memory: all but code and mapped files. Needs Linux and about 1 GiB on the disk.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import torch
from tqdm import trange

import bnbx as bnb

MIB = 2**20
WIDTH, LAYERS = 2048, 16


def status(key: str) -> float:
    """Return a figure that the kernel has of this process, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def train(
    name: str, steps: int, limit: int | None, paging: bnb.optim.PagedMemory | None
) -> tuple[str, ...]:
    """Fit noise with a deep network and return a row of the table."""
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit * MIB, limit * MIB))
    torch.manual_seed(0)
    layers = [torch.nn.Linear(WIDTH, WIDTH, dtype=torch.bfloat16) for _ in range(LAYERS)]
    model = torch.nn.Sequential(*layers)
    optimizer = bnb.optim.PagedAdEMAMix32bit(model.parameters(), lr=1e-4, paging=paging)
    states = 3 * 4 * sum(p.numel() for p in model.parameters()) / MIB
    row = (name, f"{states:.0f}", "none" if limit is None else str(limit))
    x, y = torch.randn(2, 16, WIDTH, dtype=torch.bfloat16)
    seconds, anonymous = [], 0.0
    for _ in trange(steps, desc=name, unit="step", leave=False):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x).float(), y.float())
        loss.backward()
        start = time.perf_counter()
        try:
            optimizer.step()
        except RuntimeError:
            return (*row, *["out of memory"] + ["-"] * 3)
        seconds.append(time.perf_counter() - start)
        anonymous = max(anonymous, status("RssAnon"))
    # The first step makes the states.
    median = sorted(seconds[1:])[len(seconds[1:]) // 2]
    return (*row, f"{anonymous:.0f}", f"{status('VmHWM'):.0f}", f"{median:.2f}", f"{loss:.6f}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", default=tempfile.gettempdir(), help="where the states go")
    parser.add_argument("--limit", type=int, default=640, help="MiB of private memory")
    parser.add_argument("--resident", type=int, default=96, help="MiB of states in memory")
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    paged = bnb.optim.PagedMemory(arguments.directory)
    bounded = bnb.optim.PagedMemory(
        arguments.directory, budget_bytes=2**30, resident_bytes=arguments.resident * MIB
    )
    runs = [
        ("in memory", None, None),
        ("in memory", arguments.limit, None),
        ("paged", arguments.limit, paged),
        (f"paged, {arguments.resident} MiB resident", arguments.limit, bounded),
    ]
    columns = ("states MiB", "limit MiB", "private MiB", "peak MiB", "s/step", "last loss")
    print(f"{'':26}" + "".join(f"{column:>14}" for column in columns))
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for name, limit, paging in runs:
            row = pool.apply(train, (name, arguments.steps, limit, paging))
            print(f"{row[0]:26}" + "".join(f"{cell:>14}" for cell in row[1:]))
        pool.close()
        pool.join()


if __name__ == "__main__":
    main()
