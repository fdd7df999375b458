"""The search: Optuna's studies, the trials in them, and what is kept."""

import contextlib
import copy
import itertools
import json
import math
import pathlib
import time

import optuna
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from keras_kd.files import errors_naming, lock
from keras_kd.monitors import DivergedError
from keras_kd.tuning.outcome import Trial, counted, score_of
from keras_kd.tuning.spaces import BASELINES, LEARNING_RATE, Range, is_free

# The study of the methods that a teacher's knowledge goes into.
_TAUGHT = "taught"
# One without trials, for what belongs to the whole search.
_RECORD = "record"
_JOURNAL = "tuning.journal"
# So many of one setting are a factor of 1.6 apart on two decades of a learning
# rate: more would hardly find a better baseline.
_STUDENTS_A_SETTING = 10
# Its first learning rates are spread over the range: on two decades they are a
# factor of three apart. A sampler may leave half of the range out.
_SPREAD = 5
# Of fewer finished trials no importance can be told.
_TELLING = 8


class Search:
    """Trials of all methods, in Optuna's studies.

    Plain training and label smoothing each have a study of their own, with an
    even share of the training until they are tuned well enough, however far
    ahead other methods are: a gain over a neglected baseline says nothing. The
    others share a study, in which the sampler chooses among them.

    Args:
        trainer: as in `keras_kd.tune`.
        spaces: what `spaces.spaces` returned.
        storage: what `open_storage` returned.
        seed: integer, of every student in the search, and of the sampler.
        sampler: `None`, or an `optuna.samplers.BaseSampler`.
        pruner: `None`, or an `optuna.pruners.BasePruner`.
    """

    def __init__(self, trainer, spaces, storage, seed, sampler, pruner):
        self.trainer, self.spaces, self.seed = trainer, spaces, seed
        self._own = {
            method: trainer.loss(method, {}).get_config() for method in spaces
        }
        taught = [method for method in spaces if method not in BASELINES]
        self._groups = {name: [name] for name in BASELINES}
        if taught:
            self._groups[_TAUGHT] = taught
        self._studies = {
            name: optuna.create_study(
                storage=storage,
                study_name=name,
                direction="maximize"
                if trainer.higher_is_better
                else "minimize",
                load_if_exists=True,
                sampler=_sampler(sampler, seed, len(methods)),
                pruner=pruner or _pruner(trainer.epochs),
            )
            for name, methods in self._groups.items()
        }
        for study in self._studies.values():
            # One that begins its random numbers from the seed again would
            # repeat what it chose in an earlier call.
            if study.get_trials(False):
                study.sampler.reseed_rng()

    @property
    def trials(self):
        """List of `Trial`, in the order in which they began."""
        found = [
            (trial.datetime_start, name, trial)
            for name, study in self._studies.items()
            for trial in study.get_trials(False)
            if trial.state.is_finished() and "student" in trial.user_attrs
        ]
        found.sort(key=lambda each: each[0])
        return [
            _trial(number, trial) for number, (_, _, trial) in enumerate(found)
        ]

    # -- what comes next -----------------------------------------------------

    def add_starts(self, starts):
        """Puts trials in line, those that an earlier call did not.

        Args:
            starts: what `spaces.starts` returned.
        """
        for number, (why, method, settings) in enumerate(starts):
            study = self._studies[self._group(method)]
            trials = study.get_trials(False)
            if number not in {t.user_attrs.get("start") for t in trials}:
                study.enqueue_trial(
                    self._parameters(method, settings),
                    {"start": number, "why": why, "method": method},
                )

    def retry_the_dead(self):
        """Marks the trials that a killed call left, and repeats them.

        Returns:
            How many epochs are known to be lost with them.
        """
        lost = 0
        for study in self._studies.values():
            for trial in study.get_trials(False, (TrialState.RUNNING,)):
                self._repeat(study, trial)
                study.tell(trial.number, state=TrialState.FAIL)
                lost += _epochs(trial)
        return lost

    def _repeat(self, study, trial):
        """Puts a trial in line again, if a call that was killed did not."""
        others = study.get_trials(False)
        if trial.number in {t.user_attrs.get("repeats") for t in others}:
            return
        fixed = trial.system_attrs.get("fixed_params", {})
        study.enqueue_trial(
            {**fixed, **trial.params},
            {**trial.user_attrs, "repeats": trial.number},
        )

    def next_group(self):
        """Name of the study whose turn it is; `None` if all has been tried."""
        groups = [
            name
            for name in self._studies
            if self._waits(name) or self._with_choices(name)
        ]
        epochs = {name: self._epochs(name) for name in self._studies}
        even = sum(epochs.values()) / len(self.spaces)
        for name in [each for each in groups if each in BASELINES]:
            after = epochs[name] + self.trainer.epochs
            if self._waits(name) or after <= min(even, self._enough(name)):
                return name
        if _TAUGHT in groups:
            return _TAUGHT
        return min(groups, key=epochs.get, default=None)

    def _enough(self, baseline):
        """Epochs after which its settings are known well enough."""
        free = sum(map(is_free, self.spaces[baseline].values()))
        return _STUDENTS_A_SETTING * free * self.trainer.epochs

    def _waits(self, name):
        """Whether a trial of a study is in line."""
        states = (TrialState.WAITING,)
        return bool(self._studies[name].get_trials(False, states))

    def _with_choices(self, name):
        """The methods of a group that have settings to choose."""
        return [
            method
            for method in self._groups[name]
            if any(map(is_free, self.spaces[method].values()))
        ]

    def _epochs(self, name):
        """How many epochs a study's students were trained."""
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        trials = self._studies[name].get_trials(False, states)
        return sum(counted(_epochs(trial)) for trial in trials)

    def _group(self, method):
        return method if method in BASELINES else _TAUGHT

    def importance(self):
        """Which settings mattered, of methods with trials enough to tell.

        Returns:
            Dict by method of dicts by setting, the most important first.
        """
        return {
            method: found
            for method in self.spaces
            if (found := self._importance_in(method))
        }

    def _importance_in(self, method):
        study = self._studies[self._group(method)]
        trials = [
            trial
            for trial in study.get_trials(False, (TrialState.COMPLETE,))
            if trial.user_attrs["student"][0] == method
        ]
        names = set.union(set(), *(trial.params for trial in trials))
        names = [
            name
            for name in names - {"method"}
            if len({trial.params.get(name) for trial in trials}) > 1
        ]
        if len(trials) < _TELLING or len(names) < 2:
            return None
        own = optuna.create_study(direction=study.direction)
        own.add_trials(trials)
        shares = optuna.importance.get_param_importances(
            own,
            evaluator=optuna.importance.PedAnovaImportanceEvaluator(),
            params=sorted(names),
        )
        return {name.split(".")[-1]: each for name, each in shares.items()}

    # -- one trial -----------------------------------------------------------

    def run(self, name):
        """Trains the next student of a study.

        Args:
            name: of the study.

        Returns:
            The `Trial`.
        """
        study, began = self._studies[name], time.perf_counter()
        if name in BASELINES and not self._waits(name):
            self._spread_rates(name)
        trial = study.ask()
        method, settings = self._choose(trial, name)
        trial.set_user_attr("student", [method, settings])
        watch = _Watch(trial, getattr(self.trainer, "evaluated_epochs", None))
        try:
            result = self.trainer.train(method, self.seed, settings, watch)
            score = watch.finish(result, self.trainer.metric)
        except DivergedError:
            score = math.nan
        trial.set_user_attr("epochs", watch.epochs)
        trial.set_user_attr("seconds", time.perf_counter() - began)
        if watch.stopped or not math.isfinite(score):
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, score)
        return self.trials[-1]

    def _spread_rates(self, baseline):
        """Puts the learning rate in line that is farthest from those tried."""
        rates = self.spaces[baseline].get(LEARNING_RATE)
        tried = self._rates_tried(baseline)
        if not isinstance(rates, Range) or not 0 < len(tried) < _SPREAD:
            return
        between = [math.sqrt(a * b) for a, b in itertools.pairwise(tried)]

        def distance(rate):
            return min(abs(math.log(rate / each)) for each in tried)

        farthest = max([*between, rates.high, rates.low], key=distance)
        self._studies[baseline].enqueue_trial(
            {LEARNING_RATE: farthest}, {"why": "spread"}
        )

    def _rates_tried(self, baseline):
        """Sorted list of the learning rates of its students."""
        trials = self._studies[baseline].get_trials(False)
        # A trial that was killed at once has none.
        rates = (trial.params.get(LEARNING_RATE) for trial in trials)
        return sorted(rate for rate in rates if rate is not None)

    def try_rate(self, baseline, rate):
        """Trains a baseline's student with a learning rate, if none was.

        Args:
            baseline: one of the baselines.
            rate: float.

        Returns:
            The `Trial`, or `None`.
        """
        if rate in self._rates_tried(baseline):
            return None
        study = self._studies[baseline]
        study.enqueue_trial({LEARNING_RATE: rate}, {"why": "winner"})
        return self.run(baseline)

    def _choose(self, trial, name):
        """The method and the settings of a trial, as the sampler has them."""
        method = trial.user_attrs.get("method")
        choices = self._with_choices(name)
        if method is None or method in choices:
            method = (
                trial.suggest_categorical("method", choices)
                if len(choices) > 1
                else choices[0]
            )
        return method, {
            setting: _suggest(
                trial,
                _parameter(method, setting),
                each,
                self._counts(method, setting),
            )
            for setting, each in self.spaces[method].items()
        }

    def _counts(self, method, setting):
        """Whether a setting may be a number of things, which is whole."""
        own = self._own[method].get(setting)
        return setting == "k" or isinstance(own, int)

    def _parameters(self, method, settings):
        """Optuna's parameters of a method with these settings."""
        choices = self._with_choices(self._group(method))
        found = {
            _parameter(method, setting): value
            for setting, value in settings.items()
            if is_free(self.spaces[method][setting])
        }
        if method in choices and len(choices) > 1:
            found["method"] = method
        return found


