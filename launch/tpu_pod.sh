#!/usr/bin/env bash
# Trains one run on all workers of a TPU pod slice in Google Cloud, from a machine with gcloud.
#
#   launch/tpu_pod.sh NAME ZONE FLAG...
#   launch/tpu_pod.sh my-v4-32 us-central2-b --config=configs/imagenet100.py --workdir=/shared/run
#
# The flags are the flags of `python -m mcn_jax.main`. The work directory must be on a file system
# that all workers mount. Before the first run, install the package on all workers:
#
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all --command='git clone URL mcn_jax &&
#     cd mcn_jax && pip install -r requirements.txt "jax[tpu]" && pip install --no-deps -e .'
#
# Every worker runs the same command, and JAX finds the others through the pod's metadata. Before
# maintenance, a TPU sends SIGTERM. All workers then save and end with code 75, and the same command
# resumes.
set -eu

if [ $# -lt 3 ]; then
  echo "launch/tpu_pod.sh: error: usage: launch/tpu_pod.sh NAME ZONE FLAG..." >&2
  exit 2
fi
name=$1 zone=$2
shift 2
printf -v flags ' %q' "$@"
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="cd mcn_jax && python3 -m mcn_jax.main --several_hosts$flags"
