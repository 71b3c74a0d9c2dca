"""Which of several trainings is better? Train every variant from the same seeds and compare them seed by seed.

    from dataclasses import replace

    from compare import compare
    from model import Net
    from utils import Augment, Recipe, load_mnist

    train, _ = load_mnist()
    variants = {
        "Net": Net,
        "dropout": lambda: Net(dropout=0.05),
        "no rotation": replace(Recipe(), augment=Augment(rotation=0)),
    }
    result = compare(variants, train, 10_000, seeds=5, folder="runs")
    print(result)  # in a notebook: `result` as the last line of a cell
    result.plot()

Choose on validation images: here each seed sets a different 10,000 of the training images aside to judge on. The test
set is for one last measurement of what you chose: if it chooses, the luck of the winner on just these images becomes
part of its figure, and new images will show a lower one.

The runs are spread over processes by joblib. For a cluster, put one line around the call (see docs/compare.md):
`with joblib.parallel_config(backend="dask"):`, or "ray".
"""

from __future__ import annotations

import contextlib
import functools
import json
import operator
import os
import platform
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary, WeakValueDictionary

import cloudpickle
import joblib
import numpy
import torch
from joblib.externals.loky import get_reusable_executor
from joblib.parallel import LokyBackend, get_active_backend
from torch import nn
from tqdm import tqdm

from kit.comparisons import escape_markdown, mean_histories, summarize, tables, verdicts
from kit.fingerprint import fingerprint
from kit.plots_compare import plot_comparison
from kit.plots_history import plot_history
from kit.runtime import (
    commit_of_kit,
    end_cell_after_interrupt,
    follow_parent,
    get_device,
    in_cell_interrupted_now,
    seed_everything,
    somebody_watches,
    write_atomically,
)
from kit.settings import as_plain, checksum
from kit.stored_runs import load_run, run_file, save_run
from model import Net, count_parameters
from utils import ImageData, Recipe, as_tensors, split, train_network

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Maker = Callable[[], nn.Module]
Run = dict[str, Any]  # what one training measured, or its "error": plain data

_one_at_a_time = threading.Lock()  # the random generators belong to the process: threads would share their draws


@dataclass(repr=False)
class Comparison:
    """The result of `compare`: shown as a table in a notebook, and as text by print.

    variants: name -> {"network", "recipe"}, as plain data; the first is the baseline.
    seeds: the seeds that were asked for.
    data: number and checksums of the images, and their "split" if each seed had its own.
    runs: one dictionary for each run: "variant", "seed", "parameters", "train_loss", "train_accuracy", "test_loss",
        "test_accuracy", "learning_rate" and "seconds" (lists, one entry per epoch; accuracy in percent), "torch",
        "commit", "threads" and "device"; or, for a run that failed, "variant", "seed", "error" and "traceback".
    """

    variants: dict[str, dict[str, Any]]
    seeds: list[int]
    data: dict[str, Any]
    runs: list[Run]

    def summary(self) -> list[dict[str, Any]]:
        """Return the statistics as plain data, one dictionary per variant."""
        return summarize(self.variants, self.runs)

    def table(self) -> str:
        """Return the tables of accuracy and loss as text, then what they show in words."""
        summary = self.summary()
        return "\n\n".join([*tables(summary), *self._verdicts(summary)])

    def plot(self) -> Figure:
        """Plot the final accuracy and loss: one dot per seed, their mean and its 95 % interval."""
        return plot_comparison(list(self.variants), self.runs)

    def plot_history(self, *, target: float | None = None) -> Figure:
        """Plot loss, accuracy and learning rate over the epochs: for each variant the mean over its seeds."""
        histories = mean_histories(list(self.variants), self.runs)
        if not histories:
            raise ValueError("no run is finished, so there is no history to plot")
        return plot_history(histories, target=target)

    def to_json(self, path: str | Path) -> None:
        """Write settings, statistics and every run to `path`."""
        content = {"variants": self.variants, "seeds": self.seeds, **self.data}
        content |= {"versions": {"python": platform.python_version(), "torch": torch.__version__}}
        content |= {"summary": self.summary(), "runs": self.runs}
        write_atomically(Path(path).expanduser(), (json.dumps(content, indent=1) + "\n").encode())

    def __repr__(self) -> str:
        return self.table()

    def _repr_markdown_(self) -> str:
        summary = self.summary()
        words = map(escape_markdown, self._verdicts(summary))
        return "\n\n".join([*tables(summary, markdown=True), *words])

    def _verdicts(self, summary: list[dict[str, Any]]) -> list[str]:
        missing = len(self.variants) * len(self.seeds) - len(self.runs)  # not done because of Ctrl-C
        return verdicts(summary, missing, self.data["test_images"] if "split" in self.data else None)


