"""Training in parts, by processes that share only files."""

import torch
from torch import nn

from mfac_linalg.torch import MFAC


def train(folder, start, stop):
    """Train a small model from the file of one step to that of another; return its end."""
    torch.manual_seed(0)
    model, generator = nn.Linear(5, 3), torch.Generator()
    optimizer = MFAC(model.parameters(), 0.1, window=4, damping=0.1, momentum=0.9)
    if start:
        state = torch.load(f"{folder}/{start}.pt", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    for step in range(start, stop):
        optimizer.zero_grad()
        model(torch.randn(8, 5, generator=generator.manual_seed(step))).square().mean().backward()
        optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, f"{folder}/{stop}.pt")
    return model.state_dict()
