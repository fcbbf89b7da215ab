#!/usr/bin/env bash
# On a host of a TPU slice: host.sh start|status|stop|log|trace. Every call may be repeated, as ssh does when connections break.
#
# A job is a folder ~/ec_dit/jobs/ID with this file, job.sh (JOB_WORKDIR, JOB_INSTALL, JOB_COMMAND, exported variables), a
# config and perhaps a wheel. `start ID` leaves the job running in the background; ~/ec_dit/current names it. In its folder:
# pid, log, and, once it has ended, code.
set -euo pipefail

root=${EC_DIT_ROOT:-$HOME/ec_dit}
host=$(hostname)

current() { cat "$root/current" 2>/dev/null || true; }

running() { # job
  local pid
  pid=$(cat "$root/jobs/$1/pid" 2>/dev/null) && [ ! -e "$root/jobs/$1/code" ] && kill -0 "$pid" 2>/dev/null
}

start() { # job
  local job=$1 folder=$root/jobs/$1 before
  exec 9>"$root/lock"
  flock 9
  before=$(current)
  if [ "$before" = "$job" ] && { running "$job" || [ -e "$folder/code" ]; }; then
    status
    return
  fi
  if [ -n "$before" ]; then stop; fi
  cp "$folder/host.sh" "$root/host.sh.new" && mv "$root/host.sh.new" "$root/host.sh"
  rm -f "$folder/code"
  setsid nohup bash "$folder/host.sh" _run "$job" </dev/null >>"$folder/log" 2>&1 9>&- &
  echo $! >"$folder/pid"
  echo "$job" >"$root/current"
  status
}

# Python and the package, then the training command; whatever happens, its exit code is left in the job's folder.
_run() { # job
  local folder=$root/jobs/$1 code=0 saver='' stopped=''
  cd "$folder"
  rm -f trainer
  set -a
  # shellcheck source=/dev/null
  source ./job.sh
  set +a
  trap 'stopped=yes; if [ -e trainer ]; then kill -TERM "$(cat trainer)" 2>/dev/null || true; fi' TERM
  if [[ $JOB_WORKDIR == gs://* ]]; then
    (while sleep 60; do save_log; done) &
    saver=$!
  fi
  echo "$(date -u +%FT%TZ) $host: installing"
  if ! install; then
    code=70
  elif [ -n "$stopped" ]; then
    code=75
  else
    echo "$(date -u +%FT%TZ) $host: ${JOB_COMMAND[*]}"
    "$root/venv/bin/python" "${JOB_COMMAND[@]}" &
    echo $! >trainer
    wait_for "$!" || code=$?
  fi
  rm -f trainer
  echo "$(date -u +%FT%TZ) $host: exit code $code"
  if [ -n "$saver" ]; then
    kill "$saver" 2>/dev/null || true
    save_log
  fi
  echo "$code" >code.new && mv code.new code
}

wait_for() { # pid; a signal interrupts `wait` while the process goes on
  local code
  while true; do
    wait "$1" && code=0 || code=$?
    kill -0 "$1" 2>/dev/null || return "$code"
  done
}

install() {
  local attempt
  for attempt in 1 2 3; do
    # The hosts' own Python is too old; uv brings one. Errors end a chain of &&, which `set -e` would not see here.
    if export PATH="$HOME/.local/bin:$PATH" &&
      { command -v uv >/dev/null || python3 -m pip install --quiet --user uv; } &&
      { [ -x "$root/venv/bin/python" ] || uv venv --quiet --clear --python 3.12 "$root/venv"; } &&
      uv pip install --quiet --python "$root/venv/bin/python" "${JOB_INSTALL[@]}"; then
      return 0
    fi
    echo "installing failed, attempt $attempt of 3" >&2
    sleep $((attempt * ${EC_DIT_RETRY_SECONDS:-20}))
  done
  return 1
}

save_log() {
  gcloud storage cp --quiet log "$JOB_WORKDIR/logs/${PWD##*/}/$host.log" >/dev/null 2>&1 || true
}

status() {
  local job
  job=$(current)
  if [ -z "$job" ]; then
    echo "ec_dit host=$host job=none state=none"
  elif [ -e "$root/jobs/$job/code" ]; then
    echo "ec_dit host=$host job=$job state=exited code=$(cat "$root/jobs/$job/code")"
  elif running "$job"; then
    echo "ec_dit host=$host job=$job state=running"
  else
    echo "ec_dit host=$host job=$job state=exited code=killed"
  fi
}

stop() {
  local job pid
  job=$(current)
  pid=$(cat "$root/jobs/$job/pid" 2>/dev/null || true)
  if [ -n "$job" ] && running "$job"; then
    kill -TERM "$pid" 2>/dev/null || true
    for ((i = 0; i < ${EC_DIT_STOP_SECONDS:-300}; i++)); do
      running "$job" || break
      sleep 1
    done
  fi
  # Whatever is left of its session, ended or not, holds the TPU.
  if [ -n "$pid" ]; then pkill -KILL --session "$pid" 2>/dev/null || true; fi
  status
}

mkdir -p "$root/jobs"
case ${1:-} in
  start) start "$2" ;;
  _run) _run "$2" ;;
  status) status ;;
  stop) stop ;;
  log) tail -n "${2:-100}" ${3:+"$3"} "$root/jobs/$(current)/log" ;;
  trace) kill -USR1 "$(cat "$root/jobs/$(current)/trainer")" ;;
  *)
    echo "usage: host.sh start JOB|status|stop|log [LINES [-F]]|trace" >&2
    exit 2
    ;;
esac
