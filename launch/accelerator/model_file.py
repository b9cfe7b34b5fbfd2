"""Writes the model file of a run that has ended: `python model_file.py WORKDIR FILE`.

Unlike `python -m mcn_jax.export`, it does not evaluate the network, which would take too long on a
lent machine.
"""

import pathlib
import sys

from mcn_jax.deploy.model_file import model_of, write_model
from mcn_jax.workdirs.trained import read_trained

if __name__ == "__main__":
    trained = read_trained(sys.argv[1])
    shape = trained.data["image_shape"]  # of packed data, whose images all have this shape
    write_model(model_of(trained, tuple(shape)), pathlib.Path(sys.argv[2]))
