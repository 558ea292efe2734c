"""Paged states under limits of the system: each run is a process that sets them for itself."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").is_file(), reason="the kernel's figures of a process are Linux'"
)

MIB = 1 << 20
#: What every run begins with: parameters and a step that starts all threads there will be.
COMMON = """
    import json, os, resource, sys
    import torch
    from bnbx.optim import PagedMemory, PagedAdam32bit

    def status(key):
        lines = open("/proc/self/status").read().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))

    def parameters(count, numel):
        params = [torch.nn.Parameter(torch.ones(numel)) for _ in range(count)]
        for p in params:
            p.grad = torch.ones(numel)
        return params

    torch.set_num_threads(1)
    directory, arguments = sys.argv[1], json.loads(sys.argv[2])
    PagedAdam32bit(parameters(1, 1000)).step()
"""


def run(script, directory, **arguments):
    """Return what a script printed as JSON; it finds the arguments by their names."""
    code = textwrap.dedent(COMMON) + "globals().update(arguments)\n" + textwrap.dedent(script)
    command = [sys.executable, "-c", code, str(directory), json.dumps(arguments)]
    done = subprocess.run(  # noqa: S603 (our own code)
        command, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


TRAINING = """
    params = parameters(16, 1 << 20)
    room = status("VmData") + (32 << 20)  # a quarter of the paged states, which take 128 MiB
    resource.setrlimit(resource.RLIMIT_DATA, (room, room))
    memory = PagedMemory(directory, resident_bytes=resident_bytes) if paged else None
    optimizer = PagedAdam32bit(params, lr=0.1, paging=memory)
    anonymous, file_pages = status("RssAnon"), status("RssFile")
    try:
        for _ in range(3):
            optimizer.step()
    except RuntimeError as failure:
        print(json.dumps({"failure": str(failure)}))
        raise SystemExit
    print(json.dumps({
        "values": [edge for p in params for edge in (p.min().item(), p.max().item())],
        "reserved": memory.reserved_bytes,
        "anonymous": status("RssAnon") - anonymous,
        "file_pages": status("RssFile") - file_pages,
        "peak": status("VmHWM"),
    }))
"""


def test_states_larger_than_the_limit_on_memory_train(tmp_path):
    plain = run(TRAINING, tmp_path, paged=False, resident_bytes=None)
    assert "memory" in plain["failure"]
    free = run(TRAINING, tmp_path, paged=True, resident_bytes=None)
    bounded = run(TRAINING, tmp_path, paged=True, resident_bytes=24 * MIB)
    for result in (free, bounded):
        assert result["reserved"] == 128 * MIB
        assert result["anonymous"] < 32 * MIB  # the kernel may round it up to huge pages
        # Adam goes down by lr in each step if the gradient is always the same.
        assert result["values"] == pytest.approx([0.7] * 32, abs=1e-5)
    assert bounded["file_pages"] < 16 * MIB  # a turn has 8
    assert bounded["peak"] < free["peak"]


def test_limit_on_the_size_of_files(tmp_path):
    script = """
        params = parameters(1, 1 << 20)
        optimizer = PagedAdam32bit(params, lr=0.1, paging=PagedMemory(directory))
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, 4 << 20))
        try:
            optimizer.step()
        except ValueError as failure:
            print(json.dumps([str(failure), params[0].unique().tolist()]))
    """
    message, values = run(script, tmp_path)
    assert message.startswith("paging: expected room for a file of 1,073,741,824 bytes in")
    assert message.endswith("got File too large")
    assert values == [1.0]


def test_forked_processes(tmp_path):
    """The workers of a DataLoader do no harm; a step in a forked process is refused."""
    script = """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12: fork with threads
        params, others = parameters(2, 9000), parameters(2, 9000)
        paged = PagedAdam32bit(params, lr=0.1, paging=PagedMemory(directory))
        plain = PagedAdam32bit(others, lr=0.1)
        data = torch.utils.data.DataLoader(
            torch.rand(6, 1), num_workers=2, multiprocessing_context="fork"
        )
        for scale in data:
            for p in params + others:
                p.grad.fill_(scale.item())
            paged.step()
            plain.step()
        child = os.fork()
        if not child:
            try:
                paged.step()
            except ValueError as failure:
                os._exit(0 if "forked off" in str(failure) else 1)
            os._exit(2)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        paged.step()
        plain.step()
        equal = all(torch.equal(p, q) for p, q in zip(params, others))
        print(json.dumps([status, equal]))
    """
    assert run(script, tmp_path) == [0, True]