class Record:
    """What belongs to a whole search: attributes of an Optuna study.

    Args:
        storage: what `open_storage` returned.
    """

    def __init__(self, storage):
        self._study = optuna.create_study(
            storage=storage, study_name=_RECORD, load_if_exists=True
        )

    def get(self, name):
        """A value; `None` if there is none."""
        return self._study.user_attrs.get(name)

    def set(self, name, value):
        """Keeps a value of JSON's types."""
        self._study.set_user_attr(name, value)

    def claim(self, folder, **search):
        """Makes the storage that of this search, or refuses it.

        Args:
            folder: path, for the message.
            **search: what its trials depend on.

        Raises:
            ValueError: if it is that of another one.
        """
        # As it is read, with lists for tuples.
        search = json.loads(json.dumps(search))
        before = self.get("search")
        if before is None:
            self.set("search", search)
            return
        other = [name for name in search if search[name] != before.get(name)]
        if other:
            received = {name: search[name] for name in other}
            there = {name: before.get(name) for name in other}
            raise ValueError(
                f"{folder} holds the trials of another search. Received: "
                f"{received}, where it has {there}. Choose another `folder`."
            )


class _Watch:
    """What the trainer calls after an evaluation: `report(epoch, value)`.

    Args:
        trial: Optuna's.
        evaluated: numbers of the epochs that are evaluated; `None` for all.

    Attributes:
        epochs: how many the student was trained.
        stopped: whether it was told to stop.
    """

    def __init__(self, trial, evaluated):
        self._trial, self._curve = trial, {}
        self._evaluated = itertools.count() if evaluated is None else evaluated
        self.epochs, self.stopped = 0, False

    def __call__(self, epoch, value):
        self._add(epoch, value)
        self.stopped = self.stopped or self._trial.should_prune()
        return self.stopped or not math.isfinite(value)

    def _add(self, epoch, value):
        self._curve[epoch] = float(value)
        self.epochs = max(self.epochs, epoch + 1)
        self._trial.report(self._curve[epoch], epoch)

    def finish(self, result, metric):
        """The validation score of a student.

        Never the score in the result, which may be of the test data: what is
        chosen by them would look better on them than it is.

        Args:
            result: what the trainer returned. Its "history" has the epochs
                that the trainer had kept of an earlier call, too.
            metric: name.

        Returns:
            A float.
        """
        score_of(result, metric)  # Refuses a metric that is not there.
        history = result.get("history", {})
        self.epochs = max(self.epochs, *map(len, history.values()), 0)
        scores = history.get(f"val_{metric}", [])
        for epoch, value in zip(self._evaluated, scores, strict=False):
            if epoch not in self._curve:
                self._add(epoch, value)
        if not self._curve:
            raise ValueError(
                "A search needs the validation score of each epoch. Received: "
                "a trainer that told none. Use keras_kd.StudentTrainer, or "
                "call report(epoch, value)."
            )
        return self._curve[max(self._curve)]


