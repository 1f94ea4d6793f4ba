"""Alter files at random, and check that kdcache rejects each one or reads it as what it has become.

    python benchmarks/fuzz.py --n 2000 --out docs/results/fuzz.md

``--only store:17`` repeats one file. Exits with 1 after a failure.
"""

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from common import make_parser, table, write_page

from tests.fuzz import FAILED, KINDS, MEMORY_BYTES, PASSED, TIMEOUT_SECONDS, fuzz


def main() -> int:
    """Alter files of all kinds, and write the page."""
    parser = make_parser(__doc__)
    parser.add_argument("--n", type=int, default=2000, help="files of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="KIND[:NUMBER]", help="try one kind, or one of its files")
    chosen = parser.parse_args()
    only, _, number = (chosen.only or "").partition(":")
    numbers = range(int(number), int(number) + 1) if number else range(chosen.n)
    started, rows, failures = time.perf_counter(), [], 0
    for kind in [only] if only else KINDS:
        with tempfile.TemporaryDirectory() as folder:
            verdicts = fuzz(kind, Path(folder), chosen.seed, numbers)
        counts = Counter(verdict.word for verdict in verdicts.values())
        rows.append([kind, len(verdicts), *(counts[word] for word in (*PASSED, *FAILED))])
        for number, verdict in verdicts.items():
            if verdict.word in FAILED:
                failures += 1
                print(f"{kind}:{number} with seed {chosen.seed}: {verdict.word} {verdict.detail}", file=sys.stderr)
    write_page(
        chosen.out,
        "Altered files",
        f"{len(rows) * len(numbers)} files in {time.perf_counter() - started:.0f} s. Valid files of each kind were "
        "altered at random: their bytes, the JSON or TOML in them, their contents, or the files around them. Each "
        "one was read in a process that may crash.",
        "- *rejected*: an error of kdcache with a printable message; for a store also that a chunk was found missing "
        "or damaged, was not used, and was computed again\n"
        "- *named*: a resumed run with the same network, metrics and counts, which said which statistics are lost\n"
        "- *different*: read as the other valid file that it now is, where the format has no checksum or the checksum "
        "was forged: a config with another value; images or weights with another fingerprint, which a store refuses\n"
        f"- *memory*: more than {MEMORY_BYTES // 2**20} MB for one file; *hang*: more than {TIMEOUT_SECONDS:.0f} s\n"
        "- *wrong*: damage not detected, code in a file run, or something outside the file's folder written",
        table(("kind", "files", *PASSED, *FAILED), rows),
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
