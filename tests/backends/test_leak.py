"""PyTorch: a step leaves nothing behind.

PyTorch never frees what its graph and a closure of Python's keep alive for each
other.
"""

import json

import inputs
from test_agreement import run


def test_steps_leave_no_tensors_behind(tmp_path):
    path = tmp_path / "left.json"
    run("leak.py", "torch", path)
    assert json.loads(path.read_text()) == dict.fromkeys(inputs.LOSSES, 0)
