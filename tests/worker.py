"""One of the processes that train together in test_multiworker.py.

    python worker.py FOLDER TRAINING...

Runs trainings by name, one after the other, each in a folder of its name, and
writes what came out of each to a file there.
"""

import gc
import json
import os
import pathlib
import signal
import sys

sys.path.append(str(pathlib.Path(__file__).parents[1] / "recipes"))

DIES_AT_STEP = 7


def main(folder, *names):
    """Runs the trainings."""
    # Before TensorFlow is used for anything else.
    from study import strategies

    strategy = strategies.make_strategy("multiworker")
    import keras
    import trainings

    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]

    class Die(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if index == 1 and self.model.optimizer.iterations == DIES_AT_STEP:
                os.kill(os.getpid(), signal.SIGKILL)

    several_steps = {"unknown_length": True, "steps_per_execution": 2}
    by_name = {
        "half": trainings.train_in_half_precision,
        **{
            case: lambda strategy, folder, case=case: trainings.log(
                strategy, case
            )
            for case in trainings.LOGGED
        },
        "interrupted": lambda strategy, folder: trainings.train(
            strategy, folder, callbacks=[Die()], **several_steps
        ),
        "resumed": lambda strategy, folder: trainings.train(
            strategy, folder.parent / "interrupted", **several_steps
        ),
    }
    for name in names:
        keras.utils.set_random_seed(0)
        own = pathlib.Path(folder) / name
        own.mkdir(exist_ok=True)
        result = by_name[name](strategy, own)
        (own / f"result-{index}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    # Imports and tracing make many objects, and a worker soon ends.
    gc.disable()
    main(*sys.argv[1:])
