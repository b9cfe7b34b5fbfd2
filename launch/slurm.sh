#!/usr/bin/env bash
# Trains one run on several nodes of a Slurm cluster, with one process per GPU.
#
#   sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 launch/slurm.sh FLAG...
#   sbatch launch/slurm.sh --config=configs/cifar10.py --workdir=/shared/runs/cifar10
#
# The flags are the flags of `python -m mcn_jax.main`. All nodes must see the work directory. The
# environment variable PYTHON names the interpreter. Its default is .venv/bin/python in the
# directory of the sbatch call if it exists, else python.
#
# JAX finds the tasks through Slurm's variables, and gives each task one GPU of its node. On nodes
# without GPUs, use one task per node.
#
# Two minutes before the job's time limit, Slurm sends SIGTERM to the tasks. They save and end with
# code 75, and the job is requeued under the same job number to resume. The same happens when a node
# is preempted. If a task is lost, the others end by themselves. The job is then requeued too, up to
# MAX_FAULTS times (default: 5).
#SBATCH --job-name=mcn
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -u

# Slurm runs a copy of this file, so .venv is looked up in the directory of the sbatch call.
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
srun "${PYTHON:-python}" -m mcn_jax.main "$@"
code=$?
counter=.mcn_faults.$SLURM_JOB_ID
faults=$(cat "$counter" 2> /dev/null || echo 0)
if [ "$code" -gt 128 ]; then
  faults=$((faults + 1))
  echo "$faults" > "$counter"
fi
if [ "$code" -eq 75 ] || { [ "$code" -gt 128 ] && [ "$faults" -le "${MAX_FAULTS:-5}" ]; }; then
  echo "launch/slurm.sh: code $code, $faults faults so far; requeued to resume"
  scontrol requeue "$SLURM_JOB_ID"
else
  rm -f "$counter"
fi
exit "$code"
