"""The cage lets through what programs need and nothing else, at each level of Landlock that is in use."""

from __future__ import annotations

import os
import signal
import sys
from functools import cache
from pathlib import Path

import pytest

from interlace.base.errors import BackendUnavailable
from interlace.sandbox import cage

if sys.platform != "linux":
    pytest.skip("the cage is made of Linux's locks", allow_module_level=True)

from interlace.sandbox import cage_child

LIMITS = cage.CageLimits(seconds=4.0, memory_bytes=256 << 20)
LEVELS = [pytest.param(1, id="Linux 5.13"), pytest.param(3, id="Linux 6.2"), pytest.param(4, id="Linux 6.8"), None]
MACHINE = 1 if os.uname().machine == "aarch64" else 0

PRELUDE = """
import ctypes, errno, os, struct
libc = ctypes.CDLL(None, use_errno=True)
outside, folder, readable = {outside!r}, {folder!r}, {readable!r}
REFUSED = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP)
def call(number, *arguments):
    ctypes.set_errno(0)
    wide = [ctypes.c_char_p(a) if isinstance(a, bytes) else ctypes.c_long(a) for a in arguments]
    found = libc.syscall(ctypes.c_long(number), *wide)
    return found if found >= 0 else -ctypes.get_errno()
path = os.fsencode(outside)
"""

