"""Kills a recipe at random moments, and compares its results with a whole run.

    python tools/kill_recipe.py --kills 20 -- recipes/ptb_lstm.py --tokens 6000

Runs the recipe once from start to end. Then starts it again and again in
another folder, each time killed (SIGKILL) after a random part of the time that
the whole run took. Whenever a start comes to its end, its results must be the
whole run's numbers, and the next start begins a new folder.
"""

import json
import pathlib
import random
import subprocess
import sys
import time

import click


@click.command(context_settings={"show_default": True})
@click.option("--kills", type=click.IntRange(min=1), default=20)
@click.option("--seed", type=int, default=0, help="Of the moments.")
@click.option("--log-dir", type=click.Path(), default="runs/kills")
@click.argument("command", nargs=-1, required=True)
def main(kills, seed, log_dir, command):
    """Runs COMMAND, a recipe with its options, whole and with kills."""
    folder = pathlib.Path(log_dir)
    began = time.monotonic()
    run(command, folder / "whole")
    seconds = time.monotonic() - began
    click.echo(f"Whole: {seconds:.0f} s.")
    expected = without_seconds(results(folder / "whole"))
    moments, killed, rounds = random.Random(seed), 0, 1
    while killed < kills:
        after = moments.uniform(0, seconds)
        round_folder = folder / f"killed-{rounds}"
        if run(command, round_folder, after):
            compare(round_folder, expected)
            rounds += 1
            continue
        killed += 1
        finished = ", ".join(results(round_folder)) or "nothing"
        click.echo(f"Kill {killed} after {after:.1f} s; finished: {finished}.")
    run(command, folder / f"killed-{rounds}")
    compare(folder / f"killed-{rounds}", expected)
    click.echo(
        f"{kills} kills in {rounds} runs, each with the results of the whole "
        f"one: {json.dumps(expected)}"
    )


def compare(folder, expected):
    """Refuses results that are not the expected ones."""
    found = without_seconds(results(folder))
    if found != expected:
        raise click.ClickException(
            "A killed run must end with the results of a whole one. Received: "
            f"{found} in {folder} for {expected}. Compare its logs with those "
            "of the whole run, beside it."
        )
    click.echo(f"{folder.name}: the same results.")


def run(command, folder, seconds=None):
    """Runs a recipe, to its end or until it is killed.

    Args:
        command: the recipe and its options.
        folder: of the run.
        seconds: after which it is killed, or `None`.

    Returns:
        Whether it ended by itself.

    Raises:
        click.ClickException: if it ended in an error.
    """
    process = subprocess.Popen(
        [sys.executable, *command, "--log-dir", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return False
    if process.returncode:
        raise click.ClickException(
            f"A run must end well or be killed. Received: exit code "
            f"{process.returncode} of {' '.join(command)}. Put right what its "
            f"output says:\n{output[-3000:]}"
        )
    return True


def results(folder):
    """The finished models' results by name."""
    path = folder / "results.json"
    return json.loads(path.read_text()) if path.exists() else {}


def without_seconds(found):
    """Results without what depends on the machine.

    A model's file holds the time at which it was written.
    """
    return {
        name: {
            key: value
            for key, value in result.items()
            if key not in ("seconds", "sha256")
        }
        for name, result in found.items()
    }


if __name__ == "__main__":
    main()
