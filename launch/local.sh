#!/usr/bin/env bash
# Starts several processes of one run on this machine, as if on several hosts.
#
#   launch/local.sh PROCESSES FLAG...
#   launch/local.sh 2 --config=configs/digits.py --workdir=runs/two
#
# The flags are the flags of `python -m mcn_jax.main`. Environment variables:
#   PYTHON     Python interpreter; default: .venv/bin/python if it exists, else python
#   PORT       port for process 0; default: a free port
#   GPUS=1     gives each process one GPU, through CUDA_VISIBLE_DEVICES
#   XLA_FLAGS=--xla_force_host_platform_device_count=N   gives each process N CPU devices
#
# The output of all processes is passed through unchanged. SIGTERM and SIGINT are passed on to all
# processes. They save and end with code 75, and so does this script. If a process ends in another
# way, the others get 60 seconds and are then killed. The last line names the process that was lost
# first, and the exit code is the code of that process. The same command resumes from the last
# checkpoint.
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
  if (exec 3<> "/dev/tcp/127.0.0.1/$PORT") 2> /dev/null; then PORT=''; fi # the port is in use
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

if [ -n "${asked:-}" ]; then send TERM; fi # the signal came before all had started

lost='' code=0
while [ ${#process_of[@]} -gt 0 ]; do
  sleep 0.2
  # Each process is polled, because `wait -n` misses processes that ended together or before it.
  for process in "${!process_of[@]}"; do
    if kill -0 "$process" 2> /dev/null; then continue; fi
    wait "$process" 2> /dev/null
    status=$?
    # The code of a lost process takes precedence over 75, a process that stopped as asked.
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
  echo "launch/local.sh: all processes were asked to stop and have saved; the same command resumes" >&2
elif [ "$code" -ne 0 ]; then
  echo "launch/local.sh: error: process $lost was lost first (code $code), the others ended after it;" \
    "the same command resumes from the last checkpoint" >&2
fi
exit "$code"
