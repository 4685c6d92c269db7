# Runs one executor, records its exit, and ends when nothing of the run is left.
#
#   set -- RUN_DIRECTORY WORKING_DIRECTORY STDIN CGROUP_PROCS SETSID ARGV...
#
# That line stands ahead of this text in a sealed file (script.py): every user may read command lines.
# stdin: the run's lock. stdout: the pipe that the timer reads. stderr: this text. 6: a pipe with the variables that only
# the executor may know, as commands that export them: it is empty once it has been read.
# Names start with "_" because a plain name would change a variable of the executor's environment.

# ":" and not "": an ignored signal would stay ignored in the executor.
trap : HUP INT QUIT TERM USR1 USR2 ALRM PIPE
exec 2>/dev/null
printf oc-keeper >"/proc/$$/comm"
cd -- "$1" || exit 0

_take_start_ticks() {
    shift 19
    _start_ticks=$1
}

# Somebody may end the helper, as with "pkill sleep": then the caller looks again sooner.
# In a shell of its own: this one would put its own descriptors elsewhere for as long as the helper runs, and others look
# at them. That shell stays, to say into nothing that somebody has ended the helper.
_pause() {
    (
        exec >/dev/null 2>&1 7>&- 8>&- 9>&-
        command -p sleep "$1"
        exit
    )
}

# Children, also adopted ones: the launcher made this process a subreaper.
_has_children() {
    if [ -e "/proc/$$/task/$$/children" ]; then
        _children=
        read -r _children 2>/dev/null <"/proc/$$/task/$$/children"
        [ -n "$_children" ]
        return
    fi
    for _file in /proc/[0-9]*/stat; do
        read -r _stat 2>/dev/null <"$_file" || continue
        # shellcheck disable=SC2086
        set -- ${_stat##*) }
        [ "$2" != "$$" ] || return 0
    done
    return 1
}

# In place, into blocks that exist: a full disk cannot swallow the record. By descriptor: whatever the executor has put
# in the place of its file stays as it is.
# A file system that writes copies may want room all the same: then the record waits for it.
_record() {
    until printf '%-63s\n' "exit $_code end" 2>/dev/null >&7 || [ ! -e exit ]; do
        _pause 1
    done
    for _try in 1 2 3; do
        (
            exec >/dev/null 2>&1 8>&- 9>&-
            command -p sync /proc/self/fd/7 .
            exit
        )
        # More than 128: somebody has ended it.
        [ $? -gt 128 ] || return
    done
}

# The gate comes before the first fork: whoever revokes the run creates it and finds no process.
read -r _stat <"/proc/$$/stat"
# shellcheck disable=SC2086
_take_start_ticks ${_stat##*) }
set -C
echo "$$ $_start_ticks end" >gate || exit 0
set +C

# Nobody but this process may hold the lock and the pipe: they tell others that it lives.
exec 9<&0 8>&1 7<>exit </dev/null >/dev/null
echo "$$" >&8

# Without its files or a process of its own nothing has run: try again later. A shell that cannot fork ends.
_code=75
trap _record EXIT
# Kept open to the end: by these descriptors others see how much the run has printed.
exec 3<"$3" >>stdout 2>>stderr
(
    exec <&3 3<&- 7>&- 8>&- 9>&-
    echo 0 2>/dev/null >"$4"
    cd -- "$2" || exit 126
    _setsid=$5
    shift 5
    # shellcheck disable=SC1091
    . /proc/self/fd/6
    exec 6<&-
    # A session of its own: what it does to its group or its session does not reach its keeper.
    exec "$_setsid" -- "$@"
)
_code=$?
trap - EXIT
exec 3<&-
_record

while _has_children; do
    _pause 0.1
done

# Its own exit says only that it did its work: the executor's is in the record.
exit 0
