"""Lists the commands: `python -m mcn_jax`."""

import sys

from mcn_jax.terminal import run_command

# {module under mcn_jax: what its command does}
COMMANDS = {
    "main": "train a network, or resume a run",
    "evaluate": "measure accuracy and calibration on the test split",
    "report": "compare runs in a table and in figures",
    "inspect_checkpoint": "show what each layer holds and costs",
    "export": "write model.safetensors and model.onnx",
    "predict": "classify images",
    "data": "prepare, verify and show a data set",
}


def main() -> None:
    """Prints one line per command; any argument but --help ends it with exit code 2."""
    arguments = sys.argv[1:]
    if arguments and arguments[0] not in ("-h", "--help"):
        name = arguments[0]
        command = "main" if name == "train" else name
        remedy = f"run python -m mcn_jax.{command}"
        if command not in COMMANDS:
            remedy = "python -m mcn_jax lists the commands"
        print(f"mcn_jax: error: {name!r} is not an argument; {remedy}", file=sys.stderr)
        sys.exit(2)
    width = max(map(len, COMMANDS))
    print("usage: python -m mcn_jax.COMMAND [arguments]; every command has --help\n")
    for name, does in COMMANDS.items():
        print(f"  python -m mcn_jax.{name:{width}}  {does}")


if __name__ == "__main__":
    run_command("__main__", main)
