#!/usr/bin/env bash
# One run on several nodes of a Slurm cluster, one process a GPU.
#
#   sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 launch/slurm.sh FLAG...
#   sbatch launch/slurm.sh --config=configs/cifar10.py --workdir=/shared/runs/cifar10
#
# The flags are those of `python -m mcn_jax.main`; the work directory must lie where all nodes see
# it. JAX finds the tasks by Slurm's variables and gives each the GPU of its place on the node; on
# nodes without GPUs ask for one task a node. Two minutes before the job's time is up Slurm sends
# SIGTERM to the tasks: they save and end with code 75, and the job is queued again under its own
# number, to go on there. So it is when a node is taken back. When a task is lost, srun ends the
# others; the job is queued again up to MAX_RESTARTS times.
#SBATCH --job-name=mcn
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -u

# Slurm runs a copy of this file, from the directory that sbatch was called in.
srun --kill-on-bad-exit=1 "${PYTHON:-python}" -m mcn_jax.main "$@"
code=$?
restarts=${SLURM_RESTART_COUNT:-0}
if [ "$code" -eq 75 ] || { [ "$code" -gt 128 ] && [ "$restarts" -lt "${MAX_RESTARTS:-5}" ]; }; then
  echo "launch/slurm.sh: code $code after $restarts restarts; queued again to go on"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
