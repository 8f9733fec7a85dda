# fish completion for shmctl. Array names come from the store; a missing store completes nothing.

function __shmctl_names
    set -l words (commandline -opc)
    set -l at (contains -i -- --socket $words)
    and set -l socket --socket $words[(math $at + 1)]
    shmctl $socket ls --names 2>/dev/null
end

# True when the subcommand is one of the arguments.
function __shmctl_in
    __fish_seen_subcommand_from $argv
end

complete -c shmctl -f
complete -c shmctl -l socket -r -F -d 'Socket of the daemon'
complete -c shmctl -l json -d 'Print JSON'
complete -c shmctl -s h -l help -d 'Print help'
complete -c shmctl -n __fish_use_subcommand -l version -d 'Print the version'

complete -c shmctl -n __fish_use_subcommand -a status -d 'The store: memory, arrays, users'
complete -c shmctl -n __fish_use_subcommand -a ls -d 'List arrays'
complete -c shmctl -n __fish_use_subcommand -a info -d 'All about one array'
complete -c shmctl -n __fish_use_subcommand -a who -d 'Processes that hold an array'
complete -c shmctl -n __fish_use_subcommand -a watch -d 'Print events as they happen'
complete -c shmctl -n __fish_use_subcommand -a top -d 'Watch users and arrays, full screen'
complete -c shmctl -n __fish_use_subcommand -a create -d 'Make an array'
complete -c shmctl -n __fish_use_subcommand -a import -d 'Make an array from a .npy file'
complete -c shmctl -n __fish_use_subcommand -a export -d 'Write an array to a .npy file'
complete -c shmctl -n __fish_use_subcommand -a rm -d 'Delete arrays'
complete -c shmctl -n __fish_use_subcommand -a seal -d 'Make an array unchangeable'
complete -c shmctl -n __fish_use_subcommand -a repair -d 'Make a broken array usable again'
complete -c shmctl -n __fish_use_subcommand -a chmod -d 'Change who may open an array'
complete -c shmctl -n __fish_use_subcommand -a keep -d 'Keep an array when nobody holds it'
complete -c shmctl -n __fish_use_subcommand -a unkeep -d 'Let an array go with its last holder'
complete -c shmctl -n __fish_use_subcommand -a wait -d 'Wait until an array is there and ready'
complete -c shmctl -n __fish_use_subcommand -a gc -d 'Give unused memory back to the system'
complete -c shmctl -n __fish_use_subcommand -a doctor -d 'Check the machine and the daemon'
complete -c shmctl -n __fish_use_subcommand -a metrics -d 'Counters in OpenMetrics text'
complete -c shmctl -n __fish_use_subcommand -a selfcheck -d 'Let the daemon check its own books'
complete -c shmctl -n __fish_use_subcommand -a stop -d 'End the daemon'
complete -c shmctl -n __fish_use_subcommand -a run -d 'Run a command with a private store'
complete -c shmctl -n __fish_use_subcommand -a completion -d 'Print a completion script'

complete -c shmctl -n '__shmctl_in ls info who watch export rm seal repair keep unkeep wait' \
    -a '(__shmctl_names)'
complete -c shmctl -n '__shmctl_in chmod' -a '0600 0640 0644 0660 0666 (__shmctl_names)'
complete -c shmctl -n '__shmctl_in import export' -F
complete -c shmctl -n '__shmctl_in completion' -a 'bash zsh fish'
complete -c shmctl -n '__shmctl_in run' -F -a '(__fish_complete_subcommand)'

complete -c shmctl -n '__shmctl_in ls' -s l -l long -d 'Owner, permissions, version'
complete -c shmctl -n '__shmctl_in ls' -s 1 -l names -d 'Names only'
complete -c shmctl -n '__shmctl_in watch top' -s n -l count -x -d 'End after this many'
complete -c shmctl -n '__shmctl_in top' -s i -l interval -x -d 'Seconds between refreshes'
complete -c shmctl -n '__shmctl_in create' -l shape -x -d 'Dimensions: 3,4'
complete -c shmctl -n '__shmctl_in create' -l dtype -x -d 'Type of the items' -a 'bool int8 int16
    int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128'
complete -c shmctl -n '__shmctl_in create' -l fill -x -d 'Value of all items'
complete -c shmctl -n '__shmctl_in create' -l order -x -a 'C F' -d 'Order'
complete -c shmctl -n '__shmctl_in create import' -l mutable -d 'Shared read-write at once'
complete -c shmctl -n '__shmctl_in create import' -l perms -x -a '0600 0640 0644 0660 0666' \
    -d 'Who may open it'
complete -c shmctl -n '__shmctl_in create import' -l attrs -x -d 'A JSON object to go with it'
complete -c shmctl -n '__shmctl_in create import' -l replace -d 'Publish over an older version'
complete -c shmctl -n '__shmctl_in create import seal' -l hard -d 'The kernel refuses every change'
complete -c shmctl -n '__shmctl_in create import keep' -l ttl -x -d 'Seconds to keep it'
complete -c shmctl -n '__shmctl_in create import' -l no-keep -d 'Do not keep it'
complete -c shmctl -n '__shmctl_in seal' -l wait -x -d 'Seconds to wait for other writers'
complete -c shmctl -n '__shmctl_in stop' -l all -d 'All daemons of this user'
complete -c shmctl -n '__shmctl_in repair' -l wait -x -d 'Seconds to wait for who repairs it'
complete -c shmctl -n '__shmctl_in wait' -l timeout -x -d 'Seconds after which to give up'
complete -c shmctl -n '__shmctl_in wait' -l newer-than -x -d 'Wait for a version above this one'
