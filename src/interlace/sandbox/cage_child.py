"""The inside of the cage: closes every lock on this process, then runs the program on its standard input.

Run as a file by `cage.run`, with Python's library alone. Landlock: https://docs.kernel.org/userspace-api/landlock.html;
seccomp: https://docs.kernel.org/userspace-api/seccomp_filter.html.
"""

import contextlib
import ctypes
import errno
import os
import platform
import resource
import signal
import struct
import sys
import threading
import types

NOT_CAGED, OUT_OF_MEMORY = 97, 98
STACK = 7 << 18  # bytes of a thread's, so that as many as are allowed fit into the address space

# The system calls that pass, with their numbers on x86_64 and aarch64 ("-": there is none). All others are refused.
PASSED = """
brk 12 214, mmap 9 222, munmap 11 215, mremap 25 216, mprotect 10 226, madvise 28 233, msync 26 227,

read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, preadv 295 69, pwritev 296 70,
preadv2 327 286, pwritev2 328 287, lseek 8 62, close 3 57, dup 32 23, dup2 33 -, dup3 292 24, fstat 5 80, fsync 74 82,
fdatasync 75 83, ftruncate 77 46, fadvise64 221 223, sendfile 40 71, copy_file_range 326 285, getdents 78 -,
getdents64 217 61, fstatfs 138 44,

stat 4 -, lstat 6 -, newfstatat 262 79, statx 332 291, statfs 137 43, access 21 -, faccessat 269 48, faccessat2 439 439,
readlink 89 -, readlinkat 267 78, unlink 87 -, unlinkat 263 35, rename 82 -, renameat 264 38, renameat2 316 276,
getcwd 79 17, chdir 80 49, fchdir 81 50, umask 95 166,

pipe 22 -, pipe2 293 59, poll 7 -, ppoll 271 73, select 23 -, pselect6 270 72, epoll_create 213 -, epoll_create1 291 20,
epoll_ctl 233 21, epoll_wait 232 -, epoll_pwait 281 22, epoll_pwait2 441 441, eventfd 284 -, eventfd2 290 19,
recvfrom 45 207, getsockname 51 204, getpeername 52 205, getsockopt 55 209, shutdown 48 210,

futex 202 98, set_robust_list 273 99, set_tid_address 218 96, rseq 334 293, gettid 186 178, exit 60 93,
exit_group 231 94, sched_yield 24 124, arch_prctl 158 -, getcpu 309 168, wait4 61 260, waitid 247 95,

rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, rt_sigpending 127 136, rt_sigtimedwait 128 137,
rt_sigsuspend 130 133, sigaltstack 131 132, pause 34 -, restart_syscall 219 128, signalfd4 289 74,

nanosleep 35 101, clock_nanosleep 230 115, clock_gettime 228 113, clock_getres 229 114, gettimeofday 96 169, time 201 -,
alarm 37 -, getitimer 36 102, setitimer 38 103, times 100 153, timerfd_create 283 85, timerfd_settime 286 86,
timerfd_gettime 287 87,

getpid 39 172, getppid 110 173, getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108 177, getresuid 118 148,
getresgid 120 150, getgroups 115 158, getpgrp 111 -, getrlimit 97 163, getrusage 98 165, uname 63 160, sysinfo 99 179,
getrandom 318 278, sched_get_priority_max 146 125, sched_get_priority_min 147 126
"""
# Said to be unknown to the file system, which programs cope with. fallocate takes blocks that no size shows.
UNSUPPORTED = """
setxattr 188 5, lsetxattr 189 6, fsetxattr 190 7, getxattr 191 8, lgetxattr 192 9, fgetxattr 193 10,
listxattr 194 11, llistxattr 195 12, flistxattr 196 13, fallocate 285 47
"""
NEWER = (335, 294)  # calls from these numbers on came after Linux 5.0: said to be unknown to the kernel

