#compdef shmctl
# zsh completion for shmctl. Array names come from the store; a missing store completes nothing.

_shmctl_names() {
    local -a socket names
    local at=${words[(I)--socket]}
    ((at)) && socket=(--socket "${words[at + 1]}")
    names=(${(f)"$(shmctl $socket ls --names 2>/dev/null)"})
    compadd -a names
}

_shmctl() {
    local curcontext=$curcontext state line
    local -a commands globals publish
    commands=(
        'status:the store\: memory, arrays, users'
        'ls:list arrays'
        'info:all about one array'
        'who:processes that hold an array'
        'watch:print events as they happen'
        'top:watch users and arrays, full screen'
        'create:make an array, of zeros or of one value'
        'import:make an array from a .npy file'
        'export:write an array to a .npy file'
        'rm:delete arrays'
        'seal:make an array unchangeable'
        'repair:make a broken array usable again'
        'chmod:change who may open an array'
        'keep:keep an array when nobody holds it'
        'unkeep:let an array go with its last holder'
        'wait:wait until an array is there and ready'
        'gc:give unused memory back to the system'
        'doctor:check the machine and the daemon'
        'metrics:counters in OpenMetrics text'
        'selfcheck:let the daemon check its own books'
        'stop:end the daemon'
        'run:run a command with a private store'
        'completion:print the completion script of a shell'
    )
    globals=(
        '--socket[socket of the daemon]:path:_files'
        '--json[print JSON]'
        '(- *)'{-h,--help}'[print help]'
    )
    publish=(
        '--mutable[shared read-write at once]'
        '--perms[who may open it]:perms:(0600 0640 0644 0660 0666)'
        '--attrs[a JSON object to go with it]:json:'
        '--replace[publish over an older version]'
        '--hard[seal so that the kernel refuses every change]'
        '(--no-keep)--ttl[delete it after this long]:seconds:'
        '(--ttl)--no-keep[do not keep it]'
    )

    _arguments -C $globals '(- *)--version[print the version]' \
        '1:command:->command' '*::argument:->arguments'
    case $state in
        command) _describe command commands ;;
        arguments)
            case $words[1] in
                ls)
                    _arguments $globals '(-l --long)'{-l,--long}'[owner, permissions, version]' \
                        '(-1 --names)'{-1,--names}'[names only]' '1:prefix:_shmctl_names' ;;
                info | who | unkeep) _arguments $globals '1:name:_shmctl_names' ;;
                watch)
                    _arguments $globals '(-n --count)'{-n,--count}'[end after this many events]:n:' \
                        '1:prefix:_shmctl_names' ;;
                top)
                    _arguments $globals '(-n --count)'{-n,--count}'[end after this many refreshes]:n:' \
                        '(-i --interval)'{-i,--interval}'[time between refreshes]:seconds:' ;;
                create)
                    _arguments $globals $publish '--shape[dimensions]:shape:' \
                        '--dtype[type of the items]:dtype:(bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128)' \
                        '--fill[value of all items]:value:' '--order[order]:order:(C F)' '1:name:' ;;
                import) _arguments $globals $publish '1:file:_files -g "*.npy"' '2:name:' ;;
                export) _arguments $globals '1:name:_shmctl_names' '2:file:_files' ;;
                rm) _arguments $globals '*:name:_shmctl_names' ;;
                seal)
                    _arguments $globals '--hard[so that the kernel refuses every change]' \
                        '--wait[wait for other writers]:seconds:' '1:name:_shmctl_names' ;;
                repair)
                    _arguments $globals '--wait[wait for who repairs it already]:seconds:' \
                        '1:name:_shmctl_names' ;;
                chmod)
                    _arguments $globals '1:perms:(0600 0640 0644 0660 0666)' '2:name:_shmctl_names' ;;
                keep) _arguments $globals '--ttl[for this long]:seconds:' '1:name:_shmctl_names' ;;
                wait)
                    _arguments $globals '--timeout[give up after this long]:seconds:' \
                        '--newer-than[wait for a version above this one]:version:' \
                        '1:name:_shmctl_names' ;;
                stop) _arguments $globals '--all[all daemons of this user]' ;;
                run)
                    local at=${words[(i)--]}
                    if ((at < CURRENT)); then  # another command's line
                        shift $at words
                        ((CURRENT -= at))
                        _normal
                    else
                        _arguments $globals
                    fi ;;
                completion) _arguments $globals '1:shell:(bash zsh fish)' ;;
                *) _arguments $globals ;;
            esac ;;
    esac
}

# Loaded by compinit from $fpath, it is the completion; sourced, it registers itself.
if [[ $funcstack[1] == _shmctl ]]; then
    _shmctl "$@"
else
    compdef _shmctl shmctl
fi
