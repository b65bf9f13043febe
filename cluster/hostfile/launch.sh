#!/usr/bin/env bash
# Pretraining on the machines of a hostfile: one torchrun on each, over ssh.
#
#   cluster/hostfile/launch.sh HOSTFILE SHARDS --out RUN --recipe NAME [--flags]
#
# HOSTFILE: lines "host slots=N" (N ranks there; the format of DeepSpeed and Open MPI), # begins a comment. The
# first host is the meeting point. "localhost" is started without ssh. This checkout must be at the same path
# everywhere, SHARDS and RUN on shared storage. When a machine fails the others are stopped.
# PORT: free on the first host (default 29500).  PYTHON: interpreter (default .venv/bin/python).
set -euo pipefail

if (($# < 2)) || [[ ! -r $1 ]]; then
  echo "usage: $0 HOSTFILE SHARDS --out RUN [glomo pretrain flags]; HOSTFILE must be readable" >&2
  exit 2
fi
hostfile=$1
shift
hosts=() slots=()
while read -r host rest; do
  [[ -z $host || $host == \#* ]] && continue
  if [[ ! $rest =~ ^slots=([1-9][0-9]*)([[:space:]]*(#.*)?)$ ]]; then
    echo "$hostfile: expected \"$host slots=N\", got \"$host $rest\"" >&2
    exit 2
  fi
  hosts+=("$host") slots+=("${BASH_REMATCH[1]}")
done < "$hostfile"
if ((${#hosts[@]} == 0)); then
  echo "$hostfile names no host: give lines \"host slots=N\"" >&2
  exit 2
fi

nodes=() # process ids
trap '((${#nodes[@]})) && kill "${nodes[@]}" 2> /dev/null || true' EXIT
for i in "${!hosts[@]}"; do
  command=("${PYTHON:-.venv/bin/python}" -m torch.distributed.run
    --nnodes "${#hosts[@]}" --node-rank "$i" --nproc-per-node "${slots[i]}"
    --master-addr "${hosts[0]}" --master-port "${PORT:-29500}"
    -m glomo_dist.cli pretrain "$@")
  if [[ ${hosts[i]} == localhost ]]; then
    "${command[@]}" &
  else
    # -tt: the remote side ends with this connection
    ssh -tt -o BatchMode=yes "${hosts[i]}" "cd $(printf %q "$PWD") && exec $(printf '%q ' "${command[@]}")" < /dev/null &
  fi
  nodes+=($!)
done
for _ in "${nodes[@]}"; do
  wait -n || exit # the first failure ends the script, and so (trap) the other machines
done
nodes=()