# Calls that pass with some arguments: half an argument, the bits that count, and what they may be.
LOW, HIGH = (16, 24, 32, 40, 48, 56), (20, 28, 36, 44, 52, 60)  # where the halves of the arguments lie
ALL, OWN, OPEN_FLAGS = 0xFFFFFFFF, -1, 0x203
CONDITIONS: dict[str, list[tuple[int, int, tuple[int, ...]]]] = {
    "clone 56 220": [(LOW[0], ALL & ~0x400000, (0x3D0F00,))],  # a thread that shares everything, as pthread_create's
    "kill 62 129": [(LOW[0], ALL, (OWN,))],
    "tkill 200 130": [(LOW[0], ALL, (OWN,))],
    "tgkill 234 131": [(LOW[0], ALL, (OWN,))],
    "prlimit64 302 261": [(LOW[0], ALL, (0, OWN)), (LOW[2], ALL, (0,)), (HIGH[2], ALL, (0,))],  # reads, sets nothing
    "getpriority 140 141": [(LOW[0], ALL, (0,)), (LOW[1], ALL, (0, OWN))],
    "getpgid 121 155": [(LOW[0], ALL, (0, OWN))],
    "getsid 124 156": [(LOW[0], ALL, (0, OWN))],
    "sched_getaffinity 204 123": [(LOW[0], ALL, (0, OWN))],
    "sched_getscheduler 145 120": [(LOW[0], ALL, (0, OWN))],
    "sched_getparam 143 121": [(LOW[0], ALL, (0, OWN))],
    # duplicates, flags, locks on ranges, the size of a pipe: no owner for signals, no lease, no larger pipe
    "fcntl 72 25": [(LOW[1], ALL, (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032))],
    # is it a terminal, its size, how much can be read, blocking, closing on exec
    "ioctl 16 29": [(LOW[1], ALL, (0x5401, 0x802C542A, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451))],
    "prctl 157 167": [(LOW[0], ALL, (15, 16, 0x53564D41))],  # names of threads and of memory
    "socketpair 53 199": [(LOW[0], ALL, (1,))],  # AF_UNIX
    "sendto 44 206": [(LOW[4], ALL, (0,)), (HIGH[4], ALL, (0,))],  # to the other end of a pair alone
    # Landlock says which files; but before Linux 6.2 not which are emptied, and access 3 needs no right ever
    "open 2 -": [(LOW[1], OPEN_FLAGS, (0, 1, 2, 0x201, 0x202))],
    "openat 257 56": [(LOW[2], OPEN_FLAGS, (0, 1, 2, 0x201, 0x202))],
}
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
LOAD, AND, EQUAL, AT_LEAST, RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
ALLOW, ERROR = 0x7FFF0000, 0x00050000
READ = 1 << 2 | 1 << 3  # files, folders
WRITE = 1 << 1 | 1 << 5 | 1 << 8  # write, remove and make a file; folders in folders could be made to hide from a count

libc = ctypes.CDLL(None, use_errno=True)


def call(what: object, *arguments: object) -> int:
    """Call a function of the C library that must succeed."""
    found: int = what(*arguments)  # type: ignore[operator]
    if found < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return found


def lock_files(readable: list[str], writable: list[str], most: int) -> None:
    """Lock files by Landlock: all that is not named is out of reach, the network too if the kernel can lock it."""
    version = min(call(libc.syscall, LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1)), most)
    if version < 1:
        raise OSError(f"Landlock's level is {version}, and files are held from level 1 on")
    files = (1 << 13) - 1
    files |= (1 << 13 if version >= 2 else 0) | (1 << 14 if version >= 3 else 0) | (1 << 15 if version >= 5 else 0)
    network, scope = (3 if version >= 4 else 0), (3 if version >= 6 else 0)
    sizes = {1: 8, 2: 8, 3: 8, 4: 16, 5: 16}
    attributes = struct.pack("=QQQ", files, network, scope)[: sizes.get(version, 24)]
    rules = call(libc.syscall, LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    truncate = 1 << 14 if version >= 3 else 0
    for path, rights in [(p, READ) for p in readable] + [(p, READ | WRITE | truncate) for p in writable]:
        try:
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        if not os.path.isdir(path):
            rights &= 1 << 1 | 1 << 2 | truncate
        rule = struct.pack("=Qi", rights, handle)
        call(libc.syscall, LANDLOCK_ADD, rules, ctypes.c_int(1), rule, ctypes.c_uint32(0))
        os.close(handle)
    call(libc.syscall, LANDLOCK_RESTRICT, rules, ctypes.c_uint32(0))
    os.close(rules)


def numbers(table: str, place: int) -> list[int]:
    """Return the numbers of the system calls on this machine."""
    found = [entry.split()[1 + place] for entry in table.split(",")]
    return [int(number) for number in found if number != "-"]


def call_filter(machine: str, own: int) -> list[tuple[int, int, int, int]]:
    """Return the filter of system calls of the process `own`, in BPF: code, jump if true, jump if false, value."""
    place, architecture = ARCHITECTURES[machine]
    allow, refuse = (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, ERROR | errno.EPERM)
    unsupported, unknown = (RETURN, 0, 0, ERROR | errno.EOPNOTSUPP), (RETURN, 0, 0, ERROR | errno.ENOSYS)
    program = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, architecture), refuse, (LOAD, 0, 0, 0)]
    for number in numbers(PASSED, place):
        program += [(EQUAL, 0, 1, number), allow]
    for name, conditions in CONDITIONS.items():
        checks = []
        for where, bits, values in conditions:
            checks += [(LOAD, 0, 0, where), (AND, 0, 0, bits)]
            for after, value in reversed(list(enumerate(reversed(values)))):
                checks.append((EQUAL, after + 1, 0, own if value == OWN else value))
            checks.append(refuse)
        for number in numbers(name, place):
            program += [(EQUAL, 0, len(checks) + 1, number), *checks, allow]
    for number in numbers(UNSUPPORTED, place):
        program += [(EQUAL, 0, 1, number), unsupported]
    program += [(AT_LEAST, 0, 1, 0x40000000), refuse]  # calls of the x32 kind
    return [*program, (AT_LEAST, 0, 1, NEWER[place]), unknown, refuse]


