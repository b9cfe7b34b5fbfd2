#!/usr/bin/env bash
# Several processes of one run on this machine, as on so many hosts.
#
#   launch/local.sh PROCESSES FLAG...
#   launch/local.sh 2 --config=configs/digits.py --workdir=runs/two
#
# The flags are those of `python -m mcn_jax.main`; PYTHON names another interpreter than that of
# .venv, PORT a port for process 0, which is else a free one. Devices are divided by the environment
# as usual: on CPUs with XLA_FLAGS=--xla_force_host_platform_device_count=N, on GPUs with
# CUDA_VISIBLE_DEVICES, which this script sets to one GPU a process where GPUS=1.
#
# Output goes through unchanged, that of all processes together. SIGTERM and SIGINT are passed on to
# all processes; they save and end with code 75, and so does this script. When one process ends in
# another way, the others get 60 seconds, then they are killed; the last line names the first that
# was lost, and the exit code is its own. The same command goes on from the last checkpoint.
set -u

count=${1:-}
if ! [[ $count =~ ^[1-9][0-9]*$ ]]; then
  echo "launch/local.sh: error: the first argument is the number of processes, not '$count'" >&2
  exit 2
fi
shift

if [ -z "${PYTHON:-}" ]; then
  PYTHON=$(cd "$(dirname "$0")/.." && pwd)/.venv/bin/python
  if ! [ -x "$PYTHON" ]; then PYTHON=python; fi
fi
while [ -z "${PORT:-}" ]; do
  PORT=$((20000 + RANDOM % 12000))
  if (exec 3<> "/dev/tcp/127.0.0.1/$PORT") 2> /dev/null; then PORT=''; fi # something listens there
done

declare -A process_of
send() { kill -s "$1" "${!process_of[@]}" 2> /dev/null; }
trap 'asked=yes; send TERM' TERM INT
for ((i = 0; i < count; i++)); do
  if [ -n "${GPUS:-}" ]; then export CUDA_VISIBLE_DEVICES=$i; fi
  "$PYTHON" -m mcn_jax.main "$@" \
    --coordinator_address="127.0.0.1:$PORT" --num_processes="$count" --process_id="$i" &
  process_of[$!]=$i
done

if [ -n "${asked:-}" ]; then send TERM; fi # before the last had started

lost='' code=0
while [ ${#process_of[@]} -gt 0 ]; do
  sleep 0.2
  # Each is asked for: `wait -n` forgets processes that ended at once or before it was called.
  for process in "${!process_of[@]}"; do
    if kill -0 "$process" 2> /dev/null; then continue; fi
    wait "$process" 2> /dev/null
    status=$?
    # A process that stopped as asked to (75) does not hide one that is lost.
    if [ "$status" -ne 0 ] && { [ "$code" -eq 0 ] || [ "$code" -eq 75 ]; }; then
      lost=${process_of[$process]} code=$status
      if [ "$status" -ne 75 ]; then
        (sleep 60; send KILL) > /dev/null 2>&1 &
        killer=$!
      fi
    fi
    unset "process_of[$process]"
  done
done
if [ -n "${killer:-}" ]; then kill "$killer" 2>/dev/null; fi
if [ "$code" -eq 75 ]; then
  echo "launch/local.sh: all processes were asked to stop and have saved; the same command goes on" >&2
elif [ "$code" -ne 0 ]; then
  echo "launch/local.sh: error: process $lost was lost first (code $code), the others ended after it;" \
    "the same command goes on from the last checkpoint" >&2
fi
exit "$code"
