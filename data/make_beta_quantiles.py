"""Write ``beta_quantiles.json``: quantiles of Beta(a, a) for each a of `kdcache.config.augs.BETA_SHAPES` but 1.

For each a, the quantiles of 0, 1/1024, ..., 1/2, in parts of 2^-24. Lambda is drawn from this file, so that it is the
same on every machine and with every version of scipy. Do not write it again: other numbers are other views.
"""

import json
from pathlib import Path

from scipy.special import betaincinv

from kdcache.config.augs import BETA_SHAPES

FILE = Path(__file__).with_name("beta_quantiles.json")

INTERVALS = 1024


def quantiles(alpha: float) -> list[int]:
    return [round(2**24 * betaincinv(alpha, alpha, number / INTERVALS)) for number in range(INTERVALS // 2 + 1)]


def main() -> None:
    lines = (f'"{alpha}": {json.dumps(quantiles(alpha), separators=(",", ":"))}' for alpha in BETA_SHAPES if alpha != 1)
    FILE.write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
