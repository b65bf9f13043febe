#!/usr/bin/env bash
# One host's part of a Ray cluster, in the foreground: the head on the first host, a worker on each other one.
#
#   NODE_INDEX=0 MEET=node-a:6379 cluster/ray_host.sh [ray start flags]
#
# NODE_INDEX, MEET, JOIN_SECONDS, LOCAL_ADDRESS, PYTHON: as in pretrain_host.sh; LOCAL_ADDRESS is an IP address here, and
# the port of MEET none from 10002 to 19999, which Ray's workers take.
# Only who knows the cluster's token can use it: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token, which
# the first host makes where there is none. Where the hosts share no home, copy it. (RAY_AUTH_MODE=disabled: no token.)
# Flags such as --num-cpus 16 or --temp-dir DIR go to `ray start`. SIGTERM ends it, and what it started.
set -euo pipefail
# shellcheck source=cluster/meet.sh
. "$(dirname "${BASH_SOURCE[0]}")/meet.sh"
need NODE_INDEX MEET
whole NODE_INDEX 0
whole JOIN_SECONDS 1
split_address "$MEET"
# Ray itself asks for a token where one is found when the first host starts, and then not when the others join
export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=${RAY_AUTH_MODE:-token}
flags=(--block --disable-usage-stats ${LOCAL_ADDRESS:+--node-ip-address "$LOCAL_ADDRESS"})
if [[ $NODE_INDEX == 0 ]]; then
  if [[ $RAY_AUTH_MODE == token ]]; then
    (umask 077 && "$PYTHON" -m ray.scripts.scripts get-auth-token --generate > /dev/null)
  fi
  exec "$PYTHON" -m ray.scripts.scripts start --head --port "$port" --include-dashboard false "${flags[@]}" "$@"
fi
wait_until_listening "$MEET" "${JOIN_SECONDS:-600}"
exec "$PYTHON" -m ray.scripts.scripts start --address "$MEET" "${flags[@]}" "$@"
