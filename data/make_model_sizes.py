"""Write ``model_sizes.json``: the networks of kdcache and their sizes, which the command line reads without torch."""

import json
from pathlib import Path

from kdcache.models.sizes import model_sizes

FILE = Path(__file__).with_name("model_sizes.json")


def main() -> None:
    sizes = {name: size._asdict() for name, size in model_sizes(num_classes=100, image_size=32).items()}
    FILE.write_text(json.dumps(sizes, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
