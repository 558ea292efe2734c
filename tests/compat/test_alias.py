"""`import bnbx.compat.bitsandbytes`: bnbx under the name bitsandbytes, and the traps in that."""

from __future__ import annotations

import bnbx

from .processes import REGISTERED, other_bitsandbytes, run

#: Modules that programs import from, and a name that is in each.
MODULES = {
    "bitsandbytes.autograd._functions": "MatMul4Bit",
    "bitsandbytes.cextension": "lib",
    "bitsandbytes.consts": "PACKAGE_DIR",
    "bitsandbytes.cuda_specs": "get_cuda_specs",
    "bitsandbytes.functional": "quantize_4bit",
    "bitsandbytes.nn": "Linear4bit",
    "bitsandbytes.nn.modules": "Params4bit",
    "bitsandbytes.nn.parametrize": "replace_parameter_4bit",
    "bitsandbytes.optim": "AdamW8bit",
    "bitsandbytes.optim.adagrad": "Adagrad8bit",
    "bitsandbytes.optim.adam": "Adam8bit",
    "bitsandbytes.optim.adamw": "AdamW8bit",
    "bitsandbytes.optim.ademamix": "AdEMAMix",
    "bitsandbytes.optim.lamb": "LAMB",
    "bitsandbytes.optim.lars": "LARS",
    "bitsandbytes.optim.lion": "Lion",
    "bitsandbytes.optim.optimizer": "GlobalOptimManager",
    "bitsandbytes.optim.rmsprop": "RMSprop",
    "bitsandbytes.optim.sgd": "SGD",
    "bitsandbytes.utils": "pack_dict_to_tensor",
}


def test_modules_have_specs_and_names():
    """Trap 1: a bare entry of sys.modules has no spec, and four libraries raise."""
    run(
        REGISTERED
        + f"""
import importlib, importlib.util, sys
for name, attribute in {MODULES}.items():
    before = importlib.util.find_spec(name)
    module = importlib.import_module(name)
    assert hasattr(module, attribute), name
    after = importlib.util.find_spec(name)
    assert after is module.__spec__ is sys.modules[name].__spec__
    assert after.origin == before.origin == module.__file__
    parent, _, child = name.rpartition(".")
    assert getattr(sys.modules[parent], child) is module
"""
    )


def test_the_package_has_a_spec_of_its_own():
    run(
        """
import importlib.util
import bnbx.compat
assert importlib.util.find_spec("bnbx.compat.bitsandbytes") is not None
import bnbx.compat.bitsandbytes as ours
import bitsandbytes
assert ours is bitsandbytes
spec = importlib.util.find_spec("bitsandbytes")
assert spec.name == bitsandbytes.__name__ == "bitsandbytes"
assert spec.loader is not None and spec.submodule_search_locations
assert bitsandbytes.__version__ == "0.50.2"
assert "multi_backend" in bitsandbytes.features
assert {"cpu", "cuda"} <= bitsandbytes.supported_torch_devices
"""
    )


def test_submodules_are_the_same_objects():
    """Trap 2: the submodules imported again are second classes and a second manager."""
    run(
        REGISTERED
        + """
import importlib, pkgutil, sys
import bnbx, bitsandbytes
for package in (bnbx.functional, bnbx.nn, bnbx.optim):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        below = found.name.removeprefix("bnbx.")
        ours = importlib.import_module(found.name)
        spec = ours.__spec__
        assert importlib.import_module("bitsandbytes." + below) is ours, below
        assert importlib.import_module("bnbx.compat.bitsandbytes." + below) is ours, below
        assert ours.__spec__ is spec and spec.name == found.name
from bitsandbytes.optim import GlobalOptimManager
assert GlobalOptimManager.get_instance() is bnbx.optim.GlobalOptimManager.get_instance()
import bitsandbytes.nn as nn
assert nn.Params4bit is bnbx.nn.Params4bit
assert bitsandbytes.autograd._functions.MatmulLtState is bnbx.MatmulLtState
assert bitsandbytes.nn.modules.Linear8bitLt is bnbx.nn.Linear8bitLt
files = [getattr(module, "__file__", None) or "" for module in set(sys.modules.values())]
files = [file for file in files if "/bnbx/" in file]
assert len(files) == len(set(files))
"""
    )


def test_an_override_through_the_alias_is_seen_by_the_optimizer():
    run(
        REGISTERED
        + """
import torch, bnbx, bitsandbytes as bnb
embedding = torch.nn.Embedding(64, 64)
bnb.optim.GlobalOptimManager.get_instance().register_module_override(
    embedding, "weight", {"optim_bits": 32}
)
optimizer = bnbx.optim.Adam8bit(embedding.parameters())
embedding.weight.sum().backward()
optimizer.step()
assert optimizer.state[embedding.weight]["state1"].dtype == torch.float32
"""
    )


def test_classes_say_bitsandbytes():
    """Trap 3: transformers' Trainer tests `"bitsandbytes" in str(optimizer_cls)`."""
    run(
        """
import inspect, pickle, sys, typing
import bnbx
before = pickle.dumps(bnbx.optim.AdamW8bit)
import bnbx.compat.bitsandbytes as bnb
classes = [v for m in (bnb, bnb.nn, bnb.optim, bnb.functional) for v in vars(m).values()
           if isinstance(v, type) and v.__module__.startswith("bnbx")]
assert len(classes) > 60
for cls in classes:
    assert "bitsandbytes" in str(cls) and "bitsandbytes" in cls.__module__
    assert pickle.loads(pickle.dumps(cls)) is cls
    assert vars(sys.modules[cls.__module__])[cls.__name__] is cls
    assert f"class {cls.__name__}" in inspect.getsource(cls)
assert pickle.loads(before) is bnb.optim.AdamW8bit
"""
    )


