# SPDX-License-Identifier: LGPL-2.1-or-later
# The still guest, of which a thousand can run: it prints STILL on the first serial port and sleeps for ever, deaf to all, with no tick.
# Like the tiny one it is a PVH kernel, for QEMU's microvm, Firecracker and Cloud Hypervisor.

        .equ    COM1, 0x3f8

        .text
        .code32
        .globl  start
start:  cli
        lgdt    gdt_register
        ljmp    $8, $1f
1:      mov     $16, %eax
        mov     %eax, %ds
        mov     $up, %esi
        mov     $COM1, %dx
2:      mov     (%esi), %al
        inc     %esi
        test    %al, %al
        jz      3f
        out     %al, %dx
        jmp     2b
3:      hlt
        jmp     3b

        .align  8
gdt:    .quad   0
        .quad   0x00cf9b000000ffff              # 8: code, flat
        .quad   0x00cf93000000ffff              # 16: data, flat
gdt_register:
        .word   23
        .long   gdt
up:     .asciz  "STILL\r\n"