# A call that must not reach the kernel: its number on x86_64 and aarch64 (None: there is none), and its arguments.
CALLS = {
    "setxattrat": (463, 463, "-100, path, 0, b'user.a', struct.pack('=QII', 0, 0, 0), 16"),
    "getxattrat": (464, 464, "-100, path, 0, b'user.secret', bytes(16), 16"),
    "listxattrat": (465, 465, "-100, path, 0, 0, 0"),
    "removexattrat": (466, 466, "-100, path, 0, b'user.secret'"),
    "getxattr": (191, 8, "path, b'user.secret', 0, 0"),
    "lgetxattr": (192, 9, "path, b'user.secret', 0, 0"),
    "listxattr": (194, 11, "path, 0, 0"),
    "file_getattr": (468, 468, "-100, path, bytes(24), 24, 0"),
    "file_setattr": (469, 469, "-100, path, bytes(24), 24, 0"),
    "open_tree": (428, 428, "-100, path, 0"),
    "open_tree_attr": (467, 467, "-100, path, 0, 0, 0"),
    "fspick": (433, 433, "-100, path, 0"),
    "fsconfig": (431, 431, "-1, 0, 0, 0, 0"),
    "mount_setattr": (442, 442, "-100, path, 0, bytes(32), 32"),
    "statmount": (457, 457, "bytes(32), bytes(512), 512, 0"),
    "listmount": (458, 458, "struct.pack('=IIQQ', 24, 0, 2**64 - 1, 0), bytes(64), 8, 0"),
    "quotactl_fd": (443, 443, "0, 0, 0, 0"),
    "io_uring_setup": (425, 425, "1, bytes(120)"),
    "io_setup": (206, 0, "1, bytes(8)"),
    "msgget": (68, 186, "0, 0o1600"),
    "msgctl": (71, 187, "0, 3, bytes(256)"),
    "msgsnd": (69, 189, "0, bytes(16), 8, 0o4000"),
    "msgrcv": (70, 188, "0, bytes(16), 8, 0, 0o4000"),
    "semget": (64, 190, "0, 1, 0o1600"),
    "semctl": (66, 191, "0, 0, 12, 0"),
    "semop": (65, 193, "0, bytes(6), 1"),
    "shmget": (29, 194, "0, 4096, 0o1600"),
    "shmctl": (31, 195, "0, 14, bytes(256)"),
    "shmat": (30, 196, "0, 0, 0"),
    "mq_open": (240, 180, "b'queue', 0o102, 0o600, 0"),
    "mq_unlink": (241, 181, "b'queue'"),
    "memfd_create": (319, 279, "b'x', 0"),
    "memfd_secret": (447, 447, "0"),
    "userfaultfd": (323, 282, "0"),
    "keyctl": (250, 219, "0, -3, 0"),
    "add_key": (248, 217, "b'user', b'x', b'y', 1, -3"),
    "bpf": (321, 280, "0, bytes(72), 72"),
    "perf_event_open": (298, 241, "bytes(128), 0, -1, -1, 0"),
    "ptrace": (101, 117, "16, os.getppid(), 0, 0"),
    "kcmp": (312, 272, "os.getpid(), os.getppid(), 1, 0, 0"),
    "process_vm_readv": (310, 270, "os.getppid(), 0, 0, 0, 0, 0"),
    "process_madvise": (440, 440, "-1, 0, 0, 0, 0"),
    "process_mrelease": (448, 448, "-1, 0"),
    "move_pages": (279, 239, "os.getppid(), 0, 0, 0, 0, 0"),
    "migrate_pages": (256, 238, "os.getppid(), 0, 0, 0"),
    "pidfd_open": (434, 434, "os.getppid(), 0"),
    "get_robust_list": (274, 100, "os.getppid(), bytes(8), bytes(8)"),
    "prlimit64 of another": (302, 261, "os.getppid(), 7, 0, bytes(16)"),
    "ioprio_get of another": (252, 31, "1, os.getppid()"),
    "sched_setaffinity of another": (203, 122, "os.getppid(), 8, b'\\1' + bytes(7)"),
    "sched_setattr of another": (314, 274, "os.getppid(), struct.pack('=IIQiIQQQ', 48, 3, 0, 0, 0, 0, 0, 0), 0"),
    "setpriority of another": (141, 140, "0, os.getppid(), 19"),
    "setpgid": (109, 154, "0, 0"),
    "inotify_init1": (294, 26, "0"),
    "inotify_init": (253, None, ""),
    "fanotify_init": (300, 262, "0, 0"),
    "name_to_handle_at": (303, 264, "-100, path, struct.pack('=Ii', 128, 0) + bytes(128), bytes(4), 0"),
    "utimensat": (280, 88, "-100, path, 0, 0"),
    "chmod": (90, None, "path, 0o777"),
    "fchmodat2": (452, 452, "-100, path, 0o777, 0"),
    "chown": (92, None, "path, os.getuid(), os.getgid()"),
    "truncate": (76, 45, "path, 0"),
    "creat": (85, None, "path, 0o600"),
    "openat2": (437, 437, "-100, path, struct.pack('=QQQ', 0, 0, 0), 24"),
    "execveat": (322, 281, "-100, b'/bin/true', 0, 0, 0"),
    "uselib": (134, None, "path"),
    "sync": (162, 81, ""),
    "syncfs": (306, 267, "1"),
    "vhangup": (153, 58, ""),
    "mlockall": (151, 230, "1"),
    "swapoff": (168, 225, "path"),
    "clock_adjtime": (305, 266, "0, bytes(208)"),
    "lookup_dcookie": (212, 18, "0, bytes(16), 16"),
    "modify_ldt": (154, None, "0, 0, 0"),
    "timer_create": (222, 107, "1, 0, bytes(8)"),
    "seccomp": (317, 277, "2, 0, bytes(1)"),
    "landlock_create_ruleset": (444, 444, "struct.pack('=Q', 1), 8, 0"),
    "lsm_list_modules": (461, 461, "bytes(64), struct.pack('=I', 64), 0"),
    "cachestat": (451, 451, "1, bytes(16), bytes(40), 0"),
    "fallocate": (285, 47, "os.open('f', os.O_RDWR | os.O_CREAT), 1, 0, 64 << 20"),
    "vmsplice": (278, 75, "os.pipe()[1], bytes(16), 1, 0"),
    "setsockopt": (54, 208, "__import__('socket').socketpair()[0].detach(), 1, 26, bytes(16), 16"),
    "socketpair that is not unix": (53, 199, "2, 2, 0, bytes(8)"),
    "clone without a thread": (56, 220, "17, 0, 0, 0, 0"),
    "clone3": (435, 435, "bytes(88), 88"),
    "close_range into a table of its own": (436, 436, "60, 60, 2"),
    "flock": (73, 32, "1, 2"),
    "signals queued": (129, 138, "os.getpid(), 40, bytes(128)"),
    "a pipe that grows": (72, 25, "os.pipe()[0], 1031, 1 << 20"),
    "a lease": (72, 25, "1, 1024, 0"),
    "a folder watched by dnotify": (72, 25, "os.open('.', 0), 1026, 2"),
    "a call of tomorrow": (511, 511, ""),
    "the highest call": (0x3FFFFFFF, 0x3FFFFFFF, ""),
    "the x32 kind of getpid": (0x40000000 + 39, None, ""),
}