def lock_calls() -> None:
    """Lock the system calls by seccomp: those that programs need pass, and no others."""
    program = call_filter(platform.machine(), os.getpid())
    raw = b"".join(struct.pack("=HBBI", *line) for line in program)
    held = ctypes.create_string_buffer(raw, len(raw))
    header = struct.pack("@HxxxxxxQ", len(program), ctypes.addressof(held))
    call(libc.prctl, 22, 2, header, 0, 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def drop_privileges() -> None:
    """Drop every capability, also those of root."""
    with contextlib.suppress(OSError):
        header, nothing = struct.pack("=Ii", 0x20080522, 0), b"\0" * 24
        call(libc.capset, header, nothing)


def lock(memory: int, seconds: int, size: int, prefix: str, most: int) -> None:
    """Close every lock, or raise OSError."""
    for what, limit in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, size),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_SIGPENDING, 64),
    ):
        resource.setrlimit(what, (limit, limit))
    call(libc.prctl, 1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG: it does not outlive who started it
    call(libc.prctl, 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    drop_privileges()
    os.stat("/proc/self/maps")  # where `cage` counts the files that have no name
    if call(libc.prctl, 3, 0, 0, 0, 0) != 1:  # PR_GET_DUMPABLE
        raise OSError("what a program keeps open cannot be counted, for Python may be run here and not read")
    library = [os.path.realpath(p) for p in (prefix, *sys.path) if p]
    devices = ["/dev/null", "/dev/urandom", "/dev/zero", "/usr/lib", "/lib", "/lib64", "/usr/share/zoneinfo"]
    lock_files(library + devices, [os.getcwd(), "/dev/null"], most)
    lock_calls()


def main() -> None:
    """Lock, run the program, and report how it ended."""
    tell, token = int(sys.argv[1]), sys.argv[2]
    memory, seconds, size = (int(a) for a in sys.argv[3:6])
    source = sys.stdin.buffer.read()
    os.set_inheritable(tell, False)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

    def say(text: str) -> None:
        os.write(tell, text.encode("utf-8", "replace")[:4000] + b"\n")

    try:
        lock(memory, seconds, size, sys.argv[6], int(sys.argv[7]))
    except (OSError, KeyError, AttributeError) as error:
        say(f"{type(error).__name__}: {error}")
        os._exit(NOT_CAGED)
    say("locked")
    threading.stack_size(STACK)
    sys.argv[:] = ["program"]
    module = types.ModuleType("program")  # what stands under `if __name__ == "__main__"` is not what is tested
    sys.modules["program"] = sys.modules["__main__"] = module
    try:
        exec(compile(source, "program", "exec"), module.__dict__)
        sys.stdout.flush()
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    except SystemExit:
        os._exit(1)
    except BaseException as error:
        text = f"{type(error).__name__}: {error}".split("\n")[0]
        say(f"error {text}")
        os._exit(1)
    say(f"end {token}")
    os._exit(0)


if __name__ == "__main__":
    main()
