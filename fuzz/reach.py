"""Which lines do inputs reach? Replays folders through a target under coverage: `python -m fuzz.reach NAME FOLDER...`."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import coverage

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    name, *folders = sys.argv[1:]
    measured = coverage.Coverage(data_file=None, config_file=False, include=[str(ROOT / "modeld" / "*")])
    measured.start()
    from fuzz import target  # only now: what runs when a module is imported counts

    tested = target.named(name)
    inputs = [path.read_bytes() for folder in folders for path in sorted(Path(folder).iterdir())]
    outcomes = Counter(target.run(tested, data) for data in inputs)
    measured.stop()
    print(f"  {len(inputs)} inputs: " + ", ".join(f"{n} {outcome}" for outcome, n in outcomes.most_common()))
    for module in tested.modules:
        path, lines, _, missed, shown = measured.analysis2(sys.modules[module])
        share = 100 * (len(lines) - len(missed)) / len(lines)
        tail = f"; never reached: {shown}" if missed else ""
        print(f"  {Path(path).relative_to(ROOT)}: {share:.1f} % of {len(lines)} lines{tail}")


if __name__ == "__main__":
    main()