def caged(source, tmp_path, level=None):
    """A program beside a file that is not its own; it may read `readable`, which stands for Python's library."""
    outside, readable = tmp_path / "outside", tmp_path / "library" / "module.py"
    readable.parent.mkdir()
    outside.write_text("precious")
    readable.write_text("precious")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "base_prefix", str(readable.parent))  # Python's own library is on its path
        prelude = PRELUDE.format(outside=str(outside), folder=str(tmp_path), readable=str(readable))
        found = cage.run(prelude + source, LIMITS, level)
    assert outside.read_text() == readable.read_text() == "precious"
    assert os.listxattr(outside) == []
    assert outside.stat().st_mode & 0o777 != 0o777
    assert sorted(p.name for p in tmp_path.iterdir()) == ["library", "outside"]
    return found


@pytest.mark.parametrize("level", LEVELS)
def test_no_call_reaches_the_kernel_that_no_program_needs(level, tmp_path):
    lines = ["out = []"]
    for name, (*numbers, arguments) in CALLS.items():
        if numbers[MACHINE] is not None:
            lines.append(f"if -call({', '.join(filter(None, (str(numbers[MACHINE]), arguments)))}) not in REFUSED:")
            lines.append(f"    out.append({name!r})")
    found = caged("\n".join([*lines, "print(out)"]), tmp_path, level)
    assert (found.kind, found.output) == ("passed", "[]\n"), found


