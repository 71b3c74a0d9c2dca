"""Write the README's tables, between their markers, from the result files: no figure in them is typed by hand.

python benchmarks/report.py            # rewrites README.md
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
from statistics import mean, stdev
from typing import Any

from scipy import stats

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import model  # noqa: E402
from data import write_atomically  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
TARGET = 99.40
ORDER = ["Net", "Attempt2", "Nano"]


def read_results(dataset: str) -> list[dict[str, Any]]:
    """The result files of `dataset`, the full-length runs first, in the order of ORDER."""
    reports = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("accuracy-*.json"))]
    reports = [report for report in reports if report.get("dataset", "mnist") == dataset]
    return sorted(reports, key=lambda report: (-report["epochs"], ORDER.index(report["network"])))


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def accuracy_row(report: dict[str, Any]) -> list[str]:
    finals = [run["test_accuracy"][-1] for run in report["runs"]]
    centre, spread = mean(finals), stdev(finals)
    half = stats.t.ppf(0.975, len(finals) - 1) * spread / len(finals) ** 0.5
    p = stats.ttest_1samp(finals, TARGET, alternative="greater").pvalue
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
    ]


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
    ]
    return table(head, [accuracy_row(report) for report in read_results("mnist")])


def fashion_table() -> str:
    head = ["Fashion-MNIST", "parameters", "epochs", "seeds", "final test accuracy, %: mean ± sd", "min – max"]
    return table(head, [accuracy_row(report)[:6] for report in read_results("fashion-mnist")])


def published_table() -> str:
    peers = json.loads((RESULTS / "published.json").read_text())
    rows = [
        [peer["name"], f"{peer['parameters']:,}", f"{peer['accuracy']:.2f}", peer["note"]]
        for peer in sorted(peers, key=lambda peer: -peer["accuracy"])
    ]
    return table(["published", "parameters", "test accuracy, %", "what it is"], rows)


def ablation_table() -> str:
    report = json.loads((RESULTS / "ablation.json").read_text())
    names = list(dict.fromkeys(run["part"] for run in report["runs"]))
    runs = {name: [run for run in report["runs"] if run["part"] == name] for name in names}
    full = {run["seed"]: run for run in runs[names[0]]}
    rows = []
    for name in names:
        finals = [run["test_accuracy"][-1] for run in runs[name]]
        # Compared seed by seed: the same images, the same first weights.
        gaps = [run["test_accuracy"][-1] - full[run["seed"]]["test_accuracy"][-1] for run in runs[name]]
        change = "" if name == names[0] else f"{mean(gaps):+.2f}"
        loss = mean(run["test_loss"][-1] for run in runs[name])
        rows.append([name, str(len(finals)), f"{mean(finals):.2f} ± {stdev(finals):.2f}", change, f"{loss:.4f}"])
    return table(["recipe", "seeds", "validation accuracy, %: mean ± sd", "change", "validation loss"], rows)


def faults_text() -> str:
    faults = json.loads((RESULTS / "faults.json").read_text())
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
    "accuracy": accuracy_table,
    "fashion": fashion_table,
    "published": published_table,
    "ablation": ablation_table,
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


def main() -> None:
    path = ROOT / "README.md"
    before = path.read_text(encoding="utf-8")
    after = fill(before)
    if "--check" in sys.argv:
        sys.exit(0 if before == after else "README.md is out of date: run python benchmarks/report.py")
    write_atomically(path, after.encode())


if __name__ == "__main__":
    main()
