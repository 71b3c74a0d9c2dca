"""Write the README's tables, between their markers, and its pictures from the result files: no figure is typed.

python benchmarks/report.py            # rewrites README.md and pictures/
python benchmarks/report.py --check    # says whether README.md is up to date, changes nothing
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

import model
import utils
from kit.runtime import write_atomically

RESULTS = ROOT / "benchmarks" / "results"
PICTURES = ROOT / "pictures"
TARGET = 99.40
ORDER = ["Net", "Attempt2", "Nano"]
WHOLE = "the whole recipe"  # the row of the ablation that the others are compared with


def read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def read_results(dataset: str) -> list[dict[str, Any]]:
    """The result files of `dataset`, the full-length runs first, in the order of ORDER."""
    reports = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("accuracy-*.json"))]
    reports = [report for report in reports if report.get("dataset", "mnist") == dataset]
    return sorted(reports, key=lambda report: (-report["epochs"], ORDER.index(report["network"])))


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def final_accuracies(report: dict[str, Any]) -> list[float]:
    return [run["test_accuracy"][-1] for run in report["runs"]]


def accuracy_row(report: dict[str, Any]) -> list[str]:
    from scipy import stats

    finals = final_accuracies(report)
    centre, spread = mean(finals), stdev(finals)
    half = stats.t.ppf(0.975, len(finals) - 1) * spread / len(finals) ** 0.5
    p = stats.ttest_1samp(finals, TARGET, alternative="greater").pvalue
    views = [run["views_accuracy"] for run in report["runs"] if "views_accuracy" in run]
    worst_of_five = mean(min(run["test_accuracy"][-5:]) for run in report["runs"])
    return [
        f"`{report['network']}`",
        f"{report['parameters']:,}",
        str(report["epochs"]),
        str(len(finals)),
        f"**{centre:.2f}** ± {spread:.2f}",
        f"{min(finals):.2f} – {max(finals):.2f}",
        f"{centre - half:.3f} – {centre + half:.3f}",
        f"{p:.1g}" if p >= 1e-4 else "< 0.0001",
        f"{worst_of_five:.2f}",
        f"{mean(views):.2f}" if views else "",
    ]


def headline_text() -> str:
    net = next(report for report in read_results("mnist") if report["network"] == "Net")
    finals = final_accuracies(net)
    return (
        f"A convolutional network of {net['parameters']:,} parameters reads MNIST's handwritten digits with "
        f"**{mean(finals):.2f} ± {stdev(finals):.2f} %** test accuracy after {net['epochs']} epochs: mean and standard "
        f"deviation of the **final** epoch over {len(finals)} seeds, trained on MNIST's own images alone, on a CPU."
    )


def accuracy_table() -> str:
    head = [
        "network",
        "parameters",
        "epochs",
        "seeds",
        "final test accuracy, %: mean ± sd",
        "min – max",
        "95 % CI of the mean",
        f"p (mean ≤ {TARGET:.2f})",
        "worst of the last 5 epochs, mean",
        "`ShiftedViews`, mean",
    ]
    return table(head, [accuracy_row(report) for report in read_results("mnist")])


def fashion_table() -> str:
    head = ["Fashion-MNIST", "parameters", "epochs", "seeds", "final test accuracy, %: mean ± sd", "min – max"]
    rows = [accuracy_row(report)[:6] for report in read_results("fashion-mnist")]
    published = [
        [cited(peer), "", "", peer["note"], f"{peer['accuracy']:.1f}", ""] for peer in read("published-fashion")
    ]
    return table(head, rows + published)


def published_table() -> str:
    rows = [
        [cited(peer), f"{peer['parameters']:,}", f"{peer['accuracy']:.2f}", peer["note"]]
        for peer in sorted(read("published"), key=lambda peer: -peer["accuracy"])
    ]
    return table(["published", "parameters", "test accuracy, %", "what it is"], rows)


def cited(peer: dict[str, Any]) -> str:
    """The name of a published result, with a link where its place is known."""
    return f"[{peer['name']}]({peer['source']})" if "source" in peer else peer["name"]


def ablation_table() -> str:
    report = read("ablation")
    runs, rows = ablation_runs(), []
    for name, changes in ablation_changes().items():
        finals = [run["test_accuracy"][-1] for run in runs if run["variant"] == name]
        loss = mean(run["test_loss"][-1] for run in runs if run["variant"] == name)
        change = "" if name == WHOLE else f"{mean(changes):+.2f} ± {stdev(changes):.2f}"
        rows.append([name, str(len(finals)), f"{mean(finals):.2f} ± {stdev(finals):.2f}", change, f"{loss:.4f}"])
    accuracy = f"validation accuracy after {report['epochs']} epochs, %: mean ± sd"
    head = ["recipe", "seeds", accuracy, "change, seed by seed", "validation loss"]
    return table(head, rows)


def seconds(values: list[float]) -> str:
    return f"{median(values):.1f} s"


def speed_table() -> str:
    speed = read("speed")
    epoch, job, limit = speed["epoch"], speed["job"], speed["limit"]
    usual_epoch = epoch[f"{epoch['best_usual']}_s"]
    reached = [run["reached"] for run in job["runs"]["kit"]], [run["reached"] for run in job["runs"]["usual"]]
    ends = [run["accuracies"][-1] for run in job["runs"]["usual"]]
    rows = [
        [
            f"one epoch, training and test, `Attempt2` at batch 128: median of {len(epoch['kit_s'])} rounds",
            seconds(epoch["kit_s"]),
            seconds(usual_epoch),
            f"**{epoch['ratio']:.1f} ×**",
        ],
        [
            f"from the start of the process to the first epoch at {TARGET:.2f} %, else to the last: "
            f"mean of {len(job['kit_s'])} seeds, `Net` over {job['epochs']['kit']} epochs, the usual loop over "
            f"{job['epochs']['usual']}",
            f"{mean(job['kit_s']):.0f} s; {sum(reached[0])} of {len(reached[0])} reached it",
            f"{mean(job['usual_s']):.0f} s; {sum(reached[1])} of {len(reached[1])} reached it, "
            f"final accuracy {mean(ends):.2f} %",
            f"**{job['ratio']:.1f} ×**",
        ],
    ]
    machine = f"{speed['machine']['cores']} cores, {speed['machine']['threads']} threads"
    versions = f"Python {speed['versions']['python']}, torch {speed['versions']['torch'].partition('+')[0]}"
    limit_text = (
        f"One training step of `Net` does {limit['step_flop_s'] / 1e9:.0f} GFLOP of useful work a second; a large "
        f"fp32 matrix product does {limit['matmul_flop_s'] / 1e9:.0f} on the same machine: a share of "
        f"{limit['ratio']:.2f}."
    )
    alone = median(epoch["steps_s"])
    share_text = (
        f"The steps of `Attempt2`'s network alone, all on one batch in memory, take {alone:.1f} s of the kit's "
        f"{median(epoch['kit_s']):.1f} s an epoch: a loop that added nothing to them would be "
        f"{median(usual_epoch) / alone:.1f} times as fast as the usual one."
    )
    text = f"{machine}, {versions}. {share_text}\n\n{limit_text} {profile_text(speed['profile'])}"
    text += f"\n\n{growth_text(speed['growth'])}"
    return table(["", "this kit", "the usual loop", "ratio"], rows) + f"\n\n{text}"


def profile_text(profile: dict[str, float]) -> str:
    top = ", ".join(f"`{name.removeprefix('aten::')}` {100 * share:.0f} %" for name, share in list(profile.items())[:8])
    return f"Where the step's time goes: {top}. Only the convolutions do work that is counted."


def growth_text(growth: dict[str, Any]) -> str:
    images = ", ".join(f"{value:.1f} s for {int(count):,}" for count, value in growth["images_s"].items())
    widths = ", ".join(f"{1000 * value:.0f} ms at ×{width}" for width, value in growth["width_step_s"].items())
    return (
        f"A training epoch grows with the images: {images}; a step with the width of `Net`: {widths}. "
        f"Memory rose {growth['peak_mb_above_imports']:.0f} MB above what the imports take."
    )


def published_attempt() -> dict[str, Any]:
    return next(peer for peer in read("published") if "Attempt2" in peer["name"])


def attempts_table() -> str:
    """The story: what each attempt was for, what came of it, what it taught."""
    results = {report["network"]: report for report in read_results("mnist") if report["epochs"] == 15}
    published, net, attempt2, nano = published_attempt(), *(results[name] for name in ORDER)

    def outcome(report: dict[str, Any]) -> str:
        finals = final_accuracies(report)
        count = f"{report['parameters']:,} parameters"
        return f"{mean(finals):.2f} ± {stdev(finals):.2f} % over {len(finals)} seeds, {count}"

    gain = mean(final_accuracies(attempt2)) - published["accuracy"]
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
            "Together they help; each alone, erasing and elastic draws too, is within the noise of three seeds.",
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
            f"The same blocks, narrower: {nano['parameters'] / net['parameters']:.0%} of `Net`'s parameters for "
            f"{mean(final_accuracies(net)) - mean(final_accuracies(nano)):.2f} points.",
        ],
    ]
    return table(["attempt", "target", "result", "analysis"], rows).replace("---:", "---")


def ablation_text() -> str:
    """What each change of the augmentation did to the validation accuracy, in points."""
    changes = ablation_changes()
    wanted = [
        name for name in changes if name.startswith(("no augmentation", "without", "with erasing", "with elastic"))
    ]
    return "; ".join(f"{name} {mean(changes[name]):+.2f}" for name in wanted)


def ablation_runs() -> list[dict[str, Any]]:
    """The runs of the ablation; older files call a variant a part."""
    return [run | {"variant": run.get("variant") or run["part"]} for run in read("ablation")["runs"]]


def ablation_changes() -> dict[str, list[float]]:
    """For each part, its validation accuracy less that of the whole recipe, seed by seed: the same images and start.

    The whole recipe comes first, then what changed most for the worse; parts with fewer than 3 seeds are left out.
    """
    runs = ablation_runs()
    whole = {run["seed"]: run["test_accuracy"][-1] for run in runs if run["variant"] == WHOLE}
    changes: dict[str, list[float]] = {}
    for run in runs:
        changes.setdefault(run["variant"], []).append(run["test_accuracy"][-1] - whole[run["seed"]])
    changes = {name: values for name, values in changes.items() if len(values) >= 3}
    return dict(sorted(changes.items(), key=lambda part: (part[0] != WHOLE, mean(part[1]))))


def field_entries() -> list[dict[str, Any]]:
    """This kit's full-length results and the published ones, as `plot_field` takes them."""
    ours = [
        {
            "name": report["network"],
            "parameters": report["parameters"],
            "accuracy": mean(final_accuracies(report)),
            "spread": stdev(final_accuracies(report)),
            "kind": "ours",
        }
        for report in read_results("mnist")
        if report["epochs"] == 15
    ]
    published = [
        {"name": f"{peer['accuracy']:.2f}", "spread": None, "kind": "published"}
        | {key: peer[key] for key in ("parameters", "accuracy")}
        for peer in read("published")
    ]
    return ours + published