def compare(
    variants: Mapping[str, Maker | Recipe | tuple[Maker, Recipe]],
    train: Any,
    test: Any,
    *,
    seeds: int | Iterable[int] = 5,
    recipe: Recipe = Recipe(),  # noqa: B008 (frozen)
    folder: str | Path | None = None,
    jobs: int | None = None,
) -> Comparison:
    """Train every variant from every seed and compare the final accuracy and loss with those of the first variant.

    variants: name -> what makes a network (a class, function or lambda, also one defined in a notebook cell), a
        Recipe, or a pair (maker, Recipe). The first is the baseline. A Recipe alone trains the baseline's network,
        or model.Net if the baseline is a Recipe as well; a maker alone is trained by `recipe`.
    train, test: ImageData, or any dataset that as_tensors takes. Choose on validation images, not on the test set:
        with a number n as `test`, each seed draws n images of `train` to judge on, by split(train, n, seed=seed), and
        trains on the others. All variants share them, and the differences do not hang on one choice of images.
    seeds: a number n, for seeds 0 to n - 1, or the seeds themselves. They are paired: one seed gives every variant
        the same order of images and the same draws, so far as its settings allow.
    folder: where each finished run is stored at once. The same call trains only what is missing there, such as more
        seeds or one more variant. A run is found again if the code of its network, its recipe, the images, seed,
        kind of device and versions of torch and Python are all the same: the name of its variant does not matter.
    jobs: runs at a time, each on one thread. None takes all cores, but 1 on a GPU, or what joblib.parallel_config
        says. With 1, or one run to do, they take place in this process and seed its generators.

    Prints a line for each finished run. Ctrl-C stops all runs and returns what is finished; another `compare` or `fit`
    in the same notebook cell then raises KeyboardInterrupt. A run that raises an error or diverges is reported with
    its variant and does not end the others.
    Raises ValueError or TypeError for wrong arguments, RuntimeError if a worker process dies, as for lack of memory.
    """
    end_cell_after_interrupt()
    train = as_tensors(train)
    if not isinstance(test, (ImageData, Real)):
        test = as_tensors(test, statistics_of=train)
    chosen = _check_variants(variants, recipe, functools.partial(Net, train.images.shape[1], len(train.classes)))
    numbers = _check_seeds(seeds)
    if jobs is not None and (isinstance(jobs, bool) or not isinstance(jobs, Integral) or jobs == 0):
        raise ValueError(f"jobs is {jobs!r}; expected a number of runs at a time, -1 for one per core, or None")
    data = _facts(train, test)
    absolute = None if folder is None else Path(folder).expanduser().absolute()  # a worker may be in another folder
    if absolute is not None:
        absolute.mkdir(parents=True, exist_ok=True)
    tasks = _tasks(chosen, numbers, data, absolute)
    described = {name: {"network": as_plain(make), "recipe": as_plain(own)} for name, (make, own) in chosen.items()}
    stored = ((task, task.file and load_run(task.file, task.settings)) for task in tasks)
    done = {task.key: run | {"variant": task.variant} for task, run in stored if run}
    missing = [task for task in tasks if task.key not in done]
    elsewhere: dict[str, None] = {}  # the variants that other code was trained for
    if done:
        print(f"{len(done)} of {len(tasks)} runs were found in {folder}.", flush=True)
    width, hidden = max(map(len, chosen)), not somebody_watches()
    with tqdm(total=len(tasks), initial=len(done), unit="run", leave=False, disable=hidden, file=sys.stdout) as bar:
        try:
            for task, run, as_here in _train_all(missing, train, test, jobs):
                done[task.key] = run
                if not as_here:
                    elsewhere[task.variant] = None
                elif task.file is not None and "error" not in run and not task.file.exists():
                    save_run(task.file, task.settings, run)  # the worker has another disk
                bar.update()
                tqdm.write(_line(run, width), file=sys.stdout)
        except KeyboardInterrupt:
            in_cell_interrupted_now()
            tqdm.write(f"Interrupted after {len(done)} of {len(tasks)} runs.", file=sys.stdout)
    if elsewhere:
        get_reusable_executor().shutdown()  # the next call gets processes that read the modules anew
        warnings.warn(
            f"{', '.join(elsewhere)}: trained with other code or module variables than this process had at the start: "
            "a module was edited or reloaded, or a run has changed a variable of a module. These runs are not stored: "
            "call compare again, on a Dask cluster after client.restart(). If this comes again, restart Python",
            stacklevel=2,
        )
    runs = [done[name, seed] for name in chosen for seed in numbers if (name, seed) in done]
    return Comparison(described, numbers, data, runs)


