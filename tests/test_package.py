"""What importing the package costs, and what it offers."""

import subprocess
import sys

HEAVY = (
    "keras_hub",
    "keras_nlp",
    "tensorflow_datasets",
    "matplotlib",
    "optuna",
    "pandas",
)


PROGRAM = f"""
import sys
for module in ("keras", "keras_kd"):
    __import__(module)
    print(*[name for name in {HEAVY} if name in sys.modules])
"""


def test_import_loads_no_optional_library():
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=True,
    )
    kerass, ours = (set(line.split()) for line in result.stdout.split("\n")[:2])
    # Keras itself loads these two where they are installed.
    assert ours == kerass <= {"matplotlib", "pandas"}
