"""One side of ``test_checkpoints.py``: a process in which transformers uses one of the libraries.

``python checkpoint_side.py LIBRARY write FOLDER`` quantizes the small models and saves them;
``python checkpoint_side.py LIBRARY read FOLDER RESULT`` loads each of them and saves what it got.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

ARCHITECTURES = ("llama", "gpt2")


def use(library: str) -> None:
    """Decide what ``import bitsandbytes`` gives, before transformers asks."""
    if library == "bnbx":
        import bnbx.compat.bitsandbytes  # noqa: F401


def write(folder: Path) -> None:
    from tests.clients import models

    for architecture in ARCHITECTURES:
        plain = folder / architecture
        models.save(architecture, plain)
        for name in models.QUANTIZATIONS:
            models.load(plain, name).save_pretrained(folder / f"{architecture} {name}")


@torch.no_grad()
def seen(model: Any) -> dict[str, Any]:
    """Return the logits, and the weights in floating point."""
    from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant
    from bitsandbytes.nn import Linear4bit, Linear8bitLt
    from tests.clients import models

    weights = {}
    for name, layer in model.named_modules():
        if isinstance(layer, Linear4bit):
            weights[name] = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        elif isinstance(layer, Linear8bitLt):
            weights[name] = int8_vectorwise_dequant(layer.weight.data, layer.weight.SCB)
    # In training mode, where bitsandbytes leaves its weights as they are; nothing here is random.
    return {"weights": weights, "logits": models.outputs(model.train())}


def read(folder: Path, result: Path) -> None:
    from tests.clients import models

    found = {}
    for path in sorted(folder.iterdir()):
        if path.name not in ARCHITECTURES:
            found[path.name] = seen(models.load(path))
    torch.save(found, result)


def main() -> None:
    library, action, *paths = sys.argv[1:]
    use(library)
    (write if action == "write" else read)(*map(Path, paths))


if __name__ == "__main__":
    main()
