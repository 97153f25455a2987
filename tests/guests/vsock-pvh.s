# SPDX-License-Identifier: LGPL-2.1-or-later
# The beginning of the vsock guest, which is otherwise vsock.c: from where PVH enters, 32 bits without paging, to C in long mode, for
# Cloud Hypervisor's devices lie above 4 GiB; and how it sleeps.
#
# The first 4 GiB are mapped as they are, in pages of 2 MiB; what else C wants to see it puts in place of one of these.
# As in tiny-pvh.s: nested KVM without hardware support knows no iret, so the tick's handler, which interrupts nothing but hlt, drops its frame.

        .equ    APIC_EOI, 0xfee000b0
        .equ    APIC_SVR, 0xfee000f0
        .equ    APIC_LINT0, 0xfee00350
        .equ    APIC_TIMER, 0xfee00320
        .equ    APIC_COUNT, 0xfee00380
        .equ    APIC_DIVIDE, 0xfee003e0
        .equ    TICK, 0x20                      # vector
        .equ    MSR_EFER, 0xc0000080
        .equ    PAGE, 0x83                      # present, writable, 2 MiB

        .text
        .code32
        .globl  start
start:  cli
        mov     $stack, %esp
        mov     $directories, %edi
        mov     $PAGE, %eax
1:      mov     %eax, (%edi)
        movl    $0, 4(%edi)
        add     $8, %edi
        add     $0x200000, %eax
        jnc     1b
        movl    $pointers + 3, top
        mov     $directories + 3, %eax
        mov     $pointers, %edi
2:      mov     %eax, (%edi)
        add     $8, %edi
        add     $0x1000, %eax
        cmp     $pointers + 4 * 8, %edi
        jb      2b

        movl    $0x1ff, APIC_SVR                # APIC on
        movl    $0x10000, APIC_LINT0            # nothing from the 8259, which has no vectors
        movl    $11, APIC_DIVIDE                # by 1: 1 GHz
        movl    $TICK + 0x20000, APIC_TIMER     # periodic
        movl    $2000000, APIC_COUNT              # 2 ms
        mov     %cr4, %eax
        or      $0x20, %eax                     # PAE
        mov     %eax, %cr4
        mov     $top, %eax
        mov     %eax, %cr3
        mov     $MSR_EFER, %ecx
        rdmsr
        or      $0x100, %eax                    # long mode
        wrmsr
        mov     %cr0, %eax
        or      $0x80000001, %eax               # paging, protection
        mov     %eax, %cr0
        lgdt    gdt_register
        ljmp    $8, $long_mode

        .code64
long_mode:
        mov     $16, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     $tick, %eax
        mov     %ax, idt + TICK * 16
        shr     $16, %eax
        mov     %ax, idt + TICK * 16 + 6
        lidt    idt_register
        mov     %ebx, %edi                      # what PVH tells
        call    guest_main
1:      hlt                                     # interrupts are off
        jmp     1b

        .globl  sleep
sleep:  mov     %rsp, awake                     # until the next tick
        sti
        hlt
        ud2
tick:   mov     awake, %rsp
        mov     $APIC_EOI, %eax
        movl    $0, (%rax)
        ret

        .data
        .align  8
gdt:    .quad   0
        .quad   0x00af9b000000ffff              # 8: code, 64 bits
        .quad   0x00cf93000000ffff              # 16: data
gdt_register:
        .word   23
        .long   gdt, 0
idt_register:
        .word   (TICK + 1) * 16 - 1
        .quad   idt
        .align  8
idt:    .fill   TICK * 2, 8, 0
        .word   0, 8, 0x8e00, 0
        .quad   0

        .bss
        .align  4096
top:    .skip   4096
pointers:
        .skip   4096
        .globl  directories
directories:
        .skip   4 * 4096
awake:  .skip   8
        .skip   16384
        .align  16
stack:

        .section .note.GNU-stack, "", @progbits
