"""The README's Python, in blocks."""

import pathlib
import re

PATH = pathlib.Path(__file__).parents[1] / "README.md"


def blocks():
    """List of the blocks' code."""
    return re.findall(r"```python\n(.*?)```", PATH.read_text(), re.DOTALL)


def class_of(name):
    """The class that a block defines, without the statements around it."""
    (block,) = (b for b in blocks() if f"class {name}(" in b)
    code = re.search(rf"^class {name}\(.*?(?=^\S|\Z)", block, re.M | re.S)
    names = {}
    exec(f"import keras\nimport keras_kd as kd\n{code[0]}", names)
    return names[name]
