# bash completion for shmctl. Array names come from the store; a missing store completes nothing.

_shmctl_names() {
    local socket=()
    local i
    for ((i = 1; i < ${#COMP_WORDS[@]} - 1; ++i)); do
        [[ ${COMP_WORDS[i]} == --socket ]] && socket=(--socket "${COMP_WORDS[i + 1]}")
    done
    shmctl "${socket[@]}" ls --names 2>/dev/null
}

# The subcommand on the line, and how many words without a dash follow it.
_shmctl_state() {
    command='' words_after=0
    local i word
    for ((i = 1; i < COMP_CWORD; ++i)); do
        word=${COMP_WORDS[i]}
        case $word in
            --socket | --shape | --dtype | --fill | --order | --perms | --attrs | --ttl | --wait | \
                --timeout | --newer-than | --interval | -i | --count | -n)
                ((++i))
                ;;
            -*) ;;
            *) if [[ -z $command ]]; then command=$word; else ((++words_after)); fi ;;
        esac
    done
}

_shmctl_options() {
    local globals='--socket --json --help'
    local publish='--mutable --perms --attrs --replace --hard --ttl --no-keep'
    case $1 in
        '') echo "$globals --version" ;;
        ls) echo "$globals --long --names" ;;
        watch) echo "$globals --count" ;;
        top) echo "$globals --interval --count" ;;
        create) echo "$globals --shape --dtype --fill --order $publish" ;;
        import) echo "$globals $publish" ;;
        seal) echo "$globals --hard --wait" ;;
        repair) echo "$globals --wait" ;;
        keep) echo "$globals --ttl" ;;
        stop) echo "$globals --all" ;;
        wait) echo "$globals --timeout --newer-than" ;;
        *) echo "$globals" ;;
    esac
}

_shmctl() {
    local commands='status ls info who watch top create import export rm seal repair chmod keep
        unkeep wait gc doctor metrics selfcheck stop run completion'
    local dtypes='bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64
        complex64 complex128'
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
    local command words_after
    COMPREPLY=()
    _shmctl_state

    # After `run --` stands another command's line.
    if [[ $command == run && " ${COMP_WORDS[*]:0:COMP_CWORD} " == *' -- '* ]]; then
        COMPREPLY=($(compgen -c -f -- "$current"))
        return
    fi
    case $previous in
        --socket) compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -f -- "$current")); return ;;
        --dtype) COMPREPLY=($(compgen -W "$dtypes" -- "$current")); return ;;
        --order) COMPREPLY=($(compgen -W 'C F' -- "$current")); return ;;
        --perms) COMPREPLY=($(compgen -W '0600 0640 0644 0660 0666' -- "$current")); return ;;
        --shape | --fill | --attrs | --ttl | --wait | --timeout | --newer-than | --interval | -i | \
            --count | -n) return ;;
    esac
    if [[ $current == -* ]]; then
        COMPREPLY=($(compgen -W "$(_shmctl_options "$command")" -- "$current"))
        return
    fi
    case $command:$words_after in
        :0) COMPREPLY=($(compgen -W "$commands" -- "$current")) ;;
        completion:0) COMPREPLY=($(compgen -W 'bash zsh fish' -- "$current")) ;;
        chmod:0) COMPREPLY=($(compgen -W '0600 0640 0644 0660 0666' -- "$current")) ;;
        import:0 | export:1) compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -f -- "$current")) ;;
        ls:0 | info:0 | who:0 | watch:0 | export:0 | rm:* | seal:0 | repair:0 | chmod:1 | keep:0 | \
            unkeep:0 | wait:0)
            COMPREPLY=($(compgen -W "$(_shmctl_names)" -- "$current"))
            # A colon separates words of the line; the part before it is there already.
            declare -F __ltrim_colon_completions >/dev/null && __ltrim_colon_completions "$current"
            ;;
    esac
}

complete -F _shmctl shmctl
