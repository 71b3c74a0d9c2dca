"""The texts and tables of the documentation, made from the result files: one function for each section."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from itertools import combinations
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import model
import utils
from benchmarks import records
from kit.comparisons import LEVEL, summarize
from kit.settings import as_plain
from kit.statistics import paired_difference

RESULTS = Path(__file__).resolve().parent / "results"
TARGET = 99.40
ORDER = ["Net", "Attempt2", "Nano"]
FULL = 15  # epochs
KIT = "this kit"  # among the frameworks of peers.py


def read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def read_results() -> list[dict[str, Any]]:
    """Return the result files of MNIST, all images in each epoch, the most epochs first, in the order of ORDER."""
    reports = [read(path.stem) for path in RESULTS.glob("accuracy-*.json")]
    reports = [report for report in reports if report.get("dataset", "mnist") == "mnist" and report["runs"]]
    reports = [report for report in reports if report.get("config", {}).get("subsample", 1) == 1]
    return sorted(reports, key=lambda report: (-report["epochs"], ORDER.index(report["network"])))


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table; columns of numbers are aligned to the right."""
    number = re.compile(r"[\d*<+-]|$")
    right = [all(number.match(row[place]) for row in rows) for place in range(len(head))]
    lines = [head, ["---:" if flag else "---" for flag in right], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# ------------------------------------------------------------------------------------------------------ Accuracy


def finals(report: dict[str, Any]) -> list[float]:
    return [run["test_accuracy"][-1] for run in report["runs"]]


def of_variant(report: dict[str, Any], variant: str) -> dict[str, Any]:
    """Return `report` with the runs of one of its variants alone."""
    return report | {"runs": [run for run in report["runs"] if run["variant"] == variant]}


def deviation(values: list[float]) -> float | None:
    """The standard deviation; None for a single value, which has none."""
    return stdev(values) if len(values) > 1 else None


def spread(values: list[float], bold: str = "") -> str:
    """Mean ± standard deviation, the mean between `bold`; of a single run its value alone."""
    sd = deviation(values)
    return f"{bold}{mean(values):.2f}{bold}" + ("" if sd is None else f" ± {sd:.2f}")


def headline() -> str:
    net = read("accuracy-net")
    times = [
        f"{minutes(median(speed['training']['kit_s']))} on {named(speed['machine'])}"
        for speed in (read("speed"), *other_speeds())
        if "training" in speed and not earlier_layers(speed, ["Net"])
    ]
    duration = f", in about {' or '.join(times)}" if times else ""
    lowest = map(min, zip(*(run["test_accuracy"] for run in net["runs"]), strict=True))  # over the seeds
    steady = 1 + max((epoch for epoch, value in enumerate(lowest, 1) if value < TARGET), default=0)
    seeds = f"all {len(net['runs'])} seeds are at or above {TARGET:.2f} %"
    soon = f" From epoch {steady} on, {seeds}." if steady <= net["epochs"] else ""
    return (
        f"A convolutional network with {net['parameters']:,} parameters reaches **{spread(finals(net))} %** test "
        f"accuracy on MNIST's handwritten digits after {net['epochs']} epochs: mean and standard deviation of the "
        f"**final** epoch over {len(net['runs'])} seeds.{soon} It is trained on the MNIST training images alone"
        f"{duration}.{quicker(read('speed'))}"
    )


def quicker(speed: dict[str, Any]) -> str:
    """What the training with a share of the images takes and reaches, a sentence, if it was timed."""
    if "subsample" not in speed or earlier_layers(speed, ["Net"]):
        return ""
    report, seconds = read("accuracy-net-subsample"), median(speed["subsample"]["kit_s"])
    return (
        f" With [`subsample={report['config']['subsample']}`](docs/recipe.md#a-quicker-training) it takes "
        f"{minutes(seconds)} and reaches {spread(finals(report))} %."
    )


def minutes(seconds: float) -> str:
    """Say about how long that is, to the next ten seconds, in minutes from two minutes on."""
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{round(seconds, -1):.0f} seconds"


def epochs_table() -> str:
    """The test accuracy of `Net` after some of the epochs."""
    net, rows = read("accuracy-net"), []
    for epoch in (epoch for epoch in (1, 2, 3, 4, 5, 10, 15) if epoch <= net["epochs"]):
        values = [run["test_accuracy"][epoch - 1] for run in net["runs"]]
        reached = sum(value >= TARGET for value in values)
        rows.append(
            [str(epoch), spread(values), f"{min(values):.2f} – {max(values):.2f}", f"{reached} of {len(values)}"]
        )
    return table(
        [f"epoch of {net['epochs']}", "test accuracy, %: mean ± sd", "min – max", f"seeds at or above {TARGET:.2f} %"],
        rows,
    )


def luck_text() -> str:
    """How far two runs of the same training lie apart."""
    values = finals(read("accuracy-net"))
    apart = [abs(one - other) for one, other in combinations(values, 2)]
    return (
        f"Two runs of the same training differ by {mean(apart):.2f} points on average, and by up to {max(apart):.2f} "
        f"among the {len(values)} runs of `Net`."
    )


def start_of_row(report: dict[str, Any]) -> list[str]:
    return [f"`{report['network']}`", f"{report['parameters']:,}", str(report["epochs"]), str(len(report["runs"]))]


def results_table() -> str:
    rows = [
        [*start_of_row(report)[:3], f"**{spread(finals(report))}**, {len(report['runs'])} seeds"]
        for report in read_results()
    ]
    head = ["network", "parameters", "epochs", "final test accuracy, %"]
    subsampled = read("accuracy-net-subsample")
    share = f"{subsampled['config']['subsample']:.0%} of the images".replace("%", " %")
    label = f"`Net`, later epochs on [{share}](docs/results.md#later-epochs-on-a-share-of-the-images)"
    rows.append(variant_row(label, subsampled))
    label = "`Net`, tested by [five views](docs/results.md#five-views-of-each-image) of each image"
    one, five = (of_variant(read("views"), name) for name in ("one view", "five shifted views"))
    *cells, accuracy = variant_row(label, five)
    rows.append([*cells, f"{accuracy}; the same runs by one view: {spread(finals(one))}"])
    return table(head, [*rows, highest_published_row()])


def variant_row(label: str, report: dict[str, Any]) -> list[str]:
    """`Net` trained or tested otherwise than by default: a row with a name of its own."""
    values = finals(report)
    return [label, *start_of_row(report)[1:3], f"{spread(values)}, {len(values)} seeds"]


def highest_published_row() -> list[str]:
    """The published training with the highest accuracy, as it was trained again by its own recipe."""
    published, repeated = max(read("published"), key=lambda entry: entry["accuracy"]), read("repeated")
    first = next(iter(repeated["variants"]))
    values = finals(of_variant(repeated, first))
    return [
        f"[the highest published result found]({published['place']}), trained again by its own recipe",
        f"{repeated['parameters']:,}",
        str(repeated["epochs"]),
        f"{spread(values)}, {len(values)} seeds; published: {published['accuracy']:.2f}, one run",
    ]


def accuracy_row(report: dict[str, Any]) -> list[str]:
    from scipy import stats

    values, certain = finals(report), ["", ""]
    if (sd := deviation(values)) is not None:
        half = stats.t.ppf(0.975, len(values) - 1) * sd / len(values) ** 0.5
        p = stats.ttest_1samp(values, TARGET, alternative="greater").pvalue
        certain = [f"{mean(values) - half:.3f} – {mean(values) + half:.3f}", f"{p:.2g}" if p >= 1e-4 else "< 0.0001"]
    return [
        *start_of_row(report),
        spread(values, "**"),
        f"{min(values):.2f} – {max(values):.2f}",
        *certain,
        f"{mean(min(run['test_accuracy'][-5:]) for run in report['runs']):.2f}",
    ]


def accuracy_table() -> str:
    head = ["network", "parameters", "epochs", "seeds", "final test accuracy, %: mean ± sd", "min – max"]
    head += ["95 % CI of the mean", f"p (mean ≤ {TARGET:.2f})", "worst of the last 5 epochs, mean"]
    return table(head, [accuracy_row(report) for report in read_results()])


def fashion_table() -> str:
    """`Net` on Fashion-MNIST, with all images and with a share of them, beside published networks."""
    head = ["Fashion-MNIST", "parameters", "epochs", "seeds", "final test accuracy, %: mean ± sd", "min – max"]
    whole, subsampled = (read(f"accuracy-net-{variant}") for variant in ("fashion", "fashion-subsample"))
    rows = [accuracy_row(report)[:6] for report in (whole, subsampled)]
    rows[1][0] += f", `subsample={subsampled['config']['subsample']}`"
    published = [[cited(peer), "", "", peer["note"], f"{peer['accuracy']}", ""] for peer in read("published-fashion")]
    return table(head, rows + published)


def cited(peer: dict[str, Any]) -> str:
    """The name of a published result, with a link where its place is known."""
    return f"[{peer['name']}]({peer['place']})" if "place" in peer else peer["name"]


def published_table() -> str:
    peers = sorted(read("published"), key=lambda peer: -peer["accuracy"])
    rows = [
        [
            cited(peer),
            f"{peer['parameters']:,}",
            format(peer["epochs"], ",") if peer["epochs"] else "",
            f"{peer['accuracy']:.2f}",
            peer["note"],
        ]
        for peer in peers
    ]
    return table(["published", "parameters", "epochs", "test accuracy, %", "what it is"], rows)


def frontier_sizes() -> list[tuple[str, int, list[float]]]:
    """Return name, parameters and final accuracies of `Net` at every size, the smallest first."""
    sizes: dict[tuple[str, int], list[float]] = {}
    for run in read("frontier")["runs"]:
        sizes.setdefault((run["variant"], run["parameters"]), []).append(run["test_accuracy"][-1])
    for report in read_results():
        if report["network"] in ("Net", "Nano") and report["epochs"] == FULL:
            sizes[f"`{report['network']}`", report["parameters"]] = finals(report)
    return sorted(((name, size, values) for (name, size), values in sizes.items()), key=lambda entry: entry[1])


def frontier_table() -> str:
    published, rows = read("published"), []
    for name, size, values in frontier_sizes():
        smaller = [peer["accuracy"] for peer in published if peer["parameters"] <= size]
        best = f"{max(smaller):.2f}" if smaller else ""
        spans = f"{min(values):.2f} – {max(values):.2f}"
        rows.append([name, f"{size:,}", str(len(values)), spread(values, "**"), spans, best])
    head = ["stem / early / late", "parameters", "seeds", "final test accuracy, %: mean ± sd", "min – max"]
    return table([*head, "best published run of at most that size"], rows)


def repeated_table() -> str:
    """The best published training under 8,000 parameters, over many seeds, by two recipes, beside `Net`."""
    repeated, net = read("repeated"), read("accuracy-net")
    rows = []
    for name in repeated["variants"]:
        values = finals(of_variant(repeated, name))
        rows.append([f"the published network, {name}", repeated["parameters"], values])
    rows.append(["`Net`, this kit's recipe", net["parameters"], finals(net)])
    return table(
        ["network and recipe", "parameters", "seeds", "final test accuracy, %: mean ± sd", "min – max"],
        [
            [name, f"{parameters:,}", str(len(values)), spread(values), f"{min(values):.2f} – {max(values):.2f}"]
            for name, parameters, values in rows
        ],
    )


def paired_table(head: str, names: list[str], reports: list[dict[str, Any]]) -> str:
    """Two variants over the seeds that both have, and the mean difference of the pairs."""
    one, other = ({run["seed"]: run for run in report["runs"]} for report in reports)
    seeds = sorted(one.keys() & other.keys())
    values = [[runs[seed]["test_accuracy"][-1] for seed in seeds] for runs in (one, other)]
    rows = [
        [name, str(len(seeds)), spread(accuracies), f"{min(accuracies):.2f} – {max(accuracies):.2f}"]
        for name, accuracies in zip(names, values, strict=True)
    ]
    change = paired_difference(*reversed(values))
    return (
        f"{table([head, 'seeds', 'final test accuracy, %: mean ± sd', 'min – max'], rows)}\n\nThe difference of the "
        f"pairs: {change.mean:+.3f} points, 95 % interval {change.low:+.3f} to {change.high:+.3f}."
    )


def views_table() -> str:
    """`Net` tested by one view of each image and by five."""
    views = read("views")
    reports = [of_variant(views, name) for name in ("one view", "five shifted views")]
    one, five = ({run["seed"]: run["train_loss"] for run in report["runs"]} for report in reports)
    seeds = one.keys() & five.keys()
    same = sum(one[seed] == five[seed] for seed in seeds)
    return (
        f"{paired_table('`Net`, tested by', ['one view', 'five views, `ShiftedViews`'], reports)} "
        f"In {same} of the {len(seeds)} pairs the losses of training are the same in every epoch."
    )


def subsample_table() -> str:
    """`Net` with all images in each epoch, and with a share of them in all but the first."""
    reports = [read("accuracy-net"), read("accuracy-net-subsample")]
    share = reports[1]["config"]["subsample"]
    return paired_table("each epoch but the first visits", ["all images", f"`subsample={share}`"], reports)


def field_entries() -> list[dict[str, Any]]:
    """Return this kit's full-length results and the published ones, as `plot_field` takes them."""
    ours = [
        {
            "name": report["network"],
            "parameters": report["parameters"],
            "accuracy": mean(finals(report)),
            "spread": deviation(finals(report)),
            "kind": "ours",
        }
        for report in read_results()
        if report["epochs"] == FULL
    ]
    published = [
        {key: peer[key] for key in ("parameters", "accuracy")}
        | {"name": f"{peer['accuracy']:.2f}", "spread": None, "kind": "published"}
        for peer in read("published")
    ]
    family: list[dict[str, Any]] = []
    for name, size, values in frontier_sizes():  # the frontier itself: sizes that no smaller network reaches
        if not family or mean(values) > family[-1]["accuracy"]:
            entry = {"name": name, "parameters": size, "accuracy": mean(values), "spread": deviation(values)}
            family.append(entry | {"kind": "family"})
    return ours + published + family


# ------------------------------------------------------------------------------------------- Recipe and attempts


def recipe_text() -> str:
    return f"```python\n{utils.Recipe()!r}\n```"


def ablation_summary() -> list[dict[str, Any]]:
    """Return the statistics of each variant as `compare` gives them: the baseline, then the highest loss first."""
    report = read("ablation")
    settings = {name: {"recipe": report["config"] | own} for name, own in report["variants"].items()}
    baseline, *others = summarize(settings, report["runs"])
    return [baseline, *sorted((row for row in others if row["seeds"]), key=lambda row: -row["loss"]["mean"])]


def ablation_table() -> str:
    rows = []
    for row in ablation_summary():
        cells = [row["variant"]]
        for measure, digits in (("loss", 4), ("accuracy", 2)):
            sd = row[measure]["sd"]
            cells.append(f"{row[measure]['mean']:.{digits}f}" + ("" if sd is None else f" ± {sd:.{digits}f}"))
            cells.append(interval(row[measure]["difference"], digits))
        rows.append([*cells, judged(row)])
    head = ["variant", "validation loss", "change, 95 % interval", "validation accuracy, %", "change, 95 % interval"]
    return table([*head, "the change is"], rows)


def interval(difference: dict[str, Any] | None, digits: int) -> str:
    """The mean difference with its interval, as far as there is one."""
    values = [difference[key] for key in ("mean", "low", "high")] if difference else []
    found = [f"{value:+.{digits}f}" for value in values if value is not None]
    return f"{found[0]} ({found[1]} to {found[2]})" if len(found) == 3 else "".join(found)


def judged(row: dict[str, Any]) -> str:
    """Say whether the loss or the accuracy of a variant differs clearly from the baseline's."""
    better = {"loss": -1, "accuracy": 1}
    clear = {name: row[name]["difference"]["mean"] * sign > 0 for name, sign in better.items() if is_clear(row[name])}
    if not clear:
        return "not clear" if row["accuracy"]["difference"] else ""
    return ", ".join(f"{'better' if gain else '**worse**'} in {name}" for name, gain in clear.items())


def is_clear(figures: dict[str, Any]) -> bool:
    return bool(figures["difference"] and figures["difference"]["clear"])


def parts_text() -> str:
    """Which changes to the recipe clearly raise the loss, and how many do not: two sentences."""
    baseline, *others = ablation_summary()
    rows = [row for row in others if row["loss"]["difference"]]
    changes = {row["variant"]: row["loss"]["difference"]["mean"] for row in rows}
    worse = [row["variant"] for row in rows if is_clear(row["loss"]) and changes[row["variant"]] > 0]
    seeds = min(row["accuracy"]["difference"]["pairs"] for row in rows)
    return (
        f"Over {seeds} seeds, only these changes clearly raise the validation loss of `Net`, which is "
        f"{baseline['loss']['mean']:.4f}: {'; '.join(f'{name} ({changes[name]:+.4f})' for name in worse)}. "
        f"Other changes tried, without a clear rise: {len(changes) - len(worse)}."
    )


def ablation_text() -> str:
    """What each change of the augmentation did to the validation loss."""
    wanted = re.compile(r"no augmentation|without (rotation|translation|scale|shear|elastic)|with erasing")
    return "validation loss: " + "; ".join(
        f"{row['variant']} {row['loss']['difference']['mean']:+.4f}"
        for row in ablation_summary()
        if wanted.match(row["variant"])
    )


def attempts_table() -> str:
    """The story: what each attempt was for, what came of it, what it taught."""
    results = {report["network"]: report for report in read_results() if report["epochs"] == FULL}
    published = next(peer for peer in read("published") if "Attempt2" in peer["name"])
    net, attempt2, nano = (results[name] for name in ORDER)

    def outcome(report: dict[str, Any]) -> str:
        return f"{spread(finals(report))} % over {len(report['runs'])} seeds, {report['parameters']:,} parameters"

    gain = mean(finals(attempt2)) - published["accuracy"]
    share = f"{100 * nano['parameters'] / net['parameters']:.0f} %"
    points = mean(finals(net)) - mean(finals(nano))
    rows = [
        [
            "`Attempt2` as published",
            "99.4 %, fewer than 8,000 parameters, 15 epochs",
            f"{published['accuracy']:.2f} %, its best epoch, {published['parameters']:,} parameters",
            "Without random erasing it did better than with; it seemed too small.",
        ],
        [
            "`Attempt2`, this kit's recipe",
            "the same layers, trained better",
            outcome(attempt2),
            f"{gain:+.2f} points with the same layers: the recipe was the limit, not the layout.",
        ],
        [
            "Which transformations suit these digits?",
            "each taken out of the recipe, or put in, on the validation split",
            ablation_text(),
            "Together they help; the effect of each alone is within the noise.",
        ],
        [
            "`Net`",
            "as high as fewer than 8,000 parameters go",
            outcome(net),
            "Separable convolutions, 1×1 across and 3×3 within channels, buy twice the channels for the same weights.",
        ],
        [
            "`Nano`",
            "99.4 % with the fewest parameters",
            outcome(nano),
            f"Narrower blocks, a stem at full resolution: {share} of `Net`'s parameters for {points:.2f} points.",
        ],
    ]
    return table(["attempt", "target", "result", "analysis"], rows)


def summary_of(network: str) -> Callable[[], str]:
    def text() -> str:
        with redirect_stdout(StringIO()):
            return "```text\n" + model.summary(getattr(model, network)()).rstrip("\n") + "\n```"

    return text


# --------------------------------------------------------------------------------------------- Speed and faults


def speed_text() -> str:
    """A table with a row for each part that was measured, and what explains it."""
    speed = read("speed")
    versions = speed["versions"]
    where = f"{named(speed['machine'])}; Python {versions['python']}, torch {versions['torch']}."
    head = ["", "this kit", "compared with", "ratio"]
    lines = [" ".join([where, *whole_training(speed)]), *earlier_layers(speed, ORDER)]
    for other in other_speeds():
        lines.append(" ".join([other_machine(other), *whole_training(other), *earlier_layers(other, ORDER)]))
    return "\n\n".join([table(head, speed_rows(speed)), *lines, *speed_remarks(speed)])


def earlier_layers(speed: dict[str, Any], networks: list[str]) -> list[str]:
    """Return a sentence for each of `networks` that has had its layers changed since `speed` was measured."""
    parameters, layers = speed["config"]["parameters"], speed["config"]["layers"]
    return [
        f"This was an earlier `{name}`, of {parameters[name]:,} parameters."
        for name in networks
        if name in layers and layers[name] != records.layers(getattr(model, name)())
    ]


def other_speeds() -> list[dict[str, Any]]:
    """Return what was measured on other machines; a run that was cut short before its part epoch ended is left out."""
    others = [read(path.stem) for path in sorted(RESULTS.glob("speed-*.json"))]
    return [other for other in others if "epoch" in other]


def named(machine: dict[str, Any]) -> str:
    return f"{machine['cores']} cores of an {machine['processor']} ({machine['instructions']})"


def other_machine(speed: dict[str, Any]) -> str:
    """What an epoch takes on another machine."""
    epochs = [
        f"an epoch of `{network}`, median of {len(epoch['kit_s'])}, takes this kit {median(epoch['kit_s']):.1f} s, "
        f"the usual loop {median(epoch['usual_s']):.1f} s ({epoch['ratio']:.1f} ×)"
        for network, epoch in measured_networks(speed, "epoch")
    ]
    return f"On another machine, {named(speed['machine'])}: {'; '.join(epochs)}."


def speed_rows(speed: dict[str, Any]) -> list[list[str]]:
    rows = []
    for network, epoch in measured_networks(speed, "epoch"):
        kit, usual = (f"{median(epoch[f'{loop}_s']):.1f} s ({side(epoch[loop])})" for loop in ("kit", "usual"))
        label = f"one epoch of `{network}`, training and test: median of {len(epoch['kit_s'])}"
        rows.append([label, kit, f"the usual loop: {usual}", f"**{epoch['ratio']:.1f} ×**"])
    if job := speed.get("job"):
        count, reached, epochs = len(job["kit_s"]), job["reached"], job["recipe"]["epochs"]
        first, accuracy = mean(job["usual_first_epoch_s"]), mean(job["usual_first_epoch_accuracies"])
        label = f"from the start of the process to {TARGET:.2f} %, `{job['network']}`: mean of {count} seeds"
        share = job["recipe"].get("subsample", 1)
        later = f", all but the first on {100 * share:.0f} % of the images" if share < 1 else ""
        times = f"{mean(job['kit_s']):.1f} s ({min(job['kit_s']):.1f} to {max(job['kit_s']):.1f} s)"
        kit = f"{times}; {reached} of {count} reached it within {epochs} epochs{later}"
        usual = f"the usual loop's first epoch: {first:.1f} s, at {accuracy:.2f} %"
        takes = f"takes {1 / job['ratio']:.1f} × as long as that epoch"
        rows.append([label, kit, usual, takes if reached == count else "not reached by all"])
    if start := speed.get("start"):
        first, imports = median(start["first_step_s"]), median(start["import_torch_s"])
        label = "from the start of the process to the end of the first training step"
        rows.append([label, f"{first:.1f} s", f"`import torch`: {imports:.1f} s", f"+{start['above_import_s']:.1f} s"])
    if limit := speed.get("limit"):
        step, product = (f"{limit[key] / 1e9:.0f} GFLOP/s" for key in ("step_flop_s", "matmul_flop_s"))
        label = "useful operations of a training step of `Net`"
        rows.append([label, step, f"an fp32 matrix product: {product}", f"**{limit['ratio']:.2f}**"])
    if peers := measured_networks(speed, "peers"):
        label = (
            f"a training step of {' and '.join(f'`{name}`' for name, _ in peers)}, beside the fastest other framework"
        )
        kit = ", ".join(f"{1000 * figures['step_s'][KIT]:.0f} ms" for _, figures in peers)
        best = [min((v, name) for name, v in figures["step_s"].items() if name != KIT) for _, figures in peers]
        others = ", ".join(f"{name} {1000 * value:.0f} ms" for value, name in best)
        rows.append([label, kit, others, ", ".join(f"**{figures['ratio']:.1f} ×**" for _, figures in peers)])
    return rows


def measured_networks(speed: dict[str, Any], part: str) -> list[tuple[str, dict[str, Any]]]:
    return [(name, speed[part][name]) for name in ORDER if name in speed.get(part, {})]


def side(settings: dict[str, Any]) -> str:
    """The numbers of threads and workers of one side."""
    return in_words(f"{settings['threads']} threads, {settings['workers']} workers")


def in_words(name: str) -> str:
    """Say "1 threads, 0 workers", as in speed.json, as people do."""
    return name.replace("1 threads", "1 thread").removesuffix(", 0 workers")


def whole_training(speed: dict[str, Any]) -> list[str]:
    """What the default training takes, a sentence, if it was measured."""
    if (training := speed.get("training")) is None:
        return []
    seconds, threads = median(training["kit_s"]), in_words(f"{training['threads']} threads")
    also = ""
    if "subsample" in speed:
        also = f"; with `subsample={speed['config']['subsample']}`, {median(speed['subsample']['kit_s']):.0f} s"
    return [f"The whole default training of `Net` takes this kit {seconds:.0f} s with {threads}{also}."]


def speed_remarks(speed: dict[str, Any]) -> list[str]:
    remarks = []
    for network, epoch in measured_networks(speed, "epoch"):
        kit, usual = (
            ", ".join(f"{value:.1f} s with {in_words(name)}" for name, value in epoch[f"{loop}_medians_s"].items())
            for loop in ("kit", "usual")
        )
        remarks.append(f"An epoch of `{network}` takes this kit {kit}; the usual loop {usual}.")
    if job := speed.get("job"):
        peak = f"at most {job['peak_mb_above_imports']:.0f} MB above what the imports take"
        remarks.append(f"Memory, training to {TARGET:.2f} %: {peak}.")
    if growth := speed.get("growth"):
        images = ", ".join(f"{value:.1f} s for {int(count):,}" for count, value in growth["images_s"].items())
        widths = ", ".join(f"{1000 * value:.0f} ms at ×{width}" for width, value in growth["width_step_s"].items())
        remarks.append(f"A training epoch grows with the images: {images}; a step with the width of `Net`: {widths}.")
    if profile := speed.get("profile"):
        shares = list(profile.items())[:8]
        top = ", ".join(f"`{name.removeprefix('aten::')}` {100 * share:.0f} %" for name, share in shares)
        remarks.append(f"Where a step of `Net` spends its time: {top}. Only convolutions count as useful operations.")
    for network, peers in measured_networks(speed, "peers"):
        steps = ", ".join(f"{name} {1000 * value:.0f}" for name, value in peers["step_s"].items())
        remarks.append(f"A training step of `{network}`, in milliseconds: {steps}.")
    if absent := speed.get("peers", {}).get("absent"):
        remarks.append(f"Not installed, so not measured: {', '.join(absent)}.")
    return remarks


def faults_text() -> str:
    faults = read("faults")
    return (
        f"Of {faults['kills']} kills at random moments, {faults['resumes']} came after a finished epoch, and the "
        f"training resumed from it; the other {faults['kills'] - faults['resumes']} began again. "
        f"Finished epochs lost: {faults['lost_epochs']}; checkpoints unreadable: {faults['unreadable']}. Of the "
        f"{faults['whole_runs']} runs that finished, {faults['whole_runs_equal']} equal an uninterrupted one, to the "
        "bit."
    )


def compare_text() -> str:
    """How often `compare` called equal variants different, how often chance does, and whether it found a difference."""
    from scipy import stats

    check = read("compare")
    equal, worse = check["equal"], check["no augmentation"]
    called = sum(comparison["clear"] for comparison in equal)
    found = "a clear" if worse["clear"] else "no clear"
    changes = [comparison["accuracy"]["mean"] for comparison in equal]
    error = stdev(changes) / len(changes) ** 0.5
    loss = worse["loss"]
    chance = stats.binom.sf(called - 1, len(equal), LEVEL)
    since = "" if check.get("config") == as_plain(utils.Recipe()) else " The recipe has been changed since."
    return (
        f"Two equal variants were called different in {called} of {len(equal)} repetitions ({len(equal[0]['seeds'])} "
        f"seeds, {equal[0]['epochs']} epochs, {equal[0]['train_images']:,} training and "
        f"{equal[0]['test_images']:,} validation images each); over all repetitions the second differed by "
        f"{mean(changes):+.2f} ± {error:.2f} points (standard error). Chance alone calls 1 in {1 / LEVEL:.0f} "
        f"different, and {called} or more of {len(equal)} with a probability of {chance:.2f}.\n\n"
        f"Between the recipe and the same without augmentation it found {found} difference: {loss['mean']:+.4f} in "
        f"loss, 95 % interval {loss['low']:+.4f} to {loss['high']:+.4f} ({len(worse['seeds'])} seeds, "
        f"{worse['epochs']} epochs, {worse['train_images']:,} training and {worse['test_images']:,} validation "
        f"images).{since}"
    )


def handwriting_text() -> str:
    report = read("handwriting")
    rows = [["MNIST's own image, not prepared", f"{report['original']:.1f}"]]
    rows += [[condition, f"{percent:.1f}"] for condition, percent in report["read"].items()]
    remark = (
        f"One `{report['network']}`, trained once; {report['images']:,} {report['split']} digits of MNIST, each drawn "
        "as a picture under each condition. None of these pictures is a real photo. Pictures that are refused count "
        f"as misread: {sum(report['refused'].values())} were."
    )
    return table(["condition", "read correctly, %"], rows) + "\n\n" + remark
