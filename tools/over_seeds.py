"""Runs a recipe with several seeds and prints means and deviations.

    python tools/over_seeds.py recipes/ptb_lstm.py --seeds 3 \
        --log-dir runs/study -- --loss plain --loss kd

Options after `--` are the recipe's own. Each seed has its own run folder
below --log-dir, and a seed that is done is not run again. What all of them
came to is in `study.json` there, of which `tools/study_tables.py` makes tables.
"""

import json
import pathlib
import shlex
import subprocess
import sys

import click
import study_tables

from keras_kd import files


@click.command(context_settings={"show_default": True})
@click.argument("recipe", type=click.Path(exists=True, dir_okay=False))
@click.option("--seeds", type=click.IntRange(min=1), default=3)
@click.option("--log-dir", type=click.Path(), required=True)
@click.argument("options", nargs=-1)
def main(recipe, seeds, log_dir, options):
    """Runs RECIPE with OPTIONS once per seed; prints mean and deviation."""
    own = [o for o in options if o.split("=")[0] in ("--seed", "--log-dir")]
    if own:
        raise click.UsageError(
            "Each seed has a folder of its own. Received: the recipe's "
            f"{own[0]}. Give --seeds and --log-dir before the `--`."
        )
    runs = []
    for seed in range(seeds):
        folder = pathlib.Path(log_dir) / f"seed-{seed}"
        arguments = ["--seed", str(seed), "--log-dir", str(folder)]
        command = [sys.executable, recipe, *options, *arguments]
        if code := subprocess.run(command).returncode:
            raise click.ClickException(
                "A recipe must end well with every seed. Received: exit code "
                f"{code} of {' '.join(command)}. Its own message is above; the "
                "same command resumes after what is done."
            )
        runs.append(json.loads((folder / "results.json").read_text()))
    study = {
        "command": f"python {recipe} {shlex.join(options)}".strip(),
        "seeds": seeds,
        "rows": rows(runs),
    }
    files.write_json(pathlib.Path(log_dir) / "study.json", study)
    click.echo(study_tables.table(study))


def rows(runs):
    """Perplexities and accuracies of each model, in the order of the seeds.

    Args:
        runs: list of dicts from model names to dicts of numbers; models and
            numbers that are not in all of them are left out.

    Returns:
        A dict from names, the teacher's last, to dicts by heading of lists,
        accuracies in percent.
    """
    names = [n for n in runs[0] if all(n in run for run in runs)]
    names.sort(key=lambda name: name == study_tables.TEACHER)
    return {
        name.removeprefix("student-"): _numbers([run[name] for run in runs])
        for name in names
    }


def _numbers(results):
    keys = [k for k in results[0] if k.endswith(("perplexity", "accuracy"))]
    return {
        key.replace("_", " ") + (" %" if key.endswith("accuracy") else ""): [
            each[key] * (100 if key.endswith("accuracy") else 1)
            for each in results
        ]
        for key in keys
        if all(key in each for each in results)
    }


if __name__ == "__main__":
    main()