def faults_text() -> str:
    faults = read("faults")
    return (
        f"Of {faults['kills']} kills at random moments, {faults['resumes']} came after a finished epoch and were "
        f"resumed from it, the others began anew; {faults['lost_epochs']} finished epochs were lost, "
        f"{faults['unreadable']} checkpoints unreadable; {faults['whole_runs_equal']} of {faults['whole_runs']} "
        "runs that came to their end equal those that nobody killed, to the bit."
    )


def summary_of(network: str) -> Callable[[], str]:
    def text() -> str:
        with redirect_stdout(StringIO()):
            return "```text\n" + model.summary(getattr(model, network)()).rstrip("\n") + "\n```"

    return text


SECTIONS: dict[str, Callable[[], str]] = {
    "headline": headline_text,
    "accuracy": accuracy_table,
    "fashion": fashion_table,
    "published": published_table,
    "ablation": ablation_table,
    "speed": speed_table,
    "attempts": attempts_table,
    "faults": faults_text,
    **{f"summary-{network}": summary_of(network) for network in ORDER},
}


def fill(readme: str) -> str:
    """`readme` with the text between each pair of markers made anew; ValueError for a marker nobody writes."""

    def section(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in SECTIONS:
            raise ValueError(f"README.md has the marker {name!r}; expected one of {', '.join(SECTIONS)}")
        return f"<!-- report: {name} -->\n{SECTIONS[name]()}\n<!-- end -->"

    return re.sub(r"<!-- report: (?P<name>[\w-]+) -->\n.*?<!-- end -->", section, readme, flags=re.DOTALL)


def draw_pictures() -> None:
    """The README's pictures, each a small PNG file."""
    digits = utils.read_idx(ROOT / "sample" / "train-images-idx3-ubyte.gz")[:, None]
    figures = {
        "field": utils.plot_field(field_entries()),
        "augmentation": utils.plot_augmentation(digits[2:7], utils.Augment()),
        "layers": utils.plot_parameters(model.Net()),
    }
    PICTURES.mkdir(exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(PICTURES / f"{name}.png", dpi=90)


def main() -> None:
    path = ROOT / "README.md"
    before = path.read_text(encoding="utf-8")
    after = fill(before)
    if "--check" in sys.argv:
        sys.exit(0 if before == after else "README.md is out of date: run python benchmarks/report.py")
    write_atomically(path, after.encode())
    draw_pictures()


if __name__ == "__main__":
    main()
