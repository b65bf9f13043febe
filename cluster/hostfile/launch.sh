#!/usr/bin/env bash
# Pretraining on the machines of a hostfile: pretrain_host.sh on each, over ssh.
#
#   cluster/hostfile/launch.sh HOSTFILE SHARDS --out RUN --recipe NAME [--flags]
#
# HOSTFILE: lines "host slots=N" (N ranks there; the format of DeepSpeed and Open MPI, whose max_slots=M is passed
# over), # begins a comment. The first host is the meeting point. "localhost" is started without ssh. This checkout and
# the folder that you call this from must be at the same path everywhere, SHARDS and RUN on shared storage. When a
# machine fails the others are stopped. SIGTERM, SIGUSR1 or Ctrl-C to this script, or its end by whatever means, lets
# all ranks save and exit.
#
# PORT: free on the first host (default 29500).  RESTARTS, JOIN_SECONDS, LOST_SECONDS, SAVE_SECONDS, PYTHON: see
# pretrain_host.sh; they are handed on, and so are the variables that FORWARD names, e.g. FORWARD="NCCL_DEBUG HF_HOME".
# Exit codes: those of pretrain_host.sh, from the host that ended first.
set -euo pipefail

fail() {
  echo "$1" >&2
  exit 2
}

if (($# < 2)) || [[ ! -r $1 || -d $1 ]]; then
  fail "usage: $0 HOSTFILE SHARDS --out RUN [glomo pretrain flags]; HOSTFILE must be a readable file"
fi
hostfile=$1
shift
hosts=() slots=()
while IFS=$' \t\r' read -r host rest || [[ -n $host ]]; do # the last line may end without a newline
  host=${host#$'\xef\xbb\xbf'} # UTF-8's mark, which some editors put in front
  [[ -z $host || $host == \#* ]] && continue
  if [[ ! $rest =~ ^slots=([1-9][0-9]*)([[:space:]]+max[-_]slots=[0-9]+)?[[:space:]]*(#.*)?$ ]]; then
    fail "$hostfile: expected \"$host slots=N\", got \"$host $rest\""
  fi
  hosts+=("$host") slots+=("${BASH_REMATCH[1]}")
done < "$hostfile"
((${#hosts[@]})) || fail "$hostfile names no host: give lines \"host slots=N\""
first=${hosts[0]##*@} # ssh's USER@ is not part of where the others meet it
for host in "${hosts[@]}"; do
  if [[ $first =~ ^(localhost|127\..*|::1)$ && $host != "${hosts[0]}" ]]; then
    fail "$hostfile: $host cannot meet the first host as \"$first\": give it the name that the others reach it by"
  fi
done
names=(RESTARTS JOIN_SECONDS LOST_SECONDS SAVE_SECONDS PYTHON)
for name in ${FORWARD:-}; do
  if [[ ! $name =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]]; then
    fail "FORWARD: expected names of variables with spaces between them, got \"$name\""
  fi
  names+=("$name")
done

# The other end of every host's standard input. When it is closed, here or because this script is gone, while_open.sh
# there tells the ranks to save and exit.
scratch=$(mktemp -d) || exit 2 # it has said why: TMPDIR
mkfifo "$scratch/open"
exec {open}<> "$scratch/open"

cluster=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tasks=()
for i in "${!hosts[@]}"; do
  variables=("NODES=${#hosts[@]}" "NODE_INDEX=$i" "MEET=$first:${PORT:-29500}" "RANKS_PER_NODE=${slots[i]}")
  for name in "${names[@]}"; do
    [[ -n ${!name:-} ]] && variables+=("$name=${!name}")
  done
  command=(env "${variables[@]}" "$cluster/hostfile/while_open.sh" "$cluster/pretrain_host.sh" "$@")
  if [[ ${hosts[i]} == localhost ]]; then
    "${command[@]}" < "$scratch/open" {open}>&- &
  else
    ssh -o BatchMode=yes -o ServerAliveInterval=15 "${hosts[i]}" \
      "cd $(printf %q "$PWD") && exec $(printf '%q ' "${command[@]}")" < "$scratch/open" {open}>&- &
  fi
  tasks+=($!)
done

stop() {
  if [[ -n $open ]]; then
    exec {open}>&-
    open=
  fi
}
trap 'rm -rf "$scratch"' EXIT
trap stop TERM USR1 INT HUP
code=0
while ((${#tasks[@]})); do # the first failure stops the other machines and is what this script ends with
  for i in "${!tasks[@]}"; do
    if ! kill -0 "${tasks[i]}" 2> /dev/null; then
      wait "${tasks[i]}" && now=0 || now=$?
      unset "tasks[i]"
      ((code == 0)) && code=$now
      if ((code)); then stop; fi
    fi
  done
  sleep 0.2
done
exit "$code"