# Programs that come to their end where they find every door closed.
ESCAPES = {
    "files that are not its own are opened": """
for name, way in ((outside, 'w'), (outside, 'a'), (outside, 'r'), ('/etc/passwd', 'r'), ('/proc/self/environ', 'r'),
                  ('/proc/self/maps', 'r'), ('/dev/shm/x', 'w'), (folder + '/new', 'w')):
    try: open(name, way); raise SystemExit
    except OSError as error: assert error.errno in (errno.EACCES, errno.EPERM, errno.ENOENT), error
""",
    "folders and files that are not files": """
for make in (os.mkdir, os.mkfifo, lambda p: os.mknod(p, 0o100600), lambda p: os.symlink('/etc', p), os.rmdir):
    try: make('made'); raise SystemExit
    except OSError as error: assert error.errno in REFUSED, error
try: os.remove(outside); raise SystemExit
except OSError: pass
""",
    "limits and priorities": """
import resource
for change in (lambda: resource.setrlimit(resource.RLIMIT_AS, (-1, -1)), lambda: os.nice(-1),
               lambda: resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE),
               lambda: os.sched_setaffinity(os.getppid(), {0}), lambda: os.setpriority(os.PRIO_PROCESS, 0, -1)):
    try: change(); raise SystemExit
    except (OSError, ValueError): pass
for option in (1, 4, 22, 38):  # a parent's death, dumps, seccomp, privileges
    assert libc.prctl(option, 0, 0, 0, 0) == -1
""",
    "the network": """
import urllib.request
try: urllib.request.urlopen('http://127.0.0.1'); raise SystemExit
except OSError: pass
""",
    "extended attributes are written by a newer call": """
value = ctypes.create_string_buffer(b'written')
given = struct.pack('=QII', ctypes.addressof(value), 7, 0)
call(463, -100, path, 0, b'user.escaped', given, 16)
""",
    "extended attributes are read": """
try: assert not os.getxattr(outside, 'user.secret')
except OSError: pass
""",
    "a file is emptied that may only be read": """
for access in (os.O_RDONLY, 3):  # 3 asks for neither reading nor writing
    try: os.open(readable, access | os.O_TRUNC); raise SystemExit
    except OSError: pass
""",
    "a file is emptied by its path": "assert libc.truncate(path, ctypes.c_long(0)) == -1",
    "its mode": "assert libc.chmod(path, 0o777) == -1",
    "its times": "assert libc.utimes(path, None) == -1",
    "its owner": "assert libc.chown(path, os.getuid(), os.getgid()) == -1",
    "a link to it": """
for make in (os.link, os.symlink):
    try: make(outside, 'linked'); open('linked').read(); raise SystemExit
    except OSError: pass
""",
    "it is moved in": """
try: os.rename(outside, 'moved'); raise SystemExit
except OSError: pass
""",
    "its folder is watched": "assert libc.inotify_init() == -1",
    "flags of a file": """
import fcntl
with open('mine', 'w') as file:
    for request in (0x40086602, 0x40049409, 0x401C5820):  # set flags, clone another, set a project
        try: fcntl.ioctl(file, request, bytes(32)); raise SystemExit
        except OSError as error: assert error.errno in REFUSED, error
""",
    "signals by the owner of a socket": """
import fcntl, socket
a, b = socket.socketpair()
for request in (0x8901, 0x8902):  # FIOSETOWN, SIOCSPGRP
    try: fcntl.ioctl(a, request, struct.pack('=i', os.getppid()))
    except OSError: pass
for request in (0x5452,):  # FIOASYNC
    try: fcntl.ioctl(a, request, struct.pack('=i', 1))
    except OSError: pass
try: fcntl.fcntl(a, fcntl.F_SETFL, fcntl.fcntl(a, fcntl.F_GETFL) | 0x2000)
except OSError: pass
b.send(b'x')
""",
    "signals by number": """
import signal
for number in (0, signal.SIGIO):
    for target in (os.getppid(), -os.getppid(), -1):
        try: os.kill(target, number); raise SystemExit
        except PermissionError: pass
    assert libc.tgkill(os.getppid(), os.getppid(), number) == -1
""",
    "abstract sockets": """
import socket
for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_NETLINK, 40):
    for sort in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
        try: socket.socket(family, sort); raise SystemExit
        except OSError as error: assert error.errno in REFUSED, error
""",
    "a datagram to an address": """
import socket
a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
name = '\\0name'
for send in (lambda: a.sendto(b'x', name), lambda: a.sendmsg([b'x'], [], 0, name), lambda: a.connect(name)):
    try: send(); raise SystemExit
    except OSError as error: assert error.errno in REFUSED, error
""",
    "another machine's calls": """
import mmap, platform
if platform.machine() == 'x86_64':
    code = mmap.mmap(-1, 4096, prot=7)
    code.write(bytes.fromhex('53b814000000cd805bc3'))  # getpid by int 0x80
    run = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    assert run() != os.getpid()
""",
    "programs elsewhere": """
for start in (lambda: os.execv('/bin/true', ['true']), lambda: os.posix_spawn('/bin/true', ['true'], {}), os.fork):
    try: start(); raise SystemExit
    except OSError as error: assert error.errno in REFUSED, error
""",
}


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_escapes_on_any_kernel(level, tmp_path):
    got = []
    before = signal.signal(signal.SIGIO, lambda number, frame: got.append(number))
    source = f"""
out = []
for name, escape in {ESCAPES!r}.items():
    try: exec(escape, dict(globals()))
    except BaseException as error: out.append((name, repr(error)))
print(out)
"""
    try:
        found = caged(source, tmp_path, level)
    finally:
        signal.signal(signal.SIGIO, before)
    assert (found.kind, found.output) == ("passed", "[]\n"), found
    assert got == []