def _parameter(method, setting):
    """The name of a setting in Optuna's study.

    Each method has its own, since what suits one loss says little about
    another; but for the learning rate, which suits most alike.
    """
    return setting if setting == LEARNING_RATE else f"{method}.{setting}"


def _suggest(trial, name, each, counts):
    """A value for a setting.

    Args:
        trial: Optuna's.
        name: of its parameter.
        each: a `Range`, a list or a value.
        counts: whether a whole number is meant where both ends are.
    """
    if isinstance(each, list):
        return trial.suggest_categorical(name, each)
    if not isinstance(each, Range):
        return each
    whole = isinstance(each.low, int) and isinstance(each.high, int)
    if whole and counts:
        return trial.suggest_int(name, each.low, each.high, log=each.log)
    return trial.suggest_float(name, each.low, each.high, log=each.log)


def _epochs(trial):
    """Epochs that an Optuna trial's student is known to have been trained."""
    reported = max(trial.intermediate_values, default=-1) + 1
    # A call that was killed, or of an earlier version, has told no more.
    return trial.user_attrs.get("epochs", reported)


def _trial(number, trial):
    """An Optuna trial as a `Trial`."""
    told = trial.user_attrs
    state = "failed" if trial.state == TrialState.FAIL else "stopped"
    if trial.state == TrialState.COMPLETE:
        state = "finished"
    method, settings = told["student"]
    return Trial(
        number=number,
        method=method,
        settings=settings,
        score=trial.value if state == "finished" else None,
        state=state,
        curve=[value for _, value in sorted(trial.intermediate_values.items())],
        seconds=told.get("seconds"),
        why=told.get("why", "search"),
        epochs=_epochs(trial),
    )


