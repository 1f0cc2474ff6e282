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
import types

NOT_CAGED, OUT_OF_MEMORY = 97, 98

# System calls that are refused, by machine: x86_64, aarch64 (None where it has no such call).
REFUSED = {
    "socket": (41, 198),
    "connect": (42, 203),
    "accept": (43, 202),
    "accept4": (288, 242),
    "bind": (49, 200),
    "listen": (50, 201),
    "sendmsg": (46, 211),
    "sendmmsg": (307, 269),
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "syslog": (103, 116),
    "truncate": (76, 45),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "ioprio_set": (251, 30),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "setrlimit": (160, 164),
    "setpriority": (141, 140),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "lchown": (94, None),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "setuid": (105, 146),
    "setgid": (106, 144),
    "setreuid": (113, 145),
    "setregid": (114, 143),
    "setresuid": (117, 147),
    "setresgid": (119, 149),
    "setgroups": (116, 159),
    "capset": (126, 91),
    "personality": (135, 92),
    "ioperm": (173, None),
    "iopl": (172, None),
    "mknod": (133, None),
    "mknodat": (259, 33),
}
CLONE, CLONE3, KILL, TKILL, TGKILL, PRLIMIT = (56, 220), (435, 435), (62, 129), (200, 130), (234, 131), (302, 261)
FCNTL, PRCTL, SENDTO = (72, 25), (157, 167), (44, 206)
OWNERS = (8, 10, 15)  # F_SETOWN, F_SETSIG, F_SETOWN_EX: would have the kernel signal another process
PARENT_DEATH = 1
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
CLONE_THREAD = 0x10000
LOAD, EQUAL, ANY_BIT, AT_LEAST, RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
ALLOW, ERROR = 0x7FFF0000, 0x00050000
READ = 1 << 2 | 1 << 3  # files, folders
WRITE = 1 << 1 | 1 << 5 | 1 << 8  # write, remove and make a file; folders in folders could be made to hide from a count

libc = ctypes.CDLL(None, use_errno=True)


def call(what: object, *arguments: object) -> int:
    """A function of the C library that must succeed."""
    found: int = what(*arguments)  # type: ignore[operator]
    if found < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return found


def lock_files(readable: list[str], writable: list[str]) -> None:
    """Landlock: everything that is not named is out of reach, and so is the network where the kernel knows how."""
    version = call(libc.syscall, LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
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


def lock_calls() -> None:
    """Seccomp: no other process, no signal to one, no socket, nothing that changes the system."""
    place, architecture = ARCHITECTURES[platform.machine()]
    refuse = (RETURN, 0, 0, ERROR | errno.EPERM)
    program = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, architecture), refuse, (LOAD, 0, 0, 0)]
    if not place:
        program += [(AT_LEAST, 0, 1, 0x40000000), refuse]  # calls of the x32 kind
    for number in (numbers[place] for numbers in REFUSED.values()):
        if number is not None:
            program += [(EQUAL, 0, 1, number), refuse]
    program += [(EQUAL, 0, 1, CLONE3[place]), (RETURN, 0, 0, ERROR | errno.ENOSYS)]  # its flags cannot be read here
    first, second, third, fifth = 16, 24, 32, 48  # where the low halves of these arguments lie
    program += [(EQUAL, 0, 4, CLONE[place]), (LOAD, 0, 0, first), (ANY_BIT, 0, 1, CLONE_THREAD)]
    program += [(RETURN, 0, 0, ALLOW), refuse]
    for numbers in (KILL, TKILL, TGKILL):
        program += [(EQUAL, 0, 4, numbers[place]), (LOAD, 0, 0, first), (EQUAL, 0, 1, os.getpid())]
        program += [(RETURN, 0, 0, ALLOW), refuse]
    program += [(EQUAL, 0, 6, PRLIMIT[place]), (LOAD, 0, 0, third), (EQUAL, 0, 3, 0)]
    program += [(LOAD, 0, 0, third + 4), (EQUAL, 0, 1, 0), (RETURN, 0, 0, ALLOW), refuse]
    for number in OWNERS:
        program += [(EQUAL, 0, 3, FCNTL[place]), (LOAD, 0, 0, second), (EQUAL, 0, 1, number), refuse, (LOAD, 0, 0, 0)]
    program += [(EQUAL, 0, 3, PRCTL[place]), (LOAD, 0, 0, first), (EQUAL, 0, 1, PARENT_DEATH), refuse, (LOAD, 0, 0, 0)]
    program += [(EQUAL, 0, 5, SENDTO[place]), (LOAD, 0, 0, fifth), (EQUAL, 0, 2, 0)]  # to the other end of a pair alone
    program += [(LOAD, 0, 0, fifth + 4), (EQUAL, 1, 0, 0), refuse]
    program += [(RETURN, 0, 0, ALLOW)]
    raw = b"".join(struct.pack("=HBBI", *line) for line in program)
    held = ctypes.create_string_buffer(raw, len(raw))
    header = struct.pack("@HxxxxxxQ", len(program), ctypes.addressof(held))
    call(libc.prctl, 22, 2, header, 0, 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def drop_privileges() -> None:
    """No capability is left, also to root."""
    with contextlib.suppress(OSError):
        header, nothing = struct.pack("=Ii", 0x20080522, 0), b"\0" * 24
        call(libc.capset, header, nothing)


def lock(memory: int, seconds: int, size: int, prefix: str) -> None:
    """Close everything, or raise OSError."""
    for what, limit in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, size),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (limit, limit))
    call(libc.prctl, 1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG: it does not outlive who started it
    call(libc.prctl, 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    drop_privileges()
    library = [os.path.realpath(p) for p in (prefix, *sys.path) if p]
    devices = ["/dev/null", "/dev/urandom", "/dev/zero", "/usr/lib", "/lib", "/lib64", "/usr/share/zoneinfo"]
    lock_files(library + devices, [os.getcwd(), "/dev/null"])
    lock_calls()


def main() -> None:
    """Lock, run, and tell how it ended."""
    tell, token = int(sys.argv[1]), sys.argv[2]
    memory, seconds, size = (int(a) for a in sys.argv[3:6])
    source = sys.stdin.buffer.read()
    os.set_inheritable(tell, False)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

    def say(text: str) -> None:
        os.write(tell, text.encode("utf-8", "replace")[:4000] + b"\n")

    try:
        lock(memory, seconds, size, sys.argv[6])
    except (OSError, KeyError, AttributeError) as error:
        say(f"{type(error).__name__}: {error}")
        os._exit(NOT_CAGED)
    say("locked")
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


main()