# What holds disk, memory or threads and is not seen in the sizes of named files.
HOARDS = {
    "blocks past the end": "f = os.open('f', os.O_RDWR | os.O_CREAT)\ncall(FALLOCATE, f, 1, 0, 64 << 20)",
    "blocks of what is printed": "call(FALLOCATE, 1, 1, 0, 64 << 20)",
    "blocks of a file without a name": (
        "f = os.open('f', os.O_RDWR | os.O_CREAT)\nos.unlink('f')\ncall(FALLOCATE, f, 1, 0, 64 << 20)"
    ),
    "many files without a name": """
held = []
for i in range(48):
    held.append(open('f', 'wb', buffering=0)); os.unlink('f'); held[-1].write(bytes(1 << 20))
time.sleep(9)
""",
    "files without a name, held by a page of each": """
libc.mmap.restype = ctypes.c_void_p
for i in range(150):
    f = os.open('f', os.O_RDWR | os.O_CREAT); os.write(f, bytes(1 << 20)); os.unlink('f')
    libc.mmap(None, ctypes.c_size_t(4096), 1, 2, f, ctypes.c_long(0)); os.close(f)
time.sleep(9)
""",
    "files without a name from the start": """
for i in range(48):
    f = os.open('.', os.O_RDWR | os.O_TMPFILE); os.write(f, bytes(1 << 20)); held.append(f)
time.sleep(9)
""",
    "stores into files without a name, held by a page of each": """
libc.mmap.restype = ctypes.c_void_p
for i in range(150):
    f = os.open('f', os.O_RDWR | os.O_CREAT); os.ftruncate(f, 1 << 20); os.unlink('f')
    start = libc.mmap(None, ctypes.c_size_t(1 << 20), 3, 1, f, ctypes.c_long(0)); os.close(f)
    ctypes.memset(start, 120, 1 << 20); libc.munmap(ctypes.c_void_p(start + 4096), ctypes.c_size_t((1 << 20) - 4096))
time.sleep(9)
""",
    "files without a name, and the first thread has ended": """
import threading
def hold():
    for i in range(48):
        held.append(open('f', 'wb', buffering=0)); os.unlink('f'); held[-1].write(bytes(1 << 20))
    time.sleep(9)
threading.Thread(target=hold).start()
libc.syscall(EXIT, 0)
""",
    "files of a thread with a table of its own": """
import threading
def hold():
    call(436, 60, 60, 2)  # close_range that unshares
    for i in range(48):
        held.append(os.open('f', os.O_RDWR | os.O_CREAT)); os.unlink('f'); os.write(held[-1], bytes(1 << 20))
    time.sleep(9)
threading.Thread(target=hold).start()
time.sleep(9)
""",
    "anonymous files in memory": """
for i in range(40):
    f = libc.memfd_create(b'x', 0)
    if f < 0: raise OSError('refused')
    os.ftruncate(f, 1 << 20)
""",
    "threads without stacks": """
code = mmap.mmap(-1, 4096, prot=7)
if os.uname().machine != 'x86_64': raise OSError('not tried')
code.write(bytes.fromhex(  # clone(a thread, stack 0); in the thread: pause() for ever
    'b838000000bf000f3d0031f631d24d31d24d31c00f0585c07401c3b8220000000f05ebf7'))
run = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
for i in range(3000):
    if run() < 0: raise OSError('no more')
time.sleep(9)
""",
}


@pytest.mark.parametrize("level", [1, None])
@pytest.mark.parametrize("name", HOARDS)
def test_no_more_is_held_than_was_given(name, level, tmp_path):
    numbers = f"FALLOCATE, EXIT = {(285, 47)[MACHINE]}, {(60, 93)[MACHINE]}"
    source = f"import mmap, time\nheld, f = [], 1\n{numbers}\n{HOARDS[name]}\n"
    if "blocks" in name:
        found = caged(source + "assert os.fstat(f).st_blocks * 512 < 16 << 20", tmp_path, level)
        assert found.kind == "passed", found
    else:
        found = caged(source, tmp_path, level)
        assert found.kind in ("files", "failed", "memory", "threads"), found
        assert found.seconds < 3


