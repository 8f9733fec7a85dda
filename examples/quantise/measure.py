"""What processes hold, as the kernel counts it.

PSS is a process's share of memory: a page that four processes map counts a quarter in each, so
the sum over processes is what they take together, and nothing is counted twice.
"""

from dataclasses import dataclass


@dataclass
class Held:
    shared: int  # bytes of shared memory (Pss_Shmem)
    private: int  # bytes that belong to one process only (Pss_Anon)
    total: int  # all of it, program text and libraries included (Pss)


def held_by(pids):
    """Bytes that these processes hold together."""
    fields = {"Pss": 0, "Pss_Shmem": 0, "Pss_Anon": 0}
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as rollup:
            for line in rollup:
                name, _, rest = line.partition(":")
                if name in fields:
                    fields[name] += int(rest.split()[0]) * 1024
    return Held(fields["Pss_Shmem"], fields["Pss_Anon"], fields["Pss"])


def shmem():
    """Shared memory of the whole system: the line Shmem of /proc/meminfo."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Shmem:"))


def human(size):
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"
