#!/usr/bin/env bash
# Runs one stage of the accelerator queue within a time budget, on a machine without internet access.
#
#   launch/accelerator.sh --list                        the stages, and how long each takes
#   launch/accelerator.sh STAGE                         runs a stage
#   launch/accelerator.sh STAGE --budget=240            ... in 240 seconds
#   launch/accelerator.sh STAGE --resume=DIR            continues from the files of an earlier call
#   launch/accelerator.sh STAGE --rehearse              runs the stage at tiny size, also on a CPU
#
# `launch/accelerator.sh --help` lists all options. launch/accelerator/pack.py makes the loads that
# a stage needs: wheels of the packages that the machine lacks, and packed data sets. By default,
# they are in .carry/. Environment variables:
#   PYTHON   Python interpreter; default: .venv/bin/python if it exists, else python3
#   OUT      directory for the results; default: STORE/out
#
# Exit codes: 0, all is done; 75, stopped by the clock or a signal, and the same stage resumes;
# 1, an error; 2, a wrong option.
set -euo pipefail
started=$(date +%s.%N)
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-}
if [ -z "$python" ] && [ -x "$root/.venv/bin/python" ]; then python=$root/.venv/bin/python; fi
python=${python:-python3}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT

loads=.carry
previous=
for argument in "$@"; do
  if [ "$previous" = --loads ]; then loads=$argument; fi
  case $argument in --loads=*) loads=${argument#--loads=} ;; esac
  previous=$argument
done
case $loads in "~/"*) loads=~/${loads#"~/"} ;; esac
# Pure Python wheels need no installer.
for wheel in "$loads"/*/wheels/*.whl; do
  if [ -f "$wheel" ]; then "$python" -m zipfile -e "$wheel" "$site"; fi
done
export PYTHONPATH="$root:$site${PYTHONPATH:+:$PYTHONPATH}"
"$python" "$root/launch/accelerator" --started="$started" "$@" &
child=$!
trap 'interrupted=yes; kill -TERM "$child" 2> /dev/null || true' TERM INT
while :; do # a signal ends the wait
  interrupted='' code=0
  wait "$child" || code=$?
  if [ -z "$interrupted" ]; then break; fi
done
exit "$code"
