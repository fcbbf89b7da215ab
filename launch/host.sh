#!/usr/bin/env bash
# On a host of a TPU slice: host.sh start|status|stop|log|trace. Every call may be repeated, as ssh does when connections break.
#
# A job is a folder jobs/NAME with this file, job.sh (JOB_WORKDIR, JOB_INSTALL, JOB_COMMAND), env.sh (exported variables), a config
# and perhaps a wheel. `start NAME` leaves it running in the background; `current` names it. In its folder: pid (with the boot it
# belongs to), log, and, once it has ended, code.
set -euo pipefail

root=${EC_DIT_ROOT:-/var/tmp/ec_dit}
host=$(hostname)
boot=$(cat /proc/sys/kernel/random/boot_id)

current() { cat "$root/current" 2>/dev/null || true; }

pid_of() { # job; nothing if it was started before the host was: another process may have the number
  local pid of
  read -r pid of 2>/dev/null <"$root/jobs/$1/pid" && [ "$of" = "$boot" ] && echo "$pid"
}

running() { # job
  local pid
  pid=$(pid_of "$1") && [ ! -e "$root/jobs/$1/code" ] && kill -0 "$pid" 2>/dev/null
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
  echo "$! $boot" >"$folder/pid"
  echo "$job" >"$root/current"
  status
}

# Python and the package, then the training command; whatever happens, its exit code is left in the job's folder.
_run() { # job
  local folder=$root/jobs/$1 code=0 saver='' stopped=''
  cd "$folder"
  rm -f trainer
  # shellcheck source=/dev/null
  source ./job.sh
  trap 'stopped=yes; if [ -e trainer ]; then kill -TERM "$(cat trainer)" 2>/dev/null || true; fi' TERM
  if [[ $JOB_WORKDIR == gs://* ]]; then
    (while sleep 60; do save_log; done) &
    saver=$!
  fi
  echo "$(date -u +%FT%TZ) $host: installing"
  if ! (in_environment && install); then
    code=70
  elif [ -n "$stopped" ]; then
    code=75
  else
    echo "$(date -u +%FT%TZ) $host: ${JOB_COMMAND[*]}"
    # Python takes SIGUSR1, which asks for a trace, when it is ready; until then it must not end it.
    (in_environment && trap '' USR1 && exec "$root/venv/bin/python" "${JOB_COMMAND[@]}") &
    echo $! >trainer
    wait_for "$!" || code=$?
  fi
  rm -f trainer
  echo "$(date -u +%FT%TZ) $host: exit code $code"
  echo "$code" >code.new && mv code.new code
  if [ -n "$saver" ]; then
    kill "$saver" 2>/dev/null || true
    save_log
  fi
}

# shellcheck source=/dev/null
in_environment() { source ./env.sh; }

wait_for() { # pid; a signal interrupts `wait` while the process goes on
  while kill -0 "$1" 2>/dev/null; do wait "$1" || true; done
  wait "$1" # tells the code again
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
  timeout 60 gcloud storage cp --quiet log "$JOB_WORKDIR/logs/${PWD##*/}/$host.log" >/dev/null 2>&1 || true
}

status() {
  local job
  job=$(current)
  if [ -z "$job" ]; then
    echo "ec_dit host=$host job=none state=none"
  elif running "$job"; then
    echo "ec_dit host=$host job=$job state=running"
  elif [ -e "$root/jobs/$job/code" ]; then # looked for last: it may have ended a moment ago, and leaves its code before it goes
    echo "ec_dit host=$host job=$job state=exited code=$(cat "$root/jobs/$job/code")"
  else
    echo "ec_dit host=$host job=$job state=exited code=killed"
  fi
}

stop() {
  local job pid
  job=$(current)
  pid=$(pid_of "$job" || true)
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
  trace)
    running "$(current)" || { echo "$host: nothing is running" >&2 && exit 1; }
    kill -USR1 "$(cat "$root/jobs/$(current)/trainer")"
    ;;
  *)
    echo "usage: host.sh start JOB|status|stop|log [LINES [-F]]|trace" >&2
    exit 2
    ;;
esac