@contextlib.contextmanager
def open_storage(folder):
    """Optuna's storage, in memory or in a folder that no other call uses.

    Args:
        folder: path, or `None`.

    Yields:
        An `optuna.storages.BaseStorage`.

    Raises:
        ValueError: if the folder's journal is damaged.
        OSError: if it can't be written, or another call uses the folder.
    """
    if folder is None:
        yield InMemoryStorage()
        return
    folder = pathlib.Path(folder)
    with lock(folder, "`folder`"):
        yield _journal_in(folder)


def _journal_in(folder):
    """The storage in a folder that is locked."""
    path = folder / _JOURNAL
    with errors_naming(path):
        _drop_unfinished_line(path)
        try:
            return JournalStorage(_Journal(str(path), _NoLock()))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"The file {path} is damaged: it must be a journal of Optuna. "
                f"Received: {path.stat().st_size} bytes, {error}. Remove it, "
                "which loses its trials, or choose another `folder`."
            ) from error


class _NoLock:
    """Stands for Optuna's lock, which a killed process leaves behind."""

    def acquire(self):
        """The folder is locked already."""
        return True

    def release(self):
        """It stays locked."""


class _Journal(JournalFileBackend):
    """A journal whose errors say which file could not be written."""

    def __init__(self, path, lock_obj):
        super().__init__(path, lock_obj)
        self._named = path

    def append_logs(self, logs):
        with errors_naming(self._named):
            super().append_logs(logs)


def _drop_unfinished_line(path):
    """Removes what a call that was killed while writing left of a line.

    Optuna would write the next one behind it, and could read neither.
    """
    if not path.exists():
        return
    with open(path, "rb+") as file:
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)


def _sampler(sampler, seed, methods):
    if sampler is not None:
        # Some keep what they have learned of one study.
        return copy.deepcopy(sampler)
    # A group of parameters is sampled jointly: a weight and a temperature
    # depend on one another. After a start for each method it knows enough.
    return optuna.samplers.TPESampler(
        multivariate=True, group=True, n_startup_trials=methods + 1, seed=seed
    )


def _pruner(epochs):
    # The curves of losses cross: at a high temperature a student begins slowly
    # and ends well. So only the worst quarter is stopped, at half time: on the
    # digits, the median after a third stopped the winners.
    return optuna.pruners.PercentilePruner(
        75.0, n_startup_trials=4, n_warmup_steps=epochs // 2
    )
