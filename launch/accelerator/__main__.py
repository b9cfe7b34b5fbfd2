"""Starts the command of accelerator.sh, or says which package its interpreter lacks."""

import sys

try:
    from command import main
except ModuleNotFoundError as error:
    sys.exit(
        f"launch/accelerator.sh: error: {sys.executable} has no package {error.name}; set PYTHON to"
        " an interpreter that has it, or carry its wheel in a load"
    )

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