def _check_variants(variants: Any, recipe: Recipe, default: Maker) -> dict[str, tuple[Maker, Recipe]]:
    """Return name -> (maker, recipe) for every variant."""
    if not isinstance(variants, Mapping) or not variants:
        raise TypeError(f"variants is {variants!r}; expected a dictionary such as {{'Net': Net, 'mine': MyNet}}")
    if not isinstance(recipe, Recipe):
        raise TypeError(f"recipe is {recipe!r}; expected a Recipe, such as replace(Recipe(), epochs=5)")
    chosen: dict[str, tuple[Maker, Recipe]] = {}
    for name, variant in variants.items():
        first = next(iter(chosen.values()))[0] if chosen else default
        pair = variant if isinstance(variant, tuple) else (first, variant) if isinstance(variant, Recipe) else None
        make, own = pair if pair is not None and len(pair) == 2 else (variant, recipe)
        if (
            not isinstance(name, str)
            or not callable(make)
            or isinstance(make, nn.Module)
            or not isinstance(own, Recipe)
        ):
            raise TypeError(
                f"variants: {name!r} is {variant!r}; expected text -> what makes a network, such as Net or "
                "lambda: Net(dropout=0.1), a Recipe, or a pair of both"
            )
        chosen[name] = make, own
    return chosen


def _check_seeds(seeds: Any) -> list[int]:
    try:
        numbers = [operator.index(seed) for seed in (seeds if isinstance(seeds, Iterable) else range(seeds))]
    except TypeError:
        numbers = []
    if isinstance(seeds, bool) or not numbers or len(set(numbers)) < len(numbers) or min(numbers) < 0:
        raise ValueError(f"seeds is {seeds!r}; expected a number of at least 1, or different whole numbers from 0")
    return numbers


# ------------------------------------------------------------------------------------------------------ The runs


@dataclass
class Variant:
    """The maker and the recipe of a variant, pickled: each run has a copy of its own of what a notebook has defined."""

    pickled: bytes

    def copy(self) -> tuple[Maker, Recipe]:
        """Return the copy; an error if this process cannot import what it names."""
        with _new_classes():
            return cloudpickle.loads(self.pickled)


@contextlib.contextmanager
def _new_classes() -> Iterator[None]:
    """Let cloudpickle make classes anew: where it knows one, it would put copies of their methods into that."""
    module = cloudpickle.cloudpickle
    trackers = {
        "_DYNAMIC_CLASS_TRACKER_BY_CLASS": WeakKeyDictionary,
        "_DYNAMIC_CLASS_TRACKER_BY_ID": WeakValueDictionary,
    }
    known = {name: getattr(module, name) for name in trackers if hasattr(module, name)}
    for name in known:
        setattr(module, name, trackers[name]())
    try:
        yield
    finally:
        for name, tracker in known.items():
            setattr(module, name, tracker)


class Task(NamedTuple):
    """One run to do: small, so that it travels cheaply; the data travels by itself, once."""

    variant: str
    seed: int
    made_from: Variant
    settings: dict[str, Any]  # all of them, as plain data
    file: Path | None
    device: str
    commit: str | None

    @property
    def key(self) -> tuple[str, int]:
        return self.variant, self.seed


def _facts(train: ImageData, test: ImageData | int) -> dict[str, Any]:
    """Return number and checksums of the images, as plain data; ValueError for a wrong number of test images."""

    def sum_of(data: ImageData) -> str:
        return checksum(json.dumps(as_plain([data.images, data.labels, data.mean, data.std])).encode())

    if isinstance(test, ImageData):
        facts = {"train_images": len(train), "train_checksum": sum_of(train)}
        return facts | {"test_images": len(test), "test_checksum": sum_of(test)}
    if isinstance(test, bool) or not isinstance(test, Integral) or not 0 < test < len(train):
        raise ValueError(
            f"test is {test!r}; expected images, or how many of the {len(train)} in train each seed sets aside, "
            f"1 to {len(train) - 1}"
        )
    facts = {"images": len(train), "checksum": sum_of(train), "split": f"by seed, {fingerprint(split)}"}
    return facts | {"train_images": len(train) - int(test), "test_images": int(test)}


