"""Restrictions of the process that decodes uploads, so that a fault of a decoder stays inside it."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Mapping, Sequence

_NICE = 5

# Numbers of system calls that open, make or change a file, open a socket, start a program, or reach another process.
_DENIED = {
    "x86_64": (
        *(2, 85, 257, 437, 304, 319),  # open, creat, openat, openat2, open_by_handle_at, memfd_create
        *(76, 82, 83, 84, 86, 87, 88, 133),  # truncate, rename, mkdir, rmdir, link, unlink, symlink, mknod
        *(258, 259, 263, 264, 265, 266, 316),  # mkdirat, mknodat, unlinkat, renameat, linkat, symlinkat, renameat2
        *(90, 91, 268, 452, 92, 93, 94, 260),  # chmod, fchmod, fchmodat, fchmodat2, chown, fchown, lchown, fchownat
        *(132, 235, 261, 280, 188, 189, 190),  # utime, utimes, futimesat, utimensat, setxattr, lsetxattr, fsetxattr
        *(165, 166, 161, 272, 308),  # mount, umount2, chroot, unshare, setns
        *(41, 42, 49, 53),  # socket, connect, bind, socketpair
        *(59, 322),  # execve, execveat
        *(62, 200, 234, 129, 297),  # kill, tkill, tgkill, rt_sigqueueinfo, rt_tgsigqueueinfo
        *(434, 438, 424),  # pidfd_open, pidfd_getfd, pidfd_send_signal
        *(101, 310, 311, 425, 321),  # ptrace, process_vm_readv, process_vm_writev, io_uring_setup, bpf
        *(29, 30, 31),  # shmget, shmat, shmctl
    ),
    "aarch64": (  # the same, as far as it has them
        *(56, 437, 265, 279),
        *(45, 33, 34, 35, 36, 37, 38, 276),
        *(52, 53, 452, 54, 55, 88, 5, 6, 7),
        *(40, 39, 51, 97, 268),
        *(198, 203, 200, 199),
        *(221, 281),
        *(129, 130, 131, 138, 240),
        *(434, 438, 424),
        *(117, 270, 271, 425, 280),
        *(194, 196, 195),
    ),
}
_STARTS = {"x86_64": (56, 57, 58, 435), "aarch64": (220, 435)}  # clone, fork, vfork, clone3
_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH of linux/audit.h
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # BPF: ld abs, jeq, jge, ret
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | 1, 0x80000000  # SECCOMP_RET of ALLOW, ERRNO(EPERM), KILL_PROCESS
_X32 = 0x40000000  # bit of the system calls of the x32 ABI

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC = 1, 1


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends. Linux only."""
    if sys.platform == "linux":
        _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it ended before the call
            os._exit(1)


def seal(memory_bytes: int) -> str:
    """Limit this process and deny it files, sockets and programs from now on; its children inherit that.

    Args:
        memory_bytes: limit of the address space above its present size.

    Returns:
        What this machine cannot restrict; empty where it can restrict everything.
    """
    os.nice(_NICE)  # the process that answers probes comes first
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if sys.platform != "linux":
        return f"no memory limit and no filter of system calls on {sys.platform}"
    with open("/proc/self/statm") as statm:
        size_bytes = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size_bytes + memory_bytes, size_bytes + memory_bytes))
    return _deny_system_calls(_DENIED)


def forbid_children() -> None:
    """Let this process start no other process and no thread, where its system calls can be filtered."""
    if sys.platform == "linux":
        _deny_system_calls(_STARTS)


def _deny_system_calls(denied: Mapping[str, Sequence[int]]) -> str:
    machine = platform.machine()
    if machine not in denied:
        return f"no filter of system calls is known for {machine}"
    program = _filter(machine, denied[machine])
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of instructions, and where they are
    fprog = struct.pack("HP", len(program) // 8, ctypes.addressof(code))
    libc = _libc()
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.syscall(
        _SECCOMP[machine], _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC, fprog
    ):
        return f"this machine does not let a process filter its system calls ({os.strerror(ctypes.get_errno())})"
    return ""


def _filter(machine: str, denied: Sequence[int]) -> bytes:
    """The BPF program. An instruction is a code, two jumps (how many to skip if true, if false) and an operand."""
    last = len(denied) + 1  # instructions from the X32 test to the one that refuses
    program = [
        (_LOAD, 0, 0, 4),  # seccomp_data.arch
        (_EQUAL, 1, 0, _ARCHITECTURE[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),  # seccomp_data.nr
        (_AT_LEAST, last, 0, _X32),
        *((_EQUAL, last - 1 - i, 0, number) for i, number in enumerate(denied)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
