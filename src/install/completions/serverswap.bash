# bash completion for serverswap(1)                        -*- shell-script -*-

# Prints the addresses that have a pidfile in the run directory $1, or in the
# usual one, and each server as @PID.
_serverswap_addresses() {
    local dir=$1 file name
    if [[ -z $dir ]]; then
        if [[ -n ${SERVERSWAP_RUN_DIR-} ]]; then dir=$SERVERSWAP_RUN_DIR
        elif ((EUID == 0)); then dir=/run/serverswap
        elif [[ ${XDG_STATE_HOME-} == /* ]]; then dir=$XDG_STATE_HOME/serverswap/run
        else dir=~/.local/state/serverswap/run
        fi
    fi
    for file in "$dir"/*.pid; do
        [[ -f $file ]] || continue
        name=${file##*/}
        name=${name%.pid}
        [[ $name == *[!0-9]* ]] || name=:$name
        printf '%b\n' "${name//%/\\x}"
    done
    for file in "$dir"/*.server; do
        [[ -f $file ]] || continue
        name=${file##*/}
        printf '@%s\n' "${name%.server}"
    done
}

_serverswap() {
    local cur prev word i=1 mode='' dir='' last address
    # The words as they were typed: COMP_WORDS is cut at ":" and "=".
    local -a typed
    read -ra typed <<<"${COMP_LINE:0:COMP_POINT}"
    [[ ${COMP_LINE:0:COMP_POINT} == *[[:space:]] ]] && typed+=('')
    last=$((${#typed[@]} - 1))
    cur=${typed[last]}
    prev=${typed[last - 1]}
    COMPREPLY=()

    while ((i < last)); do
        word=${typed[i]}
        case $word in
            --run-dir) dir=${typed[i + 1]}; ((i += 2)) ;;
            --run-dir=*) dir=${word#*=}; ((i += 1)) ;;
            --wait | --log | --check | --check-http | --canary | --hold | --ready-timeout | --drain | --max-draining | --relay | --kill-after | --stop-signal | --client) ((i += 2)) ;;
            --status | --reload | --undo | --commit | --takedown) mode=$word; ((i += 1)) ;;
            --) ((i += 1)); break ;;
            -*) ((i += 1)) ;;
            *) break ;;
        esac
    done

    if [[ -n $mode && $cur != -* && $prev != --run-dir ]]; then
        while read -r address; do
            # What stands before the last ":" is not replaced by readline.
            [[ $address == "$cur"* ]] && COMPREPLY+=("${address#"${cur%"${cur##*:}"}"}")
        done < <(_serverswap_addresses "$dir")
        return
    fi

    if ((i < last)) && [[ -z $mode ]]; then
        # The command and its arguments.
        if ((COMP_CWORD == last)) && declare -F _command_offset >/dev/null; then
            _command_offset "$i"
        else
            compopt -o default
        fi
        return
    fi

    case $prev in
        --run-dir)
            compopt -o filenames
            mapfile -t COMPREPLY < <(compgen -d -- "$cur")
            return ;;
        --log)
            compopt -o filenames
            mapfile -t COMPREPLY < <(compgen -f -- "$cur")
            return ;;
        --wait)
            mapfile -t COMPREPLY < <(compgen -W 'gone up' -- "$cur")
            return ;;
        --stop-signal)
            mapfile -t COMPREPLY < <(compgen -W 'HUP INT KILL QUIT TERM USR1 USR2 WINCH' -- "$cur")
            return ;;
        --relay)
            mapfile -t COMPREPLY < <(compgen -W 'local all' -- "$cur")
            return ;;
        --client)
            mapfile -t COMPREPLY < <(compgen -W 'node' -- "$cur")
            return ;;
        --check | --check-http | --canary | --hold | --ready-timeout | --drain | --max-draining | --kill-after) return ;;
    esac

    case $cur in
        -*)
            mapfile -t COMPREPLY < <(compgen -W '-d --detach --wait --log --plain --no-probe --check --check-http
                --canary --hold --ready-timeout --drain --max-draining --relay --no-relay --kill-after --stop-signal
                --run-dir
                -q --quiet -v --verbose --status --json --reload --fresh --undo --commit --takedown
                --client
                -h --help -V --version' -- "$cur") ;;
        *)
            compopt -o filenames
            mapfile -t COMPREPLY < <(compgen -c -- "$cur"; compgen -d -- "$cur"
                compgen -f -X '!*.@(js|mjs|cjs)' -- "$cur") ;;
    esac
}

complete -F _serverswap serverswap