NEEDED = {
    "threads": "import threading; t = [threading.Thread(target=sum, args=([1],)) for _ in range(8)]\n"
    "for x in t: x.start()\nfor x in t: x.join()",
    "sixty threads": "import threading; e = threading.Event()\n"
    "t = [threading.Thread(target=e.wait) for _ in range(60)]\n"
    "for x in t: x.start()\ne.set()\nfor x in t: x.join()",
    "recursion to the limit in a thread": "import threading; hit = []\n"
    "def f(n): return sorted([1], key=lambda _: f(n + 1))\n"
    "def work():\n    try: f(0)\n    except RecursionError: hit.append(1)\n"
    "t = threading.Thread(target=work); t.start(); t.join(); assert hit",
    "a pool of threads": "from concurrent.futures import ThreadPoolExecutor as P\n"
    "assert list(P(4).map(abs, [-1])) == [1]",
    "asyncio": "import asyncio; asyncio.run(asyncio.wait_for(asyncio.to_thread(sum, [1]), 1))",
    "a database in memory": "import sqlite3; c = sqlite3.connect(':memory:')\n"
    "c.execute('create table t(a)'); c.execute('insert into t values (1)')\n"
    "assert c.execute('select a from t').fetchall() == [(1,)]",
    "a database in a file": "import sqlite3; c = sqlite3.connect('d')\n"
    "c.execute('create table t(a)'); c.execute('insert into t values (1)'); c.commit(); c.close()",
    "temporary files": "import tempfile\n"
    "with tempfile.NamedTemporaryFile('w+') as f: f.write('x'); f.seek(0); f.read()\n"
    "with tempfile.TemporaryFile() as f: f.write(b'x')",
    "chance": "import random, secrets, uuid; random.seed(); random.random(); secrets.token_hex(); uuid.uuid4()",
    "alarms": "import signal, time\nhit = []\nsignal.signal(signal.SIGALRM, lambda *a: hit.append(1))\n"
    "signal.setitimer(signal.ITIMER_REAL, 0.01)\ntime.sleep(0.1)\nassert hit",
    "a signal to itself": "import os, signal\nsignal.signal(signal.SIGUSR1, lambda *a: None)\n"
    "signal.raise_signal(signal.SIGUSR1); os.kill(os.getpid(), signal.SIGUSR1)",
    "time": "import datetime, time; time.sleep(0.001); time.localtime(); datetime.datetime.now().astimezone()",
    "zones": "import datetime, zoneinfo, os\n"
    "if os.path.exists('/usr/share/zoneinfo/UTC'): datetime.datetime.now(zoneinfo.ZoneInfo('UTC'))",
    "decimals": "import decimal; decimal.getcontext().prec = 200; decimal.Decimal(2).sqrt()",
    "callbacks from C": "import ctypes; assert ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(lambda x: x + 1)(2) == 3",
    "memory that is shared": "import mmap; m = mmap.mmap(-1, 4096); m[:2] = b'ab'; m.flush(); m.close()",
    "archives": "import zipfile, gzip, bz2, lzma, io\nzipfile.ZipFile('z', 'w').writestr('a', 'b')\n"
    "gzip.compress(b'a'); bz2.compress(b'a'); lzma.compress(b'a')",
    "copies of files": "import shutil; open('a', 'w').write('x')\n"
    "shutil.copyfile('a', 'b'); assert open('b').read() == 'x'",
    "lists of files": "import os, glob, pathlib; open('a', 'w').close()\n"
    "os.rename('a', 'b'); os.replace('b', 'a')\n"
    "assert os.listdir() == glob.glob('*') == [p.name for p in pathlib.Path().iterdir()] == ['a']",
    "pipes": "import os, select; r, w = os.pipe(); os.write(w, b'x')\n"
    "assert select.select([r], [], [], 0)[0] == [r]\n"
    "os.set_blocking(r, False); os.read(r, 1)",
    "deep recursion": "import sys, threading\nsys.setrecursionlimit(20000); threading.stack_size(64 << 20)\n"
    "def f(n): return n and f(n - 1)\nt = threading.Thread(target=f, args=(9000,)); t.start(); t.join()",
    "what the process is": "import os, platform, resource, sys\nos.getpid(); os.getppid(); os.cpu_count()\n"
    "os.uname(); os.times(); resource.getrusage(resource.RUSAGE_SELF); resource.getrlimit(resource.RLIMIT_AS)\n"
    "sys.stdout.isatty(); platform.machine(); os.get_terminal_size if sys.stdin.isatty() else None",
    "profiles": "import cProfile, tracemalloc, faulthandler\n"
    "cProfile.run('1 + 1'); tracemalloc.start(); faulthandler.enable()",
    "logs": "import logging; logging.basicConfig(filename='log'); logging.warning('x'); logging.shutdown()",
    "doctest": "import doctest; doctest.run_docstring_examples('>>> 1 + 1\\n2\\n', {})",
    "every module": "import importlib, sys, warnings\nwarnings.simplefilter('ignore')\n"
    "for m in sys.stdlib_module_names:\n"
    "    if m[0] != '_' and m not in ('antigravity', 'this', 'idlelib', 'turtledemo', 'turtle', 'tkinter'):\n"
    "        try: importlib.import_module(m)\n        except ModuleNotFoundError: pass",
}


@pytest.mark.parametrize("name", NEEDED)
def test_what_programs_need_goes_through(name):
    found = cage.run(NEEDED[name], LIMITS)
    assert found.kind == "passed", found


