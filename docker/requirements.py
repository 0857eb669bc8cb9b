"""Print the requirements of a setup.cfg, one a line: `requirements.py setup.cfg EXTRA,EXTRA`.

They get a layer of their own in the images, before the code that changes more often.
"""

from __future__ import annotations

import configparser
import sys


def requirements(file: str, extras: list[str]) -> list[str]:
    """Requirements of the package and of these extras.

    Raises:
        KeyError: An extra that is not there.
    """
    config = configparser.ConfigParser()
    config.read(file, encoding="utf-8")
    texts = [config["options"]["install_requires"], *(config["options.extras_require"][extra] for extra in extras)]
    return [line for text in texts for line in text.splitlines() if line]


if __name__ == "__main__":
    sys.stdout.write("\n".join(requirements(sys.argv[1], [extra for extra in sys.argv[2].split(",") if extra])) + "\n")
