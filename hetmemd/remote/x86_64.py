"""What is particular to x86-64: registers, the stub, and how an interrupted syscall resumes. Pure.

A second architecture stands beside this file and offers the same names: `ABIS`, `abi_of` and `Abi`.

The stub is a syscall instruction followed by code that puts back, by itself, every register that the call disturbed
and jumps to where the thread was. It is safe at any moment to leave a thread that runs it alone, so the tracer may
die whenever it likes. rcx and r11 are among what is put back: the syscall instruction itself overwrites them.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

# Kernel-internal results (include/linux/errno.h). A thread is stopped with them in its result register, and the kernel
# turns them into a restart or EINTR when it lets the thread go on: they must never reach the program.
_ERESTARTSYS = -512
_ERESTARTNOINTR = -513
_ERESTARTNOHAND = -514
_ERESTART_RESTARTBLOCK = -516
_EINTR = -4

_SYSCALL_LENGTH = 2
"""Of `syscall`, `int 0x80` and `sysenter` alike."""

_MAX_RW_COUNT = 0x7FFFF000
"""No read or write does more at a time (include/linux/fs.h)."""


@dataclass(frozen=True, slots=True)
class Abi:
    """One of the calling conventions that a program may use, with its registers as PTRACE_GETREGSET gives them."""

    name: str
    layout: struct.Struct
    bits: int
    code_segment: int
    """`cs` of programs of this ABI (arch/x86/include/asm/segment.h)."""
    result: int
    """Indices into the registers: the result (rax), the number asked for (orig_rax), and so on."""
    asked: int
    pc: int
    stack: int
    segment: int
    arguments: tuple[int, ...]
    numbers: Mapping[str, int]
    """Syscalls that can be asked for."""
    restart_syscall: int
    bare_eintr: frozenset[int]
    """Syscalls that answer a stop with EINTR where a restart is right."""
    stub_length: int
    write_stub: Callable[[int, Sequence[int], int, int], bytes]
    kept: tuple[tuple[int, int], ...] = ()
    """(offset in the stub, register) of what the stub puts back as it was; where it can be filled in by copying."""
    resumed: tuple[tuple[int, int], ...] = ()
    """Likewise of what it puts back as it was only where the thread is in no syscall."""
    write: int = -1
    """The number of write(2), where it can be had to do the rest of what it came short of; and for that:"""
    written: tuple[int, int] = (0, 0)
    """registers of its buffer and its count,"""
    rest_length: int = 0
    """bytes of the stub,"""
    write_rest: Callable[[Sequence[int]], bytes] | None = None
    """and what writes that."""

    def unpack(self, data: bytes) -> list[int]:
        return list(self.layout.unpack(data))

    def pack(self, registers: Sequence[int]) -> bytes:
        return self.layout.pack(*registers)

    def signed(self, value: int) -> int:
        return value - (1 << self.bits) if value >> (self.bits - 1) else value

    def unsigned(self, value: int) -> int:
        return value & (1 << self.bits) - 1

    def is_in_syscall(self, registers: Sequence[int]) -> bool:
        """False where the thread was interrupted between two instructions of its own."""
        return self.signed(registers[self.asked]) >= 0

    def mended(self, registers: list[int]) -> list[int]:
        """The registers with which a thread that was stopped in a syscall can go on without noticing.

        The same list where they are as they were.

        Some calls give up with a bare EINTR on any wake-up, even one that no handler runs for. -ERESTARTNOHAND says the
        same to the kernel with one difference: EINTR if a handler runs, a restart if none does.
        """
        if registers[self.asked] not in self.bare_eintr or self.signed(registers[self.result]) != _EINTR:
            return registers
        mended = list(registers)
        mended[self.result] = self.unsigned(_ERESTARTNOHAND)
        return mended

    def resumption(self, registers: Sequence[int]) -> tuple[int, int]:
        """(result register, pc) that user space must continue with where the kernel does not get to restart the call.

        What arch_do_signal_or_restart() in arch/x86/kernel/signal.c does, for a thread without a signal.
        """
        result, pc = registers[self.result], registers[self.pc]
        if self.is_in_syscall(registers):
            code = self.signed(result)
            if code in (_ERESTARTSYS, _ERESTARTNOINTR, _ERESTARTNOHAND):
                return registers[self.asked], self.unsigned(pc - _SYSCALL_LENGTH)
            if code == _ERESTART_RESTARTBLOCK:
                return self.restart_syscall, self.unsigned(pc - _SYSCALL_LENGTH)
        return result, pc

    def stub(self, address: int, registers: Sequence[int]) -> bytes:
        """The stub, to stand at `address`, that ends with the thread as `registers` (mended) have it."""
        result, pc = self.resumption(registers)
        return self.write_stub(address, registers, result, pc)

    def came_short(self, registers: Sequence[int]) -> bool:
        """Whether the thread is at the end of a write(2) that did a part of its work, and can be had to do the rest."""
        if registers[self.asked] != self.write:
            return False
        return 0 < self.signed(registers[self.result]) < min(registers[self.written[1]], _MAX_RW_COUNT)

    def rest(self, registers: Sequence[int]) -> bytes:
        """A stub that does the rest of a write that came short, and ends with the whole in the result register.

        Where that fails, what was done before is the result, as it was without.
        """
        assert self.write_rest
        return self.write_rest(registers)

    def asking_for_rest(self, address: int, registers: Sequence[int]) -> list[tuple[int, int]]:
        """What to change, (index, value), to make a thread whose write came short run the stub at `address`."""
        (buffer, count), done = self.written, registers[self.result]
        arguments = {buffer: registers[buffer] + done, count: min(registers[count], _MAX_RW_COUNT) - done}
        return self.calling(address, self.write, [arguments.get(index, registers[index]) for index in self.arguments])

    def calling(self, address: int, number: int, arguments: Sequence[int]) -> list[tuple[int, int]]:
        """What to change, (index, value), to make the thread run the stub at `address` with this syscall."""
        return [
            (self.result, number),
            # No syscall to restart: the kernel must not move pc back when the thread goes on.
            (self.asked, self.unsigned(-1)),
            (self.pc, address),
            *((index, self.unsigned(value)) for index, value in zip(self.arguments, arguments, strict=False)),
        ]


# struct user_regs_struct, arch/x86/include/asm/user_64.h
R15, R14, R13, R12, RBP, RBX, R11, R10, R9, R8, RAX, RCX, RDX, RSI, RDI, ORIG_RAX, RIP, CS, EFLAGS, RSP = range(20)

_LOADS_64 = (  # mov REGISTER, [rip+disp32]
    (RAX, b"\x48\x8b\x05"),
    (RDI, b"\x48\x8b\x3d"),
    (RSI, b"\x48\x8b\x35"),
    (RDX, b"\x48\x8b\x15"),
    (R10, b"\x4c\x8b\x15"),
    (R8, b"\x4c\x8b\x05"),
    (R9, b"\x4c\x8b\x0d"),
    (RCX, b"\x48\x8b\x0d"),
    (R11, b"\x4c\x8b\x1d"),
)
_CODE_64 = (_SYSCALL_LENGTH + 7 * len(_LOADS_64) + 6 + 7) // 8 * 8


def _write_64() -> bytes:
    code = b"\x0f\x05"  # syscall
    for place, (_, opcode) in enumerate(_LOADS_64):
        code += opcode + struct.pack("<i", _CODE_64 + 8 * place - (len(code) + 7))
    code += b"\xff\x25" + struct.pack("<i", _CODE_64 + 8 * len(_LOADS_64) - (len(code) + 6))  # jmp [rip+disp32]
    return code.ljust(_CODE_64, b"\xcc")


_STUB_64 = _write_64()
_DATA_64 = struct.Struct("<10Q")
_KEPT_64 = operator.itemgetter(*(index for index, _ in _LOADS_64[1:]))


def _stub_64(_address: int, registers: Sequence[int], result: int, pc: int) -> bytes:
    return _STUB_64 + _DATA_64.pack(result, *_KEPT_64(registers), pc)


_OPCODES = dict(_LOADS_64)
_RESTORED_REST = (RSI, RDX, RCX, R11)
"""What the rest of a write is asked for with, and what asking for it disturbs."""


def _write_rest_64() -> bytes:
    """Leaves the flags as they are, as a syscall does: nobody says that a program may not count on it."""
    load, operations = 7, b"\x48\x8d\x04\x08"  # bytes of each `mov REGISTER, [rip+disp32]`; lea rax, [rax+rcx]
    whole = load + len(operations)
    code = b"\x0f\x05"  # syscall
    code += b"\x48\x99"  # cqo: rdx is 0, or -1 where rax is negative
    code += b"\x48\x89\xd1"  # mov rcx, rdx
    code += b"\xe3" + bytes([load + 2])  # jrcxz whole
    data = (len(code) + load + 2 + whole + load * len(_RESTORED_REST) + 6 + 7) // 8 * 8

    def loaded(code: bytes, register: int, place: int) -> bytes:
        return code + _OPCODES[register] + struct.pack("<i", data + 8 * place - (len(code) + load))

    code = loaded(code, RAX, 0) + b"\xeb" + bytes([whole])  # jmp behind it
    code = loaded(code, RCX, 0) + operations  # whole:
    for place, register in enumerate(_RESTORED_REST, 1):
        code = loaded(code, register, place)
    code += b"\xff\x25" + struct.pack("<i", data + 8 * (1 + len(_RESTORED_REST)) - (len(code) + 6))  # jmp [rip+disp32]
    return code.ljust(data, b"\xcc")


_REST_64 = _write_rest_64()
_REST_DATA_64 = struct.Struct(f"<{2 + len(_RESTORED_REST)}Q")


def _rest_64(registers: Sequence[int]) -> bytes:
    return _REST_64 + _REST_DATA_64.pack(
        registers[RAX], *(registers[index] for index in _RESTORED_REST), registers[RIP]
    )


# struct user_regs_struct of i386, arch/x86/include/asm/user_32.h
EBX, ECX, EDX, ESI, EDI, EBP, EAX, XDS, XES, XFS, XGS, ORIG_EAX, EIP, XCS, EFLAGS_32, ESP, XSS = range(17)


_LOADS_32 = ((EAX, 0), (ECX, 1), (EDX, 2), (EBX, 3), (EBP, 5), (ESI, 6), (EDI, 7))
_LENGTH_32 = _SYSCALL_LENGTH + 5 * len(_LOADS_32) + 5


def _stub_32(address: int, registers: Sequence[int], result: int, pc: int) -> bytes:
    # No addressing relative to eip here: the values stand in the instructions. `int 0x80` keeps all but eax.
    code = b"\xcd\x80"
    for index, number in _LOADS_32:
        code += struct.pack("<BI", 0xB8 + number, result if index == EAX else registers[index])  # mov REGISTER, imm32
    return code + b"\xe9" + struct.pack("<I", (pc - (address + _LENGTH_32)) & 0xFFFFFFFF)  # jmp rel32


X86_64 = Abi(
    name="x86-64",
    layout=struct.Struct("<27Q"),
    bits=64,
    code_segment=0x33,
    result=RAX,
    asked=ORIG_RAX,
    pc=RIP,
    stack=RSP,
    segment=CS,
    arguments=(RDI, RSI, RDX, R10, R8, R9),
    # arch/x86/entry/syscalls/syscall_64.tbl
    numbers={"set_mempolicy": 238, "mbind": 237, "set_mempolicy_home_node": 450},
    restart_syscall=219,
    bare_eintr=frozenset(
        {
            0,  # read, readv, recvfrom, recvmsg, accept, accept4, connect: sockets with a time limit
            19,
            45,
            47,
            43,
            288,
            42,
            232,  # epoll_wait, epoll_pwait, epoll_pwait2
            281,
            441,
            128,  # rt_sigtimedwait
            65,  # semop, semtimedop
            220,
            208,  # io_getevents, io_pgetevents
            333,
            426,  # io_uring_enter
            285,  # fallocate on hugetlbfs, and on tmpfs of older kernels; to begin again comes to the same
        }
    ),
    stub_length=len(_STUB_64) + _DATA_64.size,
    write_stub=_stub_64,
    kept=tuple((_CODE_64 + 8 * place, index) for place, (index, _) in enumerate(_LOADS_64) if place),
    resumed=((_CODE_64, RAX), (_CODE_64 + 8 * len(_LOADS_64), RIP)),
    write=1,
    written=(RSI, RDX),
    rest_length=len(_REST_64) + _REST_DATA_64.size,
    write_rest=_rest_64,
)

I386 = Abi(
    name="i386",
    layout=struct.Struct("<17I"),
    bits=32,
    code_segment=0x23,
    result=EAX,
    asked=ORIG_EAX,
    pc=EIP,
    stack=ESP,
    segment=XCS,
    arguments=(EBX, ECX, EDX, ESI, EDI, EBP),
    # arch/x86/entry/syscalls/syscall_32.tbl
    numbers={"set_mempolicy": 276, "mbind": 274, "set_mempolicy_home_node": 450},
    restart_syscall=0,
    bare_eintr=frozenset(
        {
            3,  # read, readv, recvfrom, recvmsg, accept4, connect, and all of them by socketcall
            145,
            371,
            372,
            364,
            362,
            102,
            256,  # epoll_wait, epoll_pwait, epoll_pwait2
            319,
            441,
            177,  # rt_sigtimedwait, with 32-bit and 64-bit time
            421,
            117,  # semop by ipc, semtimedop
            420,
            247,  # io_getevents, io_pgetevents with 32-bit and 64-bit time
            385,
            416,
            426,  # io_uring_enter
            324,  # fallocate
        }
    ),
    stub_length=_LENGTH_32,
    write_stub=_stub_32,
)

ABIS = (X86_64, I386)


def abi_of(data: bytes) -> tuple[Abi, list[int]] | None:
    """The ABI whose code the thread is running, and its registers; None for a mode that is none of them."""
    for abi in ABIS:
        if len(data) == abi.layout.size:
            registers = abi.unpack(data)
            return (abi, registers) if registers[abi.segment] == abi.code_segment else None
    return None
