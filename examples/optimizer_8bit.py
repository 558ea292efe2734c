"""8-bit AdamW: the states of an optimizer in a quarter of the memory."""

import copy

import torch

import bnbx as bnb


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """Fit a fixed random function for 100 steps and return the last loss."""
    generator = torch.Generator().manual_seed(1)
    target = torch.randn(256, 256, generator=generator)
    for _ in range(100):
        x = torch.randn(128, 256, generator=generator)
        loss = torch.nn.functional.mse_loss(model(x), torch.tanh(x @ target))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the memory of the optimizer's states."""
    tensors = (t for state in optimizer.state.values() for t in state.values())
    unique = {t.data_ptr(): t.nbytes for t in tensors if isinstance(t, torch.Tensor)}
    return sum(unique.values())


torch.manual_seed(0)
layers = [torch.nn.Linear(256, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 256)]
first = torch.nn.Sequential(*layers)
second = copy.deepcopy(first)
ours = bnb.optim.AdamW8bit(first.parameters(), lr=1e-3, weight_decay=0.01)
theirs = torch.optim.AdamW(second.parameters(), lr=1e-3, weight_decay=0.01)
for name, model, optimizer in (("AdamW8bit", first, ours), ("torch AdamW", second, theirs)):
    loss = train(model, optimizer)
    print(f"{name:12} loss {loss:.4f}, states {state_bytes(optimizer) / 1024:.0f} KiB")