def test_without_the_alias_classes_are_where_they_were():
    assert bnbx.optim.AdamW8bit.__module__ == "bnbx.optim.adamw"
    assert bnbx.nn.Params4bit.__module__ == "bnbx.nn.params4bit"


def test_a_pickle_made_with_the_alias_loads_without(tmp_path):
    path = tmp_path / "layer.pkl"
    run(
        REGISTERED
        + f"""
import pickle, torch, bitsandbytes as bnb
torch.manual_seed(0)
layer = bnb.nn.Linear4bit(64, 32, quant_type="nf4").to("cpu")
with open({str(path)!r}, "wb") as file:
    pickle.dump((layer, bnb.optim.AdamW8bit), file)
"""
    )
    run(
        f"""
import pickle, sys, torch, bnbx
with open({str(path)!r}, "rb") as file:
    layer, optimizer = pickle.load(file)
assert type(layer) is bnbx.nn.Linear4bit and optimizer is bnbx.optim.AdamW8bit
assert layer(torch.ones(1, 64)).isfinite().all()
assert "bitsandbytes" not in sys.modules
"""
    )


def test_class_names_are_those_that_programs_compare():
    """Trap 4: class names are compared as strings."""
    names = ["Params4bit", "Int8Params", "Linear4bit", "Linear8bitLt"]
    assert [getattr(bnbx.nn, name).__name__ for name in names] == names
    names = ["Adam8bit", "AdamW8bit", "PagedAdam8bit", "PagedAdamW8bit"]
    assert [getattr(bnbx.optim, name).__name__ for name in names] == names
    weight = bnbx.nn.LinearFP4(64, 32).to("cpu").weight
    assert weight.__class__.__name__ == "Params4bit"


def test_metadata():
    run(
        REGISTERED
        + """
import importlib.metadata as metadata
assert metadata.version("bitsandbytes") == "0.50.2"
assert metadata.metadata("bitsandbytes")["Name"] == "bitsandbytes"
assert metadata.distribution("BitsAndBytes").requires == ["bnbx"]
assert set(metadata.packages_distributions()["bitsandbytes"]) == {"bitsandbytes"}
assert [d.version for d in metadata.distributions(name="bitsandbytes")][0] == "0.50.2"
assert list(metadata.distributions(name="bitsandbytes", path=[])) == []
assert list(metadata.distributions(name="other")) == []
assert metadata.version("torch")
"""
    )


def test_another_bitsandbytes_that_is_not_imported_is_hidden(tmp_path):
    path = other_bitsandbytes(tmp_path)
    check = """
import bitsandbytes, importlib.metadata
print(bitsandbytes.__version__, importlib.metadata.version("bitsandbytes"))
"""
    assert run(check, PYTHONPATH=path).split() == ["9.9.9", "9.9.9"]
    assert run(REGISTERED + check, PYTHONPATH=path).split() == ["0.50.2", "0.50.2"]


def test_another_bitsandbytes_that_is_imported_is_refused(tmp_path):
    path = other_bitsandbytes(tmp_path)
    out = run(
        """
import bitsandbytes
try:
    import bnbx.compat.bitsandbytes
except ImportError as failure:
    print(failure)
assert bitsandbytes.__version__ == "9.9.9"
import importlib.metadata, bnbx, sys
assert importlib.metadata.version("bitsandbytes") == "9.9.9"
assert bnbx.optim.AdamW8bit.__module__ == "bnbx.optim.adamw"
assert sys.modules["bitsandbytes"] is bitsandbytes
""",
        PYTHONPATH=path,
    )
    assert "expected not to be imported yet, got " + str(tmp_path) in out
    assert "python -m bnbx.compat" in out


def test_operators_of_another_bitsandbytes_are_refused():
    out = run(
        """
import torch
library = torch.library.Library("bitsandbytes", "DEF")
library.define("quantize_4bit(Tensor A) -> Tensor")
try:
    import bnbx.compat.bitsandbytes
except ImportError as failure:
    print(failure)
"""
    )
    assert "expected not to be imported yet" in out


def test_twice_is_once():
    run(
        """
import sys
from bnbx.compat import install
first, finders = install(), list(sys.meta_path)
import bnbx.compat.bitsandbytes
assert install() is first is sys.modules["bitsandbytes"] and sys.meta_path == finders
del sys.modules["bitsandbytes"]
assert install().nn is first.nn
"""
    )


def test_importing_the_package_alone_registers_nothing():
    run(
        """
import importlib.util, sys
path = len(sys.meta_path)
import bnbx.compat
import bnbx.compat.as_bitsandbytes.optim.adamw as module
import bnbx.optim.adamw
assert module is bnbx.optim.adamw and "bitsandbytes" not in sys.modules
assert bnbx.optim.AdamW.__module__ == "bnbx.optim.adamw"
"""
    )


def test_modules_that_are_not_there_are_not_found():
    run(
        REGISTERED
        + """
import importlib
for name in ("research", "nn.none", "cli", "compat"):
    name = "bitsandbytes." + name
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as failure:
        assert failure.name == name
    else:
        raise AssertionError(name)
"""
    )