def test_what_numpy_and_sympy_need_goes_through(monkeypatch):
    numpy, sympy = pytest.importorskip("numpy"), pytest.importorskip("sympy")
    site = Path(numpy.__file__).parents[1]
    assert Path(sympy.__file__).parents[1] == site
    monkeypatch.setattr(sys, "base_prefix", str(site))  # a program may read what stands here
    program = f"""
import os, sys
sys.path.append({str(site)!r})
os.environ["OPENBLAS_NUM_THREADS"] = "2"
import numpy, sympy
x = sympy.Symbol("x")
assert sympy.solve(x**2 - 4, x) == [-2, 2]
a = numpy.random.default_rng(0).normal(size=(200, 200))
assert abs(numpy.linalg.inv(a) @ a - numpy.eye(200)).max() < 1e-6
numpy.save("a.npy", a)
assert (numpy.load("a.npy", mmap_mode="r") == a).all()
"""
    found = cage.run(program, cage.CageLimits(seconds=20.0, memory_bytes=1 << 30))
    assert found.kind == "passed", found


def decide(program, machine, number, arguments):
    """What a filter in BPF says to a call."""
    words = dict(enumerate([number, cage_child.ARCHITECTURES[machine][1], 0, 0]))
    for place, value in enumerate(arguments):
        words[4 + 2 * place], words[5 + 2 * place] = value & 0xFFFFFFFF, value >> 32 & 0xFFFFFFFF
    accumulator, at = 0, 0
    while True:
        code, yes, no, value = program[at]
        at += 1
        if code == cage_child.LOAD:
            accumulator = words[value // 4]
        elif code == cage_child.AND:
            accumulator &= value
        elif code == cage_child.RETURN:
            return value
        else:
            at += yes if (accumulator == value if code == cage_child.EQUAL else accumulator >= value) else no


@pytest.mark.parametrize("machine", cage_child.ARCHITECTURES)
def test_the_filter_of_each_machine(machine):
    place = cage_child.ARCHITECTURES[machine][0]
    program = cage_child.call_filter(machine, 77)
    said = cache(lambda number, *arguments: decide(program, machine, number, (*arguments, 0, 0, 0, 0, 0, 0)[:6]))
    passed = {number for number in range(1000) if said(number) == cage_child.ALLOW}
    whole = set(cage_child.numbers(cage_child.PASSED, place))
    partly = {n for name in cage_child.CONDITIONS for n in cage_child.numbers(name, place)}
    assert whole <= passed <= whole | partly
    for name, (*numbers, arguments) in CALLS.items():
        if numbers[place] is not None and numbers[place] not in partly:
            assert said(numbers[place], *[1] * arguments.count(",")) != cage_child.ALLOW, name
    clone, kill, fcntl, openat = (220, 129, 25, 56) if place else (56, 62, 72, 257)
    assert said(clone, 0x3D0F00) == said(clone, 0x7D0F00) == said(kill, 77, 9) == cage_child.ALLOW
    for number, *arguments in (
        (clone, 17),
        (clone, 0x3D0B00),
        (kill, 78, 9),
        (kill, -1, 9),
        (kill, -77, 9),
        (fcntl, 0, 8),
    ):
        assert said(number, *arguments) != cage_child.ALLOW, (number, arguments)
    for flags, right in ((0, True), (1, True), (0x241, True), (0x200, False), (3, False), (0x203, False)):
        assert (said(openat, 0, 0, flags) == cage_child.ALLOW) is right, flags
    other = next(m for m in cage_child.ARCHITECTURES if m != machine)
    assert decide(program, other, min(whole), [0] * 6) != cage_child.ALLOW


def test_the_level_that_holds_is_told():
    here = cage.level()
    assert here >= 1
    assert cage.level(3) == min(3, here)
    assert cage.level(0) == 0
    for most, alone in ((1, 4), (3, 3), (4, 2), (6, 0)):
        assert cage.describe(most).count("(Linux 6.") == (alone if here >= most else cage.describe().count("(Linux 6."))
    assert "signals and abstract sockets (Linux 6.12)" in cage.describe(4)
    assert "level is 0" in cage.describe(0)
    with pytest.raises(BackendUnavailable, match="level is 0"):
        cage.run("", level=0)


def test_as_many_threads_run_as_are_allowed():
    source = f"""
import threading
end = threading.Event()
threads = [threading.Thread(target=end.wait) for _ in range({cage.CageLimits().threads - 2})]
for one in threads: one.start()
end.set()
for one in threads: one.join()
"""
    found = cage.run(source, cage.CageLimits(seconds=10.0))
    assert found.kind == "passed", found
