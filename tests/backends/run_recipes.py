"""Starts each recipe that a backend carries, small: run_recipes.py FOLDER.

FOLDER has text in Mikolov's form; the runs are made below it. A teacher is
trained by the code that trains a plain student. What the backend lacks is asked
for first, in the empty folder "nothing"; the answer goes to refused.txt.
"""

import os
import pathlib
import sys

_ROOT = pathlib.Path(__file__).parents[2]
sys.path += [str(_ROOT / "recipes"), str(_ROOT / "tests")]

import causal_lm  # noqa: E402
import cifar100_resnet  # noqa: E402
import keras  # noqa: E402
import networks  # noqa: E402
import ptb_lstm  # noqa: E402
import synthetic  # noqa: E402
from click.testing import CliRunner  # noqa: E402
from models import one_block  # noqa: E402

ONE_EPOCH = "--epochs 1 --teacher-epochs 1 "
LACKING = {
    "jax": (cifar100_resnet, ("--strategy", "mirrored")),
    "torch": (ptb_lstm, ()),
}


def main(folder):
    """Runs the recipes; ends with the first one's error."""
    ask_for_what_is_lacking(pathlib.Path(folder))
    networks.cifar_resnet = one_block
    text = f"--data-dir {folder} --vocabulary 30 --loss kd_pt "
    recipes = {
        cifar100_resnet: "--dataset digits --limit-train 64 --teacher-depth 8 "
        "--batch-size 32 --loss kd_sim",
        causal_lm: text + "--teacher-layers 1 --teacher-hidden 8 "
        "--teacher-heads 2 --student-hidden 4 --student-heads 2 "
        "--batch-size 8 --sequence-length 8",
        synthetic: "--quick --classes 6 --superclasses 3 --seeds 2 "
        "--train-examples 80 --test-examples 50 --batch-size 40 "
        "--teacher-units 8 --student-units 4 --method kd_pt_sim",
    }
    if keras.backend.backend() != "torch":
        recipes[ptb_lstm] = text + "--teacher-units 8 --student-units 4 "
        recipes[ptb_lstm] += "--batch-size 8 --time-steps 10"
    for recipe, arguments in recipes.items():
        run = ["--log-dir", f"{folder}/{recipe.__name__}"]
        result = CliRunner().invoke(
            recipe.main,
            [*(ONE_EPOCH + arguments).split(), *run],
            catch_exceptions=False,
        )
        if result.exit_code:
            raise SystemExit(f"{recipe.__name__}: {result.output}")


def ask_for_what_is_lacking(folder):
    """Writes the message of the refusal and its exit code."""
    recipe, arguments = LACKING[keras.backend.backend()]
    (folder / "nothing").mkdir()
    os.chdir(folder / "nothing")
    result = CliRunner().invoke(recipe.main, arguments, catch_exceptions=False)
    message = f"{result.exit_code} {result.output}"
    (folder / "refused.txt").write_text(message)
    os.chdir(folder)


if __name__ == "__main__":
    main(sys.argv[1])
