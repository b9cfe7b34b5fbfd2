#!/usr/bin/env bash
# One run on several nodes of a Slurm cluster, one process a GPU.
#
#   sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 launch/slurm.sh FLAG...
#   sbatch launch/slurm.sh --config=configs/cifar10.py --workdir=/shared/runs/cifar10
#
# The flags are those of `python -m mcn_jax.main`, of PYTHON or .venv/bin/python here; the work directory must lie where all nodes see
# it. JAX finds the tasks by Slurm's variables and gives each the GPU of its place on the node; on
# nodes without GPUs ask for one task a node. Two minutes before the job's time is up Slurm sends
# SIGTERM to the tasks: they save and end with code 75, and the job is queued again under its own
# number, to go on there. So it is when a node is taken back. When a task is lost, the others end by
# themselves, and the job is queued again up to MAX_FAULTS times.
#SBATCH --job-name=mcn
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -u

# Slurm runs a copy of this file, from the directory that sbatch was called in.
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
  echo "launch/slurm.sh: code $code, $faults faults so far; queued again to go on"
  scontrol requeue "$SLURM_JOB_ID"
else
  rm -f "$counter"
fi
exit "$code"
