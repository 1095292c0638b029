# fish completion for serverswap(1)

# Prints where in the words of the command line the server's command begins
# ("command N"), or which form it is ("address DIR"), or "options".
function __serverswap_form
    set -l words (commandline -opc)
    set -l dir ''
    set -l mode ''
    set -l i 2
    while test $i -le (count $words)
        switch $words[$i]
            case --run-dir
                set i (math $i + 1)
                test $i -le (count $words); and set dir $words[$i]
            case '--run-dir=*'
                set dir (string replace -- --run-dir= '' $words[$i])
            case --wait --log --check --check-http --canary --hold --ready-timeout --drain --max-draining --relay --kill-after --stop-signal --client
                set i (math $i + 1)
            case --status --reload --undo --commit --takedown
                set mode $words[$i]
            case --
                set i (math $i + 1)
                break
            case '-*'
            case '*'
                break
        end
        set i (math $i + 1)
    end
    if test -n "$mode"
        echo address
        echo $dir
    else if test $i -le (count $words)
        echo command
        echo $i
    else
        echo options
    end
end

function __serverswap_is
    set -l form (__serverswap_form)
    test $form[1] = $argv[1]
end

# Prints the addresses that have a pidfile in the run directory, and each server as @PID.
function __serverswap_addresses
    set -l form (__serverswap_form)
    set -l dir $form[2]
    if test -z "$dir"
        if test -n "$SERVERSWAP_RUN_DIR"
            set dir $SERVERSWAP_RUN_DIR
        else if test (id -u) -eq 0
            set dir /run/serverswap
        else if string match -q '/*' -- "$XDG_STATE_HOME"
            set dir $XDG_STATE_HOME/serverswap/run
        else
            set dir ~/.local/state/serverswap/run
        end
    end
    for file in $dir/*.pid
        set -l name (string replace -r '.*/(.*)\.pid$' '$1' -- $file)
        string match -qr '^[0-9]+$' -- $name; and set name :$name
        string unescape --style=url -- $name
    end
    for file in $dir/*.server
        string replace -r '.*/(.*)\.server$' '@$1' -- $file
    end
end

# Completes the server's command and its arguments as if they stood alone.
function __serverswap_command
    set -l form (__serverswap_form)
    set -l words (commandline -opc)
    set -l own (string escape -- $words[$form[2]..-1])
    complete -C"$own "(commandline -ct)
end

complete -c serverswap -f
complete -c serverswap -n '__serverswap_is address' -a '(__serverswap_addresses)'
complete -c serverswap -n '__serverswap_is command' -a '(__serverswap_command)'
complete -c serverswap -n '__serverswap_is options' -a '(__fish_complete_command)'
complete -c serverswap -n '__serverswap_is options' -a '(__fish_complete_suffix .js; __fish_complete_suffix .mjs; __fish_complete_suffix .cjs)'

complete -c serverswap -n 'not __serverswap_is command' -s d -l detach -d 'Stay in the background once the swap is done'
complete -c serverswap -n 'not __serverswap_is command' -l wait -x -a 'gone up' -d 'When -d returns'
complete -c serverswap -n 'not __serverswap_is command' -l log -r -F -d 'Append the output of the server to FILE'
complete -c serverswap -n 'not __serverswap_is command' -l plain -d 'Do not watch or share'
complete -c serverswap -n 'not __serverswap_is command' -l no-probe -d 'Do not open the probe connection'
complete -c serverswap -n 'not __serverswap_is command' -l check -x -d 'A command that has to succeed before the switch'
complete -c serverswap -n 'not __serverswap_is command' -l check-http -x -d 'A path that has to be answered before the switch'
complete -c serverswap -n 'not __serverswap_is command' -l canary -x -d 'Shares of the new connections that it gets first, P:SECS,...'
complete -c serverswap -n 'not __serverswap_is command' -l hold -x -d 'How long the old server is kept after the switch'
complete -c serverswap -n 'not __serverswap_is command' -l ready-timeout -x -d 'The new server must be up within SECS'
complete -c serverswap -n 'not __serverswap_is command' -l drain -x -d 'How long this server may finish what it has'
complete -c serverswap -n 'not __serverswap_is command' -l max-draining -x -d 'How many older servers may still drain'
complete -c serverswap -n 'not __serverswap_is command' -l relay -x -a 'local all' -d 'Whose requests on kept connections the new server answers'
complete -c serverswap -n 'not __serverswap_is command' -l no-relay -d 'Requests on kept connections are not answered by the new server'
complete -c serverswap -n 'not __serverswap_is command' -l kill-after -x -d 'From being told to stop to SIGKILL'
complete -c serverswap -n 'not __serverswap_is command' -l stop-signal -x -a 'HUP INT KILL QUIT TERM USR1 USR2 WINCH' -d 'How this server is told to stop'
complete -c serverswap -n 'not __serverswap_is command' -l run-dir -x -a '(__fish_complete_directories)' -d 'Where servers find each other'
complete -c serverswap -n 'not __serverswap_is command' -s q -l quiet -d 'Say less'
complete -c serverswap -n 'not __serverswap_is command' -s v -l verbose -d 'Say more'
complete -c serverswap -n 'not __serverswap_is command' -l status -d 'List the servers'
complete -c serverswap -n 'not __serverswap_is command' -l json -d 'With --status: as JSON'
complete -c serverswap -n 'not __serverswap_is command' -l reload -d 'Swap in a fresh copy of the server'
complete -c serverswap -n 'not __serverswap_is command' -l fresh -d 'With --reload: in the environment and directory of the caller'
complete -c serverswap -n 'not __serverswap_is command' -l undo -d 'In a canary or a hold: give all connections to the old server'
complete -c serverswap -n 'not __serverswap_is command' -l commit -d 'In a canary or a hold: let the old server go'
complete -c serverswap -n 'not __serverswap_is command' -l takedown -d 'Stop the server'
complete -c serverswap -n 'not __serverswap_is command' -l client -x -a node -d 'Print a client'
complete -c serverswap -n 'not __serverswap_is command' -s h -l help -d 'Print a summary of the options'
complete -c serverswap -n 'not __serverswap_is command' -s V -l version -d 'Print the version'
