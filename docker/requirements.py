"""Print the requirements of a setup.cfg, one per line: `requirements.py setup.cfg EXTRA,EXTRA`.

The images install them in a separate layer below the code, because the code changes more often.
"""

from __future__ import annotations

import configparser
import sys


def requirements(file: str, extras: list[str]) -> list[str]:
    """Read the requirements of a package and of some of its extras.

    Args:
        file: Path of the setup.cfg.
        extras: Names of the extras.

    Raises:
        KeyError: There is no extra of that name.
    """
    config = configparser.ConfigParser()
    config.read(file, encoding="utf-8")
    texts = [config["options"]["install_requires"], *(config["options.extras_require"][extra] for extra in extras)]
    return [line for text in texts for line in text.splitlines() if line]


if __name__ == "__main__":
    sys.stdout.write("\n".join(requirements(sys.argv[1], [extra for extra in sys.argv[2].split(",") if extra])) + "\n")
