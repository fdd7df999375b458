"""Runs a recipe with several seeds and prints means and deviations.

    python tools/over_seeds.py recipes/ptb_lstm.py --seeds 3 \
        --log-dir runs/study -- --loss plain --loss kd

Options after `--` are the recipe's own. Each seed has its own run folder
below --log-dir, and a seed that is done is not run again.
"""

import json
import pathlib
import statistics
import subprocess
import sys

import click


@click.command(context_settings={"show_default": True})
@click.argument("recipe", type=click.Path(exists=True, dir_okay=False))
@click.option("--seeds", type=click.IntRange(min=2), default=3)
@click.option("--log-dir", type=click.Path(), required=True)
@click.argument("options", nargs=-1)
def main(recipe, seeds, log_dir, options):
    """Runs RECIPE with OPTIONS once per seed; prints mean and deviation."""
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
    click.echo(markdown_table(runs))


def markdown_table(runs):
    """Means and sample standard deviations of results over runs.

    Args:
        runs: list of dicts from model names to dicts of numbers; models and
            numbers that are not in all of them are left out.

    Returns:
        A table in Markdown, a row per model and a column per number that
        ends in "perplexity" or "accuracy" (in percent).
    """
    names = [n for n in runs[0] if all(n in run for run in runs)]
    keys = [
        key
        for key in runs[0][names[0]]
        if key.endswith(("perplexity", "accuracy"))
    ]
    rows = [["model", *(key.replace("_", " ") for key in keys)]]
    rows.append(["---"] * len(rows[0]))
    for name in names:
        values = ([run[name][key] for run in runs] for key in keys)
        rows.append([name.removeprefix("student-"), *map(_spread, values)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _spread(values):
    mean, deviation = statistics.mean(values), statistics.stdev(values)
    return f"{mean:.2f} ± {deviation:.2f}"


if __name__ == "__main__":
    main()
