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


def loaded(module):
    """Which heavy libraries are loaded after importing a module."""
    code = (
        f"import sys, {module};"
        f"print(*[name for name in {HEAVY} if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


def test_import_loads_no_optional_library():
    # Keras itself loads these two where they are installed.
    assert loaded("keras_kd") == loaded("keras") <= {"matplotlib", "pandas"}