def _tasks(
    chosen: dict[str, tuple[Maker, Recipe]], seeds: list[int], data: dict[str, Any], folder: Path | None
) -> list[Task]:
    """Return all tasks, seed by seed: so there are pairs to compare early on."""
    device, commit, tasks = get_device().type, commit_of_kit(), {}
    for name, (make, recipe) in chosen.items():
        try:
            made_from = Variant(cloudpickle.dumps((make, recipe)))
        except Exception as error:
            raise TypeError(f"variants: {name!r} cannot be sent to another process: {error}") from error
        settings = {
            "network": as_plain(make),
            "recipe": as_plain(recipe),
            "code": fingerprint(make, recipe, train_network),
            **data,
            "device": device,
            "torch": torch.__version__.partition("+")[0],
            "python": ".".join(platform.python_version_tuple()[:2]),
        }
        for seed in seeds:
            own = settings | {"seed": seed}
            file = None if folder is None else run_file(folder, own)
            tasks[seed, name] = Task(name, seed, made_from, own, file, device, commit)
    return [tasks[seed, name] for seed in seeds for name in chosen]


def _train_all(
    tasks: list[Task], train: ImageData, test: ImageData | int, jobs: int | None
) -> Iterator[tuple[Task, Run, bool]]:
    """Train `tasks` in parallel; yield (task, run, whether it is by the code of this process) as they finish.

    On any exception, end all workers.
    """
    if not tasks:
        return
    backend, configured = get_active_backend()
    local = isinstance(backend, LokyBackend)
    jobs = jobs or configured or (1 if local and tasks[0].device != "cpu" else -1)
    streams = backend.supports_return_generator  # Ray does not: it returns all runs together, at the end
    options = {"initializer": follow_parent, "initargs": (os.getpid(),)} if local else {}
    parallel = joblib.Parallel(
        n_jobs=min(joblib.effective_n_jobs(jobs), len(tasks)),
        return_as="generator_unordered" if streams else "list",
        batch_size=1,
        **options,
    )
    # NumPy arrays, and at the top level: joblib maps them into all processes of a machine, and Dask sends them once.
    sets = [train, test] if isinstance(test, ImageData) else [train]
    arrays = [part.cpu().numpy() for data in sets for part in (data.images, data.labels)]
    about = [(data.classes, data.source, data.mean, data.std) for data in sets]
    calls = (joblib.delayed(_train_one)(number, task, about, *arrays) for number, task in enumerate(tasks))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*tasks", module="joblib")  # that Ctrl-C leaves runs undone
        runs = parallel(calls)
        with contextlib.closing(runs) if streams else contextlib.nullcontext():
            for number, run, as_here in runs:
                yield tasks[number], run, as_here


def _train_one(number: int, task: Task, about: list[Any], *arrays: numpy.ndarray) -> tuple[int, Run, bool]:
    """Train one variant from one seed, in any process; return what was measured, or the error.

    The last value tells whether the code in this process is that of the task: a module may have been edited since.
    """
    start: Run = {"variant": task.variant, "seed": task.seed}
    as_here = False
    with _one_at_a_time, _one_thread():
        try:
            sets = [_as_data(arrays[2 * at : 2 * at + 2], facts) for at, facts in enumerate(about)]
            train, test = sets if len(sets) == 2 else split(sets[0], task.settings["test_images"], seed=task.seed)
            make, recipe = task.made_from.copy()
            as_here = fingerprint(make, recipe, train_network) == task.settings["code"]
            seed_everything(task.seed)
            model = make()
            if not isinstance(model, nn.Module):
                raise TypeError(f"its maker returned {type(model).__name__}; expected a network, an nn.Module")
            model = model.to(get_device(task.device))
            history = train_network(model, train, test, recipe, seed=task.seed, verbose=False)
        except Exception as error:
            message = f"{type(error).__name__}: {error}".strip()
            return number, {**start, "error": message, "traceback": traceback.format_exc()}, as_here
    if len(history) < recipe.epochs:  # Ctrl-C ends `fit` normally; here it must end everything
        raise KeyboardInterrupt
    start |= {"parameters": count_parameters(model), **vars(history)}
    run = start | {"torch": torch.__version__, "commit": task.commit, "threads": 1, "device": task.device}
    if as_here and task.file is not None and task.file.parent.exists():
        with contextlib.suppress(OSError):  # the main process will try as well, and report it
            save_run(task.file, task.settings, run)
    return number, run, as_here


def _as_data(arrays: Iterable[numpy.ndarray], about: tuple[Any, ...]) -> ImageData:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable")  # nobody writes to them
        images, labels = map(torch.from_numpy, arrays)
    return ImageData(images, labels, *about)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _line(run: Run, width: int) -> str:
    """One finished run as a line of a table."""
    start = f"{run['variant']:<{width}}  seed {run['seed']:<3}  "
    if "error" in run:
        return start + "failed: " + run["error"].partition("\n")[0]
    accuracy, loss, seconds = run["test_accuracy"][-1], run["test_loss"][-1], sum(run["seconds"])
    return start + f"accuracy {accuracy:6.2f} %  loss {loss:.4f}  {seconds:6.1f} s"
